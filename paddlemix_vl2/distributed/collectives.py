"""Collectives over all processes; with a single process each of them returns the value itself."""

from typing import Any

import paddle
from paddle import distributed


def num_processes() -> int:
    """Processes that were started together, this one included; known before their groups are made."""
    return distributed.get_world_size()


def sum_tensor(tensor: paddle.Tensor) -> paddle.Tensor:
    """The sum over all processes, in a new tensor, without gradient."""
    total = tensor.detach().clone()
    if distributed.get_world_size() > 1:
        distributed.all_reduce(total)
    return total


def sum_number(value: float) -> float:
    """The sum over all processes."""
    return float(sum_tensor(paddle.to_tensor(float(value), dtype="float64")))


def gather_objects(value: Any) -> list:
    """The value of every process, in the order of their ranks."""
    if distributed.get_world_size() == 1:
        return [value]
    values: list = []
    distributed.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    """Return when every process has called it."""
    if distributed.is_initialized():
        distributed.barrier()
