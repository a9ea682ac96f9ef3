"""Schedules against values by hand, and AdamW's first update, which moves each value by its learning rate."""

import math

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlemix_vl2.training.optimizer import make_optimizer, make_schedule
from paddlemix_vl2.training.recipe import VL2TrainingArguments


def arguments(**changes):
    values = {
        "model_config": "config.json",
        "processor_path": "folder",
        "train_dataset": [{"format": "synthetic", "task": "mixed"}],
        "max_steps": 1000,
        "learning_rate": 1.0,
        "max_grad_norm": 0.0,
    }
    return VL2TrainingArguments(**{**values, **changes})


def rates(steps, **changes):
    """The learning rate of each of these steps, as an optimizer would see it."""
    schedule, seen = make_schedule(arguments(**changes)), {}
    for step in range(max(steps) + 1):
        seen[step] = schedule.get_lr()
        schedule.step()
    return [seen[step] for step in steps]


def test_cosine():
    # cos(0) = 1, cos(pi / 4) = sqrt(1/2), cos(pi / 2) = 0, cos(3 pi / 4) = -sqrt(1/2), cos(pi) = -1
    quarter = (1 + math.sqrt(0.5)) / 2
    expected = [1.0, quarter, 0.5, 1 - quarter, 0.0]
    assert rates([0, 250, 500, 750, 1000], lr_scheduler_type="cosine") == pytest.approx(expected, abs=1e-12)


def test_constant():
    assert rates([0, 1, 500, 999], lr_scheduler_type="constant", learning_rate=3e-5) == [3e-5] * 4


def test_steps_of_the_root_of_ten_at_half_and_at_three_quarters():
    found = rates([0, 499, 500, 749, 750, 999], lr_scheduler_type="step")
    root = math.sqrt(10)
    assert found == pytest.approx([1, 1, 1 / root, 1 / root, 0.1, 0.1], rel=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "constant", "step"])
def test_warm_up_climbs_in_even_steps_from_above_zero(schedule):
    found = rates([0, 1, 2, 3], lr_scheduler_type=schedule, warmup_steps=3)
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_cosine_falls_from_the_end_of_the_warm_up():
    # Half way between step 200 and step 1000.
    assert rates([600], warmup_steps=200) == pytest.approx([0.5])


def test_warm_up_as_a_share_and_steps_before_it():
    assert rates([99, 100], lr_scheduler_type="constant", warmup_ratio=0.1) == pytest.approx([100 / 101, 1])
    both = {"warmup_ratio": 0.5, "warmup_steps": 1}
    assert rates([0, 1], lr_scheduler_type="constant", **both) == pytest.approx([0.5, 1])


class ThreeParts(nn.Layer):
    """A matrix and a vector of ones in each part, and the vectors that belong to the projector."""

    def __init__(self):
        super().__init__()
        one = nn.initializer.Constant(1.0)
        for part in ("vision", "projector", "language"):
            self.add_sublayer(part, nn.Linear(2, 2, weight_attr=one, bias_attr=one))
        self.image_newline = self.create_parameter([2], default_initializer=one)


MULTIPLIERS = {"vision": 0.1, "projector": 1.0, "language": 0.5, "image_newline": 1.0}


def moved(model, **changes):
    """How far each parameter moves in one step on gradients of very different sizes."""
    parts = {
        part: {"learning_rate_multiplier": MULTIPLIERS[part]} for part in ("vision", "projector", "language")
    }
    settings = arguments(lr_scheduler_type="constant", learning_rate=1e-2, **{**parts, **changes})
    optimizer = make_optimizer(model, settings, make_schedule(settings))
    for index, (_, parameter) in enumerate(model.named_parameters()):
        if not parameter.stop_gradient:
            parameter.grad = paddle.full(parameter.shape, 10.0 ** (index % 3))
    optimizer.step()
    return {name: 1.0 - parameter.numpy() for name, parameter in model.named_parameters()}


def test_every_part_moves_by_its_own_learning_rate():
    # AdamW's first step is the learning rate whatever the gradient (its epsilon aside).
    for name, distance in moved(ThreeParts(), weight_decay=0.0).items():
        expected = 1e-2 * MULTIPLIERS[name.split(".")[0]]
        np.testing.assert_allclose(distance, expected, rtol=1e-3, err_msg=name)


def test_matrices_decay_and_vectors_do_not():
    for name, distance in moved(ThreeParts(), weight_decay=0.1).items():
        decay = 0.1 if name.endswith(".weight") else 0.0  # of a value of one
        expected = 1e-2 * MULTIPLIERS[name.split(".")[0]] * (1 + decay)
        np.testing.assert_allclose(distance, expected, rtol=1e-3, err_msg=name)


def test_what_is_frozen_stays():
    model = ThreeParts()
    for parameter in model.language.parameters():
        parameter.stop_gradient = True
    distances = moved(model)
    assert not np.any(distances["language.weight"]) and not np.any(distances["language.bias"])
    assert np.all(distances["vision.weight"] > 0)


def test_nothing_to_train():
    model = ThreeParts()
    for parameter in model.parameters():
        parameter.stop_gradient = True
    settings = arguments()
    with pytest.raises(ValueError, match="nothing trains: vision, projector, language are all frozen"):
        make_optimizer(model, settings, make_schedule(settings))
