"""The conversation template, worked out by hand."""

from paddlemix_vl2.processing.conversation import Conversation
from paddlemix_vl2.processing.templates import TEMPLATES, deepseek_pieces
from tests.processing.conftest import answer, system, user


def pieces(conversation, images=None, inference_mode=True, system_prompt=""):
    return deepseek_pieces(Conversation.parse(conversation, images, inference_mode, system_prompt))


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
    assert TEMPLATES["deepseek"] is deepseek_pieces


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
    assert [piece.images for piece in got] == [("a", "b"), (), ("c",), ()]


def test_given_pictures_take_the_place_of_named_ones():
    got = pieces([user("<image>", "a"), answer("Fine"), user("<image><image>", "b"), answer()], [1, 2, 3])
    assert [piece.images for piece in got] == [(1,), (), (2, 3), ()]
