"""What README and docstrings tell people to type: scripts parse the commands, the snippet runs."""

import ast
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ["single_image_infer", "multi_image_infer", "increment_prefilling_infer"]


def commands_in(text):
    """The commands ``python examples/...``, lines that end in a backslash joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [shlex.split(line) for line in re.findall(r"^\s*(python examples/.*)$", joined, re.MULTILINE)]


def all_commands():
    docstrings = [
        ast.get_docstring(ast.parse((ROOT / f"examples/{name}.py").read_text())) for name in SCRIPTS
    ]
    return commands_in("\n".join([(ROOT / "README.md").read_text(encoding="utf-8"), *docstrings]))


def script(command):
    return Path(command[1]).stem


INFERENCE = [command for command in all_commands() if script(command) in SCRIPTS]
TRAINING = [command for command in all_commands() if script(command) == "train"]


def test_all_commands_are_found():
    assert len(INFERENCE) == 8 and len(TRAINING) == 2
    assert {script(command) for command in all_commands()} == {*SCRIPTS, "train", "merge_lora"}


@pytest.mark.parametrize("command", TRAINING, ids=lambda command: command[2])
def test_a_documented_training_can_be_planned(example, monkeypatch, command, capsys):
    monkeypatch.chdir(ROOT)
    flags = [flag for flag in command[2:] if flag != "--dry_run"]
    assert example("train").main([*flags, "--dry_run"]) == 0
    assert "memory" in capsys.readouterr().out.lower()


@pytest.mark.parametrize("command", INFERENCE, ids=lambda command: f"{command[1]} {len(command)}")
def test_a_documented_command_parses_and_its_pictures_exist(example, monkeypatch, command):
    seen = []
    monkeypatch.setattr(
        example("inference_cli"), "answer", lambda arguments, pictures: seen.append((arguments, pictures))
    )
    assert example(Path(command[1]).stem).main(command[2:]) == 0
    arguments, pictures = seen[0]
    assert arguments.question and pictures
    assert [picture for picture in pictures if not (ROOT / picture).is_file()] == []


def test_the_snippet_of_the_readme_runs(random_checkpoint, monkeypatch, capsys):
    (snippet,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert snippet.count('"deepseek-ai/deepseek-vl2-tiny"') == 1
    snippet = snippet.replace('"deepseek-ai/deepseek-vl2-tiny"', repr(str(random_checkpoint)))
    snippet = snippet.replace("max_new_tokens=64", "max_new_tokens=4")
    monkeypatch.chdir(ROOT)
    names = {}
    exec(compile(snippet, "README.md", "exec"), names)
    assert capsys.readouterr().out.strip() == names["text"].strip() != ""
