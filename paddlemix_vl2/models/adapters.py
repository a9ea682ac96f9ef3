"""Low-rank adapters of a model: add, read, write, merge.

A folder with an adapter has PaddleNLP's layout, whose own ``LoRAModel.from_pretrained`` reads it too::

    lora_config.json                         rank, scaling, adapted layers, path of the base model
    peft_model-00001-of-00001.safetensors    ``lora_A`` [in, r] and ``lora_B`` [r, out] of adapted layers,
                                             parts trained in full, and the routers' correction biases
    peft_model.safetensors.index.json        which tensor is in which file

The frozen weights of the base model are not in it.
"""

import dataclasses
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import paddle
from paddle import nn
from safetensors import SafetensorError
from safetensors.paddle import load_file, save_file

from paddlemix_vl2.checkpoints.files import shorten
from paddlemix_vl2.files import format_object, read_object, replace_file
from paddlemix_vl2.models.layers.lora import LoRALinear

LORA_CONFIG_FILE = "lora_config.json"
WEIGHTS_FILE = "peft_model-00001-of-00001.safetensors"
INDEX_FILE = "peft_model.safetensors.index.json"
ADAPTER_FILES = (WEIGHTS_FILE, INDEX_FILE, LORA_CONFIG_FILE)
# Variants of PaddleNLP's adapters that compute something else than :class:`LoRALinear`.
_REFUSED = ("rslora", "pissa", "loraga", "use_mora", "lora_use_mixer", "do_qat", "enable_lora_list")
# Written though the optimizer may not move them: the first is moved by a balancer, and PaddleNLP takes the
# other two for trained whenever it reads an adapter.
_ALWAYS_WRITTEN = ("e_score_correction_bias", "image_newline", "view_seperator")


@dataclass(frozen=True)
class AdapterConfig:
    """``lora_config.json``, under PaddleNLP's names.

    Attributes:
        r: rank.
        lora_alpha: the adapter's output is multiplied by ``lora_alpha / r``.
        lora_dropout: on the adapter's input, in training.
        target_modules: regular expressions over the whole paths of the linear layers that have one.
        trainable_modules: regular expressions of parameters that train in full beside them.
        base_model_name_or_path: what the adapter was trained on.
    """

    r: int = 8
    lora_alpha: int = 8
    lora_dropout: float = 0.0
    target_modules: list[str] = field(default_factory=list)
    trainable_modules: list[str] = field(default_factory=list)
    base_model_name_or_path: str | None = None

    @property
    def scaling(self) -> float:
        """Factor on the adapter's output."""
        return self.lora_alpha / self.r

    def __post_init__(self):
        for pattern in (*self.target_modules, *self.trainable_modules):
            re.compile(pattern)


def is_adapted(model: nn.Layer) -> bool:
    """Whether the model has adapters."""
    return any(isinstance(layer, LoRALinear) for layer in model.sublayers())


def add_adapters(model: nn.Layer, config: AdapterConfig) -> None:
    """Give the model's linear layers that the config names an adapter, in place. The adapters and the
    config's ``trainable_modules`` are marked as trained, and nothing else.

    Args:
        model: keeps the config as its ``adapter_config``.

    Raises:
        ValueError: the model has adapters already, or runs on packed weights.
    """
    _check_layers(model)
    if is_adapted(model):
        raise ValueError("the model has an adapter already; merge it first (merge_adapter)")
    targets = re.compile("|".join(f"(?:{pattern})" for pattern in config.target_modules) or "(?!)")
    for path, layer in list(model.named_sublayers()):
        if isinstance(layer, nn.Linear) and targets.fullmatch(path):
            adapted = LoRALinear(layer, config.r, config.scaling, config.lora_dropout)
            adapted.training = layer.training
            _replace(model, path, adapted)
    patterns = [r".*\.lora_[AB]", *config.trainable_modules]
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = not any(re.fullmatch(pattern, name) for pattern in patterns)
    model.set_adapter_config(config)


def _check_layers(model: nn.Layer, place: str = "") -> None:
    """ValueError for a model on packed weights; ``place`` is what the error begins with."""
    if model.execution.packed:
        raise ValueError(f"{place}adapters need Paddle's layers; load the base model with backend='paddle'")


def merge_adapter(model: nn.Layer) -> nn.Layer:
    """The model with the adapters added to its weights, ``W + A B * lora_alpha / r``, in place. It has its
    published tensor names again, so ``save_pretrained`` writes an ordinary checkpoint."""
    for path, layer in list(model.named_sublayers()):
        if isinstance(layer, LoRALinear):
            _replace(model, path, layer.merged())
    model.set_adapter_config(None)
    return model


