"""Answers of the service against those of ``model.generate`` for each prompt alone."""

import threading

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


@pytest.fixture(scope="module")
def alone(demo_model, demo_processor):
    """What ``generate`` says to one message alone: the text, and how many tokens it took."""

    def answer(message, max_tokens=LONG, **options):
        batch = demo_processor(conversations=[message])
        ids = demo_model.generate(**batch, max_new_tokens=max_tokens, **options)[0][0].tolist()
        ended = ids[-1] == demo_processor.tokenizer.eos_token_id
        return demo_processor.tokenizer.decode(ids[:-1] if ended else ids), len(ids)

    return answer


def ask(message, max_tokens=LONG, stop=(), **sampling):
    return AnswerRequest([message], None, SamplingParameters(**sampling), max_tokens, stop)


def wait_until(condition, what):
    """Poll for it, in steps of 5 ms."""
    pause = threading.Event()
    for _ in range(WAIT * 200):
        if condition():
            return
        pause.wait(0.005)
    pytest.fail(f"waited {WAIT} s in vain: {what}")


class Gated:
    """A model whose steps each need a permit, so that a test decides what happens between them."""

    def __init__(self, model):
        self._model, self.config = model, model.config
        self.permits, self.rows = threading.Semaphore(0), []

    def prefill(self, *arguments):
        return self._model.prefill(*arguments)

    def decode_step(self, tokens, cache):
        self.rows.append(tokens.shape[0])
        assert self.permits.acquire(timeout=WAIT)
        return self._model.decode_step(tokens, cache)

    def open(self):
        self.permits.release(100_000)


def test_eight_together_are_answered_as_each_alone(make_service, demo_questions, alone, demo_model):
    """Three rows at most, chunks of prompts: rows join, move, leave and grow the cache."""
    model = Gated(demo_model)
    service = make_service(model, max_running=3, chunk_size=40)
    answers = [service.submit(ask(message)) for message in demo_questions]
    model.open()
    for message, answer in zip(demo_questions, answers, strict=True):
        text, tokens = alone(message)
        assert "".join(answer) == text
        assert answer.completion_tokens == tokens
        assert answer.finish_reason == ("length" if tokens == LONG else "stop")
        assert answer.prompt_tokens == len(service.processor.process_one([message]).input_ids)
    assert max(model.rows) == 3 and service.num_running == service.num_waiting == 0


def test_a_newcomer_joins_between_steps(make_service, demo_questions, demo_model):
    model = Gated(demo_model)
    service = make_service(model)
    first = service.submit(ask(demo_questions[0]))
    wait_until(lambda: model.rows == [1], "the first step")
    second = service.submit(ask(demo_questions[1]))
    model.permits.release()
    wait_until(lambda: model.rows == [1, 2], "a step of both")
    first.cancel()
    model.permits.release()
    wait_until(lambda: model.rows == [1, 2, 1], "a step of the second alone")
    assert first.finish_reason == "cancelled" and second.finish_reason is None
    model.open()
    assert "".join(second) and second.finish_reason in ("stop", "length")


def test_every_request_samples_in_its_own_way(make_service, demo_questions, alone):
    service = make_service()
    ways = [
        {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "seed": 7},
        {},
        {"repetition_penalty": 1.3},
        {"do_sample": True, "temperature": 1.5, "top_k": 20, "seed": 8},
    ]
    answers = [service.submit(ask(demo_questions[0], **way)) for way in ways]
    texts = ["".join(answer) for answer in answers]
    assert texts == [alone(demo_questions[0], **way)[0] for way in ways]
    assert len(set(texts)) > 1


def test_stop_strings(make_service, demo_questions, alone):
    text, tokens = alone(demo_questions[0])
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


def test_what_waits_leaves_the_queue_when_cancelled(make_service, demo_questions, demo_model):
    model = Gated(demo_model)
    service = make_service(model, max_running=1, max_waiting=1)
    running = service.submit(ask(demo_questions[0]))
    wait_until(lambda: model.rows == [1], "the first step")
    waiting = service.submit(ask(demo_questions[1]))
    with pytest.raises(QueueFull, match="1 requests wait already"):
        service.submit(ask(demo_questions[2]))
    waiting.cancel(), waiting.cancel()
    assert waiting.finish_reason == "cancelled" and list(waiting) == [] and service.num_waiting == 0
    last = service.submit(ask(demo_questions[2], 3))
    model.open()
    assert "".join(running) and "".join(last) and last.completion_tokens == 3


