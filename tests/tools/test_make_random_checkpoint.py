"""The tool writes every tensor of a geometry, all different, of sane sizes, the same for the same seed."""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models

from paddlemix_vl2.checkpoints.files import TensorSpec
from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.models.meta import model_specs


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("make_random_checkpoint")


@pytest.fixture
def small_config(golden) -> str:
    """A geometry of 205,000 parameters with every kind of tensor."""
    return str(golden / "mla_noaux_tc" / "config.json")


@pytest.fixture
def written(tool, small_config, tmp_path):
    """arguments -> the folder and its tensors."""

    def write(*arguments: str, name: str = "out") -> tuple[Path, dict[str, np.ndarray]]:
        folder = tmp_path / name
        assert tool.main([small_config, str(folder), *arguments]) == 0
        weights = {}
        for file in sorted(folder.glob("*.safetensors")):
            weights.update(load_file(file))
        return folder, weights

    return write


def tokenizer_file(folder: Path, begin_id: int) -> Path:
    """A tokenizer.json whose begin-of-sentence token has this id."""
    vocabulary = {f"token{index}": index for index in range(begin_id)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="token0"))
    backend.add_special_tokens(["<｜begin▁of▁sentence｜>"])
    file = folder / f"tokenizer{begin_id}.json"
    backend.save(str(file))
    return file


def test_every_tensor_and_file(written, golden, capsys):
    folder, weights = written("--dtype", "float32")
    stored = load_file(golden / "mla_noaux_tc" / "model.safetensors")
    assert {name: array.shape for name, array in weights.items()} == {
        name: array.shape for name, array in stored.items()
    }
    assert {array.dtype for array in weights.values()} == {np.dtype("float32")}
    recorded = json.loads((golden / "mla_noaux_tc" / "processor_config.json").read_text())
    assert json.loads((folder / "processor_config.json").read_text()) == recorded
    printed = capsys.readouterr().out
    assert f"{len(weights)} tensors, {sum(a.size for a in weights.values()):,} random parameters" in printed
    assert "Answers of a model with these weights are random." in printed


@pytest.mark.parametrize(("dtype", "itemsize"), [("bfloat16", 2), ("float16", 2)])
def test_dtypes(written, dtype, itemsize):
    folder, weights = written("--dtype", dtype)
    sizes = {name.rpartition(".")[2]: array.dtype.itemsize for name, array in weights.items()}
    assert sizes.pop("e_score_correction_bias") == 4
    assert set(sizes.values()) == {itemsize}
    assert json.loads((folder / "config.json").read_text())["language_config"]["torch_dtype"] == dtype


def test_no_two_tensors_are_equal(written):
    _, weights = written("--dtype", "float32")
    assert len({array.tobytes() for array in weights.values()}) == len(weights)


def test_seeds(written):
    first, again, other = (written("--seed", seed, name=f"out{i}")[1] for i, seed in enumerate("001"))
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    assert all(first[name].tobytes() != other[name].tobytes() for name in first)


def test_sizes_of_weights(written):
    _, weights = written("--dtype", "float32")
    for name, array in weights.items():
        if array.size < 1000 or name == "vision.pos_embed":
            continue
        inputs = 1 if "embed_tokens" in name else math.prod(array.shape[1:])
        # The deviation of n values is known to 1 / sqrt(2 n), 2.3 % for the smallest here; four times that.
        assert array.std() == pytest.approx(inputs**-0.5, rel=0.09), name
        assert abs(array.mean()) < 4 * array.std() / array.size**0.5, name
    assert weights["language.model.norm.weight"].mean() == pytest.approx(1, abs=0.02)
    assert abs(weights["vision.norm.bias"].mean()) < 0.02
    assert weights["vision.pos_embed"].std() == pytest.approx(0.02, rel=0.05)


def test_blocks_of_a_tensor_differ(tool, monkeypatch):
    """Pieces of a tensor do not repeat each other: 2,525 samples of 65,536 values meet few of them twice."""
    monkeypatch.setattr(tool, "BLOCK_VALUES", 1000)
    spec = TensorSpec("language.lm_head.weight", (25, 101), "float32")
    pieces = list(tool.random_pieces(spec, seed=3))
    assert [piece.size for piece in pieces] == [1000, 1000, 525]
    assert len(np.unique(np.concatenate(pieces))) > 2400


