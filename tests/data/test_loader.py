"""The loader as a whole: order, resuming, ranks, broken samples, and its processes."""

import dataclasses
import functools
import itertools
import logging
import multiprocessing
import operator
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from paddlemix_vl2.data import BatchLoader, Mixture, SourceSpec, open_source
from paddlemix_vl2.data.loader import MAX_BROKEN_IN_A_ROW
from tests.data.conftest import ask, write_jsonl, write_picture

ROOT = Path(__file__).parents[2]
LENGTH = 90


def make_loader(sources, processor, **settings):
    mixture = Mixture([len(source) for source in sources], [source.spec.weight for source in sources], seed=5)
    settings = {"batch_size": 2, "sequence_length": LENGTH, **settings}
    return BatchLoader(sources, mixture, processor, **settings)


def take(sources, processor, count, **settings):
    with make_loader(sources, processor, **settings) as loader:
        return list(itertools.islice(loader, count))


def assert_same(first, second):
    assert len(first) == len(second)
    for (one, one_meta), (other, other_meta) in zip(first, second, strict=True):
        assert one.keys() == other.keys() and one_meta == other_meta
        assert all(is_same(one[name], other[name]) for name in one)


def is_same(one, other) -> bool:
    """Of arrays, and of the plan, which holds some."""
    if not dataclasses.is_dataclass(one):
        return np.array_equal(one, other)
    names = [field.name for field in dataclasses.fields(one)]
    return type(one) is type(other) and all(is_same(getattr(one, n), getattr(other, n)) for n in names)


def rows_of(batches):
    """Tokens of every row without padding."""
    return [
        tuple(ids[segments > 0].tolist())
        for batch, _ in batches
        for ids, segments in zip(batch["input_ids"], batch["segment_ids"], strict=True)
    ]


@pytest.mark.distributed
@pytest.mark.parametrize("packing", [False, True])
def test_processes_change_nothing(sources, processor, packing):
    settings = {"packing": packing, "accumulation": 2}
    assert_same(
        take(sources, processor, 8, **settings), take(sources, processor, 8, num_workers=2, **settings)
    )


@pytest.mark.parametrize("packing", [False, True])
def test_a_batch_can_be_the_first_of_a_new_loader(sources, processor, packing):
    batches = take(sources, processor, 12, packing=packing)
    for count in (1, 2, 5, 9):
        start = batches[count - 1][1].next_index
        assert_same(take(sources, processor, 12 - count, packing=packing, start=start), batches[count:])


def test_resuming_among_broken_samples_and_ranks(sources, processor, tmp_path):
    (tmp_path / "wide.png").unlink()
    for packing, rank in itertools.product((False, True), (0, 1)):
        settings = {"packing": packing, "rank": rank, "world_size": 2, "accumulation": 2}
        batches = take(sources, processor, 8, **settings)
        rest = take(sources, processor, 4, start=batches[3][1].next_index, **settings)
        assert rows_of(rest) == rows_of(batches[4:])
        assert [meta.next_index for _, meta in rest] == [meta.next_index for _, meta in batches[4:]]


