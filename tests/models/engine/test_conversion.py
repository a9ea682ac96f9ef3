"""Whole models on the kernels against the recorded outputs, and the choice of the engine."""

import logging

import numpy as np
import paddle
import pytest

from paddlemix_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.models.engine import accelerate, build, choose_weights, conversion, is_accelerated, kernels
from paddlemix_vl2.training.adapters import load_adapter

CASES = ("mha_greedy", "mla_greedy", "mla_group_limited_yarn", "mla_noaux_tc")


def load(golden, case, **options):
    return DeepseekVLV2ForCausalLM.from_pretrained(golden / case, progress=False, **options)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_recorded_ones_within_rounding(case, weights, native, golden, prompt_batch, expected):
    model = load(golden, case, dtype=weights, engine="native")
    with paddle.no_grad():
        found = model(**prompt_batch).logits[:, -16:].numpy()
    recorded = expected(case)["logits_last16"]
    error = np.abs(found - recorded) / recorded.std()
    # A token whose experts are nearly tied may choose others: few errors may be large, not many.
    assert np.median(error) < 0.1, np.median(error)


@pytest.mark.parametrize("case", ["mha_greedy", "mla_greedy"])
def test_a_step_with_the_cache_equals_the_whole_sequence(case, native, golden, prompt_batch):
    """Prompts without padding, which take the kernels' attention: in one piece, in chunks, token by token."""
    model = load(golden, case, dtype="bfloat16")
    ids = prompt_batch["input_ids"][:1, -24:].clip(0, 90)
    batch = {"input_ids": ids, "attention_mask": paddle.ones_like(ids)}
    with paddle.no_grad():
        whole = model(**batch).logits[0].numpy()
    for chunk in (24, 10, 1):
        logits, _ = model.prefill(batch, 24, chunk_size=chunk)
        assert np.abs(logits[0].numpy() - whole[-1]).max() < 0.1 * whole.std(), chunk


def test_a_padded_batch_is_answered_as_its_rows_alone(native, golden, prompt_batch):
    """Padding takes Paddle's attention; the rest is the same."""
    model = load(golden, "mla_greedy", dtype="bfloat16")
    with paddle.no_grad():
        logits = model(**prompt_batch).logits.numpy()
    assert np.isfinite(logits).all()
    eager = load(golden, "mla_greedy", dtype="float32")
    with paddle.no_grad():
        reference = eager(**prompt_batch).logits.numpy()
    kept = prompt_batch["attention_mask"].numpy().astype(bool)
    assert np.median(np.abs(logits - reference)[kept]) < 0.1 * reference.std()


@pytest.mark.parametrize("case", ["mha_greedy", "mla_noaux_tc"])
def test_answers_in_a_padded_batch(case, native, golden):
    """Steps over caches with padding: logits of every row as it has them alone, up to rounding."""
    model = load(golden, case, dtype="bfloat16")
    rows = [list(range(5, 17)), list(range(30, 35))]

    def steps(rows):
        length = max(map(len, rows))
        ids = [[0] * (length - len(row)) + row for row in rows]
        mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
        batch = {"input_ids": paddle.to_tensor(ids), "attention_mask": paddle.to_tensor(mask)}
        _, cache = model.prefill(batch, length + 3)
        tokens = paddle.to_tensor([[7]] * len(rows))
        return np.stack([model.decode_step(tokens, cache).numpy() for _ in range(3)])

    together = steps(rows)
    for index, row in enumerate(rows):
        alone = steps([row])[:, 0]
        assert np.abs(together[:, index] - alone).max() < 0.1 * alone.std()


@pytest.mark.parametrize("case", ["mha_greedy", "mla_greedy"])
def test_padding_position_by_position(case, native, golden):
    """Chunks of one position: those that are padding see nothing, and leave no NaN in the cache."""
    model = load(golden, case, dtype="bfloat16")
    mask = paddle.to_tensor([[0, 0, 0, 0, 1, 1, 1], [1] * 7])
    batch = {"input_ids": paddle.arange(5, 19).reshape([2, 7]) * mask, "attention_mask": mask}
    logits = [model.prefill(batch, 7, chunk_size=chunk)[0].numpy() for chunk in (None, 1)]
    assert np.abs(logits[0] - logits[1]).max() < 0.1 * logits[0].std()


