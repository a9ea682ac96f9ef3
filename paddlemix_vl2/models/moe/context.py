"""Constraints on the routers, passed down a forward pass and the same for all layers."""

from dataclasses import dataclass

from paddlemix_vl2.models.moe.capacity import CapacityLimiter


@dataclass(frozen=True)
class RoutingContext:
    """Attributes:
    capacity: the budgets of groups of experts, in training; None where nothing is dropped.
    """

    capacity: CapacityLimiter | None = None
