"""A process that is killed ends the run everywhere, and the run goes on from its last checkpoint."""

import os
import re
import shutil
import signal
import time

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
def killed(recipe, tmp_path_factory, start_processes):
    """A run of two processes that share the experts and save after every step; the second one is killed as
    soon as there are two checkpoints. Returns the run's folder, the logs and the seconds that it lived on."""
    folder = tmp_path_factory.mktemp("killed")
    changes = [f"output_dir={folder / 'run'}", "max_steps=300", "save_steps=1", "expert_parallel_degree=2"]
    program = ["examples/train.py", str(recipe), "per_device_train_batch_size=2", *changes]
    launcher = start_processes(2, program, folder / "logs")
    try:
        deadline = time.monotonic() + 180
        while not (folder / "run" / "checkpoint-2").is_dir():
            assert launcher.poll() is None and time.monotonic() < deadline, "no checkpoint came"
            time.sleep(0.05)
        pids = dict(re.findall(r"proc_id:(\d+) idx:(\d)", (folder / "logs" / "launch.log").read_text()))
        victim, survivor = sorted(pids, key=pids.get, reverse=True)
        os.kill(int(victim), signal.SIGKILL)
        begin = time.monotonic()
        code = launcher.wait(timeout=90)
        return folder, code, time.monotonic() - begin, int(survivor)
    finally:
        launcher.terminate()


@pytest.mark.distributed
@pytest.mark.slow
def test_a_kill_ends_all_processes_and_is_named(killed):
    folder, code, seconds, survivor = killed
    assert code != 0
    # The launcher looks every three seconds, and ends processes twice with pauses of four; gloo waits 30.
    assert seconds < 60
    with pytest.raises(ProcessLookupError):
        os.kill(survivor, 0)
    assert re.search(r"ABORT!!!.*rank=\[(0, )?1\]", (folder / "logs" / "launch.log").read_text())
    line = "another process of this run has ended"
    assert line not in (folder / "logs" / "workerlog.1").read_text()


@pytest.mark.distributed
@pytest.mark.slow
def test_the_run_goes_on_from_its_last_checkpoint(killed, train_here, tmp_path):
    """In one process, which has all experts then."""
    last = checkpoint.last_checkpoint(killed[0] / "run")
    step = checkpoint.read_step(last)
    assert step >= 2
    shutil.copytree(last, tmp_path / last.name)
    train_here(tmp_path, f"max_steps={step + 1}", "save_steps=1", "resume_from_checkpoint=auto")
    assert checkpoint.read_step(checkpoint.last_checkpoint(tmp_path)) == step + 1
