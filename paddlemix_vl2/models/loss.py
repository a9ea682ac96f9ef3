"""The training loss: next-token cross-entropy on the positions that are learned."""

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.distributed.fleet.utils import recompute

from paddlemix_vl2 import device
from paddlemix_vl2.layouts.batch_plan import IGNORE_ID

# Rows of logits that exist at once: 256 x 129,280 floats are 132 MB.
ROWS_PER_SLICE = 256


def next_token_loss(
    hidden_states: paddle.Tensor,
    labels: paddle.Tensor,
    lm_head: nn.Layer,
    targets: np.ndarray | None = None,
) -> paddle.Tensor:
    """Mean cross-entropy in float32, with logits computed for learned positions only, some rows at a time.

    Args:
        hidden_states: final hidden states [B, T, H].
        labels: int64 [B, T], not shifted; ``IGNORE_ID`` where nothing is learned.
        lm_head: maps [rows, H] to [rows, V].
        targets: int64, places in [B, T - 1] whose next token is learned, where the host knows them.

    Returns:
        float32 scalar; 0 (with a zero gradient) where no position is learned, as a mean over none would be
        NaN.
    """
    next_tokens = labels[:, 1:].flatten()
    index = (
        paddle.nonzero(next_tokens != IGNORE_ID).flatten() if targets is None else device.to_tensor(targets)
    )
    count = index.shape[0]
    if count == 0:
        return hidden_states.astype("float32").sum() * 0.0
    rows = paddle.gather(hidden_states[:, :-1].flatten(stop_axis=1), index)
    next_tokens = paddle.gather(next_tokens, index)

    def summed_loss(some_rows: paddle.Tensor, some_tokens: paddle.Tensor) -> paddle.Tensor:
        return F.cross_entropy(lm_head(some_rows).astype("float32"), some_tokens, reduction="sum")

    total = paddle.zeros([])
    for first in range(0, count, ROWS_PER_SLICE):
        part = rows[first : first + ROWS_PER_SLICE], next_tokens[first : first + ROWS_PER_SLICE]
        # Recomputed in the backward pass: kept for it, the slices would add up to the whole logits.
        total = total + (summed_loss(*part) if rows.stop_gradient else recompute(summed_loss, *part))
    return total / count
