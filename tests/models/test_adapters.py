"""Low-rank adapters: equal outputs before training, files, loading, merging, and what is refused."""

import gc
import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddlenlp.peft import LoRAModel
from safetensors.numpy import load_file

from paddlemix_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.models import adapters
from paddlemix_vl2.models.adapters import AdapterConfig, add_adapters
from paddlemix_vl2.models.layers.lora import LoRALinear

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ["mha_greedy", "mla_greedy", "mla_noaux_tc_groups"]
# Of linear layers only: PaddleNLP refuses to adapt any other.
TARGETS = {
    "vision": [r"vision\.blocks\.\d+\.(attn|mlp)\.(qkv|proj|fc\d)"],
    "projector": [r"projector\.layers\.(0|2)"],
    "language": [
        r"language\.model\.layers\.\d+\.self_attn\.\w+_proj(_with_mqa)?",
        r"language\.model\.layers\.\d+\.mlp\.experts\.\d+\.\w+",
    ],
}
# Of the projector, where it trains in full beside adapters.
IN_FULL = [r"projector\..*", "image_newline", "view_seperator"]
# float32 sums in another order; with these adapters logits are of order 1 to 3 (as in test_equalities).
CLOSE = 1e-4


def base_model(case: str = "mla_greedy", dtype: str = "float32") -> DeepseekVLV2ForCausalLM:
    return DeepseekVLV2ForCausalLM.from_pretrained(
        GOLDEN / case, dtype=dtype, backend="paddle", progress=False
    )


def settings(case: str = "mla_greedy", projector: str = "lora", **changes) -> AdapterConfig:
    parts = [part for part in TARGETS if part != "projector" or projector == "lora"]
    values = {
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": [pattern for part in parts for pattern in TARGETS[part]],
        "trainable_modules": IN_FULL if projector == "full" else [],
        "base_model_name_or_path": str(GOLDEN / case),
    }
    return AdapterConfig(**{**values, **changes})


def with_adapters(case: str = "mla_greedy", projector: str = "lora", **changes) -> DeepseekVLV2ForCausalLM:
    model = base_model(case)
    paddle.seed(3)
    add_adapters(model, settings(case, projector, **changes))
    return model


def trained(model) -> dict[str, paddle.Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if not parameter.stop_gradient}


@paddle.no_grad()
def disturb(model, std: float = 0.03):
    """Adapters and what else trains, as after some training."""
    paddle.seed(4)
    for name, parameter in trained(model).items():
        if not name.endswith("lora_A"):
            parameter.set_value(parameter + std * paddle.randn(parameter.shape))
    return model


@pytest.fixture(scope="module")
def batch() -> dict:
    """Row 0 of the recorded batch, a picture and text, without padding and labels."""
    with np.load(GOLDEN / "inputs.npz") as file:
        row = {key: file[key][:1] for key in file.files if key not in ("position_ids", "labels")}
    start = int((row["attention_mask"] == 0).sum())
    for key in ("input_ids", "attention_mask", "images_seq_mask"):
        row[key] = row[key][:, start:]
    row["images"] = row["images"][:, :3].astype("float32")
    row["images_spatial_crop"] = row["images_spatial_crop"][:, :1]
    return {key: paddle.to_tensor(value) for key, value in row.items()}


def logits_of(model, batch) -> np.ndarray:
    with paddle.no_grad():
        return model(**batch).logits[:, -16:].numpy()


def test_adapters_are_layers_of_the_model_itself():
    """Its parameters keep their paths, beside those of the adapters; what the config names trains alone."""
    model, before = with_adapters(projector="full"), dict(base_model().named_parameters())
    after = dict(model.named_parameters())
    assert before.keys() <= after.keys()
    adapted = {name for name, layer in model.named_sublayers() if isinstance(layer, LoRALinear)}
    added = {f"{name}.{matrix}" for name in adapted for matrix in ("lora_A", "lora_B")}
    assert after.keys() - before.keys() == added and adapters.is_adapted(model)
    in_full = {name for name in before if name.startswith("projector.")} | {"image_newline", "view_seperator"}
    assert trained(model).keys() == added | in_full
    assert model.adapter_config.r == 8 and not adapters.is_adapted(base_model())
    layer = model.language.model.layers[0].self_attn.o_proj
    assert (layer.lora_A.shape, layer.lora_B.shape, layer.scaling) == ([48, 8], [8, 48], 2.0)
    assert bool(layer.lora_A.any()) and not bool(layer.lora_B.any())


