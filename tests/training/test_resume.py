"""Going on exactly where a run stopped, and what a kill leaves behind."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlemix_vl2 import files
from paddlemix_vl2.training import checkpoint, run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "packing": True,
    "bias_update_speed": 0.01,
    "max_steps": 4,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 1,
}


def tensors_of(folder) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(Path(folder) / "model.safetensors")


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert np.array_equal(value, other[name]), name


def test_resuming_is_exact(make_recipe, tmp_path):
    """Four steps at once, and two, a new model and two more: the same bits, router bias included."""
    whole = run.train(make_recipe(output_dir=str(tmp_path / "whole"), save_steps=2, **SETTINGS))
    half = tmp_path / "half"
    half.mkdir()
    (whole / "checkpoint-2").rename(half / "checkpoint-2")
    resumed = run.train(
        make_recipe(output_dir=str(half), save_steps=2, resume_from_checkpoint="auto", **SETTINGS)
    )
    assert_same(tensors_of(whole), tensors_of(resumed))
    biases = [v for name, v in tensors_of(whole).items() if name.endswith("e_score_correction_bias")]
    assert len(biases) == 2 and all(np.abs(bias).max() > 0 for bias in biases)
    states = [json.loads((f / "checkpoint-4" / "run_state.json").read_text()) for f in (whole, resumed)]
    assert states[0] == states[1]


def test_broken_samples_are_counted_on(make_recipe, tmp_path):
    """Rows so short that some samples are refused before the stop, and some behind it."""
    settings = {**SETTINGS, "max_seq_length": 150, "save_steps": 2}
    whole = run.train(make_recipe(output_dir=str(tmp_path / "whole"), **settings))
    half = tmp_path / "half"
    half.mkdir()
    (whole / "checkpoint-2").rename(half / "checkpoint-2")
    run.train(make_recipe(output_dir=str(half), resume_from_checkpoint="auto", **settings))
    folders = (half / "checkpoint-2", half / "checkpoint-4", whole / "checkpoint-4")
    counts = [checkpoint.read_run_state(folder)["broken_samples"] for folder in folders]
    assert 0 < counts[0] < counts[1] == counts[2]


def test_auto_begins_anew_where_there_is_nothing(make_recipe, tmp_path):
    first = run.train(make_recipe(output_dir=str(tmp_path / "a"), resume_from_checkpoint="auto"))
    second = run.train(make_recipe(output_dir=str(tmp_path / "b")))
    assert_same(tensors_of(first), tensors_of(second))


@pytest.mark.parametrize("stops_in", ["write_optimizer", "write_run_state", "finish_folder"])
def test_a_kill_while_saving_leaves_the_last_checkpoint(stops_in, make_recipe, tmp_path, monkeypatch):
    settings = {**SETTINGS, "output_dir": str(tmp_path / "run"), "save_steps": 2}
    module = files if stops_in == "finish_folder" else checkpoint
    original, calls = getattr(module, stops_in), []

    def stop_the_second_time(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(module, stops_in, stop_the_second_time)
    with pytest.raises(KeyboardInterrupt):
        run.train(make_recipe(**settings))
    monkeypatch.undo()
    assert checkpoint.last_checkpoint(settings["output_dir"]).name == "checkpoint-2"
    resumed = run.train(make_recipe(resume_from_checkpoint="auto", **settings))
    whole = run.train(make_recipe(**{**settings, "output_dir": str(tmp_path / "whole")}))
    assert_same(tensors_of(whole), tensors_of(resumed))


def start(recipe: Path) -> subprocess.Popen:
    """All runs of a comparison as processes of their own: another number of threads sums in another order."""
    command = [sys.executable, "-W", "ignore", "examples/train.py", str(recipe)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_a_real_kill(make_recipe_file, tmp_path):
    """A process that is gone without a word, at whatever it was doing after its second checkpoint."""
    settings = {**SETTINGS, "output_dir": str(tmp_path / "run"), "save_steps": 1, "max_steps": 50}
    settings["lr_scheduler_type"] = "constant"  # a cosine would depend on the number of steps
    process = start(make_recipe_file("killed.yaml", **settings))
    deadline = time.monotonic() + 180
    while not (tmp_path / "run" / "checkpoint-2").is_dir() and time.monotonic() < deadline:
        assert process.poll() is None, "ended by itself"
        time.sleep(0.05)
    process.kill()
    process.wait()
    step = checkpoint.read_step(checkpoint.last_checkpoint(settings["output_dir"]))
    assert 2 <= step < 49
    settings["max_steps"] = step + 1
    resumed = make_recipe_file("resumed.yaml", resume_from_checkpoint="auto", **settings)
    whole = make_recipe_file("whole.yaml", **{**settings, "output_dir": str(tmp_path / "whole")})
    assert [start(recipe).wait() for recipe in (resumed, whole)] == [0, 0]
    assert_same(tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "run"))


def test_every_process_has_its_own_generators(tmp_path):
    states, draws = [], []
    for seed in (1, 2):
        paddle.seed(seed)
        np.random.seed(seed)
        states.append(checkpoint.random_state())
        draws.append([float(paddle.rand([1])), np.random.rand()])
    checkpoint.write_random_states(tmp_path, states)
    for rank in (0, 1):
        checkpoint.read_random_state(tmp_path, rank)
        assert [float(paddle.rand([1])), np.random.rand()] == draws[rank]
    paddle.seed(7)
    expected = float(paddle.rand([1]))
    paddle.seed(7)
    checkpoint.read_random_state(tmp_path, 2)  # a process that the interrupted run had not
    assert float(paddle.rand([1])) == expected


def test_old_checkpoints_go(make_recipe):
    folder = run.train(make_recipe(max_steps=4, save_steps=1, save_total_limit=2))
    assert [f.name for f in checkpoint.list_checkpoints(folder)] == ["checkpoint-3", "checkpoint-4"]


@pytest.fixture
def interrupted(make_recipe, tmp_path):
    """The settings of a run with a checkpoint, to resume with one of them changed."""
    settings = {"output_dir": str(tmp_path / "run"), "save_steps": 1, "max_steps": 1}
    run.train(make_recipe(**settings))
    return {**settings, "resume_from_checkpoint": "auto", "max_steps": 2}


def test_another_geometry_is_refused(interrupted, make_recipe, small_folder, tmp_path):
    config = json.loads((small_folder / "config.json").read_text())
    config["language_config"]["moe_intermediate_size"] = 24
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"cannot resume: .*experts\.0\..* was \[16, 48.* is \[24, 48"):
        run.train(make_recipe(**{**interrupted, "model_config": str(tmp_path / "config.json")}))


def test_other_data_are_refused(interrupted, make_recipe):
    changes = {"train_dataset": [{"format": "synthetic", "task": "mixed"}]}
    with pytest.raises(ValueError, match="resumed with another data mixture: the number of sources"):
        run.train(make_recipe(**{**interrupted, **changes}))


def test_other_trained_parts_are_refused(interrupted, make_recipe):
    with pytest.raises(ValueError, match=r"cannot resume: .*trained.*frozen"):
        run.train(make_recipe(**{**interrupted, "language": {"mode": "frozen"}}))


def test_a_folder_that_is_not_there(make_recipe):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        run.train(make_recipe(resume_from_checkpoint="nowhere"))


def test_a_finished_run_is_not_trained_further(make_recipe):
    settings = {"max_steps": 2, "save_steps": 1}
    folder = run.train(make_recipe(**settings))
    trained = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    run.train(make_recipe(resume_from_checkpoint="auto", **settings))
    assert_same(trained, tensors_of(folder))
    assert checkpoint.last_checkpoint(folder).name == "checkpoint-2"


def test_a_new_run_does_not_mix_with_an_old_one(make_recipe):
    settings = {"max_steps": 1, "save_steps": 1}
    folder = run.train(make_recipe(**settings))
    with pytest.raises(
        ValueError, match="checkpoint-1 is of another run: resume_from_checkpoint=auto goes on"
    ):
        run.train(make_recipe(**settings))
    assert checkpoint.last_checkpoint(folder).name == "checkpoint-1"


def test_moments_of_16_bit_weights_survive_a_round_trip(tmp_path):
    """AdamW keeps them under the name of the float32 copy; the second model's layers have other names."""

    def make():
        layer = paddle.nn.Linear(4, 3)
        layer.to(dtype="bfloat16")
        return layer, paddle.optimizer.AdamW(parameters=layer.parameters(), multi_precision=True)

    (first, saved), (second, restored) = make(), make()
    saved._create_accumulators(
        paddle.base.framework.default_main_program().global_block(), first.parameters()
    )
    for number, tensor in enumerate(saved.state_dict()["master_weights"].values()):
        tensor.set_value(paddle.full(tensor.shape, number + 0.25))
    saved._accumulators["moment1"][first.weight.name + "_fp32_master_0"].set_value(paddle.full([4, 3], 7.0))
    checkpoint.write_optimizer(first, saved, tmp_path)
    checkpoint.read_optimizer(second, restored, tmp_path)
    restored._create_accumulators(
        paddle.base.framework.default_main_program().global_block(), second.parameters()
    )
    state = restored.state_dict()
    assert [float(tensor.mean()) for tensor in state["master_weights"].values()] == [0.25, 1.25]
    moment = state[f"{second.weight.name}_fp32_master_0_moment1_0"]
    assert float(moment.mean()) == 7.0
