"""Pictures in a request: ``data:`` URLs and fetched bytes to pictures."""

import base64
import binascii

from PIL import Image

from paddlemix_vl2.processing.pictures import decode_picture
from paddlemix_vl2.server.errors import ApiError

REMOTE_SCHEMES = ("http://", "https://")


def is_remote(url: str) -> bool:
    """Whether the URL has to be fetched."""
    return url[:8].lower().startswith(REMOTE_SCHEMES)


def read_data_url(url: str, place: str) -> bytes:
    """The bytes of ``data:image/...;base64,...``.

    Raises:
        ApiError: 400, it is another kind of URL (a path or ``file:`` is never read), or not base64.
    """
    head, comma, data = url.partition(",")
    scheme, _, kind = head.partition(":")
    if scheme.lower() != "data" or not comma:
        raise ApiError(
            400,
            f"{place}: a picture is a data: URL (data:image/png;base64,...), not {url[:40]!r}",
            place,
            "invalid_image_url",
        )
    media_type, *options = kind.lower().split(";")
    if not media_type.startswith("image/") or "base64" not in options:
        raise ApiError(
            400,
            f"{place}: a data: URL begins with data:image/...;base64, not {head[:40]!r}",
            place,
            "invalid_image_url",
        )
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f"{place}: not base64: {error}", place, "invalid_base64") from None


def decode(data: bytes, place: str, max_pixels: int) -> Image.Image:
    """The picture in the bytes.

    Raises:
        ApiError: 400, not a picture, a damaged one, or one with too many pixels.
    """
    try:
        return decode_picture(data, place, max_pixels)
    except ValueError as error:
        raise ApiError(400, str(error), place, "invalid_image") from None
