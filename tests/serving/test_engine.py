"""Answers of the engine against those of ``model.generate`` for each prompt alone."""

import gc
import threading
import weakref

import pytest
from PIL import Image

from paddlemix_vl2.generation.decoding import PromptTooLong
from paddlemix_vl2.generation.sampling import SamplingParameters
from paddlemix_vl2.serving import (
    EngineLimits,
    EngineStopped,
    GenerationRequest,
    QueueFull,
    RequestFailed,
    ServingEngine,
    sequence,
)
from paddlemix_vl2.serving.engine import MAX_FAILURES

pytestmark = pytest.mark.slow

LONG = 48
WAIT = 60  # seconds after which something hangs


@pytest.fixture
def make_engine(demo_model, demo_processor):
    """Engines that are closed at the end; keyword arguments are limits."""
    made = []

    def make(model=demo_model, **limits):
        made.append(ServingEngine(model, demo_processor, EngineLimits(**limits)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def ask(message, max_tokens=LONG, stop=(), **sampling):
    return GenerationRequest([message], None, SamplingParameters(**sampling), max_tokens, stop)


def test_eight_together_are_answered_as_each_alone(make_engine, demo_questions, alone, gated):
    """Three rows at most, chunks of prompts: rows join, move, leave and grow the cache."""
    engine = make_engine(gated, max_running=3, chunk_size=40)
    answers = [engine.submit(ask(message)) for message in demo_questions]
    gated.open()
    for message, answer in zip(demo_questions, answers, strict=True):
        text, tokens = alone(message, LONG)
        assert "".join(answer) == text
        assert answer.completion_tokens == tokens
        assert answer.finish_reason == ("length" if tokens == LONG else "stop")
        assert answer.prompt_tokens == len(engine.processor.process_one([message]).input_ids)
    assert max(gated.rows) == 3 and engine.num_running == engine.num_waiting == 0


def test_a_pending_request_joins_between_steps(make_engine, demo_questions, gated, wait_until):
    engine = make_engine(gated)
    first = engine.submit(ask(demo_questions[0]))
    wait_until(lambda: gated.rows == [1], "the first step")
    second = engine.submit(ask(demo_questions[1]))
    gated.permits.release()
    wait_until(lambda: gated.rows == [1, 2], "a step of both")
    first.cancel()
    gated.permits.release()
    wait_until(lambda: gated.rows == [1, 2, 1], "a step of the second alone")
    assert first.finish_reason == "cancelled" and second.finish_reason is None
    gated.open()
    assert "".join(second) and second.finish_reason in ("stop", "length")


def test_every_request_samples_in_its_own_way(make_engine, demo_questions, alone):
    engine = make_engine()
    ways = [
        {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "seed": 7},
        {},
        {"repetition_penalty": 1.3},
        {"do_sample": True, "temperature": 8.0, "top_k": 20, "seed": 8},  # sure to say something else
    ]
    answers = [engine.submit(ask(demo_questions[0], **way)) for way in ways]
    texts = ["".join(answer) for answer in answers]
    assert texts == [alone(demo_questions[0], LONG, **way)[0] for way in ways]
    assert len(set(texts)) > 1


def test_pictures_are_given_up_when_the_prompt_has_been_read(make_engine, gated, wait_until):
    engine = make_engine(gated)
    picture = Image.new("RGB", (20, 20))
    remembered = weakref.ref(picture)
    request = GenerationRequest([{"role": "user", "content": "<image>"}], [picture], max_tokens=4)
    answer = engine.submit(request)
    del request, picture
    wait_until(lambda: answer.completion_tokens or gated.rows, "the prompt has been read")
    gc.collect()
    assert remembered() is None


def test_stop_strings(make_engine, demo_questions, alone):
    text, tokens = alone(demo_questions[0], LONG)
    stop = text[len(text) // 2 :][:3]
    engine = make_engine()
    answer = engine.submit(ask(demo_questions[0], stop=["never there", stop]))
    assert "".join(answer) == text[: text.index(stop)]
    assert answer.finish_reason == "stop" and answer.completion_tokens < tokens
    answer = engine.submit(ask(demo_questions[0], stop=[text[-1] + "and more"]))
    assert "".join(answer) == text, "what was held back for a stop string comes at the end"
    with pytest.raises(ValueError, match="not empty"):
        ask(demo_questions[0], stop=[""])


def test_lengths(make_engine, demo_questions, alone):
    engine = make_engine(default_max_tokens=2)
    for max_tokens in (1, None):
        answer = engine.submit(ask(demo_questions[0], max_tokens))
        assert "".join(answer) == alone(demo_questions[0], max_tokens or 2)[0]
        assert (answer.finish_reason, answer.completion_tokens) == ("length", max_tokens or 2)


def test_what_waits_leaves_the_queue_when_cancelled(make_engine, demo_questions, gated, wait_until):
    engine = make_engine(gated, max_running=1, max_waiting=1)
    running = engine.submit(ask(demo_questions[0]))
    wait_until(lambda: gated.rows == [1], "the first step")
    waiting = engine.submit(ask(demo_questions[1]))
    with pytest.raises(QueueFull, match="1 requests wait already"):
        engine.submit(ask(demo_questions[2]))
    waiting.cancel(), waiting.cancel()
    assert waiting.finish_reason == "cancelled" and list(waiting) == [] and engine.num_waiting == 0
    last = engine.submit(ask(demo_questions[2], 3))
    gated.open()
    assert "".join(running) and "".join(last) and last.completion_tokens == 3


def test_leaving_the_loop_frees_the_row(make_engine, demo_questions, gated, wait_until):
    engine = make_engine(gated)
    answer = engine.submit(ask(demo_questions[0]))
    pieces = iter(answer)
    gated.permits.release(20)
    next(pieces)
    pieces.close()
    gated.open()
    wait_until(lambda: engine.num_running == 0, "the row left")
    assert answer.finish_reason == "cancelled" and answer.completion_tokens < LONG


def test_a_bad_request_hits_nobody_else(make_engine, demo_questions, alone):
    engine = make_engine(max_prompt_tokens=200)
    good = engine.submit(ask(demo_questions[0]))
    bad = {"role": "user", "content": "<image>", "images": [Image.new("F", (8, 8))]}
    with pytest.raises(ValueError, match="32 bits per pixel"):
        engine.submit(ask(bad))
    with pytest.raises(PromptTooLong, match="200 are possible"):
        engine.submit(ask({"role": "user", "content": "red " * 400}))
    with pytest.raises(PromptTooLong, match="positions"):
        engine.submit(ask(demo_questions[0], 100_000))
    with pytest.raises(ValueError, match="at least 1"):
        engine.submit(ask(demo_questions[0], 0))
    assert "".join(good) == alone(demo_questions[0], LONG)[0]
    assert engine.num_waiting == 0 and engine.is_healthy


def test_a_receiver_that_fails_hits_nobody_else(make_engine, demo_questions, alone, wait_until):
    engine = make_engine()

    def broken(piece):
        raise RuntimeError("gone")

    lost = engine.submit(ask(demo_questions[0]), broken)
    good = engine.submit(ask(demo_questions[1]))
    assert "".join(good) == alone(demo_questions[1], LONG)[0]
    wait_until(lambda: lost.finish_reason, "the end of the lost one")
    assert lost.finish_reason == "cancelled"


def test_a_failing_step_ends_its_rows_and_the_service_goes_on(make_engine, demo_questions, alone, gated):
    engine = make_engine(gated)
    gated.failing = "step"
    gated.open()
    for count in range(1, MAX_FAILURES + 1):
        answer = engine.submit(ask(demo_questions[0]))
        with pytest.raises(RequestFailed, match="the device is gone"):
            list(answer)
        assert answer.finish_reason == "error"
        assert engine.is_healthy is (count < MAX_FAILURES)
    gated.failing = ""
    assert "".join(engine.submit(ask(demo_questions[0]))) == alone(demo_questions[0], LONG)[0]
    assert engine.is_healthy, "it has recovered"


def test_a_prompt_that_cannot_be_read_leaves_the_others(
    make_engine, demo_questions, alone, gated, wait_until
):
    engine = make_engine(gated)
    good = engine.submit(ask(demo_questions[0]))
    wait_until(lambda: gated.rows == [1], "the first step")
    gated.failing = "prefill"
    bad = engine.submit(ask(demo_questions[1]))
    gated.open()
    with pytest.raises(RequestFailed, match="no room"):
        list(bad)
    assert "".join(good) == alone(demo_questions[0], LONG)[0]


def test_a_token_that_makes_no_text_leaves_the_others(make_engine, demo_questions, alone, monkeypatch):
    """The tokenizer's library fails on the second token of the first row."""
    decoders, put = [], sequence.RowDecoder.put

    def fail(decoder, token):
        if decoder not in decoders:
            decoders.append(decoder)
        elif decoder is decoders[0]:
            raise Exception("no such token")
        return put(decoder, token)

    monkeypatch.setattr(sequence.RowDecoder, "put", fail)
    engine = make_engine()
    bad, good = (engine.submit(ask(message)) for message in demo_questions[:2])
    with pytest.raises(RequestFailed, match="no such token"):
        list(bad)
    assert "".join(good) == alone(demo_questions[1], LONG)[0]
    assert engine.is_healthy


def test_closing_finishes_what_is_there(make_engine, demo_questions, alone):
    engine = make_engine(max_running=1)
    answers = [engine.submit(ask(message)) for message in demo_questions[:2]]
    assert engine.close(timeout=WAIT)
    assert ["".join(answer) for answer in answers] == [alone(m, LONG)[0] for m in demo_questions[:2]]
    with pytest.raises(EngineStopped):
        engine.submit(ask(demo_questions[0]))
    assert not engine.is_healthy


def test_closing_cancels_what_has_not_ended_in_time(make_engine, demo_questions, gated, wait_until):
    engine = make_engine(gated, max_running=1)
    answers = [engine.submit(ask(message)) for message in demo_questions[:2]]
    wait_until(lambda: gated.rows, "the first step")
    threading.Timer(0.3, gated.open).start()
    assert not engine.close(timeout=0.1)
    assert [answer.finish_reason for answer in answers] == ["cancelled", "cancelled"]


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_limits_are_checked(value):
    with pytest.raises(ValueError, match=r"max_running is .*; it must be a whole number from 1 up"):
        EngineLimits(max_running=value)


def test_the_model_is_used_by_one_thread_only(make_engine, demo_questions, gated):
    engine = make_engine(gated)
    gated.open()
    threads = [threading.Thread(target=lambda m=m: list(engine.submit(ask(m, 4)))) for m in demo_questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert gated.threads == {"answering"}
