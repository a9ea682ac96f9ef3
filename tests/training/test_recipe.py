"""Reading recipes: every written value takes effect, and an unknown one is an error in one line."""

import pytest
import yaml

from paddlemix_vl2 import device
from paddlemix_vl2.training.recipe import LoRARecipe, PartRecipe, VL2TrainingArguments, load_recipe

RECIPE = {
    "model_config": "config.json",
    "processor_path": "folder",
    "output_dir": "never_made",
    "train_dataset": [{"format": "synthetic", "task": "mixed"}],
    "max_steps": 10,
}


@pytest.fixture
def read(tmp_path, monkeypatch):
    """``read("key=value", ..., key=value, ...)``: the recipe above with changes."""
    monkeypatch.chdir(tmp_path)

    def load(*overrides, text=None, **changes) -> VL2TrainingArguments:
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({**RECIPE, **changes}) if text is None else text)
        return load_recipe(file, list(overrides))

    return load


def test_reading_writes_nothing(read, tmp_path):
    read(eval_dataset=RECIPE["train_dataset"])
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_defaults_are_the_papers(read):
    settings = read()
    assert settings.vision == PartRecipe("full", 0.1)
    assert settings.projector == settings.language == PartRecipe("full", 1.0)
    assert settings.lora == LoRARecipe(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=None)
    assert (settings.adam_beta1, settings.adam_beta2) == (0.9, 0.95)
    assert (settings.weight_decay, settings.max_grad_norm) == (0.1, 1.0)
    assert settings.max_seq_length == 4096


@pytest.mark.parametrize(
    ("written", "value"), [("1e-4", 1e-4), ("5.4e-4", 5.4e-4), ("1", 1.0), ("'2e-3'", 2e-3), (".5", 0.5)]
)
def test_numbers_however_yaml_reads_them(written, value, read):
    assert read(text=yaml.safe_dump(RECIPE) + f"learning_rate: {written}\n").learning_rate == value
    found = read(f"learning_rate={written}").learning_rate
    assert found == value and isinstance(found, float)
    assert read(f"vision.learning_rate_multiplier={written}").vision.learning_rate_multiplier == value


def test_changes_reach_into_sections(read):
    settings = read("vision.mode=frozen", "lora.r=4", "lora.target_modules=[q_proj]", "packing=true")
    assert settings.vision.mode == "frozen"
    assert settings.lora == LoRARecipe(r=4, target_modules=["q_proj"])
    assert settings.packing is True
    assert read("aux_loss_alpha=null", aux_loss_alpha=0.1).aux_loss_alpha is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("learning_rat=1", r"unknown key 'learning_rat' \(did you mean 'learning_rate'\?\)"),
        ("lerning_rate=1", "did you mean 'learning_rate'"),
        ("zzz=1", "unknown key 'zzz' .known keys: .*vision"),
        ("vision.mod=full", r"vision: unknown key 'mod' \(did you mean 'mode'\?\)"),
        ("lora.rank_of_it=4", "lora: unknown key 'rank_of_it' .known keys: lora_alpha, lora_dropout, r"),
        ("schedule=step", "unknown key 'schedule'"),
    ],
)
def test_unknown_keys_name_the_nearest(change, message, read):
    with pytest.raises(ValueError, match=message) as error:
        read(change)
    assert "recipe.yaml: " in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("vision.mode=half", r"vision.mode is 'half'; it must be one of \['full', 'lora', 'frozen'\]"),
        ("vision.learning_rate_multiplier=0", "vision.learning_rate_multiplier is 0.0; it must be above 0"),
        ("vision=frozen", "vision is 'frozen'; it is a section"),
        ("lora=8", "lora is 8; it is a section"),
        ("lora.r=two", "lora.r is 'two'; it must be of type int"),
        ("lora.target_modules=q_proj", "lora.target_modules is 'q_proj'; it must be a list of names"),
        (
            "lr_scheduler_type=linear",
            r"lr_scheduler_type is 'linear'; it must be one of \['cosine', 'constant', 'step'\]",
        ),
        ("overlong=cut", r"overlong is 'cut'; it must be one of \['skip', 'truncate'\]"),
        ("train_on=text", r"train_on is 'text'; it must be one of \['completions', 'all'\]"),
        ("expert_groups=0", "expert_groups is 0; it must be at least 1"),
        ("max_steps=0", "max_steps is 0; say how many"),
        ("max_steps=1e3", "max_steps is '1e3'; it must be of type int"),
        ("max_steps=null", "max_steps is None; it must be of type int"),
        ("packing=1", "packing is 1; it must be of type bool"),
        ("output_dir=3", "output_dir is 3; it must be of type str"),
        ("learning_rate=fast", "learning_rate is 'fast'; it must be a number"),
        ("learning_rate=true", "learning_rate is True; it must be a number"),
        ("learning_rate=null", "learning_rate is None; it must be a number"),
        ("learning_rate=.nan", "learning_rate is nan; it must be at least 0"),
        ("learning_rate=-1", "learning_rate is -1.0; it must be at least 0"),
        ("max_seq_length=0", "max_seq_length is 0; it must be at least 1"),
        ("per_device_train_batch_size=0", "per_device_train_batch_size is 0; it must be at least 1"),
        ("bias_update_speed=-1", "bias_update_speed is -1.0; it must be at least 0"),
        ("capacity_factor=-1", "capacity_factor is -1.0; it must be at least 0"),
        ("protected_share=1.5", "protected_share is 1.5; it must be from 0 to 1"),
        ("balance_tiles=1", "balance_tiles is 1; it must be of type bool"),
        ("warmup_steps=-1", "warmup_steps is -1; it must be at least 0"),
        ("warmup_ratio=2", "warmup_ratio must lie in range"),
        ("train_dataset=[]", "train_dataset is empty"),
        ("train_dataset=data.json", "train_dataset is 'data.json'; it must be a list of sources"),
        ("eval_dataset=[a]", r"eval_dataset is \['a'\]; it must be a list of sources"),
        ("model_name_or_path=x", "give either model_name_or_path .* or model_config"),
        ("model_config=null", "give either model_name_or_path .* or model_config"),
        ("processor_path=null", "processor_path must name a folder"),
    ],
)
def test_values_that_cannot_be(change, message, read):
    with pytest.raises(ValueError, match=message) as error:
        read(change)
    assert "recipe.yaml: " in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sharding=stage1", "sharding is set; this model does not support it"),
        ("fp16=true", "fp16 is set; this model does not support it"),
        ("to_static=true", "to_static is set"),
        ("unified_checkpoint=true", "unified_checkpoint is set"),
        ("tensor_parallel_degree=2", "tensor_parallel_degree is 2; this model does not support it yet"),
        ("pipeline_parallel_degree=2", "pipeline_parallel_degree is 2"),
        ("sharding_parallel_degree=8", "sharding_parallel_degree is 8"),
        ("sep_parallel_degree=2", "sep_parallel_degree is 2"),
        ("context_parallel_degree=2", "context_parallel_degree is 2"),
        ("expert_tensor_parallel_degree=2", "expert_tensor_parallel_degree is 2"),
        ("expert_parallel_degree=0", "expert_parallel_degree is 0; it must be at least 1"),
        ("num_train_epochs=3", "num_train_epochs has no effect here: max_steps"),
        ("optim=adafactor", "optim has no effect here: the optimizer is AdamW"),
    ],
)
def test_what_would_be_ignored_is_refused(change, message, read):
    with pytest.raises(ValueError, match=message):
        read(change)


