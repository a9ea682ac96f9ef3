"""Names and dtypes of checkpoint files, and their wording in messages and progress bars."""

import math
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_FILE = "model-{number:05d}-of-{count:05d}.safetensors"
# Shards of any save, ours (5 digits) or published (6), to find those that a newer save has replaced.
SHARD_PATTERN = r"model-\d{5,6}-of-\d{5,6}\.safetensors"

# First words of the names of tensors: the parts of a vision-language model.
PARTS = ("vision", "projector", "language")

# What a weight may be stored as: our name -> (name in the file, numpy type of its bytes). numpy has no
# bfloat16; Paddle reads and returns it as uint16.
STORED_DTYPES = {
    "float32": ("F32", np.dtype("<f4")),
    "bfloat16": ("BF16", np.dtype("<u2")),
    "float16": ("F16", np.dtype("<f2")),
}

# Fewer are read in a second or two.
PROGRESS_FROM_BYTES = 500_000_000


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written: its name, shape and dtype (``float32``, ``bfloat16`` or ``float16``)."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * STORED_DTYPES[self.dtype][1].itemsize


def check_dtype(dtype: str) -> str:
    """Return ``dtype`` if weights can be stored in it.

    Raises:
        ValueError: it is none of ``STORED_DTYPES``.
    """
    if dtype not in STORED_DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; use {', '.join(STORED_DTYPES)}")
    return dtype


def byte_bar(what: str, total: int, wanted: bool) -> tqdm:
    """A progress bar over ``total`` bytes, hidden where it is not wanted or would only flicker."""
    hidden = not wanted or total < PROGRESS_FROM_BYTES
    return tqdm(desc=what, total=total, unit="B", unit_scale=True, mininterval=0.5, disable=hidden)


def shorten(items: list[str], limit: int = 20) -> str:
    """``a, b, c`` or, beyond ``limit``, the first of them and how many more there are."""
    text = ", ".join(items[:limit])
    return f"{text} and {len(items) - limit} more" if len(items) > limit else text