def _replace(model: nn.Layer, path: str, layer: nn.Layer) -> None:
    parent, _, name = path.rpartition(".")
    owner = model.get_sublayer(parent) if parent else model
    owner.add_sublayer(name, layer)


def adapter_tensors(model: nn.Layer) -> dict[str, paddle.Tensor]:
    """What an adapter's files hold, by path: everything that trains, the routers' correction biases, and the
    vectors ``image_newline`` and ``view_seperator``. The tensors themselves."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not parameter.stop_gradient or name.endswith(_ALWAYS_WRITTEN)
    }


def write_adapter(model: nn.Layer, folder: str | Path) -> None:
    """Write the adapter's files into ``folder``; each appears whole or not at all, other files are left
    alone."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors, config = adapter_tensors(model), model.adapter_config
    values = {**dataclasses.asdict(config), "scaling": config.scaling, "dtype": model.weight_dtype}
    values["tensor_parallel_degree"] = -1
    index = {
        "metadata": {"total_size": sum(tensor.size * tensor.element_size() for tensor in tensors.values())},
        "weight_map": dict.fromkeys(tensors, WEIGHTS_FILE),
    }
    with (
        replace_file(folder / LORA_CONFIG_FILE) as config_file,
        replace_file(folder / INDEX_FILE) as index_file,
        replace_file(folder / WEIGHTS_FILE) as weights_file,
    ):
        # "np" as PaddleNLP writes it; it refuses other files.
        plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(plain, str(weights_file), metadata={"format": "np"})
        for file, content in ((index_file, index), (config_file, values)):
            file.write_text(format_object(content), "utf-8")
        # The safetensors library makes files that other users cannot read.
        shutil.copymode(config_file, weights_file)


@paddle.no_grad()
def read_adapter(model: nn.Layer, folder: str | Path) -> None:
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
        raise ValueError(
            f"{folder}: an adapter of another model than this (its base was "
            f"{model.adapter_config.base_model_name_or_path}): {len(wrong)} tensors differ: "
            f"{shorten(sorted(wrong), 3)}"
        )
    for name, parameter in wanted.items():
        parameter.set_value(stored[name].astype(parameter.dtype))


def _read_tensors(folder: Path) -> dict[str, paddle.Tensor]:
    """The tensors of all files that the index names."""
    index = folder / INDEX_FILE
    weight_map = read_object(index).get("weight_map")
    files = sorted({str(file) for file in weight_map.values()}) if isinstance(weight_map, dict) else []
    if not files or any(Path(file).name != file for file in files):
        raise ValueError(f"{index}: no weight_map of files in this folder")
    tensors: dict[str, paddle.Tensor] = {}
    for file in files:
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / file}: no such file; {index.name} names it")
        try:
            tensors.update(load_file(str(folder / file)))
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{folder / file}: truncated or not a safetensors file ({error})") from None
    return tensors


def read_config(folder: str | Path) -> AdapterConfig:
    """The adapter's ``lora_config.json``.

    Raises:
        FileNotFoundError: the folder or the file is not there.
        ValueError: it is damaged, or of a kind of adapter that this model does not support.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; an adapter is a folder with {LORA_CONFIG_FILE}")
    file = folder / LORA_CONFIG_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{folder}: no {LORA_CONFIG_FILE} in this folder; it holds no adapter")
    values = read_object(file)
    for name in _REFUSED:
        if values.get(name):
            raise ValueError(f"{file}: {name} is set; this model supports plain LoRA only")
    known = [entry.name for entry in dataclasses.fields(AdapterConfig)]
    try:
        return AdapterConfig(**{key: values[key] for key in known if values.get(key) is not None})
    except (TypeError, re.error) as error:
        raise ValueError(f"{file}: not an adapter's settings ({error})") from None


def load_adapter(model: nn.Layer, folder: str | Path) -> nn.Layer:
    """A model with the adapter in ``folder``, which answers as the trained one; in evaluation mode.

    Args:
        model: the base model; its linear layers are replaced in place.
        folder: what a run with parts in mode ``lora`` has written: its ``output_dir`` or a checkpoint.

    Raises:
        FileNotFoundError, ValueError: no adapter there, a damaged one, or one of another geometry; a model on
            packed weights.
    """
    _check_layers(model, f"{folder}: ")
    add_adapters(model, read_config(folder))
    read_adapter(model, folder)
    model.eval()
    return model
