"""Token dropping: in training, no group of experts computes more than its budget of routed tokens.

Source: DeepSeek-V2 (arXiv 2405.04434, section 2.2.4), where a group of neighbouring experts is a device. Its
budget is the mean over the groups times a capacity factor. Over the budget the routed tokens with the lowest
scores are dropped. What belongs to protected sequences stays whatever the load, and nothing is dropped in
evaluation.
"""

import dataclasses
from dataclasses import dataclass

import paddle
import paddle.nn.functional as F

from paddlemix_vl2.models.moe.routing import Routing

# Scores lie between 0 and 1: more than any of them puts the protected first.
_PROTECTED_FIRST = 2.0


@dataclass(frozen=True)
class CapacityLimiter:
    """The budgets of a micro-batch of M tokens.

    Attributes:
        num_groups: D, groups of neighbouring experts; divides their number.
        capacity_factor: budget of a group over the mean load of all groups; 1 in DeepSeek-V2.
        used: bool [M], False on padding, of which everything is dropped.
        protected: bool [M], tokens of the sequences that are never dropped; about a tenth in DeepSeek-V2.
    """

    num_groups: int
    capacity_factor: float
    used: paddle.Tensor
    protected: paddle.Tensor

    @paddle.no_grad()
    def capacity_mask(self, topk_idx: paddle.Tensor, scores: paddle.Tensor) -> paddle.Tensor:
        """Which routed tokens are computed, bool [M, K].

        Args:
            topk_idx: int64 [M, K], the choices of each token.
            scores: float32 [M, E], the affinity of each token to every expert.
        """
        num_tokens, top_k = topk_idx.shape
        groups = (topk_idx // (scores.shape[-1] // self.num_groups)).flatten()
        priority = paddle.take_along_axis(scores, topk_idx, axis=1)
        priority = priority + self.protected.astype(priority.dtype).unsqueeze(-1) * _PROTECTED_FIRST
        priority = paddle.where(self.used.unsqueeze(-1), priority, paddle.full_like(priority, -1.0)).flatten()
        # Two stable sorts: by group, and in each group from the first to keep to the last.
        order = priority.argsort(descending=True, stable=True)
        order = paddle.gather(order, paddle.gather(groups, order).argsort(stable=True))
        loads = F.one_hot(groups, self.num_groups).sum(axis=0).astype("int64")
        first = paddle.gather(loads.cumsum() - loads, paddle.gather(groups, order))
        place = paddle.gather(paddle.arange(groups.size) - first, order.argsort())
        within = (place.astype("float64") < self._budget(top_k)).reshape([num_tokens, top_k])
        return (within | self.protected.unsqueeze(-1)) & self.used.unsqueeze(-1)

    def limit(self, routing: Routing) -> Routing:
        """The routing with what is dropped marked, and without weight."""
        mask = self.capacity_mask(routing.topk_idx, routing.scores.detach())
        weight = routing.topk_weight * mask.astype("float32")
        return dataclasses.replace(routing, capacity_mask=mask, topk_weight=weight)

    def _budget(self, top_k: int) -> paddle.Tensor:
        """Routed tokens that a group computes at most, float64 scalar: stays on the device that computes
        it."""
        return (self.used.astype("float64").sum() * (self.capacity_factor * top_k / self.num_groups)).ceil()
