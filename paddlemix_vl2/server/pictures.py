"""Pictures in a request: ``data:`` URLs and fetched bytes to pictures."""

from PIL import Image

from paddlemix_vl2.processing.pictures import decode_picture, read_base64, split_data_url
from paddlemix_vl2.server.errors import ApiError


def read_data_url(url: str, place: str) -> bytes:
    """The bytes of ``data:image/...;base64,...``.

    Raises:
        ApiError: 400, it is another kind of URL (a path or ``file:`` is never read), or not base64.
    """
    try:
        content = split_data_url(url, "image/")
    except ValueError as error:
        raise ApiError(400, f"{place}: {error}", place, "invalid_image_url") from None
    try:
        return read_base64(content)
    except ValueError as error:
        raise ApiError(400, f"{place}: {error}", place, "invalid_base64") from None


def decode(data: bytes, place: str, max_pixels: int) -> Image.Image:
    """The picture in the bytes.

    Raises:
        ApiError: 400, not a picture, a damaged one, or one with too many pixels.
    """
    try:
        return decode_picture(data, place, max_pixels)
    except ValueError as error:
        raise ApiError(400, str(error), place, "invalid_image") from None
