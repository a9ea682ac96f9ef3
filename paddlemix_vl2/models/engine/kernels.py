"""The compiled kernels as Python functions on Paddle tensors: float32, on the CPU, without gradient."""

import ctypes
from dataclasses import dataclass
from functools import lru_cache

import paddle

from paddlemix_vl2.models.dot_product import QUERY_BLOCK
from paddlemix_vl2.models.engine.build import KernelsUnavailable, find_library

ACTIVATIONS = {None: 0, "gelu_tanh": 1, "silu": 2}
_BLOCK_ROWS, _BLOCK_COLUMNS = 32, 64
# Scores of this many bytes at a time stay in the processor's caches.
_SCORE_BYTES = 8 << 20
_FLOAT_BYTES = 4
_DNNL = (300, 400)  # versions whose interface the kernels were written for, from and below

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES = {
    "vl2_pack_bf16": [_POINTER, *[_INT] * 4, _POINTER],
    "vl2_pack_int8": [_POINTER, *[_INT] * 4, _POINTER, _POINTER],
    "vl2_linear": [_POINTER, *[_INT] * 3, *[_POINTER] * 3, *[ctypes.c_int] * 2, _POINTER],
    "vl2_experts": [_POINTER, *[_INT] * 3, *[_POINTER] * 2, _INT, *[_POINTER] * 2, _INT, _POINTER],
    "vl2_attention": [*[_POINTER, _INT] * 3, *[_INT] * 5, _FLOAT, *[_INT] * 3, _POINTER],
    "vl2_rms_norm": [_POINTER, _INT, _INT, _POINTER, _FLOAT, _POINTER],
    "vl2_layer_norm": [_POINTER, _INT, _INT, _POINTER, _POINTER, _FLOAT, _POINTER],
}


@dataclass(frozen=True)
class PackedMatrix:
    """Weights [rows, columns] as the kernels read them.

    Attributes:
        data: bfloat16 or int8, in blocks.
        scales: float32, one per column, of int8 weights; else None.
    """

    rows: int
    columns: int
    data: paddle.Tensor
    scales: paddle.Tensor | None = None

    @property
    def pointers(self) -> tuple[int, int | None]:
        return self.data.data_ptr(), None if self.scales is None else self.scales.data_ptr()


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
    width = _round_up(columns, _BLOCK_COLUMNS)
    if int8:
        data, scales = paddle.empty([rows * width], "int8"), paddle.empty([width], "float32")
        load().vl2_pack_int8(*source, data.data_ptr(), scales.data_ptr())
        return PackedMatrix(rows, columns, data, scales)
    data = paddle.empty([_round_up(rows, _BLOCK_ROWS) * width], "bfloat16")
    load().vl2_pack_bf16(*source, data.data_ptr())
    return PackedMatrix(rows, columns, data)


def linear(
    hidden: paddle.Tensor,
    matrix: PackedMatrix,
    bias: paddle.Tensor | None = None,
    activation: str | None = None,
) -> paddle.Tensor:
    """float32 [..., K] -> [..., N], ``activation(hidden W + bias)``."""
    hidden = _dense(hidden)
    output = paddle.empty([*hidden.shape[:-1], matrix.columns], "float32")
    rows = hidden.size // matrix.rows
    bias_pointer = None if bias is None else bias.data_ptr()
    load().vl2_linear(
        hidden.data_ptr(),
        rows,
        matrix.rows,
        matrix.columns,
        *matrix.pointers,
        bias_pointer,
        ACTIVATIONS[activation],
        0,
        output.data_ptr(),
    )
    return output


