"""What a micro-batch counts in its step, by hand: its value, and the gradient of each of its terms."""

import paddle
import pytest

from paddlemix_vl2.models.vision_language import VisionLanguageOutput
from paddlemix_vl2.training.losses import StepShares, micro_loss

# Of two processes with four micro-batches each: 200 targets and 40 samples in the step.
SHARES = StepShares(
    num_targets=30, num_samples=8, step_targets=200.0, step_samples=40.0, accumulation=4, processes=2
)


def test_shares_by_hand():
    assert SHARES.by_tokens == pytest.approx(30 * 2 / 200)
    assert SHARES.by_samples == pytest.approx(8 * 2 / 40)
    assert SHARES.factor("sequence") == SHARES.by_samples
    for name in ("expert", "device", "communication"):
        assert SHARES.factor(name) == 1 / 4


def test_the_shares_of_all_micro_batches_and_processes_are_a_mean():
    """Averaged over the processes and added up over the micro-batches they are 1."""
    targets, samples = [[30, 20], [50, 100]], [[3, 2], [1, 2]]  # of each process, micro-batch by micro-batch
    shares = [
        [StepShares(t, n, 200.0, 8.0, 2, 2) for t, n in zip(*process, strict=True)]
        for process in zip(targets, samples, strict=True)
    ]
    everyone = [one for process in shares for one in process]
    assert sum(one.by_tokens for one in everyone) / 2 == pytest.approx(1)
    assert sum(one.by_samples for one in everyone) / 2 == pytest.approx(1)
    assert sum(one.factor("expert") for one in everyone) / 2 == pytest.approx(1)


def test_a_step_without_anything_to_learn():
    assert StepShares(0, 3, 0.0, 3.0, 1, 1).by_tokens == 0


def output_of(next_token: float, **balance: float) -> VisionLanguageOutput:
    tensors = {name: paddle.to_tensor(value, stop_gradient=False) for name, value in balance.items()}
    return VisionLanguageOutput(
        next_token_loss=paddle.to_tensor(next_token, stop_gradient=False), balance_losses=tensors
    )


def test_the_value_is_that_of_the_next_token_loss_and_the_gradient_of_all():
    output = output_of(2.0, sequence=0.5, expert=0.25, device=3.0)
    loss = micro_loss(output, SHARES)
    assert float(loss) == pytest.approx(2.0 * 0.3)
    loss.backward()
    assert float(output.next_token_loss.grad) == pytest.approx(0.3)
    gradients = {name: float(value.grad) for name, value in output.balance_losses.items()}
    assert gradients == {
        "sequence": pytest.approx(0.4),
        "expert": pytest.approx(0.25),
        "device": pytest.approx(0.25),
    }


def test_without_balance_losses():
    output = output_of(2.0)
    loss = micro_loss(output, SHARES)
    loss.backward()
    assert float(loss) == pytest.approx(0.6) and float(output.next_token_loss.grad) == pytest.approx(0.3)


def test_a_model_in_one_micro_batch_has_the_gradient_of_its_own_loss(demo_model):
    """One process, one micro-batch: the step's loss is the model's."""
    model = demo_model
    model.train()
    ids = paddle.randint(3, 90, [2, 12])
    gradients, values = [], []
    try:
        for own in (True, False):
            model.clear_gradients()
            output = model(input_ids=ids, labels=ids)
            assert output.balance_losses
            loss = output.loss if own else micro_loss(output, StepShares(22, 2, 22.0, 2.0, 1, 1))
            loss.backward()
            values.append(float(loss))
            gradients.append(model.language.model.layers[1].mlp.gate.weight.grad.clone())
    finally:
        model.eval()
        model.clear_gradients(set_to_zero=False)
    assert values[0] == pytest.approx(values[1])
    largest = float(gradients[0].abs().max())
    assert float((gradients[0] - gradients[1]).abs().max()) <= 1e-6 * largest
