"""What kernels take of a GPU, in words: counted in their code, without running it."""

from __future__ import annotations

from collections.abc import Iterator

from intarsia.backends.gpu.toolchain import CompiledKernel, usage_text
from intarsia.driver import Compilation

MATRIX_UNITS = ("tcgen05", "hgmma", "qgmma", "igmma", "hmma", "imma", "dmma")
"""Kinds of instructions that multiply matrices."""


def resource_lines(compilation: Compilation, *, counted: bool) -> Iterator[str]:
    """One line for each launch of each kernel; with what is `counted` in its instructions."""
    for codes in (compilation.counted_code if counted else compilation.chip_code).values():
        for code in codes:
            yield f"kernel {code.name}: {resource_text(code) if counted else usage_text(code)}"


def resource_text(code: CompiledKernel) -> str:
    """The same, and the instructions that decide how fast a kernel can be."""
    found = code.resources
    products = [f"{found.count(kind)} {kind}" for kind in (*MATRIX_UNITS, "ffma") if found.count(kind)]
    loads, wide = found.count("load_global"), found.count("load_global_16")
    stores, wide_stores = found.count("store_global"), found.count("store_global_16")
    copies, wide_copies = found.count("copy_async"), found.count("copy_async_16")
    return ", ".join(
        [
            usage_text(code),
            *products,
            f"{wide} of {loads} loads and {wide_stores} of {stores} stores of 16 bytes",
            *([f"{wide_copies} of {copies} asynchronous copies of 16 bytes"] if copies else []),
            *([f"{bulk} copies of whole blocks"] if (bulk := found.count("copy_bulk")) else []),
            f"{found.count('total')} instructions",
        ]
    )
