"""What trains: the parameters of vision, projector and language, and which of them a recipe moves."""

from collections.abc import Iterator

import paddle
from paddle import nn

from paddlemix_vl2.training.recipe import PARTS, VL2TrainingArguments

# The learned newline and separator belong to the image tokens that the projector makes.
_PROJECTOR_VECTORS = ("image_newline", "view_seperator")
# In no forward pass (models/vision.py), so nothing could ever train them.
_UNUSED = ("vision.attn_pool.",)

# Of the vision tower's positions at the start: about as loud as the patches that they are added to. With a
# tenth of it a young model took longer to tell places apart.
_POSITION_STD = 0.5


def part_of(name: str) -> str:
    """``vision``, ``projector`` or ``language``, from a parameter's path in the model."""
    first = name.split(".")[0]
    if first in PARTS:
        return first
    if first in _PROJECTOR_VECTORS:
        return "projector"
    raise AssertionError(f"{name} belongs to no part")


def set_trainable(model: nn.Layer, arguments: VL2TrainingArguments) -> None:
    """Mark as trained what the recipe trains in full, and nothing else; adapters mark themselves."""
    for name, parameter in named_parameters(model):
        full = getattr(arguments, part_of(name)).mode == "full"
        # The router's correction bias has no gradient: a balancer moves it.
        unused = name.startswith(_UNUSED) or name.endswith("e_score_correction_bias")
        parameter.stop_gradient = unused or not full


def named_parameters(model: nn.Layer) -> Iterator[tuple[str, paddle.Tensor]]:
    """Name and parameter, in the model's order; with adapters, without PaddleNLP's prefix for the wrapped
    model."""
    for name, parameter in model.named_parameters():
        yield name.removeprefix("model."), parameter


def trained(model: nn.Layer) -> Iterator[tuple[str, paddle.Tensor]]:
    """Name and parameter of all that trains, in the model's order."""
    for name, parameter in named_parameters(model):
        if not parameter.stop_gradient:
            yield name, parameter


def initialize(model: nn.Layer, std: float) -> None:
    """Weights of a model that trains from nothing: in the language model normal with ``initializer_range``
    (published ``_init_weights``), elsewhere normal with 1 / sqrt(inputs); biases zero, norms one. They do not
    depend on which experts this process holds: the others' are drawn too."""
    held = dict(model.named_parameters())
    with paddle.LazyGuard():
        whole = type(model)(model.config)
    with paddle.no_grad():
        for name, outlined in whole.named_parameters():
            values = None
            if outlined.ndim >= 2:
                scale = std if part_of(name) == "language" else _scale(name, outlined)
                values = paddle.randn(outlined.shape) * scale
            elif name.endswith("bias"):
                values = paddle.zeros(outlined.shape)
            if values is not None and name in held:
                held[name].set_value(values)


def _scale(name: str, parameter: paddle.Tensor) -> float:
    """1 / sqrt(inputs) of a convolution's kernel [out, in, ...] or a linear layer's rows [in, out]."""
    if name == "vision.pos_embed":
        return _POSITION_STD
    inputs = parameter.size // parameter.shape[0] if parameter.ndim == 4 else parameter.shape[-2]
    return inputs**-0.5
