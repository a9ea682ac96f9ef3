"""Gradients of all processes as one."""

from collections.abc import Callable

import paddle
from paddle import distributed

from paddlemix_vl2.checkpoints.specs import expert_of
from paddlemix_vl2.distributed import ExpertMesh

# Values that are summed over the processes at once: 100 MB of float32.
_BUCKET_VALUES = 25_000_000

Named = list[tuple[str, paddle.Tensor]]


@paddle.no_grad()
def average_gradients(parameters: Named, world_size: int, mesh: ExpertMesh | None = None) -> None:
    """Mean of the gradients over the processes, in place.

    A parameter without a gradient (an unused expert, the vision encoder on text) counts as zero
    everywhere, also in a single process, so that the optimizer does the same whatever the number of
    processes. An expert's gradient holds the tokens of its whole expert-parallel group already: it is summed
    over the copies of the expert, and divided by all processes as the others are.

    Args:
        parameters: path and parameter of all that trains in this process.
        world_size: number of processes.
        mesh: where the experts are spread over processes.
    """
    for _, parameter in parameters:
        if parameter.grad is None:
            parameter.grad = paddle.zeros_like(parameter)
    if world_size == 1:
        return
    everywhere, experts = split_experts(parameters, mesh)
    _sum_and_divide(everywhere, world_size, distributed.all_reduce)
    if mesh:
        _sum_and_divide(experts, world_size, mesh.all_reduce_expert_data_parallel)


def split_experts(parameters: Named, mesh: ExpertMesh | None) -> tuple[list, list]:
    """The parameters that all processes have, and those of experts of this one."""
    if mesh is None:
        return [parameter for _, parameter in parameters], []
    experts = [parameter for path, parameter in parameters if expert_of(path) is not None]
    return [parameter for path, parameter in parameters if expert_of(path) is None], experts


def _sum_and_divide(
    parameters: list[paddle.Tensor], divisor: int, sum_up: Callable[[paddle.Tensor], object]
) -> None:
    """Gradients summed over processes by ``sum_up``, in place, and divided."""
    for bucket in _buckets(parameters):
        flat = paddle.concat([parameter.grad.flatten() for parameter in bucket])
        sum_up(flat)
        parts = (flat / divisor).split([parameter.size for parameter in bucket])
        for parameter, part in zip(bucket, parts, strict=True):
            parameter.grad.set_value(part.reshape(parameter.shape))


def _buckets(parameters: list[paddle.Tensor]) -> list[list[paddle.Tensor]]:
    """Neighbours of one dtype, up to ``_BUCKET_VALUES`` together."""
    if not parameters:
        return []
    buckets, values = [[]], 0
    for parameter in parameters:
        other_dtype = bool(buckets[-1]) and buckets[-1][-1].grad.dtype != parameter.grad.dtype
        if buckets[-1] and (other_dtype or values + parameter.size > _BUCKET_VALUES):
            buckets.append([])
            values = 0
        buckets[-1].append(parameter)
        values += parameter.size
    return buckets


@paddle.no_grad()
def clip_gradients(parameters: Named, max_norm: float, mesh: ExpertMesh | None = None) -> float:
    """Scale all gradients, in place, so that the norm over all of them is at most ``max_norm`` (0: any).
    Paddle's own clipping looks at one parameter group of the optimizer at a time. Experts in other processes
    count, each once.

    Returns:
        the norm before.
    """
    everywhere, experts = split_experts(parameters, mesh)
    square = _sum_of_squares(everywhere)
    if mesh:
        of_experts = _sum_of_squares(experts)
        mesh.all_reduce_expert_parallel(of_experts)
        square = square + of_experts
    norm = float(square.sqrt())
    if 0 < max_norm < norm:
        for _, parameter in parameters:
            parameter.grad.scale_(max_norm / norm)
    return norm


def _sum_of_squares(parameters: list[paddle.Tensor]) -> paddle.Tensor:
    """float32 scalar."""
    squares = [parameter.grad.astype("float32").square().sum() for parameter in parameters]
    return paddle.add_n(squares) if squares else paddle.zeros([])
