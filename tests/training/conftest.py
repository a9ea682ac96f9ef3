"""Recipes for the small model of tests/conftest.py."""

from pathlib import Path

import pytest
import yaml

from paddlemix_vl2.training.recipe import load_recipe


@pytest.fixture
def make_recipe_file(small_folder, tmp_path):
    """``make_recipe_file(name, key=value, ...)``: a recipe that trains the small model on drawn pictures."""

    def make(name: str = "recipe.yaml", **changes) -> Path:
        values = {
            "model_config": str(small_folder / "config.json"),
            "processor_path": str(small_folder),
            "output_dir": str(tmp_path / "run"),
            "vision": {"mode": "full"},
            "train_dataset": [{"format": "drawn", "task": "mixed"}, {"format": "drawn", "task": "words"}],
            "max_seq_length": 320,
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_steps": 1000,
            "report_to": "none",
            "disable_tqdm": True,
            **changes,
        }
        file = tmp_path / name
        file.write_text(yaml.safe_dump(values))
        return file

    return make


@pytest.fixture
def make_recipe(make_recipe_file):
    """The same, read."""
    return lambda **changes: load_recipe(make_recipe_file(**changes))
