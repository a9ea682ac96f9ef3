"""Runs ``worker.py`` once per number of processes; the tests read what each process has left."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml

from paddlemix_vl2.training import run
from paddlemix_vl2.training.recipe import load_recipe

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")


def _start(processes: int, program: list[str], logs: Path) -> subprocess.Popen:
    """Start a program under paddle.distributed.launch over gloo, from the repository's root."""
    command = [sys.executable, "-W", "ignore", "-m", "paddle.distributed.launch", "--backend", "gloo"]
    command += ["--nproc_per_node", str(processes), "--log_dir", str(logs)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PADDLE_")}
    environment["PYTHONPATH"] = str(ROOT)
    logs.mkdir(parents=True, exist_ok=True)
    with open(logs / "launch.log", "w") as output:
        return subprocess.Popen(
            [*command, *program], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )


def read_logs(logs: Path) -> str:
    return "\n".join(f"{file.name}:\n{file.read_text()[-2500:]}" for file in sorted(logs.glob("*log*")))


@pytest.fixture(scope="session")
def start_processes():
    """``start_processes(number, program, logs)``: the launcher; what it says is in ``logs/launch.log``."""
    return _start


@pytest.fixture(scope="session")
def recipe(small_recipe, tmp_path_factory) -> Path:
    """Four steps of the small model from scratch, with every balance loss and the moving bias."""
    values = {
        **small_recipe,
        "max_steps": 4,
        "gradient_accumulation_steps": 2,
        "lr_scheduler_type": "constant",
        "bias_update_speed": 0.01,
        "expert_groups": 2,
        "expert_balance_alpha": 0.03,
        "device_balance_alpha": 0.05,
        "communication_balance_alpha": 0.02,
        "save_steps": 2,
    }
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.fixture(scope="session")
def train_here(recipe):
    """``train_here(folder, *changes)``: the recipe run by this one process, which has all experts."""

    def train(folder: Path, *changes: str) -> Path:
        changes = ("per_device_train_batch_size=4", f"output_dir={folder}", *changes)
        return run.train(load_recipe(recipe, changes))

    return train


@pytest.fixture(scope="session")
def alone(train_here, tmp_path_factory) -> Path:
    """What it has written."""
    return train_here(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="session")
def folders(recipe, alone, tmp_path_factory):
    """``folders(processes)``: what the worker with so many processes has written, started at the first call.
    Four processes also read what two have saved."""

    @cache
    def start(processes: int) -> tuple[Path, int]:
        folder = tmp_path_factory.mktemp(f"processes{processes}")
        others = [str(finished(2) / "saved")] if processes == 4 else []
        program = [str(WORKER), str(folder), str(recipe), str(alone), *others]
        return folder, _start(processes, program, folder / "logs").wait(timeout=400)

    def finished(processes: int) -> Path:
        folder, code = start(processes)
        assert code == 0, read_logs(folder / "logs")
        return folder

    return finished


@pytest.fixture(scope="session")
def results(folders):
    """``results(processes)``: for every process the arrays that its worker has left, by name."""

    @cache
    def read(processes: int) -> list[dict[str, np.ndarray]]:
        found = []
        for rank in range(processes):
            with np.load(folders(processes) / f"rank{rank}.npz") as file:
                found.append({name: file[name] for name in file.files})
        return found

    return read
