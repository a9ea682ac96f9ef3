"""Each format: what it becomes, and what is refused at opening, with file, line and field."""

import base64
import io
import json
import re

import pytest
from PIL import Image

from paddlemix_vl2.data import BrokenSample, SourceSpec, open_source
from paddlemix_vl2.processing.boxes import parse_boxes
from tests.data.conftest import ask, write_jsonl, write_picture

U, A = "user", "assistant"


def turns(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def open_entries(folder, format, entries, **settings):
    return open_source(SourceSpec(format, str(write_jsonl(folder / "d.jsonl", entries)), **settings))


def contents(record):
    """Role, text and pictures of every message."""
    return [(message.role, message.content, message.images) for message in record.conversation.messages]


def refusal(folder, format, entry):
    """The error for a bad entry on line 2, without the path of its folder."""
    good = {
        "llava": {"conversations": turns("a", "b")},
        "messages": {"messages": ask("a", "b")},
        "grounding": {"image": "a.png", "objects": [{"ref": "a", "boxes": [[0, 0, 1, 1]]}]},
        "text": {"text": "a"},
    }
    with pytest.raises(ValueError) as caught:
        open_entries(folder, format, [good[format], entry])
    message = str(caught.value)
    assert message.startswith(f"{folder / 'd.jsonl'}:2: ") and "\n" not in message
    return message.removeprefix(f"{folder / 'd.jsonl'}:2: ")


# ---- llava ----


def test_llava_array(tmp_path):
    entries = [
        {
            "id": "0",
            "image": "a.png",
            "conversations": turns("Was ist das? \u00e4\u00f6 \U0001f600\n<image>", "b", "c", "d"),
        },
        {"id": "1", "conversations": [{"from": "system", "value": "s"}, *turns("a", "b")]},
        {
            "id": "2",
            "image": ["a.png", "/b.png", "c.png"],
            "conversations": turns("<image>", "b", "<image>, <image>", "d"),
        },
    ]
    file = tmp_path / "x.json"
    for text in (json.dumps(entries), "\ufeff \n" + json.dumps(entries, indent=2, ensure_ascii=False) + "\n"):
        file.write_text(text, encoding="utf-8")
        source = open_source(SourceSpec("llava", str(file), image_folder=str(tmp_path)))
        assert len(source) == 3
        picture = str(tmp_path / "a.png")
        assert contents(source[0]) == [
            (U, "Was ist das? \u00e4\u00f6 \U0001f600\n<image>", (picture,)),
            (A, "b", ()),
            (U, "c", ()),
            (A, "d", ()),
        ]
        assert [message.role for message in source[1].conversation.messages] == ["system", U, A]
        shares = [message.images for message in source[2].conversation.messages]
        assert shares == [(picture,), (), ("/b.png", str(tmp_path / "c.png")), ()]
        assert source[2].place == f"{file}: entry 2" and source[2].text is None


def test_llava_lines(tmp_path):
    source = open_entries(tmp_path, "llava", [{"image": "a.png", "conversations": turns("<image>", "b")}])
    assert source[0].conversation.images == [str(tmp_path / "a.png")]
    assert source[0].place == f"{tmp_path / 'd.jsonl'}:1"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image": "a.png"}, "'conversations' is missing; it must be a list"),
        ({"conversations": "a"}, "'conversations' is a list, not str"),
        ({"conversations": []}, "'conversations': the conversation is empty"),
        (
            {"conversations": [{"from": "human"}]},
            "'conversations': turn 0 is an object with 'from' and 'value'",
        ),
        (
            {"conversations": [{"from": "robot", "value": ""}]},
            "turn 0: unknown 'from' 'robot'; use human, gpt, system",
        ),
        ({"conversations": [{"from": ["human"], "value": ""}]}, "turn 0: unknown 'from' ['human']"),
        ({"conversations": turns("a", "b")[::-1]}, "message 0 (<|Assistant|>): expected the role user"),
        ({"conversations": turns("a")}, "ends with the assistant's answer"),
        (
            {"conversations": turns("<image>", "b")},
            "has 1 <image> (1 in message 0 (<|User|>)) but images= holds 0",
        ),
        (
            {"image": "a.png", "conversations": turns("a", "b")},
            "has 0 <image> (in no message) but images= holds 1",
        ),
        ({"image": "a.png", "conversations": turns("a", "<image>")}, "pictures belong into user messages"),
        (
            {"image": 3, "conversations": turns("<image>", "b")},
            "'image': a picture is a path or a data URL, not 3",
        ),
        (
            {"image": "https://x/a.png", "conversations": turns("<image>", "b")},
            "not a file; download it first",
        ),
        ([1], "holds a JSON list; it must be an object"),
    ],
)
def test_bad_llava(tmp_path, entry, message):
    assert message in refusal(tmp_path, "llava", entry)


