"""Every kind of picture that people have, and everything that is no picture."""

import base64
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from paddlemix_vl2.processing import open_picture
from paddlemix_vl2.processing.pictures import (
    STRANGERS_FORMATS,
    decode_base64,
    decode_picture,
    is_data_url,
    is_remote,
    read_base64,
    split_data_url,
)

CORNERS = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [90, 90, 90], [255, 255, 255]]], np.uint8
)


def corners() -> Image.Image:
    """30 x 20 pixels with six flat fields, different under every rotation and reflection."""
    return Image.fromarray(CORNERS.repeat(10, axis=0).repeat(10, axis=1))


def save_with_orientation(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    corners().save(path, exif=exif)


@pytest.mark.parametrize("mode", ["CMYK", "P", "L", "1", "LA", "RGBA", "YCbCr", "HSV"])
def test_colour_modes_follow_pillow(mode):
    picture = corners().convert(mode)
    opened = open_picture(picture)
    assert opened.mode == "RGB"
    assert np.array_equal(np.asarray(opened), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize(
    ("name", "mode"), [("a.jpg", "CMYK"), ("a.gif", "P"), ("a.png", "RGBA"), ("a.tif", "L")]
)
def test_files_of_these_modes(tmp_path, name, mode):
    corners().convert(mode).save(tmp_path / name)
    with Image.open(tmp_path / name) as stored:
        assert stored.mode == mode
        expected = np.asarray(stored.convert("RGB"))
    assert np.array_equal(np.asarray(open_picture(tmp_path / name)), expected)


def test_transparency_is_dropped_not_blended(tmp_path):
    Image.new("RGBA", (4, 4), (200, 100, 50, 0)).save(tmp_path / "clear.png")
    assert open_picture(tmp_path / "clear.png").getpixel((0, 0)) == (200, 100, 50)


def test_palette_with_transparency(tmp_path, recwarn):
    picture = corners().convert("P")
    picture.save(tmp_path / "palette.png", transparency=bytes(range(6)))
    assert np.array_equal(
        np.asarray(open_picture(tmp_path / "palette.png")), np.asarray(picture.convert("RGB"))
    )
    assert not recwarn.list


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_sixteen_bit_grey_is_scaled(tmp_path, name):
    levels = (np.arange(256, dtype=np.uint16) << 8).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / name)
    opened = np.asarray(open_picture(tmp_path / name))
    assert np.array_equal(opened, (levels >> 8).astype(np.uint8)[..., None].repeat(3, axis=2))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_have_no_range(mode):
    with pytest.raises(ValueError, match=f"its mode is '{mode}'.*save it with 8 or 16 bits"):
        open_picture(Image.new(mode, (4, 4)))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(tmp_path, orientation, suffix):
    path = tmp_path / f"phone.{suffix}"
    save_with_orientation(path, orientation)
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    opened = open_picture(path)
    assert opened.size == ((30, 20) if orientation <= 4 else (20, 30))
    assert np.array_equal(np.asarray(opened), expected)
    assert np.array_equal(np.asarray(open_picture(opened)), expected)
    with Image.open(path) as given:
        assert np.array_equal(np.asarray(open_picture(given)), expected)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage!!", b"Exif\0\0MM\0*\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
def test_damaged_exif_does_not_lose_the_picture(tmp_path, exif):
    corners().save(tmp_path / "odd.png", exif=exif)
    assert np.array_equal(np.asarray(open_picture(tmp_path / "odd.png")), np.asarray(corners()))


def test_given_picture_is_left_alone():
    picture = corners()
    picture.info["note"] = "mine"
    assert open_picture(picture) is not picture
    assert picture.info == {"note": "mine"}


@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000)])
def test_extreme_sizes(tmp_path, size):
    Image.new("RGB", size, (9, 8, 7)).save(tmp_path / "thin.png")
    assert open_picture(tmp_path / "thin.png").size == size


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.jpg: no such file$"):
        open_picture(tmp_path / "nowhere.jpg")


def test_folder(tmp_path):
    with pytest.raises(ValueError, match="is a folder, not a picture"):
        open_picture(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"hello, I am text", b"\x89PNG\r\n\x1a\n"])
def test_not_a_picture(tmp_path, content):
    (tmp_path / "letter.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"letter\.jpg: (not a|cannot be read as a) picture"):
        open_picture(tmp_path / "letter.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tif"])
def test_truncated_file(tmp_path, suffix):
    whole = tmp_path / f"whole.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(whole)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"cut\.{suffix}: .*picture") as caught:
        open_picture(cut)
    assert "\n" not in str(caught.value)


