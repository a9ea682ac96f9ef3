"""``BatchLoader``: sources and a mixture in, micro-batches of numpy arrays out, without end.

::

    numbers of this rank --mixture--> sample indices --reader--> samples (broken ones left out)
    samples --rows--> rows of one or of many samples --collate--> micro-batches

Where tiles are balanced, the samples up to here are without pixels, and the ranks exchange their rows::

    rows of all ranks --assign_rows--> rows of this rank --reader--> samples with pixels --collate-->
"""

import dataclasses
import itertools
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from paddlemix_vl2.data.mixture import Mixture
from paddlemix_vl2.data.packing import collate, count_targets, pack_next_fit, sample_length
from paddlemix_vl2.data.preparation import check_overlong
from paddlemix_vl2.data.records import BrokenSample
from paddlemix_vl2.data.sources import Source
from paddlemix_vl2.data.tile_balance import assign_rows, imbalance
from paddlemix_vl2.data.workers import InlineReader, SampleIndex, WorkerReader
from paddlemix_vl2.processing.batching import Batch, Sample
from paddlemix_vl2.processing.deepseek_vl2 import DeepseekVLV2Processor

logger = logging.getLogger(__name__)

Exchange = Callable[[list], list[list]]

# So many unusable samples one after the other are no accident: a folder is missing or a limit is wrong.
MAX_BROKEN_IN_A_ROW = 100
# Samples of a step that are read ahead at most, whatever the size of the step: a picture may take 18 MB.
_MAX_AHEAD = 64


class BatchMeta(NamedTuple):
    """What a micro-batch is made of.

    Attributes:
        next_index: the first sample index that this rank has not used; a new loader starts from it.
        num_tokens: tokens without padding.
        num_targets: labels that are learned.
        step_targets: the same of all micro-batches of the optimizer step.
        step_samples: samples of all micro-batches of the optimizer step.
        sample_indices: numbers of the samples in each row; those of all ranks are different.
        num_broken: samples left out by this loader so far.
        tile_imbalance: most tiles of a rank over the ranks' mean in this step, before and after balancing;
            None where tiles are not balanced.
    """

    next_index: int
    num_tokens: int
    num_targets: int
    step_targets: int
    step_samples: int
    sample_indices: tuple[tuple[int, ...], ...]
    num_broken: int
    tile_imbalance: tuple[float, float] | None

    @property
    def num_samples(self) -> int:
        """Samples of this micro-batch."""
        return sum(map(len, self.sample_indices))


class _IndexedSample(NamedTuple):
    sample_index: SampleIndex
    sample: Sample


class _MicroBatch(NamedTuple):
    rows: list[list[_IndexedSample]]
    next_index: int
    num_targets: int
    num_broken: int
    tile_imbalance: tuple[float, float] | None = None

    @property
    def num_samples(self) -> int:
        return sum(map(len, self.rows))


class _Assignment(NamedTuple):
    """The rows of a step that this rank computes, and how far its own numbers had come by then."""

    rows: list[list[SampleIndex]]
    next_index: int
    num_broken: int
    tile_imbalance: tuple[float, float]


