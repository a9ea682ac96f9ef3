"""The compiled kernels as Python functions on Paddle tensors: float32, on the CPU, without gradient."""

import ctypes
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import paddle

from paddlemix_vl2.kernels.build import KernelsUnavailable, find_library
from paddlemix_vl2.kernels.huge_pages import weight_pool

BLOCK_ROWS, BLOCK_COLUMNS = 32, 64
# Queries whose scores exist at once on the CPU, here and with Paddle's operators: bounds memory at
# N * 256 * S floats per sequence, and a causal block reads the keys up to its last position only.
QUERY_BLOCK = 256
# Scores of this many bytes at a time stay in the processor's caches.
_SCORE_BYTES = 8 << 20
_FLOAT_BYTES = 4
_DNNL = (300, 400)  # versions whose interface the kernels were written for, from and below

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_ROTARY = [_POINTER, _POINTER, _INT]
_PLACE = [_INT, _INT, _POINTER, _FLOAT]
_SIGNATURES = {
    "vl2_pack_bf16": [_POINTER, *[_INT] * 4, _POINTER],
    "vl2_pack_int8": [_POINTER, *[_INT] * 4, _POINTER, _POINTER],
    "vl2_linear": [_POINTER, *[_INT] * 3, *[_POINTER] * 4],
    "vl2_experts": [_POINTER, *[_INT] * 3, *[_POINTER] * 2, _INT, *[_POINTER] * 2, _INT, _POINTER],
    "vl2_attention": [*[_POINTER, _INT] * 3, *[_INT] * 5, _FLOAT, *[_INT] * 3, _POINTER],
    "vl2_vision_block": [_POINTER, *[_INT] * 5, *[_POINTER] * 2, _FLOAT, _INT],
    "vl2_multi_head_step": [*[_POINTER] * 3, *[_INT] * 3, *_ROTARY, *[_POINTER] * 2, *_PLACE, _POINTER],
    "vl2_latent_step": [
        *([_POINTER] * 3 + [_FLOAT] + [_INT] * 6),
        *_ROTARY,
        *(_POINTER, _INT, _INT, _POINTER, _POINTER, _POINTER, _FLOAT, _POINTER),
    ],
    "vl2_rms_norm": [_POINTER, _INT, _INT, _POINTER, _FLOAT, _POINTER],
    "vl2_layer_norm": [_POINTER, _INT, _INT, _POINTER, _POINTER, _FLOAT, _POINTER],
}


@dataclass(frozen=True)
class PackedMatrix:
    """Weights [rows, columns] as the kernels read them.

    Attributes:
        data: int8, or the 16 bits of bfloat16 as uint16, in blocks.
        scales: float32, one per column, of int8 weights; else None.
    """

    rows: int
    columns: int
    data: np.ndarray
    scales: np.ndarray | None = None

    @property
    def pointers(self) -> tuple[int, int | None]:
        return self.data.ctypes.data, None if self.scales is None else self.scales.ctypes.data


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL:
    """The library.

    Raises:
        KernelsUnavailable: with the reason.
    """
    try:
        library = ctypes.CDLL(str(find_library()))
    except OSError as error:
        raise KernelsUnavailable(f"they could not be loaded: {error}") from error
    for name, types in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, None
    version = library.vl2_dnnl_version()
    if not _DNNL[0] <= version < _DNNL[1]:
        raise KernelsUnavailable(f"Paddle's oneDNN is {version // 100}.{version % 100}, not 3.x")
    return library


def pack(weight: paddle.Tensor, int8: bool = False) -> PackedMatrix:
    """Weights [K, N] of a linear layer, in any order in memory, as bfloat16; int8 rounds each column to 255
    steps."""
    rows, columns = weight.shape
    if weight.dtype != paddle.bfloat16:
        weight = weight.astype("bfloat16")
    source = (weight.data_ptr(), *weight.strides, rows, columns)
    width, empty = _round_up(columns, BLOCK_COLUMNS), weight_pool().empty
    if int8:
        matrix = PackedMatrix(rows, columns, empty((rows, width), "int8"), empty((width,), "float32"))
        load().vl2_pack_int8(*source, *matrix.pointers)
        return matrix
    matrix = PackedMatrix(rows, columns, empty((_round_up(rows, BLOCK_ROWS), width), "uint16"))
    load().vl2_pack_bf16(*source, matrix.pointers[0])
    return matrix


def linear(
    hidden_states: paddle.Tensor, matrix: PackedMatrix, bias: paddle.Tensor | None = None
) -> paddle.Tensor:
    """float32 [..., K] -> [..., N], ``hidden_states W + bias``."""
    hidden_states = _dense(hidden_states)
    output = paddle.empty([*hidden_states.shape[:-1], matrix.columns], "float32")
    rows = hidden_states.size // matrix.rows
    bias_pointer = None if bias is None else bias.data_ptr()
    load().vl2_linear(
        hidden_states.data_ptr(),
        rows,
        matrix.rows,
        matrix.columns,
        *matrix.pointers,
        bias_pointer,
        output.data_ptr(),
    )
    return output


