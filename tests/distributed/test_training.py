"""Training with experts over processes is training in one process, however it is interrupted and resumed."""

import json
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

from paddlemix_vl2.training import checkpoint
from tests.distributed.worker import copy_checkpoint

pytestmark = pytest.mark.distributed

PROCESSES = (2, 4)


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def metrics_of(folder: Path) -> list[dict]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if "loss" in record]


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert np.array_equal(value, other[name]), name


@pytest.mark.parametrize("processes", PROCESSES)
def test_it_equals_one_process(processes, folders, alone, assert_trained_alike):
    """Weights after four steps; and, as AdamW takes out factors, losses, norms and experts' shares of each
    step."""
    whole = folders(processes) / "whole"
    assert_trained_alike(tensors_of(alone), tensors_of(whole))
    assert len(metrics_of(alone)) == 4
    for one, spread in zip(metrics_of(alone), metrics_of(whole), strict=True):
        assert spread["loss"] == pytest.approx(one["loss"], rel=1e-3)
        assert spread["grad_norm"] == pytest.approx(one["grad_norm"], rel=2e-3)
        assert np.allclose(spread["expert_share_per_layer"], one["expert_share_per_layer"], atol=2e-3)
    first, spread = metrics_of(alone)[0], metrics_of(whole)[0]
    assert spread["expert_share_per_layer"] == first["expert_share_per_layer"]
    assert spread["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("processes", PROCESSES)
def test_resuming_is_exact(processes, folders):
    folder = folders(processes)
    assert_same(tensors_of(folder / "whole"), tensors_of(folder / "half"))
    assert_same(read_optimizer(folder / "whole"), read_optimizer(folder / "half"))


def read_optimizer(run_folder: Path, step: int = 4) -> dict[str, np.ndarray]:
    """The optimizer's state by parameter path, from the files of all processes."""
    state = {}
    for file in sorted((run_folder / f"checkpoint-{step}").glob("optimizer*.pdopt")):
        found = paddle.load(str(file), return_numpy=True)
        assert not state.keys() & found.keys(), "a parameter's state is written twice"
        state.update(found)
    return state


@pytest.mark.parametrize("processes", PROCESSES)
def test_going_on_from_one_process(processes, folders, alone, assert_trained_alike):
    """The checkpoint has other files, and was written with all experts in one process."""
    resumed = folders(processes) / "from_alone"
    assert_trained_alike(tensors_of(alone), tensors_of(resumed))
    assert metrics_of(resumed)[0]["loss"] == pytest.approx(metrics_of(alone)[2]["loss"], rel=1e-3)


@pytest.mark.parametrize("processes", PROCESSES)
def test_going_on_in_one_process(processes, folders, train_here, alone, assert_trained_alike, tmp_path):
    shutil.copytree(folders(processes) / "whole" / "checkpoint-2", tmp_path / "checkpoint-2")
    train_here(tmp_path, "resume_from_checkpoint=auto")
    assert_trained_alike(tensors_of(alone), tensors_of(tmp_path))
    assert read_optimizer(tmp_path).keys() == read_optimizer(alone).keys()


@pytest.mark.parametrize("processes", [1, 4])
def test_others_read_all_of_a_checkpoint(processes, folders, recipe, tmp_path):
    """What two processes have saved, read and written by one and by four with a degree of four: weights and
    optimizer bit for bit."""
    whole = folders(2) / "whole"
    if processes == 1:
        copied = tmp_path
        copy_checkpoint(recipe, whole / "checkpoint-4", copied / "checkpoint-4", degree=1)
    else:
        copied = folders(4) / "copied"
    assert len(list((copied / "checkpoint-4").glob("optimizer*"))) == processes
    assert_same(*(tensors_of(folder / "checkpoint-4") for folder in (whole, copied)))
    state = read_optimizer(whole)
    assert_same(state, read_optimizer(copied))
    assert any(np.abs(value).max() > 0 for key, value in state.items() if key.endswith("_moment1_0"))


@pytest.mark.parametrize("processes", PROCESSES)
def test_files_of_a_checkpoint(processes, folders):
    """Each of the two processes of the first group writes its experts; the copies write nothing."""
    folder = folders(processes) / "whole" / "checkpoint-4"
    names = [file.name for file in sorted(folder.iterdir())]
    for kind, ending in (("model", "safetensors"), ("optimizer", "pdopt")):
        assert [name for name in names if name.endswith(f".{ending}")] == [
            f"{kind}-00001-of-00002.{ending}",
            f"{kind}-00002-of-00002.{ending}",
        ]
    second = load_file(folder / "model-00002-of-00002.safetensors")
    assert all(".mlp.experts." in name for name in second) and second
    assert len(checkpoint.read_run_state(folder)["next_indices"]) == processes
    assert not [file for file in folder.parent.iterdir() if file.name.startswith(".")], "a temporary folder"


@pytest.mark.parametrize("processes", PROCESSES)
def test_an_optimizer_file_has_its_processes_experts(processes, folders):
    state = read_optimizer(folders(processes) / "whole")
    assert state.keys() == read_optimizer(folders(processes) / "from_alone").keys()
    second = paddle.load(
        str(folders(processes) / "whole" / "checkpoint-4" / "optimizer-00002-of-00002.pdopt")
    )
    assert {int(key.split(".experts.")[1].split(".")[0]) for key in second} == {4, 5, 6, 7}


def test_dropping_packing_recomputation_and_tile_balance(folders, assert_trained_alike):
    """Two processes, with all experts each and with half of them each."""
    one, spread = (folders(2) / f"dropping_degree{degree}" for degree in (1, 2))
    assert_trained_alike(tensors_of(one), tensors_of(spread))
    for record, other in zip(metrics_of(one), metrics_of(spread), strict=True):
        assert record["dropped_share"] > 0.01
        assert other["dropped_share"] == pytest.approx(record["dropped_share"], abs=2e-3)
        assert other["loss"] == pytest.approx(record["loss"], rel=1e-3)
        assert other["grad_norm"] == pytest.approx(record["grad_norm"], rel=2e-3)
