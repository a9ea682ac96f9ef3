"""Everything that is chosen by device, processor or Paddle version, in one place and by asking, never by
trying.

:func:`enable_fast_mkl` must run before Paddle is imported; the package's ``__init__`` sees to that.
"""

import os
from pathlib import Path

_FAST_MKL_VARIABLE = "MKL_DEBUG_CPU_TYPE"
DTYPES = ("float32", "bfloat16", "float16")


def enable_fast_mkl(cpuinfo: str | None = None) -> bool:
    """Let the MKL inside Paddle use its AVX2 kernels on AMD processors, which it does not do by itself.

    A value that the user has set is left alone.

    Args:
        cpuinfo: text of ``/proc/cpuinfo``; read from the system when absent.

    Returns:
        whether the variable was set.
    """
    if cpuinfo is None:
        source = Path("/proc/cpuinfo")
        cpuinfo = source.read_text() if source.exists() else ""
    if "AuthenticAMD" not in cpuinfo or _FAST_MKL_VARIABLE in os.environ:
        return False
    os.environ[_FAST_MKL_VARIABLE] = "5"
    return True


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
        return paddle.set_device("cpu")
    if kind != "gpu" or not (index or "0").isdigit():
        raise ValueError(f"device {name!r} is unknown; use auto, cpu, gpu or gpu:N")
    if not paddle.is_compiled_with_cuda():
        raise ValueError(f"device {name!r}: this Paddle is a CPU build; install paddlepaddle-gpu or use cpu")
    if int(index or 0) >= gpus:
        raise ValueError(f"device {name!r}: Paddle sees {gpus} GPU(s); use cpu or a lower number")
    return paddle.set_device(f"gpu:{int(index or 0)}")


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


def check_compute_dtype(dtype: str) -> None:
    """Refuse to run a model in a precision that the device cannot multiply in.

    Raises:
        ValueError: 16-bit weights on the CPU, where Paddle has no matmul for them (loading and saving works).
    """
    if dtype != "float32" and not is_gpu():
        raise ValueError(
            f"Paddle's CPU operators cannot multiply {dtype}; load the model with dtype='float32'"
        )


def has_fused_attention() -> bool:
    """Whether attention without a materialised score matrix (flash attention) is there for the current
    device."""
    return is_gpu()
