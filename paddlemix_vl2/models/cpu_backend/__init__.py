"""The model's layers on the CPU's own kernels, for inference with bfloat16 and int8 weights. Optional: see
:mod:`paddlemix_vl2.kernels.build`."""

from paddlemix_vl2.models.cpu_backend.choice import choose_weights, kernels_problem
from paddlemix_vl2.models.cpu_backend.convert import WeightPacker, convert_model, kernel_execution

__all__ = ["WeightPacker", "choose_weights", "convert_model", "kernel_execution", "kernels_problem"]
