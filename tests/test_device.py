"""What is chosen by device."""

import gc

import numpy as np
import paddle
import pytest

from paddlemix_vl2 import device


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
