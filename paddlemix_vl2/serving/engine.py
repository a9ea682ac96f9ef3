"""A queue in front of a running batch, and the one thread that works on both."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from paddlemix_vl2.generation.decoding import PromptTooLong, check_lengths
from paddlemix_vl2.serving.batch import ContinuousBatch
from paddlemix_vl2.serving.sequence import GenerationRequest, Sequence
from paddlemix_vl2.serving.stream import RequestOutput

# After so many failures with no success between them the service calls itself unhealthy.
MAX_FAILURES = 3


class QueueFull(RuntimeError):
    """As many requests wait as may; try again later."""


class EngineStopped(RuntimeError):
    """The service takes no requests any more."""


@dataclass(frozen=True)
class EngineLimits:
    """Attributes:
    max_running: rows that are decoded together.
    max_waiting: requests that wait for a row, those included that are being prepared.
    max_prompt_tokens: longest prompt, pictures included; None: what the model's positions leave.
    default_max_tokens: longest answer of a request that does not say, as far as the positions go.
    chunk_size: positions of a prompt that are read at a time.
    """

    max_running: int = 8
    max_waiting: int = 32
    max_prompt_tokens: int | None = None
    default_max_tokens: int = 512
    chunk_size: int | None = 1024

    def __post_init__(self):
        for name, value in vars(self).items():
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} is {value!r}; it must be a whole number from 1 up")


class ServingEngine:
    """Answers conversations with one model, several at once.

    A request is prepared (pictures, tokens) in the thread that submits it; only the engine's own thread uses
    the model. Between two steps of the batch at most one pending request's prompt is read.

    Args:
        model: in evaluation mode. No other thread may use it meanwhile: Paddle's ``no_grad`` around its
            methods is not made for two threads.
        processor: its processor.
        limits: how much at once.
    """

    def __init__(self, model, processor, limits: EngineLimits | None = None):
        self.processor, self.limits = processor, limits or EngineLimits()
        self.max_positions = model.config.language_config.max_sequence_length
        self._batch = ContinuousBatch(model, processor, self.limits.chunk_size)
        self._waiting: deque[Sequence] = deque()
        self._preparing = 0
        self._pending: Sequence | None = None  # whose prompt is being read
        self._failures = 0
        self._is_stopping = False
        self._changed = threading.Condition()  # guards all of these
        self._thread = threading.Thread(target=self._work, name="answering", daemon=True)
        self._thread.start()

    # ---- what callers see ----

    @property
    def num_waiting(self) -> int:
        """Requests that are prepared or wait for a row."""
        return len(self._waiting) + self._preparing

    @property
    def num_running(self) -> int:
        """Rows that are decoded, and the one whose prompt is being read."""
        return len(self._batch.rows) + (self._pending is not None)

    @property
    def is_healthy(self) -> bool:
        """Whether the thread lives and has not failed several times in a row."""
        return self._thread.is_alive() and self._failures < MAX_FAILURES

    def check_open(self) -> None:
        """Complain where :meth:`submit` would at once.

        Raises:
            QueueFull, EngineStopped: as there.
        """
        if self._is_stopping or not self._thread.is_alive():
            raise EngineStopped("the service has stopped and takes no requests")
        if self.num_waiting >= self.limits.max_waiting:
            raise QueueFull(f"{self.limits.max_waiting} requests wait already; try again later")

    def submit(
        self, request: GenerationRequest, deliver: Callable[[str | None], object] | None = None
    ) -> RequestOutput:
        """Prepare a request and put it into the queue.

        Args:
            deliver: as of :class:`RequestOutput`; without it the answer is an iterator.

        Raises:
            ValueError: the conversation or a picture is not acceptable.
            PromptTooLong: with the numbers.
            QueueFull: too many wait.
            EngineStopped: after :meth:`close`, or when the thread has died.
        """
        with self._changed:
            self.check_open()
            self._preparing += 1
        row = None
        try:
            row = self._prepare(request, deliver)
        finally:
            with self._changed:
                self._preparing -= 1
                if row is not None:
                    self._enqueue(row)
        return row.answer

    def close(self, timeout: float = 0.0) -> bool:
        """Take no more requests, finish those that are there within ``timeout`` seconds, and cancel the rest.

        Returns:
            whether all of them were finished.
        """
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        self._thread.join(timeout)
        finished = not self._thread.is_alive()
        with self._changed:
            rows = [*self._waiting, *self._batch.rows, *filter(None, [self._pending])]
        for row in rows:
            row.answer.cancel()
        self._thread.join()
        return finished

    # ---- requests ----

    def _prepare(self, request: GenerationRequest, deliver) -> Sequence:
        sample = self.processor.process_one(list(request.conversation), request.images)
        length = len(sample.input_ids)
        most = self.max_positions - 1  # one is for the answer
        longest = min(self.limits.max_prompt_tokens or most, most)
        if length > longest:
            raise PromptTooLong(
                f"the prompt has {length} tokens, pictures included; {longest} are possible: "
                "send less text, or fewer or smaller pictures"
            )
        max_tokens = request.max_tokens
        if max_tokens is None:
            max_tokens = min(self.limits.default_max_tokens, self.max_positions - length)
        check_lengths(length, max_tokens, None, self.max_positions)
        return Sequence(sample, request, max_tokens, RequestOutput(length, deliver, self._withdraw))

    def _enqueue(self, row: Sequence) -> None:
        if self._is_stopping:
            raise EngineStopped("the service has stopped and takes no requests")
        self._waiting.append(row)
        self._changed.notify_all()

    def _withdraw(self, answer: RequestOutput) -> None:
        """A cancelled answer leaves the queue at once; one that runs is seen by the batch."""
        with self._changed:
            for row in self._waiting:
                if row.answer is answer:
                    self._waiting.remove(row)
                    answer.finish("cancelled")
                    return

    # ---- the thread ----

    def _work(self) -> None:
        error: BaseException = RuntimeError("the service's thread has ended")
        try:
            while self._wait_for_work():
                self._guard(self._admit_one)
                self._guard(self._step)
        except BaseException as fatal:  # not one that a request can cause: the thread ends with it
            error = fatal
            raise
        finally:
            self._fail_all(error)

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; whether there is, and not the end."""
        with self._changed:
            while not (self._waiting or self._batch.rows or self._is_stopping):
                self._changed.wait()
            return bool(self._waiting or self._batch.rows)

    def _guard(self, work: Callable[[], None]) -> None:
        """Do it; a failure ends the answers that it concerns, and the thread continues."""
        try:
            work()
        # Whatever the model or a tokenizer raises must not take the other requests down.
        except Exception as error:
            self._failures += 1
            logging.getLogger(__name__).exception("answering failed")
            pending, self._pending = self._pending, None
            if pending is None:
                self._batch.fail(error)
            else:
                pending.answer.finish("error", error)

    def _admit_one(self) -> None:
        with self._changed:
            if not self._waiting or len(self._batch.rows) >= self.limits.max_running:
                return
            self._pending = self._waiting.popleft()
        if not self._pending.has_ended:
            self._batch.add(self._pending)
            if self._pending.has_ended:
                self._failures = 0
        self._pending = None

    def _step(self) -> None:
        if self._batch.rows:
            self._batch.step()
            self._failures = 0

    def _fail_all(self, error: BaseException) -> None:
        with self._changed:
            left = [*self._waiting, *filter(None, [self._pending])]
            self._waiting.clear()
            self._pending = None
        for row in left:
            row.answer.finish("error", error)
        self._batch.fail(error)
