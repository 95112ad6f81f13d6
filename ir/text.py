"""The text form of a Module: every dump reads back, so that any stage can be the input of the next.

    intarsia.ir 1
    target cpu:x86-avx2

    func @mlp[B](%x: f32[B, 64], const %w: f32[64, 8], %p.layer.bias: f32[8]) {
      %0 = matmul %x, %w : f32[B, 8]
      %1 = compute [i < B, j < 8] (%0[i, j] + %p.layer.bias[j]) : f32[B, 8]
      %2 = reduce %1 combiner=sum axes=(1,) : f32[B]
      %3 = update %2[{min(%n[i], 7)}] += [i < B] (1.0) : f32[B]
      %4:2 = scan t in 0..B (%h = %0) while { … yield %5 } {
        …
        yield %6
        emit %7
      } : f32[B, 8], f32[B, B, 8]
      %8 = fused {
        …
        yield %9
      } : f32[B]
      %10 = call @mlp_0(%8, %x)[B] : f32[B]
      return %3, %4#1
    }

    kernel mlp_0(…) { … }

A node is `name operands attribute=value : type`, from the fields of its class: an attribute with its default value is
left out, and so is one that the type shows (`dtype`, `shape`, `types`). An elementwise op has the name of its function.
Lines mean nothing, `#` begins a comment, and the header may be left out. With `debug_info` every node shows the user's
text that it comes from: `loc("mlp.ita":4:17)`. Kernels follow the graph; `ir/kernel_text.py` describes them.
"""

from __future__ import annotations

from intarsia.ir.errors import Source
from intarsia.ir.graph import Module
from intarsia.ir.text_printer import module_text, node_text
from intarsia.ir.text_reader import ModuleReader

__all__ = ["node_text", "print_module", "read_module"]


def print_module(module: Module, debug_info: bool = False) -> str:
    """The text of a module. With `debug_info` it keeps the places in the user's text."""
    return module_text(module, debug_info)


def read_module(source: Source) -> Module:
    """The module that a text holds; `read_module(print_module(m))` has the structure of `m`.

    Raises CompileError: E1501 to E1504 as in `ir/scalar_text.py`; E1505 a node does not have the type that the text
    says; E1506 the header is of another version; E1507 a node lacks an operand or attribute, or has one too many; and
    what the ops themselves raise.
    """
    return ModuleReader(source).module()
