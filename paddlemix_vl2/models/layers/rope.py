"""Rotary position embedding: plain, linear, dynamic and YaRN.

The tables are float32 always. Rounded to bfloat16 they leave a few hundred distinct positions out of
thousands, which garbles long answers. They live in a plain Python object, which ``Layer.to`` and amp's
``decorate`` cannot reach.

Source: published ``DeepseekV2RotaryEmbedding`` and its linear, dynamic NTK and YaRN variants; YaRN is arXiv
    2309.00071.
"""

import math

import numpy as np
import paddle

from paddlemix_vl2.config.language import DeepseekV2Config

# Cosines and sines of the positions of a pass, float32 [B, T, N, D / 2] each.
PositionEmbeddings = tuple[paddle.Tensor, paddle.Tensor]


class RotaryEmbedding:
    """Cosine and sine tables of one model, shared by all its layers.

    Args:
        dim: rotated dimensions of a head (``qk_rope_head_dim`` for MLA, the head dimension otherwise).
        config: gives ``rope_theta``, ``rope_scaling``, ``max_position_embeddings``.
    """

    def __init__(self, dim: int, config: DeepseekV2Config):
        self.dim = dim
        self.theta = config.rope_theta
        self.scaling = dict(config.rope_scaling or {})
        self.kind = self.scaling.get("type", self.scaling.get("rope_type", "plain"))
        self.trained_length = config.max_position_embeddings
        self.max_length = config.max_sequence_length
        self._tables: dict[tuple[int | None, str], tuple[paddle.Tensor, paddle.Tensor]] = {}

    def lookup(self, position_ids: paddle.Tensor, total_length: int, num_heads: int) -> PositionEmbeddings:
        """Cosines and sines for the given positions, repeated for every head.

        Repeated because Paddle's CPU operators multiply equal shapes some thirty times faster than shapes
        that broadcast in the middle, and the tables serve all layers.

        Args:
            position_ids: int64 [B, T].
            total_length: positions in use, prefix, padding and (in a chunk) the rest of the prompt included;
                dynamic scaling depends on it.

        Raises:
            ValueError: more positions than the model has.

        Returns:
            two float32 [B, T, N, dim / 2].
        """
        if total_length > self.max_length:
            raise ValueError(f"{total_length} positions, but the model has {self.max_length}")
        cos, sin = self._table(total_length, position_ids.place)
        shape = [*position_ids.shape, num_heads, self.dim // 2]
        index = position_ids.unsqueeze(-1).tile([1, 1, num_heads]).flatten()
        return paddle.gather(cos, index).reshape(shape), paddle.gather(sin, index).reshape(shape)

    def softmax_factor(self) -> float:
        """Factor on the attention scale: mscale squared where YaRN has ``mscale_all_dim``, else 1."""
        if not self.scaling.get("mscale_all_dim"):
            return 1.0
        return _mscale(self.scaling["factor"], self.scaling["mscale_all_dim"]) ** 2

    def _table(self, total_length: int, place) -> tuple[paddle.Tensor, paddle.Tensor]:
        stretched = self.kind == "dynamic" and total_length > self.trained_length
        key = (total_length if stretched else None, str(place))
        if key not in self._tables:
            if stretched:  # one table per length would pile up over a long decode: keep the latest
                self._tables = {k: v for k, v in self._tables.items() if k[0] is None}
            angles, magnitude = self._angles(total_length)
            cos, sin = (
                paddle.to_tensor((f(angles) * magnitude).astype(np.float32), place=place)
                for f in (np.cos, np.sin)
            )
            self._tables[key] = cos, sin
        return self._tables[key]

    def _angles(self, total_length: int) -> tuple[np.ndarray, float]:
        """float32 [max_length, dim / 2] of angles, and the magnitude that multiplies their cosine and
        sine."""
        theta, magnitude = self.theta, 1.0
        positions = np.arange(self.max_length, dtype=np.float32)
        if self.kind == "linear":
            positions = positions / np.float32(self.scaling["factor"])
        if self.kind == "dynamic" and total_length > self.trained_length:
            factor = self.scaling["factor"]
            grown = factor * total_length / self.trained_length - (factor - 1)
            theta = theta * grown ** (self.dim / (self.dim - 2))
        frequencies = _frequencies(theta, self.dim)
        if self.kind == "yarn":
            frequencies = _yarn_frequencies(frequencies, self.theta, self.dim, self.scaling)
            magnitude = _mscale(self.scaling["factor"], self.scaling.get("mscale", 1.0)) / _mscale(
                self.scaling["factor"], self.scaling.get("mscale_all_dim", 0.0)
            )
        return np.outer(positions, frequencies), magnitude


def apply_rotary_pos_emb(
    queries: paddle.Tensor,
    keys: paddle.Tensor,
    position_embeddings: PositionEmbeddings,
    interleaved: bool,
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """:func:`rotate` of queries [B, T, N, D] and of keys [B, T, N, D], or [B, T, 1, D] where all heads share
    one."""
    heads = keys.shape[2]
    cos, sin = position_embeddings
    of_keys = position_embeddings if heads == queries.shape[2] else (cos[:, :, :heads], sin[:, :, :heads])
    return rotate(queries, position_embeddings, interleaved), rotate(keys, of_keys, interleaved)


def rotate(x: paddle.Tensor, position_embeddings: PositionEmbeddings, interleaved: bool) -> paddle.Tensor:
    """Rotate pairs of dimensions by their position's angles, in float32.

    Args:
        x: [B, T, N, D].
        position_embeddings: cosines and sines, float32 [B, T, N, D / 2].
        interleaved: pairs are neighbours (MLA) instead of halves of the head (multi-head attention). The
            output holds the halves side by side in both cases, as in the published code; queries and keys
            agree, so scores do.

    Returns:
        [B, T, N, D] in the dtype of ``x``.
    """
    if paddle.amp.is_autocast_enabled():  # which would compute in 16 bits
        with paddle.amp.auto_cast(enable=False):
            return rotate(x, position_embeddings, interleaved)
    cos, sin = position_embeddings
    wide = x.astype("float32")
    half = x.shape[-1] // 2
    if interleaved:
        pairs = paddle.einsum("btndc->cbtnd", wide.reshape([*x.shape[:-1], half, 2]))
    else:
        pairs = paddle.einsum("btncd->cbtnd", wide.reshape([*x.shape[:-1], 2, half]))
    assert pairs is not None  # as Paddle's annotation has it
    first, second = paddle.unbind(pairs)
    turned = paddle.concat([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def _frequencies(theta: float, dim: int) -> np.ndarray:
    return (1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float32) / dim)).astype(np.float32)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn_frequencies(frequencies: np.ndarray, theta: float, dim: int, scaling: dict) -> np.ndarray:
    """Blend stretched low frequencies with unchanged high ones (arXiv 2309.00071, section 3.2)."""
    original = scaling.get("original_max_position_embeddings", 4096)

    def turning_dim(turns: float) -> float:
        """The dimension whose wave makes ``turns`` turns within the original length."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(turning_dim(scaling.get("beta_fast", 32))), 0)
    high = min(math.ceil(turning_dim(scaling.get("beta_slow", 1))), dim - 1)
    width = max(high - low, 0.001)  # equal bounds would divide by zero
    keep = 1.0 - np.clip((np.arange(dim // 2, dtype=np.float32) - low) / width, 0, 1)
    return (frequencies / scaling["factor"] * (1 - keep) + frequencies * keep).astype(np.float32)
