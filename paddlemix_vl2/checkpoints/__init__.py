"""Checkpoints in the published layout: read, check, load and save them."""

from paddlemix_vl2.checkpoints.expected import expected_tensors
from paddlemix_vl2.checkpoints.load import load_checkpoint
from paddlemix_vl2.checkpoints.save import save_checkpoint
from paddlemix_vl2.checkpoints.writer import ALONE, Writers

__all__ = ["ALONE", "Writers", "expected_tensors", "load_checkpoint", "save_checkpoint"]
