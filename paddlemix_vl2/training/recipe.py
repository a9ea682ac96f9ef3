"""A training recipe: a YAML file, or a few changes to one, plus ``key=value``, as checked, typed arguments.

Keys are the names of PaddleNLP's ``TrainingArguments`` and the ones that :class:`VL2TrainingArguments` adds.
An unknown key is an error that names the nearest known one; there is no other way to set anything.
"""

import dataclasses
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from paddlenlp.trainer import TrainingArguments

from paddlemix_vl2 import device
from paddlemix_vl2.checkpoints.files import PARTS
from paddlemix_vl2.config.checks import check_choice, check_key
from paddlemix_vl2.deprecation import rename

BASE = "recipe"  # the key of a file that changes another one
MODES = ("full", "lora", "frozen")
SCHEDULES = ("cosine", "constant", "step")
# What PaddleNLP's Trainer offers and this model does not support yet: refused instead of ignored.
_DEGREES = (
    *(f"{kind}_parallel_degree" for kind in ("tensor", "pipeline", "sep", "context", "sharding")),
    "expert_tensor_parallel_degree",
    "sharding_degree",
)
_REFUSED = ("sharding", "to_static", "unified_checkpoint", "use_async_save", "load_best_model_at_end", "fp16")
# The keys of PaddleNLP that do here what they say; others would do nothing or break what this trainer does.
_NAMES = """
output_dir max_steps per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps
learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm lr_scheduler_type warmup_ratio
warmup_steps logging_dir logging_first_step logging_steps save_strategy save_steps save_total_limit seed bf16
amp_custom_black_list amp_custom_white_list recompute eval_steps max_evaluate_steps dataloader_num_workers
run_name disable_tqdm report_to resume_from_checkpoint skip_memory_metrics expert_parallel_degree
"""
_HONOURED = tuple(_NAMES.split())
# Keys of PaddleNLP that would do nothing, and what to use instead.
_WITHOUT_EFFECT = {
    "num_train_epochs": "max_steps says how long to train",
    "optim": "the optimizer is AdamW",
    "evaluation_strategy": "eval_dataset and eval_steps say when to evaluate",
    "ignore_data_skip": "data go on where they stopped",
}
_AT_LEAST_ONE = (
    "max_seq_length",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "logging_steps",
    "save_steps",
    "expert_groups",
    "save_total_limit",
    "expert_parallel_degree",
)
_AT_LEAST_ZERO = (
    "learning_rate",
    "weight_decay",
    "warmup_steps",
    "max_grad_norm",
    "dataloader_num_workers",
    "expert_balance_alpha",
    "device_balance_alpha",
    "communication_balance_alpha",
    "bias_update_speed",
    "capacity_factor",
    "protected_share",
)


@dataclass
class PartRecipe:
    """How a part of the model trains.

    Attributes:
        mode: ``full`` (all of its parameters), ``lora`` (adapters in its linear layers) or ``frozen``.
        learning_rate_multiplier: factor on the learning rate; 0.1 for the vision encoder in the paper.
    """

    mode: str = "full"
    learning_rate_multiplier: float = 1.0


@dataclass
class LoRARecipe:
    """Low-rank adapters of the parts whose mode is ``lora``; the names are those of PaddleNLP's
    ``LoRAConfig``.

    Attributes:
        r: rank.
        lora_alpha: the adapter's output is multiplied by lora_alpha / r.
        lora_dropout: on the adapter's input.
        target_modules: last components of the linear layers' names; by default all linear layers of
            attention, routed experts, projector and vision encoder.
    """

    r: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    target_modules: list[str] | None = None


