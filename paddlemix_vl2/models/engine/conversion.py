"""Put a model on the kernels."""

import logging
import os
from functools import lru_cache

import paddle
from paddle import nn

from paddlemix_vl2 import device
from paddlemix_vl2.models.engine import kernels
from paddlemix_vl2.models.engine.build import SWITCH_VARIABLE, KernelsUnavailable
from paddlemix_vl2.models.engine.kernels import pack
from paddlemix_vl2.models.engine.layers import REPLACEMENTS, STEPS, PackedLinear, attend
from paddlemix_vl2.models.vision import AttentionPoolLatent

ENGINES = ("auto", "eager", "native")
WEIGHTS = ("bfloat16", "int8")


def choose_weights(dtype: str = "auto", engine: str = "auto") -> str | None:
    """The weights of a model on the kernels, ``bfloat16`` or ``int8``; None for Paddle's operators.

    Args:
        dtype, engine: as in ``from_pretrained``.

    Raises:
        ValueError: an unknown engine, or one that cannot have this dtype here.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is unknown; use {', '.join(ENGINES)}")
    wanted = engine == "native" or dtype == "int8"
    if engine == "eager" and dtype == "int8":
        raise ValueError("dtype 'int8' needs engine='native'")
    if engine == "native" and dtype not in ("auto", *WEIGHTS):
        raise ValueError(f"engine 'native' computes with {' or '.join(WEIGHTS)} weights, not {dtype}")
    if engine == "eager" or not (wanted or dtype in ("auto", "bfloat16")):
        return None
    problem = "it computes on the CPU only" if device.is_gpu() else kernels_problem()
    if problem and wanted:
        raise ValueError(f"engine 'native' cannot be used here: {problem}")
    if problem:
        if not device.is_gpu():
            _say_once(f"Without the faster kernels: {problem}")
        return None
    return "int8" if dtype == "int8" else "bfloat16"


def kernels_problem() -> str | None:
    """Why the kernels cannot be used on this machine; None where they can."""
    if os.environ.get(SWITCH_VARIABLE) == "0":
        return f"{SWITCH_VARIABLE}=0"
    return _loading_problem()


@lru_cache(maxsize=1)
def _loading_problem() -> str | None:
    try:
        kernels.load()
    except KernelsUnavailable as error:
        return str(error)
    return None


@lru_cache
def _say_once(message: str) -> None:
    logging.getLogger("paddlemix_vl2").warning(message)


def is_accelerated(model: nn.Layer) -> bool:
    """Whether the model has been through :func:`accelerate`."""
    return any(isinstance(layer, PackedLinear) for layer in model.sublayers())


class PackWhileLoading:
    """Packs the weights of a model's linear layers as they are read, so that the model as it is stored never
    exists as a whole; :func:`accelerate` takes them from the layers. For ``load_checkpoint(take=...)``.

    Args:
        model: without values yet.
        weights: as in :func:`accelerate`.
    """

    def __init__(self, model: nn.Layer, weights: str):
        layers = dict(model.named_sublayers())
        self._unused = tuple(f"{name}." for name in layers if isinstance(layers[name], AttentionPoolLatent))
        self._int8 = weights == "int8"
        self._linear = {f"{name}.weight": layer for name, layer in layers.items() if type(layer) is nn.Linear}

    def __call__(self, name: str, value: paddle.Tensor) -> bool:
        """Whether the tensor has been taken (or is not needed)."""
        if name.startswith(self._unused):
            return True
        layer = self._linear.get(name)
        if layer is not None:
            layer.packed = pack(value, self._int8 and not name.startswith("vision."))
        return layer is not None


@paddle.no_grad()
def accelerate(model: nn.Layer, weights: str = "bfloat16") -> None:
    """Replace the layers of a loaded model, in place; it can answer afterwards, but not be trained or saved.

    Args:
        model: in any dtype, on the CPU.
        weights: ``bfloat16`` or ``int8`` (a scale per column); the language model's and the projector's. The
            vision tower's are bfloat16 always.

    Raises:
        ValueError: no such kind of weights.
        KernelsUnavailable: with the reason.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights {weights!r}: must be one of {', '.join(WEIGHTS)}")
    kernels.load()
    _replace(model, weights == "int8")
    model.cache_dtype = "bfloat16"
    for parameter in model.parameters():
        _widen(parameter)
    device.return_freed_memory()
    model.eval()


def _replace(layer: nn.Layer, int8: bool) -> None:
    if type(layer) in STEPS:
        layer.attend, layer.step = attend, STEPS[type(layer)]
    for name, child in list(layer.named_children()):
        if isinstance(child, AttentionPoolLatent):  # in the checkpoint, and in no forward pass
            delattr(layer, name)
            continue
        replacement = REPLACEMENTS.get(type(child))
        if replacement is None:
            _replace(child, int8 and name != "vision")
        else:
            setattr(layer, name, replacement(child, int8))


def _widen(parameter: paddle.Tensor) -> None:
    """float32 for what Paddle's own operators compute with, except large tables, which are only read."""
    if parameter.dtype != paddle.float32 and parameter.size < 1 << 22:
        parameter.astype("float32")._share_buffer_to(parameter)
