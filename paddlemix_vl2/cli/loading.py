"""The model that the flags name; what is wrong with them is said before it is loaded."""

import argparse
from pathlib import Path

from paddlemix_vl2.cli.program import say


def config_of(path: str | Path):
    """The config of a checkpoint folder or of a ``config.json``, whatever its family; nothing is downloaded.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a family that is not supported, or a value that is not.
    """
    from paddlemix_vl2.config.registry import find_family

    return find_family(path).load("config").from_json(path)


def check_model_flags(arguments: argparse.Namespace) -> str:
    """Choose the device; complain of device, dtype, backend and adapter.

    Returns:
        the dtype of the weights that ``--dtype`` and ``--backend`` lead to on this device.

    Raises:
        ValueError, OSError: the device cannot compute with it, or there is no such adapter.
    """
    from paddlemix_vl2 import device
    from paddlemix_vl2.models.cpu_backend import choose_weights

    device.set_device(arguments.device)
    weights = choose_weights(arguments.dtype, backend_of(arguments), notify=False)
    if weights is None:
        weights = device.resolve_dtype(arguments.dtype)
        device.check_compute_dtype(weights)
    check_adapter(arguments.adapter_path)
    return weights


def check_adapter(folder: str | None) -> None:
    """Complain of an adapter that is not there before the model is loaded.

    Raises:
        ValueError, OSError: there is none, or one of a kind that is not supported.
    """
    if folder is not None:
        from paddlemix_vl2.models.adapters import read_config

        read_config(folder)


def backend_of(arguments: argparse.Namespace) -> str:
    """Adapters sit on Paddle's layers, which the kernels replace; shared experts need these too."""
    needs_layers = arguments.adapter_path or getattr(arguments, "expert_parallel_degree", 1) > 1
    return "paddle" if needs_layers and arguments.backend == "auto" else arguments.backend


def announce(folder: Path, dtype: str) -> None:
    """Say what is being loaded: large models take minutes."""
    from paddlemix_vl2 import device

    say(f"loading {folder} in {dtype} on the {'GPU' if device.is_gpu() else 'CPU'}")


def load_model(arguments: argparse.Namespace, folder: str | Path, dispatcher=None):
    """The model, with its adapter where one is given. It is not merged into the weights: in 16 bits these
    could not hold small changes."""
    from paddlemix_vl2.auto import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=arguments.dtype, backend=backend_of(arguments), dispatcher=dispatcher
    )
    if arguments.adapter_path is None:
        return model
    from paddlemix_vl2.models.adapters import load_adapter

    return load_adapter(model, arguments.adapter_path)


def open_checkpoint(name: str) -> tuple:
    """Folder, config and processor of a checkpoint.

    Raises:
        ValueError: it is of a family that is not supported, or its two files contradict each other.
    """
    from paddlemix_vl2.auto import AutoConfig, AutoProcessor
    from paddlemix_vl2.hub import resolve_checkpoint

    folder = resolve_checkpoint(name)
    config, processor = AutoConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    made = getattr(processor, "tokens_per_side", None)
    expected = getattr(config, "image_tokens_per_side", made)
    if made != expected:
        raise ValueError(
            f"{folder}: processor_config.json makes {made} x {made} image tokens of a tile, config.json "
            f"{expected} x {expected}; tile size, patch_size and downsample_ratio of the two must agree"
        )
    return folder, config, processor
