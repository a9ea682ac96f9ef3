"""The command plots the runs that it is given, and says mistakes in one line."""

import json

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("plot_training")


@pytest.fixture
def runs(tmp_path):
    """Two folders of runs with a record each."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
        record = {"loss": 1.0, "learning_rate": 0.1, "global_step": 1}
        (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    return folders


def test_a_figure_is_written(tool, runs, tmp_path, capsys):
    output = tmp_path / "curves.png"
    assert tool.main([*map(str, runs), "--output", str(output)]) == 0
    assert capsys.readouterr().err == ""
    with Image.open(output) as picture:
        assert picture.format == "PNG" and len(picture.convert("L").getcolors()) > 20
    assert sorted(file.name for file in tmp_path.iterdir()) == ["curves.png", "first", "second"]


def test_mistakes_are_one_line(tool, runs, tmp_path, capsys):
    (runs[1] / "metrics.jsonl").write_text("no record\n")
    mistakes = [
        ([tmp_path / "nowhere", "--output", "x.png"], "nowhere/metrics.jsonl: no such file"),
        ([runs[0], "--output", "curves.txt"], "cannot write .txt"),
        ([runs[1], "--output", "x.png"], "metrics.jsonl, line 1: not valid JSON"),
        (["--output", "x.png"], "RUN_FOLDER"),
    ]
    for flags, message in mistakes:
        assert tool.main([str(flag) for flag in flags]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and message in line
