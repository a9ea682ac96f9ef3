"""Adapters as files, and on models that answer: write, read, load, merge.

A folder with an adapter has PaddleNLP's layout, whose own ``LoRAModel.from_pretrained`` reads it too::

    lora_config.json                         rank, scaling, adapted layers, path of the base model
    peft_model-00001-of-00001.safetensors    ``lora_A`` [in, r] and ``lora_B`` [r, out] of adapted layers,
                                             parts trained in full, and the routers' correction biases
    peft_model.safetensors.index.json        which tensor is in which file

The frozen weights of the base model are not in it. An adapted layer computes
``x W + b + dropout(x) A B * lora_alpha / r``.
"""

import dataclasses
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import paddle
from paddle import nn
from paddlenlp.peft import LoRAConfig, LoRAModel
from paddlenlp.peft.lora.lora_layers import LoRALinear
from paddlenlp.utils.env import LORA_CONFIG_NAME, SAFE_PEFT_WEIGHTS_INDEX_NAME
from safetensors import SafetensorError
from safetensors.paddle import load_file, save_file

from paddlemix_vl2.checkpoints.files import shorten
from paddlemix_vl2.models.engine import is_accelerated
from paddlemix_vl2.processing.json_files import read_object

WEIGHTS_FILE = "peft_model-00001-of-00001.safetensors"
ADAPTER_FILES = (WEIGHTS_FILE, SAFE_PEFT_WEIGHTS_INDEX_NAME, LORA_CONFIG_NAME)
# Variants of PaddleNLP's adapters that compute something else than the formula above.
_REFUSED = ("pissa", "loraga", "use_mora", "lora_use_mixer", "do_qat", "enable_lora_list")
# Kept though the optimizer may not move them: the first is moved by a balancer (parts.set_trainable), and
# PaddleNLP takes the other two for trained whenever it reads an adapter.
_KEPT = ("e_score_correction_bias", "image_newline", "view_seperator")


def is_adapted(model: nn.Layer) -> bool:
    """Whether the model carries adapters."""
    return isinstance(model, LoRAModel)


def wrap(model: nn.Layer, config: LoRAConfig) -> LoRAModel:
    """PaddleNLP's ``LoRAModel`` around a plain model, whose linear layers are replaced in place. The adapters
    and the config's ``trainable_modules`` are marked as trained, and nothing else.

    Raises:
        ValueError: the model has adapters already.
    """
    if is_adapted(model):
        raise ValueError("the model has an adapter already; merge it first (merge_adapter)")
    # PaddleNLP makes the adapters in the dtype of its config; another one than the weights' cannot be
    # multiplied with them.
    config.dtype = model.weight_dtype
    config.tensor_parallel_degree = model.config.tensor_parallel_degree
    with _warnings_only():
        adapted = LoRAModel(model, config)
    # PaddleNLP's own marks leave out the parameters of the model itself, such as image_newline.
    patterns = [r".*\.lora_[AB]", *(config.trainable_modules or [])]
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = not any(re.fullmatch(pattern, name) for pattern in patterns)
    if not model.training:
        adapted.eval()
    return adapted


@contextmanager
def _warnings_only() -> Iterator[None]:
    """PaddleNLP reports every adapter that it makes; the examples' output is the answer."""
    logger = logging.getLogger("PaddleNLP")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def adapter_tensors(model: LoRAModel) -> dict[str, paddle.Tensor]:
    """What an adapter's files hold, by path: everything that trains, the routers' correction biases, and the
    vectors ``image_newline`` and ``view_seperator``. The tensors themselves."""
    return {
        name: parameter
        for name, parameter in model.model.named_parameters()
        if not parameter.stop_gradient or name.endswith(_KEPT)
    }


