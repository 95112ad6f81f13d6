"""The step that lets elements of few bits share bytes."""

from __future__ import annotations

from dataclasses import replace

from intarsia.ir.dtypes import U8, DType
from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, Buffer, For, Kernel, Prefetch, Put, Statement, walk
from intarsia.ir.kernel_access import accesses
from intarsia.ir.scalar import Bitcast, Expr, Index, Load, apply, cast, constant, transform
from intarsia.ir.schedule import Squeeze
from intarsia.ir.sizes import ZERO, Size
from intarsia.passes.schedule.tree import Body, NameSource, change_loads, find_buffer, find_loop, rewrite


def squeeze(kernel: Kernel, step: Squeeze) -> Kernel:
    """See `Squeeze`."""
    buffer = find_buffer(kernel, step.buffer)
    if buffer.role != "temp" or buffer.dtype.bits not in (1, 2, 4):
        raise ScheduleError(f"{step.buffer} is no temporary of elements of 1, 2 or 4 bits")
    NameSource(kernel).claim(step.new)
    per = 8 // buffer.dtype.bits
    put, dimension, count = _written(kernel, step, buffer)
    if count % per:
        raise ScheduleError(f"{count} elements along {step.axis} do not fill whole bytes")

    def read(e: Expr) -> Expr | None:
        return (
            _taken_out(e, step.new, buffer.dtype, dimension)
            if isinstance(e, Load) and e.buffer == buffer.name
            else None
        )

    def change(statement: Statement) -> Statement | Body | None:
        match statement:
            case Alloc(found) if found == buffer:
                shape = [s if d != dimension else Size.of(count // per) for d, s in enumerate(buffer.shape)]
                return Alloc(replace(buffer, name=step.new, dtype=U8, shape=tuple(shape)))
            case Put() if statement is put:
                return replace(put, buffer=step.new, value=_together(put.value, step.axis, buffer.dtype))
            case Prefetch() if statement.buffer == buffer.name:
                at = tuple(i if d != dimension else i // per for d, i in enumerate(statement.indices))
                return replace(statement, buffer=step.new, indices=at)
            case For() if statement.axis == step.axis:
                return replace(statement, upper=Size.of(count // per))
        return None

    return kernel.with_body(change_loads(rewrite(kernel.body, change), read))


def _written(kernel: Kernel, step: Squeeze, buffer: Buffer) -> tuple[Put, int, int]:
    """The statement that sets a buffer, the dimension that a loop goes through, and its length."""
    loop, _ = find_loop(kernel, step.axis)
    found = [(s, around) for s, around in walk(kernel.body) if isinstance(s, Put) and s.buffer == buffer.name]
    if len(found) != 1 or any(a.writes and not isinstance(a.statement, Put) for a in accesses(kernel.body)):
        raise ScheduleError(f"{buffer.name} is set by {len(found)} statements")
    put, around = found[0]
    places = [d for d, index in enumerate(put.indices) if index.as_name == step.axis]
    if put.operator != "=" or put.mask or loop not in around or len(places) != 1:
        raise ScheduleError(f"{put.buffer} is not simply set along {step.axis}")
    if sum(step.axis in index.symbols for index in put.indices) != 1 or [
        s for s, _ in walk(loop.body) if isinstance(s, Put)
    ] != [put]:
        raise ScheduleError(f"{step.axis} does more than set {put.buffer}")
    extent = buffer.shape[places[0]].constant
    if (
        extent is None
        or (loop.lower, loop.upper, loop.step) != (ZERO, Size.of(extent), 1)
        or loop.kind not in ("seq", "unroll")
    ):
        raise ScheduleError(f"{step.axis} does not go through all of a dimension one by one")
    return put, places[0], extent


def _together(value: Expr, axis: str, dtype: DType) -> Expr:
    """The byte of the elements that follow one another along an axis."""
    per = 8 // dtype.bits
    parts: list[Expr] = []
    for position in range(per):
        own = transform(value, {axis: Size.of(axis) * per + position})
        code: Expr = Bitcast(U8, own)
        parts.append(apply("shift_left", code, constant(position * dtype.bits, U8)) if position else code)
    whole = parts[0]
    for part in parts[1:]:
        whole = apply("bit_or", whole, part)
    return whole


def _taken_out(load: Load, new: str, dtype: DType, dimension: int) -> Expr:
    """An element of a byte."""
    per = 8 // dtype.bits
    index = load.indices[dimension]
    indices = tuple(i if d != dimension else index // per for d, i in enumerate(load.indices))
    byte = Load(new, indices, U8, load.mask)
    return Bitcast(dtype, apply("shift_right", byte, cast(U8, Index((index % per) * dtype.bits))))
