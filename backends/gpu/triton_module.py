"""Kernels as Python modules: the text that stands in a file, and the functions that Triton makes of it."""

from __future__ import annotations

import hashlib
import linecache
import threading
import types
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from intarsia.backends.gpu.triton_kernel import Pointer, TritonKernel, triton_type
from intarsia.ir.errors import CompileError

HEADER = """import triton
import triton.language as tl
"""
LIBRARY = "from triton.language.extra import libdevice\n"
"""What the text of a kernel may refer to."""

TRITON_LOCK = threading.RLock()
"""Held by what changes Triton's settings, its language or the standard streams, all of which the process shares."""


def module_text(kernels: Iterable[TritonKernel]) -> str:
    """A file of kernels: the imports, each helper once, and the functions."""
    parts = parts_of(kernels)
    header = HEADER + (LIBRARY if any("libdevice." in part for part in parts) else "")
    return "\n\n".join([header, *parts])


def parts_of(kernels: Iterable[TritonKernel]) -> list[str]:
    """The functions of kernels, each after the helpers that it is the first to call."""
    parts: dict[str, None] = {}
    for kernel in kernels:
        parts.update(dict.fromkeys((*kernel.helpers, kernel.text)))
    return [part.strip("\n") + "\n" for part in parts]


def signature(kernel: TritonKernel) -> dict[str, str]:
    """The types of a kernel's parameters in Triton's notation."""
    types = {p.name: f"*{triton_type(p.dtype)}" if isinstance(p, Pointer) else p.type for p in kernel.parameters}
    return {**types, **{name: "constexpr" for name, _ in kernel.constants}}


def load_function(kernel: TritonKernel) -> Any:
    """The `@triton.jit` function of a kernel, alone in its module; the same object for the same text.

    Raises CompileError E1704 where Triton is not installed, and E1705 where it was told to interpret.
    """
    return getattr(_load(module_text([kernel])), kernel.name)


def refusals() -> tuple[type[Exception], ...]:
    """What Triton's front end, its passes and ptxas happen to raise for a function that they do not take."""
    from triton.errors import TritonError

    general = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError)
    return (TritonError, *general, ValueError)


def require_triton() -> None:
    """Raise CompileError where Triton is of no use: E1704 if it is not there, E1705 if it was told to interpret."""
    try:
        from triton import knobs
    except ImportError:
        hint = "pip install 'triton>=3.6' (it needs Linux, but no GPU), or choose a CPU target"
        raise CompileError("E1704", "Triton is not installed beside Intarsia", hint=hint) from None
    if knobs.runtime.interpret:
        hint = "unset it: Intarsia has kernels compiled, and interprets those that it is asked to"
        raise CompileError("E1705", "TRITON_INTERPRET is set, and Triton compiles nothing then", hint=hint)


@lru_cache(maxsize=1024)
def _load(text: str) -> types.ModuleType:
    """Run a module that lies in no file. Triton reads the functions' source, which it finds by way of `linecache`."""
    require_triton()
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    file = f"<intarsia {digest}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    module = types.ModuleType(f"intarsia_kernel_{digest}")
    exec(compile(text, file, "exec"), module.__dict__)
    return module
