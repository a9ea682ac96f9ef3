"""The compiled kernels against numpy in float64; skipped where they cannot be compiled."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.kernels import ops
from paddlemix_vl2.kernels.ops import PackedExperts, PackedVisionBlock, pack
from paddlemix_vl2.models.layers.kv_cache import KeyValueCache, LatentCache

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
    found = ops.linear(paddle.to_tensor(hidden), matrix, paddle.to_tensor(bias)).numpy()
    expected = hidden.astype("float64") @ weight + bias
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < TOLERANCE[int8]


def test_weights_that_bfloat16_holds_are_exact(native):
    """A matrix of powers of two: nothing is rounded, so every element is at its place."""
    weight = 2.0 ** np.random.default_rng(0).integers(-3, 4, (70, 100)).astype("float32")
    for rows in (1, 70):
        identity = np.eye(70, dtype="float32")[:rows]
        found = ops.linear(paddle.to_tensor(identity), pack(paddle.to_tensor(weight)))
        assert np.array_equal(found.numpy(), weight[:rows])


@pytest.mark.parametrize("int8", [False, True], ids=["bfloat16", "int8"])
@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_experts(tokens, int8, native):
    """Every token's own experts, weighted; one expert that no token chose."""
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
    found = ops.attention(*map(paddle.to_tensor, (q, k, v)), 0.2, start).numpy()
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
    found = ops.attention(*map(paddle.to_tensor, (scores, keys, keys)), 1.0).numpy()
    rounded = paddle.to_tensor(scores).astype("bfloat16").astype("float64").numpy()
    weights = np.exp(rounded - rounded.max(-1, keepdims=True))
    assert np.abs(found - weights / weights.sum(-1, keepdims=True)).max() < 2**-8


