"""Default schedule of a nest that reads along one axis and writes along another: squares go through registers.

A square tile is read row by row and written column by column; in between it is transposed in registers. Tiles that are
neighbours in a row of the result follow each other, so that whole cache lines are written.
"""

from __future__ import annotations

from intarsia.ir.kernel import For, Put
from intarsia.ir.kernel_access import trips
from intarsia.ir.scalar import Load, loads
from intarsia.ir.schedule import Pack, Reorder, Unroll, Vectorize, Version
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.shape import count, lanes_for, stride
from intarsia.passes.schedule.tree import loops_in, perfect_nest

TILES = 4
"""Square tiles along a row of the result that are done one after the other."""


def stage_transposed(b: Builder, top: str, lane: str) -> bool:
    """Schedule a perfect nest whose writes are contiguous along `lane` and some of whose loads are along another axis.

    Returns whether that was the case and every step was legal.
    """
    nest, body = perfect_nest(b.loop(top))
    if len(body) != 1 or not isinstance(put := body[0], Put) or put.operator != "=":
        return False
    size = lanes_for(nest, b.target)
    found = _transposed(b, put, nest, lane, size)
    if found is None:
        return False
    load, across = found

    def stage() -> None:
        blocks, tile = b.split(lane, size * TILES)
        tiles, column = b.split(tile, size)
        rows, row = b.split(across, size)
        others = [loop.axis for loop in nest if loop.axis not in (lane, across)]
        b.take(Reorder((*others, blocks, rows, tiles, row, column)))
        staged = b.fresh(load.buffer)
        b.take(Pack(load.buffer, tiles, staged, (column, row), "register"))
        copy = next(s for s in b.loop(tiles).body if isinstance(s, For))
        (inner,) = loops_in(copy.body)
        b.take(Unroll((copy.axis, row)))
        b.take(Vectorize((inner.axis, column)))
        b.attempt(Version(tiles))

    return b.together(f"transposition of {load.buffer} in registers", stage)


def _transposed(b: Builder, put: Put, nest: tuple[For, ...], lane: str, size: int) -> tuple[Load, str] | None:
    """A load that is contiguous along another axis than `lane`, and that axis; both long enough for a tile."""
    buffers = b.kernel.buffers()
    long = [loop.axis for loop in nest if count(trips(loop)) >= size and loop.step == 1]
    for load in loads(put.value):
        if lane not in long or stride(buffers[load.buffer], load.indices, lane) in (0, 1):
            continue
        for axis in long:
            if axis != lane and stride(buffers[load.buffer], load.indices, axis) == 1:
                return load, axis
    return None
