"""Questions with pictures as conversations, and lines of a request file."""

import base64
from pathlib import Path

import pytest
from PIL import Image

from paddlemix_vl2.evaluation.requests import RequestFile, make_conversation, read_request
from paddlemix_vl2.generation.batched import ConversationAnswer

RED = Path(__file__).resolve().parents[2] / "examples" / "images" / "drawn" / "red_circle.png"
URL = "data:image/png;base64," + base64.b64encode(RED.read_bytes()).decode()


def text_of(processor, conversation):
    """What was tokenised, without the token that begins every prompt."""
    return processor.tokenizer.decode(processor.process_one(conversation).input_ids[1:])


@pytest.mark.parametrize(
    ("text", "pictures", "content"),
    [
        ("Why?", [], "Why?"),
        ("Why?", ["a"], "<image>\nWhy?"),
        ("Why?", ["a", "b"], "<image>\n<image>\nWhy?"),
        ("From <image> to <image>?", ["a", "b"], "From <image> to <image>?"),
        # MMMU numbers its pictures; they come first, the numbers are text.
        ("Is <image 1> red?", ["a"], "<image>\nIs <image 1> red?"),
    ],
)
def test_pictures_stand_where_the_text_has_them_or_first(text, pictures, content):
    (message,) = make_conversation(text, pictures).messages
    assert (message.role, message.content, message.images) == ("user", content, tuple(pictures))


def test_as_many_marks_as_pictures():
    with pytest.raises(ValueError, match=r"the question has 2 <image> but there are 1 picture\(s\)"):
        make_conversation("<image> and <image>", ["a"])


def test_a_system_prompt_comes_first(processor):
    conversation = make_conversation("Why?", [], "Be brief.")
    assert [message.role for message in conversation.messages] == ["system", "user"]
    assert text_of(processor, conversation).startswith("Be brief.")


USER = {"role": "user", "content": "<image>\nWhy?", "images": ["a.png"]}


@pytest.mark.parametrize(
    ("entry", "roles", "images"),
    [
        ({"question": "Why?"}, ["user"], []),
        ({"question": "Why?", "image": None}, ["user"], []),
        ({"question": "Why?", "image": "a.png"}, ["user"], ["/d/a.png"]),
        ({"question": "Why?", "image": ["a.png", "b.png"]}, ["user"], ["/d/a.png", "/d/b.png"]),
        ({"question": "Why?", "images": ["a.png"]}, ["user"], ["/d/a.png"]),
        ({"question": "Why?", "image": "/e/a.png"}, ["user"], ["/e/a.png"]),
        ({"messages": [USER]}, ["user"], ["/d/a.png"]),
        ({"messages": [{**USER, "images": []}], "images": ["b.png"]}, ["user"], ["/d/b.png"]),
        (
            {"messages": [{"role": "system", "content": "s"}, USER, {"role": "assistant", "content": ""}]},
            ["system", "user", "assistant"],
            ["/d/a.png"],
        ),
    ],
)
def test_both_forms_of_a_line(entry, roles, images):
    conversation = read_request(entry, "/d")
    assert [message.role for message in conversation.messages] == roles
    assert conversation.images == images and conversation.inference_mode


def test_a_turn_may_follow_others(processor):
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    conversation = read_request({"messages": [*earlier, {"role": "user", "content": "Why?"}]}, "/d")
    assert text_of(processor, conversation) == (
        "<|User|>: Hi\n\n<|Assistant|>:Hello<｜end▁of▁sentence｜><|User|>: Why?\n\n<|Assistant|>:"
    )


def test_the_system_prompt_is_for_conversations_without_one():
    own = {"messages": [{"role": "system", "content": "Own."}, {"role": "user", "content": "Why?"}]}
    assert read_request(own, "/d", "Be brief.").messages[0].content == "Own."
    other = read_request({"messages": [{"role": "user", "content": "Why?"}]}, "/d", "Be brief.")
    assert [(m.role, m.content) for m in other.messages] == [("system", "Be brief."), ("user", "Why?")]
    assert read_request({"question": "Why?"}, "/d", "Be brief.").messages[0].content == "Be brief."


@pytest.mark.parametrize(
    "entry", [{"question": "Why?", "image": URL}, {"messages": [{**USER, "images": [URL]}]}]
)
def test_pictures_inside_the_line(entry):
    (picture,) = read_request(entry, "/d").images
    assert isinstance(picture, Image.Image) and picture.size == Image.open(RED).size


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "has no question"),
        ({"question": ""}, "has no question"),
        ({"question": 5}, "has no question"),
        ({"image": "a.png"}, "has no question"),
        ({"question": "?", "image": "a", "images": ["b"]}, "has 'image' and 'images'; keep one of the two"),
        ({"question": "?", "image": 7}, "a picture is a path or a data URL, not 7"),
        ({"question": "?", "image": "data:image/png;base64,QUJD"}, "not a picture"),
        ({"question": "?", "image": "data:image/png;base64,é"}, "is not base64"),
        ({"messages": []}, "'messages': the conversation is empty"),
        ({"messages": "Why?"}, "'messages' is a list, not str"),
        ({"messages": [{**USER, "images": []}]}, "1 <image> in the text but 0 picture(s)"),
    ],
)
def test_a_broken_line_says_what_is_wrong(entry, message):
    with pytest.raises(ValueError) as error:
        read_request(entry, "/d")
    assert message in str(error.value)


def test_results_name_their_line(write_jsonl):
    file = write_jsonl({"question": "a", "id": 5}, "", {"question": "b"}, "{")
    requests = RequestFile(file)
    assert len(requests) == 3 and len(RequestFile(file, limit=2)) == 2
    assert requests.result(0, ConversationAnswer(0, "x")) == {"line": 1, "id": 5, "answer": "x"}
    assert requests.result(1, ConversationAnswer(1, "")) == {"line": 3, "answer": ""}
    broken = requests.result(2, ConversationAnswer(2, None, "not valid"))
    assert broken == {"line": 4, "error": f"{file}:4: not valid"}