def test_bad_array_entry_has_its_number(tmp_path):
    file = tmp_path / "x.json"
    file.write_text(json.dumps([{"conversations": turns("a", "b")}, {"conversations": turns("a")}]))
    with pytest.raises(ValueError, match=re.escape(f"{file}: entry 1: 'conversations': message 0")):
        open_source(SourceSpec("llava", str(file)))


# ---- messages ----


def data_url(width=8, height=4):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (9, 8, 7)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_messages(tmp_path):
    entries = [
        {"messages": ask("?", "b", "a.png", data_url())},
        {"messages": [*ask("<image>", "b"), *ask("<image>", "d")], "images": ["a.png", "b.png"]},
    ]
    first, second = open_entries(tmp_path, "messages", entries)
    path, picture = first.conversation.messages[0].images
    assert (
        path == str(tmp_path / "a.png") and picture.size == (8, 4) and picture.getpixel((0, 0)) == (9, 8, 7)
    )
    assert [message.role for message in first.conversation.messages] == [U, A]
    assert [message.images for message in second.conversation.messages] == [
        (path,), (), (str(tmp_path / "b.png"),), ()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"messages": ask("a", "b"), "images": "a.png"}, "'images' is a list, not str"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "'messages': message 0: unknown role 'bot'"),
        (
            {"messages": [{"role": "user"}]},
            "'messages': message 0: a message is a dictionary with role and content",
        ),
        ({"messages": ask("<image>", "b")}, "message 0 (user): 1 <image> in the text but 0 picture(s)"),
        (
            {"messages": ask("a", "b", "x.png"), "images": ["y.png"]},
            "'images' stands beside the messages and in",
        ),
        ({"messages": ask("a", "b", "data:image/png,xx")}, "a data: URL begins with data:image/...;base64"),
        ({"messages": ask("a", "")}, "'messages': message 1 (assistant): is empty"),
        ({"message": []}, "'messages' is missing"),
    ],
)
def test_bad_messages(tmp_path, entry, message):
    assert message in refusal(tmp_path, "messages", entry)


def test_a_data_url_without_a_picture_is_one_broken_sample(tmp_path):
    source = open_entries(tmp_path, "messages", [{"messages": ask("", "b", "data:image/png;base64,QUJD")}])
    with pytest.raises(BrokenSample, match=r"d\.jsonl:1: 'images': the data URL .*: not a picture"):
        source[0]


# ---- grounding ----


