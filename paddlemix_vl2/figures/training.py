"""The curves of a training run, or of several stages one after the other, from their ``metrics.jsonl``."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from paddlemix_vl2.files import METRICS_FILE, parse_object

SCALARS = ("loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second", "max_vio", "entropy")
SHARES = ("expert_share_per_layer", "load_per_layer")  # the second in logs of earlier releases
SIZE, DPI = (12.0, 9.5), 150  # inches
BLUE, ORANGE, RED, GREEN = "tab:blue", "tab:orange", "tab:red", "tab:green"


@dataclass(frozen=True)
class Stage:
    """A run: its label, its records by step, and the step of the figure at which it begins."""

    label: str
    records: dict[int, dict]
    begin: int

    @property
    def end(self) -> int:
        return self.begin + max(self.records)


# ---- reading ----


def join_stages(folders: list[Path]) -> list[Stage]:
    """The runs in the order given, each beginning where the one before it ended."""
    stages, begin = [], 0
    for label, folder in zip(stage_labels(folders), folders, strict=True):
        stages.append(Stage(label, read_metrics(folder / METRICS_FILE), begin))
        begin = stages[-1].end
    return stages


def stage_labels(folders: list[Path]) -> list[str]:
    """The folders' names; whole paths where two have the same name."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def read_metrics(file: Path) -> dict[int, dict]:
    """The records of a run by step, in order.

    A step's training and evaluation records become one. A run that was resumed repeats steps: where the
    steps go back, what was written from there on is of a stretch that was lost.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is not a record, or none is of a training step.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; a run writes it into its output_dir")
    records, last = {}, -1
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        record = parse_record(line, f"{file}, line {number}")
        step = record["global_step"]
        if step < last:
            records = {known: values for known, values in records.items() if known < step}
        records.setdefault(step, {}).update(record)
        last = step
    if not any("loss" in record for record in records.values()):
        raise ValueError(f"{file}: holds no training step yet; one comes every logging_steps of the recipe")
    return records


def parse_record(line: str, place: str) -> dict:
    """A line of the file, with ``place`` in front of what is wrong with it."""
    try:
        record = parse_object(line)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    if type(record.get("global_step")) is not int:
        raise ValueError(f"{place}: not an object with a whole number global_step")
    for name in SCALARS:
        if type(record.get(name, 0)) not in (int, float):
            raise ValueError(f"{place}: {name} is {record[name]!r}, not a number")
    return record


def curve(stage: Stage, name: str, value: Callable = float) -> tuple[list[int], list]:
    """Steps of the figure and values of ``name``, where the stage's records have it."""
    found = [(step, record[name]) for step, record in sorted(stage.records.items()) if name in record]
    return [stage.begin + step for step, _ in found], [value(values) for _, values in found]


# ---- plotting ----


def plot_training(stages: list[Stage]) -> Figure:
    """Loss across the top, the others two by two below, all over the same steps."""
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # inches
    grid = figure.add_gridspec(3, 2, height_ratios=(1.35, 1, 1))
    top = figure.add_subplot(grid[0, :])
    places = [figure.add_subplot(grid[row, column], sharex=top) for row in (1, 2) for column in (0, 1)]
    plot_losses(top, stages)
    plot_curves(places[0], stages, "learning_rate", "learning rate")
    places[0].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    plot_curves(places[1], stages, "grad_norm", "gradient norm")
    plain_log_scale(places[1])
    plot_router(places[2], stages)
    plot_curves(places[3], stages, "tokens_per_second", "tokens / s")
    for axes in (top, *places):
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        for stage in stages[1:]:
            axes.axvline(stage.begin, color="0.45", linestyle=(0, (4, 3)), linewidth=1)
    for axes in places[2:]:
        axes.set_xlabel("optimizer step")
    top.set_xlim(0, stages[-1].end * 1.01)
    label_stages(top, stages)
    return figure


def label_stages(axes, stages: list[Stage]) -> None:
    """Each stage's label above its part; a short part's label is slanted, so that neighbours keep apart."""
    total, wide = stages[-1].end, 0.01  # of the axes, per letter
    fits = all((stage.end - stage.begin) / total > wide * len(stage.label) for stage in stages)
    style = {} if fits else {"rotation": 20, "rotation_mode": "anchor"}
    for stage in stages:
        place = ((stage.begin + stage.end) / 2 if fits else stage.begin, 1.02)
        axes.text(
            *place,
            stage.label,
            transform=axes.get_xaxis_transform(),
            ha="center" if fits else "left",
            va="bottom",
            weight="bold",
            **style,
        )


def plot_losses(axes, stages: list[Stage]) -> None:
    for stage in stages:
        axes.plot(*curve(stage, "loss"), color=BLUE, linewidth=1.4, marker=lone_marker(stage))
        axes.plot(*curve(stage, "eval_loss"), color=ORANGE, marker="o", markersize=6, linestyle="none")
    axes.plot([], [], color=BLUE, label="training")
    if any("eval_loss" in record for stage in stages for record in stage.records.values()):
        axes.plot([], [], color=ORANGE, marker="o", linestyle="none", label="evaluation")
    axes.set_ylabel("loss")
    plain_log_scale(axes)
    axes.legend(loc="upper right", framealpha=0.9)


def plain_log_scale(axes) -> None:
    """Logarithmic, with labels at 1, 2 and 5: decades alone would leave most losses between two labels. An
    empty chart has no such scale."""
    if not any(len(line.get_ydata()) for line in axes.lines):
        return
    axes.set_yscale("log")
    axes.autoscale(axis="y")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def lone_marker(stage: Stage) -> str | None:
    """A dot for a stage with a single record, of which a line would show nothing."""
    return "." if len(stage.records) == 1 else None


def plot_curves(axes, stages: list[Stage], name: str, label: str, color: str = BLUE) -> None:
    for stage in stages:
        axes.plot(*curve(stage, name), color=color, linewidth=1.4, marker=lone_marker(stage))
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)


def plot_router(axes, stages: list[Stage]) -> None:
    """MaxVio, mean over layers and its range, and on the right the entropy with the value of even scores."""
    for stage in stages:
        steps, layers = curve(stage, "max_vio_per_layer", list)
        lowest, highest = [min(values) for values in layers], [max(values) for values in layers]
        axes.fill_between(steps, lowest, highest, color=RED, alpha=0.18, linewidth=0)
    plot_curves(axes, stages, "max_vio", "MaxVio (band: layers)", RED)
    axes.yaxis.label.set_color(RED)
    right = axes.twinx()
    plot_curves(right, stages, "entropy", "entropy (nats; dotted: even)", GREEN)
    right.yaxis.label.set_color(GREEN)
    right.spines[["top"]].set_visible(False)
    shares = [found for stage in stages for name in SHARES for found in curve(stage, name, list)[1]]
    if shares:
        even = math.log(len(shares[0][0]))
        right.axhline(even, color=GREEN, linestyle=":", linewidth=1.2)
        right.set_ylim(0, 1.12 * even)
