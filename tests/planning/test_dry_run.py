"""Plans against parameter counts and sums written out by hand; nothing is built or written."""

import json
from pathlib import Path
from types import SimpleNamespace

import paddle
import pytest

from paddlemix_vl2 import device
from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.models.families.deepseek_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.planning import dry_run
from paddlemix_vl2.planning import training_memory as memory
from paddlemix_vl2.planning.parameters import find_config, plan_parameters
from paddlemix_vl2.training import run
from paddlemix_vl2.training.checks import check_balance
from paddlemix_vl2.training.lora import add_recipe_adapters
from paddlemix_vl2.training.parts import set_trainable
from paddlemix_vl2.training.recipe import VL2TrainingArguments

ROOT = Path(__file__).resolve().parents[2]
TINY, SMALL, BASE = (f"deepseek-ai/deepseek-vl2{size}" for size in ("-tiny", "-small", ""))
FROZEN, FULL, LORA = {"mode": "frozen"}, {"mode": "full"}, {"mode": "lora"}

# Two layer norms, attention and MLP with biases, 27 times; patches, positions, last norm. Width 1152.
WIDTH, MLP = 1152, 4304
BLOCK = 4 * WIDTH + 4 * WIDTH**2 + 4 * WIDTH + 2 * WIDTH * MLP + MLP + WIDTH
VISION = 27 * BLOCK + (3 * 14**2 + 1) * WIDTH + 729 * WIDTH + 2 * WIDTH
# In the checkpoint and never run: latent; q, kv, proj with biases; norm; MLP.
POOL = WIDTH + 4 * WIDTH**2 + 4 * WIDTH + 2 * WIDTH + 2 * WIDTH * MLP + MLP + WIDTH
TINY_PROJECTOR = 4608 * 1280 + 1280 + 1280**2 + 1280 + 2 * 1280  # and newline and separator
TINY_EXPERTS = 11 * 64 * 3 * 1280 * 896
TOTALS = {TINY: 3_370_501_440, SMALL: 16_148_349_504, BASE: 27_480_134_248}


def recipe(**changes) -> VL2TrainingArguments:
    values = {
        "model_name_or_path": TINY,
        "output_dir": "never_made",
        "vision": FULL,
        "train_dataset": [{"format": "synthetic", "task": "mixed"}],
        "max_steps": 1000,
    }
    return VL2TrainingArguments(**{**values, **changes})


def parameters_of(settings):
    return plan_parameters(find_config(settings)[0], settings)


def counts_of(settings):
    return dry_run.count(parameters_of(settings))


@pytest.mark.parametrize("name", TOTALS)
def test_totals_of_the_published_models(name):
    counts = counts_of(recipe(model_name_or_path=name))
    assert counts["all"].total == TOTALS[name]
    biases = 29 * 72 if name == BASE else 0  # moved by a balancer
    assert counts["all"].trained == TOTALS[name] - POOL - biases
    assert (counts["vision"].trained, counts["vision"].total) == (VISION, VISION + POOL)


def test_the_parts_of_tiny():
    counts = counts_of(recipe(language=FROZEN))
    assert counts["projector"] == dry_run.Counts(TINY_PROJECTOR, TINY_PROJECTOR)
    assert counts["all"].trained == VISION + TINY_PROJECTOR
    assert counts["language: embedding"] == dry_run.Counts(0, 129280 * 1280)
    assert counts["language: output head"] == dry_run.Counts(0, 129280 * 1280)
    assert counts["language: routed experts"] == dry_run.Counts(0, TINY_EXPERTS)
    groups = [pair for key, pair in counts.items() if key.startswith("language: ")]
    assert sum(pair.total for pair in groups) == counts["language"].total


