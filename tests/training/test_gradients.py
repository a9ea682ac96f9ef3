"""Clipping by hand; averaging over processes is in test_two_processes."""

import math

import numpy as np
import paddle
import pytest

from paddlemix_vl2.training.gradients import average_gradients, clip_gradients


@pytest.fixture
def parameters():
    """Two parameters with gradients of three and four in every place, and one that was not used."""
    first, second, unused = (paddle.create_parameter([size], "float32") for size in (4, 3, 2))
    (first.sum() * 3 + second.sum() * 4).backward()
    named = [("first", first), ("second", second), ("unused", unused)]
    average_gradients(named, world_size=1)
    return named


def test_the_norm_is_that_of_all_parameters_together(parameters):
    before = math.sqrt(4 * 9 + 3 * 16)
    assert clip_gradients(parameters, max_norm=1.0) == pytest.approx(before)
    assert parameters[0][1].grad.numpy() == pytest.approx(np.full(4, 3 / before), rel=1e-6)
    assert parameters[1][1].grad.numpy() == pytest.approx(np.full(3, 4 / before), rel=1e-6)
    assert parameters[2][1].grad.tolist() == [0, 0]
    assert clip_gradients(parameters, max_norm=1.0) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("max_norm", [0.0, 100.0])
def test_small_gradients_stay(max_norm, parameters):
    clip_gradients(parameters, max_norm)
    assert parameters[0][1].grad.tolist() == [3, 3, 3, 3]
