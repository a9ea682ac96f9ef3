"""Sources of samples: described by a few fields, opened and checked once, read by number."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from paddlemix_vl2.config.checks import check_key
from paddlemix_vl2.data.formats import parse_messages, read_entry
from paddlemix_vl2.data.records import BrokenSample, Record, open_records
from paddlemix_vl2.deprecation import rename

FILE_FORMATS = ("llava", "messages", "grounding", "text")
SYNTHETIC = "synthetic"
FORMATS = (*FILE_FORMATS, SYNTHETIC)
_ONLY_FILES = ("path", "image_folder")
_ONLY_SYNTHETIC = ("task", "split", "size")
_TYPES = {"weight": (int, float), "size": (int,)}


@dataclass(frozen=True)
class SourceSpec:
    """Where samples come from and how often; :meth:`from_dict` reads one from a configuration file.

    Attributes:
        format: one of ``llava``, ``messages``, ``grounding``, ``text`` (files) and ``synthetic``.
        path: the data file.
        image_folder: what relative paths of pictures start from; the data file's folder when empty.
        weight: share of the samples, relative to the other sources'.
        name: what logs call the source; the path's stem or the task when empty.
        task, split, size: for ``synthetic``: which pictures, of which split, and how many of them there are.

    Raises:
        ValueError: a field is missing, of the wrong kind or out of range.
    """

    format: str
    path: str = ""
    image_folder: str = ""
    weight: float = 1.0
    name: str = ""
    task: str = ""
    split: str = "train"
    size: int = 10**9

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            kinds = _TYPES.get(field.name, (str, os.PathLike))
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise ValueError(f"{field.name} is {value!r}; it must be of type {kinds[-1].__name__}")
        if self.format not in FORMATS:
            raise ValueError(f"unknown format {self.format!r}; use one of {', '.join(FORMATS)}")
        needed = "task" if self.format == SYNTHETIC else "path"
        if not getattr(self, needed):
            raise ValueError(f"the format {self.format!r} needs a {needed}")
        if not math.isfinite(self.weight) or self.weight < 0:
            raise ValueError(f"weight is {self.weight}; it must be a number of at least 0")
        if self.size < 1:
            raise ValueError(f"size is {self.size}; it must be at least 1")
        if not self.name:
            object.__setattr__(self, "name", self.task if self.format == SYNTHETIC else Path(self.path).stem)
        if not self.image_folder and self.format != SYNTHETIC:
            object.__setattr__(self, "image_folder", str(Path(self.path).parent))

    @classmethod
    def from_dict(cls, mapping: Mapping, where: str) -> "SourceSpec":
        """The source that a configuration file describes.

        Args:
            where: what errors begin with, e.g. "stage2.yaml: data: source 1".

        Raises:
            ValueError: an unknown key (the message names the nearest), or as the class.
        """
        if not isinstance(mapping, Mapping):
            raise ValueError(f"{where}: a source is a mapping with a format, not {type(mapping).__name__}")
        for key in mapping:
            check_key(key, [field.name for field in fields(cls)], where)
        if "format" not in mapping:
            raise ValueError(f"{where}: format is missing; use one of {', '.join(FORMATS)}")
        mapping = dict(rename("data source", key, value) for key, value in mapping.items())
        foreign = _ONLY_FILES if mapping["format"] == SYNTHETIC else _ONLY_SYNTHETIC
        for key in foreign:
            if key in mapping:
                raise ValueError(f"{where}: {key} does not belong to the format {mapping['format']!r}")
        try:
            return cls(**mapping)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


class FileSource:
    """Samples of one data file, all checked when it is opened; pictures are looked at when a sample is read.

    Raises:
        FileNotFoundError: the file or the folder of the pictures is missing.
        ValueError: an entry is not of the format; the message has file, line and field.
    """

    def __init__(self, spec: SourceSpec, progress: bool = True):
        self.spec = spec
        folder = os.fspath(spec.image_folder)
        if not os.path.exists(spec.path):
            raise FileNotFoundError(f"{spec.path}: no such file (source {spec.name!r}, path)")
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"{folder}: no such folder (source {spec.name!r}, image_folder)")
        self._file = open_records(
            spec.path, lambda entry: read_entry(spec.format, entry, folder, read=False), progress
        )

    def __len__(self) -> int:
        return len(self._file)

    def place(self, index: int) -> str:
        """File and line of sample ``index``."""
        return self._file.place(index)

    def __getitem__(self, index: int) -> Record:
        """Sample ``index``.

        Raises:
            BrokenSample: the file has changed, or a picture inside it cannot be read.
        """
        place = self.place(index)
        try:
            entry = self._file.read(index)
            return Record(*read_entry(self.spec.format, entry, os.fspath(self.spec.image_folder)), place)
        except (ValueError, OSError) as error:
            raise BrokenSample(place, str(error)) from None


class SyntheticSource:
    """Pictures that are rendered when they are needed, with questions about them.

    Raises:
        ValueError: no such task or split.
    """

    def __init__(self, spec: SourceSpec):
        self.spec = spec
        try:
            self[0]
        except ValueError as error:
            raise ValueError(f"source {spec.name!r}: {error}") from None

    def __len__(self) -> int:
        return self.spec.size

    def place(self, index: int) -> str:
        """Task, split and number of sample ``index``."""
        return f"synthetic {self.spec.task}/{self.spec.split} {index}"

    def __getitem__(self, index: int) -> Record:
        """Sample ``index``, rendered at every call; always the same."""
        # Imported here: only this source needs what renders.
        from paddlemix_vl2.demo.samples import make_sample

        if not 0 <= index < self.spec.size:
            raise IndexError(f"sample {index} of {self.spec.size}")
        sample = make_sample(self.spec.task, self.spec.split, index)
        conversation = parse_messages(sample["messages"], sample.get("images"), "messages")
        return Record(conversation, None, self.place(index))


Source = FileSource | SyntheticSource


def open_source(spec: SourceSpec, progress: bool = True) -> Source:
    """Open and check the source that ``spec`` describes: ``len(source)``, ``source[i]``, ``source.place(i)``.

    Args:
        progress: whether to show a bar on standard error while a large file is checked.

    Raises:
        FileNotFoundError, ValueError: as :class:`FileSource` and :class:`SyntheticSource`.
    """
    return SyntheticSource(spec) if spec.format == SYNTHETIC else FileSource(spec, progress)
