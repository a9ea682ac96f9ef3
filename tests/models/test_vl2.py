"""The whole model: what trains, what is refused, and loading what was saved."""

import numpy as np
import paddle
import pytest
from safetensors import safe_open

from paddlemix_vl2.models import vl2
from paddlemix_vl2.models.vl2 import DeepseekVLV2ForCausalLM

CASES = ["mha_greedy", "mla_noaux_tc"]


def test_a_frozen_language_model_still_trains_vision_and_projector(golden_model, recorded_batch):
    """Stage 1: language frozen, and in evaluation mode as a frozen part may well be."""
    model = golden_model("mla_noaux_tc")
    trained = {p.name: p.stop_gradient for p in model.parameters()}
    for parameter in model.language.parameters():
        parameter.stop_gradient = True
    try:
        model(**recorded_batch).loss.backward()
        for name, parameter in model.named_parameters():
            expects = not name.startswith(("language.", "vision.attn_pool."))
            # Zeros may be left where an earlier test had gradients.
            has_gradient = parameter.grad is not None and bool(parameter.grad.any())
            assert has_gradient == expects, name
    finally:
        for parameter in model.parameters():
            parameter.stop_gradient = trained[parameter.name]


def test_training_with_labels_builds_no_logits(golden_model, recorded_batch):
    model = golden_model("mla_greedy")
    model.train()
    assert model(**recorded_batch).logits is None
    model.eval()
    assert list(model(**recorded_batch).logits.shape) == [2, 1058, 512]


def test_a_picture_of_one_tile_is_looked_at_once(golden_model, monkeypatch):
    """Its global view and its tile are the same pixels: half the work, the same values and gradients."""
    model = golden_model("mla_greedy")
    pixels = paddle.randn([1, 1, 3, 384, 384])
    batch = {
        "input_ids": paddle.arange(430).unsqueeze(0),
        "images": pixels.tile([1, 2, 1, 1, 1]),
        "images_seq_mask": (paddle.arange(430) < 421).unsqueeze(0),
        "images_spatial_crop": paddle.to_tensor([[[1, 1]]]),
    }
    seen, encode = [], model.encode_tiles
    monkeypatch.setattr(model, "encode_tiles", lambda tiles: seen.append(len(tiles)) or encode(tiles))

    def run():
        embeddings = model.prepare_inputs_embeds(**batch)
        (embeddings * paddle.arange(embeddings.size).reshape(embeddings.shape).cos()).sum().backward()
        gradient = model.vision.patch_embed.proj.weight.grad.numpy()
        model.clear_gradients()
        return embeddings.numpy(), gradient

    once = run()
    monkeypatch.setattr(vl2, "equal_to_previous", lambda tiles, which: which[:0])
    twice = run()
    assert seen == [1, 2]
    assert np.abs(once[0] - twice[0]).max() < 1e-5
    assert np.abs(once[1] - twice[1]).max() < 1e-4 * np.abs(twice[1]).max()
    batch["images"][0, 1, 0, 0, 0] += 1
    monkeypatch.undo()
    assert not np.array_equal(run()[0][0, 211:421], once[0][0, 211:421]), "another tile is another picture"


def test_text_without_pictures(golden_model):
    model = golden_model("mla_greedy")
    ids = paddle.to_tensor([[0, 5, 6, 7]])
    empty = {
        "images": paddle.zeros([1, 1, 3, 384, 384]),
        "images_seq_mask": paddle.zeros([1, 4], "bool"),
        "images_spatial_crop": paddle.zeros([1, 1, 2], "int64"),
    }
    assert np.array_equal(model(input_ids=ids).logits.numpy(), model(input_ids=ids, **empty).logits.numpy())


@pytest.mark.parametrize("case", CASES)
def test_save_and_load_is_bit_identical(case, golden_model, golden, tmp_path):
    model = golden_model(case)
    model.save_pretrained(tmp_path)
    again = DeepseekVLV2ForCausalLM.from_pretrained(tmp_path, dtype="float32", progress=False)
    ours, theirs = dict(model.named_parameters()), dict(again.named_parameters())
    assert set(ours) == set(theirs)
    assert all(np.array_equal(ours[name].numpy(), theirs[name].numpy()) for name in ours)
    with (
        safe_open(golden / case / "model.safetensors", "np") as published,
        safe_open(tmp_path / "model.safetensors", "np") as saved,
    ):
        assert set(published.keys()) == set(saved.keys())
        for name in set(published.keys()):
            assert np.array_equal(published.get_tensor(name), saved.get_tensor(name)), name


