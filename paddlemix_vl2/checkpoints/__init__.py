"""Checkpoints in the published layout: read, check, load and save them."""

from paddlemix_vl2.checkpoints.load import load_checkpoint
from paddlemix_vl2.checkpoints.save import save_checkpoint
from paddlemix_vl2.checkpoints.specs import ParameterSpec, parameter_specs
from paddlemix_vl2.checkpoints.writer import SINGLE_PROCESS, ShardPlan

__all__ = [
    "SINGLE_PROCESS",
    "ParameterSpec",
    "ShardPlan",
    "load_checkpoint",
    "parameter_specs",
    "save_checkpoint",
]