@pytest.mark.parametrize("case", CASES)
def test_before_training_the_outputs_are_those_of_the_base(case, batch):
    base, model = base_model(case), with_adapters(case)
    assert np.array_equal(logits_of(base, batch), logits_of(model, batch))
    expected, _ = base.generate(**batch, max_new_tokens=6, eos_token_id=[])
    ids, _ = model.generate(**batch, max_new_tokens=6, eos_token_id=[])
    assert np.array_equal(ids.numpy(), expected.numpy())


@paddle.no_grad()
def cached_against_uncached(model, batch) -> float:
    """Largest difference between a prefill with three decode steps and one pass over everything."""
    following = paddle.to_tensor([[7, 8, 9]])
    logits, cache = model.prefill(batch, batch["input_ids"].shape[1] + 4)
    steps = [logits] + [model.decode_step(following[:, i : i + 1], cache) for i in range(3)]
    whole = dict(batch)
    for key, more in {
        "input_ids": following,
        "attention_mask": paddle.ones([1, 3], "int64"),
        "images_seq_mask": paddle.zeros([1, 3], "bool"),
    }.items():
        whole[key] = paddle.concat([whole[key], more], axis=1)
    return float((paddle.stack(steps, axis=1) - model(**whole).logits[:, -4:]).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_cached_equals_uncached_with_adapters_also_after_a_training_step(case, batch):
    model = disturb(with_adapters(case))
    base_logits = logits_of(base_model(case), batch)
    assert np.abs(logits_of(model, batch) - base_logits).max() > 0.1, "the adapters do something"
    assert cached_against_uncached(model, batch) < CLOSE
    model.train()
    optimizer = paddle.optimizer.SGD(0.1, parameters=list(trained(model).values()))
    model(**batch, labels=batch["input_ids"]).loss.backward()
    optimizer.step()
    model.eval()
    assert cached_against_uncached(model, batch) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize(("case", "projector"), [*zip(CASES, ["full", "lora", "frozen"], strict=True)])
def test_an_adapter_survives_saving(case, projector, batch, tmp_path):
    model = disturb(with_adapters(case, projector))
    expected = logits_of(model, batch)
    adapters.write_adapter(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(adapters.ADAPTER_FILES)
    loaded = adapters.load_adapter(base_model(case), tmp_path)
    assert not loaded.training and np.array_equal(logits_of(loaded, batch), expected)
    base = base_model(case)
    base.config.tensor_parallel_degree = 1  # PaddleNLP asks its own configs for it
    gc.collect()  # what another test has left open must not speak up while PaddleNLP reads
    by_paddlenlp = LoRAModel.from_pretrained(base, str(tmp_path))
    by_paddlenlp.eval()
    assert np.array_equal(logits_of(by_paddlenlp, batch), expected)


def test_the_file_names_its_base_and_is_readable_by_others(tmp_path):
    adapters.write_adapter(with_adapters(), tmp_path)
    config = json.loads((tmp_path / "lora_config.json").read_text())
    assert config["base_model_name_or_path"] == str(GOLDEN / "mla_greedy")
    assert (config["r"], config["lora_alpha"], config["scaling"]) == (8, 16, 2.0)
    assert adapters.read_config(tmp_path) == settings()
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_moved_correction_bias_is_in_the_adapter(tmp_path):
    model = with_adapters("mla_noaux_tc_groups")
    name = "language.model.layers.1.mlp.gate.e_score_correction_bias"
    bias = dict(model.named_parameters())[name]
    bias.set_value(bias + 0.5)
    adapters.write_adapter(model, tmp_path)
    loaded = adapters.load_adapter(base_model("mla_noaux_tc_groups"), tmp_path)
    same = dict(loaded.named_parameters())[name]
    assert np.array_equal(same.numpy(), bias.numpy()) and same.stop_gradient


@pytest.mark.parametrize("case", CASES)
def test_merged_equals_base_and_adapter(case, batch, tmp_path):
    model = disturb(with_adapters(case, projector="full"))
    expected = logits_of(model, batch)
    with pytest.raises(ValueError, match=r"a model with adapters cannot be saved .*merge_adapter"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    merged = adapters.merge_adapter(model)
    assert isinstance(merged, DeepseekVLV2ForCausalLM) and merged.adapter_config is None
    assert not any(isinstance(layer, LoRALinear) for layer in merged.sublayers())
    # x (W + A B s) against x W + x A B s: the same sums, rounded at other places.
    assert np.abs(logits_of(merged, batch) - expected).max() < CLOSE
    merged.save_pretrained(tmp_path)
    published = load_file(GOLDEN / case / "model.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    assert {name: value.shape for name, value in saved.items()} == {
        name: value.shape for name, value in published.items()
    }
    again = DeepseekVLV2ForCausalLM.from_pretrained(tmp_path, dtype="float32", progress=False)
    assert np.array_equal(logits_of(again, batch), logits_of(merged, batch))


def test_weights_of_16_bits_merge_in_float32(tmp_path):
    """On a CPU too, where Paddle multiplies no bfloat16."""
    adapters.write_adapter(disturb(with_adapters()), tmp_path)
    model = base_model(dtype="bfloat16")
    name = "language.model.layers.0.self_attn.kv_b_proj"
    weight = dict(model.named_parameters())[f"{name}.weight"].astype("float32")
    model = adapters.load_adapter(model, tmp_path)
    values = {key: value.astype("float32") for key, value in model.named_parameters() if name in key}
    expected = weight + values[f"{name}.lora_A"] @ values[f"{name}.lora_B"] * 2
    merged = dict(adapters.merge_adapter(model).named_parameters())[f"{name}.weight"]
    assert merged.dtype == paddle.bfloat16
    assert np.array_equal(merged.astype("float32").numpy(), expected.astype("bfloat16").astype("float32"))


def test_folders_without_a_good_adapter(tmp_path):
    model = base_model()
    with pytest.raises(FileNotFoundError, match="no such folder"):
        adapters.load_adapter(model, tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no lora_config.json in this folder"):
        adapters.load_adapter(model, tmp_path)
    adapters.write_adapter(with_adapters(), tmp_path)
    with pytest.raises(ValueError, match=r"an adapter of another model than this .*mla_greedy"):
        adapters.load_adapter(base_model("mha_greedy"), tmp_path)
    with pytest.raises(ValueError, match="has an adapter already"):
        adapters.load_adapter(adapters.load_adapter(model, tmp_path), tmp_path)
    weights = (tmp_path / adapters.WEIGHTS_FILE).read_bytes()
    (tmp_path / adapters.WEIGHTS_FILE).write_bytes(weights[:-10])
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        adapters.load_adapter(base_model(), tmp_path)
    index = tmp_path / adapters.INDEX_FILE
    for weight_map in ({}, {"a": "../elsewhere.safetensors"}, []):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ValueError, match="no weight_map of files in this folder"):
            adapters.load_adapter(base_model(), tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": adapters.WEIGHTS_FILE}}))
    (tmp_path / adapters.WEIGHTS_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"no such file; peft_model.safetensors.index.json names it"):
        adapters.load_adapter(base_model(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pissa": True}, "pissa is set"),
        ({"target_modules": ["("]}, "not an adapter's settings"),
        ({"trainable_modules": 5}, "not an adapter's settings"),
    ],
)
def test_settings_that_are_not_supported(change, message, tmp_path):
    adapters.write_adapter(with_adapters(), tmp_path)
    file = tmp_path / "lora_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        adapters.load_adapter(base_model(), tmp_path)
