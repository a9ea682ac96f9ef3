"""A linear layer with a low-rank adapter (arXiv 2106.09685)."""

import math

import paddle
import paddle.nn.functional as F
from paddle import nn


class LoRALinear(nn.Layer):
    """``x W + b + dropout(x) A B * scaling``, where only A and B are new; B begins at zero.

    Parameters are named as in PaddleNLP's ``LoRALinear``: ``weight`` [in, out] and ``bias`` of the layer it
    is made from, ``lora_A`` [in, r] and ``lora_B`` [r, out] in the dtype of the weight.

    Args:
        layer: whose parameters it takes over, as they are; the weight is frozen.
        r: rank.
        scaling: factor on the adapter's output, ``lora_alpha / r``.
        dropout: probability of an input of the adapter to be zero in training.
    """

    def __init__(self, layer: nn.Linear, r: int, scaling: float, dropout: float = 0.0):
        super().__init__()
        inputs, outputs = layer.weight.shape
        self.r, self.scaling, self.dropout = r, scaling, dropout
        self.weight, self.bias = layer.weight, layer.bias
        self.weight.stop_gradient = True
        uniform = nn.initializer.KaimingUniform(negative_slope=math.sqrt(5), nonlinearity="leaky_relu")
        zero = nn.initializer.Constant(0.0)
        dtype = layer.weight.dtype
        self.lora_A = self.create_parameter([inputs, r], dtype=dtype, default_initializer=uniform)
        self.lora_B = self.create_parameter([r, outputs], dtype=dtype, default_initializer=zero)

    def forward(self, hidden_states: paddle.Tensor) -> paddle.Tensor:
        """[..., in] -> [..., out]."""
        output = F.linear(hidden_states, self.weight, self.bias)
        if self.dropout:
            hidden_states = F.dropout(hidden_states, self.dropout, training=self.training)
        return output + (hidden_states @ self.lora_A @ self.lora_B) * self.scaling

    @paddle.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer of ``W + A B * scaling``, added up in float32 and rounded to the weight's dtype; the
        weight itself is changed."""
        delta = self.lora_A.astype("float32") @ self.lora_B.astype("float32") * self.scaling
        self.weight.set_value((self.weight.astype("float32") + delta).astype(self.weight.dtype))
        with paddle.LazyGuard():  # its own weights are never made
            inputs, outputs = self.weight.shape
            plain = nn.Linear(inputs, outputs, bias_attr=False if self.bias is None else None)
        plain.weight = self.weight
        if self.bias is not None:
            plain.bias = self.bias
        plain.training = self.training
        return plain
