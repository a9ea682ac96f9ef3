"""Reading samples in this process or in others, always in the order asked for."""

import contextlib
import dataclasses
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import NamedTuple

from paddlemix_vl2.data.preparation import prepare_item
from paddlemix_vl2.data.records import BrokenSample
from paddlemix_vl2.data.sources import Source
from paddlemix_vl2.process_tuning import THREADS_VARIABLE
from paddlemix_vl2.processing.batching import Sample
from paddlemix_vl2.processing.deepseek_vl2 import DeepseekVLV2Processor


class SampleIndex(NamedTuple):
    """An index of the mixture: its number, the source and the sample in the source."""

    number: int
    source: int
    item: int


@dataclasses.dataclass(frozen=True)
class InlineReader:
    """Reads in this process.

    Attributes:
        sources, processor: what sample indices are read with.
        max_length, overlong: as in :func:`~paddlemix_vl2.data.preparation.prepare`.
    """

    sources: Sequence[Source]
    processor: DeepseekVLV2Processor
    max_length: int
    overlong: str

    def read(
        self, sample_indices: Iterable[SampleIndex | None], measure: bool = False
    ) -> Iterator[tuple[SampleIndex, Sample | BrokenSample]]:
        """Each sample index with its sample, or with the reason why there is none; None, as
        :meth:`WorkerReader.read` may have it, is never the next one here."""
        for sample_index in sample_indices:
            if sample_index is None:
                raise RuntimeError("a sample is asked for before its index is known")
            yield sample_index, self.read_one(sample_index, measure)

    def read_one(self, sample_index: SampleIndex, measure: bool) -> Sample | BrokenSample:
        """The sample of an index; one without pictures also without its blank view.

        Args:
            measure: leave the views empty; of a picture's file only the size is read, which gives their
                number.
        """
        source = self.sources[sample_index.source]
        processor = self.processor.without_pixels() if measure else self.processor
        try:
            sample = prepare_item(source, sample_index.item, processor, self.max_length, self.overlong)
        except BrokenSample as broken:
            return broken
        # Most of the bytes of a text sample, and nothing reads them: they would cross to another process.
        return sample if sample.num_image_tokens else dataclasses.replace(sample, images=sample.images[:0])

    def close(self) -> None:
        """Nothing to do."""


class WorkerReader:
    """Reads in ``num_workers`` other processes, a bounded number of sample indices ahead.

    The processes are started afresh (spawn): a copy of a process in which Paddle has threads may hang. A
    script that makes one therefore needs ``if __name__ == "__main__":``. Each has one thread for numpy. They
    end with :meth:`close` and with this process, also when it is killed.

    Args:
        reader: what every process reads with; it is sent there once.
        ahead: sample indices that may be under way or waiting.
    """

    def __init__(self, reader: InlineReader, num_workers: int, ahead: int):
        self._reader = reader
        self._ahead = ahead
        self._pool = ProcessPoolExecutor(num_workers, _WorkerContext(), _start_worker, (reader,))

    def read(
        self, sample_indices: Iterable[SampleIndex | None], measure: bool = False
    ) -> Iterator[tuple[SampleIndex, Sample | BrokenSample]]:
        """Each sample index with its sample or the reason why there is none.

        Args:
            sample_indices: without end; None where the next one is not known yet, and as many results as
                indices before it are still asked for.
            measure: as :meth:`InlineReader.read_one`.

        Raises:
            RuntimeError: reading failed by a fault of the program, or a process has ended.
        """
        waiting: deque[tuple[SampleIndex, Future[Sample | BrokenSample]]] = deque()
        for sample_index in sample_indices:
            newest = waiting[0][0] if sample_index is None else sample_index
            try:
                if sample_index is not None:
                    waiting.append((sample_index, self._pool.submit(_read_one, sample_index, measure)))
                    if len(waiting) < self._ahead:
                        continue
                oldest, future = waiting.popleft()
                result = future.result()
            except BrokenProcessPool as error:
                place = self._reader.sources[newest.source].place(newest.item)
                raise RuntimeError(
                    f"a data process has ended while it read {place} or one of the sample indices before it, "
                    "most often for lack of memory; try fewer num_workers"
                ) from error
            yield oldest, result

    def close(self) -> None:
        """End the processes and wait until they are gone."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class _SingleThreadedProcess(SpawnProcess):
    """A new process whose environment asks for one thread, before anything there can read it."""

    def start(self) -> None:
        before = os.environ.get(THREADS_VARIABLE)
        os.environ[THREADS_VARIABLE] = "1"
        try:
            super().start()
        finally:
            if before is None:
                del os.environ[THREADS_VARIABLE]
            else:
                os.environ[THREADS_VARIABLE] = before


class _WorkerContext(SpawnContext):
    Process = _SingleThreadedProcess


# ---- in the other process ----

_own: InlineReader  # a pool calls plain functions: this is the only place for what they need


def _start_worker(reader: InlineReader) -> None:
    global _own
    _own = reader
    # Ctrl-C reaches every process of a terminal; the parent answers it, and closes the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker that waits for work would not notice that the sender is gone."""
    with contextlib.suppress(Exception):
        if (parent := parent_process()) is not None:
            parent.join()
    os._exit(1)


def _read_one(sample_index: SampleIndex, measure: bool) -> Sample | BrokenSample:
    return _own.read_one(sample_index, measure)
