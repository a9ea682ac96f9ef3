"""Recomputing layers changes memory only: outputs and gradients are equal bit for bit, as the same
operators run on the same numbers."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.models.decoder import DeepseekV2DecoderLayer
from paddlemix_vl2.models.layers import recompute
from paddlemix_vl2.models.vision.siglip import VisionBlock

CASES = ["mha_greedy", "mla_noaux_tc"]
ROUTING_FIELDS = ("topk_idx", "topk_weight", "tokens_per_expert", "scores")


def set_recompute(model, value):
    """As PaddleNLP's Trainer does."""

    def switch(layer):
        if hasattr(layer, "enable_recompute"):
            layer.enable_recompute = value

    model.apply(switch)


@pytest.fixture
def trained_model(golden_model):
    """A recorded case in training; afterwards as it was. ``frozen``: prefixes of names that do not train."""
    models = []

    def ready(case, frozen=()):
        model = golden_model(case)
        models.append((model, {p.name: p.stop_gradient for p in model.parameters()}))
        for name, parameter in model.named_parameters():
            if name.startswith(tuple(frozen)):
                parameter.stop_gradient = True
        model.train()
        return model

    yield ready
    for model, stopped in models:
        for parameter in model.parameters():
            parameter.stop_gradient = stopped[parameter.name]
        set_recompute(model, False)
        model.eval()
        model.clear_gradients(set_to_zero=False)


@pytest.fixture
def recomputed_layers(monkeypatch):
    """The layers that were recomputed, in the order of their calls."""
    layers, original = [], recompute.recompute

    def noting(layer, *arguments, **options):
        layers.append(layer)
        return original(layer, *arguments, **options)

    monkeypatch.setattr(recompute, "recompute", noting)
    return layers


def step(model, batch):
    """Loss, balance loss, routings and gradients of one training step."""
    model.clear_gradients(set_to_zero=False)
    output = model(**batch)
    output.loss.backward()
    gradients = {n: None if p.grad is None else p.grad.numpy() for n, p in model.named_parameters()}
    return float(output.loss), float(output.aux_loss), output.routings, gradients


def assert_equal_steps(model, batch):
    plain = step(model, batch)
    set_recompute(model, True)
    again = step(model, batch)
    assert plain[:2] == again[:2]
    for ours, theirs in zip(plain[2], again[2], strict=True):
        for field in ROUTING_FIELDS:
            assert np.array_equal(getattr(ours, field).numpy(), getattr(theirs, field).numpy()), field
    for name, gradient in plain[3].items():
        assert (gradient is None) == (again[3][name] is None), name
        assert gradient is None or np.array_equal(gradient, again[3][name]), name
    return again


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_equal_bit_for_bit(case, trained_model, recorded_batch, recomputed_layers):
    model = trained_model(case)
    *_, routings, gradients = assert_equal_steps(model, recorded_batch)
    kinds = {type(layer) for layer in recomputed_layers}
    assert kinds == {DeepseekV2DecoderLayer, VisionBlock}
    decoder = [layer for layer in recomputed_layers if isinstance(layer, DeepseekV2DecoderLayer)]
    assert decoder == list(model.language.model.layers)
    assert all(not routing.scores.stop_gradient for routing in routings), "balance losses need it"
    assert np.abs(gradients["language.model.layers.1.mlp.gate.weight"]).sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frozen", "trains"),
    [
        (["language."], "vision.blocks.0.attn.qkv.weight"),  # stage 1
        (["vision.", "projector.", "image_", "view_"], "language.model.layers.0.self_attn.q_proj.weight"),
    ],
)
def test_frozen_parts(frozen, trains, trained_model, recorded_batch):
    *_, gradients = assert_equal_steps(trained_model("mla_noaux_tc", frozen), recorded_batch)
    assert np.abs(gradients[trains]).sum() > 0
    assert all(gradients[name] is None for name in gradients if name.startswith(tuple(frozen)))


@pytest.mark.slow
def test_an_input_without_gradient_below_parameters_with_one(
    trained_model, recorded_batch, recomputed_layers
):
    """Adapters on a frozen model: nothing below the first of them has a gradient."""
    frozen = ["vision.", "projector.", "image_", "view_", "language.model.embed_tokens"]
    model = trained_model("mla_noaux_tc", frozen)
    *_, gradients = assert_equal_steps(model, recorded_batch)
    assert np.abs(gradients["language.model.layers.0.self_attn.q_proj.weight"]).sum() > 0
    assert recomputed_layers == list(model.language.model.layers)[1:]


@pytest.mark.slow
def test_the_gradient_of_the_balance_loss_alone(trained_model, recorded_batch):
    model = trained_model("mla_greedy")
    gradients = []
    for value in (False, True):
        set_recompute(model, value)
        model.clear_gradients()
        model(**recorded_batch).aux_loss.backward()
        gradients.append(model.language.model.layers[1].mlp.gate.weight.grad.numpy())
    assert np.abs(gradients[0]).sum() > 0
    assert np.array_equal(*gradients)


def test_nothing_is_recomputed_outside_of_training(trained_model, recorded_batch, recomputed_layers):
    model = trained_model("mha_greedy")
    set_recompute(model, True)
    with paddle.no_grad():
        model(**recorded_batch)
    model.eval()
    model(**recorded_batch)
    assert recomputed_layers == []


def test_dropout_is_repeated():
    """Adapters have dropout: the second forward pass must leave out the same values."""
    paddle.seed(3)
    layer = paddle.nn.Sequential(paddle.nn.Linear(64, 64), paddle.nn.Dropout(0.5), paddle.nn.Linear(64, 64))
    layer.enable_recompute = True
    hidden_states = paddle.randn([8, 64])
    hidden_states.stop_gradient = False
    state = paddle.get_rng_state()
    recompute.recompute_layer(layer, hidden_states).sum().backward()
    recomputed = layer[0].weight.grad.numpy()
    layer.clear_gradients()
    paddle.set_rng_state(state)
    layer(hidden_states).sum().backward()
    assert np.array_equal(recomputed, layer[0].weight.grad.numpy())
