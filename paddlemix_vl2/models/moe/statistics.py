"""Statistics of the routers over an optimizer step."""

from collections.abc import Callable, Sequence
from operator import add

import paddle
import paddle.nn.functional as F

from paddlemix_vl2.models.moe.routing import Routing


class RouterStatistics:
    """Adds up, over the micro-batches of an optimizer step, how the tokens were routed.

    Attributes:
        tokens_per_expert: float32 [layers, E], as chosen; padding does not count.
        entropy: float32 [layers], sum over tokens of the entropy of the router's scores, in nats.
        dropped: float32 [layers], routed tokens that were dropped.
        tokens: float32 scalar.
        is_empty: whether nothing has been added.
    """

    def __init__(self) -> None:
        self._sums: tuple[paddle.Tensor, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not self._sums

    @property
    def tokens_per_expert(self) -> paddle.Tensor:
        return self._sums[0]

    @paddle.no_grad()
    def add(self, routings: Sequence[Routing], segment_ids: paddle.Tensor) -> None:
        """Count the tokens of a micro-batch; ``segment_ids`` int64 [B, T] is 0 on padding."""
        if not routings:
            return
        used = (segment_ids.flatten() > 0).astype("float32")
        counts, entropies, dropped = [], [], []
        for routing in routings:
            scores = routing.scores.detach()
            chosen = F.one_hot(routing.topk_idx, scores.shape[-1]).sum(axis=1)  # [M, E]
            counts.append(paddle.matmul(used.unsqueeze(0), chosen).flatten())
            shares = scores / scores.sum(axis=-1, keepdim=True)
            entropies.append((-(shares * (shares + 1e-20).log()).sum(axis=-1) * used).sum())
            dropped.append(_dropped(routing, used))
        step = (paddle.stack(counts), paddle.stack(entropies), paddle.stack(dropped), used.sum())
        self._sums = tuple(map(add, self._sums, step)) if self._sums else step

    def reduce(self, all_reduce: Callable[[paddle.Tensor], object]) -> None:
        """Sum over the processes, by a function that sums a tensor in place."""
        for tensor in self._sums:
            all_reduce(tensor)

    def values(self) -> dict[str, list]:
        """Per layer: ``max_vio`` = (max load - mean) / mean (arXiv 2408.15664), mean ``entropy`` of a token's
        scores in nats, ``expert_share`` of the choices for each expert, and ``dropped_share``, that of the
        choices which were dropped; nothing where nothing was added."""
        if not self._sums:
            return {}
        counts, entropy, dropped, tokens = self._sums
        mean = counts.mean(axis=-1)
        of_layers = {
            "max_vio": (counts.max(axis=-1) - mean) / mean.clip(min=1e-9),
            "entropy": entropy / tokens,
            "expert_share": counts / counts.sum(axis=-1, keepdim=True),
            "dropped_share": dropped / counts.sum(axis=-1),
        }
        return {name: values.numpy().tolist() for name, values in of_layers.items()}


def _dropped(routing: Routing, used: paddle.Tensor) -> paddle.Tensor:
    if routing.capacity_mask is None:
        return paddle.zeros([])
    missing = (~routing.capacity_mask).astype("float32").sum(axis=-1)
    return (missing * used).sum()
