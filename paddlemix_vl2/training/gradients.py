"""Gradients of all processes as one."""

import paddle
from paddle import distributed

# Values that are summed over the processes at once: 100 MB of float32.
_BUCKET_VALUES = 25_000_000


@paddle.no_grad()
def average_gradients(parameters: list[paddle.Tensor], world_size: int) -> None:
    """Mean of the gradients over the processes, in place.

    A parameter without a gradient (an expert that no token chose, the vision tower on text) counts as zero
    everywhere, also in a single process, so that the optimizer does the same whatever the number of
    processes.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = paddle.zeros_like(parameter)
    if world_size == 1:
        return
    for bucket in _buckets(parameters):
        flat = paddle.concat([parameter.grad.flatten() for parameter in bucket])
        distributed.all_reduce(flat)
        parts = (flat / world_size).split([parameter.size for parameter in bucket])
        for parameter, part in zip(bucket, parts, strict=True):
            parameter.grad.set_value(part.reshape(parameter.shape))


def _buckets(parameters: list[paddle.Tensor]) -> list[list[paddle.Tensor]]:
    """Neighbours of one dtype, up to ``_BUCKET_VALUES`` together."""
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
def clip_gradients(parameters: list[paddle.Tensor], max_norm: float) -> float:
    """Scale all gradients, in place, so that the norm over all of them is at most ``max_norm`` (0: any).
    Paddle's own clipping looks at one parameter group of the optimizer at a time.

    Returns:
        the norm before.
    """
    squares = [parameter.grad.astype("float32").square().sum() for parameter in parameters]
    norm = float(paddle.add_n(squares).sqrt())
    if 0 < max_norm < norm:
        for parameter in parameters:
            parameter.grad.scale_(max_norm / norm)
    return norm
