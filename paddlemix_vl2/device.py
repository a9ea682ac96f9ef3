"""Everything that is chosen by device, processor or Paddle version, in one place and by asking, never by
trying."""

import ctypes
import math
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import paddle

DTYPES = ("float32", "bfloat16", "float16")
_FAST_MKL_VARIABLE = "MKL_DEBUG_CPU_TYPE"
_THREADS_VARIABLE = "OMP_NUM_THREADS"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names and numbers of glibc's malloc.h


def tune_process() -> None:
    """Import Paddle, and set what makes its CPU operators fast: MKL's kernels on AMD, threads, freed memory.

    Runs when the package is imported. MKL reads its variable when it is loaded, so that one is set before
    Paddle comes.
    """
    enable_fast_mkl()
    import paddle  # noqa: F401

    use_all_cores()
    keep_freed_memory()


def enable_fast_mkl(cpuinfo: str | None = None) -> bool:
    """Let the MKL inside Paddle use its AVX2 kernels on AMD processors, which it does not do by itself.

    A value that the user has set is left alone.

    Args:
        cpuinfo: text of ``/proc/cpuinfo``; read from the system when absent.

    Returns:
        whether the variable was set.
    """
    cpuinfo = _cpuinfo() if cpuinfo is None else cpuinfo
    if "AuthenticAMD" not in cpuinfo or _FAST_MKL_VARIABLE in os.environ:
        return False
    os.environ[_FAST_MKL_VARIABLE] = "5"
    return True


def use_all_cores() -> int:
    """Let matrix products use every physical core that this process may run on; Paddle sets one thread.

    ``OMP_NUM_THREADS`` of the user counts, and one of several processes of ``paddle.distributed.launch``
    stays at Paddle's one thread. OpenMP reads the variable at its first computation, which is made here, and
    then the variable is put back, so that processes started from this one see what the user has set. A
    process that has computed before keeps what it has.

    Returns:
        the number of threads asked for.
    """
    import paddle

    before = os.environ.get(_THREADS_VARIABLE)
    if _users_threads(before) or int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
        return int(before or 1)
    os.environ[_THREADS_VARIABLE] = str(physical_cores())
    square = paddle.to_tensor([[1.0] * 64] * 64, place=paddle.CPUPlace())  # MKL does less without OpenMP
    paddle.matmul(square, square)
    if before is None:
        del os.environ[_THREADS_VARIABLE]
    else:
        os.environ[_THREADS_VARIABLE] = before
    return physical_cores()


def _users_threads(value: str | None) -> bool:
    """Whether the user, and not Paddle (which sets 1 where nothing is), chose this number of threads."""
    if value not in (None, "1"):
        return True
    started_with = Path("/proc/self/environ")
    return started_with.exists() and f"{_THREADS_VARIABLE}=".encode() in started_with.read_bytes()


def physical_cores(cpuinfo: str | None = None, cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: hyper-threads counted once, and no more than a container's share.

    Args:
        cpuinfo: text of ``/proc/cpuinfo``; read from the system when absent.
        cgroup: folder with the limits of this process's control group.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fields = _processor(cpuinfo)
    threads_per_core = int(fields.get("siblings", 1)) // int(fields.get("cpu cores", 1))
    cores = usable // max(1, threads_per_core)
    return max(1, min(cores, _container_share(cgroup) or cores))


def _container_share(cgroup: Path) -> int | None:
    """Processors' worth of time that the control group grants, rounded up; None without a limit."""
    version_two, version_one = cgroup / "cpu.max", cgroup / "cpu" / "cpu.cfs_quota_us"
    if version_two.exists():
        quota, period = version_two.read_text().split()
    elif version_one.exists():
        quota, period = version_one.read_text(), version_one.with_name("cpu.cfs_period_us").read_text()
    else:
        return None
    return None if quota.strip() in ("max", "-1") else math.ceil(int(quota) / int(period))


def keep_freed_memory(threshold: int = 1 << 28) -> bool:
    """Let glibc reuse freed blocks of up to ``threshold`` bytes instead of giving them back to the system.

    By default blocks above 32 MiB are mapped anew for every tensor, and touching fresh pages then costs
    several times the computation itself in element-wise operators.

    Returns:
        whether this C library took the setting.
    """
    if platform.libc_ver()[0] != "glibc" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, threshold)) and bool(mallopt(_M_TRIM_THRESHOLD, 2 * threshold))


def flush_denormals() -> bool:
    """Let the processor take numbers below 1e-38 as zero, in this thread and those that it starts.

    Gradients of a young model hold many of them, and every product with one takes a slow path: a backward
    pass took three times as long. Not for a whole program that is only answering: it would change what
    numpy says of the smallest number.

    Returns:
        whether this machine took the setting.
    """
    if platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL("libm.so.6")
    environment = (ctypes.c_uint32 * 8)()  # glibc's fenv_t; the last word is the control register MXCSR
    if library.fegetenv(environment):
        return False
    environment[7] |= 0x8040  # flush to zero, and take denormal operands as zero
    return library.fesetenv(environment) == 0


def return_freed_memory() -> bool:
    """Give the system back what :func:`keep_freed_memory` keeps, after a passage that needed much more than
    what follows.

    Returns:
        whether this C library could.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).malloc_trim(0))


def processor_flags(cpuinfo: str | None = None) -> set[str]:
    """Instruction sets of the processor, as ``avx512f``; empty where the system does not tell.

    Args:
        cpuinfo: text of ``/proc/cpuinfo``; read from the system when absent.
    """
    return set(_processor(cpuinfo).get("flags", "").split())


def _processor(cpuinfo: str | None) -> dict[str, str]:
    """Fields of ``/proc/cpuinfo``, of its last processor."""
    lines = (_cpuinfo() if cpuinfo is None else cpuinfo).splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _cpuinfo() -> str:
    source = Path("/proc/cpuinfo")
    return source.read_text() if source.exists() else ""


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
    """Tiles of so many patches that go through the vision tower at once, which bounds its activations.

    On the CPU the products of two published tiles (729 patches each) are as fast as those of more, and their
    buffers stay small.
    """
    return max(1, (16 if is_gpu() else 2) * 729 // patches)


def has_fused_attention() -> bool:
    """Whether attention without a materialised score matrix (flash attention) is there for the current
    device."""
    return is_gpu()
