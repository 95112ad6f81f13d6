"""Intarsia: a compiler for tensor programs, from one line of index notation to machine code.

import intarsia

layers = intarsia.load("layers.ita")            # a file; or intarsia.compile("fn …")
y = layers.mlp(x, w1, b1, w2)                   # NumPy or anything with DLPack in, the same kind out
kernel = layers.mlp.lower(x, w1, b1, w2)        # for these types, with every stage
print(kernel.asm["graph"], kernel.asm["llvm"])
relu = intarsia.jit("fn relu(x: f32[N]) -> f32[N] { return maximum(x, 0.0) }")
"""

from __future__ import annotations

from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

if (_Path(__file__).parent.parent / "pyproject.toml").is_file():
    __path__.append(str(_Path(__file__).parent.parent))  # a checkout keeps dsl/, ir/, ... one level up

if TYPE_CHECKING:
    from intarsia.api import compile as compile
    from intarsia.api import grad as grad
    from intarsia.api import jit as jit
    from intarsia.api import jvp as jvp
    from intarsia.api import load as load
    from intarsia.api import release_memory as release_memory
    from intarsia.api import value_and_grad as value_and_grad
    from intarsia.files import read_weights as read_weights
    from intarsia.function import Function as Function
    from intarsia.ir.errors import CompileError as CompileError
    from intarsia.operators import torch_op as torch_op
    from intarsia.options import Options as Options
    from intarsia.packed_checkpoints import read_awq as read_awq
    from intarsia.packed_checkpoints import read_gptq as read_gptq
    from intarsia.parts import Part as Part
    from intarsia.program import Program as Program
    from intarsia.quantization import dequantize as dequantize
    from intarsia.quantization import quantize as quantize

__version__ = "0.1.0"

_HOMES = {
    "CompileError": "intarsia.ir.errors",
    "Function": "intarsia.function",
    "Options": "intarsia.options",
    "Part": "intarsia.parts",
    "Program": "intarsia.program",
    "compile": "intarsia.api",
    "dequantize": "intarsia.quantization",
    "grad": "intarsia.api",
    "jit": "intarsia.api",
    "jvp": "intarsia.api",
    "load": "intarsia.api",
    "quantize": "intarsia.quantization",
    "read_awq": "intarsia.packed_checkpoints",
    "read_gptq": "intarsia.packed_checkpoints",
    "read_weights": "intarsia.files",
    "release_memory": "intarsia.api",
    "torch_op": "intarsia.operators",
    "value_and_grad": "intarsia.api",
}
__all__ = [
    "CompileError",
    "Function",
    "Options",
    "Part",
    "Program",
    "compile",
    "dequantize",
    "grad",
    "jit",
    "jvp",
    "load",
    "quantize",
    "read_awq",
    "read_gptq",
    "read_weights",
    "release_memory",
    "torch_op",
    "value_and_grad",
]


def __getattr__(name: str) -> Any:
    """Public names are imported on first use, so that `intarsia --help` loads nothing that it does not need."""
    if name not in _HOMES:
        raise AttributeError(f"module 'intarsia' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
