"""Both kinds of attention, called as layers: every mask, with and without a cache."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.models.layers.attention import DeepseekV2Attention, MultiHeadAttention, attention_class
from paddlemix_vl2.models.layers.attention_mask import CausalMask, cache_mask, padding_mask, segment_mask
from paddlemix_vl2.models.layers.execution import ExecutionConfig
from paddlemix_vl2.models.layers.kv_cache import KeyValueCache, LatentCache, ModelCache

BATCH, LENGTH, PADDING = 2, 9, (3, 0)
# float32 sums in another order, of values of order one.
CLOSE = 1e-5
KINDS = {
    "latent": {"use_mla": True, "q_lora_rank": None},
    "latent with a low-rank query": {"use_mla": True, "q_lora_rank": 24},
    "multi-head": {"use_mla": False},
}
CLASSES = {True: (DeepseekV2Attention, LatentCache), False: (MultiHeadAttention, KeyValueCache)}


@pytest.fixture(params=KINDS)
def config(request, language_config):
    return language_config(num_attention_heads=4, num_key_value_heads=4, **KINDS[request.param])


@pytest.fixture(params=[False, True], ids=["blocked", "fused"])
def layer(request, config):
    """With both functions that attend: on the CPU Paddle's fused one computes plainly."""
    paddle.seed(0)
    layer = attention_class(config)(config, 0, ExecutionConfig(fused_attention=request.param))
    layer.eval()
    with paddle.no_grad():
        yield layer


@pytest.fixture
def hidden_states(config):
    paddle.seed(1)
    return paddle.randn([BATCH, LENGTH, config.hidden_size])


def distance(one, other) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max())


def position_ids(padding=PADDING, length=LENGTH):
    return paddle.to_tensor(np.maximum(np.arange(length) - np.array(padding)[:, None], 0))


def by_hand(layer, hidden_states, visible, positions) -> paddle.Tensor:
    """Whole-matrix attention in float64 of the layer's own queries, keys and values; queries that see nothing
    are even over all keys."""
    rotated = layer.rotary.lookup(positions, hidden_states.shape[1], layer.num_heads)
    expanded = layer.expand(*layer.project(hidden_states, rotated), None, 0)
    queries, keys, values = (x.numpy().astype(np.float64) for x in expanded)
    scores = np.einsum("btnd,bsnd->bnts", queries, keys) * layer.scale
    blind = ~visible.any(axis=-1, keepdims=True)[:, None]
    scores = np.where(blind, 0, np.where(visible[:, None], scores, -np.inf))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = np.einsum("bnts,bsnd->btnd", weights / weights.sum(axis=-1, keepdims=True), values)
    return layer.o_proj(paddle.to_tensor(mixed.astype(np.float32)).flatten(start_axis=2))


def causal(length=LENGTH):
    return np.repeat(np.tri(length, dtype=bool)[None], BATCH, axis=0)


def test_the_kind_of_a_config(layer, config):
    assert (type(layer), layer.cache_class) == CLASSES[config.use_mla]


def test_causal(layer, hidden_states):
    output, weights, cache = layer(hidden_states)
    assert weights is None and cache is None
    expected = by_hand(layer, hidden_states, causal(), position_ids((0, 0)))
    assert distance(output, expected) < CLOSE
    assert distance(layer(hidden_states, CausalMask())[0], expected) < CLOSE


def test_padded(layer, hidden_states):
    """Padded queries attend evenly over the whole sequence, as published."""
    mask = paddle.to_tensor([[0] * 3 + [1] * 6, [1] * 9])
    output, *_ = layer(hidden_states, mask, position_ids())
    visible = causal() & mask.numpy().astype(bool)[:, None]
    expected = by_hand(layer, hidden_states, visible, position_ids())
    assert distance(output, expected) < CLOSE
    assert distance(layer(hidden_states, padding_mask(PADDING, LENGTH), position_ids())[0], output) < CLOSE
    assert distance(output[:1, 0], output[:1, 2]) < CLOSE, "all of them the same average"
    alone, *_ = layer(hidden_states[:1, 3:])
    assert distance(output[:1, 3:], alone) < CLOSE


def test_a_tensor_that_is_added_to_the_scores(layer, hidden_states):
    visible = causal()
    visible[0, :, :3] = False
    added = paddle.to_tensor(np.where(visible, 0, np.finfo(np.float32).min).astype(np.float32)[:, None])
    output, *_ = layer(hidden_states, added, position_ids())
    assert distance(output, by_hand(layer, hidden_states, visible, position_ids())) < CLOSE
    for_all, *_ = layer(hidden_states, added[1:])
    assert distance(for_all, layer(hidden_states)[0]) < CLOSE


