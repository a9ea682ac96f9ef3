"""Save a model as a published checkpoint, piece by piece."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle

from paddlemix_vl2.checkpoints.files import TensorSpec, check_dtype, shorten
from paddlemix_vl2.checkpoints.specs import ParameterSpec, TensorLayout, cast, model_tensors
from paddlemix_vl2.checkpoints.writer import SINGLE_PROCESS, ShardPlan, write_checkpoint
from paddlemix_vl2.config.base import PublishedConfig
from paddlemix_vl2.files import format_object
from paddlemix_vl2.hub import CONFIG_FILE

# Values of a large tensor are converted and written in pieces of about this many.
_PIECE_VALUES = 2_000_000


def save_checkpoint(
    model: paddle.nn.Layer,
    specs: dict[str, ParameterSpec],
    config: PublishedConfig,
    folder: str | Path,
    dtype: str | None = None,
    max_shard_bytes: float = 5e9,
    progress: bool = False,
    shard_plan: ShardPlan = SINGLE_PROCESS,
) -> None:
    """Write safetensors in the published layout, an index where there are several, and ``config.json``.

    An older checkpoint in the folder is replaced, and stays whole if writing fails; the disk holds both then.

    Args:
        model: in Paddle's layout.
        specs: of all tensors of the checkpoint, the model's among them.
        config: written as ``config.json``, with the dtype of the files.
        folder: is created where it does not exist; other files in it are left alone.
        dtype: of the weights in the files; that of the model where None. Tensors with a dtype of their own
            keep that.
        max_shard_bytes: size of a file at most.
        progress: show a bar of bytes where the checkpoint is large.
        shard_plan: the processes that write the checkpoint together, all of which call this.

    Raises:
        ValueError: unknown dtype or shard size, the model is not the config's or lacks experts that this
            process is to write, or too little room.
    """
    if dtype is not None:
        check_dtype(dtype)
    tensors = model_tensors(model, specs)
    own = [name for name in specs if shard_plan.writer_of(name) == shard_plan.index]
    if lacking := [f"{name} is not in the model" for name in own if name not in tensors]:
        raise ValueError(f"model and shard plan differ in {len(lacking)} tensors: {shorten(lacking)}")
    # Also the dtype of experts in other processes, whose files are planned here too.
    usual = next(tensor for name, tensor in tensors.items() if specs[name].dtype is None)
    stored = [
        TensorSpec(name, spec.shape, spec.dtype or dtype or _dtype_of(tensors.get(name, usual)))
        for name, spec in specs.items()
    ]
    write_checkpoint(
        folder,
        stored,
        pieces=lambda one: published_pieces(one, specs[one.name], tensors[one.name]),
        max_shard_bytes=max_shard_bytes,
        texts={CONFIG_FILE: config_text(config, dtype or _dtype_of(usual))},
        progress=progress,
        shard_plan=shard_plan,
    )


def _dtype_of(tensor: paddle.Tensor) -> str:
    return check_dtype(str(tensor.dtype).removeprefix("paddle."))


def published_pieces(stored: TensorSpec, spec: ParameterSpec, tensor: paddle.Tensor) -> Iterator[np.ndarray]:
    """A model's tensor in the published layout and the dtype of ``stored``, a number of rows at a time."""
    tensor = tensor.detach()
    transposed = spec.must_transpose(
        tuple(tensor.shape), source=TensorLayout.PADDLE, target=TensorLayout.PUBLISHED
    )
    num_rows = max(1, _PIECE_VALUES * spec.shape[0] // max(1, tensor.size))
    for first in range(0, spec.shape[0], num_rows):
        last = min(first + num_rows, spec.shape[0])
        piece = tensor[:, first:last].transpose([1, 0]) if transposed else tensor[first:last]
        # A copy of the piece: numpy() on a view would copy everything that the view looks into.
        yield cast(piece.clone(), stored.dtype).numpy()


def config_text(config: PublishedConfig, dtype: str) -> str:
    """The content of ``config.json`` for weights of this dtype."""
    values = config.to_dict()
    for part in (values, *(value for value in values.values() if isinstance(value, dict))):
        if "torch_dtype" in part:
            part["torch_dtype"] = dtype
    return format_object(values)