@dataclass
class VL2TrainingArguments(TrainingArguments):
    """PaddleNLP's arguments and these.

    Attributes:
        model_name_or_path: checkpoint to start from (published layout); or
        model_config: ``config.json`` of a model to train from scratch, with ``processor_path`` for its
            tokenizer.
        processor_path: folder with the processor's files; that of the checkpoint where None.
        vision, projector, language: :class:`PartRecipe`.
        lora: :class:`LoRARecipe`.
        train_dataset, eval_dataset: lists of sources; see ``docs/data.md``.
        max_seq_length: tokens per row at most.
        packing: fill rows with several samples, which do not attend to each other.
        overlong: ``skip`` or ``truncate`` samples over ``max_seq_length``.
        train_on: ``completions`` (answers only) or ``all``: which tokens have labels.
        aux_loss_alpha: weight of the balance loss; the checkpoint's where None.
        expert_parallel_degree: (PaddleNLP's) processes that share the routed experts; see docs/scaling.md.
        balance_tiles: whether the processes share a step's rows so that all have about as many tiles.
        expert_balance_alpha, device_balance_alpha, communication_balance_alpha: weights of DeepSeek-V2's
            balance losses over experts and over ``expert_groups`` groups of them.
        capacity_factor: routed tokens of a micro-batch that such a group computes at most, over their mean;
            those with the lowest scores are dropped (1 in DeepSeek-V2). 0: nothing is dropped.
        protected_share: of the samples, of which nothing is dropped.
        bias_update_speed: u of loss-free balancing, for ``noaux_tc`` (0.001 in stage 2 of the 27B model).
    """

    output_dir: str = "output"
    do_train: bool = True
    max_steps: int = 0
    expert_parallel_degree: int = 1
    learning_rate: float = 5.4e-4
    weight_decay: float = 0.1
    adam_beta2: float = 0.95
    lr_scheduler_type: str = "cosine"
    logging_steps: int = 10
    save_steps: int = 500
    save_total_limit: int = 2
    skip_profile_timer: bool = True
    ignore_data_skip: bool = True
    fp16_opt_level: str = "O2"
    report_to: Any = "visualdl"

    model_name_or_path: str | None = None
    model_config: str | None = None
    processor_path: str | None = None
    vision: Any = field(default_factory=lambda: {"mode": "full", "learning_rate_multiplier": 0.1})
    projector: Any = field(default_factory=dict)
    language: Any = field(default_factory=dict)
    lora: Any = field(default_factory=dict)
    train_dataset: list = field(default_factory=list)
    eval_dataset: list = field(default_factory=list)
    max_seq_length: int = 4096
    packing: bool = False
    overlong: str = "skip"
    train_on: str = "completions"
    balance_tiles: bool = False
    aux_loss_alpha: float | None = None
    expert_balance_alpha: float = 0.0
    device_balance_alpha: float = 0.0
    communication_balance_alpha: float = 0.0
    expert_groups: int = 1
    capacity_factor: float = 0.0
    protected_share: float = 0.1
    bias_update_speed: float = 0.0

    def __post_init__(self):
        for name in PARTS:
            setattr(self, name, _typed(PartRecipe, getattr(self, name), name))
        self.lora = _typed(LoRARecipe, self.lora, "lora")
        self._check()
        self.schedule = self.lr_scheduler_type
        self.lr_scheduler_type = "constant"  # PaddleNLP's list has no step schedule; ours are in optimizer.py
        if self.eval_dataset and self.evaluation_strategy == "no":
            self.evaluation_strategy = "steps"
        self.bf16_wanted = self.bf16
        self.bf16 = self.bf16 and device.can_compute("bfloat16")
        self.device = "gpu" if device.is_gpu() else "cpu"
        # PaddleNLP would start groups of its own for it, and wants optimizers sharded with it.
        degree, self.expert_parallel_degree = self.expert_parallel_degree, 1
        super().__post_init__()
        self.expert_parallel_degree = degree

    def to_sanitized_dict(self) -> dict:
        """For VisualDL's table of settings, which refuses booleans."""
        values = super().to_sanitized_dict()
        return {key: str(value) if isinstance(value, bool) else value for key, value in values.items()}

    def _check(self) -> None:
        for name in PARTS:
            part = getattr(self, name)
            check_choice(f"{name}.mode", part.mode, MODES)
            if part.learning_rate_multiplier <= 0:
                raise ValueError(
                    f"{name}.learning_rate_multiplier is {part.learning_rate_multiplier}; it must be above 0 "
                    "(mode: frozen keeps a part as it is)"
                )
        check_choice("lr_scheduler_type", self.lr_scheduler_type, SCHEDULES)
        check_choice("overlong", self.overlong, ("skip", "truncate"))
        check_choice("train_on", self.train_on, ("completions", "all"))
        if self.expert_parallel_degree > 1 and any(getattr(self, name).mode == "lora" for name in PARTS):
            raise ValueError(
                f"expert_parallel_degree is {self.expert_parallel_degree}; adapters (mode lora) need 1, as "
                "one process writes their files, which must hold all experts"
            )
        if self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}; say how many optimizer steps to train")
        if bool(self.model_name_or_path) == bool(self.model_config):
            raise ValueError("give either model_name_or_path (a checkpoint) or model_config (random weights)")
        if self.model_config and not self.processor_path:
            raise ValueError("model_config has no tokenizer: processor_path must name a folder with one")
        self._check_datasets()
        self._check_ranges()
        for name in _DEGREES:
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is {getattr(self, name)}; this model does not support it yet")
        for name in _REFUSED:
            if getattr(self, name):
                raise ValueError(f"{name} is set; this model does not support it")

    def _check_datasets(self) -> None:
        for name in ("train_dataset", "eval_dataset"):
            sources = getattr(self, name)
            if not isinstance(sources, list) or not all(isinstance(source, dict) for source in sources):
                raise ValueError(f"{name} is {sources!r}; it must be a list of sources, see docs/data.md")
        if not self.train_dataset:
            raise ValueError("train_dataset is empty; it needs at least one source")

    def _check_ranges(self) -> None:
        for least, names in ((1, _AT_LEAST_ONE), (0, _AT_LEAST_ZERO)):
            for name in names:
                value = getattr(self, name)
                if not (math.isfinite(value) and value >= least):
                    raise ValueError(f"{name} is {value}; it must be at least {least}")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.protected_share > 1:
            raise ValueError(f"protected_share is {self.protected_share}; it must be from 0 to 1")
        if self.adam_epsilon <= 0:
            raise ValueError(f"adam_epsilon is {self.adam_epsilon}; it must be above 0")


