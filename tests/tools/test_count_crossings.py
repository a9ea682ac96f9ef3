"""The tool counts calls between files; the ways of the demo model stay short."""

import re

import pytest


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("count_crossings")


def test_calls_between_files_are_counted_by_hand(tool, tmp_path, monkeypatch):
    """``a`` calls ``b`` twice, once by way of a library; ``b`` calls itself, which is no crossing."""
    sources = {
        "a.py": "def start():\n    b_one()\n    list(map(b_two, [1]))\n",
        "b.py": "def b_one():\n    b_two(0)\ndef b_two(x):\n    return x\n",
    }
    names: dict = {}
    for file, text in sources.items():
        exec(compile(text, str(tmp_path / file), "exec"), names)
    monkeypatch.setattr(tool, "PACKAGE", f"{tmp_path}/")
    edges = tool.count(names["start"])
    assert edges == {("outside", "a.py"): 1, ("a.py", "b.py"): 2}
    assert tool.rooms(edges) == {"a.py", "b.py"}


@pytest.fixture(scope="module")
def counted(tool):
    model, processor = tool.load_demo()
    return {name: sum(tool.measure(name, model, processor).values()) for name in tool.TRIPS}


def test_the_way_to_logits_and_back_is_short(counted):
    """Half of what version 0.1.0 took: 16 + 149 crossings to the logits, 180 from a micro-batch to its
    gradients."""
    assert 0 < counted["processing"] + counted["inference"] <= 165 // 2
    assert 0 < counted["training"] <= 180 // 2


def test_the_edges_add_up(tool, capsys):
    assert tool.main(["--trip", "processing", "--edges"]) == 0
    first, *rows = capsys.readouterr().out.strip().splitlines()
    assert re.fullmatch(r"processing: \d+ rooms, (\d+) crossings", first)
    assert sum(int(row.split()[0]) for row in rows) == int(first.split()[3])
    assert tool.main(["--trip", "upwards"]) == 2
