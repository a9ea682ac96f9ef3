"""Expert parallelism: which process holds which experts, and token dispatch between processes."""

from paddlemix_vl2.distributed.dispatch import AllReduceTokenDispatcher, AllToAllTokenDispatcher
from paddlemix_vl2.distributed.mesh import ExpertMesh, check_experts, make_mesh

__all__ = ["AllReduceTokenDispatcher", "AllToAllTokenDispatcher", "ExpertMesh", "check_experts", "make_mesh"]
