"""Ops of a loop that read a row of a tensor from outside of it, or add to a row, as two: one is about the row alone."""

from __future__ import annotations

from dataclasses import replace

from intarsia.ir.graph import Structured, Value
from intarsia.ir.ops.control import ListGet, Loop
from intarsia.ir.ops.elementwise import axes_for
from intarsia.ir.ops.index import Compute, Update
from intarsia.ir.scalar import Expr, Load, loads, transform
from intarsia.ir.sharding import Sharding
from intarsia.ir.sizes import ZERO, Size
from intarsia.ir.space import Space, operand, rename_buffers
from intarsia.ir.types import ListType
from intarsia.passes.shard.ways import sharding_of


def take_row(node: Structured, position: int, loop: Loop) -> tuple[Compute | ListGet, Compute] | None:
    """The op that takes the row of a step of an operand, or the tensor of a list, and the op on that; None where the op
    reads more than a row, or nothing else."""
    value = node.operands[position]
    is_list = isinstance(value.type, ListType)
    rows = {d: {load.indices[d] for load in node.space.loads_of(position)} for d in range(len(value.type.extents))}
    found = [d for d, own in rows.items() if len(own) == 1 and all(_is_row(i, value, d, loop) for i in own)]
    if not found or len(node.operands) == 1 or (is_list and found[0] != 0):
        return None
    d, (index,) = found[0], rows[found[0]]
    row: Compute | ListGet
    if is_list:
        row = ListGet(value, index, **node.spans, shardings=(sharding_of(value),))
    elif (laid := sharding_of(value).axes)[d]:
        return None
    else:
        axes = axes_for((*value.tensor.shape[:d], *value.tensor.shape[d + 1 :]))
        place = [Size.of(a.name) for a in axes]
        space = Space(axes, Load(operand(0), (*place[:d], index, *place[d:]), value.dtype), value.dtype)
        row_laid = Sharding.of((*laid[:d], *laid[d + 1 :]))
        row = Compute((value,), space, **node.spans, shardings=(row_laid,))

    def read(e: Expr) -> Expr | None:
        if isinstance(e, Load) and e.buffer == operand(position):
            return Load(e.buffer, (*e.indices[:d], *e.indices[d + 1 :]), e.dtype)
        return None

    old = node.space
    body = Space(old.axes, transform(old.body, rule=read), old.dtype, old.reduced, old.combiner)
    operands = (*node.operands[:position], row.value, *node.operands[position + 1 :])
    laid_result = (sharding_of(node.value),)
    return row, Compute(operands, body, **node.spans, shardings=laid_result)


def sum_first(node: Update) -> tuple[Compute, Update] | None:
    """An update that adds sums to a block, as the sums and the update that adds them: parts of these are no larger than
    the block. None for another one."""
    axes = {a.name: a for a in node.axes}
    plain = [axes[t.as_name] for t in node.targets if t.as_name in axes]
    reduced = tuple(a for a in node.axes if a not in plain)
    targets = all(t.as_name in axes or axes.keys().isdisjoint(t.symbols) for t in node.targets)
    extents = all(a.lower == ZERO and a.upper.constant for a in node.axes)
    reads_old = any(load.buffer == operand(0) for load in loads(node.body))
    if node.operator != "+=" or not reduced or len(set(plain)) < len(plain) or not targets or not extents or reads_old:
        return None
    names = {operand(p + 1): operand(p) for p in range(len(node.arguments))}
    dtype, laid = node.base.dtype, sharding_of(node.value).axes
    if node.body.dtype != dtype or not dtype.is_float or not plain:
        return None
    space = Space(tuple(plain), rename_buffers(node.body, names), dtype, reduced, "sum")
    own = Sharding.of([laid[d] for d, t in enumerate(node.targets) if t.as_name in axes])
    summed = Compute(node.arguments, space, **node.spans, shardings=(own,))
    read = Load(operand(1), tuple(Size.of(a.name) for a in plain), dtype)
    return summed, replace(node, arguments=(summed.value,), axes=tuple(plain), body=read)


def _is_row(index: Size, value: Value, d: int, loop: Loop) -> bool:
    """Is it the row of a step, which all steps have?"""
    if index.symbols != {loop.counter} or not index.is_affine_in([loop.counter]):
        return False
    ends = [index.substitute({loop.counter: step}).constant for step in (loop.lower, loop.upper - 1)]
    extent = value.type.extents[d].constant
    return extent is not None and all(end is not None and 0 <= end < extent for end in ends)