def test_leaving_the_loop_frees_the_row(make_service, demo_questions, demo_model):
    model = Gated(demo_model)
    service = make_service(model)
    answer = service.submit(ask(demo_questions[0]))
    pieces = iter(answer)
    model.permits.release(20)
    next(pieces)
    pieces.close()
    model.open()
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
    assert "".join(good) == alone(demo_questions[0])[0]
    assert service.num_waiting == 0 and service.is_healthy


def test_a_receiver_that_fails_hits_nobody_else(make_service, demo_questions, alone):
    service = make_service()

    def broken(piece):
        raise RuntimeError("gone")

    lost = service.submit(ask(demo_questions[0]), broken)
    good = service.submit(ask(demo_questions[1]))
    assert "".join(good) == alone(demo_questions[1])[0]
    wait_until(lambda: lost.finish_reason, "the end of the lost one")
    assert lost.finish_reason == "cancelled"


class Breaking(Gated):
    """Fails while ``is_broken`` says ``prefill`` or ``step``."""

    is_broken = ""

    def prefill(self, *arguments):
        if self.is_broken == "prefill":
            raise MemoryError("no room")
        return super().prefill(*arguments)

    def decode_step(self, tokens, cache):
        logits = super().decode_step(tokens, cache)
        if self.is_broken == "step":
            raise RuntimeError("the device is gone")
        return logits


def test_a_failing_step_ends_its_rows_and_the_service_goes_on(
    make_service, demo_questions, demo_model, alone
):
    model = Breaking(demo_model)
    service = make_service(model)
    model.is_broken = "step"
    model.open()
    for count in range(1, MOST_FAILURES + 1):
        answer = service.submit(ask(demo_questions[0]))
        with pytest.raises(AnswerFailed, match="the device is gone"):
            list(answer)
        assert answer.finish_reason == "error"
        assert service.is_healthy is (count < MOST_FAILURES)
    model.is_broken = ""
    assert "".join(service.submit(ask(demo_questions[0]))) == alone(demo_questions[0])[0]
    assert service.is_healthy, "it has recovered"


def test_a_prompt_that_cannot_be_read_leaves_the_others(make_service, demo_questions, demo_model, alone):
    model = Breaking(demo_model)
    service = make_service(model)
    good = service.submit(ask(demo_questions[0]))
    wait_until(lambda: model.rows == [1], "the first step")
    model.is_broken = "prefill"
    bad = service.submit(ask(demo_questions[1]))
    model.open()
    with pytest.raises(AnswerFailed, match="no room"):
        list(bad)
    assert "".join(good) == alone(demo_questions[0])[0]


def test_closing_finishes_what_is_there(make_service, demo_questions, alone):
    service = make_service(max_running=1)
    answers = [service.submit(ask(message)) for message in demo_questions[:2]]
    assert service.close(timeout=WAIT)
    assert ["".join(answer) for answer in answers] == [alone(m)[0] for m in demo_questions[:2]]
    with pytest.raises(ServiceStopped):
        service.submit(ask(demo_questions[0]))
    assert not service.is_healthy


def test_closing_cancels_what_takes_too_long(make_service, demo_questions, demo_model):
    model = Gated(demo_model)
    service = make_service(model, max_running=1)
    answers = [service.submit(ask(message)) for message in demo_questions[:2]]
    wait_until(lambda: model.rows, "the first step")
    threading.Timer(0.3, model.open).start()
    assert not service.close(timeout=0.1)
    assert [answer.finish_reason for answer in answers] == ["cancelled", "cancelled"]


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_limits_are_checked(value):
    with pytest.raises(ValueError, match=r"max_running is .*; it must be a whole number from 1 up"):
        Limits(max_running=value)


def test_the_model_is_used_by_one_thread_only(make_service, demo_questions, demo_model):
    names = set()

    class Watched(Gated):
        def prefill(self, *arguments):
            names.add(threading.current_thread().name)
            return super().prefill(*arguments)

        def decode_step(self, *arguments):
            names.add(threading.current_thread().name)
            return super().decode_step(*arguments)

    model = Watched(demo_model)
    service = make_service(model)
    model.open()
    threads = [threading.Thread(target=lambda m=m: list(service.submit(ask(m, 4)))) for m in demo_questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert names == {"answering"}