def test_grounding_in_pixels_and_in_coordinates(tmp_path):
    write_picture(tmp_path / "a.png", 200, 100)
    objects = [
        {"ref": "the red car", "boxes": [[20, 10, 200.4, 100], [0, 0, 100, 50]]},
        {"ref": "a dog", "boxes": [[0, 0, 200, 100]]},
    ]
    plain = [{"ref": "a dog", "boxes": [[1, 2, 3, 999]]}]
    entries = [{"image": "a.png", "objects": objects}, {"image": "a.png", "objects": plain, "pixels": False}]
    pixels, coordinates = open_entries(tmp_path, "grounding", entries)
    question, answer, _, second_answer = pixels.conversation.messages
    assert question.content == "<image>\nLocate <|ref|>the red car<|/ref|> in the given image."
    assert question.images[0].size == (200, 100)
    assert (
        answer.content == "<|ref|>the red car<|/ref|><|det|>[[100, 100, 999, 999], [0, 0, 500, 500]]<|/det|>"
    )
    assert contents(pixels)[2] == (U, "Locate <|ref|>a dog<|/ref|> in the given image.", ())
    assert second_answer.content == "<|ref|>a dog<|/ref|><|det|>[[0, 0, 999, 999]]<|/det|>"
    assert coordinates.conversation.images == [str(tmp_path / "a.png")]
    assert (
        coordinates.conversation.messages[1].content == "<|ref|>a dog<|/ref|><|det|>[[1, 2, 3, 999]]<|/det|>"
    )
    read = parse_boxes(answer.content, (200, 100))
    assert not read.problems and [one.box for one in read.objects] == [(20, 10, 200, 100), (0, 0, 100, 50)]


def test_boxes_are_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.new("RGB", (200, 100)).save(tmp_path / "a.jpg", exif=exif)
    entry = {"image": "a.jpg", "objects": [{"ref": "all", "boxes": [[0, 0, 100, 200]]}]}
    (record,) = open_entries(tmp_path, "grounding", [entry])
    assert "[[0, 0, 999, 999]]" in record.conversation.messages[1].content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "'image' is text, not NoneType"),
        ({"pixels": 1}, "'pixels' is true or false, not 1"),
        ({"objects": []}, "'objects' is empty"),
        ({"objects": ["a"]}, "'objects': object 0 is an object with 'ref' and 'boxes'"),
        ({"objects": [{"boxes": []}]}, "'objects': object 0: 'ref' is missing"),
        (
            {"objects": [{"ref": "<|ref|>", "boxes": [[0, 0, 1, 1]]}]},
            "object 0: 'ref' is a short description",
        ),
        ({"objects": [{"ref": "a", "boxes": []}]}, "object 0: 'boxes' is empty"),
        (
            {"objects": [{"ref": "a", "boxes": [[0, 0, 1]]}]},
            "object 0: 'boxes': a box is [left, top, right, bottom]",
        ),
        ({"objects": [{"ref": "a", "boxes": [[0, 0, 1, True]]}]}, "'boxes': a box is"),
        (
            {"objects": [{"ref": "a", "boxes": [[5, 0, 1, 1]]}]},
            "the corners of [5, 0, 1, 1] are the wrong way",
        ),
        ({"objects": [{"ref": "a", "boxes": [[-5, 0, 1, 1]]}]}, "[-5, 0, 1, 1] is not inside pixels"),
        ({"pixels": False, "objects": [{"ref": "a", "boxes": [[0, 0, 1, 1000]]}]}, "is not inside 0 to 999"),
    ],
)
def test_bad_grounding(tmp_path, change, message):
    good = {"image": "a.png", "objects": [{"ref": "a", "boxes": [[0, 0, 1, 1]]}]}
    assert message in refusal(tmp_path, "grounding", {**good, **change})


def test_a_box_outside_its_picture_is_one_broken_sample(tmp_path):
    write_picture(tmp_path / "a.png", 20, 10)
    objects = [{"ref": "a", "boxes": [[0, 0, 20, 12]]}]
    source = open_entries(tmp_path, "grounding", [{"image": "a.png", "objects": objects}])
    with pytest.raises(BrokenSample, match=r"\[0, 0, 20, 12\] is not inside the picture of 20 x 10 pixels"):
        source[0]


# ---- text ----


def test_text(tmp_path):
    record = open_entries(tmp_path, "text", [{"text": " One\n\n", "more": 1}])[0]
    assert record == (None, " One\n\n", f"{tmp_path / 'd.jsonl'}:1")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"content": "a"}, "'text' is missing; it must be text"),
        ({"text": 3}, "'text' is text, not int"),
        ({"text": " "}, "'text' is empty"),
        ({"text": "see <image>"}, "'text' has <image>; use the format 'messages'"),
    ],
)
def test_bad_text(tmp_path, entry, message):
    assert message in refusal(tmp_path, "text", entry)
