"""Words as they look: masks of letters in the fonts that come with matplotlib."""

from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageFont


@lru_cache(maxsize=256)
def _load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    # Only pictures with text need matplotlib, and only for its files.
    from matplotlib import get_data_path

    file = Path(get_data_path()) / "fonts" / "ttf" / name
    # The other layout engine is not installed everywhere, and renders "fl" as one letter.
    return ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=8192)
def letters(text: str, font: str, size: int) -> Image.Image:
    """A mask of ``text``, mode "L", cut to its ink: 255 where a letter is.

    Args:
        font: a file name of ``vocabulary.FONTS``.
        size: of the font in pixels.
    """
    mask = _load_font(font, size).getmask(text, mode="L")
    picture = Image.frombytes("L", mask.size, bytes(mask))
    return picture.crop(picture.getbbox())
