"""Small layers that every part of the language model uses."""

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.autograd import PyLayer

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
        if paddle.is_grad_enabled():
            return _ScaledNorm.apply(hidden, self.weight, self.epsilon)
        wide, scale = _normalize(hidden, self.epsilon)
        return self.weight * (wide * scale).astype(hidden.dtype)


def _normalize(hidden: paddle.Tensor, epsilon: float) -> tuple[paddle.Tensor, paddle.Tensor]:
    """[..., H] in float32 and the factor [..., 1] that makes its mean square one."""
    wide = hidden.astype("float32")
    return wide, paddle.rsqrt(wide.square().mean(axis=-1, keepdim=True) + epsilon)


class _ScaledNorm(PyLayer):
    """The norm with a gradient in closed form: Paddle's gradients of products that broadcast take over three
    times as long on the CPU, where they sum one by one what a matrix product sums at once."""

    @staticmethod
    def forward(ctx, hidden: paddle.Tensor, weight: paddle.Tensor, epsilon: float) -> paddle.Tensor:
        wide, scale = _normalize(hidden.reshape([-1, hidden.shape[-1]]), epsilon)
        normed = wide * scale
        ctx.trains = not hidden.stop_gradient, not weight.stop_gradient
        ctx.save_for_backward(normed, scale, weight)
        return (weight * normed.astype(hidden.dtype)).reshape(hidden.shape)

    @staticmethod
    def backward(ctx, grad: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        normed, scale, weight = ctx.saved_tensor()
        rows = grad.reshape(normed.shape).astype("float32")
        hidden_grad = weight_grad = None  # what is frozen must get none
        weighted = rows * normed
        if ctx.trains[0]:
            wide_weight = weight.astype("float32")
            mean = paddle.matmul(weighted, wide_weight.unsqueeze(-1)) / normed.shape[-1]
            hidden_grad = (rows * wide_weight - normed * mean) * scale
            hidden_grad = hidden_grad.reshape(grad.shape).astype(grad.dtype)
        if ctx.trains[1]:
            weight_grad = paddle.matmul(paddle.ones([1, normed.shape[0]]), weighted).flatten()
            weight_grad = weight_grad.astype(weight.dtype)
        return hidden_grad, weight_grad


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
