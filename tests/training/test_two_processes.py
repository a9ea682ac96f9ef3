"""Two processes over gloo see together what one process of the doubled batch sees."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

from paddlemix_vl2.training import checkpoint

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.distributed


def launch(recipe: Path, processes: int, folder: Path) -> None:
    """Run examples/train.py under paddle.distributed.launch (or alone) and fail with its output."""
    command = [sys.executable, "-W", "ignore"]
    if processes > 1:
        command += ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes)]
        command += ["--backend", "gloo", "--log_dir", str(folder / "logs")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PADDLE_")}
    result = subprocess.run(
        [*command, "examples/train.py", str(recipe)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


def test_resuming_with_two_processes_is_exact(make_recipe_file, tmp_path):
    """Each resumes with its own share of the data, and the same tokens are dropped of the same rows."""
    settings = {"save_steps": 2, "packing": True, "bias_update_speed": 0.01, "max_steps": 4}
    settings.update(balance_tiles=True, capacity_factor=0.7, protected_share=0.3, expert_groups=2)
    whole, half = tmp_path / "whole", tmp_path / "half"
    launch(make_recipe_file("whole.yaml", output_dir=str(whole), **settings), 2, tmp_path)
    half.mkdir()
    states = paddle.load(str(whole / "checkpoint-2" / checkpoint.RANDOM_FILE), return_numpy=True)["processes"]
    seeds = {state["paddle"][0].current_seed() for state in states}
    assert len(seeds) == 2, "dropout differs between the processes"
    (whole / "checkpoint-2").rename(half / "checkpoint-2")
    recipe = make_recipe_file("half.yaml", output_dir=str(half), resume_from_checkpoint="auto", **settings)
    launch(recipe, 2, tmp_path)
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, half))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert np.array_equal(value, two[name]), name


def read_metrics(folder: Path) -> list[dict]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if "loss" in record]


def test_two_processes_equal_one_with_the_doubled_batch(make_recipe_file, assert_trained_alike, tmp_path):
    """Experts that no token of a process chose, and pictures on one process only, included. The processes
    exchange rows, and their losses over the batch are by the counts of both."""
    folders = {}
    for processes in (1, 2):
        folders[processes] = tmp_path / f"run{processes}"
        recipe = make_recipe_file(
            f"recipe{processes}.yaml",
            output_dir=str(folders[processes]),
            per_device_train_batch_size=4 // processes,
            gradient_accumulation_steps=2,
            max_steps=2,
            bias_update_speed=0.01,
            balance_tiles=True,
            expert_balance_alpha=0.1,
            device_balance_alpha=0.1,
            communication_balance_alpha=0.1,
            expert_groups=2,
        )
        launch(recipe, processes, tmp_path)
    one, two = (load_file(folders[processes] / "model.safetensors") for processes in (1, 2))
    assert_trained_alike(one, two)
    # A sum in place of a mean would not show in the weights: AdamW and clipping take out a factor.
    first, second = (read_metrics(folders[processes]) for processes in (1, 2))
    assert len(first) == 2
    for alone, together in zip(first, second, strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)
        assert together["expert_share_per_layer"] == alone["expert_share_per_layer"]
        assert alone["tile_imbalance"] == 1.0
        assert 1.0 <= together["tile_imbalance"] <= together["tile_imbalance_before"]
    biases = [name for name in one if name.endswith("e_score_correction_bias")]
    assert len(biases) == 2
    for name in biases:
        assert np.array_equal(one[name], two[name]), name
