"""Which layers get low-rank adapters in training, through PaddleNLP's ``LoRAModel`` (arXiv 2106.09685)."""

import difflib
import re

from paddle import nn
from paddlenlp.peft import LoRAConfig, LoRAModel

from paddlemix_vl2.training.adapters import wrap
from paddlemix_vl2.training.recipe import PARTS, LoRARecipe, VL2TrainingArguments

_ATTENTION = (
    "q_proj",
    "q_a_proj",
    "q_b_proj",
    "kv_a_proj_with_mqa",
    "kv_b_proj",
    "k_proj",
    "v_proj",
    "o_proj",
)
_GATED = ("gate_proj", "up_proj", "down_proj")
_LAYER = r"language\.model\.layers\.\d+"

# part -> name in target_modules -> paths of the linear layers. The router, the embedding and the head are in
# none of them, nor is vision.attn_pool, which no forward pass runs.
TARGETS = {
    "vision": {
        "qkv": r"vision\.blocks\.\d+\.attn\.qkv",
        "proj": r"vision\.blocks\.\d+\.attn\.proj",
        "fc1": r"vision\.blocks\.\d+\.mlp\.fc1",
        "fc2": r"vision\.blocks\.\d+\.mlp\.fc2",
    },
    "projector": {"projector": r"projector\.layers\.\d*[02468]"},  # activations are in the odd places
    "language": {
        **{name: rf"{_LAYER}\.self_attn\.{name}" for name in _ATTENTION},
        **{name: rf"{_LAYER}\.mlp\.experts\.\d+\.{name}" for name in _GATED},
        **{f"shared_experts.{name}": rf"{_LAYER}\.mlp\.shared_experts\.{name}" for name in _GATED},
        **{f"mlp.{name}": rf"{_LAYER}\.mlp\.{name}" for name in _GATED},
    },
}
# Only when named: every token passes them, so changing them changes all that the model knows.
_ONLY_NAMED = ("shared_experts.", "mlp.")

# Parameters that a part in mode "full" trains, as in parts.set_trainable, for lora_config.json.
_FULL_PATTERNS = {
    "vision": [r"vision\.(?!attn_pool\.).*"],
    "projector": [r"projector\..*", "image_newline", "view_seperator"],
    "language": [r"language\.(?!.*e_score_correction_bias).*"],
}


def wants_adapters(arguments: VL2TrainingArguments) -> bool:
    """Whether any part's mode is ``lora``."""
    return any(getattr(arguments, part).mode == "lora" for part in PARTS)


def add_adapters(model: nn.Layer, arguments: VL2TrainingArguments) -> LoRAModel:
    """Adapters in the linear layers of the parts whose mode is ``lora``; they add nothing until they train.

    Args:
        model: the base model. Parts in mode ``full`` train as ``parts.set_trainable`` marks them.
        arguments: the recipe; its ``lora`` says rank, scaling, dropout and layers.

    Returns:
        the model in PaddleNLP's ``LoRAModel``; its own layers are replaced in place.

    Raises:
        ValueError: rank, scaling, dropout or a name of ``target_modules`` is not possible, a part in mode
            ``lora`` gets no adapter, or there is no base model that the adapter could be loaded onto.
    """
    recipe = arguments.lora
    _check_recipe(recipe)
    if not arguments.model_name_or_path:
        raise ValueError(
            "mode lora needs model_name_or_path: an adapter means nothing without its base model"
        )
    patterns = target_patterns(model, arguments)
    config = LoRAConfig(
        r=recipe.r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=patterns,
        trainable_modules=[
            pattern
            for part in PARTS
            if getattr(arguments, part).mode == "full"
            for pattern in _FULL_PATTERNS[part]
        ],
        base_model_name_or_path=str(arguments.model_name_or_path),
    )
    return wrap(model, config)


def target_patterns(model: nn.Layer, arguments: VL2TrainingArguments) -> list[str]:
    """Regular expressions of the paths of the layers that get adapters, as ``LoRAConfig`` takes them.

    Raises:
        ValueError: a name of ``target_modules`` is none of this model's in a part of mode ``lora``, or such a
            part is left without any.
    """
    linear = [path for path, layer in model.named_sublayers() if isinstance(layer, nn.Linear)]
    present = {
        part: {
            name: pattern
            for name, pattern in TARGETS[part].items()
            if any(re.fullmatch(pattern, path) for path in linear)
        }
        for part in PARTS
        if getattr(arguments, part).mode == "lora"
    }
    known = {name: pattern for names in present.values() for name, pattern in names.items()}
    wanted = arguments.lora.target_modules
    if wanted is None:
        wanted = [name for name in known if not name.startswith(_ONLY_NAMED)]
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"lora.target_modules: no {name!r} in the parts of mode lora ({', '.join(present)}); "
                f"{hint}there are {', '.join(known)}"
            )
    for part, names in present.items():
        if not names.keys() & set(wanted):
            raise ValueError(
                f"{part}.mode is lora, but lora.target_modules names none of its layers: {', '.join(names)}"
            )
    return [known[name] for name in dict.fromkeys(wanted)]


def _check_recipe(recipe: LoRARecipe) -> None:
    if recipe.r < 1:
        raise ValueError(f"lora.r is {recipe.r}; the rank must be at least 1")
    if recipe.lora_alpha < 1:
        raise ValueError(f"lora.lora_alpha is {recipe.lora_alpha}; it must be at least 1")
    if not 0 <= recipe.lora_dropout < 1:
        raise ValueError(f"lora.lora_dropout is {recipe.lora_dropout}; it must be from 0 up, and below 1")