def rotated(x, cos, sin, neighbours):
    """float32 [B, 1, N, D] and [B, D / 2] -> the halves of each head, turned, in float64."""
    half = x.shape[-1] // 2
    first, second = (x[..., ::2], x[..., 1::2]) if neighbours else (x[..., :half], x[..., half:])
    cos, sin = cos[:, None, None], sin[:, None, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype("float64")


def rotary_of(angles, heads):
    tables = [np.repeat(f(angles)[:, None, None], heads, axis=2) for f in (np.cos, np.sin)]
    return tuple(paddle.to_tensor(table.astype("float32")) for table in tables)


BATCH, CAPACITY, POSITION = 2, 9, 6
MASK = np.arange(CAPACITY) >= np.array([[0], [2]])  # the second sequence has two positions of padding


@pytest.mark.parametrize("masked", [False, True])
def test_a_step_of_multi_head_attention(masked, native):
    heads, width = 3, 40
    q, k, v = (random(BATCH, 1, heads, width, seed=i) for i in range(3))
    angles = random(BATCH, width // 2, seed=3)
    cache = KeyValueCache(CAPACITY, "bfloat16")
    old = [random(BATCH, heads, POSITION, width, seed=4 + i) for i in range(2)]
    cache.write(0, *map(paddle.to_tensor, old))
    mask = paddle.to_tensor(MASK) if masked else None
    place = (rotary_of(angles, heads), (cache.keys, cache.values), POSITION, mask, 0.3)
    found = ops.multi_head_step(*map(paddle.to_tensor, (q, k, v)), *place).numpy()

    turned = [rotated(x, np.cos(angles), np.sin(angles), neighbours=False) for x in (q, k)]
    for sequence in range(BATCH):
        seen = MASK[sequence, : POSITION + 1] | (not masked)
        keys = np.concatenate([old[0][sequence], turned[1][sequence].transpose(1, 0, 2)], 1)[:, seen]
        values = np.concatenate([old[1][sequence], v[sequence].transpose(1, 0, 2)], 1)[:, seen]
        arguments = (x.transpose(1, 0, 2)[None] for x in (keys, values))
        expected = attention_in_float64(turned[0][sequence][None], *arguments, 0.3)[0]
        assert np.abs(found[sequence] - expected).max() < 0.02
    stored = cache.keys.astype("float32").numpy()
    assert np.abs(stored[:, :, POSITION] - turned[1][:, 0]).max() < 0.02
    assert not stored[:, :, POSITION + 1 :].any()


@pytest.mark.parametrize("masked", [False, True])
def test_a_step_of_latent_attention(masked, native):
    """Against keys and values of every head, which the absorbed form does not make."""
    heads, nope, rope, rank, value_width = 2, 20, 8, 136, 24
    queries, latents = random(BATCH, 1, heads, nope + rope), random(BATCH, 1, rank + rope, seed=1, scale=3.0)
    norm, angles = 1 + random(rank, seed=2, scale=0.1), random(BATCH, rope // 2, seed=3)
    key_weight = random(heads, nope, rank, seed=4, scale=rank**-0.5)
    value_weight = random(heads, rank, value_width, seed=5, scale=rank**-0.5)
    old = random(BATCH, POSITION, rank + rope, seed=6)
    cache = LatentCache(CAPACITY, "bfloat16")
    cache.write(0, paddle.to_tensor(old))
    absorbed = tuple(paddle.to_tensor(x).astype("bfloat16") for x in (key_weight, value_weight))
    mask = paddle.to_tensor(MASK) if masked else None
    place = (rotary_of(angles, heads), cache.latents, absorbed, POSITION, mask, 0.3)
    inputs = (paddle.to_tensor(queries), paddle.to_tensor(latents), (paddle.to_tensor(norm), 1e-6))
    found = ops.latent_step(*inputs, *place).numpy()

    tables = (np.cos(angles), np.sin(angles))
    turned = rotated(queries[..., nope:], *tables, neighbours=True)
    shared = rotated(latents[:, :, None, rank:], *tables, neighbours=True)[:, :, 0]
    latent = latents[..., :rank].astype("float64")
    latent = latent / np.sqrt((latent**2).mean(-1, keepdims=True) + 1e-6) * norm
    rows = np.concatenate([old, np.concatenate([latent, shared], -1)], 1)
    for sequence in range(BATCH):
        seen = rows[sequence][MASK[sequence, : POSITION + 1] | (not masked)]
        keys = np.einsum("sr,hdr->shd", seen[:, :rank], key_weight)
        repeated = np.repeat(seen[:, None, rank:], heads, 1)
        values = np.einsum("sr,hrv->shv", seen[:, :rank], value_weight)
        query = np.concatenate([queries[sequence, ..., :nope], turned[sequence]], -1)
        arguments = (np.concatenate([keys, repeated], -1)[None], values[None])
        expected = attention_in_float64(query[None], *arguments, 0.3)[0]
        assert np.abs(found[sequence] - expected).max() < 0.03
    assert np.abs(cache.latents.astype("float32").numpy()[:, : POSITION + 1] - rows).max() < 0.04


def test_sequences_that_share_one_position(native):
    """Cosines of one row for all sequences, as position ids [1, 1] give."""
    q, k, v = (paddle.to_tensor(random(BATCH, 1, 2, 8, seed=i)) for i in range(3))
    found = []
    for angles in (random(1, 4, seed=3), np.repeat(random(1, 4, seed=3), BATCH, 0)):
        cache = KeyValueCache(CAPACITY, "bfloat16")
        cache.write(0, *(paddle.to_tensor(random(BATCH, 2, 3, 8, seed=4 + i)) for i in range(2)))
        place = (rotary_of(angles, 2), (cache.keys, cache.values), 3, None, 0.3)
        found.append(ops.multi_head_step(q, k, v, *place).numpy())
    assert (found[0] == found[1]).all()


def test_broken_scores_are_not_hidden(native):
    q, k, v = (paddle.ones([1, 4, 1, 16]) for _ in range(3))
    k[0, 2] = float("nan")
    found = ops.attention(q, k, v, 1.0, start=0).numpy()
    assert np.isfinite(found[0, :2]).all() and np.isnan(found[0, 2:]).all()


def test_a_step_needs_a_cache_in_bfloat16(native):
    cache = KeyValueCache(4)
    cache.write(0, paddle.zeros([1, 1, 2, 8]), paddle.zeros([1, 1, 2, 8]))
    parts = [paddle.zeros([1, 1, 1, 8])] * 3
    with pytest.raises(ValueError, match="needs a cache in bfloat16"):
        cached = (cache.keys, cache.values)
        ops.multi_head_step(*parts, rotary_of(np.zeros((1, 4)), 1), cached, 2, None, 1.0)


def test_norms(native):
    hidden, weight, bias = random(6, 37), random(37, seed=1), random(37, seed=2)
    tensors = [paddle.to_tensor(x) for x in (hidden, weight, bias)]
    root = np.sqrt((hidden.astype("float64") ** 2).mean(-1, keepdims=True) + 1e-6)
    assert ops.rms_norm(*tensors[:2], 1e-6).numpy() == pytest.approx(hidden / root * weight, abs=1e-5)
    centred = hidden - hidden.astype("float64").mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * weight + bias
    assert ops.layer_norm(*tensors, 1e-6).numpy() == pytest.approx(expected, abs=1e-5)
