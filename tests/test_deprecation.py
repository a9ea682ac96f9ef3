"""Names of earlier releases: each still works, with one warning of one line that has the new name."""

import warnings
from pathlib import Path

import pytest
import yaml

from paddlemix_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.cli.arguments import OneLineParser, add_model_flags
from paddlemix_vl2.data import SourceSpec
from paddlemix_vl2.deprecation import RENAMED, rename, rename_arguments

DEMO = Path(__file__).parents[1] / "paddlemix_vl2" / "demo" / "checkpoint"
# Place, old name and value, new name and value; a name without a change of values has one of its own.
NAMES = [
    ("from_pretrained", "engine", "native", "backend", "cpu_kernels"),
    ("from_pretrained", "engine", "eager", "backend", "paddle"),
    ("command line", "--engine", "native", "--backend", "cpu_kernels"),
    ("command line", "--engine", "eager", "--backend", "paddle"),
    ("recipe", "too_long", "refuse", "overlong", "skip"),
    ("recipe", "too_long", "shorten", "overlong", "truncate"),
    ("recipe", "supervise", "answers", "train_on", "completions"),
    ("recipe", "supervise", "text", "train_on", "all"),
    ("recipe", "balance_devices", 4, "expert_groups", 4),
    ("data source", "format", "drawn", "format", "synthetic"),
]
RECIPE = {
    "model_config": "config.json",
    "processor_path": "processor",
    "train_dataset": [{"format": "synthetic", "task": "words"}],
    "max_steps": 1,
}


@pytest.fixture
def said():
    """``said()`` are the texts of all warnings of renamed names so far."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: [str(one.message) for one in caught if issubclass(one.category, FutureWarning)]


def warning(place: str, name: str, old, new_name: str, new) -> str:
    return f"{place}: '{name} {old}' is now '{new_name} {new}'; the old name goes with the next release"


def rows_of(place: str) -> list[tuple]:
    return [row[1:] for row in NAMES if row[0] == place]


def test_all_renamed_names_are_tested_here():
    listed = {
        (place, name, value)
        for place, rows in RENAMED.items()
        for name, renamed in rows.items()
        for value in renamed.values or [4]
    }
    assert {row[:3] for row in NAMES} == listed


@pytest.mark.parametrize(("place", "name", "old", "new_name", "new"), NAMES)
def test_the_warning(place, name, old, new_name, new, said):
    assert rename(place, name, old) == (new_name, new)
    assert said() == [warning(place, name, old, new_name, new)] and "\n" not in said()[0]


@pytest.mark.parametrize(("place", "name", "old", "new_name", "new"), NAMES)
def test_names_of_today_are_silent(place, name, old, new_name, new, said):
    assert rename(place, new_name, new) == (new_name, new)
    assert said() == []


# ---- from_pretrained ----


def test_engine_of_a_model(said):
    model = DeepseekVLV2ForCausalLM.from_pretrained(DEMO, dtype="float32", engine="eager", progress=False)
    assert not model.execution.packed
    assert said() == [warning("from_pretrained", "engine", "eager", "backend", "paddle")]


def test_engine_auto_of_a_model(said):
    DeepseekVLV2ForCausalLM.from_pretrained(DEMO, dtype="float32", engine="auto", progress=False)
    assert said() == [warning("from_pretrained", "engine", "auto", "backend", "auto")]


def test_engine_of_a_model_on_the_kernels(native, said):
    model = DeepseekVLV2ForCausalLM.from_pretrained(DEMO, engine="native", progress=False)
    assert model.execution.packed
    assert said() == [warning("from_pretrained", "engine", "native", "backend", "cpu_kernels")]


def test_an_unknown_argument_is_refused(said):
    with pytest.raises(TypeError, match=r"^from_pretrained\(\) has no argument 'engin'$"):
        DeepseekVLV2ForCausalLM.from_pretrained(DEMO, engin="eager")
    with pytest.raises(TypeError, match="has no argument 'too_long'"):
        rename_arguments("from_pretrained", {"too_long": "refuse"})
    assert said() == []


# ---- the command line ----


@pytest.mark.parametrize(
    ("flag", "old", "new_flag", "new"), [*rows_of("command line"), ("--engine", "auto", "--backend", "auto")]
)
def test_flags(flag, old, new_flag, new, said):
    parser = OneLineParser("")
    add_model_flags(parser)
    assert parser.parse([flag, old]).backend == new
    assert said() == [warning("command line", flag, old, new_flag, new)]
    with pytest.raises(ValueError, match="invalid choice: 'gpu'"):
        parser.parse([flag, "gpu"])


# ---- recipes ----


@pytest.fixture
def load(tmp_path):
    """``load(values, overrides)`` is a recipe of these values."""
    from paddlemix_vl2.training.recipe import load_recipe

    def load_(values: dict, overrides=()):
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({**RECIPE, **values}))
        return load_recipe(file, list(overrides))

    return load_


@pytest.mark.parametrize(("key", "old", "new_key", "new"), rows_of("recipe"))
class TestRecipes:
    def test_in_a_file(self, load, key, old, new_key, new, said):
        assert getattr(load({key: old}), new_key) == new
        assert said() == [warning("recipe", key, old, new_key, new)]

    def test_on_the_command_line(self, load, key, old, new_key, new, said):
        assert getattr(load({}, [f"{key}={old}"]), new_key) == new
        assert said() == [warning("recipe", key, old, new_key, new)]

    @pytest.mark.filterwarnings("ignore::FutureWarning")
    def test_the_command_line_counts_more_than_the_file(self, load, key, old, new_key, new):
        others = {
            "overlong": ("skip", "truncate"),
            "train_on": ("completions", "all"),
            "expert_groups": (4, 2),
        }
        other = next(value for value in others[new_key] if value != new)
        assert getattr(load({new_key: other}, [f"{key}={old}"]), new_key) == new
        assert getattr(load({key: old}, [f"{new_key}={other}"]), new_key) == other


def test_an_unknown_key_of_a_recipe_is_refused(load, said):
    with pytest.raises(ValueError, match="unknown key 'too_lang'"):
        load({"too_lang": "refuse"})
    with pytest.raises(ValueError, match="overlong is 'refuse'"):  # the new name has new values only
        load({"overlong": "refuse"})
    assert said() == []


# ---- data ----


def test_format_of_a_source(said):
    spec = SourceSpec.from_dict({"format": "drawn", "task": "words"}, "x.yaml")
    assert spec == SourceSpec("synthetic", task="words")
    assert said() == [warning("data source", "format", "drawn", "format", "synthetic")]


def test_an_unknown_format_is_refused(said):
    with pytest.raises(ValueError, match=r"unknown format 'draw'; use one of .*, synthetic"):
        SourceSpec.from_dict({"format": "draw"}, "x.yaml")
    assert said() == []
