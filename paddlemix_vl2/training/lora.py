"""Which layers get low-rank adapters in training (arXiv 2106.09685)."""

import difflib
import re

from paddle import nn

from paddlemix_vl2.models.adapters import AdapterConfig, add_adapters
from paddlemix_vl2.models.vision_language import UNUSED_PARAMETERS
from paddlemix_vl2.training.recipe import PARTS, LoRARecipe, VL2TrainingArguments

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


def add_recipe_adapters(model: nn.Layer, arguments: VL2TrainingArguments) -> None:
    """Adapters in the linear layers of the parts whose mode is ``lora``; they add nothing until they train.

    Args:
        model: the base model; its own layers are replaced in place. Parts in mode ``full`` train as
            ``parts.set_trainable`` marks them.
        arguments: the recipe; its ``lora`` says rank, scaling, dropout and layers.

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
    linear = [path for path, layer in model.named_sublayers() if isinstance(layer, nn.Linear)]
    patterns = target_patterns(linear, arguments)
    config = AdapterConfig(
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
    add_adapters(model, config)


def target_patterns(paths: list[str], arguments: VL2TrainingArguments) -> list[str]:
    """Regular expressions of the paths of the layers that get adapters, as ``AdapterConfig`` takes them.

    Args:
        paths: of all linear layers of the model.

    Raises:
        ValueError: a name of ``target_modules`` is none of this model's in a part of mode ``lora``, or such a
            part is left without any.
    """
    present = {
        part: target_names([path for path in paths if path.split(".")[0] == part])
        for part in PARTS
        if getattr(arguments, part).mode == "lora"
    }
    known = {name: group for names in present.values() for name, group in names.items()}
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
    return [path_pattern(known[name]) for name in dict.fromkeys(wanted)]


def target_names(paths: list[str]) -> dict[str, list[str]]:
    """Name in ``target_modules`` -> paths of its linear layers: the last component, with
    that of shared experts and of dense MLPs before it. The output head and what no forward pass runs are in
    none of them."""
    names: dict[str, list[str]] = {}
    for path in paths:
        parent, leaf = path.split(".")[-2:]
        if leaf == "lm_head" or path.startswith(UNUSED_PARAMETERS):
            continue
        if path.startswith("projector."):
            leaf = "projector"
        elif path.startswith("language.") and parent in ("shared_experts", "mlp"):
            leaf = f"{parent}.{leaf}"
        names.setdefault(leaf, []).append(path)
    return names


def path_pattern(paths: list[str]) -> str:
    r"""A regular expression for paths that differ in their numbers: any number, or only those that occur
    where other numbers belong to other layers.

    >>> path_pattern(["layers.1.q", "layers.2.q"]), path_pattern(["layers.0", "layers.2"])
    ('layers\\.\\d+\\.q', 'layers\\.(0|2)')
    """
    parts = [path.split(".") for path in paths]
    pattern = []
    for column in zip(*parts, strict=True):
        numbers = sorted({int(part) for part in column if part.isdigit()})
        if not numbers:
            pattern.append(re.escape(column[0]))
        elif numbers == list(range(numbers[0], numbers[-1] + 1)):
            pattern.append(r"\d+")
        else:
            pattern.append(f"({'|'.join(map(str, numbers))})")
    return r"\.".join(pattern)


def _check_recipe(recipe: LoRARecipe) -> None:
    if recipe.r < 1:
        raise ValueError(f"lora.r is {recipe.r}; the rank must be at least 1")
    if recipe.lora_alpha < 1:
        raise ValueError(f"lora.lora_alpha is {recipe.lora_alpha}; it must be at least 1")
    if not 0 <= recipe.lora_dropout < 1:
        raise ValueError(f"lora.lora_dropout is {recipe.lora_dropout}; it must be from 0 up, and below 1")