def test_adapters_of_tiny():
    settings = recipe(vision=FROZEN, projector=FROZEN, language=LORA)
    # q, k, v, o in 12 layers; gate, up, down of 64 experts in 11 layers.
    attention, experts = 12 * 4 * 8 * (1280 + 1280), 11 * 64 * 3 * 8 * (1280 + 896)
    counts = counts_of(settings)
    assert counts["language"].trained == counts["all"].trained == attention + experts
    assert counts["language: routed experts"].trained == experts
    layers = 12 * 4 + 11 * 64 * 3
    assert f"Adapters: {attention + experts:,} parameters in {layers:,} layers (r 8, " in dry_run.describe(
        settings
    )


@pytest.mark.parametrize(
    ("vision", "projector", "language"), [(FULL, FULL, FROZEN), (LORA, FULL, LORA), (FROZEN, LORA, FULL)]
)
def test_the_plan_counts_what_a_built_model_trains(vision, projector, language, small_folder):
    settings = recipe(
        model_name_or_path=str(small_folder), vision=vision, projector=projector, language=language
    )
    config = DeepseekVLV2Config.from_json(small_folder)
    with paddle.LazyGuard():
        model = DeepseekVLV2ForCausalLM(config)
    set_trainable(model, settings)
    if LORA in (vision, projector, language):
        add_recipe_adapters(model, settings)
    trained = sum(p.size for p in model.parameters() if not p.stop_gradient)
    assert counts_of(settings)["all"].trained == trained > 0


def test_states_of_base_in_bfloat16():
    settings = recipe(model_name_or_path=BASE, vision=FROZEN, projector=FULL, language=FROZEN)
    trained = 4608 * 2560 + 2560 + 2560**2 + 2560 + 2 * 2560
    parameters = parameters_of(settings).values()
    assert memory.state_bytes(parameters, bf16=True) == {
        "weights": 2 * TOTALS[BASE] + 2 * 29 * 72,  # correction biases take 4 bytes
        "gradients": 2 * trained,
        "AdamW moments": 8 * trained,
        "master weights": 4 * trained,
    }
    in_float32 = memory.state_bytes(parameters, bf16=False)
    assert in_float32["weights"] == 4 * TOTALS[BASE] and "master weights" not in in_float32
    assert memory.checkpoint_bytes(parameters, True) == 2 * TOTALS[BASE] + 2 * 29 * 72 + 12 * trained


def test_a_checkpoint_of_adapters_is_without_the_base_model():
    settings = recipe(model_name_or_path=BASE, vision=FROZEN, projector=FROZEN, language=LORA)
    parameters = parameters_of(settings)
    trained = dry_run.count(parameters)["all"].trained
    assert memory.checkpoint_bytes(parameters.values(), True) == (2 + 8 + 4) * trained + 4 * 29 * 72


def test_activations_of_tiny_by_hand():
    settings = recipe(per_device_train_batch_size=2, max_seq_length=4096)
    config = find_config(settings)[0]
    loss = 2 * 256 * 129280 * 4
    attention = 6 * 1280
    dense = 8 * 1280 + attention + 4 * 6848
    moe = 8 * 1280 + attention + 6 * (3 * 1280 + 4 * 896) + (4 * 2 * 896 + 1280) + 3 * 64
    block = 8 * WIDTH + 2 * MLP
    patches = 2 * 20 * 729  # 4096 // 196 tiles in a row
    without = 8192 * (dense + 11 * moe) + patches * 27 * block
    assert memory.activation_bytes(config, settings, True, recompute=False) == 2 * without + loss
    with_it = 8192 * (12 * 1280 + max(dense, moe)) + patches * (27 * WIDTH + block)
    assert memory.activation_bytes(config, settings, True, recompute=True) == 2 * with_it + loss
    text = recipe(vision=FROZEN, per_device_train_batch_size=2)
    only_language = 8192 * (12 * 1280 + max(dense, moe))
    assert memory.activation_bytes(config, text, True, recompute=True) == 2 * only_language + loss


