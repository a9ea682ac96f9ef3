"""Boxes on pictures of every size, checked by their pixels; files are whole or not there."""

import itertools
import os

import numpy as np
import pytest
from PIL import Image, ImageFont

from paddlemix_vl2.figures import boxes as drawing
from paddlemix_vl2.figures.boxes import draw_boxes
from paddlemix_vl2.files import picture_format, save_picture
from paddlemix_vl2.processing.boxes import LabeledBox

GREY = (127, 127, 127)


def changed(picture):
    """bool [height, width]: which pixels are not the grey background."""
    return (np.asarray(picture) != GREY).any(axis=-1)


def colors_of(picture):
    return {color for _, color in picture.getcolors(1 << 24)}


def test_the_original_is_left_alone_and_the_outline_is_where_the_box_is():
    image = Image.new("RGB", (400, 300), GREY)
    result = draw_boxes(image, [LabeledBox("", (50, 60, 200, 150))])
    assert not changed(image).any()
    rows, columns = np.nonzero(changed(result))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (50, 60, 200, 150)
    assert not changed(result)[62:149, 52:199].any(), "the inside of the box stays visible"


def test_a_label_stands_on_a_filled_background_above_its_box():
    image = Image.new("RGB", (600, 400), GREY)
    with_label = changed(draw_boxes(image, [LabeledBox("a cat", (100, 200, 300, 350))]))
    without = changed(draw_boxes(image, [LabeledBox("", (100, 200, 300, 350))]))
    rows, columns = np.nonzero(with_label & ~without)
    assert rows.max() == 199 and columns.min() == 100
    area = with_label[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert area.all(), "the label's background is filled"
    assert 10 <= area.shape[0] <= 30 and area.shape[1] > area.shape[0]


def test_boxes_of_one_label_share_a_color_and_labels_differ():
    image = Image.new("RGB", (1000, 1000), GREY)
    items = [LabeledBox(f"label {i % 6}", (10 + 80 * i, 500, 60 + 80 * i, 600)) for i in range(12)]
    result = draw_boxes(image, items)
    outlines = [result.getpixel((item.box[0], 550)) for item in items]
    assert outlines[:6] == outlines[6:]
    for one, other in itertools.combinations(outlines[:6], 2):
        # 60 of 255 steps between any two can be distinguished at a glance.
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 60


def test_lines_and_letters_grow_with_the_picture():
    def line_width(side):
        box = (side // 4, side // 4, side // 2, side // 2)
        result = changed(draw_boxes(Image.new("RGB", (side, side), GREY), [LabeledBox("", box)]))
        return int(result[side * 3 // 8, : side * 3 // 8].sum())

    assert [line_width(side) for side in (100, 1000, 3000)] == [1, 3, 9]


SIZES = [(1, 1), (2, 3), (1, 2000), (2000, 1), (12, 12), (40, 25), (150, 90), (5000, 40), (4000, 3000)]
LABELS = [
    "x",
    "a rather long label for a small picture " * 3,
    "红色的汽车",
    "👍🏽 é\n\t\x00\ud800",
    "   ",
    "W" * 5000,
]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_picture_size_and_label_works(size):
    image = Image.new("RGB", size, GREY)
    width, height = size
    corners = [(0, 0, width, height), (width - 1, height - 1, width, height), (0, 0, 0, 0)]
    outside = [(-50, -50, 2 * width, 2 * height), (width + 5, height + 5, width + 9, height + 9)]
    items = [LabeledBox(label, box) for label in LABELS for box in corners + outside]
    result = draw_boxes(image, items)
    assert result.size == size and result.mode == "RGB"
    assert changed(result).any()


@pytest.mark.parametrize("box", [(0, 0, 5, 5), (290, 190, 299, 199), (0, 0, 299, 199), (100, 0, 200, 199)])
def test_labels_stay_inside_the_picture(box, monkeypatch):
    places = []
    place_label = drawing._place_label
    monkeypatch.setattr(
        drawing, "_place_label", lambda *args: places.append(place_label(*args)) or places[-1]
    )
    draw_boxes(Image.new("RGB", (300, 200)), [LabeledBox("a label of some length", box)])
    left, top, right, bottom = places[0]
    assert 0 <= left < right <= 300 and 0 <= top < bottom <= 200


def test_labels_of_the_same_box_do_not_cover_each_other(monkeypatch):
    places = []
    place_label = drawing._place_label
    monkeypatch.setattr(
        drawing, "_place_label", lambda *args: places.append(place_label(*args)) or places[-1]
    )
    box = (100, 100, 300, 300)
    draw_boxes(
        Image.new("RGB", (600, 500)), [LabeledBox(name, box) for name in ("one", "two", "three", "four")]
    )
    for one, other in itertools.combinations(places, 2):
        assert not drawing._overlap(one, other)


def test_a_label_too_long_for_the_picture_is_shortened():
    label = drawing._fit_label("an extraordinarily long description of something", (80, 60), 20, None)
    assert label.text.startswith("an extra") and label.text.endswith("...")
    assert label.size[0] <= 80 and label.size[1] <= 60
    assert drawing._fit_label("x", (1, 1), 20, None) is None


def test_chinese_labels_use_a_font_of_the_system_that_has_them(monkeypatch):
    asked = []
    monkeypatch.setattr(drawing, "_find_wide_font", lambda: asked.append("wide") or None)
    drawing._load_font.cache_clear()
    draw_boxes(Image.new("RGB", (300, 200)), [LabeledBox("plain é", (50, 50, 90, 90))])
    assert asked == []
    draw_boxes(Image.new("RGB", (300, 200)), [LabeledBox("猫", (50, 50, 90, 90))])
    assert asked == ["wide"]
    drawing._load_font.cache_clear()


def test_the_first_font_that_the_system_has_is_taken(monkeypatch):
    def only_one(name, *args):
        if name != "simhei.ttf":
            raise OSError("cannot open resource")

    monkeypatch.setattr(ImageFont, "truetype", only_one)
    assert drawing._find_wide_font.__wrapped__() == "simhei.ttf"
    monkeypatch.setattr(drawing, "_WIDE_FONTS", ("missing.ttf",))
    assert drawing._find_wide_font.__wrapped__() is None


def test_a_font_that_cannot_be_read_is_named():
    with pytest.raises(ValueError, match="no-such-font"):
        draw_boxes(Image.new("RGB", (300, 200)), [LabeledBox("x", (5, 5, 9, 9))], font="no-such-font.ttf")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_pictures_of_other_modes_are_drawn_on_in_color(mode):
    result = draw_boxes(Image.new(mode, (200, 200)), [LabeledBox("x", (50, 50, 150, 150))])
    assert result.mode == "RGB" and len(colors_of(result)) > 1


@pytest.mark.parametrize(
    "name", ["a.png", "b.JPG", "c.jpeg", "d.webp", "e.bmp", "f.tiff", "new/folder/g.png"]
)
def test_the_extension_decides_the_format(tmp_path, name):
    path = tmp_path / name
    save_picture(Image.new("RGBA" if name != "d.webp" else "RGB", (30, 20), (9, 99, 199)), path)
    with Image.open(path) as saved:
        assert saved.format == picture_format(path) and saved.size == (30, 20)
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no temporary file is left"
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask(), "others may read it as any file"


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("name", ["boxes", "boxes.txt", "boxes.svg", ".png"])
def test_an_unknown_extension_is_refused_with_those_that_work(tmp_path, name):
    with pytest.raises(ValueError, match=r"cannot write .*use \.png, \.jpg"):
        save_picture(Image.new("RGB", (3, 3)), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "wide.jpg"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"wide\.jpg: cannot be written as JPEG"):
        save_picture(Image.new("RGB", (70000, 1)), path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_in_the_way_is_an_os_error(tmp_path):
    (tmp_path / "boxes.png").mkdir()
    with pytest.raises(OSError, match=r"boxes\.png"):
        save_picture(Image.new("RGB", (3, 3)), tmp_path / "boxes.png")
