"""The server as a program: what docs/server.md says is so, SIGTERM ends it cleanly, mistakes are one line."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import openai
import pytest

from paddlemix_vl2.cli import serve as command
from paddlemix_vl2.cli.arguments import OneLineParser

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
MODEL = "deepseek-vl2-demo"


@pytest.fixture
def serve():
    """Start the program with flags; the process and the address that it has printed."""
    processes = []

    def start(*flags):
        command = [sys.executable, "-W", "ignore", "examples/serve.py", "--port", "0", *flags]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        processes.append(process)
        name, url = process.stdout.readline().split(" at ")
        assert name == MODEL
        return process, url.strip()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_documented_calls_and_a_clean_end(serve, monkeypatch, capsys):
    """One server for all of it, since starting takes its time."""
    process, url = serve("--max_running", "2", "--stop_timeout", "60")
    run_snippet(url, monkeypatch)
    assert capsys.readouterr().out.strip()
    (body,) = re.findall(r"-d '(\{.*?\})'\n```", DOCS, re.DOTALL)
    reply = httpx.post(f"{url}/chat/completions", json={**json.loads(body), "model": MODEL}, timeout=60)
    assert reply.status_code == 200 and reply.json()["object"] == "chat.completion"
    check_documented_metrics(httpx.get(url.replace("/v1", "/metrics")).text)
    end_while_answering(process, url)


def run_snippet(url, monkeypatch):
    (snippet,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    for documented, here in (("http://127.0.0.1:8000/v1", url), ("deepseek-vl2-tiny", MODEL)):
        assert snippet.count(documented) == 1
        snippet = snippet.replace(documented, here)
    monkeypatch.chdir(ROOT)
    exec(compile(snippet, "docs/server.md", "exec"), {})


def check_documented_metrics(text):
    documented = set(re.findall(r"`(vl2_\w+)", DOCS))
    assert len(documented) == 8
    assert [name for name in documented if f"# HELP {name} " not in text] == []
    assert "process_resident_memory_bytes" in text


def end_while_answering(process, url):
    """SIGTERM while answers are under way: each is finished, nothing new is accepted, exit code 0."""
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
    begun, reasons = threading.Barrier(4), []

    def ask(seed):
        # As hot as can be, so that the answers are long.
        stream = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Describe it."}],
            stream=True,
            temperature=2,
            seed=seed,
            max_tokens=300,
        )
        chunks = iter(stream)
        next(chunks)
        begun.wait(60)
        reasons.extend(chunk.choices[0].finish_reason for chunk in chunks)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    begun.wait(60)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    ends = [reason for reason in reasons if reason]
    assert len(ends) == 3 and set(ends) <= {"stop", "length"}
    assert process.wait(60) == 0, process.stderr.read()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models")


def test_what_is_wrong_is_one_line(capsys, tmp_path):
    def error(*flags):
        capsys.readouterr()
        assert command.main(list(flags)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert error("--port", port) == f"error: 127.0.0.1:{port}: Address already in use"
    assert error("--port", "70000").startswith("error: port 70000: ")
    assert "not a whole number" in error("--max_running", "0")
    assert "--help lists the flags" in error("--nonsense")
    assert str(tmp_path / "none") in error("--port", "0", "--model_path", str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ([], MODEL),
        (["--model_path", "deepseek-ai/deepseek-vl2-tiny"], "deepseek-vl2-tiny"),
        (["--model_path", "/models/mine/"], "mine"),
        (["--served_model_name", "a"], "a"),
    ],
)
def test_the_name_of_the_model(flags, name):
    assert command.model_name(parse(flags)) == name


def parse(flags):
    parser = OneLineParser("")
    command.add_arguments(parser)
    return parser.parse(flags)


def test_documented_flags_and_defaults():
    defaults = vars(parse([]))
    table = re.findall(r"^\| (`--.*?`) \| (.*?) \|", DOCS, re.MULTILINE)
    assert len(table) == 11
    for names, values in table:
        flags = re.findall(r"--(\w+)", names)
        assert set(flags) <= set(defaults)
        for flag, value in zip(flags, values.split(", "), strict=True):
            assert defaults[flag] is None or str(defaults[flag]) == value, flag
    for line in re.findall(r"^python examples/serve.py .*$", DOCS, re.MULTILINE):
        parse(shlex.split(line)[2:])
