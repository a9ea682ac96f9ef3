"""The example scripts as modules, and a small random checkpoint for the commands."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def example(monkeypatch):
    """``example("single_image_infer")`` is that script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory, tokenizer_folders, load_tool) -> Path:
    """A small model with the published tokenizer and tiles, and random weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = Path(__file__).with_name("small_config.json")
    tokenizer = tokenizer_folders["128k"] / "tokenizer.json"
    tool = load_tool("make_random_checkpoint")
    assert tool.main([str(config), str(folder), "--tokenizer", str(tokenizer)]) == 0
    return folder
