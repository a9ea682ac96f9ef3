"""What is chosen by processor and device."""

import gc
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlemix_vl2 import device


@pytest.mark.parametrize(
    ("vendor", "preset", "expected"),
    [("AuthenticAMD", None, "5"), ("AuthenticAMD", "3", "3"), ("GenuineIntel", None, None)],
)
def test_fast_mkl_is_set_on_amd_only(vendor, preset, expected, monkeypatch):
    monkeypatch.delenv("MKL_DEBUG_CPU_TYPE", raising=False)
    if preset:
        monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", preset)
    assert device.enable_fast_mkl(f"vendor_id : {vendor}\n") == (expected == "5")
    assert os.environ.get("MKL_DEBUG_CPU_TYPE") == expected


HYPERTHREADED = "processor : 0\nsiblings : 4\ncpu cores : 2\n\nprocessor : 1\nsiblings : 4\ncpu cores : 2\n"


@pytest.mark.parametrize(
    ("cpuinfo", "usable", "expected"), [(HYPERTHREADED, 4, 2), ("", 4, 4), (HYPERTHREADED, 1, 1)]
)
def test_physical_cores(cpuinfo, usable, expected, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(usable)))
    assert device.physical_cores(cpuinfo, cgroup=tmp_path) == expected


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
    assert device.physical_cores("", cgroup=tmp_path) == expected


@pytest.mark.parametrize(("preset", "expected"), [({}, "all"), ({"OMP_NUM_THREADS": "1"}, "1")])
def test_threads_are_those_of_the_user_or_all_cores(preset, expected):
    """Asked of the OpenMP library itself, in a second thread of a fresh process: the setting must hold there
    too."""
    script = """
import threading, paddlemix_vl2, paddle
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
    assert int(printed) == (device.physical_cores() if expected == "all" else int(expected))


def test_devices_are_named_in_errors():
    assert device.set_device("cpu") == "cpu"
    for name in ("tpu", "cpu:1", "gpu:x"):
        with pytest.raises(ValueError, match=f"device '{name}' is unknown"):
            device.set_device(name)
    if not paddle.is_compiled_with_cuda():
        with pytest.raises(ValueError, match="CPU build"):
            device.set_device("gpu:0")


def test_dtypes():
    assert device.resolve_dtype("float16") == "float16"
    if not device.is_gpu():
        assert device.resolve_dtype("auto") == "float32"
        with pytest.raises(ValueError, match="cannot multiply float16"):
            device.check_compute_dtype("float16")
    with pytest.raises(ValueError, match="'int4' is unknown"):
        device.resolve_dtype("int4")


def test_freed_memory_goes_back():
    """Where the C library can: what was freed is not resident any more."""
    if not device.return_freed_memory() and platform.libc_ver()[0] != "glibc":
        pytest.skip("another C library")

    def resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    blocks = [bytearray(b"x" * 20_000) for _ in range(20_000)]
    kept = blocks[::1000]  # holes between them
    full = resident()
    blocks.clear()
    device.return_freed_memory()
    assert len(kept) == 20 and resident() < full - 200e6


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).reshape(2, 3),
        np.arange(6).reshape(2, 3).T,
        np.zeros((2, 2), bool),
        np.zeros(0, "float32"),
    ],
)
def test_tensors_of_arrays(array):
    tensor = device.to_tensor(array)
    expected = paddle.to_tensor(array)
    assert (tensor.dtype, tensor.place, tensor.stop_gradient) == (expected.dtype, expected.place, True)
    assert np.array_equal(tensor.numpy(), array)
    before = tensor.numpy()
    array[...] = 1
    assert np.array_equal(tensor.numpy(), before), "a copy"


def test_tensors_leave_nothing_behind():
    """With ``paddle.to_tensor`` there is one object more for every call."""
    array = np.zeros(3)
    device.to_tensor(array)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(100):
        device.to_tensor(array)
    gc.collect()
    assert len(gc.get_objects()) - before < 20
