"""Loaders that balance tiles: the same rows as without, on other ranks; exact on resuming."""

import copy
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.data.test_loader import assert_same, make_loader, rows_of, take

RANKS = 2


class Meeting:
    """Exchanges values between threads, one for each process."""

    def __init__(self):
        self._barrier = threading.Barrier(RANKS, timeout=60)
        self._values = [None] * RANKS

    def exchange(self, rank):
        def exchange_(value):
            self._values[rank] = value
            self._barrier.wait()
            values = list(self._values)
            self._barrier.wait()
            return values

        return exchange_


def take_balanced(sources, processor, count, starts=(0, 0), **settings):
    """``count`` micro-batches of every rank; each has the files open for itself, as a process has."""
    meeting = Meeting()

    def run(rank):
        own = copy.deepcopy(sources)
        ranked = {"rank": rank, "world_size": RANKS, "start": starts[rank], **settings}
        return take(own, processor, count, exchange=meeting.exchange(rank), **ranked)

    with ThreadPoolExecutor(RANKS) as pool:
        return list(pool.map(run, range(RANKS)))


def take_plain(sources, processor, count, **settings):
    return [take(sources, processor, count, rank=rank, world_size=RANKS, **settings) for rank in range(RANKS)]


def all_rows(ranks):
    return sorted(itertools.chain(*(rows_of(rank) for rank in ranks)))


def views(batch):
    return sum(1 + width * height for width, height in batch["images_spatial_crop"].reshape(-1, 2) if width)


def steps(ranks, accumulation):
    """For every step the micro-batches of all ranks."""
    for first in range(0, len(ranks[0]), accumulation):
        yield [rank[first : first + accumulation] for rank in ranks]


@pytest.mark.parametrize("packing", [False, True])
def test_the_step_has_the_same_rows_on_other_ranks(sources, processor, packing):
    settings = {"packing": packing, "accumulation": 3}
    plain = take_plain(sources, processor, 12, **settings)
    balanced = take_balanced(sources, processor, 12, **settings)
    moved = 0
    for before, after in zip(steps(plain, 3), steps(balanced, 3), strict=True):
        assert all_rows(before) == all_rows(after)
        assert [len(rows_of(rank)) for rank in after] == [6, 6]
        moved += rows_of(after[0]) != rows_of(before[0])
        for name in ("step_targets", "step_samples"):
            totals = [sum(getattr(rank[0][1], name) for rank in step) for step in (before, after)]
            assert totals[0] == totals[1] > 0, name
        # What a rank has used of its own sample indices does not depend on who computes them.
        assert [rank[-1][1].next_index for rank in before] == [rank[-1][1].next_index for rank in after]
        tiles = [[sum(views(batch) for batch, _ in rank) for rank in step] for step in (before, after)]
        expected = tuple(pytest.approx(max(step) * RANKS / sum(step)) for step in tiles)
        assert {meta.tile_imbalance for rank in after for _, meta in rank} == {after[0][0][1].tile_imbalance}
        assert after[0][0][1].tile_imbalance == expected
    assert moved


def test_the_tiles_become_even(sources, processor):
    balanced = take_balanced(sources, processor, 20, accumulation=4, batch_size=1)
    before, after = np.mean([meta.tile_imbalance for _, meta in balanced[0]], axis=0)
    assert after < before and after < 1.2


def test_pixels_and_sample_indices_belong_to_their_rows(sources, processor):
    def by_index(ranks):
        found = {}
        for batch, meta in itertools.chain(*ranks):
            for row, sample_indices in enumerate(meta.sample_indices):
                used = batch["segment_ids"][row] > 0
                length = sum(1 + w * h for w, h in batch["images_spatial_crop"][row] if w)
                found[sample_indices] = batch["labels"][row][used], batch["images"][row, :length]
        return found

    plain = by_index(take_plain(sources, processor, 8, packing=True))
    balanced = by_index(take_balanced(sources, processor, 8, packing=True))
    assert plain.keys() == balanced.keys()
    for sample_indices, arrays in plain.items():
        same = [np.array_equal(*pair) for pair in zip(arrays, balanced[sample_indices], strict=True)]
        assert all(same), sample_indices


