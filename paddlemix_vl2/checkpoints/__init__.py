"""Checkpoints in the published layout: find, read, check, load and save them."""

from paddlemix_vl2.checkpoints.expected import expected_tensors
from paddlemix_vl2.checkpoints.hub import resolve_checkpoint
from paddlemix_vl2.checkpoints.load import load_checkpoint
from paddlemix_vl2.checkpoints.save import save_checkpoint

__all__ = ["expected_tensors", "load_checkpoint", "resolve_checkpoint", "save_checkpoint"]