def test_segments(layer, hidden_states):
    """Samples of 4 and 5, and of 9: each gets what it gets alone."""
    positions = paddle.to_tensor([[*range(4), *range(5)], [*range(9)]])
    output, *_ = layer(hidden_states, segment_mask([4, 5, 9]), positions)
    visible = causal()
    visible[0, 4:, :4] = False
    assert distance(output, by_hand(layer, hidden_states, visible, positions)) < CLOSE
    for row, first, last in ((0, 0, 4), (0, 4, 9), (1, 0, 9)):
        alone, *_ = layer(hidden_states[row : row + 1, first:last])
        assert distance(output[row : row + 1, first:last], alone) < CLOSE
    if not layer.execution.fused_attention:  # which has the whole matrix as its mask
        with pytest.raises(ValueError, match="packed rows are not given"):
            layer(hidden_states, segment_mask([4, 5, 9]), positions, output_attentions=True)


@pytest.mark.parametrize("padding", [(0, 0), PADDING])
def test_decode(padding, layer, config, hidden_states):
    """The last position as a step over the cache of the others."""
    mask = paddle.to_tensor((np.arange(LENGTH) >= np.array(padding)[:, None]).astype(np.int64))
    whole, *_ = layer(hidden_states, mask, position_ids(padding))
    cache = ModelCache(config, padding, LENGTH, capacity=12)
    positions = cache.next_positions(LENGTH - 1)
    prompt, *_ = layer(hidden_states[:, :-1], mask[:, :-1], positions, cache.layers[0])
    # Padded queries are even over the keys so far, which are fewer by one.
    assert distance(prompt[:, max(padding) :], whole[:, max(padding) : -1]) < CLOSE
    cache.length = LENGTH - 1
    step, *_ = layer(hidden_states[:, -1:], cache_mask(cache, 1), cache.next_positions(1), cache.layers[0])
    assert distance(step, whole[:, -1:]) < CLOSE
    assert cache.layers[0].length == LENGTH


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("padding", [(0, 0), PADDING])
def test_chunks(padding, size, layer, hidden_states):
    """Behind a cache that the layer makes and gives back itself."""
    mask = paddle.to_tensor((np.arange(LENGTH) >= np.array(padding)[:, None]).astype(np.int64))
    positions = position_ids(padding)
    whole, *_ = layer(hidden_states, mask, positions)
    cache, parts = None, []
    for first in range(0, LENGTH, size):
        here = slice(first, first + size)
        options = {"past_key_value": cache, "use_cache": True}
        output, _, cache = layer(
            hidden_states[:, here], mask[:, : first + size], positions[:, here], **options
        )
        parts.append(output)
    assert type(cache) is layer.cache_class and cache.length == LENGTH
    together = paddle.concat(parts, axis=1)
    for row, front in enumerate(padding):
        assert distance(together[row, front:], whole[row, front:]) < CLOSE
    assert bool(paddle.isfinite(together).all())


def test_positions_continue_behind_a_cache(layer, hidden_states):
    whole, *_ = layer(hidden_states)
    _, _, cache = layer(hidden_states[:, :5], use_cache=True)
    rest, _, same = layer(hidden_states[:, 5:], past_key_value=cache, use_cache=True)
    assert same is cache and distance(rest, whole[:, 5:]) < CLOSE
    assert layer(hidden_states[:, :1], past_key_value=cache)[2] is None, "given back where it is asked for"


def test_weights(layer, hidden_states):
    output, weights, _ = layer(hidden_states, output_attentions=True)
    assert weights.shape == [BATCH, layer.num_heads, LENGTH, LENGTH]
    assert np.allclose(weights.sum(axis=-1).numpy(), 1, atol=CLOSE)
    # Paddle's exponential of the smallest numbers is not quite zero.
    assert weights.numpy()[:, :, ~np.tri(LENGTH, dtype=bool)].max() < 1e-20
    assert distance(output, layer(hidden_states)[0]) == 0


@pytest.mark.parametrize("mask", [[[1] * 6 + [0] * 3], [[1] * 8]])
def test_masks_that_are_none(mask, layer, hidden_states):
    with pytest.raises(ValueError, match="attention_mask"):
        layer(hidden_states[:1], paddle.to_tensor(mask))


def test_gradients(config, hidden_states):
    """Of what is learned, and of the input, in padded and packed rows."""
    layer = attention_class(config)(config, 0)
    for mask in (padding_mask(PADDING, LENGTH), segment_mask([4, 5, 9])):
        inputs = hidden_states.clone()
        inputs.stop_gradient = False
        layer(inputs, mask, position_ids())[0].square().sum().backward()
        assert float(inputs.grad.abs().min(axis=-1).max()) > 0
        assert all(float(parameter.grad.abs().sum()) > 0 for parameter in layer.parameters())
        layer.clear_gradients()