@pytest.mark.parametrize("packing", [False, True])
def test_resuming_is_exact(sources, processor, packing):
    settings = {"packing": packing, "accumulation": 2}
    whole = take_balanced(sources, processor, 8, **settings)
    starts = [rank[3][1].next_index for rank in whole]
    rest = take_balanced(sources, processor, 4, starts, **settings)
    for before, after in zip(whole, rest, strict=True):
        assert_same(before[4:], after)


@pytest.mark.distributed
def test_processes_that_read_change_nothing(sources, processor):
    settings = {"packing": True, "accumulation": 2}
    inline = take_balanced(sources, processor, 8, **settings)
    for one, other in zip(
        inline, take_balanced(sources, processor, 8, num_workers=1, **settings), strict=True
    ):
        assert_same(one, other)


def test_one_rank_alone(sources, processor):
    batches = take(sources, processor, 6, accumulation=3, exchange=lambda value: [value])
    assert {meta.tile_imbalance for _, meta in batches} == {(1.0, 1.0)}
    assert sorted(rows_of(batches[:3])) == sorted(rows_of(take(sources, processor, 3)))


def test_pictures_that_are_missing_are_left_out_as_without(sources, processor, tmp_path):
    (tmp_path / "wide.png").unlink()
    plain, balanced = (
        function(sources, processor, 6, accumulation=2) for function in (take_plain, take_balanced)
    )
    for before, after in zip(steps(plain, 2), steps(balanced, 2), strict=True):
        assert all_rows(before) == all_rows(after)
        assert [rank[-1][1].num_broken for rank in before] == [rank[-1][1].num_broken for rank in after]


@pytest.mark.parametrize("packing", [False, True])
def test_pixels_that_only_reading_proves_damaged(sources, processor, tmp_path, packing, monkeypatch):
    """The size of the picture is right and its pixels are not: the sample is left out of its row; a row that
    had no other teaches nothing. All ranks have their rows, and the resumed run has the same."""
    from paddlemix_vl2.processing import deepseek_vl2 as module

    def damaged(source, name=None):
        if str(source).endswith("wide.png"):
            raise ValueError(f"{source}: damaged")
        return open_picture(source, name)

    open_picture = module.open_picture
    monkeypatch.setattr(module, "open_picture", damaged)
    settings = {"packing": packing, "accumulation": 2}
    whole = take_balanced(sources, processor, 8, **settings)
    rows = [row for rank in whole for row in rows_of(rank)]
    assert len(rows) == 2 * 8 * 2
    assert sum(rank[-1][1].num_broken for rank in whole) > 3
    blank = tuple(processor.process_one(prompt="", inference_mode=False).input_ids.tolist())
    assert len(blank) == 2 and (blank in rows) is not packing
    for batch, _ in itertools.chain(*whole):
        for ids, labels, segments in zip(
            batch["input_ids"], batch["labels"], batch["segment_ids"], strict=True
        ):
            if tuple(ids[segments > 0].tolist()) == blank:
                assert (labels == processor.ignore_id).all()
    starts = [rank[3][1].next_index for rank in whole]
    rest = take_balanced(sources, processor, 4, starts, **settings)
    assert [rows_of(rank[4:]) for rank in whole] == [rows_of(rank) for rank in rest]


def test_measuring_reads_no_pixels(sources, processor, monkeypatch):
    """Up to the exchange, also of packed rows."""
    from paddlemix_vl2.processing import deepseek_vl2 as module

    class Reached(Exception):
        pass

    def refuse(value):
        raise Reached

    monkeypatch.setattr(module, "open_picture", lambda *_: pytest.fail("pixels were read"))
    with (
        make_loader(sources, processor, packing=True, exchange=refuse) as loader,
        pytest.raises(Reached),
    ):
        next(loader)
