"""Whole models on the kernels against the recorded outputs."""

import sys

import numpy as np
import paddle
import pytest

from paddlemix_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.kernels import ops
from paddlemix_vl2.models.adapters import AdapterConfig, add_adapters, load_adapter
from paddlemix_vl2.models.cpu_backend import WeightPacker, convert_model, kernel_execution

CASES = ("mha_greedy", "mla_greedy", "mla_group_limited_yarn", "mla_noaux_tc")


def load(golden, case, **options):
    return DeepseekVLV2ForCausalLM.from_pretrained(golden / case, progress=False, **options)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_recorded_ones_within_rounding(case, weights, native, golden, prompt_batch, expected):
    model = load(golden, case, dtype=weights, backend="cpu_kernels")
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
    plain = load(golden, "mla_greedy", dtype="float32")
    with paddle.no_grad():
        reference = plain(**prompt_batch).logits.numpy()
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
    model = load(golden, "mla_greedy", dtype=weights, backend="cpu_kernels")
    later = DeepseekVLV2ForCausalLM(model.config, kernel_execution(weights))
    later.to(dtype="bfloat16")
    later.load_weights(golden / "mla_greedy")
    convert_model(later, WeightPacker(later, weights))
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
        return ops.pack(value, int8)

    model = []
    build_layers = DeepseekVLV2ForCausalLM.__init__
    monkeypatch.setattr(sys.modules[WeightPacker.__module__], "pack", pack)
    monkeypatch.setattr(
        DeepseekVLV2ForCausalLM,
        "__init__",
        lambda self, *arguments: (build_layers(self, *arguments), model.append(self))[0],
    )
    load(golden, "mla_greedy", dtype="int8")
    assert len(stored) > 20 and not any(stored)


def test_it_cannot_be_saved(native, golden, tmp_path):
    with pytest.raises(ValueError, match="cannot be saved; load it with backend='paddle'"):
        load(golden, "mla_greedy", dtype="bfloat16").save_pretrained(tmp_path)


def test_it_takes_no_adapter(native, golden, tmp_path):
    model = load(golden, "mla_greedy", dtype="bfloat16")
    message = "adapters need Paddle's layers; load the base model with backend='paddle'$"
    with pytest.raises(ValueError, match=f"^{message}"):
        add_adapters(model, AdapterConfig(target_modules=[r".*o_proj"]))
    with pytest.raises(ValueError, match=f"^{tmp_path}: {message}"):
        load_adapter(model, tmp_path)
    assert model.adapter_config is None


def test_what_it_computes_with_is_known(native, golden):
    packed, plain = load(golden, "mla_greedy", dtype="int8"), load(golden, "mla_greedy", dtype="float32")
    assert packed.execution.packed and not plain.execution.packed
    assert (packed.execution.backend, packed.execution.weight_dtype) == ("cpu_kernels", "int8")
    assert (plain.execution.backend, plain.execution.weight_dtype) == ("paddle", "float32")
