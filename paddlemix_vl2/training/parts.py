"""What trains: the parameters of vision, projector and language, and which of them a recipe moves."""

from collections.abc import Iterator

import paddle
from paddle import nn

from paddlemix_vl2.models.vision_language import UNUSED_PARAMETERS
from paddlemix_vl2.training.recipe import PARTS, VL2TrainingArguments

# The learned newline and separator belong to the image tokens that the projector makes.
_PROJECTOR_VECTORS = ("image_newline", "view_seperator")
# Of the vision encoder's position embeddings at the start: about the size of the patches that they are added
# to. With a tenth of it an untrained model took longer to distinguish places.
_POSITION_STD = 0.5


def part_of(name: str) -> str:
    """``vision``, ``projector`` or ``language``, from a parameter's path in the model."""
    first = name.split(".")[0]
    if first in PARTS:
        return first
    if first in _PROJECTOR_VECTORS:
        return "projector"
    raise AssertionError(f"{name} belongs to no part")


def trains_in_full(name: str, arguments: VL2TrainingArguments) -> bool:
    """Whether the recipe moves the parameter of this path itself, and not by an adapter."""
    # The router's correction bias has no gradient: a balancer moves it.
    if name.startswith(UNUSED_PARAMETERS) or name.endswith("e_score_correction_bias"):
        return False
    return getattr(arguments, part_of(name)).mode == "full"


def set_trainable(model: nn.Layer, arguments: VL2TrainingArguments) -> None:
    """Mark as trained what the recipe trains in full, and nothing else; adapters mark themselves."""
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = not trains_in_full(name, arguments)


def trained(model: nn.Layer) -> Iterator[tuple[str, paddle.Tensor]]:
    """Name and parameter of all that trains, in the model's order."""
    for name, parameter in model.named_parameters():
        if not parameter.stop_gradient:
            yield name, parameter


def initialize(model: nn.Layer, std: float) -> None:
    """Weights of a model that trains from scratch: in the language model normal with ``initializer_range``
    (published ``_init_weights``), elsewhere normal with 1 / sqrt(inputs); biases zero, norms one. They do not
    depend on which experts this process holds: the others' are sampled too."""
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