class PackedExperts:
    """The gated MLPs of an MoE layer, for one call per layer."""

    def __init__(self, experts: list[tuple[PackedMatrix, PackedMatrix, PackedMatrix]]):
        self.matrices = [matrix for expert in experts for matrix in expert]  # gate, up, down of each
        self.hidden_size, self.width = self.matrices[0].rows, self.matrices[0].columns
        pointers = [matrix.pointers for matrix in self.matrices]
        array = _POINTER * len(pointers)
        self._data = array(*[data for data, _ in pointers])
        self._scales = array(*[scales for _, scales in pointers]) if pointers[0][1] else None
        self.count = len(experts)

    def add_to(
        self,
        output: paddle.Tensor,
        hidden_states: paddle.Tensor,
        experts: paddle.Tensor,
        weights: paddle.Tensor | None,
    ) -> None:
        """Add to ``output`` [M, H] the sum of each token's experts.

        Args:
            hidden_states: float32 [M, H].
            experts: int64 [M, K].
            weights: float32 [M, K]; None where all are 1.
        """
        tokens, top_k = experts.shape
        hidden_states, experts = _dense(hidden_states), experts.contiguous()
        weights = None if weights is None else _dense(weights)
        load().vl2_experts(
            hidden_states.data_ptr(),
            tokens,
            self.hidden_size,
            self.width,
            self._data,
            self._scales,
            self.count,
            experts.data_ptr(),
            None if weights is None else weights.data_ptr(),
            top_k,
            output.data_ptr(),
        )


def attention(
    queries: paddle.Tensor,
    keys: paddle.Tensor,
    values: paddle.Tensor,
    scale: float,
    start: int | None = None,
) -> paddle.Tensor:
    """Softmax attention, [B, T, N, D], [B, S, N, D] and [B, S, N, Dv] -> [B, T, N, Dv].

    Args:
        start: query t sees the keys up to ``start + t``; all keys where None.
    """
    tensors = [_dense(tensor) for tensor in (queries, keys, values)]
    batch, num_queries, heads, width = queries.shape
    num_keys, value_width = values.shape[1], values.shape[-1]
    output = paddle.empty([batch, num_queries, heads, value_width], "float32")
    order, block = (-1, num_queries) if start is None else (start, min(num_queries, QUERY_BLOCK))
    shape = (num_queries, num_keys, heads, width, value_width)
    settings = (scale, order, block, _heads_at_once(heads, block * num_keys))
    for sequence in range(batch):
        *addresses, target = (_row_address(tensor, sequence) for tensor in (*tensors, output))
        strides = [tensor.shape[2] * tensor.shape[3] for tensor in tensors]
        places = [number for place in zip(addresses, strides, strict=True) for number in place]
        load().vl2_attention(*places, *shape, *settings, target)
    return output


