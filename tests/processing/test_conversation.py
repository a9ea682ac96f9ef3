"""Every rule that a conversation can break, and what can be made of one."""

import pytest

from paddlemix_vl2.processing.conversation import Conversation, place_pictures
from tests.processing.conftest import answer, system, user


def parse(conversation, images=None, inference_mode=True, system_prompt=""):
    return Conversation.parse(conversation, images, inference_mode, system_prompt)


def test_messages_by_hand():
    conversation = parse([system(" Be kind. "), user("\nHi <image>", "a"), answer(" Hello! ")])
    assert [(m.role, m.content, m.place, m.images) for m in conversation.messages] == [
        ("system", "Be kind.", "message 0 (system)", ()),
        ("user", "Hi <image>", "message 1 (<|User|>)", ("a",)),
        ("assistant", "Hello!", "message 2 (<|Assistant|>)", ()),
    ]
    assert conversation.inference_mode and conversation.has_system_message and conversation.num_turns == 1


def test_system_prompt_is_a_first_system_message():
    given, named = parse([user("Hi")], system_prompt="Be kind."), parse([system("Be kind."), user("Hi")])
    assert [(m.role, m.content) for m in given.messages] == [(m.role, m.content) for m in named.messages]
    assert parse([user("Hi")]).with_system_message("Be kind.") == given


def test_pictures_named_in_messages():
    got = parse([user("<image> and <image>", "a", "b"), answer("Fine"), user("<image>?", "c"), answer()])
    assert [message.images for message in got.messages] == [("a", "b"), (), ("c",), ()]
    assert got.images == ["a", "b", "c"]


def test_given_pictures_take_the_place_of_named_ones():
    got = parse([user("<image>", "a"), answer("Fine"), user("<image><image>", "b"), answer()], [1, 2, 3])
    assert [message.images for message in got.messages] == [(1,), (), (2, 3), ()]


def test_turns_are_dropped_from_the_end():
    messages = [system("s"), user("<image>", "a"), answer("b"), user("<image>", "c"), answer("d")]
    conversation = parse(messages, inference_mode=False)
    assert conversation.num_turns == 2
    first = conversation.drop_turns(1)
    assert first.messages == conversation.messages[:3] and first.images == ["a"]
    assert not first.inference_mode and conversation.drop_turns(0) == conversation


def test_pictures_can_be_replaced():
    conversation = parse([user("<image>", "a"), answer("Fine"), user("<image><image>", "b", "c")])
    assert conversation.map_images(str.upper).images == ["A", "B", "C"]
    assert conversation.images == ["a", "b", "c"]


def test_pictures_stand_where_a_question_has_them_or_first():
    assert place_pictures("Hi <image>", 1, "<image>") == "Hi <image>"
    assert place_pictures("Hi", 0, "<image>") == "Hi"
    assert place_pictures("Hi", 2, "<pic>") == "<pic>\n<pic>\nHi"


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([], "the conversation is empty"),
        ("Hi", "a list of messages, not str; text that is already in the template goes into prompt="),
        ({"role": "user"}, "a list of messages, not dict"),
        (["Hi"], "message 0: a message is a dictionary with role and content, not Hi"),
        ([{"role": "user"}], "message 0: a message is a dictionary with role and content"),
        ([user("Hi", role="human")], r"message 0: unknown role 'human'; use one of <\|User\|>, user"),
        ([user("Hi", role=None)], "message 0: unknown role None"),
        ([user([{"type": "text"}])], r"message 0 \(<\|User\|>\): content is text, not list"),
        ([{**user("<image>"), "images": "a.jpg"}], "images is a list, not str"),
        ([user("Hi"), {**answer(), "images": ["a.jpg"]}], r"message 1 \(<\|Assistant\|>\): has images"),
        (
            [user("Hi"), system("Be kind.")],
            r"message 1 \(system\): a system message is only possible as the first",
        ),
        ([system("Be kind.")], "a system message only"),
        ([answer("Hi")], r"message 0 \(<\|Assistant\|>\): expected the role user"),
        ([user("Hi"), user("Hello?")], r"message 1 \(<\|User\|>\): expected the role assistant"),
        ([user("Hi"), answer("a"), answer("b")], "message 2 .*expected the role user"),
        ([user("  "), answer()], r"message 0 \(<\|User\|>\): is empty"),
        ([system(" "), user("Hi")], r"message 0 \(system\): is empty"),
        (
            [user("Hi"), answer(), user("Hello?")],
            "message 1 .*: is empty; only the last assistant message may be",
        ),
        ([user("Hi"), answer("Look: <image>")], r"message 1 \(<\|Assistant\|>\): has <image> in its text"),
        ([system("<image>"), user("Hi")], r"message 0 \(system\): has <image> in its text"),
    ],
)
def test_broken_rules(conversation, message):
    with pytest.raises(ValueError, match=message):
        parse(conversation)


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([user("Hi")], r"message 0 \(<\|User\|>\): a training conversation ends with the assistant's answer"),
        ([user("Hi"), answer(" ")], r"message 1 \(<\|Assistant\|>\): is empty$"),
    ],
)
def test_broken_rules_of_training(conversation, message):
    with pytest.raises(ValueError, match=message):
        parse(conversation, inference_mode=False)


@pytest.mark.parametrize(
    ("text", "named", "message"),
    [
        ("<image> <image>", ["a"], "2 <image> in the text but 1 picture"),
        ("<image>", [], "1 <image> in the text but 0 picture"),
        ("no picture", ["a", "b"], "0 <image> in the text but 2 picture"),
    ],
)
def test_count_mismatch_names_the_message(text, named, message):
    conversation = [user("Hi"), answer("Hello"), user(text, *named), answer()]
    with pytest.raises(ValueError, match=r"message 2 \(<\|User\|>\): " + message):
        parse(conversation)


def test_count_mismatch_with_given_pictures():
    conversation = [user("<image>"), answer("a"), user("<image><image>"), answer()]
    expected = (
        r"has 3 <image> \(1 in message 0 \(<\|User\|>\), 2 in message 2 .*\) but images= holds 2 picture"
    )
    with pytest.raises(ValueError, match=expected):
        parse(conversation, ["a", "b"])
    with pytest.raises(ValueError, match=r"has 0 <image> \(in no message\) but images= holds 1 picture"):
        parse([user("Hi")], ["a"])


def test_system_prompt_rules():
    with pytest.raises(ValueError, match=r"system_prompt is given and message 0 .*is a system message too"):
        parse([system("a"), user("Hi")], system_prompt="b")
    with pytest.raises(ValueError, match=r"system_prompt \(system\): has <image>"):
        parse([user("Hi")], system_prompt="<image>")