def test_without_fused_attention_scores_are_kept(monkeypatch):
    config = find_config(recipe())[0].language_config
    difference = memory.language_values(config, 1, num_keys=100) - memory.language_values(
        config, 1, num_keys=0
    )
    assert difference == 10 * 100
    settings, sizes = recipe(per_device_train_batch_size=8), []
    for fused in (False, True):
        monkeypatch.setattr(device, "has_fused_attention", lambda fused=fused: fused)
        sizes.append(memory.activation_bytes(find_config(settings)[0], settings, False, False))
    scores = 8 * 4096 * 12 * 10 * 4096  # rows, tokens, layers, heads, keys
    patches = 8 * 20 * 729
    assert sizes[0] - sizes[1] == 4 * (scores + patches * 27 * (5 * WIDTH + 16 * 729))


def test_schedule_steps_and_tokens():
    settings = recipe(
        lr_scheduler_type="step",
        learning_rate=1e-3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=9,
        max_steps=84612,
        packing=True,
    )
    text = dry_run.describe(settings, processes=128)
    assert "step: 0.001 at 0 %, 0.001 at 25 %, 0.000316 at 50 %, 0.0001 at 75 %, 0.0001 at 100 %" in text
    assert "Rows per step: 2,304 = 2 per process x 9 accumulated x 128 processes" in text
    assert f"Tokens: {2304 * 4096:,} per step, {84612 * 2304 * 4096:,} in all (rows are packed)" in text
    assert "an upper bound: rows are not packed" in dry_run.describe(recipe())


def test_the_learning_rates_of_the_parts():
    settings = recipe(learning_rate=5.4e-4, vision={"learning_rate_multiplier": 0.1}, language=FROZEN)
    lines = {line.split()[0]: line.split() for line in dry_run.describe(settings).splitlines() if line}
    assert (lines["vision"][1], lines["vision"][-1]) == ("full", "5.4e-05")
    assert lines["projector"][-1] == "0.00054"
    assert (lines["language"][1], lines["language"][-1]) == ("frozen", "-")


def test_sources_and_their_shares(tmp_path):
    here = tmp_path / "here.jsonl"
    here.write_text('{"text": "a"}\n')
    sources = [
        {"format": "llava", "path": "nowhere/a.json", "image_folder": "nowhere/else", "weight": 2.1},
        {"format": "text", "path": str(here), "weight": 0.9},
    ]
    lines = dry_run.describe(recipe(train_dataset=sources)).splitlines()
    first, second = (line for line in lines if line.startswith("train_dataset: "))
    assert "weight 2.1, 70.0 % of the samples" in first
    assert first.endswith("; not found here: nowhere/a.json, image_folder nowhere/else")
    assert second.endswith("weight 0.9, 30.0 % of the samples")
    with pytest.raises(ValueError, match="train_dataset: every weight is 0"):
        dry_run.describe(recipe(train_dataset=[{**sources[1], "weight": 0}]))
    with pytest.raises(ValueError, match=r"train_dataset\[1\]: unknown key 'pth' .did you mean 'path'"):
        dry_run.describe(recipe(train_dataset=[sources[0], {"format": "text", "pth": "x"}]))


def test_a_synthetic_task_that_is_not_there():
    with pytest.raises(ValueError, match="'mised'"):
        dry_run.describe(recipe(train_dataset=[{"format": "synthetic", "task": "mised"}]))


def test_training_refuses_data_that_are_not_there(small_recipe, tmp_path):
    data = [{"format": "text", "path": "nowhere/text.jsonl"}]
    settings = VL2TrainingArguments(
        **{**small_recipe, "train_dataset": data, "output_dir": str(tmp_path / "run")}
    )
    assert "not found here: nowhere/text.jsonl" in dry_run.describe(settings)
    with pytest.raises(FileNotFoundError, match=r"nowhere/text\.jsonl: no such file"):
        run.train(settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("can", "said"), [(False, "not available here"), (True, "bfloat16")])
def test_whether_the_device_has_bfloat16(can, said, monkeypatch):
    monkeypatch.setattr(device, "can_compute", lambda dtype: can)
    text = dry_run.describe(recipe(bf16=True))
    assert said in text.splitlines()[-1]
    assert "Memory per process, estimated, bfloat16" in text
    assert ("all in float32, as here" in text) is not can


