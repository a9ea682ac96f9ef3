"""Base class of all configs. The attributes are the keys of the published ``config.json``; reading and
writing lose none of them."""

import difflib
import inspect
import json
import os
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from paddlemix_vl2.config.checks import require_object
from paddlemix_vl2.files import read_object, write_object
from paddlemix_vl2.hub import CONFIG_FILE, resolve_checkpoint

# Unknown keys are kept, as other tools add theirs; one this similar to a known key is a mistake.
_MISSPELT = 0.9
_PLAIN_TYPES = {int, float, bool, str, dict, list, type(None)}
# Keys of every config, beside those of its class.
_COMMON_KEYS = ("model_type", "architectures", "torch_dtype", "dtype")

Config = TypeVar("Config", bound="PublishedConfig")


@dataclass(frozen=True)
class RepeatedLayers:
    """Attributes:
    prefix: path of the list of layers in the model.
    kinds: of each layer; equal ones have the same tensors.
    part: of the config that has their number, as ``language_config``; empty for the config itself.
    key: of that number.
    """

    prefix: str
    kinds: tuple
    part: str
    key: str


class PublishedConfig:
    """A config, or a part of one. The annotated names of a subclass are the keys that it reads, with their
    defaults. A key whose type is a config is a part: an object in the file.

    Attributes:
        dtype: ``torch_dtype`` of the file (``dtype`` in newer ones), as ``bfloat16``; None where it has none.
        architectures: class names of the model; empty for parts.
        unknown_keys: keys of the file that this package does not read. They are attributes too, and written
            back.
    """

    model_type: ClassVar[str] = ""
    architecture: ClassVar[str] = ""

    def __init__(self, **values: Any):
        """Take the values of keys, and keep those of the file that the class does not read.

        Raises:
            ValueError: a key is nearly one that is read, or a value is not supported.
        """
        for key, kind in self.published_keys().items():
            value = values.pop(key, getattr(type(self), key, None))
            setattr(self, key, read_part(key, value, kind) if is_config(kind) else value)
        self.architectures = list(values.pop("architectures", None) or filter(None, [self.architecture]))
        names = [values.pop(name, None) for name in ("torch_dtype", "dtype")]
        self.dtype: str | None = names[0] or names[1]
        values.pop("model_type", None)
        self.unknown_keys = list(values)
        for key in values:
            self._check_spelling(key)
            setattr(self, key, values[key])
        self.check()

    def check(self) -> None:
        """Refuse what a model cannot be built of; called once all values are set."""

    def update(self, **values: Any) -> None:
        """Change keys.

        Raises:
            ValueError: no such key, or a value is not supported.
        """
        for key, value in values.items():
            if key not in self.published_keys():
                raise ValueError(f"{type(self).__name__} has no key {key!r}")
            setattr(self, key, value)
        self.check()

    def _check_spelling(self, key: str) -> None:
        known = [*self.published_keys(), *_COMMON_KEYS]
        near = difflib.get_close_matches(key, known, n=1, cutoff=_MISSPELT)
        if near:
            raise ValueError(f"unknown key {key!r}; did you mean {near[0]!r}?")

    @classmethod
    def published_keys(cls) -> dict[str, Any]:
        """The keys of this config and their types, in the order of the class."""
        kinds = [inspect.get_annotations(owner, eval_str=True) for owner in reversed(cls.__mro__)]
        return {
            key: kind for own in kinds for key, kind in own.items() if typing.get_origin(kind) is not ClassVar
        }

    def to_dict(self) -> dict[str, Any]:
        """The content of ``config.json``: keys with their values, parts as objects."""
        keys = [key for key in (*self.published_keys(), *self.unknown_keys) if key != "model_type"]
        values = {key: getattr(self, key) for key in keys}
        plain = {key: v.to_dict() if isinstance(v, PublishedConfig) else v for key, v in values.items()}
        head = {"architectures": self.architectures} if self.architectures else {}
        tail = {"torch_dtype": self.dtype} if self.dtype else {}
        return {**head, "model_type": self.model_type, **plain, **tail}

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self.to_dict(), indent=2, ensure_ascii=False)}"

    @classmethod
    def from_dict(cls: type[Config], values: dict, place: str = "") -> Config:
        """A config of the keys of a file.

        Args:
            place: prefix of the keys in errors: ``language_config.``, or nothing.

        Raises:
            ValueError: a value has the wrong type or is not supported.
        """
        _check_types(place, cls, values)
        return cls(**values)

    @classmethod
    def from_json(cls: type[Config], path: str | os.PathLike) -> Config:
        """Read a ``config.json``, or the one in a folder.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is not JSON, or a value in it is not supported.
        """
        file = config_file(path)
        values = read_object(file)
        cls.check_family(values, file)
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    @classmethod
    def check_family(cls, values: dict, place: Path) -> None:
        """Refuse the content of a file that is of another family; parts of a config have none."""

    def repeated_layers(self) -> list["RepeatedLayers"]:
        """Lists of layers that repeat, for counting with one layer of each kind."""
        return []

    @classmethod
    def from_pretrained(cls: type[Config], path: str | os.PathLike) -> Config:
        """As :meth:`from_json`; the path may also be a name on the hub."""
        return cls.from_json(path if Path(path).is_file() else resolve_checkpoint(path))

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write ``config.json`` into a folder, which is made where it is not there."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_object(Path(folder) / CONFIG_FILE, self.to_dict())


def config_file(path: str | os.PathLike) -> Path:
    """The ``config.json`` of a folder, or the file itself."""
    return Path(path) / CONFIG_FILE if Path(path).is_dir() else Path(path)


def read_part(name: str, value: dict | PublishedConfig | None, part_class: type[Config]) -> Config:
    """A part of a config: as it is, or of an object in the file; of its defaults where there is none.

    Raises:
        ValueError: neither of them, or a value in it is not supported.
    """
    if isinstance(value, part_class):
        return value
    return part_class.from_dict(dict(require_object(name, value or {})), f"{name}.")


def is_config(kind: Any) -> bool:
    """Whether the type of a key is a part of the config."""
    return isinstance(kind, type) and issubclass(kind, PublishedConfig)


def _check_types(place: str, config_class: type[PublishedConfig], values: dict) -> None:
    """Refuse values of another type than the key's; whole numbers will do for floats."""
    for key, annotation in config_class.published_keys().items():
        allowed = typing.get_args(annotation) or (annotation,)
        if key not in values or not set(allowed) <= _PLAIN_TYPES:
            continue
        kind = type(values[key])
        if kind not in allowed and not (kind is int and float in allowed):
            names = " or ".join("null" if one is type(None) else one.__name__ for one in allowed)
            raise ValueError(f"{place}{key} is {values[key]!r}; it must be of type {names}")
