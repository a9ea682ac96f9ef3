"""Layers that several models share: attention with masks and caches, MLPs, norm, RoPE, LoRA."""
