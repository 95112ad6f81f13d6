"""What kernels take of a GPU, in words: counted in their code, without running it."""

from __future__ import annotations

from collections.abc import Iterator

from intarsia.backends.gpu.toolchain import Resources
from intarsia.driver import Compilation

MATRIX_UNITS = ("tcgen05", "hgmma", "qgmma", "igmma", "hmma", "imma", "dmma")
"""Kinds of instructions that multiply matrices."""


def resource_lines(compilation: Compilation) -> Iterator[str]:
    """One line for each launch of each kernel."""
    for codes in compilation.chip_code.values():
        for code in codes:
            yield f"kernel {code.name}: {resource_text(code.resources)}"


def resource_text(found: Resources) -> str:
    """Registers, shared memory, spills, and the instructions that decide how fast a kernel can be."""
    parts = [f"{found.registers} registers", f"{found.warps} warps", f"{found.shared / 1024:.0f} KiB shared"]
    parts.append(f"{found.spilled} bytes spilled" if found.spilled else "no spills")
    products = [f"{found.count(kind)} {kind}" for kind in (*MATRIX_UNITS, "ffma") if found.count(kind)]
    loads, wide = found.count("load_global"), found.count("load_global_16")
    stores, wide_stores = found.count("store_global"), found.count("store_global_16")
    copies, wide_copies = found.count("copy_async"), found.count("copy_async_16")
    return ", ".join(
        [
            *parts,
            *products,
            f"{wide} of {loads} loads and {wide_stores} of {stores} stores of 16 bytes",
            *([f"{wide_copies} of {copies} asynchronous copies of 16 bytes"] if copies else []),
            *([f"{bulk} copies of whole blocks"] if (bulk := found.count("copy_bulk")) else []),
            f"{found.count('total')} instructions",
        ]
    )