def test_two_ranks_are_one_process_of_twice_the_batch(sources, processor):
    whole = take(sources, processor, 6, batch_size=4)
    parts = [take(sources, processor, 6, rank=rank, world_size=2) for rank in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert sorted(rows_of([batch])) == sorted(rows_of([first, second]))
        assert batch[1].num_targets == first[1].num_targets + second[1].num_targets
        assert batch[1].next_index == first[1].next_index


def test_the_samples_are_those_of_the_mixture(sources, processor):
    mixture = Mixture([len(source) for source in sources], [3, 1], seed=5)
    expected = []
    for sample_index in range(20):
        source, item = mixture[sample_index]
        record = sources[source][item]
        sample = processor.process_one(record.conversation, prompt=record.text, inference_mode=False)
        expected.append(tuple(sample.input_ids.tolist()))
    assert rows_of(take(sources, processor, 10)) == expected


def test_packed_rows_are_full_and_complete(sources, processor):
    batches = take(sources, processor, 10, packing=True)
    single = rows_of(take(sources, processor, 60))
    packed = [token for row in rows_of(batches) for token in row]
    joined = [token for row in single for token in row]
    assert packed == joined[: len(packed)]
    lengths = [len(row) for row in rows_of(batches)]
    assert max(lengths) <= LENGTH and np.mean(lengths) > LENGTH / 2
    assert max(batch["segment_ids"].max() for batch, _ in batches) > 2


def test_pictures_of_packed_rows_stay_with_their_tokens(sources, processor):
    for batch, _ in take(sources, processor, 10, packing=True):
        for row, mask in enumerate(batch["images_seq_mask"]):
            grids = [grid for grid in batch["images_spatial_crop"][row].tolist() if all(grid)]
            # 2 x 2 tokens per view: 2 * 3, a separator, and 2 * rows of 2 * columns + 1.
            assert mask.sum() == sum(7 + 2 * height * (2 * width + 1) for width, height in grids)
            views = sum(1 + width * height for width, height in grids)
            assert batch["images"][row, :views].any(axis=(1, 2, 3)).all()
            assert not batch["images"][row, views:].any()


def test_meta_counts(sources, processor):
    batches = take(sources, processor, 6, packing=True, accumulation=3)
    for first in (0, 3):
        step = batches[first : first + 3]
        total = sum(int((batch["labels"] != processor.ignore_id).sum()) for batch, _ in step)
        assert {meta.step_targets for _, meta in step} == {total}
    for batch, meta in batches:
        assert meta.num_targets == (batch["labels"] != processor.ignore_id).sum()
        assert meta.num_tokens == (batch["segment_ids"] > 0).sum()
        assert meta.num_samples == batch["segment_ids"].max(axis=1).sum()
        assert [len(row) for row in meta.sample_indices] == batch["segment_ids"].max(axis=1).tolist()
    assert sum(meta.num_samples for _, meta in batches) == batches[-1][1].next_index


# ---- broken samples ----


@pytest.mark.distributed
@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_samples_are_left_out_counted_and_named_once(
    sources, processor, tmp_path, caplog, num_workers
):
    good = rows_of(take(sources, processor, 30))
    (tmp_path / "wide.png").write_bytes(b"no picture")
    with caplog.at_level(logging.WARNING, logger="paddlemix_vl2.data"):
        batches = take(sources, processor, 30, num_workers=num_workers)
    rows = rows_of(batches)
    broken = batches[-1][1].next_index - len(rows)
    assert broken == batches[-1][1].num_broken > 5
    kept = [row for row in good if row in set(rows)]
    assert 30 < len(kept) < len(good) and rows[: len(kept)] == kept
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(set(lines)) == 5  # every third of 17 conversations has the picture
    assert f"left out: {tmp_path / 'talks.jsonl'}:3: {tmp_path / 'wide.png'}: not a picture that" in "".join(
        lines
    )


def test_overlong_samples_are_skipped_or_truncated(sources, processor):
    skipped = take(sources, processor, 30, sequence_length=25)
    truncated = take(sources, processor, 30, sequence_length=25, overlong="truncate")
    assert skipped[-1][1].num_broken > truncated[-1][1].num_broken > 0
    assert max(len(row) for row in rows_of(truncated)) == 25


def test_nothing_but_broken_samples_is_an_error(sources, processor, caplog):
    with (
        make_loader(sources, processor, sequence_length=3) as loader,
        pytest.raises(
            ValueError, match=rf"{MAX_BROKEN_IN_A_ROW} samples in a row .*has \d+ tokens; a sequence"
        ),
    ):
        next(loader)


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.distributed)])
def test_faults_are_not_broken_samples(sources, processor, num_workers):
    for source in sources:
        source._file.read = functools.partial(operator.getitem, {})
    with (
        make_loader(sources, processor, num_workers=num_workers) as loader,
        pytest.raises(RuntimeError, match=r"t[a-z]+\.jsonl:\d+: KeyError: \d+"),
    ):
        next(loader)


