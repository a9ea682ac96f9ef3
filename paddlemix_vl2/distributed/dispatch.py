"""The two token dispatchers of expert parallelism, which ``DeepseekV2MoE`` takes.

::

    rows sorted by expert --dispatch--> rows of this process's experts, sorted --experts--> --combine--> rows

Both give what one process with all experts computes. The rows may be spread unevenly; a process may have
none.
"""

import numpy as np
import paddle
from paddle import distributed
from paddle.autograd import PyLayer
from paddle.distributed.communication.group import Group

from paddlemix_vl2.distributed.mesh import ExpertMesh
from paddlemix_vl2.models.moe.dispatch import Dispatched


class AllToAllTokenDispatcher:
    """Sends every row to the process of its expert: for training, where processes have tokens of their own.

    All processes of the group must call :meth:`dispatch` and :meth:`combine` equally often, forward and
    backward.

    Attributes:
        experts: global indices of the experts of this process.
    """

    def __init__(self, mesh: ExpertMesh, num_experts: int):
        self.experts = mesh.experts(num_experts)
        self._group, self._degree, self._position = mesh.expert_group, mesh.degree, mesh.position

    def dispatch(self, rows: paddle.Tensor, tokens_per_expert: paddle.Tensor) -> Dispatched:
        """Send the rows to their experts.

        Args:
            rows: [R, H], sorted by expert.
            tokens_per_expert: int64 [E], how many of them are for each expert.

        Returns:
            the rows of all processes for this one's experts, sorted by expert, then by process.
        """
        gathered: list[paddle.Tensor] = []
        distributed.all_gather(gathered, tokens_per_expert, group=self._group)
        table = paddle.stack(gathered).numpy().reshape([self._degree, self._degree, -1])  # [from, to, expert]
        arriving = table[:, self._position]  # [from, own expert]
        counts = table.sum(axis=-1)
        arrived = _Exchange.apply(rows, counts, self._group)
        order = paddle.to_tensor(sort_by_expert(arriving))
        return Dispatched(paddle.gather(arrived, order), arriving.sum(axis=0).tolist(), (order, counts))

    def combine(self, outputs: paddle.Tensor, dispatched: Dispatched) -> paddle.Tensor:
        """Send the experts' outputs [rows, H] back: [R, H], in the order in which the rows were given."""
        order, counts = dispatched.combine_metadata
        return _Exchange.apply(paddle.gather(outputs, order.argsort()), counts.T, self._group)


def sort_by_expert(counts: np.ndarray) -> np.ndarray:
    """Positions of the rows sorted by expert among rows sorted by process, and by expert within each.

    Args:
        counts: int64 [processes, experts].

    Returns:
        int64 [rows].

    Example:
        >>> sort_by_expert(np.array([[2, 1], [1, 0]])).tolist()  # 0, 1 | 2 from the first, 3 | from the other
        [0, 1, 3, 2]
    """
    experts = np.tile(np.arange(counts.shape[1]), counts.shape[0])
    return np.repeat(experts, counts.flatten()).argsort(kind="stable")


class AllReduceTokenDispatcher:
    """For processes that all have the same tokens, as when they answer one question together: each runs its
    own experts on them, and the outputs are summed. Without gradients.

    Attributes:
        experts: global indices of the experts of this process.
    """

    def __init__(self, mesh: ExpertMesh, num_experts: int):
        self.experts = mesh.experts(num_experts)
        self._group = mesh.expert_group

    def dispatch(self, rows: paddle.Tensor, tokens_per_expert: paddle.Tensor) -> Dispatched:
        """Of the rows [R, H], sorted by expert, those of this process's experts: they are neighbours."""
        counts = tokens_per_expert.tolist()
        first = sum(counts[: self.experts.start])
        counts = counts[self.experts.start : self.experts.stop]
        last = first + sum(counts)
        return Dispatched(rows[first:last], counts, (first, rows.shape[0] - last))

    def combine(self, outputs: paddle.Tensor, dispatched: Dispatched) -> paddle.Tensor:
        """The outputs of all processes in the order of the rows, [R, H]."""
        before, behind = dispatched.combine_metadata
        width = outputs.shape[-1]
        parts = [paddle.zeros([before, width], outputs.dtype), outputs]
        whole = paddle.concat([*parts, paddle.zeros([behind, width], outputs.dtype)])
        distributed.all_reduce(whole, group=self._group)
        return whole


class _Exchange(PyLayer):
    """Rows to other processes; in the backward pass their gradients the way back."""

    @staticmethod
    def forward(ctx, rows: paddle.Tensor, counts: np.ndarray, group: Group) -> paddle.Tensor:
        ctx.combine_metadata = counts.T, group
        return exchange_rows(rows, counts, group)

    @staticmethod
    def backward(ctx, grad: paddle.Tensor) -> paddle.Tensor:
        return exchange_rows(grad, *ctx.combine_metadata)


@paddle.no_grad()
def exchange_rows(rows: paddle.Tensor, counts: np.ndarray, group: Group) -> paddle.Tensor:
    """Give each process of the group its rows and take those that it has for this one.

    Args:
        rows: [rows, H], in the order of the processes that they are for.
        counts: int64 [from, to], how many rows go from each process to each.

    Returns:
        [rows, H], in the order of the processes that they are from.
    """
    if distributed.get_backend(group) == "GLOO":  # the one that has no all-to-all
        return _exchange_by_broadcast(rows, counts, group)
    send, receive = counts[group.rank].tolist(), counts[:, group.rank].tolist()
    arrived = paddle.empty([sum(receive), rows.shape[1]], rows.dtype)
    distributed.alltoall_single(arrived, rows.contiguous(), send, receive, group=group)
    return arrived


def _exchange_by_broadcast(rows: paddle.Tensor, counts: np.ndarray, group: Group) -> paddle.Tensor:
    """Each process broadcasts all of its rows, and each takes its own: more traffic than needed. Not by
    messages between two, which over gloo carry a number that counts the calls of a process: with more than
    two processes these get out of step."""
    arrived = []
    for sender, total in enumerate(counts.sum(axis=1).tolist()):
        block = (
            rows.contiguous() if sender == group.rank else paddle.empty([total, rows.shape[1]], rows.dtype)
        )
        if total:
            distributed.broadcast(block, group.ranks[sender], group=group)
        first = int(counts[sender, : group.rank].sum())
        arrived.append(block[first : first + int(counts[sender, group.rank])])
    return paddle.concat(arrived)
