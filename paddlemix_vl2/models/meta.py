"""The tensors of a config, from a model that is built without memory (meta model): with one layer of each
kind, repeated as often as the config says."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import paddle
from paddle import nn

from paddlemix_vl2.checkpoints.specs import Specs, parameter_specs
from paddlemix_vl2.config.base import PublishedConfig
from paddlemix_vl2.config.language import DeepseekV2Config
from paddlemix_vl2.config.registry import FAMILIES
from paddlemix_vl2.models.decoder import DeepseekV2ForCausalLM


def model_specs(config: PublishedConfig) -> Specs:
    """Published name -> spec of every tensor of a checkpoint, in the order of the model."""
    family = next(family for family in FAMILIES.values() if family.config_class is type(config))
    return _specs(json.dumps(config.to_dict()), family.load("config"), family.load("model"))


def language_specs(config: DeepseekV2Config) -> Specs:
    """The same of a language model alone."""
    return _specs(json.dumps(config.to_dict()), DeepseekV2Config, DeepseekV2ForCausalLM)


@lru_cache(maxsize=32)
def _specs(text: str, config_class: type, model_class: Callable[..., nn.Layer]) -> Specs:
    config = config_class(**json.loads(text))
    small, repeats = copy.deepcopy(config), {}
    for layers in config.repeated_layers():
        # Of each layer, the first one that is like it; the small model has no layer behind these.
        alike = [layers.kinds.index(kind) for kind in layers.kinds]
        setattr(getattr(small, layers.part) if layers.part else small, layers.key, max(alike) + 1)
        repeats[layers.prefix] = alike
    with paddle.LazyGuard():
        specs = parameter_specs(model_class(small))
    return _expand(specs, repeats)


def _expand(specs: Specs, repeats: dict[str, list[int]]) -> Specs:
    """The specs of the small model, with those of repeated layers as often as they are there."""
    expanded: Specs = {}
    for name, spec in specs.items():
        prefix = next((prefix for prefix in repeats if name.startswith(f"{prefix}.")), None)
        if prefix is None:
            expanded[name] = spec
        elif not any(known.startswith(f"{prefix}.") for known in expanded):
            for index, like in enumerate(repeats[prefix]):
                expanded |= _renumbered(specs, f"{prefix}.{like}.", f"{prefix}.{index}.")
    return expanded


def _renumbered(specs: Specs, old: str, new: str) -> Specs:
    names = {name: new + name.removeprefix(old) for name in specs if name.startswith(old)}
    return {renamed: replace(specs[name], name=renamed) for name, renamed in names.items()}


def linear_paths(specs: Specs) -> list[str]:
    """Paths of the linear layers."""
    return [name.removesuffix(".weight") for name, spec in specs.items() if spec.linear]
