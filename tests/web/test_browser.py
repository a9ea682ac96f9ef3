"""The page as a user sees it, in a headless Chromium: ask, see boxes, stop, clear, mistakes."""

import re
from contextlib import contextmanager

import pytest
from playwright.sync_api import expect

from paddlemix_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.web.chat import Chat
from paddlemix_vl2.web.page import Page

pytestmark = pytest.mark.slow
MAX_WAIT = 60_000  # milliseconds; the machine may have other work


@pytest.fixture(scope="module")
def open_page(browser_tool, picture):
    """``open_page(chat)`` serves it and is the page in a browser; skips where there is none."""
    if browser_tool.find_browser() is None:
        pytest.skip(f"no browser: none of {', '.join(browser_tool.NAMES)} on the PATH")

    @contextmanager
    def opened(chat, **options):
        page = Page(chat, "demo", picture("words").parent, is_demo=True)
        address = page.launch("127.0.0.1", None)
        try:
            with browser_tool.open_page(address, **options) as window:
                window.set_default_timeout(MAX_WAIT)
                expect.set_options(timeout=MAX_WAIT)
                yield window
        finally:
            page.close()

    return opened


def ask(window, question, *files):
    if files:
        window.locator("#question input[type=file]").set_input_files([str(file) for file in files])
        expect(window.locator("#question .thumbnail-item")).to_have_count(len(files))
    window.locator("#question textarea").fill(question)
    window.locator("#question .submit-button").click()


def notice(window):
    return window.locator("#notice")


def test_the_demo_model_answers_with_boxes(open_page, processor, checkpoint, picture, tmp_path):
    """Upload, ask, stream, boxes, a second question, clear; nothing is asked of another server."""
    model = DeepseekVLV2ForCausalLM.from_pretrained(checkpoint)
    asked_of = set()
    with open_page(Chat(model, processor, tmp_path)) as window:
        window.on("request", lambda request: asked_of.add(request.url.split("/")[2]))
        window.reload()
        ask(window, "Locate <|ref|>the red circle<|/ref|> in the given image.", picture("shapes"))
        expect(notice(window)).to_have_text(re.compile(r"takes [\d,]+ of 2,048 tokens"))
        answer = window.locator("#chat .bot")
        expect(answer).to_contain_text("[[")
        boxed = answer.locator("img")
        expect(boxed).to_have_count(1)
        assert boxed.evaluate("image => image.decode().then(() => image.naturalWidth)") == 504
        ask(window, "Read the text.", picture("words"))
        expect(window.locator("#chat .bot-row")).to_have_count(2)
        expect(window.locator("#stop")).to_be_disabled()
        expect(window.locator("#chat button[title=Share]").first).to_be_hidden()
        window.locator("#clear").click()
        expect(window.locator("#chat .bot-row")).to_have_count(0)
        expect(window.get_by_text("Read the text.")).to_have_count(1)  # the examples are back
        host = window.url.split("/")[2]
    assert {name for name in asked_of if name} == {host}


def test_stop_ends_an_answer(open_page, make_chat):
    chat, model = make_chat(answer="red ", is_endless=True, pause=0.05)
    with open_page(chat) as window:
        ask(window, "Go on and on.")
        expect(window.locator("#chat .bot")).to_contain_text("red red")
        assert not model.has_ended.is_set()
        window.locator("#stop").click()
        expect(notice(window)).to_have_text(re.compile(r"^\s*Stopped"))
        assert model.has_ended.wait(10) and model.num_tokens < 512
        text = window.locator("#chat .bot").inner_text()
        model.is_endless, model.answer = False, "blue"
        window.locator("#retry").click()
        expect(window.locator("#chat .bot")).to_have_text("blue")
        assert "red red" in text


def test_clear_ends_an_answer_too(open_page, make_chat):
    chat, model = make_chat(answer="red ", is_endless=True, pause=0.05)
    with open_page(chat) as window:
        ask(window, "Go on and on.")
        expect(window.locator("#chat .bot")).to_contain_text("red red")
        window.locator("#clear").click()
        expect(window.locator("#chat .bot-row")).to_have_count(0)
        assert model.has_ended.wait(10) and model.num_tokens < 512
        window.wait_for_timeout(500)  # a moment that came late would bring the answer back
        expect(window.locator("#chat .bot-row")).to_have_count(0)
        expect(window.locator("#stop")).to_be_disabled()


def test_mistakes_are_sentences_and_examples_are_asked(open_page, make_chat, tmp_path):
    chat, model = make_chat(answer="red", limit=60)
    (tmp_path / "text.png").write_text("not a picture")
    with open_page(chat, language="zh-CN") as window:
        expect(window.locator("#clear")).to_have_text("新对话")
        window.get_by_label("English").check()
        expect(window.locator("#clear")).to_have_text("New conversation")
        ask(window, "  ")
        expect(notice(window)).to_have_text("Type a question.")
        ask(window, "What is this?", tmp_path / "text.png")
        detail = "text.png: not a picture that Pillow can read"
        expect(notice(window)).to_have_text(f"A picture cannot be read: {detail}.")
        expect(window.locator("#question textarea")).to_have_value("What is this?")
        window.get_by_text("Read the text.").click()
        expect(notice(window)).to_have_text(re.compile(r"^\s*Question and pictures take \d+ tokens.* has 60"))
        expect(window.locator("body")).not_to_contain_text("Traceback")
        assert model.calls == []
