"""Where and how a model computes: one value, decided once and handed to every layer's constructor."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import paddle

from paddlemix_vl2 import device

# (layer, hidden_states, position_embeddings, attention_mask, cache) -> [B, 1, N, Dv]
DecodeFunction = Callable[..., paddle.Tensor]


@dataclass(frozen=True)
class ExecutionConfig:
    """Device, precision, backend.

    Attributes:
        device: ``cpu`` or ``gpu``.
        backend: ``paddle`` (Paddle's operators, on any device) or ``cpu_kernels`` (those of
            :mod:`paddlemix_vl2.kernels`, for inference).
        weight_dtype: ``float32``, ``bfloat16``, ``float16``, or with the kernels also ``int8``.
        fused_attention: whether attention runs without a score matrix (flash attention). Dense masks are made
            for it once per forward pass.
        group_experts: whether the weights of a layer's experts lie side by side after loading, so that few
            tokens take theirs by index and the host need not know the counts.
        attention_fn: causal attention of several positions, instead of that of
            :mod:`.attention_ops`.
        decode_fns: name of an attention class -> its attention of one new position over the cache, instead
            of the class's own.
    """

    device: str = "cpu"
    backend: str = "paddle"
    weight_dtype: str = "float32"
    fused_attention: bool = False
    group_experts: bool = False
    attention_fn: Callable[..., paddle.Tensor] | None = None
    decode_fns: tuple[tuple[str, DecodeFunction], ...] = ()

    @property
    def packed(self) -> bool:
        """Whether the weights are those of the CPU kernels."""
        return self.backend == "cpu_kernels"

    @property
    def parameter_dtype(self) -> str:
        """dtype of the parameters that a checkpoint is read into; the kernels pack bfloat16 on the way."""
        return "bfloat16" if self.packed else self.weight_dtype

    @property
    def cache_dtype(self) -> Literal["bfloat16"] | None:
        """dtype of cached keys and values; None: that of the activations."""
        return "bfloat16" if self.packed else None

    def decode_fn(self, attention_class: type) -> DecodeFunction | None:
        """What takes over the decode steps of an attention class; None: its own."""
        return dict(self.decode_fns).get(attention_class.__name__)


def paddle_execution(weight_dtype: str = "float32", group_experts: bool = False) -> ExecutionConfig:
    """Paddle's operators on the current device."""
    return ExecutionConfig(
        device="gpu" if device.is_gpu() else "cpu",
        weight_dtype=weight_dtype,
        fused_attention=device.has_fused_attention(),
        group_experts=group_experts,
    )


def describe(execution: ExecutionConfig) -> dict[str, Any]:
    """Device, backend and dtype of the weights, for the user."""
    return {"device": execution.device, "backend": execution.backend, "dtype": execution.weight_dtype}
