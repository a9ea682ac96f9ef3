"""What a step moves, and by how much, whatever the way the batch is cut."""

import json
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlemix_vl2.training import run
from paddlemix_vl2.training.optimizer import make_schedule
from paddlemix_vl2.training.parts import part_of
from paddlemix_vl2.training.trainer import VL2Trainer


def parameters_of(model) -> dict[str, np.ndarray]:
    return {name: parameter.numpy() for name, parameter in model.named_parameters()}


@pytest.fixture
def train(monkeypatch):
    """Runs a recipe; returns the parameters before and after, and the gradients of every step."""

    def train_(arguments):
        seen = {}
        make_model, finish = run.make_model, VL2Trainer.finish_gradients

        def remember_model(*args):
            seen["model"] = make_model(*args)
            seen["before"] = parameters_of(seen["model"])
            seen["gradients"] = []
            return seen["model"]

        def remember_gradients(trainer):
            finish(trainer)
            named = seen["model"].named_parameters()
            seen["gradients"].append({n: p.grad.numpy() for n, p in named if p.grad is not None})

        monkeypatch.setattr(run, "make_model", remember_model)
        monkeypatch.setattr(VL2Trainer, "finish_gradients", remember_gradients)
        run.train(arguments)
        monkeypatch.undo()
        return seen["before"], parameters_of(seen["model"]), seen["gradients"]

    return train_


MODES = [
    ("full", "full", "frozen"),  # stage 1
    ("full", "full", "full"),  # stages 2 and 3
    ("frozen", "full", "frozen"),
    ("frozen", "frozen", "full"),
]


@pytest.mark.parametrize("modes", MODES, ids="-".join)
def test_a_stage_moves_what_it_names_and_nothing_else(modes, make_recipe, train):
    modes = dict(zip(("vision", "projector", "language"), modes, strict=True))
    before, after, _ = train(make_recipe(**{part: {"mode": mode} for part, mode in modes.items()}))
    for name, value in before.items():
        never = name.startswith("vision.attn_pool.") or name.endswith("e_score_correction_bias")
        moves = modes[part_of(name)] == "full" and not never
        assert np.array_equal(value, after[name]) != moves, name


def test_projector_and_vision_get_gradients_through_a_frozen_language_model(make_recipe, train):
    _, _, gradients = train(make_recipe(language={"mode": "frozen"}, max_steps=1))
    for name in ("vision.patch_embed.proj.weight", "projector.layers.0.weight", "image_newline"):
        assert np.abs(gradients[0][name]).max() > 0, name
    assert not any(name.startswith("language.") for name in gradients[0])


@pytest.mark.parametrize("packing", [False, True])
def test_accumulation_is_a_larger_batch(packing, make_recipe, train):
    """The same four rows, in one or in four micro-batches, the balance loss over samples included, of which
    packed rows hold unequal numbers."""
    settings = {"packing": packing, "aux_loss_alpha": 0.5, "max_steps": 2}
    *_, whole = train(make_recipe(per_device_train_batch_size=4, **settings))
    *_, parts = train(make_recipe(per_device_train_batch_size=1, gradient_accumulation_steps=4, **settings))
    for name, gradient in whole[0].items():
        # Sums of float32 in another order, of gradients of about this size.
        assert np.abs(gradient - parts[0][name]).max() <= 1e-5 * max(np.abs(gradient).max(), 1e-3), name


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_balancing_tiles_changes_no_gradient(packing, make_recipe, train):
    """Other rows in each micro-batch, the same in the step."""
    settings = {"packing": packing, "aux_loss_alpha": 0.5, "gradient_accumulation_steps": 4, "max_steps": 1}
    *_, plain = train(make_recipe(**settings))
    *_, balanced = train(make_recipe(balance_tiles=True, **settings))
    for name, gradient in plain[0].items():
        # Sums of float32 in another order, of gradients of about this size.
        assert np.abs(gradient - balanced[0][name]).max() <= 1e-5 * max(np.abs(gradient).max(), 1e-3), name


