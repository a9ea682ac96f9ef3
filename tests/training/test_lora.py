"""Low-rank adapters: what trains, equal outputs before training, files, merging, exact resume, mistakes."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn
from paddlenlp.peft import LoRAModel
from paddlenlp.peft.lora.lora_layers import LoRALinear
from safetensors.numpy import load_file

from paddlemix_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.configuration import DeepseekVLV2Config
from paddlemix_vl2.training import adapters, checkpoint, lora, parts, run
from paddlemix_vl2.training.recipe import VL2TrainingArguments

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ["mha_greedy", "mla_greedy", "mla_noaux_tc_groups"]
ALL_LORA = {part: {"mode": "lora"} for part in ("vision", "projector", "language")}
ATTENTION = {"q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}
GATED = {"gate_proj", "up_proj", "down_proj"}
# float32 sums in another order; with these adapters logits are of order 1 to 3 (as in test_equalities).
CLOSE = 1e-4


def base_model(case: str = "mla_greedy") -> DeepseekVLV2ForCausalLM:
    return DeepseekVLV2ForCausalLM.from_pretrained(GOLDEN / case, dtype="float32", progress=False)


def recipe(case: str = "mla_greedy", **changes) -> VL2TrainingArguments:
    source = [{"format": "drawn", "task": "scene"}]
    values = {"model_name_or_path": str(GOLDEN / case), "max_steps": 1, "train_dataset": source, **changes}
    return VL2TrainingArguments(**values)


def with_adapters(case: str = "mla_greedy", **changes) -> LoRAModel:
    arguments = recipe(case, **{**ALL_LORA, **changes})
    model = base_model(case)
    parts.set_trainable(model, arguments)
    paddle.seed(3)
    return lora.add_adapters(model, arguments)


@paddle.no_grad()
def disturb(model: LoRAModel, std: float = 0.03) -> LoRAModel:
    """Adapters and what else trains, as after some training."""
    paddle.seed(4)
    for name, parameter in parts.trained(model):
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


def adapted_layers(model: LoRAModel) -> set[str]:
    return {name for name, layer in model.model.named_sublayers() if isinstance(layer, LoRALinear)}


def test_by_default_attention_routed_experts_projector_and_vision_blocks():
    model = with_adapters()
    layers = adapted_layers(model)
    linear = {name for name, layer in base_model().named_sublayers() if isinstance(layer, nn.Linear)}
    left = {re.sub(r"\.\d+", "", name) for name in linear - layers}
    pool = {f"vision.attn_pool.{name}" for name in ("q", "kv", "proj", "mlp.fc1", "mlp.fc2")}
    mlp = {f"language.model.layers.mlp.{kind}{name}" for kind in ("", "shared_experts.") for name in GATED}
    assert left == {"language.lm_head", *pool, *mlp}
    trained = {name for name, _ in parts.trained(model)}
    assert trained == {f"{layer}.{matrix}" for layer in layers for matrix in ("lora_A", "lora_B")}
    assert {parts.part_of(name) for name in trained} == {"vision", "projector", "language"}


def test_parts_keep_their_modes():
    model = with_adapters(vision={"mode": "frozen"}, projector={"mode": "full"})
    trained = {name for name, _ in parts.trained(model)}
    assert {name for name in trained if parts.part_of(name) == "projector"} == {
        "image_newline",
        "view_seperator",
        *(f"projector.layers.{index}.{name}" for index in (0, 2) for name in ("weight", "bias")),
    }
    rest = {name for name in trained if parts.part_of(name) != "projector"}
    assert rest and all(name.startswith("language.") and ".lora_" in name for name in rest)


def test_a_full_part_beside_adapters_is_as_set_trainable_marks_it():
    for full in ("vision", "projector", "language"):
        modes = {**ALL_LORA, full: {"mode": "full"}}
        case = "mla_noaux_tc_groups"
        model, plain = with_adapters(case, **modes), base_model(case)
        parts.set_trainable(plain, recipe(case, **modes))
        expected = {name for name, parameter in plain.named_parameters() if not parameter.stop_gradient}
        assert {name for name, _ in parts.trained(model) if ".lora_" not in name} == expected


def test_target_modules_choose_layers():
    names = ["o_proj", "down_proj", "shared_experts.up_proj", "mlp.gate_proj", "fc1", "projector"]
    layers = adapted_layers(with_adapters(lora={"r": 2, "target_modules": names}))
    assert {re.sub(r"\.\d+", "", name) for name in layers} == {
        "language.model.layers.self_attn.o_proj",
        "language.model.layers.mlp.experts.down_proj",
        "language.model.layers.mlp.shared_experts.up_proj",
        "language.model.layers.mlp.gate_proj",
        "vision.blocks.mlp.fc1",
        "projector.layers",
    }


def test_only_the_lora_part_and_what_is_full_moves(batch):
    model = with_adapters(vision={"mode": "frozen"}, projector={"mode": "full"})
    before = {name: parameter.numpy() for name, parameter in parts.named_parameters(model)}
    model.train()
    optimizer = paddle.optimizer.AdamW(1e-2, parameters=[p for _, p in parts.trained(model)])
    for _ in range(2):  # B = 0 hides A from the first gradient
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    moved = {
        name for name, parameter in parts.named_parameters(model) if (parameter.numpy() != before[name]).any()
    }
    trained = {name for name, _ in parts.trained(model)}
    assert moved <= trained
    # An expert that no token chose has no gradient.
    assert {name for name in trained - moved if ".experts." not in name} == set()
    assert any(".experts." in name for name in moved)


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


@pytest.mark.parametrize("case", CASES)
def test_cached_equals_uncached_with_adapters_also_after_a_training_step(case, batch):
    model = disturb(with_adapters(case))
    base_logits = logits_of(base_model(case), batch)
    assert np.abs(logits_of(model, batch) - base_logits).max() > 0.1, "the adapters do something"
    assert cached_against_uncached(model, batch) < CLOSE
    model.train()
    optimizer = paddle.optimizer.SGD(0.1, parameters=[p for _, p in parts.trained(model)])
    model(**batch, labels=batch["input_ids"]).loss.backward()
    optimizer.step()
    model.eval()
    assert cached_against_uncached(model, batch) < CLOSE


@pytest.mark.parametrize(("case", "projector"), [*zip(CASES, ["full", "lora", "frozen"], strict=True)])
def test_an_adapter_survives_saving(case, projector, batch, tmp_path):
    model = disturb(with_adapters(case, projector={"mode": projector}))
    expected = logits_of(model, batch)
    adapters.write_adapter(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(adapters.ADAPTER_FILES)
    loaded = adapters.load_adapter(base_model(case), tmp_path)
    assert not loaded.training and np.array_equal(logits_of(loaded, batch), expected)
    by_paddlenlp = LoRAModel.from_pretrained(base_model(case), str(tmp_path))
    by_paddlenlp.eval()
    assert np.array_equal(logits_of(by_paddlenlp, batch), expected)


def test_the_file_names_its_base_and_is_readable_by_others(tmp_path):
    adapters.write_adapter(with_adapters(), tmp_path)
    config = json.loads((tmp_path / "lora_config.json").read_text())
    assert config["base_model_name_or_path"] == str(GOLDEN / "mla_greedy")
    assert (config["r"], config["lora_alpha"], config["scaling"]) == (8, 16, 2.0)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_moved_correction_bias_is_in_the_adapter(tmp_path):
    model = with_adapters("mla_noaux_tc_groups")
    bias = dict(parts.named_parameters(model))["language.model.layers.1.mlp.gate.e_score_correction_bias"]
    bias.set_value(bias + 0.5)
    adapters.write_adapter(model, tmp_path)
    loaded = dict(parts.named_parameters(adapters.load_adapter(base_model("mla_noaux_tc_groups"), tmp_path)))
    same = loaded["language.model.layers.1.mlp.gate.e_score_correction_bias"]
    assert np.array_equal(same.numpy(), bias.numpy()) and same.stop_gradient


@pytest.mark.parametrize("case", CASES)
def test_merged_equals_base_and_adapter(case, batch, tmp_path):
    model = disturb(with_adapters(case, projector={"mode": "full"}))
    expected = logits_of(model, batch)
    merged = adapters.merge_adapter(model)
    assert isinstance(merged, DeepseekVLV2ForCausalLM)
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
    model = DeepseekVLV2ForCausalLM.from_pretrained(GOLDEN / "mla_greedy", dtype="bfloat16", progress=False)
    name = "language.model.layers.0.self_attn.kv_b_proj"
    weight = dict(model.named_parameters())[f"{name}.weight"].astype("float32")
    model = adapters.load_adapter(model, tmp_path)
    values = {key: value.astype("float32") for key, value in parts.named_parameters(model) if name in key}
    expected = weight + values[f"{name}.lora_A"] @ values[f"{name}.lora_B"] * 2
    merged = dict(adapters.merge_adapter(model).named_parameters())[f"{name}.weight"]
    assert merged.dtype == paddle.bfloat16
    assert np.array_equal(merged.astype("float32").numpy(), expected.astype("bfloat16").astype("float32"))


@pytest.fixture(scope="module")
def base_folder(small_folder, tmp_path_factory) -> Path:
    """The small model of conftest with random weights, as a checkpoint."""
    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    shutil.copytree(small_folder, folder)
    paddle.seed(7)
    model = DeepseekVLV2ForCausalLM(DeepseekVLV2Config.from_json(folder))
    parts.initialize(model, 0.05)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def make_lora_recipe(make_recipe, base_folder):
    def make(**changes):
        settings = {
            "model_config": None,
            "processor_path": None,
            "model_name_or_path": str(base_folder),
            "vision": {"mode": "lora"},
            "projector": {"mode": "full"},
            "language": {"mode": "lora"},
            "lora": {"r": 2, "lora_dropout": 0.3},
            "train_dataset": [{"format": "drawn", "task": "other_language"}],
            "max_steps": 4,
            "save_steps": 2,
            "bias_update_speed": 0.01,
        }
        return make_recipe(**{**settings, **changes})

    return make


def weights_in(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / adapters.WEIGHTS_FILE)


def test_resuming_is_exact_with_dropout(make_lora_recipe, tmp_path):
    """Four steps at once, and two, a new model and two more: the same bits."""
    whole = run.train(make_lora_recipe(output_dir=str(tmp_path / "whole")))
    half = tmp_path / "half"
    half.mkdir()
    (whole / "checkpoint-2").rename(half / "checkpoint-2")
    resumed = run.train(make_lora_recipe(output_dir=str(half), resume_from_checkpoint="auto"))
    first, second = weights_in(whole), weights_in(resumed)
    assert first.keys() == second.keys()
    assert [name for name in first if not np.array_equal(first[name], second[name])] == []
    before = weights_in(half / "checkpoint-2")
    still = {name for name in before if np.array_equal(before[name], first[name])}
    assert not {name for name in still if ".experts." not in name}, "steps 3 and 4 moved all that trains"


def test_a_run_writes_adapters_only(make_lora_recipe, base_folder, batch):
    folder = run.train(make_lora_recipe())
    for written in (folder, folder / "checkpoint-2"):
        files = {path.name for path in written.iterdir()}
        assert {*adapters.ADAPTER_FILES, "tokenizer.json", "processor_config.json"} <= files
        assert not {"model.safetensors", "config.json"} & files
        size = (written / adapters.WEIGHTS_FILE).stat().st_size
        # Rank 2 in matrices of 16 to 64 and a projector in full; a model of published size is below 1 %.
        assert size < 0.45 * (base_folder / "model.safetensors").stat().st_size
    loaded = adapters.load_adapter(
        DeepseekVLV2ForCausalLM.from_pretrained(base_folder, dtype="float32", progress=False), folder
    )
    stored = weights_in(folder)
    assert all(
        np.array_equal(tensor.numpy(), stored[name])
        for name, tensor in adapters.adapter_tensors(loaded).items()
    )


def test_another_rank_cannot_be_resumed(make_lora_recipe):
    folder = run.train(make_lora_recipe(max_steps=2))
    with pytest.raises(ValueError, match=r"cannot resume: .*lora_A was \[.*2, 'trained'\] .* is \[.*4, "):
        run.train(make_lora_recipe(lora={"r": 4}, resume_from_checkpoint="auto"))
    assert checkpoint.last_checkpoint(folder).name == "checkpoint-2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"target_modules": ["q_prj"]}}, r"no 'q_prj' .* did you mean 'q_proj'\? there are qkv, "),
        ({"lora": {"target_modules": ["lm_head"]}}, r"no 'lm_head' .* there are qkv, "),
        ({"lora": {"target_modules": ["k_proj"]}}, "no 'k_proj'"),  # MLA has none
        (
            {"vision": {"mode": "frozen"}, "lora": {"target_modules": ["qkv"]}},
            "parts of mode lora .projector",
        ),
        (
            {"lora": {"target_modules": ["q_proj"]}},
            "vision.mode is lora, but .* names none of its layers: qkv",
        ),
        ({"lora": {"r": 0}}, "lora.r is 0"),
        ({"lora": {"lora_alpha": 0}}, "lora.lora_alpha is 0"),
        ({"lora": {"lora_dropout": 1.0}}, "lora.lora_dropout is 1.0"),
        (
            {"model_name_or_path": None, "model_config": "x", "processor_path": "y"},
            "needs model_name_or_path",
        ),
    ],
)
def test_impossible_recipes(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        with_adapters(**changes)
    assert "\n" not in str(error.value)


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
