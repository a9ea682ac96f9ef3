"""What a recipe would do, without doing it: ``examples/train.py RECIPE --dry_run``.

Everything is computed from the configuration. No model is built, no weight and no data file is read, so that
the largest model's plan takes seconds on any machine, also one without its weights and data.
"""

from dataclasses import dataclass
from pathlib import Path

from paddle import distributed

from paddlemix_vl2 import device
from paddlemix_vl2.configuration import DeepseekV2Config, DeepseekVLV2Config
from paddlemix_vl2.data import SourceSpec, open_source
from paddlemix_vl2.data.sources import DRAWN
from paddlemix_vl2.distributed import check_experts
from paddlemix_vl2.training import memory
from paddlemix_vl2.training.optimizer import make_schedule
from paddlemix_vl2.training.outline import Outline, OutlinedParameter, find_config
from paddlemix_vl2.training.parts import part_of
from paddlemix_vl2.training.recipe import PARTS, VL2TrainingArguments

# Parts of the language model that a plan lists by themselves, by what stands in their names.
_LANGUAGE_GROUPS = {
    "embedding": ".embed_tokens.",
    "output head": ".lm_head.",
    "routed experts": ".mlp.experts.",
}
_REST = "rest"
_GIGABYTE = 1e9


@dataclass(frozen=True)
class Counts:
    """Parameters of a part: those that move, adapters included, and all, adapters not included."""

    trained: int = 0
    total: int = 0


def describe(arguments: VL2TrainingArguments, processes: int | None = None) -> str:
    """The plan of a recipe as text.

    Args:
        processes: how many would train together; those that run now where absent.

    Raises:
        FileNotFoundError: nothing says what the model looks like.
        ValueError: a source is described wrongly, the recipe trains nothing, or it asks for adapters or
            balance that this model cannot have.
    """
    config, origin = find_config(arguments)
    check_balance(config, arguments)
    processes = processes or distributed.get_world_size()
    parameters = Outline(config, arguments).parameters
    lines = [f"Model: {origin}", f"Output: {arguments.output_dir}", ""]
    lines += [*_parameter_lines(parameters, arguments), ""]
    lines += [*_step_lines(arguments, processes), ""]
    lines += [*_memory_lines(list(parameters.values()), config, arguments), ""]
    lines += _data_lines("train_dataset", arguments.train_dataset)
    lines += _data_lines("eval_dataset", arguments.eval_dataset)
    lines += ["", _device_line(arguments)]
    return "\n".join(lines)


def check_balance(config: DeepseekVLV2Config, arguments: VL2TrainingArguments) -> None:
    """ValueError where the recipe's way of balancing or dividing the experts does not fit the model."""
    language = config.language_config
    if arguments.bias_update_speed and language.topk_method != "noaux_tc":
        raise ValueError(
            f"bias_update_speed is {arguments.bias_update_speed:g}, but this model routes by "
            f"{language.topk_method}: only noaux_tc has a bias to move"
        )
    if arguments.bias_update_speed and arguments.language.mode == "frozen":
        raise ValueError(
            f"bias_update_speed is {arguments.bias_update_speed:g}, but the language model is frozen and the "
            "bias a part of it"
        )
    check_experts(arguments.expert_parallel_degree, language.n_routed_experts)
    _check_devices(language, arguments)


def _check_devices(language: DeepseekV2Config, arguments: VL2TrainingArguments) -> None:
    """ValueError where the groups of experts that balance and dropping take for devices are none."""
    devices, groups = arguments.balance_devices, language.n_group or 1
    if (language.n_routed_experts or 0) % devices:
        raise ValueError(
            f"balance_devices is {devices}; it must divide the model's {language.n_routed_experts} routed "
            "experts"
        )
    if arguments.capacity_factor and devices == 1:
        raise ValueError(
            f"capacity_factor is {arguments.capacity_factor:g}, but balance_devices is 1: one device has to "
            "compute everything, and nothing would be dropped"
        )
    # Device-limited routing is group_limited_greedy whose groups are devices, or parts of one; so are the
    # experts of a process.
    if language.topk_method != "greedy":
        _check_multiple(
            devices, groups, f"this model limits its routing to some of {groups} groups of experts"
        )
    held = arguments.expert_parallel_degree
    _check_multiple(devices, max(held, 1), f"expert_parallel_degree is {held}")


def _check_multiple(devices: int, blocks: int, reason: str) -> None:
    if devices % blocks and blocks % devices:
        raise ValueError(
            f"balance_devices is {devices}, but {reason}: one must be a multiple of the other, or the groups "
            "would lie across each other"
        )


def count(parameters: dict[str, OutlinedParameter]) -> dict[str, Counts]:
    """Parameters of ``vision``, ``projector``, ``language``, of the groups of ``language``
    (``language: routed experts``, ...) and of ``all``."""
    groups = [f"language: {group}" for group in (*_LANGUAGE_GROUPS, _REST)]
    sums = {key: [0, 0] for key in (*PARTS, *groups, "all")}
    for name, parameter in parameters.items():
        part = part_of(name)
        keys = [part, "all"]
        if part == "language":
            marks = _LANGUAGE_GROUPS.items()
            keys.append(f"language: {next((group for group, mark in marks if mark in name), _REST)}")
        for key in keys:
            sums[key][0] += parameter.trained
            sums[key][1] += parameter.size
    return {key: Counts(*pair) for key, pair in sums.items()}


