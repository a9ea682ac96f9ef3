"""Layers that keep only their input for the backward pass and run their forward pass a second time there.

Around 30 % more computation for a small part of the memory. PaddleNLP's Trainer sets ``enable_recompute`` on
every layer that has it, where a recipe says ``recompute: true``.
"""

import paddle
from paddle import nn
from paddle.distributed.fleet.utils import recompute


def recompute_layer(layer: nn.Layer, hidden_states: paddle.Tensor, *inputs):
    """``layer(hidden_states, *inputs)``, and once more in the backward pass.

    Args:
        layer: gives the same output for the same input: its dropout is repeated, a cache must not grow twice.
        hidden_states: of any shape and dtype. A layer keeps its activations where this needs no gradient, as
            the first layer with adapters above frozen ones: Paddle would warn of every such call.
    """
    if not paddle.is_grad_enabled() or hidden_states.stop_gradient:
        return layer(hidden_states, *inputs)
    # The reentrant way would take the routing's indices for outputs that have a gradient.
    return recompute(layer, hidden_states, *inputs, use_reentrant=False)