class BatchLoader:
    """Endless iterator over ``(batch, meta)``: arrays of :func:`~.packing.collate`, and :class:`BatchMeta`.

    Rank r of R uses the sample indices r, r + R, ...: without packing, R ranks of B rows see together what
    one process of R * B rows sees. The same arguments give the same batches, whatever ``num_workers`` is.

    Args:
        sources: opened sources.
        mixture: over their lengths.
        processor: with ``mask_prompt`` as the training wants it.
        batch_size: rows of a micro-batch.
        sequence_length: tokens that a row, and so a sample, may have.
        packing: whether rows hold as many samples as fit, or one.
        overlong: "skip" (the sample counts as broken) or "truncate".
        num_workers: processes that read pictures and tokenise; 0 for this one.
        start: the sample index to begin with: 0, or ``next_index`` of this rank's last micro-batch of a step.
            Rank 0's does for all ranks only where nothing was packed and nothing broken.
        rank, world_size: this process among those that train together.
        accumulation: micro-batches of an optimizer step; they are formed together.
        exchange: balances the tiles of a step between the ranks; None where each computes its own samples.
            Called once per step, by all ranks in the same order, with a value of plain types; returns those
            of all ranks.

    Raises:
        ValueError: an argument is out of range; while iterating, 100 samples in a row cannot be used.
        RuntimeError: while iterating, reading failed by a fault of the program.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        mixture: Mixture,
        processor: DeepseekVLV2Processor,
        *,
        batch_size: int,
        sequence_length: int,
        packing: bool = False,
        overlong: str = "skip",
        num_workers: int = 0,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        exchange: Exchange | None = None,
    ):
        _check_least(1, batch_size=batch_size, sequence_length=sequence_length, accumulation=accumulation)
        _check_least(0, num_workers=num_workers, start=start)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; with world_size {world_size} it must be 0 to {world_size - 1}")
        if mixture.lengths != (lengths := [len(source) for source in sources]):
            raise ValueError(f"the mixture is over lengths {mixture.lengths}; the sources have {lengths}")
        check_overlong(overlong)
        self._sources, self._mixture = list(sources), mixture
        self._batch_size, self._accumulation = batch_size, accumulation
        self._sequence_length, self._packing = sequence_length, packing
        self._rank, self._world_size = rank, world_size
        # The first sample index of this rank that is not before start.
        self._start = start + (rank - start) % world_size
        self._next_index = self._start
        self._pad_id, self._ignore_id = processor.tokenizer.pad_token_id, processor.ignore_id
        self._layout = processor.layout
        self._exchange = exchange
        self._assigned: deque[SampleIndex] = deque()  # assigned to this rank, not yet asked of the reader
        self._blank = _blank_sample(processor)
        self._broken: set[tuple[int, int]] = set()
        self._num_broken = 0
        self._num_unreadable = 0  # pixels that could not be read although their size could
        reader = InlineReader(self._sources, processor, sequence_length, overlong)
        self._reader: InlineReader | WorkerReader = reader
        if num_workers:
            ahead = 2 * num_workers + min(batch_size * accumulation, _MAX_AHEAD)
            self._reader = WorkerReader(reader, num_workers, ahead)
        self._batches = self._make_batches()

    def __iter__(self) -> "BatchLoader":
        return self

    def __next__(self) -> tuple[Batch, BatchMeta]:
        return next(self._batches)

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the processes that read; the loader gives no more batches."""
        self._batches.close()
        self._reader.close()

    def _make_batches(self) -> Generator[tuple[Batch, BatchMeta], None, None]:
        exchange = self._exchange
        for step in self._make_steps() if exchange is None else self._make_balanced_steps(exchange):
            totals = sum(one.num_targets for one in step), sum(one.num_samples for one in step)
            for micro_batch in step:
                samples = [[indexed.sample for indexed in row] for row in micro_batch.rows]
                yield (
                    collate(samples, self._pad_id, self._ignore_id, self._layout),
                    self._describe(micro_batch, *totals),
                )

    def _make_steps(self) -> Iterator[list[_MicroBatch]]:
        rows = self._make_rows()
        while True:
            yield [self._take(rows) for _ in range(self._accumulation)]

    def _make_balanced_steps(self, exchange: Exchange) -> Iterator[list[_MicroBatch]]:
        """The ranks agree on a step while they still read the one before."""
        rows, samples = self._make_rows(), self._reader.read(self._next_assigned())
        following = self._assign(rows, exchange)
        while True:
            assignment, following = following, self._assign(rows, exchange)
            read = [self._read_row(row, samples) for row in assignment.rows]
            yield [
                self._form(
                    read[first : first + self._batch_size],
                    assignment.next_index,
                    assignment.num_broken + self._num_unreadable,
                    assignment.tile_imbalance,
                )
                for first in range(0, len(read), self._batch_size)
            ]

    def _assign(self, rows: Iterator[list[_IndexedSample]], exchange: Exchange) -> _Assignment:
        """Exchange what this rank's rows of a step hold, and note what it is to read in their place."""
        own = list(itertools.islice(rows, self._batch_size * self._accumulation))
        tiles = [sum(len(indexed.sample.images) for indexed in row) for row in own]
        described = [
            (count, [tuple(indexed.sample_index) for indexed in row])
            for count, row in zip(tiles, own, strict=True)
        ]
        ranks = exchange(described)
        counts = [[count for count, _ in rank] for rank in ranks]
        places = assign_rows(counts, self._batch_size)
        assigned = [
            [SampleIndex(*sample_index) for sample_index in ranks[place.rank][place.row][1]]
            for place in places[self._rank]
        ]
        self._assigned.extend(itertools.chain.from_iterable(assigned))
        after = [sum(counts[place.rank][place.row] for place in rank) for rank in places]
        before_and_after = imbalance([sum(rank) for rank in counts]), imbalance(after)
        return _Assignment(assigned, self._next_index, self._num_broken, before_and_after)

    def _next_assigned(self) -> Iterator[SampleIndex | None]:
        while True:
            yield self._assigned.popleft() if self._assigned else None

    def _read_row(
        self, row: list[SampleIndex], samples: Iterator[tuple[SampleIndex, Sample | BrokenSample]]
    ) -> list[_IndexedSample]:
        """The row with its pixels. What only now proves broken is left out; where nothing is left, the row is
        one of two tokens that teaches nothing, as every rank has to have its rows."""
        results = [next(samples) for _ in row]
        read = [
            _IndexedSample(sample_index, sample)
            for sample_index, sample in results
            if not isinstance(sample, BrokenSample)
        ]
        for sample_index, broken in results:
            if isinstance(broken, BrokenSample):
                self._num_unreadable += 1
                self._warn_once(sample_index, broken)
        return read or [_IndexedSample(row[0], self._blank)]

    def _take(self, rows: Iterator[list[_IndexedSample]]) -> _MicroBatch:
        taken = list(itertools.islice(rows, self._batch_size))
        return self._form(taken, self._next_index, self._num_broken)

    def _form(
        self, rows: list[list[_IndexedSample]], next_index: int, num_broken: int, *balance
    ) -> _MicroBatch:
        num_targets = sum(count_targets(indexed.sample, self._ignore_id) for row in rows for indexed in row)
        return _MicroBatch(rows, next_index, num_targets, num_broken, *balance)

    def _describe(self, micro_batch: _MicroBatch, step_targets: int, step_samples: int) -> BatchMeta:
        indexed = [one for row in micro_batch.rows for one in row]
        return BatchMeta(
            next_index=micro_batch.next_index,
            num_tokens=sum(sample_length(one.sample) for one in indexed),
            num_targets=micro_batch.num_targets,
            step_targets=step_targets,
            step_samples=step_samples,
            sample_indices=tuple(tuple(one.sample_index.number for one in row) for row in micro_batch.rows),
            num_broken=micro_batch.num_broken,
            tile_imbalance=micro_batch.tile_imbalance,
        )

    def _make_rows(self) -> Iterator[list[_IndexedSample]]:
        """Rows; after each, ``_next_index`` is the first sample index that is in none of them."""
        if not self._packing:
            for indexed in self._read_samples():
                self._next_index = indexed.sample_index.number + self._world_size
                yield [indexed]
        yield from pack_next_fit(
            self._note_last(), self._sequence_length, lambda indexed: sample_length(indexed.sample)
        )

    def _note_last(self) -> Iterator[_IndexedSample]:
        """Packing takes one sample more than the row holds: the first of the next row."""
        for indexed in self._read_samples():
            self._next_index = indexed.sample_index.number
            yield indexed

    def _read_samples(self) -> Iterator[_IndexedSample]:
        """The samples of this rank's sample indices in order, without those that cannot be used."""
        in_a_row = 0
        numbers = itertools.count(self._start, self._world_size)
        sample_indices = (SampleIndex(number, *self._mixture[number]) for number in numbers)
        for sample_index, result in self._reader.read(sample_indices, measure=self._exchange is not None):
            if not isinstance(result, BrokenSample):
                in_a_row = 0
                yield _IndexedSample(sample_index, result)
                continue
            in_a_row += 1
            self._num_broken += 1
            self._warn_once(sample_index, result)
            if in_a_row == MAX_BROKEN_IN_A_ROW:
                raise ValueError(f"{in_a_row} samples in a row cannot be used; the last one: {result}")

    def _warn_once(self, sample_index: SampleIndex, broken: BrokenSample) -> None:
        if (sample_index.source, sample_index.item) not in self._broken:
            self._broken.add((sample_index.source, sample_index.item))
            logger.warning("left out: %s", broken)


def _blank_sample(processor: DeepseekVLV2Processor) -> Sample:
    """Begin and end token, neither of them learned."""
    sample = processor.process_one(prompt="", inference_mode=False)
    labels = np.full_like(sample.labels, processor.ignore_id)
    return dataclasses.replace(sample, labels=labels, images=sample.images[:0])


def _check_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
