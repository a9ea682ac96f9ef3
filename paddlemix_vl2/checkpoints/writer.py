"""Write a checkpoint folder piece by piece, so that no more than a piece of a tensor is in memory.

The safetensors library writes a file from tensors that are all in memory; a shard of 5 GB beside the model
is too much. The format is a header of JSON and the values behind it, so the header is written from the
shapes and the values are streamed. What is written here is read back with that library in the tests.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from paddlemix_vl2.checkpoints.files import (
    INDEX_FILE,
    SHARD_FILE,
    SHARD_PATTERN,
    SINGLE_FILE,
    STORED_DTYPES,
    TensorSpec,
    byte_bar,
)

_TEMPORARY = ".tmp"
# PyTorch's layout; readers of published checkpoints refuse files without it.
_METADATA = {"format": "pt"}

Pieces = Callable[[TensorSpec], Iterable[np.ndarray]]


def write_checkpoint(
    folder: str | Path,
    specs: list[TensorSpec],
    pieces: Pieces,
    max_shard_bytes: float,
    texts: dict[str, str],
    progress: bool = False,
) -> list[str]:
    """Write tensors as ``model.safetensors``, or as shards with an index, and small text files beside them.

    Everything is written under temporary names first. A failure until then (full disk, an exception in
    ``pieces``, an interruption) leaves an older checkpoint in the folder as it was. Only then are the files
    renamed and those of the older checkpoint removed; see :func:`_replace`.

    Args:
        folder: is created where it does not exist.
        specs: the tensors, in the order of the shards.
        pieces: gives the values of a tensor in its published layout and in order, as arrays of any shape and
            of the dtype's numpy type (uint16 for bfloat16).
        max_shard_bytes: a shard holds at most so much, unless one tensor is larger.
        texts: name -> content of other files, such as ``config.json``.
        progress: show a bar of bytes where there are many.

    Returns:
        names of the safetensors files.

    Raises:
        ValueError: ``max_shard_bytes`` is not positive, or the disk has too little room.
    """
    folder = Path(folder)
    shards = plan_shards(specs, max_shard_bytes)
    total = sum(spec.nbytes for spec in specs)
    folder.mkdir(parents=True, exist_ok=True)
    # A process that was killed while saving has left these.
    _remove_weights(folder, lambda name: name.endswith(_TEMPORARY))
    _check_room(folder, total)
    texts = dict(texts)
    if list(shards) != [SINGLE_FILE]:
        weight_map = {spec.name: file for file, shard in shards.items() for spec in shard}
        texts[INDEX_FILE] = (
            json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"
        )
    try:
        with byte_bar("writing", total, progress) as bar:
            for file, shard in shards.items():
                _write_file(folder / (file + _TEMPORARY), shard, pieces, bar.update)
        for file, text in texts.items():
            (folder / (file + _TEMPORARY)).write_text(text, encoding="utf-8")
    except BaseException:  # an interruption from the keyboard as well
        for file in [*shards, *texts]:
            (folder / (file + _TEMPORARY)).unlink(missing_ok=True)
        raise
    _replace(folder, list(shards), list(texts))
    return list(shards)


def plan_shards(specs: list[TensorSpec], max_shard_bytes: float) -> dict[str, list[TensorSpec]]:
    """File name -> its tensors. Shards are filled in order; what does not fit begins the next one.

    Example: tensors of 3, 3 and 8 bytes at 6 bytes per shard make two shards, [3, 3] and [8].
    """
    if max_shard_bytes <= 0:
        raise ValueError(f"the shard size must be positive, not {max_shard_bytes}")
    shards, used = [[]], 0
    for spec in specs:
        if shards[-1] and used + spec.nbytes > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(spec)
        used += spec.nbytes
    if len(shards) == 1:
        return {SINGLE_FILE: shards[0]}
    return {SHARD_FILE.format(number=i, count=len(shards)): shard for i, shard in enumerate(shards, start=1)}


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f"{folder}: {needed / 1e9:.1f} GB are needed, the disk has {free / 1e9:.1f} GB free")


def _write_file(
    file: Path, specs: list[TensorSpec], pieces: Pieces, advance: Callable[[int], object]
) -> None:
    # Wide dtypes first, as the library orders them: every tensor then begins at a multiple of its item size.
    specs = sorted(specs, key=lambda spec: -STORED_DTYPES[spec.dtype][1].itemsize)
    header, offset = {"__metadata__": _METADATA}, 0
    for spec in specs:
        span = [offset, offset + spec.nbytes]
        header[spec.name] = {"dtype": STORED_DTYPES[spec.dtype][0], "shape": spec.shape, "data_offsets": span}
        offset += spec.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for spec in specs:
            _write_tensor(stream, spec, pieces(spec), advance)
        # Without this a loss of power after the renames could leave named but empty files.
        stream.flush()
        os.fsync(stream.fileno())


def _write_tensor(
    stream, spec: TensorSpec, pieces: Iterable[np.ndarray], advance: Callable[[int], object]
) -> None:
    written = 0
    for piece in pieces:
        assert piece.dtype == STORED_DTYPES[spec.dtype][1], f"{spec.name}: {piece.dtype} for {spec.dtype}"
        stream.write(np.ascontiguousarray(piece).data)
        written += piece.nbytes
        advance(piece.nbytes)
    assert written == spec.nbytes, f"{spec.name}: {written} bytes written, {spec.nbytes} announced"


def _replace(folder: Path, weights: list[str], texts: list[str]) -> None:
    """Rename the temporary files and remove what an older checkpoint leaves over.

    A single file is one rename. Shards become visible with their index, which is renamed after them; where
    shards of the same names are there, their index is removed first. An interruption between these renames,
    some milliseconds long, leaves the older checkpoint or a folder that is refused for lack of an index,
    never a mixture of both; new files not yet renamed stay under their temporary names until the next save.
    """
    if any((folder / name).exists() for name in weights if name != SINGLE_FILE):
        (folder / INDEX_FILE).unlink(missing_ok=True)
    for name in [*weights, *texts]:
        os.replace(folder / (name + _TEMPORARY), folder / name)
    _remove_weights(folder, lambda name: name not in [*weights, *texts])


def _remove_weights(folder: Path, condition: Callable[[str], bool]) -> None:
    """Delete those files of weights, of any earlier save, whose name fulfils the condition; no others."""
    for path in list(folder.iterdir()):
        name = path.name.removesuffix(_TEMPORARY)
        of_weights = name in (SINGLE_FILE, INDEX_FILE) or re.fullmatch(SHARD_PATTERN, name)
        if of_weights and condition(path.name):
            path.unlink()
