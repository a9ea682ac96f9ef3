"""Benchmarks from the command line, on the demo checkpoint; the commands of the documentation."""

import json
import re
import shlex
from pathlib import Path

import pytest

from paddlemix_vl2.cli import evaluate as command
from paddlemix_vl2.cli import main, resumable

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "examples" / "data"
# Every file of synthetic questions with a task for it.
FILES = {
    "docvqa": "docvqa",
    "infovqa": "infovqa",
    "chartqa": "chartqa",
    "textvqa": "textvqa",
    "ocrbench": "ocrbench",
    "mmmu": "mmmu",
    "ai2d": "mmbench",
    "refcoco+_testB": "refcoco",
}


@pytest.fixture
def evaluate(tmp_path, capsys):
    """Run the command; its exit code, the table's lines and the standard error."""

    def run(task, data, *flags):
        capsys.readouterr()
        paths = ["--task", task, "--data", data, "--output", tmp_path / "out.jsonl"]
        code = command.main([str(flag) for flag in [*paths, "--dtype", "float32", *flags]])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return run


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_every_drawn_file_is_evaluated_by_a_test():
    assert {path.stem for path in DATA.glob("*.tsv")} == set(FILES.values())
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 100_000


@pytest.mark.parametrize("task", FILES)
def test_a_drawn_file_is_answered_and_scored(evaluate, tmp_path, task):
    code, table, err = evaluate(task, DATA / f"{FILES[task]}.tsv", "--max_new_tokens", 32)
    assert code == 0, err
    results = lines(tmp_path / "out.jsonl")
    assert [result["id"] for result in results] == ["0", "1", "2", "3"]
    assert all("prediction" in result and 0 <= result["score"] <= 1 for result in results)
    scores = json.loads((tmp_path / "out.scores.json").read_text())
    assert (scores["task"], scores["questions"], scores["failed"]) == (task, 4, 0)
    total = sum(result["score"] for result in results)
    assert scores["score"] == pytest.approx(total if scores["unit"] == "hits" else 25 * total, abs=0.01)
    assert table[2].startswith(f"| {scores['title']} | 4 | 0 | {scores['score']:.1f} |")
    assert len(table) == 3 + len(scores["categories"])


def test_a_broken_question_is_counted_and_tried_again(evaluate, tmp_path):
    data = tmp_path / "own.jsonl"
    picture = tmp_path / "a.png"
    entries = [{"question": "Which shape is this?", "answer": "circle", "image": "a.png"}, {"question": "?"}]
    data.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    code, table, err = evaluate("own", data, "--max_new_tokens", 4)
    assert code == 1 and table[2].startswith("| own questions | 2 | 2 | 0.0 |")
    assert f"failed: {data}:1: {picture}: no such file" in err
    assert f"failed: {data}:2: has no answer" in err
    assert "2 failed; the same command tries these again" in err
    picture.write_bytes((ROOT / "examples/images/drawn/red_circle.png").read_bytes())
    code, table, err = evaluate("own", data, "--max_new_tokens", 4)
    assert code == 1 and table[2].startswith("| own questions | 2 | 1 |")
    assert "prediction" in lines(tmp_path / "out.jsonl")[0]


def test_a_finished_run_is_scored_again_without_the_model(evaluate, monkeypatch):
    data = DATA / "chartqa.tsv"
    _, table, _ = evaluate("chartqa", data, "--limit", 2)

    def fail(*arguments):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(resumable, "load_model", fail)
    assert evaluate("chartqa", data, "--limit", 2)[:2] == (0, table)


def test_another_run_does_not_go_on_with_these_answers(evaluate):
    data = DATA / "chartqa.tsv"
    assert evaluate("chartqa", data, "--limit", 1, "--max_new_tokens", 2)[0] == 0
    for task, flags, changed in [
        ("docvqa", ["--limit", 1, "--max_new_tokens", 2], "task was"),
        ("chartqa", ["--limit", 2, "--max_new_tokens", 2], "total was 1 and is now 2"),
        ("chartqa", ["--limit", 1, "--max_new_tokens", 3], "max_new_tokens was 2 and is now 3"),
    ]:
        code, out, err = evaluate(task, data, *flags)
        assert (code, out, err.count("\n")) == (2, [], 1)
        assert err.startswith("error: ") and changed in err and "--restart begins anew" in err
    code, table, _ = evaluate("docvqa", data, "--limit", 1, "--max_new_tokens", 2, "--restart")
    assert code == 0 and table[2].startswith("| DocVQA test | 1 |")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "docvaq"], "unknown key 'docvaq' (did you mean 'docvqa'?)"),
        (["--data", "no.tsv"], "no.tsv: no such file"),
        (["--data", "README.md"], "README.md: ends in .md; use one of"),
        (["--model_path", "/no/folder"], "/no/folder"),
        (["--adapter_path", "/no/adapter"], "/no/adapter"),
        (["--split", "val"], "no record has 'val' as its split"),
        (["--batch_size", "0"], "--batch_size: '0' is not a whole number from 1 up"),
        (["--bbox_format", "x"], "--bbox_format: invalid choice"),
        (["--device", "abacus"], "device 'abacus' is unknown"),
        (["--output", "docs"], "docs: is a folder; name a file in it"),
    ],
)
def test_a_mistake_is_one_line(evaluate, monkeypatch, flags, message):
    monkeypatch.chdir(ROOT)
    code, out, err = evaluate("chartqa", DATA / "chartqa.tsv", *flags)
    assert (code, out, err.count("\n")) == (2, [], 1)
    assert err.startswith("error: ") and message in err


def test_the_commands_of_the_documentation_run(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in re.findall(r"^paddlemix-vl2 (.*)$", text, re.MULTILINE)]
    assert [name for name, *_ in commands] == ["evaluate", "batch"]
    monkeypatch.chdir(ROOT)
    for name, *flags in commands:
        flags = [flag.replace("output/", f"{tmp_path}/") for flag in flags]
        assert main([name, *flags, "--max_new_tokens", "8"]) == 0
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {"docvqa.jsonl", "answers.jsonl"}


def test_the_data_of_the_documentation_is_read(tmp_path):
    """Every line of JSON in it is one that the readers accept."""
    from paddlemix_vl2.data.records import open_records
    from paddlemix_vl2.evaluation.questions import QuestionFile
    from paddlemix_vl2.evaluation.requests import read_request
    from paddlemix_vl2.evaluation.tasks import TASKS

    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    found = [
        line for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL) for line in block.splitlines()
    ]
    tasks = ["docvqa", "chartqa", "textvqa", "ocrbench", "refcoco_val", "own"]
    assert len(found) == len(tasks) + 2
    for task, line in zip(tasks, found[: len(tasks)], strict=True):
        # TextVQA's example is shortened: it has ten answers.
        (tmp_path / "a.json").write_text(line.replace('"..."', ", ".join(['"nokia"'] * 8)))
        if not line.startswith(("[", '{"data"')):
            (tmp_path / "a.json").write_text(f"[{line}]")
        assert len(QuestionFile(open_records(tmp_path / "a.json"), TASKS[task])[0].pictures) == 1
    for line in found[len(tasks) :]:
        assert read_request(json.loads(line), "/d").messages[-1].images
