"""The decision of a router, with dispatch of the tokens to their experts and combine of the outputs. It is
passed on; no layer stores it.

::

    tokens [M, H] --dispatch--> rows [R, H] sorted by expert --experts--> [R, H] --combine--> [M, H]

A router of another kind (experts that choose their tokens, slots that mix them) gives an object of its own
with the same two methods.
"""

from dataclasses import dataclass
from typing import cast

import paddle
import paddle.nn.functional as F


@dataclass(frozen=True)
class Routing:
    """Token choice: each of M tokens goes to K of E experts.

    Attributes:
        topk_idx: int64 [M, K], the chosen experts of each token.
        topk_weight: float32 [M, K], their weights, with gradient.
        scores: float32 [M, E], the router's score of every expert, with gradient: what balance losses level.
        capacity_mask: bool [M, K], False for choices over an expert's budget, which are not computed; None
            where there is no budget.
    """

    topk_idx: paddle.Tensor
    topk_weight: paddle.Tensor
    scores: paddle.Tensor
    capacity_mask: paddle.Tensor | None = None

    @property
    def tokens_per_expert(self) -> paddle.Tensor:
        """Tokens that each expert computes, int64 [E]. Not by ``bincount``, which makes the host wait for a
        GPU."""
        chosen = F.one_hot(self.topk_idx, self.scores.shape[-1])
        if self.capacity_mask is not None:
            chosen = chosen * self.capacity_mask.unsqueeze(-1).astype(chosen.dtype)
        return chosen.sum(axis=[0, 1]).astype("int64")

    def dispatch(self, tokens: paddle.Tensor) -> "DispatchedTokens":
        """A row for every routed token that is computed, sorted by expert.

        Args:
            tokens: [M, H].
        """
        tokens_per_expert = self.tokens_per_expert
        # The one value that a layer reads from the device.
        counts = cast(list[int], tokens_per_expert.tolist())
        experts = self.topk_idx
        if self.capacity_mask is not None:
            experts = paddle.where(
                self.capacity_mask, experts, paddle.full_like(experts, self.scores.shape[-1])
            )
        order = computed = experts.flatten().argsort(stable=True)
        if self.capacity_mask is not None:  # those over a budget are behind all others
            computed = order[: sum(counts)]
        rows = paddle.gather(tokens, computed // self.topk_idx.shape[1])
        return DispatchedTokens(rows, tokens_per_expert, counts, order)

    def combine(self, outputs: paddle.Tensor, order: paddle.Tensor | None = None) -> paddle.Tensor:
        """The weighted sum of each token's experts, float32 [M, H].

        Args:
            outputs: [R, H], of the experts.
            order: of :class:`DispatchedTokens`; None where the outputs are in the order of the tokens.
        """
        if paddle.amp.is_autocast_enabled():  # which would compute in 16 bits
            with paddle.amp.auto_cast(enable=False):
                return self.combine(outputs, order)
        if order is not None:
            missing = order.size - outputs.shape[0]
            if missing:  # a routed token that is not computed adds nothing
                nothing = paddle.zeros([missing, outputs.shape[-1]], outputs.dtype)
                outputs = paddle.concat([outputs, nothing])
            outputs = paddle.gather(outputs, order.argsort())
        outputs = outputs.reshape([*self.topk_weight.shape, outputs.shape[-1]])
        return paddle.matmul(self.topk_weight.unsqueeze(1), outputs.astype("float32")).squeeze(1)


@dataclass(frozen=True)
class DispatchedTokens:
    """Routed tokens, sorted by expert.

    Attributes:
        rows: [R, H], one for every routed token that is computed.
        tokens_per_expert: int64 [E], how many of them are for each expert.
        counts: the same on the host.
        order: int64 [M * K], the routed tokens as they are sorted, those that are not computed behind all
            others.
    """

    rows: paddle.Tensor
    tokens_per_expert: paddle.Tensor
    counts: list[int]
    order: paddle.Tensor
