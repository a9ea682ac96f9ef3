"""The page without a browser: its widgets, its events, nothing from elsewhere."""

import json
import re
from types import SimpleNamespace

import httpx
import pytest

from paddlemix_vl2.web.page import Page
from paddlemix_vl2.web.wording import TEXTS


@pytest.fixture
def page(make_chat, picture):
    chat, model = make_chat(answer="red")
    page = Page(chat, "demo", picture("words").parent, is_demo=True)
    page.model = model
    return page


REQUEST = SimpleNamespace(session_hash="window", headers={"accept-language": "zh-CN"})


def test_answers_come_one_at_a_time_and_buttons_at_once(page):
    functions = page.blocks.fns.values()
    answers = [function for function in functions if function.concurrency_id == "answer"]
    names = ["_on_question", "_on_example", "_on_retry"]
    assert [function.fn.__name__ for function in answers] == names
    assert {function.concurrency_limit for function in answers} == {1}
    at_once = {function.fn.__name__ for function in functions if function.fn and not function.queue}
    assert {"_on_stop", "_on_clear", "_on_load"} <= at_once


def test_telemetry_is_off(page):
    assert page.blocks.analytics_enabled is False


def test_a_question_fills_the_widgets(page, picture):
    message = {"text": "What?", "files": [str(picture("red_circle"))]}
    updates = list(page._on_question(REQUEST, message, [], "English", 0, 1, 1, 20))
    chat, turns, _, notice, stop, retry = updates[-1]
    assert chat[1]["content"] == ["red"] and turns[0].answer == "red" and "tokens" in notice
    assert (stop["interactive"], retry["interactive"]) == (False, True)
    assert updates[0][2]["value"] is None and updates[0][4]["interactive"] is True
    assert page.model.calls[0]["max_new_tokens"] == 20


def test_a_refused_question_goes_back_to_where_it_was_typed(page, picture):
    message = {"text": " ", "files": [str(picture("red_circle"))]}
    *_, (chat, turns, question, notice, _, _) = page._on_question(
        REQUEST, message, [], "English", 0, 1, 1, 20
    )
    assert (chat, turns, question["value"]["files"]) == ([], [], message["files"])
    assert notice == "Type a question."


def test_retry_asks_the_last_question_again(page):
    *_, (_, turns, *_) = page._on_question(REQUEST, {"text": "A?", "files": []}, [], "English", 0, 1, 1, 20)
    *_, (_, turns, *_) = page._on_question(
        REQUEST, {"text": "B?", "files": []}, turns, "English", 0, 1, 1, 20
    )
    page.model.answer = "blue"
    *_, (_, turns, *_) = page._on_retry(REQUEST, turns, "English", 0.5, 1, 1, 20)
    assert [(turn.question, turn.answer) for turn in turns] == [("A?", "red"), ("B?", "blue")]
    assert page.model.calls[-1]["do_sample"] is True
    (nothing,) = page._on_retry(REQUEST, [], "中文", 0, 1, 1, 20)
    assert nothing[3] == "还没有问题。"


def test_an_example_is_asked_with_its_pictures(page):
    event = SimpleNamespace(index=3)
    *_, (_, turns, *_) = page._on_example(REQUEST, event, [], "中文", 0, 1, 1, 20)
    assert [file.name for file in turns[0].pictures] == ["red_circle.png", "blue_square.png"]
    assert turns[0].question == "两张图的形状相同吗？"


def test_clear_empties_the_conversation(page):
    chat, turns, _, notice, stop, retry = page._on_clear(REQUEST)
    assert (chat, turns, notice) == ([], [], "")
    assert (stop["interactive"], retry["interactive"]) == (False, True)


def test_the_page_begins_in_the_browsers_language(page):
    name, chat = page._on_load(REQUEST)
    assert name == "中文" and chat["label"] == "对话" and chat["examples"][0]["text"] == "图中写着什么？"


def test_the_served_page_names_no_other_server(page):
    """What the browser would fetch by itself: scripts, styles and pictures. Links in gradio's own texts do
    not count, a browser follows none of them."""
    address = page.launch("127.0.0.1", None)
    try:
        html = httpx.get(address).text
        theme = httpx.get(f"{address}theme.css").text
        config = httpx.get(f"{address}config").json()
    finally:
        page.close()
    fetched = re.findall(r"""<(?:script|img|iframe|link)[^>]*(?:src|href)=["'](https?:[^"']+)""", html)
    fetched += re.findall(r"""(?:url\(|@import)\s*["']?(https?:[^"')]+)""", theme)
    assert [url for url in fetched if not url.startswith(address)] == []
    assert config["analytics_enabled"] is False
    labels = json.dumps(config["components"], ensure_ascii=False)
    assert all(TEXTS["en"][key] in labels for key in ("stop", "retry", "clear", "temperature", "placeholder"))
