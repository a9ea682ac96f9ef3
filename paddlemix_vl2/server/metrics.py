"""What Prometheus reads from ``/metrics``."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from paddlemix_vl2.serving import RequestOutput, ServingEngine

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Metrics:
    """Counters of one server; the process's memory and time are among them."""

    def __init__(self, service: ServingEngine):
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "vl2_requests",
            "Chat completions by HTTP status; 499: the client went away.",
            ["status"],
            registry=registry,
        )
        self._answers = Counter(
            "vl2_answers", "Answers by how they ended.", ["finish_reason"], registry=registry
        )
        self._prompt = Counter(
            "vl2_prompt_tokens", "Tokens of prompts and their pictures.", registry=registry
        )
        self._completion = Counter("vl2_completion_tokens", "Tokens generated.", registry=registry)
        self._first = Histogram(
            "vl2_time_to_first_text_seconds",
            "From the request to the first text of its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._whole = Histogram(
            "vl2_answer_seconds",
            "From the request to the end of its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        waiting = Gauge("vl2_waiting_requests", "Prepared, or waiting for a row.", registry=registry)
        waiting.set_function(lambda: service.num_waiting)
        running = Gauge("vl2_running_rows", "Rows of the running batch.", registry=registry)
        running.set_function(lambda: service.num_running)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)

    def count(self, status: int) -> None:
        """One chat completion has been replied to."""
        self._requests.labels(str(status)).inc()

    def start(self) -> "Timing":
        """A new request has come."""
        return Timing(self)


class Timing:
    """Times and tokens of one answer."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._start = time.perf_counter()
        self._has_text = False

    def text(self) -> None:
        """Text has come."""
        if not self._has_text:
            self._has_text = True
            self._metrics._first.observe(time.perf_counter() - self._start)

    def end(self, answer: RequestOutput) -> None:
        """The answer is over, whole or not."""
        self._metrics._whole.observe(time.perf_counter() - self._start)
        self._metrics._answers.labels(answer.finish_reason or "cancelled").inc()
        self._metrics._prompt.inc(answer.prompt_tokens)
        self._metrics._completion.inc(answer.completion_tokens)
