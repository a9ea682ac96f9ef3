"""What only a GPU can show: its fused kernels and 16-bit weights against the CPU's float32. Skipped without
one."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2 import device
from paddlemix_vl2.models.families.deepseek_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.models.layers.attention_mask import padding_mask
from paddlemix_vl2.models.layers.attention_ops import (
    blocked_causal_attention,
    dense_mask,
    fused_causal_attention,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not paddle.is_compiled_with_cuda(), reason="this Paddle is a CPU build"),
]


@pytest.fixture(autouse=True)
def on_gpu():
    before = paddle.get_device()
    device.set_device("gpu")
    yield
    paddle.set_device(before)


@pytest.mark.parametrize("start", [0, 30])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("value_dim", [128, 192])
def test_fused_attention_equals_blocks(start, padded, value_dim):
    paddle.seed(0)
    queries, keys = paddle.randn([2, 300 - start, 4, 192]), paddle.randn([2, 300, 4, 192])
    values = paddle.randn([2, 300, 4, value_dim])
    mask = padding_mask([40, 0] if padded else [0, 0], 300 - start, start)
    blocks = blocked_causal_attention(queries, keys, values, mask, 0.07)
    narrow = [x.astype("bfloat16") for x in (queries, keys, values)]
    dense = dense_mask(mask, 2, 300 - start, 300, paddle.bfloat16)
    fused = fused_causal_attention(*narrow, dense, 0.07).astype("float32")
    # bfloat16 keeps eight bits: averages of values of order 1 are off by a few hundredths at most.
    assert float((fused - blocks).abs()[:, 40:].max()) < 0.05
    assert bool(paddle.isfinite(fused).all())


@pytest.mark.parametrize("case", ["mha_greedy", "mla_greedy", "mla_noaux_tc"])
@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-2), ("bfloat16", 0.5)])
def test_logits_on_the_gpu(case, dtype, close, golden, expected, prompt_batch):
    """TF32 products and 16-bit weights differ from the recorded float32; a wrong formula differs by whole
    units."""
    model = DeepseekVLV2ForCausalLM.from_pretrained(golden / case, dtype=dtype, progress=False)
    batch = {key: value.cuda() for key, value in prompt_batch.items()}
    with paddle.no_grad():
        logits = model(**batch).logits[:, -16:].astype("float32").numpy()
    assert np.abs(logits - expected(case)["logits_last16"]).mean() < close
