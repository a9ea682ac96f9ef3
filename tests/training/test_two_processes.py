"""Two processes over gloo see together what one process of the doubled batch sees."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

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


def test_two_processes_equal_one_with_the_doubled_batch(make_recipe_file, tmp_path):
    """Experts that no token of a process chose, and pictures on one process only, included."""
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
        )
        launch(recipe, processes, tmp_path)
    one, two = (load_file(folders[processes] / "model.safetensors") for processes in (1, 2))
    assert one.keys() == two.keys()
    for name, value in one.items():
        # Float32 sums in another order; AdamW's first steps move by about the learning rate, 1e-2, whatever
        # the size of a gradient, so a gradient near zero may turn its sign and move a few numbers the other
        # way.
        differs = np.abs(value - two[name]) > 1e-4
        assert differs.mean() < 0.01, f"{name}: {differs.mean():.1%}"
    biases = [name for name in one if name.endswith("e_score_correction_bias")]
    assert len(biases) == 2
    for name in biases:
        assert np.array_equal(one[name], two[name]), name
