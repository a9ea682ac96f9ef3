"""Checkpoint folders are listed and read as the safetensors library does; damage is named with its file."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from paddlemix_vl2.checkpoints.reader import open_checkpoint

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def sharded(tmp_path):
    """A folder of two shards with tensors a, b and c, and the same tensors."""
    tensors = {name: np.arange(6, dtype=np.float32).reshape(2, 3) + i for i, name in enumerate("abc")}
    save_file({name: tensors[name] for name in "ab"}, tmp_path / SHARDS[0], {"format": "pt"})
    save_file({"c": tensors["c"]}, tmp_path / SHARDS[1], {"format": "pt"})
    write_index(tmp_path, {"a": SHARDS[0], "b": SHARDS[0], "c": SHARDS[1]})
    return tmp_path, tensors


def write_index(folder, weight_map) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def refusal(folder) -> str:
    with pytest.raises(ValueError) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_single_file_equals_the_library(case, assert_same):
    stored = open_checkpoint(case.folder)
    assert_same({name: tensor.read() for name, tensor in stored.tensors.items()}, case.weights)
    assert stored.nbytes == sum(array.nbytes for array in case.weights.values())
    assert set(stored.formats.values()) == {None}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_dtypes(write_folder, dtype):
    values = np.array([[1.5, -2.0, 0.25]], dtype)
    tensor = open_checkpoint(write_folder({"a": values}, {"format": "pt"})).tensors["a"]
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == (np.dtype(dtype).name, (1, 3), values.nbytes)
    assert tensor.read().tobytes() == values.tobytes()


def test_other_dtypes_are_listed_by_their_code(write_folder):
    tensor = open_checkpoint(write_folder({"a": np.zeros(2, np.int64)})).tensors["a"]
    assert tensor.dtype == "I64" and not tensor.loadable


def test_shards(sharded, assert_same):
    folder, tensors = sharded
    stored = open_checkpoint(folder)
    assert_same({name: tensor.read() for name, tensor in stored.tensors.items()}, tensors)
    assert {file.name: value for file, value in stored.formats.items()} == dict.fromkeys(SHARDS, "pt")


def test_single_file_counts_where_both_are_there(sharded):
    folder, _ = sharded
    save_file({"only": np.zeros(1, np.float32)}, folder / "model.safetensors")
    assert list(open_checkpoint(folder).tensors) == ["only"]


def test_nothing_to_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"neither model.safetensors nor .* is in this folder$"):
        open_checkpoint(tmp_path)
    (tmp_path / "model_state.pdparams").touch()
    with pytest.raises(FileNotFoundError, match=r"it holds model_state.pdparams"):
        open_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"a checkpoint is a folder, not a file"):
        open_checkpoint(tmp_path / "model_state.pdparams")


@pytest.mark.parametrize("kept", [0, 4, 8, 1000, 400_000, -1])
def test_truncated_file(case, tmp_path, kept):
    """Cut inside the length, the header and the values, at the start and by one byte."""
    content = (case.folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:kept])
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / 'model.safetensors'}: truncated or not a safetensors file (")


def test_not_a_safetensors_file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"<html>Not found</html>" * 100)
    assert "truncated or not a safetensors file" in refusal(tmp_path)


def test_truncated_shard(sharded):
    folder, _ = sharded
    (folder / SHARDS[1]).write_bytes((folder / SHARDS[1]).read_bytes()[:-1])
    assert refusal(folder).startswith(f"{folder / SHARDS[1]}: truncated")


def test_file_that_shrinks_after_listing(case, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes((case.folder / "model.safetensors").read_bytes())
    tensor = max(open_checkpoint(tmp_path).tensors.values(), key=lambda tensor: tensor.offset)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"ends before tensor {tensor.name} does"):
        tensor.read()


def test_missing_shard(sharded):
    folder, _ = sharded
    (folder / SHARDS[1]).unlink()
    assert refusal(folder) == f"{folder / INDEX}: 1 of 2 files are missing: {SHARDS[1]}"


def test_index_disagrees_with_the_files(sharded):
    folder, _ = sharded
    write_index(folder, {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1], "d": SHARDS[1]})
    message = refusal(folder)
    assert "disagree on 3 tensors" in message
    for part in (f"b (in {SHARDS[0]}, not", f"b (listed in {SHARDS[1]}", f"d (listed in {SHARDS[1]}"):
        assert part in message


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": null}'])
def test_unreadable_index(sharded, content):
    folder, _ = sharded
    (folder / INDEX).write_text(content)
    assert refusal(folder).startswith(f"{folder / INDEX}: not an index with a weight_map (")


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "inner/model.safetensors"])
def test_index_names_files_of_its_folder_only(sharded, name):
    folder, _ = sharded
    write_index(folder, {"a": SHARDS[0], "b": name})
    assert refusal(folder).endswith(f"must name files of this folder, not {name}")


def test_empty_index(sharded):
    folder, _ = sharded
    write_index(folder, {})
    assert refusal(folder).endswith("must name files of this folder, not nothing")
