"""Derivatives of programs: the adjoint of an op follows from its body and its index expressions (docs/gradients.md)."""

from intarsia.ir.gradients.forward import push_forward
from intarsia.ir.gradients.reverse import gradients

__all__ = ["gradients", "push_forward"]
