"""The interface through which routed tokens reach experts in other processes."""

from dataclasses import dataclass
from typing import Any, Protocol

import paddle


@dataclass(frozen=True)
class Dispatched:
    """Rows that an :class:`ExpertDispatcher` has brought to the experts of this process.

    Attributes:
        rows: [R, H], sorted by expert.
        counts: how many of them are for each of the dispatcher's ``experts``.
        combine_metadata: what ``combine`` needs to know.
    """

    rows: paddle.Tensor
    counts: list[int]
    combine_metadata: Any


class ExpertDispatcher(Protocol):
    """Where the experts are spread over processes: brings rows to their experts and the outputs back.

    Attributes:
        experts: global indices of the experts of this process.
    """

    experts: range

    def dispatch(self, rows: paddle.Tensor, tokens_per_expert: paddle.Tensor) -> Dispatched:
        """Rows [R, H] sorted by expert, ``tokens_per_expert`` int64 [E] of them for each."""

    def combine(self, outputs: paddle.Tensor, dispatched: Dispatched) -> paddle.Tensor:
        """What the experts made of ``dispatched.rows``; [R, H] in the order of the rows given."""
