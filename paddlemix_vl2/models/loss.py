"""The training loss: next-token cross-entropy on supervised positions only."""

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.distributed.fleet.utils import recompute

IGNORE_ID = -100
# Rows of logits that exist at once: 256 x 129,280 floats are 132 MB.
ROWS_PER_SLICE = 256


def next_token_loss(hidden: paddle.Tensor, labels: paddle.Tensor, lm_head: nn.Layer) -> paddle.Tensor:
    """Mean cross-entropy in float32, with logits computed for supervised positions only, some rows at a time.

    Args:
        hidden: final hidden states [B, T, H].
        labels: int64 [B, T], not shifted; ``IGNORE_ID`` where nothing is supervised.
        lm_head: maps [rows, H] to [rows, V].

    Returns:
        float32 scalar; 0 (with a zero gradient) where no position is supervised, as a mean over none would
        be NaN.
    """
    targets = labels[:, 1:].flatten()
    supervised = paddle.nonzero(targets != IGNORE_ID).flatten()
    count = supervised.shape[0]
    if count == 0:
        return hidden.astype("float32").sum() * 0.0
    rows = paddle.gather(hidden[:, :-1].flatten(stop_axis=1), supervised)
    targets = paddle.gather(targets, supervised)

    def summed_loss(some_rows: paddle.Tensor, some_targets: paddle.Tensor) -> paddle.Tensor:
        return F.cross_entropy(lm_head(some_rows).astype("float32"), some_targets, reduction="sum")

    total = 0.0
    for first in range(0, count, ROWS_PER_SLICE):
        part = rows[first : first + ROWS_PER_SLICE], targets[first : first + ROWS_PER_SLICE]
        # Recomputed in the backward pass: kept for it, the slices would add up to the whole logits.
        total = total + (summed_loss(*part) if rows.stop_gradient else recompute(summed_loss, *part))
    return total / count
