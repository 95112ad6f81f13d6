"""Triton for NVIDIA GPUs."""