def test_loaded_parameters_train_as_built_ones(golden_model):
    model = golden_model("mla_noaux_tc")
    frozen = [name for name, parameter in model.named_parameters() if parameter.stop_gradient]
    assert frozen == [f"language.model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (1, 2)]


def test_sixteen_bit_on_the_cpu_is_refused_in_one_line(golden):
    model = DeepseekVLV2ForCausalLM.from_pretrained(golden / "mha_greedy", dtype="bfloat16", progress=False)
    assert model.weight_dtype == "bfloat16"
    if paddle.get_device() == "cpu":
        with pytest.raises(ValueError, match="cannot multiply bfloat16"):
            model(input_ids=paddle.to_tensor([[1, 2]]))


def test_unknown_dtype(golden):
    with pytest.raises(ValueError, match=r"dtype 'float8' is unknown; use auto, float32, bfloat16, float16"):
        DeepseekVLV2ForCausalLM.from_pretrained(golden / "mha_greedy", dtype="float8")


def test_right_padding_is_refused_for_generation(golden_model):
    batch = {"input_ids": paddle.to_tensor([[5, 6, 2]]), "attention_mask": paddle.to_tensor([[1, 1, 0]])}
    with pytest.raises(ValueError, match="padding must be on the left"):
        golden_model("mha_greedy").generate(**batch, max_new_tokens=2)


@pytest.mark.parametrize("absent", ["images", "images_spatial_crop"])
def test_image_tokens_without_pictures_are_refused(absent, golden_model, prompt_batch):
    with pytest.raises(ValueError, match="marks image tokens, but images or images_spatial_crop holds no"):
        golden_model("mha_greedy")(**{**prompt_batch, absent: None})


@pytest.mark.parametrize("mask", [[1, 1, 0, 1], [0, 1, 0, 1]])
def test_padding_within_a_prompt_is_refused_for_generation(mask, golden_model):
    batch = {"input_ids": paddle.to_tensor([[5, 6, 7, 8]]), "attention_mask": paddle.to_tensor([mask])}
    with pytest.raises(ValueError, match="padding must be on the left"):
        golden_model("mha_greedy").generate(**batch, max_new_tokens=2)


@pytest.mark.parametrize("case", CASES)
def test_a_full_cache_is_refused(case, golden_model):
    model = golden_model(case)
    ids = paddle.to_tensor([[5, 6, 7]])
    _, cache = model.prefill({"input_ids": ids, "attention_mask": paddle.ones_like(ids)}, capacity=4)
    token = paddle.to_tensor([[8]])
    model.decode_step(token, cache)
    with pytest.raises(ValueError, match="4 positions, 4 of them filled; 1 more do not fit"):
        model.decode_step(token, cache)
    with pytest.raises(ValueError, match="cache of 2 positions cannot hold a prompt of 3"):
        model.new_cache(paddle.ones_like(ids), capacity=2)


def test_a_mask_that_contradicts_the_cache_is_refused(golden_model):
    model = golden_model("mla_noaux_tc")
    ids = paddle.to_tensor([[5, 6, 7]])
    cache = model.new_cache(paddle.ones_like(ids), capacity=5)
    with pytest.raises(ValueError, match="differs from the mask that the cache was made with"):
        model(input_ids=ids, attention_mask=paddle.to_tensor([[0, 1, 1]]), past_key_values=cache)


def test_more_positions_than_the_model_has(golden_model):
    with pytest.raises(ValueError, match="4097 positions, but the model has 4096"):
        golden_model("mha_greedy")(input_ids=paddle.zeros([1, 4097], "int64"))


def test_logits_only_where_they_are_wanted(golden_model, recorded_batch):
    """The loss does not need them; in training on labels they are left out unless asked for."""
    model = golden_model("mla_greedy")
    with paddle.no_grad():
        whole, bare = model(**recorded_batch), model(**recorded_batch, return_logits=False)
    assert whole.logits is not None and bare.logits is None
    assert float(whole.loss) == float(bare.loss)
