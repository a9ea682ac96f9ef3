"""What the page shows at each moment, and mistakes as sentences."""

import pytest

from paddlemix_vl2.web.session import Interruption, Interruptions, respond


@pytest.fixture
def ask(make_chat):
    """All progress of one question, and the stub that answered it."""

    def ask_stub(
        question="Hi", files=(), turns=(), settings=None, language="en", interruption=None, **options
    ):
        chat, model = make_chat(**options)
        interruption = interruption or Interruption()
        return list(respond(chat, turns, question, files, settings or {}, language, interruption)), model

    return ask_stub


def test_it_runs_until_the_last_moment(ask):
    progress, model = ask(answer="red and blue")
    assert [moment.is_running for moment in progress] == [True] * (len(progress) - 1) + [False]
    assert progress[0].turns == [] and progress[-1].turns[0].answer == "red and blue"
    tokens = model.calls[0]["input_ids"].shape[1] + len(model.tokenizer.encode("red and blue")) + 1
    assert progress[-1].notice == f"The conversation takes {tokens} of 2,048 tokens."


def test_the_page_speaks_chinese(ask):
    assert ask(language="zh")[0][-1].notice.startswith("对话占用 2,048 个词元中的")


def test_a_stopped_answer_is_kept_and_said(ask):
    interruption = Interruption(is_stopped=True)
    progress, model = ask(answer="red", is_endless=True, pause=0.01, interruption=interruption)
    assert progress[-1].notice.startswith("Stopped. ") and progress[-1].turns[0].answer
    assert model.has_ended.wait(10) and model.num_tokens < 100


def test_a_cleared_answer_ends_with_an_empty_conversation(make_chat):
    chat, model = make_chat(answer="red", is_endless=True, pause=0.01)
    interruptions = Interruptions()
    moments = respond(chat, [], "Hi", [], {}, "en", interruptions.begin("window"))
    while not (moment := next(moments)).turns:
        pass
    interruptions.interrupt("window", clear=True)
    (last,) = moments
    assert moment.is_running and (last.turns, last.notice, last.is_running) == ([], "", False)
    assert model.has_ended.wait(10) and model.num_tokens < 100


def test_what_an_answer_lacks_is_said(ask, picture):
    progress, _ = ask(answer="red and blue", settings={"max_new_tokens": 1})
    assert progress[-1].notice.endswith("The answer reached its longest length; the settings can raise it.")
    progress, _ = ask(answer="red", is_endless=True, limit=40)
    assert progress[-1].notice.startswith("The conversation is full: 40 tokens, and the model has 40.")
    progress, _ = ask(files=[picture("shapes")], answer="<|ref|>x<|/ref|><|det|>[[9, 9, 1, 1]]<|/det|>")
    assert "Not drawn: box [9, 9, 1, 1] of 'x': its corners are the wrong way round." in progress[-1].notice


def test_a_refused_question_leaves_the_conversation(ask):
    turns = ask()[0][-1].turns
    progress, model = ask(question=" ", turns=turns)
    assert (progress[-1].turns, progress[-1].notice) == (turns, "Type a question.")
    assert progress[-1].is_refused and not progress[-1].is_running and model.calls == []


def test_settings_out_of_range_are_a_sentence(ask):
    progress, _ = ask(settings={"temperature": -1})
    assert progress[-1].is_refused and "temperature is -1" in progress[-1].notice


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, OSError, ValueError])
def test_an_error_of_the_model_is_one_line(make_chat, error):
    chat, model = make_chat()

    def fail(**arguments):
        raise error("C++ Traceback (most recent call last):\n  frame 1\nOut of memory.\n")

    model.generate = fail
    *_, last = respond(chat, [], "Hi", [], {}, "en", Interruption())
    assert last.notice == "The question could not be answered: Out of memory." and last.is_refused


def test_a_fault_of_ours_is_not_hidden(make_chat):
    chat, model = make_chat()
    model.generate = None
    with pytest.raises(TypeError):
        list(respond(chat, [], "Hi", [], {}, "en", Interruption()))


def test_an_interruption_reaches_its_own_window_only():
    interruptions = Interruptions()
    one, other = interruptions.begin("one"), interruptions.begin("other")
    interruptions.interrupt("one")
    assert one == Interruption(is_stopped=True) and other == Interruption()
    interruptions.end("one")
    interruptions.interrupt("one")  # nothing is being answered there any more
    assert interruptions.begin("one") == Interruption()