@pytest.mark.distributed
def test_a_process_that_ends_is_an_error(sources, processor):
    for source in sources:
        source._file.read = functools.partial(os._exit)
    with (
        make_loader(sources, processor, num_workers=1) as loader,
        pytest.raises(RuntimeError, match=r"a data process has ended while it read .*jsonl:\d+ or one of"),
    ):
        next(loader)


# ---- processes ----


@pytest.mark.distributed
def test_processes_have_one_thread_and_are_gone_after_close(sources, processor):
    before = os.environ.get("OMP_NUM_THREADS")
    others = set(multiprocessing.active_children())
    loader = make_loader(sources, processor, num_workers=2)
    next(loader)
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 2
    for worker in workers:
        assert b"OMP_NUM_THREADS=1\0" in Path(f"/proc/{worker.pid}/environ").read_bytes() + b"\0"
    assert os.environ.get("OMP_NUM_THREADS") == before
    loader.close()
    assert set(multiprocessing.active_children()) == others
    assert all(not worker.is_alive() for worker in workers)
    with pytest.raises(StopIteration):
        next(loader)
    loader.close()


@pytest.mark.distributed
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks processes up in /proc")
def test_processes_end_with_a_killed_parent(tmp_path, tokenizer_folders):
    """The parent is killed without a chance to close anything."""
    data = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}] * 3)
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(f"""
            import multiprocessing, os, signal
            from paddlemix_vl2.data import BatchLoader, Mixture, SourceSpec, open_source
            from paddlemix_vl2.processing import DeepseekTokenizer, DeepseekVLV2Processor

            if __name__ == "__main__":
                tokenizer = DeepseekTokenizer.from_pretrained({str(tokenizer_folders["128k"])!r})
                source = open_source(SourceSpec("text", {str(data)!r}))
                processor = DeepseekVLV2Processor(tokenizer, [(56, 56)])
                settings = dict(batch_size=1, sequence_length=9, num_workers=1)
                loader = BatchLoader([source], Mixture([3], [1]), processor, **settings)
                next(loader)
                print(*[child.pid for child in multiprocessing.active_children()], flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # To a file: the workers hold the pipe of the output open, and waiting for its end would wait for them.
    with (tmp_path / "pids").open("w") as output:
        subprocess.run([sys.executable, str(script)], stdout=output, env=environment, timeout=120)
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 1
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(is_running(pid) for pid in pids)


def is_running(pid: str) -> bool:
    """Whether a process is there and not merely waiting for its parent to take note of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# ---- arguments and other sources ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"num_workers": -1}, "num_workers is -1; it must be at least 0"),
        ({"rank": 2, "world_size": 2}, "rank is 2; with world_size 2 it must be 0 to 1"),
        ({"overlong": "cut"}, "overlong is 'cut'"),
    ],
)
def test_bad_arguments(sources, processor, settings, message):
    with pytest.raises(ValueError, match=message):
        make_loader(sources, processor, **settings)


def test_a_mixture_of_other_sources(sources, processor):
    with pytest.raises(ValueError, match=r"the mixture is over lengths \[3\]; the sources have \[17, 5\]"):
        BatchLoader(sources, Mixture([3], [1]), processor, batch_size=1, sequence_length=9)


def test_synthetic_pictures_and_files_together(processor, tmp_path):
    rendered = open_source(SourceSpec("synthetic", task="scene", size=50))
    assert len(rendered) == 50 and rendered.place(3) == "synthetic scene/train 3"
    assert rendered[3].conversation.images and rendered[3].place == "synthetic scene/train 3"
    with pytest.raises(IndexError):
        rendered[50]
    write_picture(tmp_path / "a.png", 20, 20)
    talks = open_source(
        SourceSpec("messages", str(write_jsonl(tmp_path / "t.jsonl", [{"messages": ask("a", "b", "a.png")}])))
    )
    mixture = Mixture([len(rendered), len(talks)], [3, 1], seed=5)
    for _, meta in take([rendered, talks], processor, 3, sequence_length=1000, packing=True):
        assert {mixture[number][0] for row in meta.sample_indices for number in row} == {0, 1}


def test_unknown_synthetic_task():
    with pytest.raises(ValueError, match="source 'x': no task 'x'"):
        open_source(SourceSpec("synthetic", task="x"))
