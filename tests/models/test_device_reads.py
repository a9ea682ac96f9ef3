"""What the host reads from the device: one value per MoE layer, the tokens of its experts, and nothing else.

A read waits for everything that the device has been given. What the host needs beyond the counts, it knows
from the plan that the processor and the loader make of a batch.
"""

from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from paddlemix_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.data.packing import collate
from paddlemix_vl2.layouts.batch_plan import plan_rows
from paddlemix_vl2.layouts.fusion_plan import plan_fusion
from paddlemix_vl2.models.layers.execution import ExecutionConfig
from paddlemix_vl2.models.layers.mlp import Experts
from paddlemix_vl2.models.moe.capacity import CapacityLimiter
from paddlemix_vl2.models.moe.context import RoutingContext

COUNTS = "tolist at routing.py"  # the one read of a layer


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, [height, width, 3], np.uint8))


def conversation(text: str, answer: str, *pictures) -> list[dict]:
    return [
        {"role": "<|User|>", "content": "<image>\n" * len(pictures) + text, "images": list(pictures)},
        {"role": "<|Assistant|>", "content": answer},
    ]


def test_the_counters_count(reads, dispatched):
    x = paddle.ones([2])
    run = dispatched(lambda: paddle.nonzero(x + x))
    assert run.all == ["add", "nonzero"] and run.waiting == ["nonzero"] and run.outside == 2
    assert reads == []
    one = x[0]
    found = [x.numpy().size, x.tolist()[0], one.item(), float(one), int(one), bool(one)]
    assert found == [2, 1, 1, 1, 1, True]
    assert "ab"[one.astype("int64")] == "b" and x.cpu() is x
    named = ["numpy", "tolist", "item", "__float__", "__int__", "__bool__", "__index__", "cpu"]
    assert [read.split()[0] for read in reads] == named
    assert all(f" {Path(__file__).name}:" in read for read in reads)


@pytest.fixture
def moe_layers(demo_model) -> int:
    config = demo_model.config.language_config
    return sum(config.is_moe_layer(index) for index in range(config.num_hidden_layers))


@pytest.fixture
def checked(reads, dispatched):
    """``checked(layers, function, *arguments, **keywords)``: runs it, and checks what it reads."""

    def check(layers, function, *arguments, **keywords):
        results = []
        reads.clear()
        run = dispatched(lambda: results.append(function(*arguments, **keywords)))
        found = list(reads)
        assert len(found) == layers and all(read.startswith(COUNTS) for read in found), found
        assert not run.waiting, f"operators that wait on a GPU: {run.waiting}"
        return results[0]

    return check


@pytest.mark.parametrize("chunk_size", [None, 64])
def test_prompts_and_steps(chunk_size, demo_model, demo_processor, moe_layers, checked):
    """Pictures of one and of several tiles, rows of unequal lengths."""
    conversations = [
        conversation("What is this?", "", picture(60, 60)),
        conversation(
            "And which of these two is larger, the first or the second?", "", *[picture(90, 40)] * 2
        ),
        conversation("Hello", ""),
    ]
    batch = demo_processor(conversations=conversations)
    length = batch["input_ids"].shape[1]
    assert batch.plan.padding.any() and batch.plan.fusion is not None
    chunks = 1 if chunk_size is None else -(-length // chunk_size)
    _, cache = checked(chunks * moe_layers, demo_model.prefill, batch, length + 4, chunk_size)
    tokens = paddle.to_tensor([[5], [6], [7]])
    for _ in range(3):
        checked(moe_layers, demo_model.decode_step, tokens, cache)


@pytest.fixture
def rows(demo_processor):
    """Training samples: with pictures and without, two in a row and one."""
    samples = [
        demo_processor.process_one(messages, inference_mode=False)
        for messages in (
            conversation("What is this?", "A square.", picture(60, 60)),
            conversation("Hello", "Good morning."),
            conversation("And this?", "Two tiles.", picture(90, 40)),
        )
    ]
    return [samples[:2], samples[2:]]


@pytest.fixture
def training(demo_model):
    demo_model.train()
    yield demo_model
    demo_model.eval()
    demo_model.clear_gradients(set_to_zero=False)


def test_a_training_pass_of_packed_rows(training, demo_processor, rows, moe_layers, checked):
    """And its backward pass, which reads nothing; dropping tokens reads nothing more."""
    layout = demo_processor.layout
    batch = collate(rows, demo_processor.tokenizer.pad_token_id, -100, layout).to_tensors()
    output = checked(moe_layers, training, **batch)
    checked(0, output.loss.backward)
    used = (batch.segment_ids > 0).flatten()
    context = RoutingContext(CapacityLimiter(2, 0.7, used, ~used))
    output = checked(moe_layers, training, **batch, context=context)
    assert all(routing.capacity_mask is not None for routing in output.routings)


def test_a_training_pass_of_padded_rows(training, demo_processor, rows, moe_layers, checked):
    samples = [sample for row in rows for sample in row]
    batch = demo_processor.batchify(samples)
    assert batch.plan.padding.any() and batch.labels is not None
    output = checked(moe_layers, training, **batch)
    assert float(output.loss) > 0 and output.logits is None


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("case", ["mha_greedy", "mla_greedy", "mla_noaux_tc"])
def test_other_models(case, fused, golden, recorded_batch, checked):
    """Recorded batches with a plan: both kinds of attention, and made for a GPU's."""
    config = DeepseekVLV2ForCausalLM.config_class.from_json(golden / case)
    model = DeepseekVLV2ForCausalLM(config, ExecutionConfig(fused_attention=fused))
    marks, crops = (recorded_batch[name].numpy() for name in ("images_seq_mask", "images_spatial_crop"))
    fusion = plan_fusion(model.layout, crops, marks, recorded_batch["images"].shape[1])
    padding = (recorded_batch["attention_mask"] == 0).sum(axis=1).numpy()
    plan = plan_rows(padding, marks.shape[1], fusion, recorded_batch["labels"].numpy())
    checked(2, model, **recorded_batch, plan=plan)
    model.eval()
    _, cache = checked(2, model.prefill, {**recorded_batch, "plan": plan}, marks.shape[1] + 2)
    checked(2, model.decode_step, paddle.to_tensor([[5], [6]]), cache)


def test_grouped_experts_read_nothing_in_a_step(golden, checked):
    model = DeepseekVLV2ForCausalLM.from_pretrained(golden / "mla_greedy", "float32", progress=False)
    for layer in model.sublayers():
        if isinstance(layer, Experts):
            layer.group_weights()
    ids = paddle.to_tensor([list(range(3, 23))])
    _, cache = model.prefill({"input_ids": ids, "plan": plan_rows([0], 20)}, 22)
    checked(0, model.decode_step, ids[:, :1], cache)


@pytest.mark.parametrize("known", [False, True])
def test_tensors_without_a_plan_are_read(known, demo_model, demo_processor, moe_layers, reads):
    """The counters above would see it."""
    batch = demo_processor(conversations=[conversation("What is this?", "", picture(60, 60))])
    tensors = {name: value for name, value in batch.items() if known or name != "plan"}
    reads.clear()
    demo_model.prefill(tensors, batch["input_ids"].shape[1] + 1)
    assert len(reads) == moe_layers + (0 if known else 3), reads
