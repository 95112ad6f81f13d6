"""Run-time checks, under `--checks`: subscripts that depend on data, integer divisors, targets written twice.

Each check is a stage of its own before the node that it belongs to, over the axes it depends on. The values that a
failed check records say which kind it is: `(index, extent)` for a subscript, none for a divisor that is 0, and for an
element that `=` writes twice its flat index.

A GPU does not stop inside a loop. There, minima find the first iteration that fails, axis by axis, and one check
outside of loops looks at what they found:

    for i in 0..8 { check 1: x[i] < 4 (x[i], 4) }  =>  first = greatest
                                                       for i in 0..8 { first min= where(x[i] < 4, greatest, i) }
                                                       check 1: first == greatest (x[first], 4)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from intarsia.ir.dtypes import I32, I64
from intarsia.ir.errors import Span
from intarsia.ir.graph import Node, Value
from intarsia.ir.kernel import Check, Kernel, Statement, walk
from intarsia.ir.ops import Compute, ListGet, Update
from intarsia.ir.ops.elementwise import axes_for
from intarsia.ir.scalar import Apply, Const, Expr, Index, Load, apply, constant, where
from intarsia.ir.sizes import ZERO, Size, row_major_strides
from intarsia.ir.space import Axis, Space, operand, operand_position, rename_size_buffers
from intarsia.ir.types import ListType
from intarsia.passes.lower.names import value_extents
from intarsia.passes.lower.stages import Scope, subscripts

if TYPE_CHECKING:
    from intarsia.passes.lower.kernel import GroupLowering

Path: TypeAlias = "tuple[Expr, ...]"
"""Conditions that hold where a sub-expression counts."""


@dataclass
class Checks:
    """Numbers the checks of a program, from 1. outside: they stand outside of loops."""

    outside: bool = False
    count: int = field(default=0)

    def number(self) -> int:
        self.count += 1
        return self.count


@dataclass(frozen=True)
class _Obligation:
    """What must hold wherever `path` does, and what to record where it does not."""

    condition: Expr
    values: tuple[Expr, ...]
    path: Path = ()

    @property
    def whole(self) -> Expr:
        condition = self.condition
        for known in reversed(self.path):
            condition = apply("or", apply("not", known), condition)
        return condition


def check_space(group: GroupLowering, node: Node, space: Space, checks: Checks) -> None:
    """Write the checks of a structured op."""
    reader = _Reader(node.operands, space.all_axes)
    for position, axis in enumerate(space.all_axes):
        for bound in (axis.lower, axis.upper):
            _write(group, node, space.all_axes[:position], reader.size(bound, ()), checks)
    _write(group, node, space.all_axes, reader.expression(space.body, ()), checks)


def checked_position(node: ListGet) -> tuple[Compute, Compute]:
    """The subscript of a list that depends on data as a value: what it picks from all positions. Reading there is
    checked like any other reading."""
    assert isinstance(node.source.type, ListType)
    every = Axis("i", ZERO, node.source.type.length)
    positions = Compute((), Space((every,), Index(Size.of("i")), I64), span=node.span)
    names = {operand(n): operand(n + 1) for n in range(len(node.scalars))}
    place = Load(operand(0), (rename_size_buffers(node.index, names),), I64)
    return positions, Compute((positions.value, *node.scalars), Space((), place, I64), span=node.span)


def check_update(group: GroupLowering, node: Update, checks: Checks) -> None:
    """Write the checks of an update: of its body, its targets, and of `=` that each is written once."""
    reader = _Reader(node.operands, node.axes)
    own = [o for t in node.targets for o in reader.size(t, ())]
    own += [_within(t, n, ()) for t, n in zip(node.targets, node.base.tensor.shape) if reader.depends_on_data(t)]
    _write(group, node, node.axes, [*reader.expression(node.body, ()), *own], checks)
    if node.operator == "=" and any(t.opaques for t in node.targets):
        _write_once(group, node, checks)


def can_fail(operands: Sequence[Value], axes: Sequence[Axis], body: Expr) -> bool:
    """Does the evaluation of a body over axes ask for checks?"""
    return any(True for _ in _Reader(operands, axes).expression(body, ()))


@dataclass(frozen=True)
class CheckMessage:
    """What a failed check becomes: an error with a code, its message with a `{}` for each recorded value, and the
    user's line."""

    number: int
    code: str
    message: str
    span: Span | None


def check_messages(kernels: Iterable[Kernel]) -> tuple[CheckMessage, ...]:
    """The checks in kernels, in the order of their numbers."""
    found: dict[int, CheckMessage] = {}
    for kernel in kernels:
        for statement, _ in walk(kernel.body):
            if isinstance(statement, Check):
                code, message = _describe(statement)
                found[statement.number] = CheckMessage(statement.number, code, message, statement.span)
    return tuple(found[number] for number in sorted(found))


def _describe(check: Check) -> tuple[str, str]:
    match len(check.values):
        case 2:
            return "E0801", "subscript {} is outside 0..{}"
        case 0:
            return "E0802", "integer division by zero"
    return "E0803", "more than one value is written to element {}"


