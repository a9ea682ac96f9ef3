"""The sampler against numpy in float64, and its promises: reproducible, row by row, nothing global."""

import math

import numpy as np
import paddle
import pytest
from paddlenlp.generation.logits_process import RepetitionPenaltyLogitsProcessor

from paddlemix_vl2.generation.sampling import Sampler, SamplingParameters

VOCABULARY = 40


def make_logits(rows=1, vocabulary=VOCABULARY, scale=2.0, seed=0):
    return np.random.default_rng(seed).normal(0, scale, (rows, vocabulary)).astype("float32")


def processed_distribution(logits, temperature=1.0, top_k=0, top_p=1.0):
    """float64 [V] by the definition: loops over the tokens, most likely first."""
    scaled = logits.astype("float64") / temperature
    order = sorted(range(len(scaled)), key=lambda token: -scaled[token])
    kept = order[: top_k or None]
    weights = {token: math.exp(scaled[token] - scaled[order[0]]) for token in kept}
    total, reached, nucleus = sum(weights.values()), 0.0, []
    for token in kept:
        nucleus.append(token)
        reached += weights[token] / total
        if reached >= top_p:
            break
    mass = sum(weights[token] for token in nucleus)
    result = np.zeros(len(scaled))
    for token in nucleus:
        result[token] = weights[token] / mass
    return result


def draw_many(logits, steps, rows, **parameters):
    """Many independent samples from one row of logits [V]: ids and log-probabilities, both [rows * steps]."""
    sampler = Sampler(SamplingParameters(do_sample=True, **parameters), rows)
    tiled = paddle.to_tensor(np.tile(logits, (rows, 1)))
    draws = [sampler.next_token(tiled) for _ in range(steps)]
    return tuple(np.concatenate([part[i].numpy() for part in draws]) for i in (0, 1))


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"temperature": 0.4},
        {"top_k": 5},
        {"top_p": 0.7},
        {"top_k": 6, "top_p": 0.8, "temperature": 1.7},
        {"top_p": 1e-6},
        {"top_k": 1},
        {"top_k": VOCABULARY + 5, "top_p": 0.999},
    ],
    ids=str,
)
def test_draws_follow_the_processed_distribution(parameters):
    logits = make_logits()[0]
    expected = processed_distribution(logits, **parameters)
    ids, log_probs = draw_many(logits, steps=70, rows=300, seed=1, **parameters)
    assert (expected[ids] > 0).all(), "a token was drawn that top-k or top-p exclude"
    # float32 arithmetic on probabilities; their logarithms are at most about 10 here.
    np.testing.assert_allclose(log_probs, np.log(expected[ids]), atol=1e-5)
    counts = np.bincount(ids, minlength=VOCABULARY)
    drawn = expected > 0
    deviations = (counts - len(ids) * expected)[drawn] / np.sqrt(len(ids) * expected[drawn])
    # Chi-square with at most n degrees of freedom: mean n, standard deviation sqrt(2 n); five of these.
    n = int(drawn.sum())
    assert (deviations**2).sum() < n + 5 * math.sqrt(2 * n)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3), (0.875, 3), (0.9, 4), (1.0, 4)]
)
def test_top_p_keeps_the_token_that_reaches_it(top_p, kept):
    """Probabilities 1/2, 1/4, 1/8, 1/8 are exact in float32, so the borders are too."""
    logits = np.log(np.array([0.125, 0.5, 0.25, 0.125], "float32"))
    ids, _ = draw_many(logits, steps=20, rows=40, seed=3, top_p=top_p)
    assert len(set(ids)) == kept
    assert 1 in ids


def test_top_k_keeps_exactly_k_tokens_also_on_ties():
    ids, log_probs = draw_many(np.zeros(VOCABULARY, "float32"), steps=20, rows=40, seed=0, top_k=3)
    assert len(set(ids)) == 3
    np.testing.assert_allclose(log_probs, math.log(1 / 3), rtol=1e-6)


def test_a_draw_inverts_the_cumulative_distribution_with_one_number_per_row_and_step():
    logits, seed, steps = make_logits(3), 11, 70
    sampler = Sampler(SamplingParameters(do_sample=True, seed=seed), 3)
    drawn = np.stack([sampler.next_token(paddle.to_tensor(logits))[0].numpy() for _ in range(steps)], axis=1)
    for row in range(3):
        numbers = np.random.default_rng([seed, row]).random(steps, dtype=np.float32)
        cumulative = processed_distribution(logits[row]).cumsum()
        assert drawn[row].tolist() == np.searchsorted(cumulative, numbers, side="right").tolist()


