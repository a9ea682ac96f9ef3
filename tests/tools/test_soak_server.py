"""A short soak: the report's lines, and an exit code that shows whether anything went wrong."""

import re
import time

import openai
import pytest

MINUTE = r"minute 1: \d+ requests, 0 errors so far, \d+ tokens/s, \d+ MB\n"


@pytest.fixture
def tool(load_tool):
    return load_tool("soak_server")


@pytest.mark.slow
def test_some_seconds(tool, capsys):
    code = tool.main(["--minutes", "0.05", "--clients", "3", "--questions", "4"])
    out = capsys.readouterr().out
    assert code == 0, out
    assert re.match(MINUTE, out)
    found = re.search(
        r"(\d+) requests, (\d+) of them left early, 0 errors, 0 answers differ; .* with 0$", out
    )
    assert int(found[1]) >= 3 and int(found[2]) >= 1


def test_a_wrong_answer_is_told(tool, monkeypatch):
    monkeypatch.setattr(tool, "run", lambda arguments, tally: tally.wrong.append("a instead of b"))
    assert tool.main([]) == 1
    monkeypatch.setattr(tool, "run", lambda arguments, tally: None)
    assert tool.main([]) == 1, "no request at all is no success"


def test_a_client_that_asks(tool, monkeypatch):
    """Its answers are compared, and an error is not the end of it."""
    tally = tool.Tally()
    replies = iter([("right", 3), openai.OpenAIError("gone"), ("wrong", 2)])

    def read_answer(client, message, leaves):
        reply = next(replies, None)
        if reply is None:
            time.sleep(0.3)
            return "right", 0
        if isinstance(reply, Exception):
            raise reply
        return reply

    monkeypatch.setattr(tool, "read_answer", read_answer)
    tool.ask_until(time.monotonic() + 0.2, "http://127.0.0.1:9/v1", [({}, "right")], 1, tally)
    assert (len(tally.errors), len(tally.wrong), tally.tokens) == (1, 1, 5)


def test_what_is_wrong_is_one_line(tool, capsys):
    assert tool.main(["--minutes", "many"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