@pytest.mark.parametrize("change", ["key", "=3", "output_dir.a=3", "train_dataset.0=3"])
def test_changes_that_are_none(change, read):
    with pytest.raises(ValueError, match=r"key=value|is not a section") as error:
        read(change)
    assert change in str(error.value)


@pytest.mark.parametrize(("text", "message"), [("a: [1", "not YAML"), ("- a", "mapping"), ("", "mapping")])
def test_files_that_are_no_recipes(text, message, read):
    with pytest.raises(ValueError, match=message) as error:
        read(text=text)
    assert "\n" not in str(error.value)


def test_a_recipe_that_changes_another(tmp_path):
    """Its keys replace those of the other, sections as a whole; overrides come last."""
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump({**RECIPE, "max_steps": 5, "seed": 4}))
    folder = tmp_path / "clusters"
    folder.mkdir()
    (folder / "few.yaml").write_text("recipe: ../whole.yaml\nmax_steps: 7\nvision: {mode: frozen}\n")
    settings = load_recipe(folder / "few.yaml", ["seed=9"])
    assert (settings.max_steps, settings.seed, settings.vision.mode) == (7, 9, "frozen")
    assert settings.train_dataset == RECIPE["train_dataset"]
    (folder / "fewer.yaml").write_text("recipe: few.yaml\n")
    with pytest.raises(ValueError, match=r"fewer\.yaml: recipe names a recipe that itself changes another"):
        load_recipe(folder / "fewer.yaml")
    (folder / "lost.yaml").write_text("recipe: nowhere.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"clusters/nowhere\.yaml: no such recipe"):
        load_recipe(folder / "lost.yaml")
    (folder / "wrong.yaml").write_text("recipe: ../whole.yaml\nmax_step: 7\n")
    with pytest.raises(ValueError, match=r"wrong\.yaml: unknown key 'max_step' .did you mean 'max_steps'"):
        load_recipe(folder / "wrong.yaml")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml: no such recipe"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_bfloat16_counts_where_the_device_can(read, monkeypatch):
    for can in (False, True):
        monkeypatch.setattr(device, "can_compute", lambda dtype, can=can: can)
        settings = read(bf16=True)
        assert settings.bf16_wanted and settings.bf16 is can


def test_evaluation_data_switch_evaluation_on(read):
    assert read().evaluation_strategy.value == "no"
    assert read(eval_dataset=RECIPE["train_dataset"]).evaluation_strategy.value == "steps"
