"""Layers that keep only their input for the backward pass and run their forward pass a second time there.

Around 30 % more computation for a small part of the memory. PaddleNLP's Trainer sets ``enable_recompute`` on
every layer that has it, where a recipe says ``recompute: true``.
"""

import paddle
from paddle import nn
from paddle.distributed.fleet.utils import recompute


def run_layer(layer: nn.Layer, hidden: paddle.Tensor, *inputs):
    """``layer(hidden, *inputs)``, recomputed in the backward pass where the layer's ``enable_recompute`` says
    so and it is training.

    Args:
        layer: gives the same output for the same input: its dropout is repeated, a cache must not grow twice.
        hidden: of any shape and dtype. A layer keeps its activations where this needs no gradient, as the
            first layer with adapters above frozen ones: Paddle would warn of every such call.
    """
    if layer.enable_recompute and layer.training and paddle.is_grad_enabled() and not hidden.stop_gradient:
        # The reentrant way would take the routing's indices for outputs that have a gradient.
        return recompute(layer, hidden, *inputs, use_reentrant=False)
    return layer(hidden, *inputs)
