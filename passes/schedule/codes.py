"""Constant codes are laid out before the first call in the order in which a kernel reads them.

A weight of few bits is read as it streams past, from memory above all. What a tile or a panel reads of a matrix lies in
rows that are pages apart; in the order of the loops it is one piece, which prefetchers see, and each line is read once.
"""

from __future__ import annotations

from collections.abc import Sequence

from intarsia.ir.kernel import For, Kernel, Prefetch, Put, walk
from intarsia.ir.kernel_access import trips
from intarsia.ir.scalar import Load, loads
from intarsia.ir.schedule import ROOT, Pack, Squeeze
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.shape import bytes_of, count

LARGE = 1 << 18
"""Bytes of codes from which their order in memory matters: smaller ones stay in the second cache."""


def lay_out_codes(b: Builder) -> None:
    """Let constants whose elements are bytes or less be copied once, in the order of the loops that read them."""
    for buffer in b.kernel.inputs:
        if not buffer.constant or buffer.dtype.bits > 8 or bytes_of(buffer) < LARGE:
            continue
        found = _only_read(b.kernel, buffer.name)
        if found is None:
            continue
        load, loops = found
        order = tuple(x.axis for x in loops if x.axis in load.symbols)
        before, new = set(b.axes()), b.fresh(buffer.name)
        if b.attempt(Pack(buffer.name, ROOT, new, order, "prepared")):
            copied = [axis for axis in b.axes() if axis not in before]
            share_bytes(b, new, [copied[n] for n, x in enumerate(order) if b.loop(x).kind == "unroll"])


def share_bytes(b: Builder, codes: str, steps: Sequence[str]) -> str:
    """Let codes of four bits or fewer share bytes along one of the steps that are written out, where which of them is
    meant is known. Returns what the codes are in now."""
    bits = b.kernel.buffers()[codes].dtype.bits
    for axis in steps:
        fills = bits < 8 and 8 % bits == 0 and count(trips(b.loop(axis))) % (8 // bits) == 0
        if fills and b.attempt(Squeeze(codes, axis, new := b.fresh(codes))):
            return new
    return codes


def _only_read(kernel: Kernel, buffer: str) -> tuple[Load, tuple[For, ...]] | None:
    """The load of a buffer, and the loops around it, if there is just one and no data says where it is."""
    found: list[tuple[Load, tuple[For, ...]]] = []
    for statement, loops in walk(kernel.body):
        if isinstance(statement, Prefetch) and statement.buffer == buffer:
            return None  # what is fetched ahead is laid out as it should be
        if isinstance(statement, Put):
            found += [(x, loops) for x in dict.fromkeys(loads(statement.value)) if x.buffer == buffer]
    if len(found) != 1 or any(i.opaques for i in found[0][0].indices):
        return None
    return found[0]