def test_accumulation_moves_the_bias_as_a_larger_batch(make_recipe, train):
    """Once for a step, by the tokens of all of its micro-batches. The second step's are those of weights that
    differ in their last bits."""
    biases = []
    for rows, accumulation in ((4, 1), (1, 4)):
        recipe = make_recipe(
            output_dir=f"{make_recipe().output_dir}{rows}",
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=accumulation,
            bias_update_speed=0.01,
            max_steps=1,
        )
        _, after, _ = train(recipe)
        biases.append({name: after[name] for name in after if name.endswith("e_score_correction_bias")})
    whole, parts = biases
    assert len(whole) == 2
    for name, bias in whole.items():
        assert np.abs(bias).max() == pytest.approx(0.01)
        assert np.array_equal(bias, parts[name]), name


def test_recompute_changes_no_gradient(make_recipe, train):
    *_, kept = train(make_recipe(max_steps=1))
    *_, recomputed = train(make_recipe(max_steps=1, recompute=True))
    assert kept[0].keys() == recomputed[0].keys()
    for name, gradient in kept[0].items():
        assert np.array_equal(gradient, recomputed[0][name]), name


LOSSES = ("expert_balance_alpha", "device_balance_alpha", "communication_balance_alpha")


@pytest.mark.parametrize("loss", LOSSES)
def test_balance_losses_over_the_batch_reach_the_router(loss, make_recipe, train):
    *_, without = train(make_recipe(max_steps=1))
    *_, with_losses = train(make_recipe(max_steps=1, expert_groups=2, **{loss: 0.5}))
    name = "language.model.layers.1.mlp.gate.weight"
    assert np.abs(with_losses[0][name] - without[0][name]).max() > 1e-6


