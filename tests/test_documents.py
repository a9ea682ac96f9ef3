"""The code that the documents behind this project show can be called as it is shown there, and it is the
classes that the model uses."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.config.language import DeepseekV2Config
from paddlemix_vl2.models.families.deepseek_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.models.layers.attention import DeepseekV2Attention
from paddlemix_vl2.models.moe.layer import DeepseekV2MoE
from paddlemix_vl2.models.moe.losses import Segments, sequence_balance_loss
from paddlemix_vl2.models.moe.routers import MoEGate
from paddlemix_vl2.processing import select_best_resolution

BATCH, LENGTH, HIDDEN = 2, 7, 32
ROUTERS = {
    "greedy": {},
    "group_limited_greedy": {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 16.0},
    "noaux_tc": {"scoring_func": "sigmoid", "norm_topk_prob": True, "n_group": 2, "topk_group": 1},
}


def config(**settings) -> DeepseekV2Config:
    """A small language model."""
    sizes = {
        "vocab_size": 64,
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "moe_intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "n_shared_experts": 2,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "kv_lora_rank": 16,
        "q_lora_rank": None,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
    }
    return DeepseekV2Config(**{**sizes, **settings})


@pytest.fixture
def hidden_states() -> paddle.Tensor:
    paddle.seed(5)
    return paddle.randn([BATCH, LENGTH, HIDDEN])


def test_select_best_resolution():
    candidates = [(384, 384), (384, 768), (768, 384), (768, 768)]
    assert select_best_resolution(image_size=(800, 400), candidate_resolutions=candidates) == (768, 384)


def test_tokenize_with_images_gives_five_values_in_order(demo_processor):
    image = demo_processor.tokenize_with_images(
        conversation="<image>\nRead the text.", images=["examples/images/drawn/words.png"], bos=True, eos=True
    )
    tokens, images_list, images_seq_mask, images_spatial_crop, num_image_tokens = image
    tokenizer = demo_processor.tokenizer
    assert (tokens[0], tokens[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    (views,), ((width, height),), (count,) = images_list, images_spatial_crop, num_image_tokens
    assert views.shape[0] == 1 + width * height
    assert sum(images_seq_mask) == count == tokens.count(tokenizer.image_token_id)
    whole = demo_processor.tokenize_with_images(
        conversation="<image>",
        images=["examples/images/drawn/words.png"],
        bos=False,
        eos=False,
        cropping=False,
    )
    assert whole.images_spatial_crop == [(1, 1)] and len(whole.input_ids) == whole.num_image_tokens[0]


@pytest.mark.parametrize("q_lora_rank", [None, 12])
def test_attention(hidden_states, q_lora_rank):
    """With a mask added to the scores, as the published model makes it, the weights are those that the
    output is made with; step by step over a cache it is the same."""
    attention = DeepseekV2Attention(config(q_lora_rank=q_lora_rank), layer_idx=0)
    attention.eval()
    lowest = paddle.finfo(paddle.float32).min
    mask = paddle.triu(paddle.full([LENGTH, LENGTH], lowest), diagonal=1)
    mask = mask.unsqueeze([0, 1]).expand([BATCH, 1, LENGTH, LENGTH])
    position_ids = paddle.arange(LENGTH).unsqueeze(0)
    attn_output, attn_weights, past_key_value = attention(
        hidden_states=hidden_states,
        attention_mask=mask,
        position_ids=position_ids,
        past_key_value=None,
        output_attentions=True,
        use_cache=True,
    )
    assert attn_output.shape == [BATCH, LENGTH, HIDDEN]
    assert attn_weights.shape == [BATCH, 4, LENGTH, LENGTH]
    assert np.allclose(attn_weights.sum(axis=-1).numpy(), 1.0, atol=1e-6)
    later = np.triu(np.ones([LENGTH, LENGTH]), k=1)
    assert (attn_weights.numpy() * later).max() < 1e-20
    causal, none, no_cache = attention(hidden_states)
    assert none is None and no_cache is None
    assert np.allclose(causal.numpy(), attn_output.numpy(), atol=1e-5)

    past_key_value, steps = None, []
    for step in range(LENGTH):
        output, _, past_key_value = attention(
            hidden_states=hidden_states[:, step : step + 1],
            position_ids=position_ids[:, step : step + 1],
            past_key_value=past_key_value,
            use_cache=True,
        )
        steps.append(output)
    assert np.allclose(paddle.concat(steps, axis=1).numpy(), attn_output.numpy(), atol=1e-5)


def test_attention_takes_a_padding_mask(hidden_states):
    attention = DeepseekV2Attention(config(), layer_idx=1)
    mask = paddle.ones([BATCH, LENGTH], "int64")
    mask[1, :3] = 0
    padded, _, _ = attention(hidden_states=hidden_states, attention_mask=mask)
    positions = paddle.arange(LENGTH - 3).unsqueeze(0) + 3
    alone, _, _ = attention(hidden_states=hidden_states[1:, 3:], position_ids=positions)
    assert np.allclose(padded[1:, 3:].numpy(), alone.numpy(), atol=1e-5)


@pytest.mark.parametrize("topk_method", ROUTERS)
def test_gate(hidden_states, topk_method):
    gate = MoEGate(config(topk_method=topk_method, **ROUTERS[topk_method]))
    gate.train()
    topk_idx, topk_weight, aux_loss = gate(hidden_states)
    assert topk_idx.shape == topk_weight.shape == [BATCH * LENGTH, 3]
    routing = gate.route(hidden_states)
    assert (routing.topk_idx == topk_idx).all() and (routing.topk_weight == topk_weight).all()
    expected = sequence_balance_loss(routing.scores, topk_idx, Segments.of_rows(BATCH, LENGTH))
    assert float(aux_loss) == pytest.approx(0.001 * float(expected), rel=1e-6)
    gate.eval()
    assert gate(hidden_states)[2] is None


@pytest.mark.parametrize("topk_method", ROUTERS)
def test_moe(hidden_states, topk_method):
    """The output is each token's weighted experts and the shared ones, token by token; its gradient has the
    balance loss's in it."""
    moe = DeepseekV2MoE(config(topk_method=topk_method, **ROUTERS[topk_method]))
    moe.eval()
    output = moe(hidden_states)
    assert output.shape == [BATCH, LENGTH, HIDDEN]
    topk_idx, topk_weight, _ = moe.gate(hidden_states)
    tokens = hidden_states.flatten(stop_axis=1)
    for token in (0, 5, BATCH * LENGTH - 1):
        row = tokens[token : token + 1]
        experts = zip(topk_idx[token].tolist(), topk_weight[token].tolist(), strict=True)
        expected = sum(weight * moe.experts[expert](row) for expert, weight in experts)
        expected = expected + moe.shared_experts(row)
        assert np.allclose(output.flatten(stop_axis=1)[token].numpy(), expected[0].numpy(), atol=1e-5)
    moe.train()
    (moe(hidden_states) * 0.0).sum().backward()
    assert float(moe.gate.weight.grad.abs().max()) > 0


def test_they_are_the_classes_of_the_model(golden):
    for case in ("mla_greedy", "mla_group_limited_yarn", "mla_noaux_tc"):
        model = DeepseekVLV2ForCausalLM.from_pretrained(golden / case, dtype="float32", progress=False)
        layers = model.language.model.layers
        assert all(type(layer.self_attn) is DeepseekV2Attention for layer in layers)
        mlp = layers[len(layers) - 1].mlp
        assert type(mlp) is DeepseekV2MoE and type(mlp.gate) is MoEGate
