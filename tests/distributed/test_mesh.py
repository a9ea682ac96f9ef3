"""Who holds what, and which degrees are refused."""

import pytest

from paddlemix_vl2.distributed import ExpertMesh, check_experts, make_mesh


def test_experts_are_contiguous_blocks():
    meshes = [ExpertMesh(rank, 4, 2, expert_group=None, data_group=None) for rank in range(4)]
    assert [mesh.experts(8) for mesh in meshes] == [range(0, 4), range(4, 8), range(0, 4), range(4, 8)]


def test_one_group_writes_each_tensor_once():
    plans = [ExpertMesh(rank, 4, 2, None, None).shard_plan(8) for rank in range(4)]
    assert [plan.index for plan in plans] == [0, 1, 2, 3]
    names = {
        "language.model.layers.1.mlp.experts.3.up_proj.weight": 0,
        "language.model.layers.1.mlp.experts.4.up_proj.weight": 1,
        "language.model.layers.1.mlp.shared_experts.up_proj.weight": 0,
        "vision.norm.weight": 0,
    }
    assert {name: plans[3].writer_of(name) for name in names} == names


@pytest.mark.parametrize(("degree", "experts"), [(3, 8), (2, None), (16, 8)])
def test_experts_that_cannot_be_divided(degree, experts):
    with pytest.raises(
        ValueError, match=rf"degree is {degree}; it must divide the model's {experts or 0} rou"
    ):
        check_experts(degree, experts)


def test_one_process_cannot_share_experts():
    assert make_mesh(1) is None
    with pytest.raises(ValueError, match=r"degree is 2; it must divide the 1 processes .*--nproc_per_node 2"):
        make_mesh(2)
