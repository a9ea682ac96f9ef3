"""The whole model: what trains, what is refused, and loading what was saved."""

import numpy as np
import paddle
import pytest
from safetensors import safe_open

from paddlemix_vl2.layouts.batch_plan import plan_rows
from paddlemix_vl2.layouts.fusion_plan import plan_fusion
from paddlemix_vl2.layouts.tiles import num_image_tokens
from paddlemix_vl2.models.families.deepseek_vl2 import DeepseekVLV2ForCausalLM

CASES = ["mha_greedy", "mla_noaux_tc"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_factor_on_the_loss_reaches_the_balance_losses(golden_model, recorded_batch):
    """The loss has the value of the next-token loss, and the gradient of the balance losses too."""
    model = golden_model("mla_greedy")
    model.train()

    def gradient(loss_of) -> np.ndarray:
        model.clear_gradients()
        loss_of(model(**recorded_batch)).backward()
        return model.language.model.layers[1].mlp.gate.weight.grad.numpy()

    output = model(**recorded_batch)
    assert float(output.loss) == float(output.next_token_loss) and float(output.aux_loss) > 0
    parts = [gradient(lambda out: out.next_token_loss), gradient(lambda out: out.aux_loss)]
    assert np.abs(parts[1]).max() > 0
    expected = (parts[0] + parts[1]) / 4
    assert np.abs(gradient(lambda out: out.loss / 4) - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_picture_of_one_tile_is_looked_at_once(golden_model, monkeypatch):
    """Its global view and its tile are the same pixels where the processor made them: half the work, the same
    values and gradients. Tensors without a plan may hold any pixels, and are looked at as they are."""
    model = golden_model("mla_greedy")
    pixels = paddle.randn([1, 1, 3, 384, 384])
    batch = {
        "input_ids": paddle.arange(430).unsqueeze(0),
        "images": pixels.tile([1, 2, 1, 1, 1]),
        "images_seq_mask": (paddle.arange(430) < 421).unsqueeze(0),
        "images_spatial_crop": paddle.to_tensor([[[1, 1]]]),
    }
    crops, marks = batch["images_spatial_crop"].numpy(), batch["images_seq_mask"].numpy()
    fusion = plan_fusion(model.layout, crops, marks, 2, drop_repeated=True)
    plan = plan_rows([0], 430, fusion)
    seen, encode = [], model.encode_views
    monkeypatch.setattr(model, "encode_views", lambda views: seen.append(len(views)) or encode(views))

    def run(**options):
        embeddings = model.prepare_inputs_embeds(**batch, **options)
        (embeddings * paddle.arange(embeddings.size).reshape(embeddings.shape).cos()).sum().backward()
        gradient = model.vision.patch_embed.proj.weight.grad.numpy()
        model.clear_gradients()
        return embeddings.numpy(), gradient

    once, twice = run(plan=plan), run()
    assert seen == [1, 2]
    assert np.abs(once[0] - twice[0]).max() < 1e-5
    assert np.abs(once[1] - twice[1]).max() < 1e-4 * np.abs(twice[1]).max()
    batch["images"][0, 1, 0, 0, 0] += 1
    assert not np.array_equal(run()[0][0, 211:421], once[0][0, 211:421]), "another tile is another picture"


@paddle.no_grad()
@pytest.mark.parametrize(("drop_repeated", "expected"), [(False, [0, 1, 5, 6, 7]), (True, [0, 5, 6, 7])])
def test_unused_views_do_not_go_through_the_vision_tower(drop_repeated, expected, golden_model, monkeypatch):
    """Five views per sample; the first has two of them, the second three. Each has its number as pixels."""
    model, side = golden_model("mla_greedy"), 14
    crops = np.array([[[1, 1], [0, 0]], [[0, 0], [2, 1]]])
    marks = np.arange(700) < np.array([[num_image_tokens(1, 1, side)], [num_image_tokens(2, 1, side)]])
    fusion = plan_fusion(model.layout, crops, marks, max_views=5, drop_repeated=drop_repeated)
    images = paddle.arange(10, dtype="float32").reshape([2, 5, 1, 1, 1]).expand([2, 5, 3, 4, 4])
    seen = []
    features = paddle.zeros([len(expected), side**2, model.config.language_config.hidden_size])
    monkeypatch.setattr(model, "encode_views", lambda views: seen.append(views) or features)
    model.prepare_inputs_embeds(paddle.zeros([2, 700], "int64"), images, plan=plan_rows([0, 0], 700, fusion))
    assert seen[0].shape == [len(expected), 3, 4, 4] and seen[0][:, 0, 0, 0].tolist() == expected


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


def test_a_plan_with_pictures_needs_them(golden_model, prompt_batch):
    model = golden_model("mha_greedy")
    crops, marks = (prompt_batch[name].numpy() for name in ("images_spatial_crop", "images_seq_mask"))
    plan = plan_rows([0, 0], marks.shape[1], plan_fusion(model.layout, crops, marks, max_views=5))
    with pytest.raises(ValueError, match="the batch's plan has pictures, but images is absent"):
        model(input_ids=prompt_batch["input_ids"], plan=plan)


def test_a_call_needs_ids_or_embeddings(golden_model):
    model = golden_model("mha_greedy")
    with pytest.raises(ValueError, match="neither input_ids nor inputs_embeds"):
        model(attention_mask=paddle.ones([1, 3], "int64"))
    ids = paddle.to_tensor([[5, 6, 7]])
    embeddings = model.language.model.embed_tokens(ids)
    assert np.array_equal(model(inputs_embeds=embeddings).logits.numpy(), model(input_ids=ids).logits.numpy())


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
        model.new_cache([0], prompt_length=3, capacity=2)


def test_a_mask_that_contradicts_the_cache_is_refused(golden_model):
    model = golden_model("mla_noaux_tc")
    ids = paddle.to_tensor([[5, 6, 7]])
    cache = model.new_cache([0], prompt_length=3, capacity=5)
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
