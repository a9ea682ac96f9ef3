"""Kernels of our own for inference on the CPU, with bfloat16 and int8 weights. Optional: see ``build.py``."""

from paddlemix_vl2.models.engine.conversion import (
    PackWhileLoading,
    accelerate,
    choose_weights,
    is_accelerated,
)

__all__ = ["PackWhileLoading", "accelerate", "choose_weights", "is_accelerated"]
