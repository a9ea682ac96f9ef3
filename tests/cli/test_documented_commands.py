"""The commands of READMEs, pages and docstrings are parsed; the snippets run."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from paddlemix_vl2.cli import COMMANDS, inference
from paddlemix_vl2.cli.arguments import OneLineParser

ROOT = Path(__file__).resolve().parents[2]
READMES = [ROOT / "README.md", ROOT / "README_zh.md"]
PAGES = sorted((ROOT / "docs").glob("*.md"))
# Script of examples/ -> the command whose functions it calls.
SCRIPTS = {
    "single_image_infer": "infer",
    "multi_image_infer": "infer",
    "increment_prefilling_infer": "infer",
    "batch_infer": "batch",
    "evaluate": "evaluate",
    "train": "train",
    "merge_lora": "merge",
    "serve": "serve",
    "web_demo": "web",
}
PROGRAM = r"(?:python examples/(\w+)\.py|paddlemix-vl2 (\w+))"


def commands_in(text):
    """(script or command, flags) of the lines that run one, also behind an installation; lines that end in a
    backslash are joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    found = re.findall(rf"^\s*(?:pip install .* && )?{PROGRAM}(.*)$", joined, re.MULTILINE)
    return [(script or command, shlex.split(flags, comments=True)) for script, command, flags in found]


def docstring_of(path):
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


IN_READMES = {readme.name: commands_in(readme.read_text(encoding="utf-8")) for readme in READMES}
IN_PAGES = {page.name: commands_in(page.read_text(encoding="utf-8")) for page in PAGES}
IN_EXAMPLES = {
    path.name: commands_in(docstring_of(path)) for path in sorted((ROOT / "examples").glob("*.py"))
}
ALL = [
    (place, *command)
    for found in (IN_READMES, IN_PAGES, IN_EXAMPLES)
    for place, commands in found.items()
    for command in commands
    if "RECIPE" not in command[1]
]


def command_of(name):
    return SCRIPTS.get(name, name)


def of(*commands):
    return [one for one in ALL if command_of(one[1]) in commands]


INFERENCE, TRAINING = of("infer"), of("train")


def label(value):
    return " ".join(value)[:60] if isinstance(value, list) else value


def test_all_commands_are_found():
    """Each README shows all but the two that are named in its text; every script shows its own command."""
    shown = {name: {command_of(command) for command, _ in found} for name, found in IN_READMES.items()}
    assert shown == dict.fromkeys(shown, set(COMMANDS) - {"inspect", "estimate"})
    assert all(found for name, found in IN_EXAMPLES.items())
    named = {name for found in IN_EXAMPLES.values() for name, _ in found}
    assert named == {*SCRIPTS, "evaluate_demo"}
    assert len(INFERENCE) >= 10 and len(TRAINING) >= 8
    assert all(command_of(name) in {*COMMANDS, "evaluate_demo"} for _, name, _ in ALL)


def test_the_readmes_list_every_command_with_its_scripts():
    for readme in READMES:
        table = readme.read_text(encoding="utf-8").partition("`examples/`")[2]
        rows = re.findall(r"^\| `(\w+)` \|[^|]+\|([^|]*)\|$", table, re.MULTILINE)
        listed = {command: re.findall(r"`(\w+)\.py`", scripts) for command, scripts in rows}
        assert list(listed) == list(COMMANDS)
        named = {script: command for command, scripts in listed.items() for script in scripts}
        assert named == SCRIPTS


# Scripts of ``infer`` have flags of their own; the next test parses them.
@pytest.mark.parametrize(
    ("place", "name", "flags"), [one for one in ALL if SCRIPTS.get(one[1]) != "infer"], ids=label
)
def test_a_documented_command_has_these_flags(place, name, flags):
    command = command_of(name)
    module = "evaluate_demo" if name == "evaluate_demo" else COMMANDS[command][0]
    parser = OneLineParser("", intermixed=command == "train")
    importlib.import_module(f"paddlemix_vl2.cli.{module}").add_arguments(parser)
    parser.parse(flags)


@pytest.mark.parametrize(("place", "name", "flags"), INFERENCE, ids=label)
def test_a_documented_question_has_its_pictures(example, monkeypatch, place, name, flags):
    seen = []
    monkeypatch.setattr(inference, "answer", lambda arguments, pictures: seen.append((arguments, pictures)))
    assert (example(name) if name in SCRIPTS else inference).main(flags) == 0
    arguments, pictures = seen[0]
    assert arguments.question and pictures
    assert [picture for picture in pictures if not (ROOT / picture).is_file()] == []


@pytest.mark.parametrize(("place", "name", "flags"), TRAINING, ids=label)
def test_a_documented_training_can_be_planned(monkeypatch, capsys, place, name, flags):
    monkeypatch.chdir(ROOT)
    train = importlib.import_module("paddlemix_vl2.cli.train")
    assert train.main([*(flag for flag in flags if flag != "--dry_run"), "--dry_run"]) == 0
    assert "memory" in capsys.readouterr().out.lower()


def test_documented_files_of_questions_are_answered(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    asked = [one for one in of("batch", "evaluate") if one[0] == "README.md"]
    assert [name for _, name, _ in asked] == ["batch", "evaluate"]
    for _, name, flags in asked:
        output = flags.index("--output") + 1
        flags = [*flags[:output], str(tmp_path / Path(flags[output]).name), *flags[output + 1 :]]
        assert importlib.import_module(f"paddlemix_vl2.cli.{name}").main(flags) == 0


def test_the_pictures_and_pages_of_the_readmes_exist():
    for readme in READMES:
        targets = re.findall(r"\]\(([^)#]+)\)", readme.read_text(encoding="utf-8"))
        local = [target for target in targets if "://" not in target]
        assert len(local) > 8
        assert [target for target in local if not (ROOT / target).exists()] == []


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