def read_metrics(arguments) -> list[dict]:
    with open(f"{arguments.output_dir}/metrics.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_dropped_tokens_are_logged_and_teach_nothing(make_recipe, train):
    """Half of the even load per group: about half is dropped where little is protected, nothing where all
    is, and then nothing changes. Recomputed layers drop the same."""
    settings = {"max_steps": 1, "expert_groups": 4, "logging_steps": 1}
    *_, whole = train(make_recipe(**settings))
    shares, gradients = [], []
    for protected, recompute in ((0.0, False), (0.0, True), (1.0, False)):
        arguments = make_recipe(
            output_dir=f"{make_recipe().output_dir}{protected}{recompute}",
            capacity_factor=0.5,
            protected_share=protected,
            recompute=recompute,
            **settings,
        )
        gradients.append(train(arguments)[-1][0])
        shares.append(read_metrics(arguments)[0]["dropped_share"])
    # No group computes more than half of the mean; one with less than that drops nothing.
    assert shares[0] == shares[1] and 0.5 <= shares[0] < 0.7 and shares[2] == 0
    name = "language.model.layers.1.mlp.gate.weight"
    assert np.array_equal(gradients[0][name], gradients[1][name])
    assert np.abs(gradients[0][name] - whole[0][name]).max() > 1e-6
    for name, gradient in whole[0].items():
        # Padding is dropped also here, which nothing sees; experts compute slices of another length.
        assert np.abs(gradient - gradients[2][name]).max() <= 1e-5 * max(np.abs(gradient).max(), 1e-3), name


def test_evaluation_drops_nothing(make_recipe):
    eval_dataset = [{"format": "synthetic", "task": "mixed", "split": "test"}]
    arguments = make_recipe(eval_dataset=eval_dataset, max_evaluate_steps=1)
    losses = []
    for factor in (0.0, 0.1):
        arguments.capacity_factor, arguments.expert_groups = factor, 2
        processor = run.make_processor(arguments)
        paddle.seed(3)
        model = run.make_model(arguments)
        trainer = VL2Trainer(model, arguments, processor, None, run.evaluation_maker(arguments, processor))
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[0] == losses[1]


def test_the_log_has_what_is_promised(make_recipe, train):
    arguments = make_recipe(
        max_steps=2,
        eval_dataset=[{"format": "synthetic", "task": "mixed", "split": "test"}],
        eval_steps=2,
        max_evaluate_steps=1,
        vision={"mode": "full", "learning_rate_multiplier": 0.1},
    )
    train(arguments)
    records = read_metrics(arguments)
    first = records[0]
    assert first["lr_vision"] == pytest.approx(0.1 * first["lr_language"])
    assert first["loss"] > 0 and first["grad_norm"] > 0 and first["tokens_per_second"] > 0
    assert np.shape(first["expert_share_per_layer"]) == (2, 8)
    assert np.sum(first["expert_share_per_layer"], axis=1) == pytest.approx([1, 1], abs=1e-3)
    assert set(first["seconds"]) >= {"forward", "backward", "optimizer"}
    assert any("eval_loss" in record for record in records)


def test_the_logged_rate_is_that_of_the_step(make_recipe, train):
    """Warm-up over four steps: a quarter of the rate in the first. No total that a resumed run gets wrong."""
    arguments = make_recipe(max_steps=2, warmup_steps=4, lr_scheduler_type="constant", learning_rate=0.004)
    train(arguments)
    records = read_metrics(arguments)
    rates = [record["learning_rate"] for record in records if "loss" in record]
    assert rates == pytest.approx([make_schedule_rate(arguments, step) for step in (0, 1)])
    assert rates[0] < rates[1] < 0.004
    assert not any("train_loss" in record for record in records)


def make_schedule_rate(arguments, step: int) -> float:
    schedule = make_schedule(arguments)
    for _ in range(step):
        schedule.step()
    return schedule()


def test_the_trained_model_is_read_by_everyone(make_recipe, train):
    arguments = make_recipe()
    _, after, _ = train(arguments)
    from paddlemix_vl2 import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor

    model = DeepseekVLV2ForCausalLM.from_pretrained(arguments.output_dir, dtype="float32")
    for name, value in parameters_of(model).items():
        assert np.array_equal(value, after[name]), name
    assert not DeepseekVLV2Processor.from_pretrained(arguments.output_dir).mask_prompt


def test_evaluation_is_the_mean_over_tokens(make_recipe):
    """Against the losses of the samples one by one."""
    arguments = make_recipe(
        eval_dataset=[{"format": "synthetic", "task": "mixed", "split": "test"}],
        max_evaluate_steps=2,
        per_device_eval_batch_size=3,
    )
    processor = run.make_processor(arguments)
    model = run.make_model(arguments)
    trainer = VL2Trainer(model, arguments, processor, None, run.evaluation_maker(arguments, processor))
    reported = trainer.evaluate()["eval_loss"]
    arguments.per_device_eval_batch_size, arguments.max_evaluate_steps = 1, 6
    losses, counts = [], []
    with paddle.no_grad():
        for batch, meta in run.evaluation_maker(arguments, processor)():
            model.eval()
            losses.append(float(model(**batch.to_tensors()).loss))
            counts.append(meta.num_targets)
    assert reported == pytest.approx(np.average(losses, weights=counts), abs=1e-5)


def test_visualdl_gets_the_router_layer_by_layer(make_recipe, train):
    from visualdl import LogReader

    arguments = make_recipe(max_steps=1, report_to="visualdl")
    train(arguments)
    (file,) = Path(arguments.output_dir).glob("runs/*/vdlrecords*")
    tags = LogReader(file_path=str(file)).tags()  # path of the file and tag -> kind
    scalars = {
        tag.split(f"{file.name}/")[1].replace("%", "/") for tag, kind in tags.items() if kind == "scalar"
    }
    assert {"train/loss", "router/max_vio/moe_layer_1", "router/expert_share/moe_layer_0/expert_7"} <= scalars
