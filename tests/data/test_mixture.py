"""Sample indices: in proportion, each sample once per epoch, and the same from wherever one starts."""

from collections import Counter

import pytest

from paddlemix_vl2.data import Mixture


def take(mixture, numbers):
    return [mixture[number] for number in numbers]


def test_every_block_has_the_exact_proportions():
    mixture = Mixture([50, 7, 3000], [7, 2, 1], seed=3)
    for block in range(5):
        counts = Counter(source for source, _ in take(mixture, range(1000 * block, 1000 * block + 1000)))
        assert counts == {0: 700, 1: 200, 2: 100}


@pytest.mark.parametrize(
    "weights", [[1, 1, 1], [1e-4, 0.3, 0.7], [1, 1e3, 1e-9, 5, 5, 5, 1 / 3], [0, 1, 0.5]]
)
def test_rounding_never_adds_up(weights):
    mixture = Mixture([10] * len(weights), weights)
    counts = Counter()
    for block in range(30):
        in_block = Counter(source for source, _ in take(mixture, range(1000 * block, 1000 * block + 1000)))
        counts += in_block
        for source, weight in enumerate(weights):
            expected = weight / sum(weights) * 1000 * (block + 1)
            # Webster's method: each share is rounded, and the sum put right among the sources.
            assert abs(counts[source] - expected) <= len(weights) / 2
    assert counts[0] == 0 or weights[0] > 0


def test_far_blocks_are_as_good():
    mixture = Mixture([10, 10, 10], [1, 1, 1])
    start = 10**12 // 1000 * 1000
    counts = Counter(source for source, _ in take(mixture, range(start, start + 3000)))
    assert counts == {0: 1000, 1: 1000, 2: 1000}


def test_sources_are_shuffled_within_a_block():
    first, second = (
        [mixture[n][0] for n in range(1000)] for mixture in (Mixture([9, 9], [1, 1], seed) for seed in (1, 2))
    )
    assert first != second and first != sorted(first)


def test_each_epoch_has_every_sample_once_in_a_new_order():
    mixture = Mixture([37, 5], [1, 1], seed=1)
    items = [item for source, item in take(mixture, range(2000)) if source == 0]
    epochs = [items[i : i + 37] for i in range(0, 37 * 20, 37)]
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 20


def test_long_sources_are_read_in_order():
    mixture = Mixture([10**9, 10**9], [1, 1])
    for source in (0, 1):
        assert [item for s, item in take(mixture, range(1000)) if s == source] == list(range(500))


def test_a_sample_index_depends_on_its_number_only():
    lengths, weights = [37, 500, 10**9], [2, 1, 0.5]
    numbers = [5321, 4, 999, 1000, 2500, 5320, 0, 77777, 4]
    forward = dict(zip(sorted(numbers), take(Mixture(lengths, weights, 9), sorted(numbers)), strict=False))
    mixture = Mixture(lengths, weights, 9)
    assert take(mixture, numbers) == [Mixture(lengths, weights, 9)[number] for number in numbers]
    assert take(mixture, sorted(set(numbers))) == take(Mixture(lengths, weights, 9), sorted(set(numbers)))
    assert mixture[4] == forward[4]


def test_other_seeds_give_other_items():
    first, second = (take(Mixture([1000], [1], seed), range(50)) for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize(
    ("lengths", "weights", "message"),
    [
        ([], [], "0 length"),
        ([1, 2], [1], r"2 length\(s\) and 1 weight\(s\)"),
        ([1, 0], [1, 1], "source 1 is empty"),
        ([1, 2], [1, -1], "weight of source 1 is -1"),
        ([1, 2], [float("nan"), 1], "weight of source 0 is nan"),
        ([1, 2], [float("inf"), 1], "weight of source 0 is inf"),
        ([1, 2], [0, 0], "all weights are 0"),
    ],
)
def test_bad_mixtures(lengths, weights, message):
    with pytest.raises(ValueError, match=message):
        Mixture(lengths, weights)


def test_bad_seed_and_sample_index():
    with pytest.raises(ValueError, match="seed is -1"):
        Mixture([1], [1], -1)
    with pytest.raises(IndexError):
        Mixture([1], [1])[-1]
