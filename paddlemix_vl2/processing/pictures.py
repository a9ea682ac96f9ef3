"""Opening pictures: what Pillow reads becomes an upright 8-bit RGB picture, anything else one clear error."""

import base64
import math
import os
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

_ORIENTATION_TAG = 0x0112
# What an EXIF orientation asks of a viewer; 1 (and anything unknown) asks for nothing.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)
_EXIF_ERRORS = (AttributeError, KeyError, OSError, SyntaxError, TypeError, ValueError, struct.error)
_MAX_NAME = 200
REMOTE_SCHEMES = ("http://", "https://")
# Pillow reads many more; some start other programs (EPS), and few of their decoders see much use.
STRANGERS_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

T = TypeVar("T")


def open_picture(source: str | os.PathLike | Image.Image, name: str | None = None) -> Image.Image:
    """The picture as the model sees it: upright, RGB, eight bits per channel.

    Colours follow ``Image.convert("RGB")``, as in the published code: CMYK is converted without a colour
    profile and transparency is dropped, not blended with a background. Two things go beyond the published
    code. The EXIF orientation is applied: a phone stores an upright picture rotated and notes it only
    there, and the model should see what a viewer shows. Sixteen-bit grey is
    scaled to eight, where ``convert`` would turn nearly every pixel white. Of an animation the current (in a
    file the first) frame is taken.

    Boxes in an answer refer to the picture returned here: draw them on it, not on the file's raw pixels.

    Args:
        source: a file's path or a PIL image, which is left as it is.
        name: what errors call the picture; the path, or "the picture", when absent.

    Raises:
        ValueError: no such file, not a picture, damaged, too large to be safe, without pixels, or of a kind
            that has no conversion to RGB. The message starts with the name.
    """
    return _apply(_to_upright_rgb, source, name)


def picture_size(source: str | os.PathLike | Image.Image, name: str | None = None) -> tuple[int, int]:
    """Width and height of :func:`open_picture`'s result, from the head of the file where its format allows:
    Pillow decodes a PNG to look for an orientation behind its pixels.

    Raises:
        ValueError: as :func:`open_picture`, but damaged pixels go unnoticed.
    """
    return _apply(_upright_size, source, name)


def _apply(read: Callable[[Image.Image], T], source: str | os.PathLike | Image.Image, name: str | None) -> T:
    """What ``read`` finds in a picture or a picture's file."""
    if isinstance(source, Image.Image):
        name = name or str(getattr(source, "filename", "")) or "the picture"
        return _checked(lambda: read(source), name)
    if isinstance(source, str | os.PathLike):
        return _checked(lambda: _open_file(read, Path(source)), name or str(source))
    kind = type(source).__name__
    raise ValueError(f"{name or 'the picture'}: a picture is a PIL image or a file's path, not {kind}")


def is_remote(source: str) -> bool:
    """Whether a picture's name is a URL that has to be fetched."""
    return source[:8].lower().startswith(REMOTE_SCHEMES)


def is_data_url(source: str) -> bool:
    """Whether a picture's name is a ``data:`` URL, which holds the picture."""
    return source[:5].lower() == "data:"


def split_data_url(url: str, media_type: str = "") -> str:
    """The base64 text of ``data:image/png;base64,...``.

    Args:
        media_type: what the media type must begin with, as ``image/``.

    Raises:
        ValueError: it is another kind of URL, or no URL.
    """
    head, comma, content = url.partition(",")
    if not is_data_url(url) or not comma:
        raise ValueError(f"a picture is a data: URL (data:image/png;base64,...), not {url[:40]!r}")
    kind, *options = head[5:].lower().split(";")
    if not kind.startswith(media_type) or "base64" not in options:
        raise ValueError(f"a data: URL begins with data:image/...;base64, not {head[:40]!r}")
    return content


def read_base64(content: str) -> bytes:
    """The bytes that are written in base64.

    Raises:
        ValueError: it is not base64.
    """
    try:
        return base64.b64decode(content, validate=True)
    # Letters beyond ASCII raise a plain ValueError, of which binascii.Error is a kind.
    except ValueError as error:
        raise ValueError(f"is not base64 ({error})") from None


def decode_base64(content: str, name: str) -> Image.Image:
    """:func:`open_picture` for a file that is written in base64.

    Args:
        name: what errors call it.

    Raises:
        ValueError: not base64, or as :func:`open_picture`.
    """
    try:
        data = read_base64(content)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return _checked(lambda: _open_file(_to_upright_rgb, BytesIO(data)), name)


def decode_picture(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """:func:`open_picture` for bytes that a stranger has sent: in one of ``STRANGERS_FORMATS``, and no larger
    than ``max_pixels``, which is asked of the header before anything is decoded.

    Raises:
        ValueError: as :func:`open_picture`, or it has more pixels.
    """
    return _checked(lambda: _open_file(_to_upright_rgb, BytesIO(data), STRANGERS_FORMATS, max_pixels), name)


def _open_file(
    read: Callable[[Image.Image], T],
    file: Path | BytesIO,
    formats: tuple[str, ...] | None = None,
    max_pixels: float = math.inf,
) -> T:
    with Image.open(file, formats=formats) as picture:
        if picture.width * picture.height > max_pixels:
            raise ValueError(
                f"it has {picture.width} x {picture.height} pixels; {max_pixels:,} in all are possible"
            )
        return read(picture)


def _checked(load: Callable[[], T], name: str) -> T:
    """Call ``load``; whatever goes wrong becomes a one-line ValueError that starts with ``name``."""
    name = name if len(name) <= _MAX_NAME else name[:_MAX_NAME] + "..."
    try:
        return load()
    except FileNotFoundError:
        reason = "no such file"
    except IsADirectoryError:
        reason = "is a folder, not a picture"
    except UnidentifiedImageError:
        reason = "not a picture that Pillow can read"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = f"{Image.MAX_IMAGE_PIXELS:,}"
        reason = f"has more than {limit} pixels; raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
    except MemoryError:
        reason = "does not fit into memory"
    # Pillow's decoders raise whatever broken bytes lead them to: OSError, SyntaxError, IndexError.
    except Exception as error:
        detail = str(getattr(error, "strerror", None) or error) or type(error).__name__
        reason = "cannot be read as a picture: " + " ".join(detail.split())
    raise ValueError(f"{name}: {reason}")


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    _check_pixels(picture)
    lies = _orientation(picture) in _ON_ITS_SIDE
    return (picture.height, picture.width) if lies else (picture.width, picture.height)


def _check_pixels(picture: Image.Image) -> None:
    if not picture.width or not picture.height:
        raise ValueError(f"it has {picture.width} x {picture.height} pixels")


def _to_upright_rgb(picture: Image.Image) -> Image.Image:
    _check_pixels(picture)
    picture.load()
    move = _UPRIGHT.get(_orientation(picture))
    upright = picture.transpose(move) if move is not None else picture.copy()
    # Pixels only: an orientation that stayed behind would be applied again when the result is passed in here.
    upright.info = {}
    if upright.mode.startswith("I;16"):
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    elif upright.mode in ("I", "F"):
        raise ValueError(
            f"its mode is {upright.mode!r} (32 bits per pixel, no fixed range); save it with 8 or 16 bits"
        )
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none. Damaged EXIF counts as none: the pixels may be good."""
    try:
        return picture.getexif().get(_ORIENTATION_TAG, 1)
    except _EXIF_ERRORS:
        return 1
