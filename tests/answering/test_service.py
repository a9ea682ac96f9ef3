"""Answers of the service against those of ``model.generate`` for each prompt alone."""

import gc
import threading
import weakref

import pytest
from PIL import Image

from paddlemix_vl2.answering import (
    AnswerFailed,
    AnswerRequest,
    AnswerService,
    Limits,
    QueueFull,
    ServiceStopped,
)
from paddlemix_vl2.answering.service import MOST_FAILURES
from paddlemix_vl2.generation.decoding import PromptTooLong
from paddlemix_vl2.generation.sampling import SamplingParameters

LONG = 48
WAIT = 60  # seconds after which something hangs


@pytest.fixture
def make_service(demo_model, demo_processor):
    """Services that are closed at the end; keyword arguments are limits."""
    made = []

    def make(model=demo_model, **limits):
        made.append(AnswerService(model, demo_processor, Limits(**limits)))
        return made[-1]

    yield make
    for service in made:
        service.close()


def ask(message, max_tokens=LONG, stop=(), **sampling):
    return AnswerRequest([message], None, SamplingParameters(**sampling), max_tokens, stop)


def test_eight_together_are_answered_as_each_alone(make_service, demo_questions, alone, gated):
    """Three rows at most, chunks of prompts: rows join, move, leave and grow the cache."""
    service = make_service(gated, max_running=3, chunk_size=40)
    answers = [service.submit(ask(message)) for message in demo_questions]
    gated.open()
    for message, answer in zip(demo_questions, answers, strict=True):
        text, tokens = alone(message, LONG)
        assert "".join(answer) == text
        assert answer.completion_tokens == tokens
        assert answer.finish_reason == ("length" if tokens == LONG else "stop")
        assert answer.prompt_tokens == len(service.processor.process_one([message]).input_ids)
    assert max(gated.rows) == 3 and service.num_running == service.num_waiting == 0


def test_a_newcomer_joins_between_steps(make_service, demo_questions, gated, wait_until):
    service = make_service(gated)
    first = service.submit(ask(demo_questions[0]))
    wait_until(lambda: gated.rows == [1], "the first step")
    second = service.submit(ask(demo_questions[1]))
    gated.permits.release()
    wait_until(lambda: gated.rows == [1, 2], "a step of both")
    first.cancel()
    gated.permits.release()
    wait_until(lambda: gated.rows == [1, 2, 1], "a step of the second alone")
    assert first.finish_reason == "cancelled" and second.finish_reason is None
    gated.open()
    assert "".join(second) and second.finish_reason in ("stop", "length")


def test_every_request_samples_in_its_own_way(make_service, demo_questions, alone):
    service = make_service()
    ways = [
        {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "seed": 7},
        {},
        {"repetition_penalty": 1.3},
        {"do_sample": True, "temperature": 8.0, "top_k": 20, "seed": 8},  # sure to say something else
    ]
    answers = [service.submit(ask(demo_questions[0], **way)) for way in ways]
    texts = ["".join(answer) for answer in answers]
    assert texts == [alone(demo_questions[0], LONG, **way)[0] for way in ways]
    assert len(set(texts)) > 1


def test_pictures_are_given_up_when_the_prompt_has_been_read(make_service, gated, wait_until):
    service = make_service(gated)
    picture = Image.new("RGB", (20, 20))
    remembered = weakref.ref(picture)
    request = AnswerRequest([{"role": "user", "content": "<image>"}], [picture], max_tokens=4)
    answer = service.submit(request)
    del request, picture
    wait_until(lambda: answer.completion_tokens or gated.rows, "the prompt has been read")
    gc.collect()
    assert remembered() is None