def test_nothing_trains():
    with pytest.raises(ValueError, match="nothing trains"):
        dry_run.describe(recipe(vision=FROZEN, projector=FROZEN, language=FROZEN))


def test_balance_that_the_model_cannot_have():
    with pytest.raises(ValueError, match=r"bias_update_speed is 0\.001, but this model routes by greedy"):
        dry_run.describe(recipe(bias_update_speed=0.001))
    dry_run.describe(recipe(bias_update_speed=0.001, model_name_or_path=BASE))
    with pytest.raises(ValueError, match="expert_groups is 7; it must divide the model's 64 routed"):
        dry_run.describe(recipe(expert_groups=7))
    with pytest.raises(ValueError, match=r"capacity_factor is 1, but expert_groups is 1"):
        dry_run.describe(recipe(capacity_factor=1.0))
    dry_run.describe(recipe(capacity_factor=1.0, expert_groups=8))


def test_devices_are_groups_of_the_router_or_parts_of_them():
    config = find_config(recipe(model_name_or_path=BASE))[0]
    config.language_config.n_group = 8
    for devices in (2, 8, 24):
        check_balance(config, recipe(expert_groups=devices))
    with pytest.raises(ValueError, match=r"expert_groups is 6, but this model limits .* 8 groups"):
        check_balance(config, recipe(expert_groups=6))
    config.language_config.topk_method = "greedy"  # has no groups
    settings = recipe(expert_groups=6)
    settings.expert_parallel_degree = 24
    check_balance(config, settings)
    settings.expert_parallel_degree = 8
    with pytest.raises(ValueError, match="expert_groups is 6, but expert_parallel_degree is 8: one must be"):
        check_balance(config, settings)


def test_where_the_geometry_is_from(tmp_path, monkeypatch, small_folder):
    assert find_config(recipe())[1] == f"{TINY} on the hub, geometry of configs/model/tiny.json"
    assert find_config(recipe(model_name_or_path=str(small_folder)))[1] == str(small_folder)
    file = str(small_folder / "config.json")
    new = recipe(model_name_or_path=None, model_config=file, processor_path="folder")
    assert find_config(new)[1] == f"new, {file}"
    monkeypatch.chdir(tmp_path)
    config, origin = find_config(recipe(model_name_or_path="output/small_stage2"))
    assert config.language_config.hidden_size == 2048
    assert origin.startswith("output/small_stage2, not found here; configs/train/small_stage2_pretrain.yaml")
    assert origin.endswith("geometry of configs/model/small.json")
    Path("output/small_stage2").mkdir(parents=True)  # a run that has only begun
    assert find_config(recipe(model_name_or_path="output/small_stage2"))[1] == origin
    config_json = json.loads((ROOT / "configs/model/tiny.json").read_text())
    Path("output/small_stage2/config.json").write_text(json.dumps(config_json))
    assert find_config(recipe(model_name_or_path="output/small_stage2"))[1] == "output/small_stage2"


@pytest.mark.parametrize("name", ["nowhere", "someone/else", "deepseek-vl2-tiny", "a/b/deepseek-vl2"])
def test_no_geometry_anywhere(name):
    with pytest.raises(FileNotFoundError, match=f"{name}: no such folder, no published model, and no recipe"):
        find_config(recipe(model_name_or_path=name))


def test_recipes_that_write_each_others_model(tmp_path, monkeypatch):
    (tmp_path / "train").mkdir()
    for here, there in (("a", "b"), ("b", "a")):
        values = f"output_dir: {here}\nmodel_name_or_path: {there}\n"
        (tmp_path / "train" / f"{here}.yaml").write_text(values)
    monkeypatch.setattr("paddlemix_vl2.planning.parameters.CONFIGS", tmp_path)
    with pytest.raises(FileNotFoundError, match="no recipe in configs/train writes it"):
        find_config(SimpleNamespace(model_config=None, model_name_or_path="a"))
