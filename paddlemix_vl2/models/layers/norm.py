"""Root-mean-square norm."""

import paddle
from paddle import nn
from paddle.autograd import PyLayer


class DeepseekV2RMSNorm(nn.Layer):
    """Root-mean-square norm; statistics in float32 whatever the dtype (published ``DeepseekV2RMSNorm``)."""

    def __init__(self, hidden_size: int, epsilon: float = 1e-6):
        super().__init__()
        self.epsilon = epsilon
        self.weight = self.create_parameter([hidden_size], default_initializer=nn.initializer.Constant(1.0))

    def forward(self, hidden_states: paddle.Tensor) -> paddle.Tensor:
        """[..., H] -> [..., H], same dtype."""
        if paddle.amp.is_autocast_enabled():  # which would compute in 16 bits
            with paddle.amp.auto_cast(enable=False):
                return self.forward(hidden_states)
        if paddle.is_grad_enabled():
            return _ScaledNorm.apply(hidden_states, self.weight, self.epsilon)
        wide, scale = _normalize(hidden_states, self.epsilon)
        return self.weight * (wide * scale).astype(hidden_states.dtype)


def _normalize(hidden_states: paddle.Tensor, epsilon: float) -> tuple[paddle.Tensor, paddle.Tensor]:
    """[..., H] in float32 and the factor [..., 1] that makes its mean square one."""
    wide = hidden_states.astype("float32")
    return wide, paddle.rsqrt(wide.square().mean(axis=-1, keepdim=True) + epsilon)


class _ScaledNorm(PyLayer):
    """The norm with a gradient in closed form: Paddle's gradients of products that broadcast take over three
    times as long on the CPU, where they sum one by one what a matrix product sums at once."""

    @staticmethod
    def forward(ctx, hidden_states: paddle.Tensor, weight: paddle.Tensor, epsilon: float) -> paddle.Tensor:
        wide, scale = _normalize(hidden_states.reshape([-1, hidden_states.shape[-1]]), epsilon)
        normed = wide * scale
        ctx.trains = not hidden_states.stop_gradient, not weight.stop_gradient
        ctx.save_for_backward(normed, scale, weight)
        return (weight * normed.astype(hidden_states.dtype)).reshape(hidden_states.shape)

    @staticmethod
    def backward(ctx, grad: paddle.Tensor):
        """Gradients of hidden states and weight; None for what is frozen."""
        normed, scale, weight = ctx.saved_tensor()
        rows = grad.reshape(normed.shape).astype("float32")
        hidden_grad = weight_grad = None
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
