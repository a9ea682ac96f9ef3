"""Records are read as the trainer writes them, repeated steps count once, stages are continuous."""

import json
import re

import numpy as np
import pytest

from paddlemix_vl2.figures import training
from paddlemix_vl2.figures.picture import to_picture


def record(step: int, loss: float = 1.0, **others) -> dict:
    """What the trainer logs in a step of training: two MoE layers of four experts."""
    router = {
        "max_vio": 0.5,
        "entropy": 1.2,
        "max_vio_per_layer": [0.4, 0.6],
        "expert_share_per_layer": [[0.25] * 4, [0.4, 0.2, 0.2, 0.2]],
    }
    speed = {"learning_rate": 1e-3, "grad_norm": 0.7, "tokens_per_second": 1000.0}
    return {"loss": loss, **speed, **router, **others, "global_step": step}


@pytest.fixture
def run_folder(tmp_path):
    """Name and records (or lines) -> the folder of such a run."""

    def write(name: str, *lines):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (folder / "metrics.jsonl").write_text("".join(text + "\n" for text in texts))
        return folder

    return write


def losses(records):
    return {step: values["loss"] for step, values in records.items() if "loss" in values}


def test_training_and_evaluation_of_a_step_are_one_record(run_folder):
    folder = run_folder("run", record(10), {"eval_loss": 2.0, "global_step": 10}, record(20))
    records = training.read_metrics(folder / "metrics.jsonl")
    assert list(records) == [10, 20]
    assert records[10]["loss"] == 1.0 and records[10]["eval_loss"] == 2.0


def test_the_last_record_of_a_step_counts(run_folder):
    # Stopped after step 40, resumed from 20; the second time the run logs at 30 only.
    lines = [record(10, 9.0), record(20, 8.0), record(30, 7.0), record(40, 6.0), record(30, 5.0)]
    file = run_folder("run", *lines) / "metrics.jsonl"
    assert losses(training.read_metrics(file)) == {10: 9.0, 20: 8.0, 30: 5.0}
    again = run_folder("again", record(10, 9.0), record(10, 4.0)) / "metrics.jsonl"
    assert losses(training.read_metrics(again)) == {10: 4.0}


def test_stages_go_on_where_the_one_before_ended(run_folder):
    first = run_folder("first", record(10, 3.0), {"train_runtime": 1.0, "global_step": 15})
    second = run_folder("second", record(5, 2.0), record(10, 1.0))
    stages = training.join_stages([first, second])
    assert [(stage.label, stage.begin, stage.end) for stage in stages] == [
        ("first", 0, 15),
        ("second", 15, 25),
    ]
    assert training.curve(stages[0], "loss") == ([10], [3.0])
    assert training.curve(stages[1], "loss") == ([20, 25], [2.0, 1.0])
    assert training.curve(stages[1], "eval_loss") == ([], [])


def test_equal_names_become_paths(run_folder):
    folders = [run_folder("a/run"), run_folder("b/run")]
    assert training.stage_labels(folders) == [str(folder) for folder in folders]
    assert training.stage_labels(folders[:1]) == ["run"]


def test_the_figure_holds_the_points(run_folder):
    first = run_folder("first", record(10, 3.0), record(20, 2.0), {"eval_loss": 2.5, "global_step": 20})
    second = run_folder("second", record(10, 1.0), record(20, 0.5))
    top = training.plot_training(training.join_stages([first, second])).axes[0]
    plotted = [np.stack(line.get_data()).tolist() for line in top.get_lines()]
    for points in ([[10, 20], [3.0, 2.0]], [[20], [2.5]], [[30, 40], [1.0, 0.5]]):
        assert points in plotted
    assert {text.get_text() for text in top.texts} == {"first", "second"}


@pytest.mark.parametrize("name", ["expert_share_per_layer", "load_per_layer"])
def test_the_entropy_of_even_scores_is_marked(run_folder, name):
    """Also in logs of earlier releases, where the shares have another name."""
    line = record(10)
    line[name] = line.pop("expert_share_per_layer")
    axes = training.plot_training(training.join_stages([run_folder("run", line)])).axes
    lines = [one.get_ydata() for panel in axes for one in panel.get_lines() if one.get_linestyle() == ":"]
    assert [np.log(4)] * 2 in [list(values) for values in lines]


def test_stages_without_some_records_are_plotted(run_folder):
    first = run_folder("first", record(10, 3.0), record(20, float("nan")))
    dense = run_folder("dense", {"loss": 1.0, "learning_rate": 0.1, "global_step": 1})
    bare = run_folder("bare", {"loss": 1.0, "global_step": 1})
    for folders in ([first, dense], [bare]):
        picture = to_picture(training.plot_training(training.join_stages(folders)))
        assert len(picture.convert("L").getcolors()) > 20


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "metrics.jsonl: holds no training step yet"),
        ([{"eval_loss": 1.0, "global_step": 3}], "holds no training step yet"),
        ([record(1), '{"loss": 1.0, "glo'], "metrics.jsonl, line 2: not valid JSON"),
        ([record(1), ""], "line 2: not valid JSON"),
        (["[1]"], "line 1: holds a JSON list; it must be an object"),
        (['{"loss": 1.0}'], "line 1: not an object with a whole number global_step"),
        ([record(1, loss="low")], "line 1: loss is 'low', not a number"),
    ],
)
def test_what_cannot_be_read_is_named(run_folder, lines, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        training.join_stages([run_folder("run", *lines)])
