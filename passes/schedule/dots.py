"""Whether a contraction is summed by dot instructions of the target, and in which types."""

from __future__ import annotations

from intarsia.ir.dots import dots_of, find_dot
from intarsia.ir.kernel_access import trips
from intarsia.ir.scalar import loads
from intarsia.ir.schedule import Multiply, Stage
from intarsia.passes.schedule.builder import Builder
from intarsia.passes.schedule.multiply import in_type, narrow_factors
from intarsia.passes.schedule.nests import Contraction
from intarsia.passes.schedule.shape import count, stride


def dot_width(b: Builder, c: Contraction) -> int:
    """How many steps of the reduction one instruction of the target takes: more than one if it has a dot instruction
    for what is multiplied, and the left operand lies along the reduction or can be copied so."""
    dot, last = find_dot(b.target, c.put), c.main.reduced[-1]
    if dot is None or c.is_ragged or _length(b, c) < dot.width or not _lies_along(b, c, last):
        return 1
    return dot.width


def other_types(b: Builder, c: Contraction) -> Multiply | None:
    """The types in which the target has the best dot instruction for a contraction, if they are not its own.

    Where both factors have the same sign, one is shifted, and the other one is summed up to make up for it: constant
    columns, once for all calls, or that of which there is less. A code that was shifted anyway is taken as it is.
    """
    pair = narrow_factors(c.put)
    if pair is None or find_dot(b.target, c.put) is not None or not _lies_along(b, c, c.main.reduced[-1]):
        return None
    rows, columns = (count(trips(b.loop(axis))) if axis else 1 for axis in (c.main.row, c.main.column))
    shifts_columns = rows <= columns and not b.kernel.buffers()[c.right.buffer].constant
    shifted = [n for n, e in enumerate(pair) if (c.right in loads(e)) == shifts_columns][:1]
    options = []
    for dot in dots_of(b.target):
        factors = [in_type(e, wanted) for e, wanted in zip(pair, (dot.left, dot.right))]
        added = [n for n, f in enumerate(factors) if f is not None and f.added]
        free = len(added) == 1 and any(f is not None and f.free for f in factors)
        if (
            dot.adds(c.put.value.dtype)
            and None not in factors
            and (added in ([], shifted) or free)
            and _length(b, c) >= dot.width
        ):
            cost = 0 if not added else 1 if free else 2
            options.append((-dot.width, cost, Multiply(c.put.buffer, dot.left.name, dot.right.name)))
    if not options:
        return None
    _, shifts, step = min(options, key=lambda option: option[:2])
    return Multiply(step.buffer, step.left, step.right, "shifted" if shifts else "")


def multiply_as(b: Builder, step: Multiply) -> None:
    """Take the factors of a contraction in other types."""
    result = step.buffer
    if step.new and b.kernel.buffers()[result].role != "temp":
        result = b.fresh(result)
        b.take(Stage(step.buffer, result))
    b.take(Multiply(result, step.left, step.right, b.fresh(result) if step.new else ""))


def _length(b: Builder, c: Contraction) -> int:
    return count(trips(b.loop(c.main.reduced[-1])))


def _lies_along(b: Builder, c: Contraction, last: str) -> bool:
    """Does what is read number by number lie along the last axis of the reduction, or can it be copied so?"""
    left = [x for x in loads(c.put.value) if last in x.symbols and x != c.right]
    buffers = b.kernel.buffers()
    plain = (all(i.as_name is not None or i.constant is not None for i in x.indices) for x in left)
    return all(is_plain or stride(buffers[x.buffer], x.indices, last) == 1 for x, is_plain in zip(left, plain))
