"""The compiled kernels against numpy in float64; skipped where they cannot be compiled."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.models.engine import kernels
from paddlemix_vl2.models.engine.kernels import PackedExperts, PackedVisionBlock, pack

# Of values of about one: operands are rounded to 8 bits of mantissa, the errors of a sum partly cancel.
TOLERANCE = {False: 0.03, True: 0.08}


def random(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype("float32")


def silu(x):
    return x / (1 + np.exp(-x))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("int8", [False, True], ids=["bfloat16", "int8"])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 33])
@pytest.mark.parametrize("shape", [(64, 64), (70, 100), (129, 3), (1, 1)])
def test_linear(shape, rows, int8, native):
    """Few rows and many, widths that fill the blocks and that do not."""
    hidden, weight, bias = (
        random(rows, shape[0]),
        random(*shape, seed=1, scale=shape[0] ** -0.5),
        random(shape[1], seed=2),
    )
    matrix = pack(paddle.to_tensor(weight), int8)
    found = kernels.linear(paddle.to_tensor(hidden), matrix, paddle.to_tensor(bias)).numpy()
    expected = hidden.astype("float64") @ weight + bias
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < TOLERANCE[int8]


def test_weights_that_bfloat16_holds_are_exact(native):
    """A matrix of powers of two: nothing is rounded, so every element is at its place."""
    weight = 2.0 ** np.random.default_rng(0).integers(-3, 4, (70, 100)).astype("float32")
    for rows in (1, 70):
        identity = np.eye(70, dtype="float32")[:rows]
        found = kernels.linear(paddle.to_tensor(identity), pack(paddle.to_tensor(weight)))
        assert np.array_equal(found.numpy(), weight[:rows])


@pytest.mark.parametrize("int8", [False, True], ids=["bfloat16", "int8"])
@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_experts(tokens, int8, native):
    """Every token's own experts, weighted; one expert that nobody chose."""
    hidden_size, width, count, top_k = 96, 40, 5, 2
    layers = [
        (
            random(hidden_size, width, seed=3 * e, scale=0.1),
            random(hidden_size, width, seed=3 * e + 1, scale=0.1),
            random(width, hidden_size, seed=3 * e + 2, scale=0.16),
        )
        for e in range(count)
    ]
    packed = PackedExperts([tuple(pack(paddle.to_tensor(part), int8) for part in layer) for layer in layers])
    hidden = random(tokens, hidden_size, seed=99)
    rng = np.random.default_rng(5)
    chosen = np.stack([rng.permutation(count - 1)[:top_k] for _ in range(tokens)])
    weights = rng.random((tokens, top_k)).astype("float32")
    expected = np.ones((tokens, hidden_size))
    for token in range(tokens):
        for expert, weight in zip(chosen[token], weights[token], strict=True):
            gate, up, down = (part.astype("float64") for part in layers[expert])
            expected[token] += weight * ((silu(hidden[token] @ gate) * (hidden[token] @ up)) @ down)
    output = paddle.ones([tokens, hidden_size])
    packed.add_to(output, paddle.to_tensor(hidden), paddle.to_tensor(chosen), paddle.to_tensor(weights))
    assert np.abs(output.numpy() - expected).max() < TOLERANCE[int8]


def attention_in_float64(queries, keys, values, scale, start=None):
    scores = np.einsum("btnd,bsnd->bnts", queries.astype("float64"), keys) * scale
    if start is not None:
        hidden = np.arange(keys.shape[1]) > start + np.arange(queries.shape[1])[:, None]
        scores = np.where(hidden, -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnts,bsnd->btnd", weights / weights.sum(-1, keepdims=True), values)


@pytest.mark.parametrize(("queries", "start"), [(7, None), (7, 0), (5, 3), (300, 0), (260, 70)])
def test_attention(queries, start, native):
    """Whole and causal, behind earlier keys, with more queries than one block has, and wider values."""
    length = queries + (start or 0)
    q, k, v = random(2, queries, 3, 24), random(2, length, 3, 24, seed=1), random(2, length, 3, 16, seed=2)
    found = kernels.attention(*map(paddle.to_tensor, (q, k, v)), 0.2, start).numpy()
    assert np.abs(found - attention_in_float64(q, k, v, 0.2, start)).max() < 0.03


@pytest.mark.parametrize(("heads", "width", "inner"), [(4, 64, 100), (2, 144, 70)])
def test_a_block_of_the_vision_tower(heads, width, inner, native):
    """Two tiles of nine patches, which do not see each other."""
    shapes = [(width, 3 * width), (width, width), (width, inner), (inner, width)]
    matrices = [random(*shape, seed=i, scale=shape[0] ** -0.5) for i, shape in enumerate(shapes)]
    norms = [random(width, seed=10 + i, scale=0.1) + (i % 2 == 0) for i in range(4)]
    biases = [random(shape[1], seed=20 + i, scale=0.1) for i, shape in enumerate(shapes)]
    hidden = random(2, 9, width, seed=30)

    def normed(x, weight, bias):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * weight + bias

    mixed = normed(hidden.astype("float64"), *norms[:2]) @ matrices[0] + biases[0]
    q, k, v = (part.reshape(2, 9, heads, -1) for part in np.split(mixed, 3, axis=-1))
    attended = attention_in_float64(q, k, v, (width // heads) ** -0.5).reshape(hidden.shape)
    middle = hidden + attended @ matrices[1] + biases[1]
    inside = gelu_tanh(normed(middle, *norms[2:]) @ matrices[2] + biases[2])
    expected = middle + inside @ matrices[3] + biases[3]

    tensors = [paddle.to_tensor(vector) for vector in (*norms, *biases)]
    block = PackedVisionBlock([pack(paddle.to_tensor(x)) for x in matrices], tensors, heads, 1e-6)
    found = paddle.to_tensor(hidden)
    block(found)
    assert np.abs(found.numpy() - expected).max() < 0.08
    assert np.abs(found.numpy() - expected).mean() < 0.01


def test_weights_of_attention_over_many_scores(native):
    """Scores far apart and close together, and a number of keys that fills no register: softmax by itself."""
    scores = random(1, 5, 1, 37, scale=6.0)
    keys = np.eye(37, dtype="float32")[None, :, None]
    found = kernels.attention(*map(paddle.to_tensor, (scores, keys, keys)), 1.0).numpy()
    rounded = paddle.to_tensor(scores).astype("bfloat16").astype("float64").numpy()
    weights = np.exp(rounded - rounded.max(-1, keepdims=True))
    assert np.abs(found - weights / weights.sum(-1, keepdims=True)).max() < 2**-8


def test_norms(native):
    hidden, weight, bias = random(6, 37), random(37, seed=1), random(37, seed=2)
    tensors = [paddle.to_tensor(x) for x in (hidden, weight, bias)]
    root = np.sqrt((hidden.astype("float64") ** 2).mean(-1, keepdims=True) + 1e-6)
    assert kernels.rms_norm(*tensors[:2], 1e-6).numpy() == pytest.approx(hidden / root * weight, abs=1e-5)
    centred = hidden - hidden.astype("float64").mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * weight + bias
    assert kernels.layer_norm(*tensors, 1e-6).numpy() == pytest.approx(expected, abs=1e-5)
