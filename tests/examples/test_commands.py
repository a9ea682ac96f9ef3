"""What the READMEs and docstrings tell people to type: scripts parse the commands, snippets run."""

import ast
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READMES = [ROOT / "README.md", ROOT / "README_zh.md"]
SCRIPTS = ["single_image_infer", "multi_image_infer", "increment_prefilling_infer"]


def commands_in(text):
    """The commands ``python examples/...``, also behind an installation, lines that end in a backslash
    joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    found = re.findall(r"^\s*(?:pip install .* && )?(python examples/.*)$", joined, re.MULTILINE)
    return [shlex.split(line) for line in found]


def all_commands():
    docstrings = [
        ast.get_docstring(ast.parse((ROOT / f"examples/{name}.py").read_text())) for name in SCRIPTS
    ]
    return commands_in("\n".join([*(readme.read_text(encoding="utf-8") for readme in READMES), *docstrings]))


def script(command):
    return Path(command[1]).stem


INFERENCE = [command for command in all_commands() if script(command) in SCRIPTS]
TRAINING = [command for command in all_commands() if script(command) == "train"]


def test_all_commands_are_found():
    assert len(INFERENCE) == 10 and len(TRAINING) == 4
    others = {"train", "merge_lora", "batch_infer", "evaluate", "web_demo", "serve"}
    assert {script(command) for command in all_commands()} == {*SCRIPTS, *others}


def test_documented_files_of_questions_are_answered(example, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    commands = [command for command in all_commands() if script(command) in ("batch_infer", "evaluate")]
    assert len(commands) == 4, "two in each README"
    for command in commands[:2]:
        output = command.index("--output") + 1
        command[output] = str(tmp_path / Path(command[output]).name)
        assert example(script(command)).main(command[2:]) == 0


@pytest.mark.parametrize("name", ["web_demo", "serve"])
def test_what_stays_open_parses_its_documented_flags(example, name):
    commands = [command for command in all_commands() if script(command) == name]
    assert len(commands) == 2, "one in each README"
    for command in commands:
        example(name).make_parser().parse_args(command[2:])


def test_the_pictures_and_pages_of_the_readmes_exist():
    for readme in READMES:
        targets = re.findall(r"\]\(([^)#]+)\)", readme.read_text(encoding="utf-8"))
        local = [target for target in targets if "://" not in target]
        assert len(local) > 8
        assert [target for target in local if not (ROOT / target).exists()] == []


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


@pytest.mark.parametrize("readme", READMES, ids=lambda readme: readme.name)
def test_the_snippet_of_the_readme_runs(readme, random_checkpoint, monkeypatch, capsys):
    (snippet,) = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    assert snippet.count('"deepseek-ai/deepseek-vl2-tiny"') == 1
    snippet = snippet.replace('"deepseek-ai/deepseek-vl2-tiny"', repr(str(random_checkpoint)))
    snippet = snippet.replace("max_new_tokens=64", "max_new_tokens=4")
    monkeypatch.chdir(ROOT)
    names = {}
    exec(compile(snippet, "README.md", "exec"), names)
    assert capsys.readouterr().out.strip() == names["text"].strip() != ""