def test_large_weights_exist_once(native, golden):
    model = load(golden, "mla_greedy", dtype="bfloat16")
    assert not [name for name, p in model.named_parameters() if p.ndim == 2 and "proj" in name]


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_packed_while_loading_or_afterwards_is_the_same(weights, native, golden, prompt_batch):
    """The published layout has matrices transposed: packed from the file, and from the loaded model."""
    model = load(golden, "mla_greedy", dtype=weights, engine="native")
    later = load(golden, "mla_greedy", dtype="bfloat16", engine="eager")
    accelerate(later, weights)
    with paddle.no_grad():
        found, reference = (it(**prompt_batch).logits.numpy() for it in (model, later))
    assert (found == reference).all()


def test_loading_packs_one_matrix_at_a_time(native, golden, monkeypatch):
    """While it loads, no linear layer ever has its weights as they are stored."""
    stored = []

    def pack(value, int8):
        stored.append(
            [name for name, p in model[0].named_parameters() if "_proj" in name and p._is_initialized()]
        )
        return kernels.pack(value, int8)

    model = []
    build_layers = DeepseekVLV2ForCausalLM.__init__
    monkeypatch.setattr(conversion, "pack", pack)
    monkeypatch.setattr(
        DeepseekVLV2ForCausalLM,
        "__init__",
        lambda self, *arguments: (build_layers(self, *arguments), model.append(self))[0],
    )
    load(golden, "mla_greedy", dtype="int8")
    assert len(stored) > 20 and not any(stored)


def test_it_cannot_be_saved(native, golden, tmp_path):
    with pytest.raises(ValueError, match="cannot be saved; load it with engine='eager'"):
        load(golden, "mla_greedy", dtype="bfloat16").save_pretrained(tmp_path)


def test_it_takes_no_adapter(native, golden, tmp_path):
    with pytest.raises(ValueError, match="load the base model with engine='eager'"):
        load_adapter(load(golden, "mla_greedy", dtype="bfloat16"), tmp_path)


@pytest.mark.parametrize(
    ("dtype", "engine", "weights"),
    [
        ("auto", "auto", "bfloat16"),
        ("bfloat16", "auto", "bfloat16"),
        ("auto", "native", "bfloat16"),
        ("int8", "auto", "int8"),
        ("int8", "native", "int8"),
        ("float32", "auto", None),
        ("auto", "eager", None),
        ("bfloat16", "eager", None),
    ],
)
def test_the_choice(dtype, engine, weights, native):
    assert choose_weights(dtype, engine) == weights


@pytest.mark.parametrize(
    ("dtype", "engine", "message"),
    [
        ("auto", "fast", "engine 'fast' is unknown; use auto, eager, native"),
        ("int8", "eager", "dtype 'int8' needs engine='native'"),
        ("float32", "native", "computes with bfloat16 or int8 weights, not float32"),
    ],
)
def test_choices_that_cannot_be(dtype, engine, message):
    with pytest.raises(ValueError, match=message):
        choose_weights(dtype, engine)


def test_without_kernels_everything_works_and_the_reason_is_said_once(golden, monkeypatch, caplog):
    monkeypatch.setattr(conversion, "kernels_problem", lambda: "no C++ compiler (g++)")
    conversion._say_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="paddlemix_vl2"):
        assert choose_weights() is None and choose_weights("bfloat16") is None
    assert [record.message for record in caplog.records] == [
        "Without the faster kernels: no C++ compiler (g++)"
    ]
    assert load(golden, "mla_greedy").weight_dtype == "float32"
    for dtype, engine in (("int8", "auto"), ("auto", "native")):
        with pytest.raises(ValueError, match=r"engine 'native' cannot be used here: no C\+\+ compiler"):
            choose_weights(dtype, engine)


def test_the_switch(monkeypatch):
    monkeypatch.setenv(build.SWITCH_VARIABLE, "0")
    assert conversion.kernels_problem() == "PADDLEMIX_VL2_KERNELS=0"


def test_unknown_weights(native, golden):
    with pytest.raises(ValueError, match="weights 'int4': must be one of bfloat16, int8"):
        accelerate(load(golden, "mla_greedy", dtype="float32"), "int4")
    assert not is_accelerated(load(golden, "mla_greedy", dtype="float32"))
