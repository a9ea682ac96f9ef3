"""Memory for packed weights in the system's large pages (2 MB on x86-64, where it has 4 kB else).

A decode step reads every weight once; with small pages it also waits for the translation of an address every
4 kB. Large pages are granted inside a mapping only, so the weights of all layers lie side by side in few.
"""

import mmap
import weakref
from collections.abc import Callable
from functools import lru_cache
from math import prod
from pathlib import Path

import numpy as np

REGION_BYTES = 1 << 28  # what no weight has touched yet takes no memory
_ALIGNMENT = 64
_SWITCH = Path("/sys/kernel/mm/transparent_hugepage")


class PagePool:
    """Hands out arrays from mappings of ``region_bytes``; a mapping goes when the last of its arrays does."""

    def __init__(self, region_bytes: int = REGION_BYTES):
        self._region_bytes = region_bytes
        # Of a mapping only its arrays keep hold.
        self._region: Callable[[], mmap.mmap | None] = lambda: None
        self._used = 0

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """An array without values, aligned to 64 bytes."""
        size = prod(shape) * np.dtype(dtype).itemsize
        region = self._region()
        if region is None or self._used + size > len(region):
            region = _map(max(size, self._region_bytes))
            self._region, self._used = weakref.ref(region), 0
        array = np.frombuffer(region, dtype, prod(shape), self._used).reshape(shape)
        self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
        return array


def _map(size: int) -> mmap.mmap:
    """Private memory of this process, in large pages where the system has them on offer."""
    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if _SWITCH.exists():
        region.madvise(mmap.MADV_HUGEPAGE)
    return region


@lru_cache(maxsize=1)
def weight_pool() -> PagePool:
    """The pool of all models of this process."""
    return PagePool()