def test_stop_strings(make_service, demo_questions, alone):
    text, tokens = alone(demo_questions[0], LONG)
    stop = text[len(text) // 2 :][:3]
    service = make_service()
    answer = service.submit(ask(demo_questions[0], stop=["never there", stop]))
    assert "".join(answer) == text[: text.index(stop)]
    assert answer.finish_reason == "stop" and answer.completion_tokens < tokens
    answer = service.submit(ask(demo_questions[0], stop=[text[-1] + "and more"]))
    assert "".join(answer) == text, "what was held back for a stop string comes at the end"
    with pytest.raises(ValueError, match="not empty"):
        ask(demo_questions[0], stop=[""])


def test_lengths(make_service, demo_questions, alone):
    service = make_service(default_max_tokens=2)
    for max_tokens in (1, None):
        answer = service.submit(ask(demo_questions[0], max_tokens))
        assert "".join(answer) == alone(demo_questions[0], max_tokens or 2)[0]
        assert (answer.finish_reason, answer.completion_tokens) == ("length", max_tokens or 2)


def test_what_waits_leaves_the_queue_when_cancelled(make_service, demo_questions, gated, wait_until):
    service = make_service(gated, max_running=1, max_waiting=1)
    running = service.submit(ask(demo_questions[0]))
    wait_until(lambda: gated.rows == [1], "the first step")
    waiting = service.submit(ask(demo_questions[1]))
    with pytest.raises(QueueFull, match="1 requests wait already"):
        service.submit(ask(demo_questions[2]))
    waiting.cancel(), waiting.cancel()
    assert waiting.finish_reason == "cancelled" and list(waiting) == [] and service.num_waiting == 0
    last = service.submit(ask(demo_questions[2], 3))
    gated.open()
    assert "".join(running) and "".join(last) and last.completion_tokens == 3


def test_leaving_the_loop_frees_the_row(make_service, demo_questions, gated, wait_until):
    service = make_service(gated)
    answer = service.submit(ask(demo_questions[0]))
    pieces = iter(answer)
    gated.permits.release(20)
    next(pieces)
    pieces.close()
    gated.open()
    wait_until(lambda: service.num_running == 0, "the row left")
    assert answer.finish_reason == "cancelled" and answer.completion_tokens < LONG


def test_a_bad_request_hits_nobody_else(make_service, demo_questions, alone):
    service = make_service(max_prompt_tokens=200)
    good = service.submit(ask(demo_questions[0]))
    bad = {"role": "user", "content": "<image>", "images": [Image.new("F", (8, 8))]}
    with pytest.raises(ValueError, match="32 bits per pixel"):
        service.submit(ask(bad))
    with pytest.raises(PromptTooLong, match="200 are possible"):
        service.submit(ask({"role": "user", "content": "red " * 400}))
    with pytest.raises(PromptTooLong, match="positions"):
        service.submit(ask(demo_questions[0], 100_000))
    with pytest.raises(ValueError, match="at least 1"):
        service.submit(ask(demo_questions[0], 0))
    assert "".join(good) == alone(demo_questions[0], LONG)[0]
    assert service.num_waiting == 0 and service.is_healthy


def test_a_receiver_that_fails_hits_nobody_else(make_service, demo_questions, alone, wait_until):
    service = make_service()

    def broken(piece):
        raise RuntimeError("gone")

    lost = service.submit(ask(demo_questions[0]), broken)
    good = service.submit(ask(demo_questions[1]))
    assert "".join(good) == alone(demo_questions[1], LONG)[0]
    wait_until(lambda: lost.finish_reason, "the end of the lost one")
    assert lost.finish_reason == "cancelled"


def test_a_failing_step_ends_its_rows_and_the_service_goes_on(make_service, demo_questions, alone, gated):
    service = make_service(gated)
    gated.failing = "step"
    gated.open()
    for count in range(1, MOST_FAILURES + 1):
        answer = service.submit(ask(demo_questions[0]))
        with pytest.raises(AnswerFailed, match="the device is gone"):
            list(answer)
        assert answer.finish_reason == "error"
        assert service.is_healthy is (count < MOST_FAILURES)
    gated.failing = ""
    assert "".join(service.submit(ask(demo_questions[0]))) == alone(demo_questions[0], LONG)[0]
    assert service.is_healthy, "it has recovered"


def test_a_prompt_that_cannot_be_read_leaves_the_others(
    make_service, demo_questions, alone, gated, wait_until
):
    service = make_service(gated)
    good = service.submit(ask(demo_questions[0]))
    wait_until(lambda: gated.rows == [1], "the first step")
    gated.failing = "prefill"
    bad = service.submit(ask(demo_questions[1]))
    gated.open()
    with pytest.raises(AnswerFailed, match="no room"):
        list(bad)
    assert "".join(good) == alone(demo_questions[0], LONG)[0]


def test_closing_finishes_what_is_there(make_service, demo_questions, alone):
    service = make_service(max_running=1)
    answers = [service.submit(ask(message)) for message in demo_questions[:2]]
    assert service.close(timeout=WAIT)
    assert ["".join(answer) for answer in answers] == [alone(m, LONG)[0] for m in demo_questions[:2]]
    with pytest.raises(ServiceStopped):
        service.submit(ask(demo_questions[0]))
    assert not service.is_healthy


def test_closing_cancels_what_takes_too_long(make_service, demo_questions, gated, wait_until):
    service = make_service(gated, max_running=1)
    answers = [service.submit(ask(message)) for message in demo_questions[:2]]
    wait_until(lambda: gated.rows, "the first step")
    threading.Timer(0.3, gated.open).start()
    assert not service.close(timeout=0.1)
    assert [answer.finish_reason for answer in answers] == ["cancelled", "cancelled"]


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_limits_are_checked(value):
    with pytest.raises(ValueError, match=r"max_running is .*; it must be a whole number from 1 up"):
        Limits(max_running=value)


def test_the_model_is_used_by_one_thread_only(make_service, demo_questions, gated):
    service = make_service(gated)
    gated.open()
    threads = [threading.Thread(target=lambda m=m: list(service.submit(ask(m, 4)))) for m in demo_questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert gated.threads == {"answering"}
