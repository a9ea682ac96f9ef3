"""The benchmark runs on a small checkpoint and reports every step; its speeds are not checked."""

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
        assert step["fastest"] <= step["seconds"] and step["times_limit"] > 0
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
    for flags, message in [
        (["--tiles", "0"], "--tiles"),
        (["--no_such_flag"], "--no_such_flag"),
        (["--peer_python", "nowhere/python"], "--against, which is not given"),
        (["--against", "transformers", "--peer_python", "nowhere/python"], "--peer_python nowhere/python"),
    ]:
        assert benchmark.main([str(golden / "mla_greedy"), *flags]) == 2
        said = capsys.readouterr().err
        assert message in said and said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.parametrize("name", ["benchmark", "plot_speed"])
def test_the_flag_of_an_earlier_release_counts_and_is_named(name, load_tool, golden):
    """``--engine`` is ``--backend`` now, with other values."""
    tool = load_tool(name)
    parse = tool.parse if name == "benchmark" else tool.parse_arguments
    flags = [str(golden / "mla_greedy"), *(["--output", "x.png"] if name == "plot_speed" else [])]
    assert parse([*flags, "--backend", "paddle"]).backend == "paddle" and parse(flags).backend == "auto"
    for old, new in (("native", "cpu_kernels"), ("eager", "paddle"), ("auto", "auto")):
        with pytest.warns(FutureWarning, match=f"'--engine {old}' is now '--backend {new}'") as said:
            assert parse([*flags, "--engine", old]).backend == new
        assert len(said) == 1
    with pytest.raises(ValueError, match="--engine: invalid choice: 'gpu'"):
        parse([*flags, "--engine", "gpu"])


PEER = """
import json, sys
print(json.dumps({"steps": ["vision", "decode"]}), flush=True)
for line in sys.stdin:
    print(json.dumps({"seconds": 7.0 if line.strip() == "vision" else 9.0}), flush=True)
"""


def test_a_peer_is_asked_for_the_steps_that_it_has(benchmark, golden, monkeypatch, capsys, tmp_path):
    """A program that answers as tools/transformers_peer.py does, so that no torch is needed."""
    (tmp_path / "peer.py").write_text(PEER)
    monkeypatch.setattr(benchmark, "PEER_PROGRAM", tmp_path / "peer.py")
    monkeypatch.setattr(benchmark, "MATMUL_SIZE", 64)
    monkeypatch.setattr(benchmark, "READ_BYTES", 1_000_000)
    flags = [*FLAGS, "--against", "transformers"]
    assert benchmark.main([str(golden / "mla_greedy"), *flags]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines["vision"].endswith("; transformers in bfloat16 7.000 s")
    assert (
        lines["decode"].endswith("; transformers in bfloat16 9.000 s")
        and "transformers" not in lines["prefill"]
    )


def test_a_peer_that_does_not_start(benchmark, golden, monkeypatch, capsys, tmp_path):
    (tmp_path / "peer.py").write_text("import a_library_that_is_not_there")
    monkeypatch.setattr(benchmark, "PEER_PROGRAM", tmp_path / "peer.py")
    assert benchmark.main([str(golden / "mla_greedy"), *FLAGS, "--against", "transformers"]) == 2
    error = capsys.readouterr().err
    assert "transformers in bfloat16: ModuleNotFoundError" in error and error.count("\n") == 1
