"""What makes the CPU fast: kernels, threads, memory."""

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from paddlemix_vl2 import process_tuning


@pytest.mark.parametrize(
    ("vendor", "preset", "expected"),
    [("AuthenticAMD", None, "5"), ("AuthenticAMD", "3", "3"), ("GenuineIntel", None, None)],
)
def test_fast_mkl_is_set_on_amd_only(vendor, preset, expected, monkeypatch):
    monkeypatch.delenv("MKL_DEBUG_CPU_TYPE", raising=False)
    if preset:
        monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", preset)
    assert process_tuning.enable_fast_mkl(f"vendor_id : {vendor}\n") == (expected == "5")
    assert os.environ.get("MKL_DEBUG_CPU_TYPE") == expected


HYPERTHREADED = "processor : 0\nsiblings : 4\ncpu cores : 2\n\nprocessor : 1\nsiblings : 4\ncpu cores : 2\n"


@pytest.mark.parametrize(
    ("cpuinfo", "usable", "expected"), [(HYPERTHREADED, 4, 2), ("", 4, 4), (HYPERTHREADED, 1, 1)]
)
def test_physical_cores(cpuinfo, usable, expected, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(usable)))
    assert process_tuning.physical_cores(cpuinfo, cgroup=tmp_path) == expected


@pytest.mark.parametrize(
    ("quota", "expected"), [("150000", 2), ("50000", 1), ("9900000", 8), ("no limit", 8)]
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_container_gets_its_share(version, quota, expected, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    if version == 2:
        (tmp_path / "cpu.max").write_text(f"{quota.replace('no limit', 'max')} 100000\n")
    else:
        (tmp_path / "cpu").mkdir()
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota.replace("no limit", "-1") + "\n")
        (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert process_tuning.physical_cores("", cgroup=tmp_path) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "expected"), [({}, "all"), ({"OMP_NUM_THREADS": "1"}, "1")])
def test_threads_are_those_of_the_user_or_all_cores(preset, expected):
    """Asked of the OpenMP library itself, in a second thread of a fresh process that has imported the model:
    the setting must hold there too."""
    script = """
import threading, paddle
from paddlemix_vl2 import DeepseekVLV2ForCausalLM
from threadpoolctl import threadpool_info
x = paddle.ones([64, 64])
paddle.matmul(x, x)
found = []
def look():
    found.extend(i["num_threads"] for i in threadpool_info() if "iomp" in i["filepath"])
thread = threading.Thread(target=look)
thread.start(); thread.join()
print(found[0])
"""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    printed = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment, **preset},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert int(printed) == (process_tuning.physical_cores() if expected == "all" else int(expected))


def test_the_package_by_itself_brings_no_paddle():
    """But what Paddle reads when it comes."""
    script = (
        "import os, sys, paddlemix_vl2; print('paddle' in sys.modules, os.environ.get('MKL_DEBUG_CPU_TYPE'))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "MKL_DEBUG_CPU_TYPE"}
    run = [sys.executable, "-c", script]
    printed = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
    is_amd = "AuthenticAMD" in process_tuning._cpuinfo()
    assert printed.split() == ["False", "5" if is_amd else "None"]


def test_freed_memory_goes_back():
    """Where the C library can: what was freed is not resident any more."""
    if not process_tuning.return_freed_memory() and platform.libc_ver()[0] != "glibc":
        pytest.skip("another C library")

    def resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    blocks = [bytearray(b"x" * 20_000) for _ in range(20_000)]
    kept = blocks[::1000]  # holes between them
    full = resident()
    blocks.clear()
    process_tuning.return_freed_memory()
    assert len(kept) == 20 and resident() < full - 200e6
