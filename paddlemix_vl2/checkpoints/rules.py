"""How a tensor of a checkpoint file becomes a tensor in memory, and back: one table, read in both directions.

Names are the published ones everywhere, so the table says only what happens to the values. A name that no
rule or more than one rule fits is an error: no tensor passes unconsidered.
"""

import re
from dataclasses import dataclass
from enum import Enum
from functools import cache


class Layout(Enum):
    """How a file stores the weights of linear layers."""

    PUBLISHED = "published"  # as PyTorch does
    PADDLE = "Paddle"  # as PaddleMIX and PaddleNLP save

    @property
    def axes(self) -> str:
        """What the axes of a Linear weight are."""
        return "[out, in]" if self is Layout.PUBLISHED else "[in, out]"


class Transpose(Enum):
    """Whether the Paddle layout swaps the two axes of the published one."""

    NEVER = "never"
    ALWAYS = "always"
    # A file in Paddle layout may hold either, told apart by shape; memory and published files agree.
    EITHER = "either"


@dataclass(frozen=True)
class Rule:
    """One row: which names (a regular expression over the whole name), what happens to them, and why.

    ``dtype`` is set where a tensor has that dtype in memory and in files whatever the dtype of the rest.
    """

    pattern: str
    transpose: Transpose
    reason: str
    dtype: str | None = None


_DECODER = r"language\.model\.layers\.\d+\."
_VISION = r"vision\.(blocks\.\d+|attn_pool)\."

RULES = (
    # The vision tower.
    Rule(
        r"vision\.patch_embed\.proj\.(weight|bias)",
        Transpose.NEVER,
        "Conv2D is [out, in, height, width] in both",
    ),
    Rule(
        r"vision\.(pos_embed|attn_pool\.latent)",
        Transpose.NEVER,
        "learned vectors, no matrix product with them",
    ),
    Rule(
        _VISION + r"(attn\.qkv|attn\.proj|q|kv|proj|mlp\.fc1|mlp\.fc2)\.weight", Transpose.ALWAYS, "nn.Linear"
    ),
    Rule(_VISION + r"(attn\.qkv|attn\.proj|q|kv|proj|mlp\.fc1|mlp\.fc2)\.bias", Transpose.NEVER, "one axis"),
    Rule(r"vision\.(blocks\.\d+\.norm[12]|norm|attn_pool\.norm)\.(weight|bias)", Transpose.NEVER, "one axis"),
    # The projector and the two layout vectors.
    Rule(r"projector\.layers\.\d+\.weight", Transpose.ALWAYS, "nn.Linear"),
    Rule(r"projector\.layers\.\d+\.bias", Transpose.NEVER, "one axis"),
    Rule(r"image_newline|view_seperator", Transpose.NEVER, "one axis"),
    # The language model.
    Rule(
        r"language\.model\.embed_tokens\.weight",
        Transpose.NEVER,
        "a table of rows, [vocabulary, hidden] in both",
    ),
    Rule(r"language\.lm_head\.weight", Transpose.ALWAYS, "nn.Linear"),
    Rule(r"language\.model\.norm\.weight", Transpose.NEVER, "one axis"),
    Rule(_DECODER + r"(input|post_attention)_layernorm\.weight", Transpose.NEVER, "one axis"),
    Rule(_DECODER + r"self_attn\.(q_a|kv_a)_layernorm\.weight", Transpose.NEVER, "one axis"),
    Rule(
        _DECODER
        + r"self_attn\.(q_proj|q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|k_proj|v_proj|o_proj)\.weight",
        Transpose.ALWAYS,
        "nn.Linear",
    ),
    Rule(
        _DECODER + r"self_attn\.(q_proj|q_a_proj|kv_a_proj_with_mqa|k_proj|v_proj|o_proj)\.bias",
        Transpose.NEVER,
        "one axis; there with attention_bias only",
    ),
    Rule(
        _DECODER + r"mlp\.(experts\.\d+\.|shared_experts\.)?(gate|up|down)_proj\.weight",
        Transpose.ALWAYS,
        "nn.Linear",
    ),
    Rule(
        _DECODER + r"mlp\.gate\.weight",
        Transpose.EITHER,
        "a bare parameter [experts, hidden]; PaddleMIX and PaddleNLP have held it as [hidden, experts]",
    ),
    Rule(
        _DECODER + r"mlp\.gate\.e_score_correction_bias",
        Transpose.NEVER,
        "decides which experts run: steps of 0.001 on scores up to 1 are lost in 16 bits, so float32 always",
        dtype="float32",
    ),
)

_COMPILED = tuple((re.compile(rule.pattern), rule) for rule in RULES)


@cache
def rule_for(name: str) -> Rule:
    """The one rule for a published tensor name.

    Raises:
        ValueError: no rule fits the name, or more than one does.
    """
    fitting = [rule for pattern, rule in _COMPILED if pattern.fullmatch(name)]
    if len(fitting) != 1:
        patterns = [rule.pattern for rule in fitting]
        raise ValueError(
            f"{name}: {len(fitting)} rules fit this tensor name, exactly one must {patterns or ''}".strip()
        )
    return fitting[0]


def is_linear(name: str) -> bool:
    """Whether the tensor is the weight of a linear layer, whose axes differ between the two layouts."""
    return rule_for(name).transpose is Transpose.ALWAYS


def shape_in(layout: Layout, name: str, published: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a tensor of the ``published`` shape has in the other layout or the same one."""
    if layout is Layout.PADDLE and is_linear(name):
        return tuple(reversed(published))
    return tuple(published)


def shapes_in(layout: Layout, name: str, published: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Every shape that a file of this layout may have for the tensor, the usual one first."""
    usual = shape_in(layout, name, published)
    if (
        layout is Layout.PADDLE
        and rule_for(name).transpose is Transpose.EITHER
        and published[0] != published[1]
    ):
        return (usual, tuple(reversed(usual)))
    return (usual,)


def must_transpose(
    name: str, shape: tuple[int, ...], published: tuple[int, ...], source: Layout, target: Layout
) -> bool:
    """Whether a tensor of this ``shape``, in ``source``, has its axes swapped on the way to ``target``.

    From a layout to the same layout nothing is swapped, so converting twice is converting once; there and
    back is the identity. The one exception is the router's gate, which files in Paddle layout may hold
    either way round; it always becomes [experts, hidden] (there are far fewer experts than hidden values).
    """
    if rule_for(name).transpose is Transpose.EITHER:
        return tuple(shape) != tuple(published)
    return source is not target and is_linear(name)
