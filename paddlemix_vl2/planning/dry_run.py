"""The plan of a recipe, without training: ``paddlemix-vl2 train RECIPE --dry_run``.

Everything is computed from the configuration. No model is built, no weight and no data file is read, so that
the largest model's plan takes seconds on any machine, also one without its weights and data.
"""

from dataclasses import dataclass
from pathlib import Path

from paddle import distributed

from paddlemix_vl2 import device
from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.data import SourceSpec, open_source
from paddlemix_vl2.data.sources import SYNTHETIC
from paddlemix_vl2.planning import training_memory as memory
from paddlemix_vl2.planning.parameters import PlannedParameter, find_config, plan_parameters
from paddlemix_vl2.training.checks import check_balance
from paddlemix_vl2.training.optimizer import make_schedule
from paddlemix_vl2.training.parts import part_of
from paddlemix_vl2.training.recipe import PARTS, VL2TrainingArguments

# Parts of the language model that a plan lists separately, by a part of their names.
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
    parameters = plan_parameters(config, arguments)
    lines = [f"Model: {origin}", f"Output: {arguments.output_dir}", ""]
    lines += [*_parameter_lines(parameters, arguments), ""]
    lines += [*_step_lines(arguments, processes), ""]
    lines += [*_memory_lines(list(parameters.values()), config, arguments), ""]
    lines += _data_lines("train_dataset", arguments.train_dataset)
    lines += _data_lines("eval_dataset", arguments.eval_dataset)
    lines += ["", _device_line(arguments)]
    return "\n".join(lines)


def count(parameters: dict[str, PlannedParameter]) -> dict[str, Counts]:
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


def _parameter_lines(parameters: dict[str, PlannedParameter], arguments: VL2TrainingArguments) -> list[str]:
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
        f"Trained on: {arguments.train_on}",
    ]


def _memory_lines(
    parameters: list[PlannedParameter], config: DeepseekVLV2Config, arguments: VL2TrainingArguments
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
        if spec.format == SYNTHETIC:
            open_source(spec)  # reads no file, and knows the tasks
        place = f"task {spec.task}, {spec.split}" if spec.format == SYNTHETIC else str(spec.path)
        share = f"weight {spec.weight:g}, {100 * spec.weight / weights:.1f} % of the samples"
        lines.append(f"{key}: {spec.format}, {place}: {share}{_what_is_missing(spec)}")
    return lines


def _what_is_missing(spec: SourceSpec) -> str:
    if spec.format == SYNTHETIC:
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
