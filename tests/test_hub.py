"""Folders are taken as they are; hub names go to the hub client, and its failures become one clear line."""

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import filter_repo_objects

from paddlemix_vl2 import hub
from paddlemix_vl2.hub import resolve_checkpoint

NAME = "deepseek-ai/deepseek-vl2-tiny"
REPOSITORY = [
    ".gitattributes",
    "README.md",
    "config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors.index.json",
    "model-00001-of-000001.safetensors",
    "pytorch_model.bin",
    "images/example.jpg",
    "modeling.py",
]


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """The hub client without a network, with an empty cache; returns the cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def refusal(name) -> str:
    with pytest.raises(FileNotFoundError) as caught:
        resolve_checkpoint(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_local_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_download", lambda name: pytest.fail("a folder needs no download"))
    assert resolve_checkpoint(tmp_path) == tmp_path
    assert resolve_checkpoint(str(tmp_path)) == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deepseek-ai" / "deepseek-vl2-tiny").mkdir(parents=True)
    assert resolve_checkpoint(NAME).is_dir()


def test_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "weights").mkdir()
    assert resolve_checkpoint("~/weights") == tmp_path / "weights"


def test_file_instead_of_folder(tmp_path):
    (tmp_path / "model.safetensors").touch()
    assert refusal(tmp_path / "model.safetensors").endswith("is a file; pass the checkpoint's folder")


@pytest.mark.parametrize("path", ["/no/such/folder", "./folder", "folder", "a/b/c", "a/b c"])
def test_neither_folder_nor_name(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "no such folder, and not a hub name like deepseek-ai/deepseek-vl2-tiny either" in refusal(path)


def test_offline_says_what_to_do(offline):
    message = refusal(NAME)
    assert message.startswith(f"{NAME}: no such folder, and as a name on the hub: it could not be downloaded")
    assert "download its files elsewhere and pass their folder, or set HF_ENDPOINT to a mirror" in message


def test_offline_takes_what_was_downloaded_before(offline):
    cached = offline / "models--deepseek-ai--deepseek-vl2-tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("a" * 40)
    (cached / "snapshots" / ("a" * 40)).mkdir(parents=True)
    assert resolve_checkpoint(NAME) == cached / "snapshots" / ("a" * 40)


@pytest.mark.parametrize("error", [OSError("reset"), RuntimeError("transfer"), ConnectionError("refused")])
def test_whatever_the_client_raises(error, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert f"it could not be downloaded ({type(error).__name__})" in refusal(NAME)


@pytest.mark.parametrize(
    ("error", "hint"),
    [("RepositoryNotFoundError", "no such repository"), ("GatedRepoError", "must be requested on its page")],
)
def test_refusals_of_the_hub(error, hint, monkeypatch):
    error_class = getattr(huggingface_hub.errors, error)

    def fail(*args, **kwargs):
        raise error_class.__new__(error_class)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert hint in refusal(NAME)


def test_only_needed_files_are_asked_for(monkeypatch, tmp_path):
    asked = {}

    def record(name, allow_patterns):
        asked.update(name=name, files=list(filter_repo_objects(REPOSITORY, allow_patterns=allow_patterns)))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", record)
    assert resolve_checkpoint(NAME) == tmp_path
    assert asked == {"name": NAME, "files": REPOSITORY[2:9]}
