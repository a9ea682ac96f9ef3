"""The template and every rule that a conversation can break."""

import pytest

from paddlemix_vl2.processing.conversation import build_pieces


def user(content, *pictures, role="<|User|>"):
    message = {"role": role, "content": content}
    return {**message, "images": list(pictures)} if pictures else message


def answer(content="", role="<|Assistant|>"):
    return {"role": role, "content": content}


def system(content):
    return {"role": "system", "content": content}


def pieces(conversation, pictures=None, inference_mode=True, system_prompt=""):
    return build_pieces(conversation, pictures, "<image>", inference_mode, system_prompt)


def test_template_by_hand():
    got = pieces(
        [system(" Be kind. "), user("\nHi "), answer(" Hello! "), user("Why?", role="user"), answer()]
    )
    assert [piece.text for piece in got] == [
        "Be kind.",
        "<|User|>: Hi\n\n<|Assistant|>:",
        "Hello!",
        "<|User|>: Why?\n\n<|Assistant|>:",
        "",
    ]
    assert [piece.closed for piece in got] == [False, False, True, False, False]
    assert [piece.is_answer for piece in got] == [False, False, True, False, True]


def test_training_closes_the_last_answer():
    assert [piece.closed for piece in pieces([user("Hi"), answer("Hello")], inference_mode=False)] == [
        False,
        True,
    ]


def test_begun_answer_is_left_open():
    last = pieces([user("Hi"), answer("The")])[-1]
    assert (last.text, last.closed) == ("The", False)


def test_user_message_last_is_the_same_prompt_as_an_empty_answer():
    with_answer = "".join(piece.text for piece in pieces([user("Hi"), answer()]))
    assert "".join(piece.text for piece in pieces([user("Hi")])) == with_answer


def test_system_prompt_is_a_first_system_message():
    assert pieces([user("Hi")], system_prompt="Be kind.") == pieces([system("Be kind."), user("Hi")])


def test_pictures_named_in_messages():
    got = pieces([user("<image> and <image>", "a", "b"), answer("Fine"), user("<image>?", "c"), answer()])
    assert [piece.pictures for piece in got] == [["a", "b"], [], ["c"], []]


def test_given_pictures_take_the_place_of_named_ones():
    got = pieces([user("<image>", "a"), answer("Fine"), user("<image><image>", "b"), answer()], [1, 2, 3])
    assert [piece.pictures for piece in got] == [[1], [], [2, 3], []]


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
        pieces(conversation)


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([user("Hi")], r"message 0 \(<\|User\|>\): a training conversation ends with the assistant's answer"),
        ([user("Hi"), answer(" ")], r"message 1 \(<\|Assistant\|>\): is empty$"),
    ],
)
def test_broken_rules_of_training(conversation, message):
    with pytest.raises(ValueError, match=message):
        pieces(conversation, inference_mode=False)


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
        pieces(conversation)


def test_count_mismatch_with_given_pictures():
    conversation = [user("<image>"), answer("a"), user("<image><image>"), answer()]
    expected = (
        r"has 3 <image> \(1 in message 0 \(<\|User\|>\), 2 in message 2 .*\) but images= holds 2 picture"
    )
    with pytest.raises(ValueError, match=expected):
        pieces(conversation, ["a", "b"])
    with pytest.raises(ValueError, match=r"has 0 <image> \(in no message\) but images= holds 1 picture"):
        pieces([user("Hi")], ["a"])


def test_system_prompt_rules():
    with pytest.raises(ValueError, match=r"system_prompt is given and message 0 .*is a system message too"):
        pieces([system("a"), user("Hi")], system_prompt="b")
    with pytest.raises(ValueError, match=r"system_prompt \(system\): has <image>"):
        pieces([user("Hi")], system_prompt="<image>")