def test_shallower_and_sharded(written):
    folder, weights = written("--layers", "2", "--vision-layers", "1", "--shard-size", "100KB")
    config = DeepseekVLV2Config.from_json(folder)
    assert (config.language_config.num_hidden_layers, config.vision_config.layers) == (2, 1)
    assert weights.keys() == model_specs(config).keys()
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) >= 3
    assert all(file.stat().st_size < 120_000 for file in folder.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("name", "count", "parameters"),
    [("tiny", 2_582, 3_370_501_440), ("small", 5_639, 16_148_349_504), ("base", 6_973, 27_480_134_248)],
)
def test_published_geometries(tool, name, count, parameters, tmp_path, monkeypatch):
    """Nothing is written here: what would be is taken down."""
    planned = {}
    monkeypatch.setattr(
        tool,
        "write_checkpoint",
        lambda folder, specs, **options: planned.update(specs=specs, **options) or [],
    )
    assert tool.main([name, str(tmp_path)]) == 0
    specs = planned["specs"]
    assert (len(specs), sum(math.prod(spec.shape) for spec in specs)) == (count, parameters)
    assert planned["max_shard_bytes"] == 5e9
    assert planned["texts"].keys() >= {"config.json", "processor_config.json"}


def test_given_tokenizer(written, tmp_path, golden):
    """The golden configs have the first special token at id 0."""
    file = tokenizer_file(tmp_path, begin_id=0)
    folder, _ = written("--tokenizer", str(file))
    assert (folder / "tokenizer.json").read_bytes() == file.read_bytes()


def test_tokenizer_of_the_installed_package(tool, tmp_path, monkeypatch):
    """Its file is taken if its first special token has the model's id."""
    (tmp_path / "package").mkdir()
    tokenizer_file(tmp_path, begin_id=5).rename(tmp_path / "package" / "tokenizer.json")
    package = argparse.Namespace(origin=str(tmp_path / "package" / "__init__.py"))
    monkeypatch.setattr(tool.importlib.util, "find_spec", lambda name: package)
    assert tool.find_tokenizer(None, bos_token_id=5) == tmp_path / "package" / "tokenizer.json"
    assert tool.find_tokenizer(None, bos_token_id=0) is None
    monkeypatch.setattr(tool.importlib.util, "find_spec", lambda name: None)
    assert tool.find_tokenizer(None, bos_token_id=5) is None


def test_without_tokenizer_it_says_so(written, tool, monkeypatch, capsys):
    monkeypatch.setattr(tool, "find_tokenizer", lambda given, begin: None)
    folder, _ = written()
    assert not (folder / "tokenizer.json").exists()
    assert "no tokenizer.json was written" in capsys.readouterr().out


def test_errors_are_one_line(tool, small_config, tmp_path, capsys):
    other = tokenizer_file(tmp_path, begin_id=7)
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    for arguments, message in [
        (["no.json", "out"], "no.json: no such file"),
        ([small_config, "out", "--tokenizer", "none.json"], "none.json: no such file"),
        ([small_config, "out", "--tokenizer", str(other)], "has id 7, but bos_token_id of the config is 0"),
        ([small_config, "out", "--tokenizer", str(broken)], "not a tokenizer.json"),
    ]:
        assert tool.main([arguments[0], str(tmp_path / "out"), *arguments[2:]]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5e9), ("500MB", 5e8), ("1.5kb", 1500), ("2000", 2000), ("1e3", 1000)]
)
def test_byte_size(tool, text, size):
    assert tool.byte_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0", "-5MB", "5TB", "nan", "many"])
def test_bad_byte_size(tool, text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size such as 5GB or 500MB"):
        tool.byte_size(text)


@pytest.mark.parametrize("option", ["--layers", "--vision-layers"])
@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_bad_depth(tool, option, value, capsys):
    assert tool.main(["tiny", "out", f"{option}={value}"]) == 2
    assert "is not a number from 1 up" in capsys.readouterr().err