class PackedExperts:
    """The gated MLPs of a mixture layer, for one call per layer."""

    def __init__(self, experts: list[tuple[PackedMatrix, PackedMatrix, PackedMatrix]]):
        self.matrices = [matrix for expert in experts for matrix in expert]  # gate, up, down of each
        self.hidden, self.width = self.matrices[0].rows, self.matrices[0].columns
        pointers = [matrix.pointers for matrix in self.matrices]
        array = _POINTER * len(pointers)
        self._data = array(*[data for data, _ in pointers])
        self._scales = array(*[scales for _, scales in pointers]) if pointers[0][1] else None
        self.count = len(experts)

    def add_to(
        self,
        output: paddle.Tensor,
        hidden: paddle.Tensor,
        experts: paddle.Tensor,
        weights: paddle.Tensor | None,
    ) -> None:
        """Add to ``output`` [M, H] the sum of each token's experts.

        Args:
            hidden: float32 [M, H].
            experts: int64 [M, K].
            weights: float32 [M, K]; None where all are 1.
        """
        tokens, top_k = experts.shape
        hidden, experts = _dense(hidden), experts.contiguous()
        weights = None if weights is None else _dense(weights)
        load().vl2_experts(
            hidden.data_ptr(),
            tokens,
            self.hidden,
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
    sources = [(tensor.data_ptr(), tensor.shape[2] * tensor.shape[3]) for tensor in tensors]
    batch, length, heads, width = queries.shape
    output = paddle.empty([batch, length, heads, values.shape[-1]], "float32")
    _attend(sources, output, length, keys.shape[1], width, scale, start)
    return output


def self_attention(mixed: paddle.Tensor, heads: int, scale: float) -> paddle.Tensor:
    """All positions with each other: queries, keys and values side by side [B, T, 3 * W] -> [B, T, W]."""
    mixed = _dense(mixed)
    batch, length, width = mixed.shape
    width //= 3
    output = paddle.empty([batch, length, heads, width // heads], "float32")
    sources = [(mixed.data_ptr() + _FLOAT_BYTES * part * width, 3 * width) for part in range(3)]
    _attend(sources, output, length, length, width // heads, scale, None)
    return output.reshape([batch, length, width])


def _attend(
    sources: list[tuple[int, int]],
    output: paddle.Tensor,
    num_queries: int,
    num_keys: int,
    width: int,
    scale: float,
    start: int | None,
) -> None:
    """Attention into ``output`` [B, T, N, Dv], sequence by sequence.

    Args:
        sources: of queries, keys and values the address of the first number, and the numbers from a position
            to the next.
        width: D of queries and keys.
    """
    batch, _, heads, value_width = output.shape
    block = num_queries if start is None else min(num_queries, QUERY_BLOCK)
    heads_at_once = max(1, min(heads, _SCORE_BYTES // (_FLOAT_BYTES * block * num_keys)))
    shape = (num_queries, num_keys, heads, width, value_width)
    for sequence in range(batch):
        places = [
            number
            for (address, stride), length in zip(sources, (num_queries, num_keys, num_keys), strict=True)
            for number in (address + _FLOAT_BYTES * sequence * length * stride, stride)
        ]
        target = output.data_ptr() + _FLOAT_BYTES * sequence * num_queries * heads * value_width
        order = -1 if start is None else start
        load().vl2_attention(*places, *shape, scale, order, block, heads_at_once, target)


def rms_norm(hidden: paddle.Tensor, weight: paddle.Tensor, epsilon: float) -> paddle.Tensor:
    """float32 [..., H] -> [..., H]."""
    hidden = _dense(hidden)
    output = paddle.empty_like(hidden)
    width = hidden.shape[-1]
    pointers = (weight.data_ptr(), epsilon, output.data_ptr())
    load().vl2_rms_norm(hidden.data_ptr(), hidden.size // width, width, *pointers)
    return output


def layer_norm(
    hidden: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, epsilon: float
) -> paddle.Tensor:
    """float32 [..., W] -> [..., W]."""
    hidden = _dense(hidden)
    output = paddle.empty_like(hidden)
    width = hidden.shape[-1]
    pointers = (weight.data_ptr(), bias.data_ptr(), epsilon, output.data_ptr())
    load().vl2_layer_norm(hidden.data_ptr(), hidden.size // width, width, *pointers)
    return output


def _dense(tensor: paddle.Tensor) -> paddle.Tensor:
    """float32 with its values in order."""
    return tensor.astype("float32").contiguous()


def _round_up(value: int, to: int) -> int:
    return -(-value // to) * to
