"""Whether a model runs on the kernels."""

import logging
import os
from functools import lru_cache

from paddlemix_vl2 import device
from paddlemix_vl2.kernels import ops
from paddlemix_vl2.kernels.build import SWITCH_VARIABLE, KernelsUnavailable


def choose_weights(dtype: str = "auto", backend: str = "auto", notify: bool = True) -> str | None:
    """The weights of a model on the kernels, ``bfloat16`` or ``int8``; None for Paddle's operators.

    Args:
        dtype, backend: as in ``from_pretrained``.
        notify: log why ``auto`` does without the kernels; who asks before the model is made does not.

    Raises:
        ValueError: an unknown backend, or one that cannot have this dtype here.
    """
    if backend not in device.BACKEND_CHOICES:
        raise ValueError(f"backend {backend!r} is unknown; use {', '.join(device.BACKEND_CHOICES)}")
    wanted = backend == "cpu_kernels" or dtype == "int8"
    if backend == "paddle" and dtype == "int8":
        raise ValueError("dtype 'int8' needs backend='cpu_kernels'")
    if backend == "cpu_kernels" and dtype not in ("auto", *device.KERNEL_DTYPES):
        possible = " or ".join(device.KERNEL_DTYPES)
        raise ValueError(f"backend 'cpu_kernels' computes with {possible} weights, not {dtype}")
    if backend == "paddle" or not (wanted or dtype in ("auto", "bfloat16")):
        return None
    problem = "it computes on the CPU only" if device.is_gpu() else kernels_problem()
    if problem and wanted:
        raise ValueError(f"backend 'cpu_kernels' cannot be used here: {problem}")
    if problem:
        if notify and not device.is_gpu():
            _say_once(f"Without the faster kernels: {problem}")
        return None
    return "int8" if dtype == "int8" else "bfloat16"


def kernels_problem() -> str | None:
    """Why the kernels cannot be used on this machine; None where they can."""
    if os.environ.get(SWITCH_VARIABLE) == "0":
        return f"{SWITCH_VARIABLE}=0"
    return _loading_problem()


@lru_cache(maxsize=1)
def _loading_problem() -> str | None:
    try:
        ops.load()
    except KernelsUnavailable as error:
        return str(error)
    return None


@lru_cache
def _say_once(message: str) -> None:
    logging.getLogger("paddlemix_vl2").warning(message)
