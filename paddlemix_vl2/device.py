"""All that depends on device, processor or Paddle version. It is asked for, never found out by a failure."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import paddle
# Patches that go through the vision encoder at once: 16 published tiles, or 2.
PATCHES_PER_PASS = {"cpu": 2 * 729, "gpu": 16 * 729}
# What weights can be in: with Paddle's operators, and with the kernels of the CPU.
DTYPES = ("float32", "bfloat16", "float16")
KERNEL_DTYPES = ("bfloat16", "int8")
BACKENDS = ("paddle", "cpu_kernels")
# What users choose from.
DTYPE_CHOICES = ("auto", *DTYPES, "int8")
BACKEND_CHOICES = ("auto", *BACKENDS)


def set_device(name: str = "auto") -> str:
    """Select where tensors live: ``auto`` (a GPU if this Paddle sees one), ``cpu``, ``gpu`` or ``gpu:N``.

    Returns:
        the device as Paddle names it.

    Raises:
        ValueError: the name is unknown, or this Paddle or machine has no such device.
    """
    import paddle

    gpus = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    if name == "auto":
        name = "gpu:0" if gpus else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cpu" and not index:
        paddle.set_device("cpu")
        return paddle.get_device()
    if kind != "gpu" or not (index or "0").isdigit():
        raise ValueError(f"device {name!r} is unknown; use auto, cpu, gpu or gpu:N")
    if not paddle.is_compiled_with_cuda():
        raise ValueError(f"device {name!r}: this Paddle is a CPU build; install paddlepaddle-gpu or use cpu")
    if int(index or 0) >= gpus:
        raise ValueError(f"device {name!r}: Paddle sees {gpus} GPU(s); use cpu or a lower number")
    paddle.set_device(f"gpu:{int(index or 0)}")
    return paddle.get_device()


def to_tensor(array: "np.ndarray") -> "paddle.Tensor":
    """The array as a tensor on the current device, a copy.

    As ``paddle.to_tensor``, whose constructor in Paddle 3.3.1 leaves a list behind at every call (120 bytes
    that are never freed): a program that answers for days would grow by it.
    """
    import paddle

    tensor = paddle.empty(array.shape, str(array.dtype))
    tensor.set_value(array)
    return tensor


def to_tensors(*arrays: "np.ndarray") -> "list[paddle.Tensor]":
    """:func:`to_tensor` of each array."""
    return [to_tensor(array) for array in arrays]


def is_gpu() -> bool:
    """Whether new tensors are placed on a GPU."""
    import paddle

    return paddle.get_device().startswith("gpu")


def resolve_dtype(dtype: str = "auto") -> str:
    """The dtype of a model's weights: ``auto`` is bfloat16 (or float16 where the GPU lacks it) on a GPU and
    float32 on the CPU.

    Raises:
        ValueError: the dtype is none of ``DTYPES``.
    """
    import paddle

    if dtype == "auto":
        if not is_gpu():
            return "float32"
        return "bfloat16" if paddle.amp.is_bfloat16_supported() else "float16"
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; use auto, {', '.join(DTYPES)}")
    return dtype


def can_compute(dtype: str) -> bool:
    """Whether the device multiplies in this dtype."""
    import paddle

    if dtype == "float32":
        return True
    return is_gpu() and (dtype != "bfloat16" or paddle.amp.is_bfloat16_supported())


def check_compute_dtype(dtype: str) -> None:
    """Refuse to run a model in a precision that the device cannot multiply in.

    Raises:
        ValueError: 16-bit weights on the CPU, where Paddle has no matmul for them (loading and saving works).
    """
    if dtype != "float32" and not is_gpu():
        raise ValueError(
            f"Paddle's CPU operators cannot multiply {dtype}; load the model with dtype='float32'"
        )


def tiles_per_pass(patches: int) -> int:
    """Tiles of so many patches that go through the vision encoder at once, which bounds its activations.

    On the CPU the products of two published tiles (729 patches each) are as fast as those of more, and their
    buffers stay small.
    """
    return max(1, PATCHES_PER_PASS["gpu" if is_gpu() else "cpu"] // patches)


def has_fused_attention() -> bool:
    """Whether attention without a materialised score matrix (flash attention) is there for the current
    device."""
    return is_gpu()