def load_recipe(path: str | os.PathLike, overrides: list[str] = ()) -> VL2TrainingArguments:
    """Read a recipe.

    Args:
        path: the YAML file. With the key ``recipe`` it changes the recipe of that path (seen from its own
            folder) in the keys that it has itself.
        overrides: ``key=value``; ``vision.mode=frozen`` reaches into a section, values are YAML.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a key is unknown or a value not possible; the message names the file and the key.
    """
    path = Path(path)
    values = _read(path)
    if BASE in values:
        base = _read(path.parent / str(values.pop(BASE)))
        if BASE in base:
            raise ValueError(f"{path}: {BASE} names a recipe that itself changes another one")
        values = {**base, **values}
    for override in overrides:
        _apply(values, override)
    values = dict(rename("recipe", key, value) for key, value in values.items())
    known = {entry.name: entry for entry in dataclasses.fields(VL2TrainingArguments) if entry.init}
    own = known.keys() - {entry.name for entry in dataclasses.fields(TrainingArguments)}
    for key, value in values.items():
        check_key(key, sorted(known), path)
        if key in _WITHOUT_EFFECT:
            raise ValueError(f"{path}: {key} has no effect here: {_WITHOUT_EFFECT[key]}")
        if key not in (*own, *_HONOURED, *_DEGREES, *_REFUSED):
            raise ValueError(f"{path}: {key} of PaddleNLP's Trainer has no effect here; take it out")
        values[key] = _number(value, known[key].type, f"{path}: {key}")
    try:
        return VL2TrainingArguments(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def _read(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such recipe")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a recipe is a mapping of keys to values")
    return values


def _apply(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"{override!r}: changes have the form key=value")
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ValueError(f"{override!r}: {section} is not a section")
    values[last] = yaml.safe_load(text)


def _typed(kind: type, values: Any, where: str):
    """A dictionary as a ``kind``, its keys and types checked; a ``kind`` as it is."""
    if isinstance(values, kind):
        return values
    if not isinstance(values, dict):
        raise ValueError(f"{where} is {values!r}; it is a section with keys of its own")
    known = {entry.name: entry for entry in dataclasses.fields(kind)}
    for key in values:
        check_key(key, sorted(known), where)
    return kind(**{key: _number(value, known[key].type, f"{where}.{key}") for key, value in values.items()})


def _number(value: Any, kind: Any, where: str) -> Any:
    """YAML reads 1e-4 as text and 1 as an integer: numbers become what the field is."""
    if kind is float:
        try:
            return float(None if isinstance(value, bool) else value)
        except (TypeError, ValueError):
            raise ValueError(f"{where} is {value!r}; it must be a number") from None
    if kind == list[str] | None and not (value is None or _is_list_of_text(value)):
        raise ValueError(f"{where} is {value!r}; it must be a list of names")
    if kind in (int, bool, str) and type(value) is not kind:
        raise ValueError(f"{where} is {value!r}; it must be of type {kind.__name__}")
    return value


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