def _row_address(tensor: paddle.Tensor, row: int) -> int:
    """Of a row of a dense float32 tensor; indexing would make a copy where Paddle has no views."""
    return tensor.data_ptr() + _FLOAT_BYTES * row * (tensor.size // tensor.shape[0])


def _heads_at_once(heads: int, scores: int) -> int:
    """How many heads' scores, so many of each, are kept at a time."""
    return max(1, min(heads, _SCORE_BYTES // (_FLOAT_BYTES * scores)))


class PackedVisionBlock:
    """The weights of a block of the vision encoder, for one call.

    Args:
        matrices: bfloat16, of queries, keys and values together, the output, and the MLP's two.
        vectors: float32, weight and bias of both norms, then the biases of the matrices.
        heads, epsilon: of attention, of the norms.
    """

    def __init__(
        self, matrices: list[PackedMatrix], vectors: list[paddle.Tensor], heads: int, epsilon: float
    ):
        self.matrices, self.vectors, self.heads, self.epsilon = matrices, vectors, heads, epsilon
        self._matrices = (_POINTER * len(matrices))(*[matrix.pointers[0] for matrix in matrices])
        self._vectors = (_POINTER * len(vectors))(*[vector.data_ptr() for vector in vectors])

    def __call__(self, hidden_states: paddle.Tensor) -> None:
        """Change float32 [I, P, W], in order in memory, into the block's output."""
        tiles, patches, width = hidden_states.shape
        load().vl2_vision_block(
            hidden_states.data_ptr(),
            tiles,
            patches,
            width,
            self.heads,
            self.matrices[2].columns,
            self._matrices,
            self._vectors,
            self.epsilon,
            _heads_at_once(self.heads, patches * patches),
        )


def multi_head_step(
    queries: paddle.Tensor,
    keys: paddle.Tensor,
    values: paddle.Tensor,
    rotary: tuple[paddle.Tensor, paddle.Tensor],
    cached: tuple[paddle.Tensor, paddle.Tensor],
    position: int,
    mask: paddle.Tensor | None,
    scale: float,
) -> paddle.Tensor:
    """Attention of one new position over the cache, which gets its rotated key and its value.

    Args:
        queries, keys, values: float32 [B, 1, N, D], not rotated yet.
        rotary: as :meth:`RotaryEmbedding.lookup` gives them for the position.
        cached: keys and values, bfloat16 [B, N, S, D], written in place.
        mask: bool [B, S], False on padding.

    Returns:
        [B, 1, N, D].
    """
    batch, _, heads, width = queries.shape
    output = paddle.empty(queries.shape, "float32")
    load().vl2_multi_head_step(
        *(tensor.data_ptr() for tensor in (queries, keys, values)),
        *(batch, heads, width),
        *_rotary_arguments(rotary),
        *(*map(_cached, cached), cached[0].shape[2], position),
        *(None if mask is None else mask.data_ptr(), scale, output.data_ptr()),
    )
    return output


def latent_step(
    queries: paddle.Tensor,
    latents: paddle.Tensor,
    norm: tuple[paddle.Tensor, float],
    rotary: tuple[paddle.Tensor, paddle.Tensor],
    cached: paddle.Tensor,
    absorbed: tuple[paddle.Tensor, paddle.Tensor],
    position: int,
    mask: paddle.Tensor | None,
    scale: float,
) -> paddle.Tensor:
    """The same for multi-head latent attention, in its absorbed form.

    Args:
        queries: float32 [B, 1, N, Dn + Dr], not rotated yet.
        latents: float32 [B, 1, R + Dr], not normed and not rotated yet.
        norm: weight and epsilon of the latents' norm.
        cached: normed latents and rotated shared keys, bfloat16 [B, S, R + Dr], written in place.
        absorbed: the halves of ``kv_b_proj``, bfloat16 [N, Dn, R] and [N, R, Dv].

    Returns:
        [B, 1, N, Dv].
    """
    batch, _, heads, width = queries.shape
    key_weight, value_weight = absorbed
    (_, nope, rank), value_width = key_weight.shape, value_weight.shape[-1]
    output = paddle.empty([batch, 1, heads, value_width], "float32")
    load().vl2_latent_step(
        *(queries.data_ptr(), latents.data_ptr(), norm[0].data_ptr(), norm[1]),
        *(batch, heads, nope, width - nope, rank, value_width),
        *_rotary_arguments(rotary),
        *(_cached(cached), cached.shape[1], position),
        *(key_weight.data_ptr(), value_weight.data_ptr()),
        *(None if mask is None else mask.data_ptr(), scale, output.data_ptr()),
    )
    return output


def _rotary_arguments(rotary: tuple[paddle.Tensor, paddle.Tensor]) -> tuple[int, int, int]:
    """Addresses of cosines and sines, and the numbers from a sequence to the next; 0 where all share one."""
    cos, sin = rotary
    return cos.data_ptr(), sin.data_ptr(), cos.shape[2] * cos.shape[3] if cos.shape[0] > 1 else 0


def _cached(tensor: paddle.Tensor) -> int:
    if tensor.dtype != paddle.bfloat16:
        raise ValueError(
            f"a model on the kernels needs a cache in bfloat16, not {tensor.dtype}: model.new_cache"
        )
    return tensor.data_ptr()


def rms_norm(hidden_states: paddle.Tensor, weight: paddle.Tensor, epsilon: float) -> paddle.Tensor:
    """float32 [..., H] -> [..., H]."""
    hidden_states = _dense(hidden_states)
    output = paddle.empty_like(hidden_states)
    width = hidden_states.shape[-1]
    pointers = (weight.data_ptr(), epsilon, output.data_ptr())
    load().vl2_rms_norm(hidden_states.data_ptr(), hidden_states.size // width, width, *pointers)
    return output


def layer_norm(
    hidden_states: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, epsilon: float
) -> paddle.Tensor:
    """float32 [..., W] -> [..., W]."""
    hidden_states = _dense(hidden_states)
    output = paddle.empty_like(hidden_states)
    width = hidden_states.shape[-1]
    pointers = (weight.data_ptr(), bias.data_ptr(), epsilon, output.data_ptr())
    load().vl2_layer_norm(hidden_states.data_ptr(), hidden_states.size // width, width, *pointers)
    return output


def _dense(tensor: paddle.Tensor) -> paddle.Tensor:
    """float32 with its values in order."""
    if tensor.dtype != paddle.float32:
        tensor = tensor.astype("float32")
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _round_up(value: int, to: int) -> int:
    return -(-value // to) * to