def _parameter_lines(parameters: dict[str, OutlinedParameter], arguments: VL2TrainingArguments) -> list[str]:
    counts = count(parameters)
    if not counts["all"].trained:
        raise ValueError(f"nothing trains: {', '.join(PARTS)} are all frozen")
    lines = [f"{'Parameters':26}{'mode':8}{'trained':>17}{'of':>17}  learning rate"]
    for key, pair in counts.items():
        recipe = getattr(arguments, key, None)
        mode = rate = ""
        if key in PARTS:
            mode = recipe.mode
            trains = mode != "frozen"
            rate = f"  {arguments.learning_rate * recipe.learning_rate_multiplier:.3g}" if trains else "  -"
        label = key.replace("language: ", "  of it ")
        lines.append(f"  {label:24}{mode:8}{pair.trained:>17,}{pair.total:>17,}{rate}")
    adapters = [parameter.adapter for parameter in parameters.values() if parameter.adapter]
    if adapters:
        lora = arguments.lora
        lines.append(
            f"Adapters: {sum(adapters):,} parameters in {len(adapters):,} layers (r {lora.r}, lora_alpha "
            f"{lora.lora_alpha}, lora_dropout {lora.lora_dropout})"
        )
    return lines


def _step_lines(arguments: VL2TrainingArguments, processes: int) -> list[str]:
    total, length = arguments.max_steps, arguments.max_seq_length
    batch, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    rows = batch * accumulation * processes
    schedule = make_schedule(arguments)
    points = [
        (share, schedule.base_lr * schedule.lr_lambda(total * share // 100)) for share in range(0, 101, 25)
    ]
    rates = ", ".join(f"{rate:.3g} at {share} %" for share, rate in points)
    warmup = arguments.warmup_steps or int(arguments.warmup_ratio * total)
    packed = "rows are packed" if arguments.packing else "an upper bound: rows are not packed"
    return [
        f"Steps: {total:,}, {warmup:,} of them warm-up",
        f"Learning rate, {arguments.schedule}: {rates}",
        f"Rows per step: {rows:,} = {batch} per process x {accumulation} accumulated x {processes} processes",
        f"Tokens: {rows * length:,} per step, {total * rows * length:,} in all ({packed})",
        f"Supervised: {arguments.supervise}",
    ]


def _memory_lines(
    parameters: list[OutlinedParameter], config: DeepseekVLV2Config, arguments: VL2TrainingArguments
) -> list[str]:
    bf16, recompute = arguments.bf16_wanted, bool(arguments.recompute)
    rows = memory.state_bytes(parameters, bf16)
    label = f"activations {'with' if recompute else 'without'} recompute"
    rows[label] = memory.activation_bytes(config, arguments, bf16, recompute)
    rows["all"] = sum(rows.values())
    other = memory.activation_bytes(config, arguments, bf16, not recompute)
    rows[f"(activations {'without' if recompute else 'with'} it)"] = other
    if bf16 and not arguments.bf16:
        here = memory.activation_bytes(config, arguments, False, recompute)
        rows["(all in float32, as here)"] = sum(memory.state_bytes(parameters, False).values()) + here
    saved = memory.checkpoint_bytes(parameters, bf16)
    return [
        f"Memory per process, estimated, {'bfloat16' if bf16 else 'float32'}:",
        *[f"  {name:32}{value / _GIGABYTE:>9.2f} GB" for name, value in rows.items()],
        f"Checkpoint: {saved / _GIGABYTE:.2f} GB, {arguments.save_total_limit or 'all'} of them kept",
    ]


def _data_lines(key: str, entries: list[dict]) -> list[str]:
    """One line per source. A file that is not there is said to be so: a plan may be made elsewhere."""
    specs = [SourceSpec.from_dict(entry, f"{key}[{index}]") for index, entry in enumerate(entries)]
    weights = sum(spec.weight for spec in specs)
    if specs and not weights:
        raise ValueError(f"{key}: every weight is 0")
    lines = []
    for spec in specs:
        if spec.format == DRAWN:
            open_source(spec)  # reads no file, and knows the tasks
        place = f"task {spec.task}, {spec.split}" if spec.format == DRAWN else str(spec.path)
        share = f"weight {spec.weight:g}, {100 * spec.weight / weights:.1f} % of the draws"
        lines.append(f"{key}: {spec.format}, {place}: {share}{_what_is_missing(spec)}")
    return lines


def _what_is_missing(spec: SourceSpec) -> str:
    if spec.format == DRAWN:
        return ""
    missing = [] if Path(spec.path).is_file() else [str(spec.path)]
    folder = Path(spec.image_folder)
    # A data file's own folder is missing with it.
    if not folder.is_dir() and folder != Path(spec.path).parent:
        missing.append(f"image_folder {folder}")
    return f"; not found here: {', '.join(missing)}" if missing else ""


def _device_line(arguments: VL2TrainingArguments) -> str:
    kind = "GPU" if device.is_gpu() else "CPU"
    if not arguments.bf16_wanted:
        return f"Device: {kind}, float32"
    if arguments.bf16:
        return f"Device: {kind}, bfloat16"
    return f"Device: {kind}; bfloat16 is asked for and not available here: training here would be in float32"
