"""Rows that join and leave a filled cache answer as they do alone."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.models.layers import kv_cache
from paddlemix_vl2.models.layers.kv_cache import (
    CAPACITY_STEP,
    KeyValueCache,
    LatentCache,
    round_up_capacity,
)

CASES = ["mha_greedy", "mla_greedy"]
# Three prompts of unequal lengths and the tokens that follow them.
PROMPTS = [list(range(5, 17)), list(range(30, 35)), list(range(40, 61))]
FOLLOWING = [[7, 8, 9, 10, 11, 12], [60, 61, 62, 63, 64, 65], [21, 22, 23, 24, 25, 26]]
# Sums of float32 in another order: rows of a batch are multiplied in blocks, a row alone is not.
FLOAT32 = 2e-5
# Of the logits' spread: rounding to bfloat16 (2 ** -9) after another order of sums, through four layers.
BFLOAT16 = 0.1


def prefill(model, prompt, chunk_size=None):
    ids = paddle.to_tensor([prompt])
    batch = {"input_ids": ids, "attention_mask": paddle.ones_like(ids)}
    return model.prefill(batch, len(prompt), chunk_size)[1]


def step(model, cache, *tokens):
    """Logits [rows, V] after one more token of every row; a cache without room grows first."""
    if cache.length == cache.capacity:
        cache.select_rows(list(range(len(tokens))))
    return model.decode_step(paddle.to_tensor([[token] for token in tokens]), cache).numpy()


def alone(model, row):
    """The logits of a row behind each of its following tokens, [6, V]."""
    cache = prefill(model, PROMPTS[row])
    return np.concatenate([step(model, cache, token) for token in FOLLOWING[row]])


def together(model):
    """The same for the three rows: the second joins after two steps, the third after three (it is longer, so
    that the others move); the first leaves, then the third, so that padding is trimmed twice."""
    logits = [[], [], []]

    def run(cache, rows):
        tokens = [FOLLOWING[row][len(logits[row])] for row in rows]
        for row, found in zip(rows, step(model, cache, *tokens), strict=True):
            logits[row].append(found)

    cache = prefill(model, PROMPTS[0])
    run(cache, [0]), run(cache, [0])
    cache.append_rows(prefill(model, PROMPTS[1]))
    run(cache, [0, 1])
    cache.append_rows(prefill(model, PROMPTS[2], chunk_size=8))
    for _ in range(3):
        run(cache, [0, 1, 2])
    assert cache.length == 24 and cache.padding.tolist() == [6, 15, 0]
    cache.select_rows([2, 1])
    run(cache, [2, 1]), run(cache, [2, 1])
    cache.select_rows([1])
    assert cache.length == 11 and cache.key_mask is None, "what only the longest row needed is gone"
    logits[2].append(None)
    return [np.array(found[: 5 if row == 2 else 6]) for row, found in enumerate(logits)]


def compare(model, tolerance):
    for row, found in enumerate(together(model)):
        reference = alone(model, row)
        error = np.abs(found - reference[: len(found)]).max()
        assert error < tolerance * reference.std(), f"row {row}: {error}"


@pytest.mark.parametrize("case", CASES)
def test_rows_come_and_go(case, golden_model):
    compare(golden_model(case), FLOAT32)


@pytest.mark.parametrize("case", CASES)
def test_rows_come_and_go_on_the_kernels(case, native, golden):
    compare(
        DeepseekVLV2ForCausalLM.from_pretrained(golden / case, dtype="bfloat16", progress=False), BFLOAT16
    )


def test_the_other_cache_stays_as_it_is(golden_model):
    model = golden_model("mla_greedy")
    cache, other = prefill(model, PROMPTS[0]), prefill(model, PROMPTS[1])
    cache.append_rows(other)
    assert (other.length, other.capacity, other.padding.tolist()) == (5, 5, [0])
    assert np.array_equal(step(model, other, 7), step(model, prefill(model, PROMPTS[1]), 7))


def test_appending_rows_without_memory_changes_nothing(golden_model, monkeypatch):
    model = golden_model("mla_greedy")
    cache, other = prefill(model, PROMPTS[0]), prefill(model, PROMPTS[2])
    calls, moved = [], kv_cache._moved

    def fail_in_the_second_layer(*arguments):
        calls.append(arguments)
        if len(calls) == 3:  # two buffers are moved per layer: the own one and the other's
            raise MemoryError("no room")
        return moved(*arguments)

    monkeypatch.setattr(kv_cache, "_moved", fail_in_the_second_layer)
    with pytest.raises(MemoryError):
        cache.append_rows(other)
    monkeypatch.undo()
    assert np.array_equal(step(model, cache, 7), step(model, prefill(model, PROMPTS[0]), 7))


@pytest.mark.parametrize("case", CASES)
def test_buffers_by_hand(case, golden_model):
    """Zeros where a row moved away from, its numbers unchanged, room up to the next step of the capacity."""
    model = golden_model(case)
    cache, other = prefill(model, PROMPTS[1]), prefill(model, PROMPTS[0])
    before = [[buffer.numpy() for buffer in layer.buffers] for layer in (*cache.layers, *other.layers)]
    cache.append_rows(other)
    assert cache.length == 12 and cache.capacity == CAPACITY_STEP == cache.layers[0].capacity
    assert cache.key_mask.astype("int64").sum(axis=1).tolist() == [CAPACITY_STEP - 7, CAPACITY_STEP]
    axis = cache.layers[0].position_axis
    for layer, own, theirs in zip(cache.layers, before, before[len(cache.layers) :], strict=False):
        for buffer, short, long in zip(layer.buffers, own, theirs, strict=True):
            rows = np.moveaxis(buffer.numpy(), axis, 1)
            assert not rows[0, :7].any() and not rows[:, 12:].any()
            assert np.array_equal(rows[0, 7:12], np.moveaxis(short, axis, 1)[0])
            assert np.array_equal(rows[1, :12], np.moveaxis(long, axis, 1)[0])


def test_a_full_cache_grows_by_a_step(golden_model):
    model = golden_model("mla_greedy")
    prompt = [5 + i % 80 for i in range(CAPACITY_STEP)]
    cache = prefill(model, prompt)
    with pytest.raises(ValueError, match="256 positions, 256 of them filled"):
        model.decode_step(paddle.to_tensor([[7]]), cache)
    grown = step(model, cache, 7)
    assert cache.capacity == 2 * CAPACITY_STEP == round_up_capacity(CAPACITY_STEP)
    ids = paddle.to_tensor([[*prompt, 7]])
    whole = model(input_ids=ids).logits[:, -1].numpy()
    assert np.abs(grown - whole).max() < FLOAT32 * whole.std()


@pytest.mark.parametrize(
    ("cache_class", "shape", "parts"), [(LatentCache, [2, 3, 8], 1), (KeyValueCache, [2, 4, 3, 8], 2)]
)
def test_a_first_write_is_given_back_as_it_is(cache_class, shape, parts):
    """Whatever the cache keeps; later ones come from the cache, in the dtype of what is written."""
    cache, new = cache_class(6, "bfloat16"), [paddle.rand(shape) for _ in range(parts)]
    found = cache.append(0, *new)
    for given, kept in zip(new, found if parts == 2 else [found], strict=True):
        assert kept is given
    assert all(buffer.dtype == paddle.bfloat16 for buffer in cache.buffers) and cache.length == 3
    found = cache.append(3, *new)
    for given, kept in zip(new, found if parts == 2 else [found], strict=True):
        assert kept.dtype == paddle.float32 and kept.shape[cache.position_axis] == 6
        rounded = given.astype("bfloat16").astype("float32")
        halves = kept.split(2, axis=cache.position_axis)
        assert all(np.array_equal(half.numpy(), rounded.numpy()) for half in halves)


def test_the_halves_of_kv_b_are_made_once_for_a_cache():
    cache, made = LatentCache(4), []

    def make():
        made.append(1)
        return paddle.ones([1]), paddle.zeros([1])

    assert cache.absorbed(make) is cache.absorbed(make) and made == [1]


@pytest.mark.parametrize(("cache_class", "parts"), [(LatentCache, 1), (KeyValueCache, 2)])
def test_a_write_beyond_the_capacity_makes_room(cache_class, parts):
    cache = cache_class(4)
    axis, shape = cache.position_axis, [2, 3, 3, 5] if parts == 2 else [2, 3, 5]
    first, second = ([paddle.rand(shape) for _ in range(parts)] for _ in range(2))
    cache.append(0, *first)
    assert cache.capacity == 4
    found = cache.append(3, *second)
    assert cache.capacity == cache.length == 6
    for one, before, behind in zip(found if parts == 2 else [found], first, second, strict=True):
        assert np.array_equal(one.numpy(), paddle.concat([before, behind], axis=axis).numpy())


def test_a_cache_knows_whether_it_is_padded(golden_model):
    model = golden_model("mla_greedy")
    assert not model.new_cache([0, 0], 3, 5).is_padded
    assert model.new_cache([0, 1], 3, 5).is_padded
