"""The command of the page: what it serves, where, and how mistakes end."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

from paddlemix_vl2.cli import web
from paddlemix_vl2.cli.arguments import DEMO_CHECKPOINT, OneLineParser

ROOT = Path(__file__).resolve().parents[2]


class RecordedPage:
    """In place of the page: keeps what it is made of and where it is served."""

    calls: list

    def __init__(self, chat, model_name, examples, is_demo):
        type(self).calls = [(chat, model_name, examples, is_demo)]

    def launch(self, *arguments):
        self.calls.append(arguments)
        return "http://127.0.0.1:7860/"

    def wait(self):
        self.calls.append("waiting")


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.setattr("paddlemix_vl2.web.page.Page", RecordedPage)
    monkeypatch.setattr(web, "load_chat", lambda arguments, folder: (arguments.model_path, folder.is_dir()))
    return web


def test_without_flags_the_small_model_is_served_to_this_machine_only(demo, capsys):
    assert demo.main([]) == 0
    (chat, name, examples, is_demo), launched, waited = RecordedPage.calls
    assert chat == (str(DEMO_CHECKPOINT), True)
    assert (name, is_demo, examples) == ("demo", True, ROOT / "examples" / "images" / "drawn")
    assert launched == ("127.0.0.1", None, False) and waited == "waiting"
    assert capsys.readouterr().err == "the page is at http://127.0.0.1:7860/\n"


def test_flags_choose_model_and_address(demo):
    assert demo.main(["--model_path", "tiny", "--host", "0.0.0.0", "--port", "8080", "--share"]) == 0
    assert RecordedPage.calls[0][1::2] == ("tiny", False)
    assert RecordedPage.calls[1] == ("0.0.0.0", 8080, True)


def test_a_model_is_loaded_with_its_flags(tmp_path):
    parser = OneLineParser("")
    web.add_arguments(parser)
    chat = web.load_chat(parser.parse(["--chunk_size", "9"]), tmp_path)
    assert chat.limit == 2048


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "0"], "--port: '0' is not a whole number"),
        (["--model_path", "./nowhere"], "nowhere"),
        (["--adapter_path", "nowhere"], "nowhere"),
        (["--device", "abacus"], "device 'abacus' is unknown"),
        (["--hots", "x"], "unrecognized arguments: --hots x"),
    ],
)
def test_mistakes_are_one_line(capsys, flags, message):
    assert web.main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_a_port_that_is_taken_is_one_line(demo, monkeypatch, capsys):
    def refuse(*arguments):
        raise OSError("Cannot find empty port in range: 7860-7860.")

    monkeypatch.setattr(RecordedPage, "launch", refuse)
    assert demo.main(["--port", "7860"]) == 2
    assert capsys.readouterr().err == "error: Cannot find empty port in range: 7860-7860.\n"


def test_a_missing_gradio_is_explained(monkeypatch, capsys):

    def fail(arguments: argparse.Namespace):
        raise ModuleNotFoundError("No module named 'gradio'", name="gradio")

    monkeypatch.setattr(web, "run", fail)
    assert web.main([]) == 2
    assert (
        'gradio is not installed; in the repository run: pip install -e ".[cpu,web]"'
        in capsys.readouterr().err
    )


def test_help_needs_neither_gradio_nor_paddle():
    command = [sys.executable, "-X", "importtime", str(ROOT / "examples" / "web_demo.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and "--share" in result.stdout
    assert re.findall(r"\b(gradio|paddle|numpy)$", result.stderr, re.MULTILINE) == []
