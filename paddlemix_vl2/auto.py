"""One name for every family: the checkpoint's ``config.json`` says which classes it needs."""

import os
from pathlib import Path

from paddlemix_vl2.config.base import PublishedConfig
from paddlemix_vl2.config.registry import find_family
from paddlemix_vl2.hub import resolve_checkpoint


class AutoConfig:
    """``from_pretrained`` gives the config of whatever family a checkpoint is of."""

    @staticmethod
    def from_pretrained(path: str | os.PathLike) -> PublishedConfig:
        """Read ``config.json``.

        Args:
            path: a folder or file, or a name on the hub.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a family that is not supported, or a value that is not.
        """
        place = path if Path(path).is_file() else resolve_checkpoint(path)
        return find_family(place).load("config").from_json(place)


class AutoModelForCausalLM:
    """``from_pretrained`` gives the model of whatever family a checkpoint is of."""

    @staticmethod
    def from_pretrained(path: str | os.PathLike, **arguments):
        """Load a checkpoint; arguments and errors as of
        :meth:`paddlemix_vl2.models.pretrained.PretrainedModel.from_pretrained`."""
        folder = resolve_checkpoint(path)
        return find_family(folder).load("model").from_pretrained(folder, **arguments)


class AutoProcessor:
    """``from_pretrained`` gives the processor of whatever family a checkpoint is of."""

    @staticmethod
    def from_pretrained(path: str | os.PathLike, **settings):
        """Read the processor's and the tokenizer's files; ``settings`` replace keys of
        ``processor_config.json``."""
        folder = resolve_checkpoint(path)
        return find_family(folder).load("processor").from_pretrained(folder, **settings)
