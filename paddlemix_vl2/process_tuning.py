"""What makes Paddle's CPU operators fast in this process: MKL's kernels, threads, freed memory."""

import ctypes
import math
import os
import platform
from pathlib import Path

_FAST_MKL_VARIABLE = "MKL_DEBUG_CPU_TYPE"

THREADS_VARIABLE = "OMP_NUM_THREADS"

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names and numbers of glibc's malloc.h


def tune_process() -> None:
    """Import Paddle, and set what makes its CPU operators fast: MKL's kernels on AMD, threads, freed memory.

    Runs when :mod:`paddlemix_vl2.models` is imported. MKL reads its variable when it is loaded, so that one
    is set before Paddle comes: already when the package is imported.
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

    before = os.environ.get(THREADS_VARIABLE)
    if _users_threads(before) or int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
        return int(before or 1)
    os.environ[THREADS_VARIABLE] = str(physical_cores())
    square = paddle.to_tensor([[1.0] * 64] * 64, place=paddle.CPUPlace())  # MKL does less without OpenMP
    paddle.matmul(square, square)
    if before is None:
        del os.environ[THREADS_VARIABLE]
    else:
        os.environ[THREADS_VARIABLE] = before
    return physical_cores()


def _users_threads(value: str | None) -> bool:
    """Whether the user, and not Paddle (which sets 1 where nothing is), chose this number of threads."""
    if value not in (None, "1"):
        return True
    started_with = Path("/proc/self/environ")
    return started_with.exists() and f"{THREADS_VARIABLE}=".encode() in started_with.read_bytes()


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

    By default blocks above 32 MiB are mapped again for every tensor, and touching fresh pages then costs
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

    Gradients of an untrained model have many of them, and every product with one takes a slow path: a
    backward pass took three times as long. Only for training: it would change numpy's smallest number for a
    whole program.

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
    """Instruction sets of the processor, as ``avx512f``; empty where the system does not list them.

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
