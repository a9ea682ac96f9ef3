"""Labelled boxes drawn on a picture."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from paddlemix_vl2.processing.boxes import LabeledBox

# Lines are 3 and letters 20 pixels on a picture of 1000 x 1000.
_PIXELS_PER_LINE = 330
_PIXELS_PER_LETTER = 50
_MIN_LETTERS = 10
_MAX_LABEL = 200
_FIRST_WIDE_LETTER = "\u2e80"  # Chinese, Japanese and Korean begin here
_WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "msyh.ttc",
    "simhei.ttf",
    "PingFang.ttc",
    "STHeiti Medium.ttc",
    "Arial Unicode.ttf",
)


def draw_boxes(image: Image.Image, objects: Sequence[LabeledBox], font: str | None = None) -> Image.Image:
    """The picture with its boxes: one colour per label, the label on a filled background at the box.

    Lines and letters grow with the picture. A label is made smaller, then shortened, to stay inside the
    picture; where not even one letter fits, it is left out. Labels avoid each other where there is room.
    Boxes are cut to the picture.

    Args:
        image: any picture; it is left as it is.
        font: a TrueType or OpenType file, or its name, for the labels. When absent, Pillow's own font, and
            for labels with Chinese, Japanese or Korean characters a font of the system that has them, if
            there is one.

    Returns:
        an RGB picture of the same size.

    Raises:
        ValueError: ``font`` cannot be read.
    """
    picture = image.convert("RGB")
    canvas = ImageDraw.Draw(picture)
    scale = (picture.width * picture.height) ** 0.5
    letters = max(_MIN_LETTERS, round(scale / _PIXELS_PER_LETTER))
    colors = _label_colors(objects)
    boxes = [(item.label, _cut_to_picture(item.box, picture.size)) for item in objects]
    for text, box in boxes:
        canvas.rectangle(box, outline=colors[text], width=max(1, round(scale / _PIXELS_PER_LINE)))
    taken: list[tuple[int, int, int, int]] = []
    for text, box in boxes:
        label = _fit_label(text, picture.size, letters, font)
        if label is not None:
            taken.append(_place_label(label.size, box, picture.size, taken))
            _write_label(canvas, label, taken[-1], colors[text])
    return picture


def _write_label(canvas: ImageDraw.ImageDraw, label: "_Label", place, color) -> None:
    left, top, right, bottom = place
    canvas.rectangle((left, top, right - 1, bottom - 1), fill=color)
    canvas.text((left + label.offset[0], top + label.offset[1]), label.text, _ink(color), label.font)


def _label_colors(objects: Sequence[LabeledBox]) -> dict[str, tuple[int, int, int]]:
    """A colour per label, in the order of first appearance; golden-ratio steps around the hues stay apart."""
    labels = list(dict.fromkeys(item.label for item in objects))
    colors = [colorsys.hsv_to_rgb((0.98 + index * 0.618034) % 1, 0.85, 0.9) for index in range(len(labels))]
    return {
        label: tuple(round(255 * part) for part in color) for label, color in zip(labels, colors, strict=True)
    }


def _ink(background: tuple[int, int, int]) -> str:
    """Black on light colours, white on dark ones."""
    red, green, blue = background
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def _cut_to_picture(box: Sequence[int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    left, right = sorted(min(max(x, 0), size[0] - 1) for x in (box[0], box[2]))
    top, bottom = sorted(min(max(y, 0), size[1] - 1) for y in (box[1], box[3]))
    return left, top, right, bottom


@dataclass(frozen=True)
class _Label:
    """Text that fits the picture: its font, the size of its background, the place of the text in it."""

    text: str
    font: ImageFont.FreeTypeFont
    size: tuple[int, int]
    offset: tuple[int, int]


def _fit_label(text: str, size: tuple[int, int], letters: int, font: str | None) -> _Label | None:
    """The largest form of ``text`` that fits into a picture of ``size``; None where nothing does."""
    text = "".join(letter if letter.isprintable() else " " for letter in text[:_MAX_LABEL]).strip()
    smaller = [letters]
    while smaller[-1] > _MIN_LETTERS:
        smaller.append(max(_MIN_LETTERS, smaller[-1] * 3 // 4))
    forms = [(text, letters) for letters in smaller]
    forms += [(text[:kept].rstrip() + "...", _MIN_LETTERS) for kept in range(len(text) - 1, 0, -1)]
    for form, letters in forms if text else []:
        label = _measure(form, letters, font)
        if label.size[0] <= size[0] and label.size[1] <= size[1]:
            return label
    return None


def _measure(text: str, letters: int, font: str | None) -> _Label:
    face = _load_font(font, letters, is_wide=max(text) >= _FIRST_WIDE_LETTER)
    left, top, right, bottom = (round(edge) for edge in face.getbbox(text))
    margin = max(1, letters // 5)
    size = (right - left + 2 * margin, bottom - top + 2 * margin)
    return _Label(text, face, size, (margin - left, margin - top))


@lru_cache(maxsize=64)
def _load_font(name: str | None, letters: int, is_wide: bool):
    if name is not None:
        try:
            return ImageFont.truetype(name, letters)
        except OSError as error:
            raise ValueError(f"font {name!r} cannot be read: {error}") from None
    wide = _find_wide_font() if is_wide else None
    return ImageFont.truetype(wide, letters) if wide else ImageFont.load_default(letters)


@lru_cache(maxsize=1)
def _find_wide_font() -> str | None:
    """A font of the system with Chinese characters. Pillow looks a name up in the system's font folders."""
    for name in _WIDE_FONTS:
        try:
            ImageFont.truetype(name)
            return name
        except OSError:
            continue
    return None


def _place_label(label, box, size, taken) -> tuple[int, int, int, int]:
    """Where the label goes: above the box, else inside it at the top or bottom, else below; the first place
    that is free."""
    (width, height), (left, top, _, bottom) = label, box
    left = min(left, size[0] - width)
    heights = [top - height, top, bottom - height + 1, bottom + 1]
    places = [(left, y, left + width, y + height) for y in heights if 0 <= y <= size[1] - height]
    free = [place for place in places if not any(_overlap(place, other) for other in taken)]
    inside = min(top, size[1] - height)
    return (free or places or [(left, inside, left + width, inside + height)])[0]


def _overlap(one, other) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