def test_truncated_picture_that_was_opened_by_the_caller(tmp_path, golden):
    content = (golden / "images" / "square.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[:9000])
    with (
        Image.open(tmp_path / "cut.jpg") as picture,
        pytest.raises(ValueError, match=r"cut\.jpg: .*truncated"),
    ):
        open_picture(picture)


def test_decompression_bomb(tmp_path):
    """A file of some hundred bytes that says it has 900 million pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 90000))
    (tmp_path / "bomb.png").write_bytes(content + chunk(b"IEND", b""))
    with pytest.raises(ValueError, match=r"bomb\.png: has more than 89,478,485 pixels"):
        open_picture(tmp_path / "bomb.png")


def test_picture_without_pixels():
    with pytest.raises(ValueError, match=r"the picture: .*0 x 5 pixels"):
        open_picture(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("source", [np.zeros((4, 4, 3)), b"bytes", None])
def test_other_types(source):
    kind = type(source).__name__
    with pytest.raises(ValueError, match=f"picture 3: a picture is a PIL image or a file's path, not {kind}"):
        open_picture(source, "picture 3")


def test_out_of_memory(monkeypatch):
    def fail(self):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "copy", fail)
    with pytest.raises(ValueError, match="big: does not fit into memory"):
        open_picture(corners(), "big")


def test_very_long_names_are_cut():
    with pytest.raises(ValueError, match=r"^data:image/png;base64,x+\.\.\.: ") as caught:
        open_picture("data:image/png;base64," + "x" * 100000)
    assert len(str(caught.value)) < 400


def test_a_picture_in_base64_is_that_of_its_file(tmp_path):
    save_with_orientation(tmp_path / "a.jpg", 6)
    content = base64.b64encode((tmp_path / "a.jpg").read_bytes()).decode()
    decoded = decode_base64(content, "row 3")
    assert np.array_equal(np.asarray(decoded), np.asarray(open_picture(tmp_path / "a.jpg")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a*b", "row 3: is not base64"),
        ("abc", "row 3: is not base64"),
        ("é", "row 3: is not base64"),
        ("", "row 3: not a picture that Pillow can read"),
        ("QUJD", "row 3: not a picture that Pillow can read"),
    ],
)
def test_text_that_is_no_picture(content, message):
    with pytest.raises(ValueError, match=message):
        decode_base64(content, "row 3")


def test_a_picture_in_base64_that_was_cut_off():
    stream = BytesIO()
    corners().resize((300, 300)).save(stream, format="PNG")
    content = base64.b64encode(stream.getvalue()[:200]).decode()
    with pytest.raises(ValueError, match="row 3: cannot be read as a picture"):
        decode_base64(content, "row 3")


def test_parts_of_a_data_url():
    assert split_data_url("data:image/png;base64,QUJD") == "QUJD"
    assert split_data_url("DATA:Image/PNG;charset=x;BASE64,a,b", "image/") == "a,b"
    assert split_data_url("data:;base64,") == ""
    assert read_base64("QUJD") == b"ABC"
    assert is_data_url("Data:x") and not is_data_url("data") and not is_data_url("/data:")
    assert is_remote("HTTPS://x/a.png") and is_remote("http://x") and not is_remote("ftp://x")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("a.png", "a picture is a data: URL .*, not 'a.png'"),
        ("data:image/png;base64", "a picture is a data: URL"),
        ("data:image/png,xx", "a data: URL begins with data:image/...;base64, not 'data:image/png'"),
        ("data:text/plain;base64,xx", "a data: URL begins with data:image/"),
    ],
)
def test_other_urls(url, message):
    with pytest.raises(ValueError, match=message):
        split_data_url(url, "image/")


def encoded(kind: str, size=(30, 20)) -> bytes:
    file = BytesIO()
    corners().resize(size).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", STRANGERS_FORMATS)
def test_bytes_of_a_stranger(kind):
    picture = decode_picture(encoded(kind), "it", 600)
    assert picture.mode == "RGB" and picture.size == (30, 20)
    with pytest.raises(ValueError, match=r"it: .*30 x 20 pixels; 599 in all are possible"):
        decode_picture(encoded(kind), "it", 599)


@pytest.mark.parametrize("data", [b"", b"nothing", encoded("TIFF"), encoded("EPS"), encoded("PNG")[:60]])
def test_bytes_that_are_refused(data):
    with pytest.raises(ValueError, match=r"^it: "):
        decode_picture(data, "it", 10_000)


def test_too_many_pixels_are_not_decoded(monkeypatch):
    data = encoded("PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="are possible"):
        decode_picture(data, "it", 599)
