"""Find and read the safetensors files of a checkpoint folder.

Files are validated and listed by the safetensors library. Values are read at their offsets into ordinary
memory instead of being mapped: mapped pages count as resident until the file is closed, so that the files
would come on top of the model.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from paddlemix_vl2.checkpoints.files import INDEX_FILE, SINGLE_FILE, STORED_DTYPES, shorten
from paddlemix_vl2.files import parse_object

_DTYPE_OF_CODE = {code: dtype for dtype, (code, _) in STORED_DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. ``dtype`` is our name (``bfloat16``) if weights can have it, else the file's code
    (``I64``); ``offset`` counts from the start of the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def loadable(self) -> bool:
        return self.dtype in STORED_DTYPES

    def read(self) -> np.ndarray:
        """The values, in one read; bfloat16 as uint16 bits.

        Raises:
            ValueError: the file has become shorter since it was listed.
        """
        count = math.prod(self.shape)
        with open(self.file, "rb") as stream:
            stream.seek(self.offset)
            values = np.fromfile(stream, STORED_DTYPES[self.dtype][1], count)
        if values.size != count:
            raise ValueError(f"{self.file}: ends before tensor {self.name} does")
        return values.reshape(self.shape)


@dataclass(frozen=True)
class StoredCheckpoint:
    """All tensors of a folder by name, and the ``format`` entry of each file's metadata (or None)."""

    folder: Path
    tensors: dict[str, StoredTensor]
    formats: dict[Path, str | None]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def open_checkpoint(folder: str | Path) -> StoredCheckpoint:
    """List the tensors of the safetensors file, or of the sharded files and their index, in a folder.

    Where a folder has both ``model.safetensors`` and an index, the single file counts, as in other readers.

    Raises:
        FileNotFoundError: the folder or the files are not there.
        ValueError: a file is truncated or not safetensors, or the index and the files disagree.
    """
    folder = Path(folder)
    if (folder / SINGLE_FILE).is_file():
        tensors, file_format = _list_file(folder / SINGLE_FILE)
        return StoredCheckpoint(folder, tensors, {folder / SINGLE_FILE: file_format})
    if (folder / INDEX_FILE).is_file():
        return _open_shards(folder)
    raise FileNotFoundError(_explain_missing_files(folder))


def _explain_missing_files(folder: Path) -> str:
    if not folder.is_dir():
        return (
            f"{folder}: no such folder"
            if not folder.exists()
            else f"{folder}: a checkpoint is a folder, not a file"
        )
    found = sorted(
        path.name for path in folder.iterdir() if path.suffix in (".pdparams", ".bin", ".safetensors")
    )
    hint = f"; it holds {shorten(found, 5)}, which cannot be read without them" if found else ""
    return f"{folder}: neither {SINGLE_FILE} nor {INDEX_FILE} is in this folder{hint}"


def _list_file(file: Path) -> tuple[dict[str, StoredTensor], str | None]:
    try:
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: truncated or not a safetensors file ({error})") from None
    # The library has checked the header but does not give the offsets of the values.
    with open(file, "rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(header_size))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        tensors[name] = StoredTensor(
            name=name,
            file=file,
            dtype=_DTYPE_OF_CODE.get(entry["dtype"], entry["dtype"]),
            shape=tuple(entry["shape"]),
            offset=8 + header_size + first,
            nbytes=last - first,
        )
    return tensors, metadata.get("format")


def _read_index(file: Path) -> dict[str, str]:
    """Tensor name -> name of the file that holds it."""
    try:
        weight_map = parse_object(file.read_bytes())["weight_map"]
        plain = {str(name): str(shard) for name, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file}: not an index with a weight_map ({type(error).__name__}: {error})"
        ) from None
    outside = [shard for shard in sorted(set(plain.values())) if Path(shard).name != shard]
    if outside or not plain:
        raise ValueError(
            f"{file}: the weight_map must name files of this folder, not {shorten(outside, 5) or 'nothing'}"
        )
    return plain


def _open_shards(folder: Path) -> StoredCheckpoint:
    index_file = folder / INDEX_FILE
    weight_map = _read_index(index_file)
    shards = sorted(set(weight_map.values()))
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        raise ValueError(f"{index_file}: {len(absent)} of {len(shards)} files are missing: {shorten(absent)}")
    tensors, formats, disagreements = {}, {}, []
    for shard in shards:
        found, formats[folder / shard] = _list_file(folder / shard)
        listed = {name for name, file in weight_map.items() if file == shard}
        disagreements += [f"{name} (listed in {shard}, not in it)" for name in sorted(listed - found.keys())]
        disagreements += [f"{name} (in {shard}, not listed there)" for name in sorted(found.keys() - listed)]
        tensors.update({name: tensor for name, tensor in found.items() if name in listed})
    if disagreements:
        raise ValueError(
            f"{index_file}: the index and the files disagree on {len(disagreements)} tensors: "
            f"{shorten(disagreements)}"
        )
    return StoredCheckpoint(folder, tensors, formats)
