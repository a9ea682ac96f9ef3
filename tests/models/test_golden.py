"""Outputs, losses, greedy answers and gradients against those recorded from the published implementation.

Both sides are float32; the tolerances are those of sums in another order (MKL here, another BLAS there)
through three layers, and far below any difference that a wrong formula makes.
"""

import numpy as np
import paddle
import pytest

CASES = ["mha_greedy", "mla_greedy", "mla_noaux_tc", "mla_group_limited_yarn", "mla_noaux_tc_groups"]
TRAINABLE_CASES = [
    "mha_greedy",
    "mla_greedy",
    "mla_group_limited_yarn",
]  # the published code trains only these
PICTURES = ("images", "images_seq_mask", "images_spatial_crop")

pytestmark = pytest.mark.parametrize("case", CASES)


def largest_difference(tensor, array) -> float:
    assert tuple(tensor.shape) == array.shape
    return float(np.abs(tensor.numpy() - array).max())


@paddle.no_grad()
def test_vision_and_projector(case, golden_model, expected, recorded_batch):
    model, want = golden_model(case), expected(case)
    # Row 0 has a picture of 1 x 2 tiles, row 1 one of 1 x 1 and one of 2 x 1: with the global views 3 and 5
    # tiles.
    tiles = paddle.concat([recorded_batch["images"][0, :3], recorded_batch["images"][1, :5]])
    features = model.vision(tiles)
    assert largest_difference(features[0], want["vision_tile0"]) < 2e-5
    assert largest_difference(features.mean(axis=1), want["vision_tile_means"]) < 2e-5
    assert largest_difference(model.projector(features[:1])[0], want["projector_tile0"]) < 2e-5


@paddle.no_grad()
def test_embeddings_with_image_tokens(case, golden_model, expected, recorded_batch):
    model = golden_model(case)
    embeddings = model.prepare_inputs_embeds(
        recorded_batch["input_ids"], **{key: recorded_batch[key] for key in PICTURES}
    )
    assert largest_difference(embeddings[0], expected(case)["inputs_embeds_b0"]) < 2e-5


@paddle.no_grad()
def test_logits_hidden_states_and_loss(case, golden_model, expected, recorded_batch):
    want = expected(case)
    output = golden_model(case)(**recorded_batch, output_hidden_states=True)
    assert largest_difference(output.logits[:, -16:], want["logits_last16"]) < 1e-4
    means = paddle.stack([state[:, -400:].mean(axis=1) for state in output.hidden_states])
    assert largest_difference(means, want["hidden_last_mean"]) < 1e-5
    assert abs(float(output.loss) - float(want["loss"][0])) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [None, 300])
def test_greedy_answers(case, chunk_size, golden_model, expected, prompt_batch):
    ids, _ = golden_model(case).generate(
        **prompt_batch, max_new_tokens=24, eos_token_id=[], chunk_size=chunk_size
    )
    assert np.array_equal(ids.numpy(), expected(case)["greedy_tokens"])


def test_gradients(case, golden_model, expected, recorded_batch):
    want = expected(case)
    if case not in TRAINABLE_CASES:
        assert not want["grad_norms"], (
            "the published code cannot train noaux_tc; see moe/test_layer.py for its gradients"
        )
        return
    model = golden_model(case)
    model.train()
    loss = model(**recorded_batch).loss
    loss.backward()
    parameters = dict(model.named_parameters())
    unused = {name for name in parameters if name.startswith("vision.attn_pool.")}
    assert abs(float(loss) - float(want["train_loss"][0])) < 1e-5
    assert set(want["grad_norms"]) == set(parameters) - unused
    assert all(parameters[name].grad is None for name in unused)
    for name, norm in want["grad_norms"].items():
        assert float(parameters[name].grad.norm()) == pytest.approx(norm, rel=1e-3), name
    recorded = {key.removeprefix("grad:"): value for key, value in want.items() if key.startswith("grad:")}
    assert len(recorded) == 6
    for name, value in recorded.items():
        gradient = parameters[name].grad.numpy()
        is_linear = value.ndim == 2 and not name.endswith("mlp.gate.weight")  # the gate keeps [E, H]
        gradient = gradient.T if is_linear else gradient
        # Relative to the tensor's largest entry: small entries are sums of cancelling terms.
        assert np.abs(gradient - value).max() < 1e-4 * np.abs(value).max(), name
