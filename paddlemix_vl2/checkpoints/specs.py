"""The tensors of a checkpoint, derived from a model's own layers: published names, shapes, and how the values
of a file become those in memory.

Names are the published ones everywhere. Linear weights are [out, in] in published files and [in, out] in
Paddle; everything else is equal in both, except for the few oddities of the table below.
"""

import re
from dataclasses import dataclass
from enum import Enum

import numpy as np
import paddle
from paddle import nn

from paddlemix_vl2.checkpoints.files import shorten


class TensorLayout(Enum):
    """How a file stores the weights of linear layers."""

    PUBLISHED = "published"  # as PyTorch does
    PADDLE = "Paddle"  # as PaddleMIX and PaddleNLP save

    @property
    def axes(self) -> str:
        """What the axes of a linear weight are."""
        return "[out, in]" if self is TensorLayout.PUBLISHED else "[in, out]"


@dataclass(frozen=True)
class Oddity:
    """A tensor that differs from what its layer implies.

    Attributes:
        pattern: regular expression that the end of the name fits.
        reason: why.
        either_way: whether files in Paddle's layout may hold it transposed, which the shape shows; in memory
            and in published files it is as the layer has it.
        dtype: its own dtype, in memory and in files, for every dtype of the rest.
    """

    pattern: str
    reason: str
    either_way: bool = False
    dtype: str | None = None


ODDITIES = (
    Oddity(
        r"\.mlp\.gate\.weight",
        "a bare parameter [experts, hidden]; PaddleMIX and PaddleNLP have held it as [hidden, experts]",
        either_way=True,
    ),
    Oddity(
        r"\.mlp\.gate\.e_score_correction_bias",
        "decides which experts run: steps of 0.001 on scores up to 1 are lost in 16 bits",
        dtype="float32",
    ),
)
_EXPERT = re.compile(r"\.mlp\.experts\.(\d+)\.")


@dataclass(frozen=True)
class ParameterSpec:
    """A tensor without its values.

    Attributes:
        name: published.
        shape: published; a linear weight is [out, in].
        linear: whether it is the weight of a linear layer, whose axes differ between the two layouts.
        either_way, dtype: as of :class:`Oddity`.
    """

    name: str
    shape: tuple[int, ...]
    linear: bool = False
    either_way: bool = False
    dtype: str | None = None

    @property
    def size(self) -> int:
        """Number of values."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def expert(self) -> int | None:
        """The routed expert that it belongs to; None for all others."""
        return expert_of(self.name)

    def shape_in(self, layout: TensorLayout) -> tuple[int, ...]:
        """Its shape in a layout."""
        return self.shape[::-1] if self.linear and layout is TensorLayout.PADDLE else self.shape

    def shapes_in(self, layout: TensorLayout) -> tuple[tuple[int, ...], ...]:
        """Every shape that a file of this layout may have for it, the usual one first."""
        usual = self.shape_in(layout)
        if self.either_way and layout is TensorLayout.PADDLE and usual != usual[::-1]:
            return (usual, usual[::-1])
        return (usual,)

    def must_transpose(self, shape: tuple[int, ...], source: TensorLayout, target: TensorLayout) -> bool:
        """Whether values of this ``shape``, in ``source``, have their axes swapped on the way to ``target``.

        From a layout to the same layout nothing is swapped, so converting twice is converting once; there and
        back is the identity. What files hold either way round always becomes the published shape (there are
        far fewer experts than hidden values).
        """
        if self.either_way:
            return tuple(shape) != self.shape
        return source is not target and self.linear


Specs = dict[str, ParameterSpec]  # by their published names


def parameter_specs(model: nn.Layer) -> dict[str, ParameterSpec]:
    """Name -> spec of every parameter of a model, in its order; values are not looked at, so that it may have
    been built under ``paddle.LazyGuard``."""
    specs = {}
    for path, layer in model.named_sublayers(include_self=True):
        for name, parameter in layer.named_parameters(include_sublayers=False):
            full = f"{path}.{name}" if path else name
            specs[full] = spec_of(
                full, tuple(parameter.shape), isinstance(layer, nn.Linear) and name == "weight"
            )
    order = [name for name, _ in model.named_parameters()]
    return {name: specs[name] for name in order}


def spec_of(name: str, shape: tuple[int, ...], linear: bool) -> ParameterSpec:
    """The spec of a parameter of this shape in memory."""
    oddities = [oddity for oddity in ODDITIES if re.search(f"{oddity.pattern}$", name)]
    either_way = any(oddity.either_way for oddity in oddities)
    dtype = next((oddity.dtype for oddity in oddities if oddity.dtype), None)
    return ParameterSpec(name, shape[::-1] if linear else shape, linear, either_way, dtype)


def expert_of(name: str) -> int | None:
    """The routed expert that a tensor (or an adapter of it) belongs to; None for all others.

    Example:
        >>> expert_of("language.model.layers.1.mlp.experts.12.up_proj.weight")
        12
    """
    found = _EXPERT.search(name)
    return int(found[1]) if found else None


def model_tensors(model: nn.Layer, specs: dict[str, ParameterSpec]) -> dict[str, paddle.Tensor]:
    """Parameters and persistable buffers of a model by published name, in the order of ``specs``; routed
    experts may be missing, which other processes have.

    Raises:
        ValueError: the model has other tensors, or of other shapes: something was added to it (merge LoRA
            weights before saving).
    """
    found = model.state_dict()  # the tensors themselves, not copies
    wrong = [f"{name} is in the model only" for name in found if name not in specs]
    for name, spec in specs.items():
        if name not in found:
            wrong += [f"{name} is not in the model"] if spec.expert is None else []
        elif tuple(found[name].shape) != (wanted := spec.shape_in(TensorLayout.PADDLE)):
            wrong.append(f"{name} is {list(found[name].shape)} in the model, expected {list(wanted)}")
    if wrong:
        raise ValueError(f"model and config differ in {len(wrong)} tensors: {shorten(sorted(wrong))}")
    return {name: found[name] for name in specs if name in found}


def cast(value: paddle.Tensor, dtype: str) -> paddle.Tensor:
    """``value`` in ``dtype``, rounded to nearest even; itself where nothing changes."""
    if str(value.dtype) == f"paddle.{dtype}":
        return value
    if dtype == "float16" and value.place.is_cpu_place():
        # Paddle 3.3.1 on the CPU turns float32 magnitudes from 1e-27 to 7e-24 into up to 1.2e-4
        # instead of 0.
        with np.errstate(over="ignore"):  # beyond 65504 becomes infinite, as on a GPU
            return paddle.to_tensor(value.astype("float32").numpy().astype(np.float16))
    return value.astype(dtype)
