"""Memory that packed weights lie in."""

import gc
import weakref

import numpy as np
import pytest

from paddlemix_vl2.kernels.huge_pages import PagePool


def address(array):
    return array.ctypes.data


def test_arrays_lie_side_by_side_aligned_and_apart():
    pool = PagePool(region_bytes=4096)
    first, second = pool.empty((3, 5), "int8"), pool.empty((4,), "float32")
    assert (first.shape, first.dtype, second.shape, second.dtype) == ((3, 5), np.int8, (4,), np.float32)
    assert address(second) - address(first) == 64  # 15 bytes, rounded up
    first[:], second[:] = 7, 1.5
    assert (first == 7).all() and (second == 1.5).all()


def test_what_does_not_fit_begins_another_mapping():
    pool = PagePool(region_bytes=4096)
    first, second, large = (
        pool.empty((4000,), "int8"),
        pool.empty((200,), "int8"),
        pool.empty((9000,), "int8"),
    )
    for array, value in ((first, 1), (second, 2), (large, 3)):
        array[:] = value
    assert (first == 1).all() and (second == 2).all() and (large == 3).all()


def test_a_mapping_goes_with_its_last_array():
    pool = PagePool(region_bytes=4096)
    first, second = pool.empty((10,), "int8"), pool.empty((10,), "int8")
    region = weakref.ref(first.base.base if first.base.base is not None else first.base)
    del first
    gc.collect()
    second[:] = 1
    del second
    gc.collect()
    assert region() is None
    assert (pool.empty((10,), "int8") == 0).all()  # a new one, of zeros


@pytest.mark.parametrize("dtype", ["int8", "uint16", "float32"])
def test_every_address_suits_the_loads_of_a_register(dtype):
    pool = PagePool(region_bytes=1 << 16)
    assert [address(pool.empty((count,), dtype)) % 64 for count in (1, 3, 100)] == [0, 0, 0]