def write_adapter(model: LoRAModel, folder: str | Path) -> None:
    """Write the adapter's files into ``folder``; each appears whole or not at all, other files are left
    alone."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = adapter_tensors(model)
    temporary = {name: folder / f".{name}.tmp" for name in ADAPTER_FILES}
    config = {**dataclasses.asdict(model.lora_config), "scaling": model.lora_config.scaling}
    index = {
        "metadata": {"total_size": sum(tensor.size * tensor.element_size() for tensor in tensors.values())},
        "weight_map": {name: WEIGHTS_FILE for name in tensors},
    }
    try:
        # "np" as PaddleNLP writes it; it refuses other files.
        values = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(values, str(temporary[WEIGHTS_FILE]), metadata={"format": "np"})
        for name, content in ((SAFE_PEFT_WEIGHTS_INDEX_NAME, index), (LORA_CONFIG_NAME, config)):
            temporary[name].write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
        # The safetensors library lets nobody else read what it writes.
        shutil.copymode(temporary[LORA_CONFIG_NAME], temporary[WEIGHTS_FILE])
        for name in ADAPTER_FILES:
            os.replace(temporary[name], folder / name)
    finally:
        for file in temporary.values():
            file.unlink(missing_ok=True)


@paddle.no_grad()
def read_adapter(model: LoRAModel, folder: str | Path) -> None:
    """Fill a model that has adapters with the values in ``folder``, bit for bit where the dtypes agree.

    Raises:
        FileNotFoundError: the folder or its files are not there.
        ValueError: the files are damaged, or of a model of another geometry.
    """
    folder = Path(folder)
    stored, wanted = _read_tensors(folder), adapter_tensors(model)
    wrong = [f"{name} is not in the adapter" for name in wanted if name not in stored]
    wrong += [f"{name} is in the adapter only" for name in stored if name not in wanted]
    for name in wanted.keys() & stored.keys():
        if stored[name].shape != wanted[name].shape:
            wrong.append(f"{name} is {stored[name].shape} in the adapter, {wanted[name].shape} in the model")
    if wrong:
        base = model.lora_config.base_model_name_or_path
        raise ValueError(
            f"{folder}: an adapter of another model than this (its base was {base}): "
            f"{len(wrong)} tensors differ: {shorten(sorted(wrong), 3)}"
        )
    for name, parameter in wanted.items():
        parameter.set_value(stored[name].astype(parameter.dtype))


def _read_tensors(folder: Path) -> dict[str, paddle.Tensor]:
    """The tensors of all files that the index names."""
    index = folder / SAFE_PEFT_WEIGHTS_INDEX_NAME
    weight_map = read_object(index).get("weight_map")
    files = sorted({str(file) for file in weight_map.values()}) if isinstance(weight_map, dict) else []
    if not files or any(Path(file).name != file for file in files):
        raise ValueError(f"{index}: no weight_map of files in this folder")
    tensors = {}
    for file in files:
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / file}: no such file; {index.name} names it")
        try:
            tensors.update(load_file(str(folder / file)))
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{folder / file}: truncated or not a safetensors file ({error})") from None
    return tensors


def read_config(folder: str | Path) -> LoRAConfig:
    """The adapter's ``lora_config.json``.

    Raises:
        FileNotFoundError: the folder or the file is not there.
        ValueError: it is damaged, or of a kind of adapter that this model does not support.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; an adapter is a folder with {LORA_CONFIG_NAME}")
    file = folder / LORA_CONFIG_NAME
    if not file.is_file():
        raise FileNotFoundError(f"{folder}: no {LORA_CONFIG_NAME} in this folder; it holds no adapter")
    values = read_object(file)
    known = {entry.name for entry in dataclasses.fields(LoRAConfig)}
    try:
        config = LoRAConfig(**{key: value for key, value in values.items() if key in known})
        for pattern in [*(config.target_modules or []), *(config.trainable_modules or [])]:
            re.compile(pattern)
    except (TypeError, re.error) as error:
        raise ValueError(f"{file}: not an adapter's settings ({error})") from None
    for name in _REFUSED:
        if getattr(config, name):
            raise ValueError(f"{file}: {name} is set; this model supports plain LoRA only")
    return config


def load_adapter(model: nn.Layer, folder: str | Path) -> LoRAModel:
    """A model with the adapter in ``folder``, which answers as the trained one; in evaluation mode.

    Args:
        model: the base model; its linear layers are replaced in place.
        folder: what a run with parts in mode ``lora`` has written: its ``output_dir`` or a checkpoint.

    Raises:
        FileNotFoundError, ValueError: no adapter there, a damaged one, or one of another geometry; a model on
            packed weights.
    """
    if is_accelerated(model):
        raise ValueError(f"{folder}: adapters need Paddle's layers; load the base model with engine='eager'")
    config = read_config(folder)
    adapted = wrap(model, config)
    read_adapter(adapted, folder)
    adapted.eval()
    return adapted


@paddle.no_grad()
def merge_adapter(model: LoRAModel) -> nn.Layer:
    """The plain model with the adapters added to its weights: ``W + A B * lora_alpha / r``, in place.

    Added up in float32 and rounded to the weights' dtype. The model has its published tensor names again, so
    ``save_pretrained`` writes an ordinary checkpoint. What trains is left as it was marked.
    """
    base = model.model
    for name, layer in list(base.named_sublayers()):
        if isinstance(layer, LoRALinear):
            parent, _, attribute = name.rpartition(".")
            # Not PaddleNLP's restore_original_model: its layers get a bias even where the original has none.
            setattr(base.get_sublayer(parent), attribute, _merged(layer))
    return base


def _merged(layer: LoRALinear) -> nn.Linear:
    if not layer.merged:
        delta = layer.get_delta_weight(layer.lora_A.astype("float32"), layer.lora_B.astype("float32"))
        layer.weight.set_value((layer.weight.astype("float32") + delta).astype(layer.weight.dtype))
    with paddle.LazyGuard():  # its own weights are never made
        plain = nn.Linear(*layer.weight.shape, bias_attr=False if layer.bias is None else None)
    plain.weight = layer.weight
    if layer.bias is not None:
        plain.bias = layer.bias
    plain.training = layer.training
    return plain
