"""Which process holds which experts.

The experts are cut into as many contiguous blocks as the degree says; the processes of an expert-parallel
group, which are neighbours, hold one block each. Every process holds everything else. With four processes, a
degree of two and eight experts::

    rank                      0       1       2       3
    experts                   0-3     4-7     0-3     4-7
    expert-parallel groups    +-------+       +-------+
    expert-data groups        {0, 2} and {1, 3}: the copies of a block
"""

from dataclasses import dataclass

import paddle
from paddle import distributed
from paddle.distributed.communication.group import Group

from paddlemix_vl2.checkpoints import ShardPlan
from paddlemix_vl2.checkpoints.specs import expert_of
from paddlemix_vl2.distributed.collectives import wait_for_all


@dataclass(frozen=True)
class ExpertMesh:
    """This process's place.

    Attributes:
        rank: among all processes.
        world_size: all processes.
        degree: processes that share the experts.
        expert_group: the ``degree`` processes that hold all experts together, this one among them.
        data_group: the processes that hold the same experts as this one; None where there is no other.
    """

    rank: int
    world_size: int
    degree: int
    expert_group: Group
    data_group: Group | None

    @property
    def position(self) -> int:
        """Of this process in its expert-parallel group: which block of experts it holds."""
        return self.rank % self.degree

    def experts(self, num_experts: int) -> range:
        """Global indices of the experts that this process holds, of ``num_experts`` in a layer.

        Raises:
            ValueError: from :func:`check_experts`.
        """
        check_experts(self.degree, num_experts)
        block = num_experts // self.degree
        return range(self.position * block, (self.position + 1) * block)

    def all_reduce_expert_parallel(self, tensor: paddle.Tensor) -> None:
        """Add up in place what the processes have that hold all experts together."""
        distributed.all_reduce(tensor, group=self.expert_group)

    def all_reduce_expert_data_parallel(self, tensor: paddle.Tensor) -> None:
        """Add up in place what the processes have that hold the same experts."""
        if self.data_group is not None:
            distributed.all_reduce(tensor, group=self.data_group)

    def shard_plan(self, num_experts: int) -> ShardPlan:
        """Which process writes which tensors of a checkpoint: those of the first expert-parallel group write
        their experts, the first of them everything else too."""
        block = num_experts // self.degree
        return ShardPlan(
            index=self.rank,
            writer_of=lambda name: 0 if (expert := expert_of(name)) is None else expert // block,
            wait=wait_for_all,
        )


def check_experts(degree: int, num_experts: int | None) -> None:
    """ValueError where a layer's experts cannot be divided evenly."""
    num_experts = num_experts or 0
    if num_experts % degree or (degree > 1 and not num_experts):
        raise ValueError(
            f"expert_parallel_degree is {degree}; it must divide the model's {num_experts} routed experts"
        )


def make_mesh(degree: int) -> ExpertMesh | None:
    """The groups of this run; every process must call it. None where the degree is 1.

    Raises:
        ValueError: the degree does not divide the number of processes.
    """
    world_size = distributed.get_world_size()
    if world_size % degree:
        raise ValueError(
            f"expert_parallel_degree is {degree}; it must divide the {world_size} processes (start "
            f"several by python -m paddle.distributed.launch --nproc_per_node {degree} ...)"
        )
    if degree == 1:
        return None
    if not distributed.is_initialized():
        distributed.init_parallel_env()
    rank = distributed.get_rank()
    neighbours = [range(first, first + degree) for first in range(0, world_size, degree)]
    copies = [range(first, world_size, degree) for first in range(degree)] if world_size > degree else []
    expert_group = _own_group(neighbours, rank)
    return ExpertMesh(rank, world_size, degree, expert_group, _own_group(copies, rank))


def _own_group(partition: list[range], rank: int) -> Group | None:
    """The group of this process. All processes make all groups, in the same order; that of all processes is
    there already."""
    if len(partition) == 1:
        return distributed.get_group()
    own = None
    for ranks in partition:
        # Over gloo, a group that is made while members are still busy with another one may hang.
        wait_for_all()
        group = distributed.new_group(list(ranks))
        own = group if rank in ranks else own
    return own
