"""Loading gives the published values, bit for bit where the dtype allows, into parameters as they were."""

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import paddle
import pytest
from paddle import nn

from paddlemix_vl2.checkpoints import files, load_checkpoint
from paddlemix_vl2.checkpoints.reader import StoredTensor
from paddlemix_vl2.checkpoints.specs import ParameterSpec, cast, expert_of, model_tensors
from paddlemix_vl2.models.families.deepseek_vl2 import DeepseekVLV2ForCausalLM

DTYPES = ("float32", "bfloat16", "float16")
WIDE = "projector.layers.0.weight"
GATE = "language.model.layers.1.mlp.gate.weight"
BIAS = "e_score_correction_bias"


def in_memory(case, dtype, to_paddle, converted) -> dict[str, np.ndarray]:
    """What a model must hold, by numpy alone."""
    return {
        name: converted(to_paddle(name, array), "float32" if name.endswith(BIAS) else dtype)
        for name, array in case.weights.items()
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_golden(case, dtype, build_model, tensors_of, to_paddle, converted, assert_same):
    model = build_model(case)
    assert not any(parameter._is_initialized() for parameter in model.parameters())
    load_checkpoint(model, case.specs, case.folder, dtype=dtype)
    assert_same(tensors_of(model), in_memory(case, dtype, to_paddle, converted))
    assert all(parameter.is_contiguous() and parameter.persistable for parameter in model.parameters())


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_every_dtype_to_every_dtype(
    biased_case, source, target, build_model, write_folder, tensors_of, to_paddle, converted, assert_same
):
    weights = {name: converted(array, source) for name, array in biased_case.weights.items()}
    model = build_model(biased_case)
    load_checkpoint(model, biased_case.specs, write_folder(weights, {"format": "pt"}), dtype=target)
    wanted = {
        name: converted(to_paddle(name, array), "float32" if name.endswith(BIAS) else target)
        for name, array in weights.items()
    }
    assert_same(tensors_of(model), wanted)


def test_only_the_experts_of_a_process_are_read(
    biased_case, tensors_of, to_paddle, converted, assert_same, monkeypatch
):
    experts, read = range(4, 8), []
    original = StoredTensor.read
    monkeypatch.setattr(StoredTensor, "read", lambda tensor: read.append(tensor.name) or original(tensor))
    with paddle.LazyGuard():
        model = DeepseekVLV2ForCausalLM(biased_case.config, dispatcher=SimpleNamespace(experts=experts))
    load_checkpoint(model, biased_case.specs, biased_case.folder)
    everything = in_memory(biased_case, "float32", to_paddle, converted)
    wanted = {name: value for name, value in everything.items() if expert_of(name) not in range(4)}
    assert len(wanted) == len(everything) - 2 * 4 * 3  # two MoE layers, four experts of three matrices
    assert sorted(read) == sorted(wanted)
    assert_same(tensors_of(model), wanted)


@pytest.mark.parametrize("metadata", [None, {"format": "np"}, {"format": "pd"}])
@pytest.mark.parametrize("gate_axes", ["experts first", "hidden first"])
def test_paddle_layout(
    case, metadata, gate_axes, build_model, write_folder, tensors_of, to_paddle, converted, assert_same
):
    stored = {name: to_paddle(name, array) for name, array in case.weights.items()}
    if gate_axes == "hidden first":
        stored = {
            name: array.T if name.endswith("mlp.gate.weight") else array for name, array in stored.items()
        }
    model = build_model(case)
    load_checkpoint(model, case.specs, write_folder(stored, metadata))
    assert_same(tensors_of(model), in_memory(case, "float32", to_paddle, converted))


def test_buffers_are_loaded_like_parameters(biased_case, build_model, tensors_of, assert_same):
    model = build_model(biased_case, buffers=(BIAS,))
    assert len([name for name, _ in model.named_buffers()]) == 2
    load_checkpoint(model, biased_case.specs, biased_case.folder, dtype="bfloat16")
    loaded, stored = tensors_of(model), biased_case.weights
    names = [name for name in stored if name.endswith(BIAS)]
    assert_same({name: loaded[name] for name in names}, {name: stored[name] for name in names})


def test_models_with_memory_are_overwritten(biased_case, build_model, tensors_of, assert_same):
    lazy, eager = build_model(biased_case), build_model(biased_case)
    for parameter in eager.parameters():
        parameter.initialize()
    for model in (lazy, eager):
        load_checkpoint(model, biased_case.specs, biased_case.folder, dtype="bfloat16")
    assert_same(tensors_of(lazy), tensors_of(eager))


def test_what_is_trained_stays_so(biased_case, build_model):
    model = build_model(biased_case)
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = name.startswith("vision")
    load_checkpoint(model, biased_case.specs, biased_case.folder)
    for name, parameter in model.named_parameters():
        assert parameter.stop_gradient == name.startswith("vision"), name
    weight = dict(model.named_parameters())[WIDE]
    (weight * 3).sum().backward()
    assert (weight.grad.numpy() == 3).all()
    assert weight.is_leaf


def test_linear_computes_as_published(biased_case, build_model):
    """x W^T + b with the published W [out, in] equals Paddle's layer with the loaded weight."""
    model = build_model(biased_case)
    load_checkpoint(model, biased_case.specs, biased_case.folder)
    weights = biased_case.weights
    x = np.random.default_rng(0).standard_normal((5, 96), np.float32)
    layer = model._sub_layers["projector"]._sub_layers["layers"]._sub_layers["0"]
    out = nn.functional.linear(paddle.to_tensor(x), layer.weight, layer.bias).numpy()
    # float32 sums of 96 products of order 1, in another order.
    np.testing.assert_allclose(out, x @ weights[WIDE].T + weights["projector.layers.0.bias"], atol=1e-5)


def test_optimizers_step_loaded_parameters(biased_case, build_model):
    model = build_model(biased_case)
    load_checkpoint(model, biased_case.specs, biased_case.folder)
    weight = dict(model.named_parameters())[WIDE]
    before = weight.numpy().copy()
    optimizer = paddle.optimizer.SGD(0.5, parameters=[weight])
    weight.sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(weight.numpy(), before - np.float32(0.5))


def test_all_faults_in_one_error(biased_case, build_model, write_folder):
    weights = dict(biased_case.weights)
    del weights["image_newline"], weights["vision.norm.bias"]
    weights["vision.norm.scale"] = np.zeros(24, np.float32)
    weights[GATE] = np.zeros((9, 48), np.float32)
    model = build_model(biased_case)
    with pytest.raises(ValueError) as caught:
        load_checkpoint(model, biased_case.specs, write_folder(weights))
    message = str(caught.value)
    for part in (
        "the checkpoint does not fit the config: 2 missing: ",
        "1 unexpected: ",
        "1 misshapen: ",
        "image_newline",
        "vision.norm.bias",
        "vision.norm.scale",
        f"{GATE} is [9, 48], expected [8, 48]",
    ):
        assert part in message
    assert not any(parameter._is_initialized() for parameter in model.parameters())


def test_the_gate_is_not_turned_in_published_files(biased_case, build_model, write_folder):
    weights = {**biased_case.weights, GATE: biased_case.weights[GATE].T}
    with pytest.raises(ValueError, match=r"is \[48, 8\], expected \[8, 48\]"):
        load_checkpoint(build_model(biased_case), biased_case.specs, write_folder(weights))


def test_unknown_dtype(biased_case, build_model):
    with pytest.raises(ValueError, match="dtype 'float64' is unknown; use float32, bfloat16, float16"):
        load_checkpoint(build_model(biased_case), biased_case.specs, biased_case.folder, dtype="float64")


def test_model_of_another_config(plain_case, biased_case, build_model):
    with pytest.raises(ValueError, match=r"model and config differ in \d+ tensors: .*k_proj"):
        load_checkpoint(build_model(plain_case), biased_case.specs, biased_case.folder)


def vectors(*names: str) -> dict[str, ParameterSpec]:
    return {name: ParameterSpec(name, (2,)) for name in names}


def test_model_with_additions_or_other_shapes():
    model = nn.Layer()
    model.image_newline = model.create_parameter([3])
    model.lora_A = model.create_parameter([3])
    with pytest.raises(ValueError) as caught:
        model_tensors(
            model, {name: ParameterSpec(name, (2,)) for name in ("image_newline", "view_seperator")}
        )
    assert str(caught.value) == (
        "model and config differ in 3 tensors: image_newline is [3] in the model, expected [2], "
        "lora_A is in the model only, view_seperator is not in the model"
    )


def test_passing_buffers_are_no_weights():
    model = nn.Layer()
    model.image_newline = model.create_parameter([2])
    model.register_buffer("table", paddle.zeros([5]), persistable=False)
    assert list(model_tensors(model, vectors("image_newline"))) == ["image_newline"]


def test_progress_bar(biased_case, build_model, capsys, monkeypatch):
    def load(progress: bool) -> str:
        load_checkpoint(build_model(biased_case), biased_case.specs, biased_case.folder, progress=progress)
        return capsys.readouterr().err

    assert load(progress=True) == ""
    monkeypatch.setattr(files, "PROGRESS_FROM_BYTES", 1)
    assert load(progress=False) == ""
    total = sum(array.nbytes for array in biased_case.weights.values())
    assert f"/{total / 1000:.0f}k" in load(progress=True)


def test_cast_rounds_like_numpy():
    """All exponents, both signs: also where Paddle's own cast to float16 is wrong on the CPU."""
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    with np.errstate(over="ignore"):
        half, brain = values.astype(np.float16), values.astype(ml_dtypes.bfloat16)
    tensor = paddle.to_tensor(values)
    assert np.array_equal(cast(tensor, "float16").numpy().view(np.uint16), half.view(np.uint16))
    assert np.array_equal(cast(tensor, "bfloat16").numpy(), brain.view(np.uint16))
    assert cast(tensor, "float32") is tensor
