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


def launch(processes: int, program: list[str], logs: Path, timeout: int = 400) -> subprocess.CompletedProcess:
    """Run a program under paddle.distributed.launch over gloo, from the repository's root."""
    command = [sys.executable, "-W", "ignore", "-m", "paddle.distributed.launch", "--backend", "gloo"]
    command += ["--nproc_per_node", str(processes), "--log_dir", str(logs)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PADDLE_")}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [*command, *program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )


def read_logs(logs: Path) -> str:
    return "\n".join(f"{file.name}:\n{file.read_text()[-2500:]}" for file in sorted(logs.glob("workerlog.*")))


@pytest.fixture(scope="session")
def recipe(small_folder, tmp_path_factory) -> Path:
    """Four steps of the small model from nothing, with every balance loss and the moving bias."""
    values = {
        "model_config": str(small_folder / "config.json"),
        "processor_path": str(small_folder),
        "vision": {"mode": "full"},
        "train_dataset": [{"format": "drawn", "task": "mixed"}, {"format": "drawn", "task": "words"}],
        "max_seq_length": 320,
        "max_steps": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "bias_update_speed": 0.01,
        "balance_devices": 2,
        "device_balance_alpha": 0.05,
        "communication_balance_alpha": 0.02,
        "logging_steps": 1,
        "save_steps": 2,
        "report_to": "none",
        "disable_tqdm": True,
    }
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.fixture(scope="session")
def alone(recipe, tmp_path_factory) -> Path:
    """The recipe run by one process with all experts."""
    folder = tmp_path_factory.mktemp("alone")
    return run.train(load_recipe(recipe, ["per_device_train_batch_size=4", f"output_dir={folder}"]))


@pytest.fixture(scope="session")
def folders(recipe, alone, tmp_path_factory):
    """``folders(processes)``: what the worker with so many processes has written, started at the first call.
    Four processes also read what two have saved."""

    @cache
    def start(processes: int) -> tuple[Path, subprocess.CompletedProcess]:
        folder = tmp_path_factory.mktemp(f"processes{processes}")
        others = [str(finished(2) / "saved")] if processes == 4 else []
        done = launch(
            processes, [str(WORKER), str(folder), str(recipe), str(alone), *others], folder / "logs"
        )
        return folder, done

    def finished(processes: int) -> Path:
        folder, done = start(processes)
        assert done.returncode == 0, done.stdout[-2000:] + read_logs(folder / "logs")
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
