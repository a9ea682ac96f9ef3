"""Text while it is generated: ``generate(..., streamer=)`` calls ``put`` at each step and ``end`` once.

A character may be spread over several tokens (Chinese, emoji); a piece of text is handed out when its last
character is complete. End-of-sentence tokens end a row and are not shown; the grounding tokens (``<|ref|>``
and so on) are special tokens to the tokenizer, but text to the reader, and are shown unless asked otherwise.
"""

import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

import numpy as np
from tokenizers.decoders import DecodeStream


class TextStreamer:
    """Hands out the new text of each step: to a file as it comes, or to callbacks.

    Args:
        tokenizer: has ``backend`` (a ``tokenizers.Tokenizer``) and ``eos_token_id``; the processor's has.
        on_text: called with each new piece of row 0; a list holds one function per row of the batch. Without
            it row 0 is written to ``file``, followed by a line end when it is finished.
        file: where to write to when there is no ``on_text``; the standard output of the moment when absent.
        eos_token_id: token, or tokens, that end a row; the tokenizer's when absent.
        skip_special_tokens: hide every special token, the grounding tokens included.

    Attributes:
        texts: the text of each streamed row so far.

    ::

        model.generate(**batch, streamer=TextStreamer(processor.tokenizer))
    """

    def __init__(
        self,
        tokenizer,
        on_text: Callable[[str], object] | Sequence[Callable[[str], object]] | None = None,
        *,
        file: TextIO | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        skip_special_tokens: bool = False,
    ):
        self._file = file
        self._writes_lines = on_text is None
        if on_text is None:
            on_text = self._write
        self._receivers = [on_text] if callable(on_text) else list(on_text)
        stops = tokenizer.eos_token_id if eos_token_id is None else eos_token_id
        self._stops = frozenset(int(stop) for stop in np.atleast_1d(stops))
        self._backend = tokenizer.backend
        self._skip_special_tokens = skip_special_tokens
        self._start()

    def _start(self) -> None:
        self._has_ended = False
        self._rows = [
            RowDecoder(self._backend, self._stops, self._skip_special_tokens) for _ in self._receivers
        ]

    @property
    def texts(self) -> list[str]:
        return [row.text for row in self._rows]

    def put(self, token_ids: np.ndarray) -> None:
        """Take the tokens of one step, int64 [B]. The first call after ``end`` starts a new text.

        Raises:
            ValueError: there are callbacks for more rows than the batch has.
        """
        if self._has_ended:
            self._start()
        token_ids = np.asarray(token_ids).reshape(-1)
        if len(token_ids) < len(self._rows):
            raise ValueError(
                f"{len(self._rows)} callbacks for streamed text but {len(token_ids)} row(s) in the batch"
            )
        for row, receiver, token_id in zip(self._rows, self._receivers, token_ids.tolist(), strict=False):
            _send(receiver, row.put(token_id))

    def end(self) -> None:
        """Hand out what is held back: the bytes of a character that was never completed, as U+FFFD."""
        self._has_ended = True
        for row, receiver in zip(self._rows, self._receivers, strict=True):
            _send(receiver, row.finish())
        if self._writes_lines:
            self._write("\n")

    def _write(self, text: str) -> None:
        file = self._file or sys.stdout
        file.write(text)
        file.flush()


def _send(receiver, piece: str) -> None:
    if piece:
        receiver(piece)


class RowDecoder:
    """One row's tokens to text; gives no text after a stop token.

    Args:
        backend: a ``tokenizers.Tokenizer``.
        stops: tokens that end the row and are not shown.
        skip_special_tokens: as of :class:`TextStreamer`.
    """

    def __init__(self, backend, stops: frozenset[int], skip_special_tokens: bool = False):
        self.text = ""
        self._backend = backend
        self._stops = stops
        self._skip_special_tokens = skip_special_tokens
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._held: list[int] = []  # tokens whose text is not handed out yet
        self._has_ended = False

    def put(self, token_id: int) -> str:
        """The text that ``token_id`` completes, often empty."""
        if self._has_ended:
            return ""
        if token_id in self._stops:
            return self.finish()
        self._held.append(token_id)
        piece = self._stream.step(self._backend, token_id)
        if not piece:
            return ""
        self._held.clear()
        self.text += piece
        return piece

    def finish(self) -> str:
        """The text of what is held back; DecodeStream has no such call."""
        self._has_ended = True
        piece = self._backend.decode(self._held, skip_special_tokens=self._skip_special_tokens)
        self._held.clear()
        self.text += piece
        return piece


class StreamAbandonedError(Exception):
    """Raised inside ``generate`` when the reader of the text is gone; ends the generation."""


class TextIteratorStreamer(TextStreamer):
    """The text of row 0 as an iterator, while generation runs in another thread: for notebooks and servers.

    ::

        streamer = TextIteratorStreamer(processor.tokenizer)
        for piece in streamer.run(model.generate, **batch, max_new_tokens=64):
            ...
        ids, scores = streamer.result

    An exception of the generating thread is raised in the loop. Leaving the loop early stops the generation
    at its next token. One streamer serves one answer.

    With a thread of your own, pass the streamer to ``generate`` and iterate over it; then only ``run`` can
    raise its exception, so use ``timeout``.

    Args:
        tokenizer, eos_token_id, skip_special_tokens: as of :class:`TextStreamer`.
        timeout: seconds to wait for the next piece; for ever when absent.

    Attributes:
        result: what ``generate`` returned, once the iterator is exhausted.
    """

    def __init__(
        self,
        tokenizer,
        *,
        eos_token_id: int | Sequence[int] | None = None,
        skip_special_tokens: bool = False,
        timeout: float | None = None,
    ):
        # Pieces of text, then None (the end) or the exception that ended the generation.
        self._queue: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        super().__init__(
            tokenizer,
            self._queue.put,
            eos_token_id=eos_token_id,
            skip_special_tokens=skip_special_tokens,
        )
        self.result = None
        self._timeout = timeout
        self._has_thread = False
        self._is_abandoned = threading.Event()

    def run(self, generate: Callable, *args, **kwargs) -> Iterator[str]:
        """Start ``generate(*args, streamer=self, **kwargs)`` in a thread; the iterator over its text.

        Raises:
            ValueError: the streamer was run before.
        """
        if self._has_thread:
            raise ValueError("this TextIteratorStreamer has streamed an answer; make a new one for the next")
        self._has_thread = True
        threading.Thread(target=self._generate, args=(generate, args, kwargs), daemon=True).start()
        return iter(self)

    def _generate(self, generate, args, kwargs) -> None:
        outcome = None
        try:
            self.result = generate(*args, streamer=self, **kwargs)
        except StreamAbandonedError:
            pass
        except BaseException as error:  # whatever it is, the reading thread is the one that can handle it
            outcome = error
        self._queue.put(outcome)

    def put(self, token_ids: np.ndarray) -> None:
        if self._is_abandoned.is_set():
            raise StreamAbandonedError("nobody reads the streamed text any more")
        super().put(token_ids)

    def end(self) -> None:
        super().end()
        if not self._has_thread:  # else the thread itself ends the iteration, when it knows of exceptions
            self._queue.put(None)

    def __iter__(self) -> Iterator[str]:
        """Pieces of text as they come.

        Raises:
            TimeoutError: no piece came in time.
        """
        try:
            while True:
                item = self._next_item()
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self._is_abandoned.set()

    def _next_item(self) -> str | BaseException | None:
        try:
            return self._queue.get(timeout=self._timeout)
        except queue.Empty:
            raise TimeoutError(f"no text came for {self._timeout} seconds") from None
