"""Merging an adapter into its base, from the command line; the adapter in the other examples."""

import json
from pathlib import Path

import paddle
import pytest
from safetensors import safe_open

from paddlemix_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.cli import merge as command
from paddlemix_vl2.models import adapters
from paddlemix_vl2.training import lora, parts
from paddlemix_vl2.training.recipe import VL2TrainingArguments

pytestmark = pytest.mark.slow

PICTURE = str(Path(__file__).resolve().parents[2] / "examples" / "images" / "red_circle.png")


@pytest.fixture(scope="module")
def adapter(random_checkpoint, tmp_path_factory) -> Path:
    """An adapter of the random checkpoint in attention and experts, strong enough to change answers."""
    arguments = VL2TrainingArguments(
        model_name_or_path=str(random_checkpoint),
        max_steps=1,
        train_dataset=[{"format": "synthetic", "task": "scene"}],
        vision={"mode": "frozen"},
        projector={"mode": "full"},
        language={"mode": "lora"},
    )
    model = DeepseekVLV2ForCausalLM.from_pretrained(random_checkpoint, dtype="float32")
    parts.set_trainable(model, arguments)
    lora.add_recipe_adapters(model, arguments)
    paddle.seed(1)
    with paddle.no_grad():
        for _, parameter in parts.trained(model):
            parameter.set_value(parameter + 0.05 * paddle.randn(parameter.shape))
    folder = tmp_path_factory.mktemp("adapter")
    adapters.write_adapter(model, folder)
    return folder


@pytest.fixture
def merge(random_checkpoint, adapter, capsys):
    """Run the command; its exit code, standard output and standard error."""

    def run(output, *flags, base=random_checkpoint, adapter_path=adapter):
        capsys.readouterr()
        paths = ["--model_path", base, "--adapter_path", adapter_path, "--output", output]
        code = command.main([str(flag) for flag in [*paths, *flags]])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def tensors_of(folder) -> dict[str, tuple]:
    """Name -> dtype and shape."""
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no dictionary
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


def answer(example, capsys, *flags) -> str:
    capsys.readouterr()
    common = ["--image_file", PICTURE, "--question", "What is this?", "--max_new_tokens", "6"]
    assert example("single_image_infer").main([*map(str, flags), *common]) == 0
    return capsys.readouterr().out


def test_the_merged_checkpoint_answers_as_base_and_adapter(
    merge, example, random_checkpoint, adapter, tmp_path, capsys
):
    output = tmp_path / "new" / "merged"
    code, out, _ = merge(output, "--dtype", "float32")
    assert code == 0 and out == f"The merged model is in {output}\n"
    assert {path.name for path in output.parent.iterdir()} == {"merged"}
    expected = {name: ("F32", shape) for name, (_, shape) in tensors_of(random_checkpoint).items()}
    assert tensors_of(output) == expected
    assert {"config.json", "processor_config.json", "tokenizer.json"} <= {p.name for p in output.iterdir()}
    together = answer(example, capsys, "--model_path", random_checkpoint, "--adapter_path", adapter)
    assert answer(example, capsys, "--model_path", output) == together
    assert answer(example, capsys, "--model_path", random_checkpoint) != together


def test_the_dtype_is_that_of_the_base_and_an_older_checkpoint_is_replaced(
    merge, random_checkpoint, tmp_path
):
    output = tmp_path / "merged"
    output.mkdir()
    assert merge(output)[0] == 0
    assert tensors_of(output) == tensors_of(random_checkpoint)
    assert merge(output, "--dtype", "float32")[0] == 0
    assert {dtype for dtype, _ in tensors_of(output).values()} == {"F32"}
    assert json.loads((output / "config.json").read_text())["torch_dtype"] == "float32"


def test_mistakes_are_said_in_one_line(merge, random_checkpoint, adapter, tmp_path):
    full, other = tmp_path / "full", tmp_path / "other"
    for folder in (full, other):
        folder.mkdir()
    (full / "notes.txt").write_text("mine")
    for file in adapter.iterdir():
        text = file.read_bytes()
        if file.name == "lora_config.json":
            text = json.dumps({**json.loads(text), "r": 4}).encode()
        (other / file.name).write_bytes(text)
    none = tmp_path / "none"
    cases = [
        (merge(full), "holds notes.txt, so it is not just a checkpoint"),
        (merge(full / "notes.txt"), "is a file; name a folder"),
        (merge(random_checkpoint), "would replace what is read"),
        (merge(adapter), "would replace what is read"),
        (merge(none, base=tmp_path / "no-base"), "no-base: no such folder"),
        (merge(none, adapter_path=tmp_path / "no-adapter"), "no-adapter: no such folder"),
        (merge(none, adapter_path=full), "no lora_config.json in this folder"),
        (merge(none, adapter_path=other), "an adapter of another model than this"),
        (merge(none, "--dtype", "int8"), "invalid choice"),
    ]
    for (code, out, err), message in cases:
        last = err.splitlines()[-1]
        assert code == 2 and out == "" and last.startswith("error: ") and message in last
    assert not none.exists() and (full / "notes.txt").read_text() == "mine"
    assert [path for path in tmp_path.iterdir() if path not in (full, other)] == []


def test_examples_complain_of_an_adapter_before_they_load_the_model(example, random_checkpoint, capsys):
    flags = ["--model_path", str(random_checkpoint), "--adapter_path", "/no/such"]
    question = ["--image_file", PICTURE, "--question", "?"]
    for name, more in (("single_image_infer", question), ("evaluate_demo", [])):
        capsys.readouterr()
        assert example(name).main([*flags, *more]) == 2
        captured = capsys.readouterr()
        assert captured.err.splitlines()[-1].startswith("error: /no/such: no such folder")
        assert "loading" not in captured.err