def test_the_whole_vocabulary_is_reached_evenly():
    """Adding 129,280 equal numbers in float32 errs by less than 1 in 1,000."""
    vocabulary, seed, steps = 129280, 2, 20
    sampler = Sampler(SamplingParameters(do_sample=True, seed=seed), 1)
    flat = paddle.zeros([1, vocabulary])
    drawn = [int(sampler.next_token(flat)[0]) for _ in range(steps)]
    numbers = np.random.default_rng([seed, 0]).random(steps, dtype=np.float32)
    np.testing.assert_allclose(drawn, numbers * vocabulary, rtol=0, atol=130)


@pytest.mark.parametrize("scale", [0.1, 3.0], ids=["flat", "peaked"])
def test_top_p_over_a_large_vocabulary(scale):
    """Peaked logits are decided by the short list of likely tokens, flat ones by the full sort."""
    logits = make_logits(2, 129280, scale)
    sampler = Sampler(SamplingParameters(do_sample=True, top_p=0.9, temperature=0.7, seed=4), 2)
    expected = [processed_distribution(row, temperature=0.7, top_p=0.9) for row in logits]
    for _ in range(10):
        ids, log_probs = sampler.next_token(paddle.to_tensor(logits))
        for row in range(2):
            # The flat nucleus has 100,000 tokens; float32 sums may move its border by a few of them.
            assert math.exp(float(log_probs[row])) == pytest.approx(expected[row][int(ids[row])], rel=1e-3)


def test_greedy_takes_the_best_token_and_tells_its_probability():
    logits = make_logits(3)
    ids, log_probs = Sampler(SamplingParameters(temperature=0.1, top_k=2), 3).next_token(
        paddle.to_tensor(logits)
    )
    assert ids.dtype == paddle.int64 and log_probs.dtype == paddle.float32
    assert ids.tolist() == logits.argmax(-1).tolist()
    expected = [math.log(processed_distribution(row).max()) for row in logits]
    np.testing.assert_allclose(log_probs.numpy(), expected, atol=1e-5)


def test_a_temperature_close_to_zero_is_greedy():
    logits = make_logits(2, scale=30.0)
    ids, log_probs = Sampler(SamplingParameters(True, temperature=1e-30), 2).next_token(
        paddle.to_tensor(logits)
    )
    assert ids.tolist() == logits.argmax(-1).tolist()
    assert log_probs.tolist() == [0.0, 0.0]


def test_sixteen_bit_logits_are_computed_in_float32():
    logits = paddle.to_tensor(make_logits(2)).astype("bfloat16")
    exact = Sampler(SamplingParameters(), 2).next_token(logits.astype("float32"))
    result = Sampler(SamplingParameters(), 2).next_token(logits)
    assert result[1].tolist() == exact[1].tolist()


def penalised(logits, said, penalty):
    result = logits.astype("float64").copy()
    for row, tokens in enumerate(said):
        for token in set(tokens):
            result[row, token] *= penalty if result[row, token] < 0 else 1 / penalty
    return result


def test_repetition_penalty_counts_prompt_and_answer_but_not_what_the_mask_excludes():
    logits, penalty = make_logits(2), 1.5
    best = logits.argmax(-1)
    prompt = np.array([[best[0], 3, 3, 7], [best[1], 9, 0, 1]])
    mask = np.array([[True, True, True, False], [False, True, False, True]])
    sampler = Sampler(
        SamplingParameters(repetition_penalty=penalty), 2, paddle.to_tensor(prompt), paddle.to_tensor(mask)
    )
    said = [prompt[row][mask[row]].tolist() for row in range(2)]
    for _ in range(6):
        expected = penalised(logits, said, penalty)
        ids, log_probs = sampler.next_token(paddle.to_tensor(logits))
        assert ids.tolist() == expected.argmax(-1).tolist()
        exact = expected.max(-1) - np.log(np.exp(expected).sum(-1))
        np.testing.assert_allclose(log_probs.numpy(), exact, atol=1e-5)
        for row in range(2):
            said[row].append(int(ids[row]))


def test_repetition_penalty_agrees_with_paddlenlp_where_every_position_counts():
    logits, prompt = paddle.to_tensor(make_logits(2)), paddle.to_tensor([[1, 2, 2, 30], [5, 6, 39, 0]])
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(prompt, logits)
    ids, log_probs = Sampler(SamplingParameters(repetition_penalty=1.3), 2, prompt).next_token(logits)
    expected = Sampler(SamplingParameters(), 2).next_token(theirs)
    assert ids.tolist() == expected[0].tolist()
    assert log_probs.tolist() == expected[1].tolist()


def test_repetition_penalty_without_a_prompt_counts_the_answer():
    logits = paddle.to_tensor(np.array([[3.0, 2.5, 0.0]], "float32"))
    sampler = Sampler(SamplingParameters(repetition_penalty=2.0), 1)
    assert [int(sampler.next_token(logits)[0]) for _ in range(3)] == [0, 1, 0]


