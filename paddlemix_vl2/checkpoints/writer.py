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
from dataclasses import dataclass
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
from paddlemix_vl2.files import TEMPORARY, finish_file, format_object, shared_temporary

# PyTorch's layout; readers of published checkpoints refuse files without it.
_METADATA = {"format": "pt"}

Pieces = Callable[[TensorSpec], Iterable[np.ndarray]]


@dataclass(frozen=True)
class ShardPlan:
    """Processes that write a checkpoint together, each its own tensors into its own files, on a file system
    that all of them see.

    Attributes:
        index: of this process. The first one also writes the text files and renames all files; one that
            ``writer_of`` never gives only waits.
        writer_of: name of a tensor -> index of the process that writes it.
        wait: returns when every process has called it.
    """

    index: int
    writer_of: Callable[[str], int]
    wait: Callable[[], object]


SINGLE_PROCESS = ShardPlan(index=0, writer_of=lambda name: 0, wait=lambda: None)


def write_checkpoint(
    folder: str | Path,
    specs: list[TensorSpec],
    pieces: Pieces,
    max_shard_bytes: float,
    texts: dict[str, str],
    progress: bool = False,
    shard_plan: ShardPlan = SINGLE_PROCESS,
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
        shard_plan: who writes what where several processes call this together. Each is asked for the pieces
            of its own tensors only.

    Returns:
        names of the safetensors files.

    Raises:
        ValueError: ``max_shard_bytes`` is not positive, or the disk has too little room.
    """
    folder = Path(folder)
    specs = sorted(specs, key=lambda spec: shard_plan.writer_of(spec.name))
    shards = plan_shards(specs, max_shard_bytes, shard_plan.writer_of)
    own = {
        file: shard
        for file, shard in shards.items()
        if shard_plan.writer_of(shard[0].name) == shard_plan.index
    }
    is_first = shard_plan.index == 0
    if is_first:
        _prepare(folder, sum(spec.nbytes for spec in specs))
    shard_plan.wait()
    texts = {**texts, **_index(shards)} if is_first else {}
    try:
        with byte_bar(
            "writing", sum(spec.nbytes for shard in own.values() for spec in shard), progress
        ) as bar:
            for file, shard in own.items():
                _write_file(shared_temporary(folder / file), shard, pieces, bar.update)
        for file, text in texts.items():
            shared_temporary(folder / file).write_text(text, encoding="utf-8")
    except BaseException:  # an interruption from the keyboard as well
        for file in [*own, *texts]:
            shared_temporary(folder / file).unlink(missing_ok=True)
        raise
    shard_plan.wait()
    if is_first:
        _replace(folder, list(shards), list(texts))
    shard_plan.wait()
    return list(shards)


def _prepare(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # A process that was killed while saving has left these.
    _remove_weights(folder, lambda name: name.endswith(TEMPORARY))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f"{folder}: {needed / 1e9:.1f} GB are needed, the disk has {free / 1e9:.1f} GB free")


def _index(shards: dict[str, list[TensorSpec]]) -> dict[str, str]:
    """The index file's name and text; nothing where a single file needs none."""
    if list(shards) == [SINGLE_FILE]:
        return {}
    total = sum(spec.nbytes for shard in shards.values() for spec in shard)
    weight_map = {spec.name: file for file, shard in shards.items() for spec in shard}
    return {INDEX_FILE: format_object({"metadata": {"total_size": total}, "weight_map": weight_map})}


def plan_shards(
    specs: list[TensorSpec],
    max_shard_bytes: float,
    writer_of: Callable[[str], int] = SINGLE_PROCESS.writer_of,
) -> dict[str, list[TensorSpec]]:
    """File name -> its tensors. Shards are filled in order; what does not fit, or what another process
    writes, begins the next one.

    Example: tensors of 3, 3 and 8 bytes at 6 bytes per shard make two shards, [3, 3] and [8].
    """
    if max_shard_bytes <= 0:
        raise ValueError(f"the shard size must be positive, not {max_shard_bytes}")
    shards, used = [[]], 0
    for spec in specs:
        is_anothers = bool(shards[-1]) and writer_of(shards[-1][0].name) != writer_of(spec.name)
        if shards[-1] and (is_anothers or used + spec.nbytes > max_shard_bytes):
            shards.append([])
            used = 0
        shards[-1].append(spec)
        used += spec.nbytes
    if len(shards) == 1:
        return {SINGLE_FILE: shards[0]}
    return {SHARD_FILE.format(number=i, count=len(shards)): shard for i, shard in enumerate(shards, start=1)}


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
        finish_file(folder / name)
    _remove_weights(folder, lambda name: name not in [*weights, *texts])


def _remove_weights(folder: Path, condition: Callable[[str], bool]) -> None:
    """Delete those files of weights, of any earlier save, whose name fulfils the condition; no others."""
    for path in list(folder.iterdir()):
        name = path.name.removesuffix(TEMPORARY)
        of_weights = name in (SINGLE_FILE, INDEX_FILE) or re.fullmatch(SHARD_PATTERN, name)
        if of_weights and condition(path.name):
            path.unlink()
