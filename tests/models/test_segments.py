"""Rows of several samples: every sample gets what it gets alone."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.layouts.batch_plan import plan_segments
from paddlemix_vl2.layouts.fusion_plan import plan_fusion
from paddlemix_vl2.models.layers.attention_mask import segment_mask
from paddlemix_vl2.models.layers.execution import ExecutionConfig

CASES = ["mha_greedy", "mla_greedy", "mla_group_limited_yarn", "mla_noaux_tc"]


@pytest.fixture
def samples(recorded_batch):
    """The recorded rows without their padding, as batches of one."""
    batches = []
    for row in range(2):
        kept = np.flatnonzero(recorded_batch["attention_mask"][row].numpy())
        batch = {name: recorded_batch[name][row : row + 1, kept[0] :] for name in ("input_ids", "labels")}
        batch["images_seq_mask"] = recorded_batch["images_seq_mask"][row : row + 1, kept[0] :]
        labels = batch["labels"].clone()
        labels[:, 0] = -100  # in a row the sample before it would have to predict it
        grids = recorded_batch["images_spatial_crop"][row].numpy()
        grids = grids[grids.all(axis=1)]
        batch["labels"] = labels
        batch["images_spatial_crop"] = paddle.to_tensor(grids[None])
        batch["images"] = recorded_batch["images"][
            row : row + 1, : int(grids.prod(axis=1).sum() + len(grids))
        ]
        batches.append(batch)
    return batches


def packed(samples, padding: int) -> dict:
    """All samples in one row, behind some padding."""
    front = {"input_ids": 0, "images_seq_mask": False, "labels": -100}
    row = {}
    for name, value in front.items():
        pad = paddle.full([1, padding], value, samples[0][name].dtype)
        row[name] = paddle.concat([pad, *(sample[name] for sample in samples)], axis=1)
    for name in ("images", "images_spatial_crop"):
        row[name] = paddle.concat([sample[name] for sample in samples], axis=1)
    lengths = [sample["input_ids"].shape[1] for sample in samples]
    numbers = [np.full(length, index + 1) for index, length in enumerate(lengths)]
    row["segment_ids"] = paddle.to_tensor(np.concatenate([np.zeros(padding, np.int64), *numbers])[None])
    return row


@pytest.mark.parametrize("first", [0, -1, 7])
def test_every_piece_of_a_row_is_masked_by_itself(first):
    """Whatever its number: a first one begins a sample too."""
    plan = plan_segments(np.array([[first, first, 1, 1, 1, 2], [1, 2, 2, 3, 3, 3]]))
    assert plan.position_ids.tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 1, 0, 1, 2]]
    assert segment_mask(plan.seqlens).seqlens == (2, 3, 1, 1, 2, 3)


@pytest.mark.parametrize("case", CASES)
def test_a_packed_row_equals_its_samples_alone(case, golden_model, samples):
    """Logits within 1e-4: sums of the same numbers in another order, through three layers."""
    model = golden_model(case)
    row = packed(samples, padding=5)
    with paddle.no_grad():
        logits = model(**row).logits[0, 5:]
        alone = paddle.concat([model(**sample).logits[0] for sample in samples])
    assert float((logits - alone).abs().max()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_packed_losses_and_gradients_equal_unpacked(case, golden_model, samples):
    model = golden_model(case)
    model.train()
    counts = [int((sample["labels"] != -100).sum()) for sample in samples]
    output = model(**packed(samples, padding=3))
    losses = [model(**sample) for sample in samples]
    by_tokens = np.average([float(one.loss) for one in losses], weights=counts)
    assert float(output.loss) == pytest.approx(by_tokens, abs=1e-5)
    by_samples = np.mean([float(one.aux_loss) for one in losses])
    assert float(output.aux_loss) == pytest.approx(by_samples, rel=1e-5)
    output.next_token_loss.backward()  # alone: samples weigh by their tokens
    together = model.language.model.layers[0].self_attn.o_proj.weight.grad.numpy()
    model.clear_gradients()
    total = sum(one.next_token_loss * count for one, count in zip(losses, counts, strict=True))
    (total / sum(counts)).backward()
    alone = model.language.model.layers[0].self_attn.o_proj.weight.grad.numpy()
    assert np.abs(together - alone).max() < 1e-5 * np.abs(alone).max() + 1e-8
    model.clear_gradients()


@pytest.mark.slow
@paddle.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_fused_attention_equals_blocks(case, golden_model, golden, samples):
    """A model made for a GPU's fused attention, which the CPU computes plainly."""
    plain, row = golden_model(case), packed(samples, padding=5)
    fused = type(plain)(plain.config, ExecutionConfig(fused_attention=True))
    fused.load_weights(golden / case)
    fused.eval()
    assert float((fused(**row).logits - plain(**row).logits)[0, 5:].abs().max()) < 1e-4


def test_a_plan_of_the_host_is_what_the_model_would_read(golden_model, samples):
    model, row = golden_model("mla_greedy"), packed(samples, padding=5)
    crops, marks = row["images_spatial_crop"].numpy(), row["images_seq_mask"].numpy()
    fusion = plan_fusion(model.layout, crops, marks, row["images"].shape[1])
    plan = plan_segments(row["segment_ids"].numpy(), fusion, row["labels"].numpy())
    model.train()
    read, told = model(**row), model(**row, plan=plan)
    assert float(read.loss) == float(told.loss) and float(read.aux_loss) == float(told.aux_loss)
    del row["segment_ids"]
    assert float(model(**row, plan=plan).loss) == float(told.loss), "the plan has all of it"
