"""Mixtures of experts.

routing      the decision of a router; dispatch to the experts, combine of their outputs
routers      the routers of DeepSeek's models; registry: which one a config asks for
context      constraints on the routers in a pass; capacity: budgets of groups of experts
dispatch     how tokens reach the experts of other processes; the experts are in models/layers/mlp.py
layer        all of it in the place of an MLP
losses       balance losses; statistics: loads, entropy, drops over an optimizer step
"""

from paddlemix_vl2.models.moe import routers  # noqa: F401 (fills the registry)
