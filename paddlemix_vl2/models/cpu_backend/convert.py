"""Put a model on the kernels: its weights packed while they are read, its layers replaced when they are."""

import paddle
from paddle import nn

from paddlemix_vl2 import process_tuning
from paddlemix_vl2.kernels import ops
from paddlemix_vl2.kernels.ops import PackedMatrix, pack
from paddlemix_vl2.models.cpu_backend.layers import (
    REPLACEMENTS,
    decode_latent,
    decode_multi_head,
    kernel_attention,
)
from paddlemix_vl2.models.layers.execution import ExecutionConfig
from paddlemix_vl2.models.vision.siglip import AttentionPoolLatent

# Values of a table from which on it stays in bfloat16: it is only read.
LARGE_TABLE = 1 << 22


def kernel_execution(weight_dtype: str) -> ExecutionConfig:
    """The kernels with ``bfloat16`` or ``int8`` weights (a scale per column); the vision encoder's are
    bfloat16 always."""
    return ExecutionConfig(
        device="cpu",
        backend="cpu_kernels",
        weight_dtype=weight_dtype,
        attention_fn=kernel_attention,
        decode_fns=(("MultiHeadAttention", decode_multi_head), ("DeepseekV2Attention", decode_latent)),
    )


class WeightPacker:
    """Packs the weights of a model's linear layers, so that the model as it is stored never exists as a
    whole: while they are read (:meth:`take`), or when a layer is replaced (:meth:`matrix`).

    Args:
        model: perhaps without values yet.
        weight_dtype: as in :func:`kernel_execution`.
    """

    def __init__(self, model: nn.Layer, weight_dtype: str):
        layers = dict(model.named_sublayers())
        self._unused = tuple(f"{name}." for name in layers if isinstance(layers[name], AttentionPoolLatent))
        self._linear = {f"{name}.weight": layer for name, layer in layers.items() if type(layer) is nn.Linear}
        self._int8 = {
            id(layer): weight_dtype == "int8" and not name.startswith("vision.")
            for name, layer in self._linear.items()
        }
        self._packed: dict[int, PackedMatrix] = {}

    def take(self, name: str, value: paddle.Tensor) -> bool:
        """Whether a tensor of the checkpoint has been taken (or is not needed)."""
        if name.startswith(self._unused):
            return True
        layer = self._linear.get(name)
        if layer is not None:
            self._packed[id(layer)] = pack(value, self._int8[id(layer)])
        return layer is not None

    def matrix(self, layer: nn.Linear) -> PackedMatrix:
        """The layer's weights, packed before or now; its own are given up then, so that both exist of one
        layer only."""
        if id(layer) not in self._packed:
            self._packed[id(layer)] = pack(layer.weight, self._int8[id(layer)])
            layer.weight._clear()
        return self._packed[id(layer)]


@paddle.no_grad()
def convert_model(model: nn.Layer, packer: WeightPacker) -> None:
    """Replace the layers of a loaded model, in place; it can answer afterwards, but not be trained or saved.

    Args:
        model: made with :func:`kernel_execution`.
        packer: of the model.

    Raises:
        KernelsUnavailable: with the reason.
    """
    ops.load()
    _replace_children(model, packer)
    for parameter in model.parameters():
        _widen(parameter)
    process_tuning.return_freed_memory()
    model.eval()


def _replace_children(layer: nn.Layer, packer: WeightPacker) -> None:
    for name, child in list(layer.named_children()):
        if isinstance(child, AttentionPoolLatent):  # in the checkpoint, and in no forward pass
            delattr(layer, name)
            continue
        replacement = REPLACEMENTS.get(type(child))
        if replacement is None:
            _replace_children(child, packer)
        else:
            layer.add_sublayer(name, replacement(child, packer))


def _widen(parameter: paddle.Tensor) -> None:
    """float32 for what Paddle's own operators compute with, except large tables."""
    if parameter.dtype != paddle.float32 and parameter.size < LARGE_TABLE:
        parameter.astype("float32")._share_buffer_to(parameter)
