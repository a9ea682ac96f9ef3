"""The benchmark runs on a small checkpoint and reports every step; its speeds are nobody's business here."""

import json

import pytest


@pytest.fixture(scope="module")
def benchmark(load_tool):
    return load_tool("benchmark")


FLAGS = ["--tiles", "1", "--prompt_tokens", "20", "--new_tokens", "3", "--repeats", "1", "--device", "cpu"]


def test_every_step_is_reported(benchmark, golden, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "MATMUL_SIZE", 64)
    monkeypatch.setattr(benchmark, "READ_BYTES", 1_000_000)
    assert benchmark.main([str(golden / "mla_greedy"), *FLAGS, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["steps"]) == {"vision", "prefill", "decode"}
    for step in report["steps"].values():
        assert step["fastest"] <= step["seconds"] and step["times_floor"] > 0
    assert 0 < report["load_peak_bytes"] <= report["peak_bytes"]
    assert benchmark.main([str(golden / "mha_greedy"), *FLAGS]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{name} " in text for name in ("load", "vision", "prefill", "decode", "peak"))


def test_mistakes_are_one_line(benchmark, golden, capsys):
    assert benchmark.main([str(golden / "nowhere"), *FLAGS]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert benchmark.main([str(golden / "mla_greedy"), *FLAGS, "--prompt_tokens", "5000"]) == 2
    assert "5000 tokens" in capsys.readouterr().err
    assert benchmark.main([str(golden / "mla_greedy"), *FLAGS, "--dtype", "bfloat16"]) == 2
    assert "cannot multiply bfloat16" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmark.main([str(golden / "mla_greedy"), "--tiles", "0"])
    assert "--tiles" in capsys.readouterr().err
