"""Recipes for the small model of tests/conftest.py."""

from pathlib import Path

import pytest
import yaml

from paddlemix_vl2.training.recipe import load_recipe


@pytest.fixture
def make_recipe_file(small_recipe, tmp_path):
    """``make_recipe_file(name, key=value, ...)``: a recipe of the small model on synthetic pictures."""

    def make(name: str = "recipe.yaml", **changes) -> Path:
        values = {**small_recipe, "output_dir": str(tmp_path / "run"), **changes}
        file = tmp_path / name
        file.write_text(yaml.safe_dump(values))
        return file

    return make


@pytest.fixture
def make_recipe(make_recipe_file):
    """The same, read."""
    return lambda **changes: load_recipe(make_recipe_file(**changes))
