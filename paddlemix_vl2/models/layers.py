"""Small layers that every part of the language model uses."""

import paddle
import paddle.nn.functional as F
from paddle import nn

from paddlemix_vl2.models.precision import keeps_float32


class DeepseekV2RMSNorm(nn.Layer):
    """Root-mean-square norm; statistics in float32 whatever the dtype (published ``DeepseekV2RMSNorm``)."""

    def __init__(self, hidden_size: int, epsilon: float = 1e-6):
        super().__init__()
        self.epsilon = epsilon
        self.weight = self.create_parameter([hidden_size], default_initializer=nn.initializer.Constant(1.0))

    @keeps_float32
    def forward(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """[..., H] -> [..., H], same dtype."""
        wide = hidden.astype("float32")
        wide = wide * paddle.rsqrt(wide.square().mean(axis=-1, keepdim=True) + self.epsilon)
        return self.weight * wide.astype(hidden.dtype)


class DeepseekV2MLP(nn.Layer):
    """Gated MLP, ``down(silu(gate(x)) * up(x))``: dense layers, shared experts and each routed expert."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias_attr=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias_attr=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias_attr=False)

    def forward(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """[..., H] -> [..., H]."""
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
