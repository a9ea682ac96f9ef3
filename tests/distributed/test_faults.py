"""A process that is killed ends the run everywhere, and the run resumes from its last checkpoint."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from paddlemix_vl2.distributed.faults import lost_processes_named
from paddlemix_vl2.training import checkpoint


@pytest.mark.parametrize(
    "message", ["[/x/gloo/transport/tcp/pair.cc:576] Read error", "Application timeout caused pair closure"]
)
def test_a_lost_connection_is_told_in_one_line(message):
    with (
        pytest.raises(ConnectionError, match=r"another process of this run has ended.*\("),
        lost_processes_named(),
    ):
        raise RuntimeError(f"\n{message}\n")


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="out of memory"), lost_processes_named():
        raise RuntimeError("out of memory")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def program(recipe, run_folder) -> list[str]:
    """A run of two processes that share the experts and save after every step."""
    changes = [f"output_dir={run_folder}", "save_steps=1", "expert_parallel_degree=2"]
    changes += ["per_device_train_batch_size=2", "resume_from_checkpoint=auto"]
    return ["examples/train.py", str(recipe), *changes]


@pytest.fixture(scope="module")
def killed(program, run_folder, tmp_path_factory, start_processes):
    """The second process is killed when there are two checkpoints and another one is being written. Returns
    the logs, the exit code, the seconds that the run lived on, and the other process."""
    logs = tmp_path_factory.mktemp("logs")
    launcher = start_processes(2, [*program, "max_steps=300"], logs)
    deadline = time.monotonic() + 180

    def wait_for(pattern: str) -> None:
        while not list(run_folder.glob(pattern)):
            assert launcher.poll() is None and time.monotonic() < deadline, f"no {pattern} came"
            time.sleep(0.001)

    try:
        wait_for("checkpoint-2")
        pids = dict(re.findall(r"proc_id:(\d+) idx:(\d)", (logs / "launch.log").read_text()))
        victim, survivor = sorted(pids, key=pids.get, reverse=True)
        wait_for(".checkpoint-*.partial")
        os.kill(int(victim), signal.SIGKILL)
        begin = time.monotonic()
        code = launcher.wait(timeout=90)
        return logs, code, time.monotonic() - begin, int(survivor)
    finally:
        launcher.terminate()


@pytest.mark.distributed
@pytest.mark.slow
def test_a_kill_ends_all_processes_and_is_named(killed):
    logs, code, seconds, survivor = killed
    assert code != 0
    # The launcher looks every three seconds, and ends processes twice with pauses of four; gloo waits 30.
    assert seconds < 60
    with pytest.raises(ProcessLookupError):
        os.kill(survivor, 0)
    assert re.search(r"ABORT!!!.*rank=\[(0, )?1\]", (logs / "launch.log").read_text())
    line = "another process of this run has ended"
    assert line not in (logs / "workerlog.1").read_text()


@pytest.mark.distributed
@pytest.mark.slow
def test_the_same_command_goes_on_from_the_last_checkpoint(
    killed, program, run_folder, start_processes, tmp_path
):
    step = checkpoint.read_step(checkpoint.last_checkpoint(run_folder))
    assert step >= 2
    launcher = start_processes(2, [*program, f"max_steps={step + 1}"], tmp_path)
    assert launcher.wait(timeout=180) == 0, (tmp_path / "workerlog.0").read_text()[-2500:]
    assert checkpoint.read_step(checkpoint.last_checkpoint(run_folder)) == step + 1
    assert not list(run_folder.glob(".checkpoint-*"))
