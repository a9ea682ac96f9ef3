"""What the caller of :meth:`ServingEngine.submit` holds."""

import logging
import queue
from collections.abc import Callable, Iterator


class RequestFailed(RuntimeError):
    """The model failed while it worked on an answer; the message says how."""


class RequestOutput:
    """One answer while it is generated: iterate over its pieces of text, once.

    Args:
        prompt_tokens: tokens of the prompt, those of the pictures included.
        deliver: called in the service's thread with each piece of text, and with None at the end; it must not
            block. Without it the answer is an iterator. Where it raises, the caller is gone: the answer is
            cancelled.
        withdraw: called when the answer is given up.

    Attributes:
        completion_tokens: tokens generated so far, the end token included.
        finish_reason: None while it is generated; then ``stop`` (end token or stop string), ``length``,
            ``cancelled`` or ``error``.
        error: what went wrong where ``finish_reason`` is ``error``.
    """

    def __init__(
        self,
        prompt_tokens: int,
        deliver: Callable[[str | None], object] | None = None,
        withdraw: Callable[["RequestOutput"], object] | None = None,
    ):
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        self.finish_reason: str | None = None
        self.error: BaseException | None = None
        self.is_cancelled = False
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._deliver = deliver or self._pieces.put
        self._withdraw = withdraw

    def cancel(self) -> None:
        """Give the answer up: it leaves the queue now, or the batch after the current step. Any thread may
        call it, and more than once."""
        self.is_cancelled = True
        if self._withdraw is not None:
            self._withdraw(self)

    def __iter__(self) -> Iterator[str]:
        """Pieces of text as they come; leaving the loop early cancels.

        Raises:
            RequestFailed: the model failed.
        """
        try:
            while (piece := self._pieces.get()) is not None:
                yield piece
        finally:
            self.cancel()
        self.raise_failure()

    def raise_failure(self) -> None:
        """Nothing, unless the answer has failed.

        Raises:
            RequestFailed: it has.
        """
        if self.finish_reason == "error":
            raise RequestFailed(f"the answer failed: {self.error}") from self.error

    def count_token(self) -> int:
        """Count one more token (for the service); how many there are now."""
        self.completion_tokens += 1
        return self.completion_tokens

    def put(self, piece: str) -> None:
        """Hand on text (for the service)."""
        if piece:
            self._hand_on(piece)

    def finish(self, reason: str, error: BaseException | None = None) -> None:
        """End the answer (for the service); the first end counts."""
        if self.finish_reason is None:
            self.error, self.finish_reason = error, reason
            self._hand_on(None)

    def _hand_on(self, piece: str | None) -> None:
        try:
            self._deliver(piece)
        # Whatever a receiver raises must not reach the other rows of the batch.
        except Exception:
            logging.getLogger(__name__).exception("the receiver of an answer failed; the answer is cancelled")
            self.is_cancelled = True
