"""Token dropping: in training, no device computes more than its budget of (token, choice) pairs.

Source: DeepSeek-V2 (arXiv 2405.04434, section 2.2.4). A device is a group of neighbouring experts, as in
:mod:`.balance`; its budget is the mean over the devices times a capacity factor. Over the budget the pairs
with the lowest scores are dropped. What belongs to protected sequences stays whatever the load, and nothing
is dropped in evaluation.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import paddle
import paddle.nn.functional as F

if TYPE_CHECKING:
    from paddlemix_vl2.models.moe import Routing

# Scores lie between 0 and 1: more than any of them puts the protected first.
_PROTECTED_FIRST = 2.0


@dataclass(frozen=True)
class TokenDropping:
    """What is dropped of a micro-batch of M tokens; the same for all mixture layers.

    Attributes:
        num_devices: D, groups of neighbouring experts; divides their number.
        capacity_factor: budget of a device over the mean load of all devices; 1 in DeepSeek-V2.
        used: bool [M], False on padding, of which all pairs are dropped.
        protected: bool [M], tokens of the sequences that are never dropped; about a tenth in DeepSeek-V2.
    """

    num_devices: int
    capacity_factor: float
    used: paddle.Tensor
    protected: paddle.Tensor

    @paddle.no_grad()
    def keep(self, experts: paddle.Tensor, scores: paddle.Tensor) -> paddle.Tensor:
        """Which pairs are computed, bool [M, K].

        Args:
            experts: int64 [M, K], the choices of each token.
            scores: float32 [M, E], the affinity of each token to every expert.
        """
        num_tokens, top_k = experts.shape
        devices = (experts // (scores.shape[-1] // self.num_devices)).flatten()
        priority = paddle.take_along_axis(scores, experts, axis=1)
        priority = priority + self.protected.astype(priority.dtype).unsqueeze(-1) * _PROTECTED_FIRST
        priority = paddle.where(self.used.unsqueeze(-1), priority, paddle.full_like(priority, -1.0)).flatten()
        # Two stable sorts: by device, and on each device from the first to keep to the last.
        order = priority.argsort(descending=True, stable=True)
        order = paddle.gather(order, paddle.gather(devices, order).argsort(stable=True))
        loads = F.one_hot(devices, self.num_devices).sum(axis=0).astype("int64")
        first = paddle.gather(loads.cumsum() - loads, paddle.gather(devices, order))
        place = paddle.gather(paddle.arange(devices.size) - first, order.argsort())
        within = (place.astype("float64") < self._budget(top_k)).reshape([num_tokens, top_k])
        return (within | self.protected.unsqueeze(-1)) & self.used.unsqueeze(-1)

    def apply(self, routing: "Routing") -> "Routing":
        """The routing with its pairs marked, and without weight on those that are dropped."""
        kept = self.keep(routing.experts, routing.scores.detach())
        return dataclasses.replace(routing, kept=kept, weights=routing.weights * kept.astype("float32"))

    def _budget(self, top_k: int) -> paddle.Tensor:
        """Pairs that a device computes at most, float64 scalar: stays on the device that computes it."""
        return (self.used.astype("float64").sum() * (self.capacity_factor * top_k / self.num_devices)).ceil()
