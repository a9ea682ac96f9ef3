"""Ways of computing the same thing that must agree: alone or in a batch, cached or not, in chunks or at
once."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.models.decoder import DeepseekV2Model
from paddlemix_vl2.models.layers.attention import DeepseekV2Attention
from paddlemix_vl2.models.layers.attention_mask import DecodeMask, PaddedMask, cache_mask, padding_mask
from paddlemix_vl2.models.layers.execution import ExecutionConfig
from paddlemix_vl2.models.layers.kv_cache import ModelCache

CASES = ["mha_greedy", "mla_greedy", "mla_group_limited_yarn", "mla_noaux_tc_groups"]
# float32 sums over other lengths and block bounds; logits are of order 1.
CLOSE = 1e-4


@pytest.fixture
def alone(prompt_batch):
    """Row 0 of the recorded batch, without its padding and without the tiles of row 1."""
    start = int((prompt_batch["attention_mask"][0] == 0).sum())
    row = {key: value[:1] for key, value in prompt_batch.items()}
    for key in ("input_ids", "attention_mask", "images_seq_mask"):
        row[key] = row[key][:, start:]
    return {**row, "images": row["images"][:, :3], "images_spatial_crop": row["images_spatial_crop"][:, :1]}


@pytest.mark.slow
@paddle.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_alone_equals_padded_batch(case, golden_model, prompt_batch, alone):
    model = golden_model(case)
    length = alone["input_ids"].shape[1]
    assert length < prompt_batch["input_ids"].shape[1]
    in_batch = model(**prompt_batch).logits[:1, -length:]
    assert float((model(**alone).logits - in_batch).abs().max()) < CLOSE


@pytest.mark.parametrize("case", CASES)
def test_answer_alone_equals_answer_in_batch(case, golden_model, expected, alone):
    ids, _ = golden_model(case).generate(**alone, max_new_tokens=24, eos_token_id=[])
    assert np.array_equal(ids[0].numpy(), expected(case)["greedy_tokens"][0])


@pytest.mark.slow
@paddle.no_grad()
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk_size", [None, 1000, 257])
def test_cached_equals_uncached(case, chunk_size, golden_model, prompt_batch):
    """Logits of a prefill (whole or in chunks) and five decode steps against one pass over everything."""
    model, rows = golden_model(case), prompt_batch["input_ids"].shape[0]
    following = paddle.to_tensor([[7, 8, 9, 10, 11], [21, 20, 19, 18, 17]])
    logits, cache = model.prefill(prompt_batch, prompt_batch["input_ids"].shape[1] + 6, chunk_size)
    steps = [logits] + [model.decode_step(following[:, i : i + 1], cache) for i in range(5)]
    whole = dict(prompt_batch)
    whole["input_ids"] = paddle.concat([whole["input_ids"], following], axis=1)
    whole["attention_mask"] = paddle.concat(
        [whole["attention_mask"], paddle.ones([rows, 5], "int64")], axis=1
    )
    whole["images_seq_mask"] = paddle.concat(
        [whole["images_seq_mask"], paddle.zeros([rows, 5], "bool")], axis=1
    )
    uncached = model(**whole).logits[:, -6:]
    assert float((paddle.stack(steps, axis=1) - uncached).abs().max()) < CLOSE


@paddle.no_grad()
def test_forward_continues_a_cache(golden_model, prompt_batch):
    model = golden_model("mla_greedy")
    padding = (prompt_batch["attention_mask"] == 0).sum(axis=1).tolist()
    cache = model.new_cache(padding, prompt_length=1058, capacity=1060)
    first = model(**prompt_batch, past_key_values=cache)
    assert first.past_key_values is cache and cache.length == 1058
    tokens = paddle.to_tensor([[5], [6]])
    second = model(input_ids=tokens, past_key_values=cache).logits[:, 0]
    _, other = model.prefill(prompt_batch, capacity=1060)
    assert float((second - model.decode_step(tokens, other)).abs().max()) < CLOSE


@paddle.no_grad()
@pytest.mark.parametrize("q_lora_rank", [None, 24])
def test_expanded_equals_absorbed_attention(q_lora_rank, language_config):
    config = language_config(q_lora_rank=q_lora_rank)
    attention = DeepseekV2Attention(config, 0)
    hidden_states, padding = paddle.randn([2, 9, config.hidden_size]), [3, 0]
    cache = ModelCache(config, padding, prompt_length=9, capacity=12)
    positions = cache.next_positions(9)
    whole, *_ = attention(hidden_states, PaddedMask(padding_mask(padding, 9).key_mask), positions)
    attention(hidden_states[:, :8], PaddedMask(cache.key_mask), positions[:, :8], cache.layers[0])
    cache.length = 8
    mask = cache_mask(cache, 1)
    assert isinstance(mask, DecodeMask), "a single position on a filled cache takes the absorbed path"
    absorbed, *_ = attention(hidden_states[:, 8:], mask, positions[:, 8:], cache.layers[0])
    assert float((absorbed - whole[:, 8:]).abs().max()) < 1e-5


@paddle.no_grad()
def test_views_per_pass_do_not_matter(golden_model, recorded_batch, monkeypatch):
    model = golden_model("mla_greedy")
    views = recorded_batch["images"][1, :5]
    by_default = model.encode_views(views)
    monkeypatch.setattr(model, "max_views_per_pass", 16)
    at_once = model.encode_views(views)
    monkeypatch.setattr(model, "max_views_per_pass", 3)
    in_passes = model.encode_views(views)
    assert float((at_once - by_default).abs().max()) < 1e-5
    assert float((at_once - in_passes).abs().max()) < 1e-5


@paddle.no_grad()
def test_chunks_agree_under_dynamic_scaling(language_config):
    """The base depends on the length in use: every chunk must take that of the whole prompt."""
    config = language_config(rope_scaling={"type": "dynamic", "factor": 4.0}, max_position_embeddings=16)
    model = DeepseekV2Model(config)
    embeddings = paddle.randn([1, 40, config.hidden_size])
    whole = model(embeddings, paddle.arange(40).unsqueeze(0)).last_hidden_state
    cache = ModelCache(config, [0], prompt_length=40, capacity=40)
    chunks = [
        model(
            embeddings[:, first : first + 8], cache.next_positions(8), past_key_values=cache
        ).last_hidden_state
        for first in range(0, 40, 8)
    ]
    assert float((paddle.concat(chunks, axis=1) - whole).abs().max()) < CLOSE


@pytest.mark.slow
@paddle.no_grad()
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk_size", [None, 257])
def test_fused_attention_equals_blocks(case, chunk_size, golden_model, golden, prompt_batch):
    """A model made for a GPU's fused attention, which the CPU computes plainly: padded prompts and steps."""
    plain = golden_model(case)
    fused = type(plain)(plain.config, ExecutionConfig(fused_attention=True))
    fused.load_weights(golden / case)
    fused.eval()
    assert float((fused(**prompt_batch).logits - plain(**prompt_batch).logits).abs().max()) < CLOSE
    tokens, logits = paddle.to_tensor([[7], [21]]), []
    for model in (plain, fused):
        prompt, cache = model.prefill(prompt_batch, prompt_batch["input_ids"].shape[1] + 2, chunk_size)
        logits.append(paddle.stack([prompt, model.decode_step(tokens, cache)]))
    assert float((logits[0] - logits[1]).abs().max()) < CLOSE
