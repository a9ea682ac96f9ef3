"""Turns as messages of the chat widget."""

from pathlib import Path

from paddlemix_vl2.web.chat import Turn
from paddlemix_vl2.web.display import show_answer, to_messages


def test_a_turn_is_a_question_with_pictures_and_an_answer_with_boxes():
    turn = Turn("Where is <image>?", (Path("a.png"), Path("b.png")), "here", boxed=Path("c.png"))
    user, assistant = to_messages([turn])
    assert user == {
        "role": "user",
        "content": [{"path": "a.png"}, {"path": "b.png"}, "Where is &lt;image&gt;?"],
    }
    assert assistant["content"] == ["here", {"path": "c.png", "alt_text": "boxes"}]


def test_an_answer_that_has_not_begun_shows_that_it_will():
    assert [message["content"] for message in to_messages([Turn("Hi")])] == [["Hi"], ["…"]]


def test_answers_are_no_html():
    assert show_answer("<script>x</script> 1 < 2") == "&lt;script>x&lt;/script> 1 &lt; 2"


def test_several_boxes_are_readable():
    text = (
        "<|ref|>a cat<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>, <|ref|>a dog<|/ref|><|det|>[[5, 6, 7, 8]]<|/det|>"
    )
    assert show_answer(text) == "**a cat** `[[1, 2, 3, 4]]`, **a dog** `[[5, 6, 7, 8]]`"