class _Reader:
    """Finds what the evaluation of expressions over `operands` and `axes` asks for."""

    def __init__(self, operands: Sequence[Value], axes: Sequence[Axis]) -> None:
        self.operands = operands
        self.by_data: set[str] = set()
        self._seen: set[tuple[Expr, Path]] = set()
        for axis in axes:
            if self.depends_on_data(axis.lower) or self.depends_on_data(axis.upper):
                self.by_data.add(axis.name)

    def depends_on_data(self, size: Size) -> bool:
        """Does a value depend on data, itself or by the range of an axis?"""
        return bool(size.opaques) or not self.by_data.isdisjoint(size.symbols)

    def expression(self, e: Expr, path: Path) -> Iterator[_Obligation]:
        if (e, path) in self._seen:
            return
        self._seen.add((e, path))
        match e:
            case Load(buffer, indices):
                extents = value_extents(self.operands[operand_position(buffer)])
                for index, extent in zip(indices, extents):
                    yield from self.size(index, path)
                    if self.depends_on_data(index):
                        yield _within(index, extent, path)
            case Index(size):
                yield from self.size(size, path)
            case Apply("where", (condition, then, otherwise)):
                yield from self.expression(condition, path)
                yield from self.expression(then, (*path, condition))
                yield from self.expression(otherwise, (*path, apply("not", condition)))
            case Apply("floordiv" | "mod", (_, divisor)) if divisor.dtype.is_integer:
                for argument in e.arguments:
                    yield from self.expression(argument, path)
                if not (isinstance(divisor, Const) and divisor.value != 0):
                    yield _Obligation(apply("ne", divisor, constant(0, divisor.dtype)), (), path)
            case _:
                for child in e.children:
                    yield from self.expression(child, path)

    def size(self, size: Size, path: Path) -> Iterator[_Obligation]:
        for value in size.opaques:
            yield from self.expression(value, path)


def _within(index: Size, extent: Size, path: Path) -> _Obligation:
    inside = apply("and", apply("ge", Index(index), Index(ZERO)), apply("lt", Index(index), Index(extent)))
    return _Obligation(inside, (Index(index), Index(extent)), path)


def _write(
    group: GroupLowering, node: Node, axes: Sequence[Axis], found: Iterable[_Obligation], checks: Checks
) -> None:
    """One stage for each distinct obligation, over the axes that it depends on."""
    for obligation in dict.fromkeys(found):
        condition = group.inlined(obligation.whole, node.operands)
        values = tuple(group.inlined(v, node.operands) for v in obligation.values)
        check = Check(checks.number(), condition, values, node.span)
        used = group.inlined_axes(_needed(axes, obligation.whole.symbols), node.operands)
        _write_stage(group, node, used, check, checks)


def _write_stage(group: GroupLowering, node: Node, axes: Sequence[Axis], check: Check, checks: Checks) -> None:
    """The stage of a check over axes."""
    if checks.outside:
        check, axes = _at_first_failure(group, node, axes, check), ()
    group.writer.body += group.writer.loops(axes, partial(_placed, group, check))


def _at_first_failure(group: GroupLowering, node: Node, axes: Sequence[Axis], check: Check) -> Check:
    """The same check outside of loops: of the first iteration that fails, which minima along all axes find."""
    none = constant(I64.greatest, I64)
    fails = apply("not", check.condition)
    first: dict[str, Size] = {}
    for axis in axes:
        found = Load(group.temporary(node, I64, ()).name, (), I64)
        here = Index(Size.of(axis.name))
        group.writer.write((), found.buffer, (), "=", none, node.span)
        group.writer.write(axes, found.buffer, (), "min=", where(fails, here, none), node.span)
        check = replace(check, condition=apply("eq", found, none))
        fails = apply("and", fails, apply("eq", here, found))
        first[axis.name] = Size.opaque(found)
    return replace(check, values=tuple(v.substitute(first) for v in check.values))


def _placed(group: GroupLowering, check: Check, scope: Scope) -> tuple[Statement, ...]:
    """A check at a place inside loops."""
    guard = group.writer.guard(scope)
    condition, *values = (guard.expression(e.substitute(scope.names)) for e in (check.condition, *check.values))
    return (replace(check, condition=condition, values=tuple(values)),)


def _needed(axes: Sequence[Axis], names: frozenset[str]) -> list[Axis]:
    """The axes among `names`, and those that their bounds use."""
    kept: list[Axis] = []
    for axis in reversed(axes):
        if axis.name in names:
            kept.append(axis)
            names = names | axis.lower.symbols | axis.upper.symbols
    return kept[::-1]


def _write_once(group: GroupLowering, node: Update, checks: Checks) -> None:
    """Count the writes of each element; a second one fails."""
    shape, writer = node.base.tensor.shape, group.writer
    count = group.temporary(node, I32, shape).name
    elements = axes_for(shape)
    writer.write(elements, count, subscripts(elements), "=", constant(0, I32), node.span)
    axes = group.inlined_axes(node.axes, node.operands)
    targets = tuple(group.inlined_size(t, node.operands) for t in node.targets)
    writer.write(axes, count, targets, "+=", constant(1, I32), node.span)
    once = apply("le", Load(count, subscripts(elements), I32), constant(1, I32))
    flat = sum((t * s for t, s in zip(subscripts(elements), row_major_strides(shape))), ZERO)
    _write_stage(group, node, elements, Check(checks.number(), once, (Index(flat),), node.span), checks)
