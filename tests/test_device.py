"""What is chosen by processor and device."""

import os

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


def test_devices_are_named_in_errors():
    assert device.set_device("cpu") == "cpu" or paddle.get_device() == "cpu"
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
