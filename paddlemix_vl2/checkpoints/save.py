"""Save a model as a published checkpoint, piece by piece."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle

from paddlemix_vl2.checkpoints.expected import expected_tensors, held_tensors
from paddlemix_vl2.checkpoints.files import CONFIG_FILE, TensorSpec, check_dtype
from paddlemix_vl2.checkpoints.parameters import cast, model_tensors
from paddlemix_vl2.checkpoints.rules import Layout, must_transpose, rule_for
from paddlemix_vl2.checkpoints.writer import ALONE, Writers, write_checkpoint
from paddlemix_vl2.configuration import DeepseekVLV2Config

# Values of a large tensor are converted and written in pieces of about this many.
_PIECE_VALUES = 2_000_000


def save_checkpoint(
    model: paddle.nn.Layer,
    config: DeepseekVLV2Config,
    folder: str | Path,
    dtype: str | None = None,
    max_shard_bytes: float = 5e9,
    progress: bool = False,
    experts: range | None = None,
    writers: Writers = ALONE,
) -> None:
    """Write safetensors in the published layout, an index where there are several, and ``config.json``.

    An older checkpoint in the folder is replaced, and stays whole if writing fails; the disk holds both then.

    Args:
        model: its tensors are those of ``expected_tensors(config)``.
        config: written as ``config.json``, with the dtype of the files.
        folder: is created where it does not exist; other files in it are left alone.
        dtype: of the weights in the files; that of the model where None. Tensors with a dtype of their own in
            ``rules.RULES`` keep that.
        max_shard_bytes: size of a file at most.
        progress: show a bar of bytes where the checkpoint is large.
        experts: global indices of the routed experts that the model has, as in ``load_checkpoint``.
        writers: the processes that write the checkpoint together, all of which call this.

    Raises:
        ValueError: unknown dtype or shard size, the model is not the config's, or too little room.
    """
    if dtype is not None:
        check_dtype(dtype)
    expected = expected_tensors(config)
    tensors = model_tensors(model, held_tensors(expected, experts))
    # Also tells the dtype of experts in other processes, whose files are planned here too.
    usual = tensors["image_newline"]
    specs = [
        TensorSpec(name, shape, rule_for(name).dtype or dtype or _dtype_of(tensors.get(name, usual)))
        for name, shape in expected.items()
    ]
    write_checkpoint(
        folder,
        specs,
        pieces=lambda spec: published_pieces(spec, tensors[spec.name]),
        max_shard_bytes=max_shard_bytes,
        texts={CONFIG_FILE: config_text(config, dtype or _dtype_of(usual))},
        progress=progress,
        writers=writers,
    )


def _dtype_of(tensor: paddle.Tensor) -> str:
    return check_dtype(str(tensor.dtype).removeprefix("paddle."))


def published_pieces(spec: TensorSpec, tensor: paddle.Tensor) -> Iterator[np.ndarray]:
    """A model's tensor in the published layout and the dtype of ``spec``, a number of rows at a time."""
    tensor = tensor.detach()
    transposed = must_transpose(
        spec.name, tuple(tensor.shape), spec.shape, source=Layout.PADDLE, target=Layout.PUBLISHED
    )
    num_rows = max(1, _PIECE_VALUES * spec.shape[0] // max(1, tensor.size))
    for first in range(0, spec.shape[0], num_rows):
        last = min(first + num_rows, spec.shape[0])
        piece = tensor[:, first:last].transpose([1, 0]) if transposed else tensor[first:last]
        # A copy of the piece: numpy() on a view would copy everything that the view looks into.
        yield cast(piece.clone(), spec.dtype).numpy()


def config_text(config: DeepseekVLV2Config, dtype: str) -> str:
    """The content of ``config.json`` for weights of this dtype."""
    values = config.to_dict()
    for part in (values, *(value for value in values.values() if isinstance(value, dict))):
        if "torch_dtype" in part:
            part["torch_dtype"] = dtype
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
