"""Adapters of a recipe: which layers get them, what trains, exact resume, mistakes."""

import re
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn
from safetensors.numpy import load_file

from paddlemix_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.models import adapters
from paddlemix_vl2.models.layers.lora import LoRALinear
from paddlemix_vl2.training import checkpoint, lora, parts, run
from paddlemix_vl2.training.recipe import VL2TrainingArguments

GOLDEN = Path(__file__).parents[1] / "golden"
ALL_LORA = {part: {"mode": "lora"} for part in ("vision", "projector", "language")}
GATED = {"gate_proj", "up_proj", "down_proj"}


def base_model(case: str = "mla_greedy") -> DeepseekVLV2ForCausalLM:
    return DeepseekVLV2ForCausalLM.from_pretrained(GOLDEN / case, dtype="float32", progress=False)


def recipe(case: str = "mla_greedy", **changes) -> VL2TrainingArguments:
    source = [{"format": "synthetic", "task": "scene"}]
    values = {"model_name_or_path": str(GOLDEN / case), "max_steps": 1, "train_dataset": source, **changes}
    return VL2TrainingArguments(**values)


def with_adapters(case: str = "mla_greedy", **changes) -> DeepseekVLV2ForCausalLM:
    arguments = recipe(case, **{**ALL_LORA, **changes})
    model = base_model(case)
    parts.set_trainable(model, arguments)
    lora.add_recipe_adapters(model, arguments)
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


def adapted_layers(model) -> set[str]:
    return {name for name, layer in model.named_sublayers() if isinstance(layer, LoRALinear)}


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
    before = {name: parameter.numpy() for name, parameter in model.named_parameters()}
    model.train()
    optimizer = paddle.optimizer.AdamW(1e-2, parameters=[p for _, p in parts.trained(model)])
    for _ in range(2):  # B = 0 hides A from the first gradient
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    moved = {
        name for name, parameter in model.named_parameters() if (parameter.numpy() != before[name]).any()
    }
    trained = {name for name, _ in parts.trained(model)}
    assert moved <= trained
    # An expert that no token chose has no gradient.
    assert {name for name in trained - moved if ".experts." not in name} == set()
    assert any(".experts." in name for name in moved)


def test_the_adapter_is_that_of_the_recipe():
    settings = {"r": 4, "lora_alpha": 12, "lora_dropout": 0.1}
    config = with_adapters(projector={"mode": "full"}, lora=settings).adapter_config
    assert (config.r, config.lora_alpha, config.lora_dropout, config.scaling) == (4, 12, 0.1, 3.0)
    assert config.base_model_name_or_path == str(GOLDEN / "mla_greedy")
    assert config.trainable_modules == [r"projector\..*", "image_newline", "view_seperator"]


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
            "train_dataset": [{"format": "synthetic", "task": "other_language"}],
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