def test_masked_prompt_ids_may_lie_outside_the_vocabulary():
    prompt, mask = paddle.to_tensor([[VOCABULARY + 9, 2]]), paddle.to_tensor([[False, True]])
    sampler = Sampler(SamplingParameters(repetition_penalty=2.0), 1, prompt, mask)
    logits = make_logits()
    expected = penalised(logits, [[2]], 2.0).argmax(-1)
    assert sampler.next_token(paddle.to_tensor(logits))[0].tolist() == expected.tolist()


def sample_rows(logits, seed, steps=10):
    sampler = Sampler(SamplingParameters(do_sample=True, top_p=0.95, seed=seed), len(logits))
    return np.stack([sampler.next_token(paddle.to_tensor(logits))[0].numpy() for _ in range(steps)], axis=1)


def test_a_seed_reproduces_each_row_whatever_the_others_hold():
    one, two, three = make_logits(3)
    first = sample_rows(np.stack([one, two]), seed=5)
    assert (first == sample_rows(np.stack([one, two]), seed=5)).all()
    assert (first[1] == sample_rows(np.stack([three, two]), seed=5)[1]).all()
    assert (first[0] == sample_rows(one[None], seed=5)[0]).all()
    assert (first != sample_rows(np.stack([one, two]), seed=6)).any()
    same_prompt_twice = sample_rows(np.stack([one, one]), seed=5)
    assert (same_prompt_twice[0] != same_prompt_twice[1]).any()


def test_without_a_seed_draws_differ():
    logits = make_logits(scale=0.1)
    assert (sample_rows(logits, seed=None, steps=30) != sample_rows(logits, seed=None, steps=30)).any()


def test_the_global_generators_are_neither_used_nor_moved():
    logits = make_logits()
    paddle.seed(1)
    np.random.seed(1)
    expected = paddle.rand([3]).tolist(), np.random.rand()
    paddle.seed(1)
    np.random.seed(1)
    with_seed_one = sample_rows(logits, seed=7)
    assert (paddle.rand([3]).tolist(), np.random.rand()) == expected
    paddle.seed(2)
    assert (sample_rows(logits, seed=7) == with_seed_one).all()


@pytest.mark.parametrize(
    "parameters",
    [{}, {"do_sample": True}, {"do_sample": True, "top_k": 3, "top_p": 0.9}, {"repetition_penalty": 1.2}],
    ids=str,
)
def test_nothing_is_read_back_from_the_device(parameters, monkeypatch):
    """On the CPU, top-p over the whole vocabulary is the one exception: reading costs nothing there."""
    sampler = Sampler(SamplingParameters(**parameters), 2, paddle.to_tensor([[1], [2]]))
    logits = paddle.to_tensor(make_logits(2))

    def refuse(self, *args):
        raise AssertionError("a tensor was read")

    for name in ("numpy", "item", "tolist", "__float__", "__int__", "__bool__", "__array__"):
        monkeypatch.setattr(paddle.Tensor, name, refuse)
    for _ in range(3):
        sampler.next_token(logits)


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"temperature": 0}, "temperature is 0;"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_p": 0.0}, "top_p is 0.0;"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": None}, "top_p"),
        ({"top_k": -1}, "top_k is -1;"),
        ({"top_k": 2.5}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0;"),
        ({"repetition_penalty": True}, "repetition_penalty"),
        ({"seed": -3}, "seed is -3;"),
        ({"seed": 1.5}, "seed"),
    ],
    ids=str,
)
def test_values_out_of_range_are_named(parameters, name):
    with pytest.raises(ValueError, match=f"^{name}.*it must be"):
        SamplingParameters(**parameters)


def test_numpy_numbers_are_accepted():
    SamplingParameters(True, np.float32(0.5), np.int64(3), np.float64(0.9), np.float32(1.1), np.int64(4))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, SamplingParameters()),
        ({"temperature": 0, "top_p": 0.5}, SamplingParameters()),
        ({"top_k": 0}, SamplingParameters()),
        ({"seed": 3, "repetition_penalty": 1.2}, SamplingParameters(seed=3, repetition_penalty=1.2)),
        ({"temperature": 0.7}, SamplingParameters(True, 0.7)),
        ({"top_p": 0.9, "top_k": 0}, SamplingParameters(True, top_p=0.9)),
        ({"top_k": 5, "seed": 1}, SamplingParameters(True, top_k=5, seed=1)),
    ],
)
def test_what_asks_for_sampling(asked, expected):
    assert SamplingParameters.asked_for(**asked) == expected
