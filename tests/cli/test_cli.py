"""The command and the scripts of examples/ as programs: quick help, mistakes in one line, from any folder."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paddlemix_vl2 import cli

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PICTURE = str(EXAMPLES / "images" / "drawn" / "words.png")
FILES = ["--output", "o.jsonl"]
# Flags of a run whose file is not there, and what is said of it.
MISSING = {
    "infer": (["--image_file", "no.png", "--question", "?"], "no.png: no such file"),
    "chat": (["--image_files", "no.png"], "no.png: no such file"),
    "batch": (["--input", "no.jsonl", *FILES], "no.jsonl: no such file"),
    "evaluate": (["--task", "docvqa", "--data", "no.tsv", *FILES], "no.tsv: no such file"),
    "train": (["no.yaml"], "no.yaml: no such recipe"),
    "merge": (["--model_path", "x", "--adapter_path", "./no", "--output", "o"], "no: no such folder"),
    "serve": (["--model_path", "./no", "--port", "0"], "no: no such folder"),
    "web": (["--model_path", "./no"], "no: no such folder"),
    "inspect": (["./no"], "no: no such folder"),
    "estimate": (["no.json"], "no.json: no such file"),
}
SCRIPTS = {
    "single_image_infer": MISSING["infer"],
    "multi_image_infer": (["--image_files", "no.png", "--question", "?"], "no.png: no such file"),
    "increment_prefilling_infer": MISSING["infer"],
    "batch_infer": MISSING["batch"],
    "evaluate": MISSING["evaluate"],
    "evaluate_demo": (["--model_path", "./no"], "no: no such folder"),
    "train": MISSING["train"],
    "merge_lora": MISSING["merge"],
    "serve": MISSING["serve"],
    "web_demo": MISSING["web"],
}
PROGRAMS = {
    **{f"paddlemix-vl2 {name}": (["-m", "paddlemix_vl2.cli", name], *case) for name, case in MISSING.items()},
    **{f"{name}.py": ([str(EXAMPLES / f"{name}.py")], *case) for name, case in SCRIPTS.items()},
}


def start(folder, *words, **options):
    """Run a program of this Python, in a folder that is not the repository's."""
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, **options)


def assert_one_line(result, message):
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: "), result.stderr
    assert message in result.stderr


def without(*packages):
    """Words that run the command where packages cannot be imported."""
    lines = [
        "import sys",
        "class Missing:",
        "    def find_spec(self, name, path=None, target=None):",
        f"        if name in {packages!r}:",
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)",
        "sys.meta_path.insert(0, Missing())",
        "from paddlemix_vl2.cli import main",
        "sys.exit(main())",
    ]
    return ["-c", "\n".join(lines)]


def test_every_example_and_command_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SCRIPTS)
    assert set(cli.COMMANDS) == set(MISSING)


@pytest.mark.parametrize(("words", "flags", "message"), PROGRAMS.values(), ids=PROGRAMS)
def test_a_wrong_flag_and_a_missing_file_are_one_line_in_any_folder(tmp_path, words, flags, message):
    assert_one_line(start(tmp_path, *words, *flags, "--nonsense"), "unrecognized arguments: --nonsense")
    assert_one_line(start(tmp_path, *words, *flags), message)


@pytest.mark.parametrize("name", SCRIPTS)
def test_outside_the_environment_an_example_says_what_to_do(tmp_path, name):
    result = start(tmp_path, "-S", EXAMPLES / f"{name}.py", env={})
    assert_one_line(
        result, "paddlemix_vl2 is not installed; in the repository run: make demo && source .venv"
    )


def test_a_copied_example_answers_from_another_folder(tmp_path):
    shutil.copy(EXAMPLES / "single_image_infer.py", tmp_path / "mine.py")
    result = start(tmp_path, "mine.py", "--image_file", PICTURE, "--question", "Read the text.")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() and [path.name for path in tmp_path.iterdir()] == ["mine.py"]
    assert result.stderr.startswith("loading ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no command; paddlemix-vl2 has infer, chat, batch"),
        (["infre"], "unknown command 'infre' (did you mean 'infer'?)"),
        (["--version"], "unknown command '--version'; paddlemix-vl2 has infer"),
    ],
)
def test_without_a_right_command_the_nearest_is_named(capsys, argv, message):
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("error: ") and message in captured.err


def test_help_lists_the_commands_and_imports_next_to_nothing(tmp_path):
    result = start(tmp_path, "-X", "importtime", "-m", "paddlemix_vl2.cli", "--help")
    assert result.returncode == 0
    assert re.findall(r"^  (\w+) ", result.stdout, re.MULTILINE) == list(cli.COMMANDS)
    assert not re.findall(r"\b(paddle|numpy|PIL|paddlenlp)$", result.stderr, re.MULTILINE)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_of_a_command_opens_with_it(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: paddlemix-vl2 {name} ") and f"\n    paddlemix-vl2 {name}" in text


def test_the_console_script_is_this_command():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert '"console_scripts": ["paddlemix-vl2 = paddlemix_vl2.cli:main"]' in setup


def test_answering_imports_no_package_of_another_extra(tmp_path):
    program = without("paddlenlp", "matplotlib", "gradio", "fastapi", "datasets", "scipy", "yaml")
    result = start(tmp_path, *program, "infer", "--image_file", PICTURE, "--question", "Read the text.")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


MISSING_PACKAGES = {
    "paddle": (["infer", "--image_file", PICTURE, "--question", "?"], 'pip install -e ".[cpu]" or ".[gpu]"'),
    "paddlenlp": (["train", "no.yaml"], 'pip install "paddlemix-vl2[train]"'),
    "gradio": (["web"], 'pip install -e ".[cpu,web]"'),
    "uvicorn": (["serve"], 'pip install -e ".[cpu,serve]"'),
}


@pytest.mark.parametrize("package", MISSING_PACKAGES)
def test_what_a_command_lacks_is_said_with_the_command_that_brings_it(tmp_path, package):
    flags, message = MISSING_PACKAGES[package]
    result = start(tmp_path, *without(package), *flags)
    assert_one_line(result, message)
    assert result.stderr.startswith(f"error: {package} is not installed; in the repository run: pip install")


@pytest.mark.parametrize("command", ["infer", "chat"])
def test_a_picture_that_cannot_be_opened_is_said_before_paddle_is_imported(tmp_path, command):
    (tmp_path / "text.jpg").write_text("not a picture")
    flags = ["--image_files", PICTURE, "text.jpg", *(["--question", "?"] if command == "infer" else [])]
    assert_one_line(start(tmp_path, *without("paddle"), command, *flags), "text.jpg: not a picture")
