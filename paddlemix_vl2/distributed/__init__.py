"""Experts over several processes: who holds which, and how tokens get to them and back."""

from paddlemix_vl2.distributed.dispatch import ExchangingDispatcher, ReplicatedDispatcher
from paddlemix_vl2.distributed.mesh import ExpertMesh, check_experts, make_mesh

__all__ = ["ExchangingDispatcher", "ExpertMesh", "ReplicatedDispatcher", "check_experts", "make_mesh"]
