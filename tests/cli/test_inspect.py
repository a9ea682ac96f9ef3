"""The command counts what is there; its exit code shows whether a config expects it so."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from paddlemix_vl2.cli import inspect as command

WIDE = "projector.layers.0.weight"


@pytest.fixture
def inspect(capsys):
    """arguments -> exit code, standard output, standard error."""

    def run(*arguments) -> tuple[int, str, str]:
        code = command.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def changed(golden, tmp_path):
    """name of a case, change of its weights -> a folder with them and its config.json."""

    def write(case: str, change) -> Path:
        weights = load_file(golden / case / "model.safetensors")
        change(weights)
        save_file(
            {name: np.ascontiguousarray(array) for name, array in weights.items()},
            tmp_path / "model.safetensors",
        )
        (tmp_path / "config.json").write_text((golden / case / "config.json").read_text())
        return tmp_path

    return write


def test_as_expected(inspect, golden):
    code, out, _ = inspect(golden / "mla_noaux_tc")
    weights = load_file(golden / "mla_noaux_tc" / "model.safetensors")
    assert code == 0
    lines = out.splitlines()
    total = f"133 tensors, {sum(array.size for array in weights.values()):,} parameters, 0.001 GB"
    assert lines[0] == f"{golden / 'mla_noaux_tc'}: {total} in 1 file(s)"
    assert "dtypes: float32 (133 tensors)" in lines
    assert f"  model.safetensors: {total}" in lines
    assert lines[-2] == "layout: published, Linear weights are [out, in]"
    assert lines[-1] == f"compared with {golden / 'mla_noaux_tc' / 'config.json'}: as expected"
    assert "8 experts of width 20 (3 per token by noaux_tc, 2 shared)" in out
    assert "vision: 2 layers of width 24 with 2 heads, 196 tokens per tile of 384 x 384" in out


def test_parts_sum_to_the_whole(inspect, golden):
    _, out, _ = inspect(golden / "mha_greedy")
    counts = [
        int(line.split()[1]) for line in out.splitlines() if line.startswith("  ") and "model." not in line
    ]
    assert len(counts) == 4 and sum(counts) == 128


def test_against_another_config(inspect, golden):
    code, out, _ = inspect(golden / "mla_greedy", "--against", golden / "mla_noaux_tc" / "config.json")
    assert code == 1
    assert "2 missing" in out and "language.model.layers.1.mlp.gate.e_score_correction_bias" in out


def test_differences_are_shown(inspect, changed):
    def change(weights):
        del weights["image_newline"]
        weights["surplus"] = np.zeros((2, 2), np.float32)

    code, out, _ = inspect(changed("mha_greedy", change))
    assert code == 1
    assert "1 missing: image_newline; 1 unexpected: surplus" in out


def test_contradictory_layout(inspect, changed):
    code, out, _ = inspect(changed("mha_greedy", lambda weights: weights.update({WIDE: weights[WIDE].T})))
    assert code == 1
    assert "layout: contradictory" in out and f"1 are [in, out]: {WIDE}" in out


def test_paddle_layout(inspect, changed):
    def change(weights):
        for name, array in weights.items():
            if array.ndim == 2 and not name.endswith(("embed_tokens.weight", "mlp.gate.weight")):
                weights[name] = array.T

    code, out, _ = inspect(changed("mha_greedy", change))
    assert code == 0
    assert "layout: Paddle, Linear weights are [in, out]" in out


def test_unreadable(inspect, golden, tmp_path):
    content = (golden / "mha_greedy" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:1000])
    for folder, message in [(tmp_path, "truncated"), (tmp_path / "none", "no such folder")]:
        code, out, error = inspect(folder)
        assert (code, out) == (2, "")
        assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_without_config(inspect, golden, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((golden / "mha_greedy" / "model.safetensors").read_bytes())
    code, _, error = inspect(tmp_path)
    assert code == 2 and "config.json: no such file" in error
