"""Kernels run in NumPy: the sequential reading of the loops, which is the meaning of a kernel.

A perfect nest is evaluated as one NumPy expression over its innermost loops wherever that gives the same result:
where iterations are independent, or merge their values by an associative operator. Everything else runs in order,
element by element. A fresh `Alloc`, and a result before its first write, hold NaN or 0x7f bytes, so that reading what
was not written shows. An access outside its buffer is an AssertionError that names buffer, index and axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, TypeAlias

import numpy as np

from intarsia.ir.conversion import convert, literal, reinterpret
from intarsia.ir.dtypes import BF16, Array
from intarsia.ir.functions import COMBINERS, FUNCTIONS
from intarsia.ir.kernel import (
    COMBINER_OPERATORS,
    PUT_FUNCTIONS,
    Alloc,
    Call,
    Check,
    For,
    If,
    Kernel,
    Prefetch,
    Put,
    PutOperator,
    Statement,
)
from intarsia.ir.kernel_access import expressions, is_injective
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, Index, Load, Mask, loads
from intarsia.ir.sizes import Atom, Extremum, Opaque, Quotient, Remainder, Size

Number: TypeAlias = "int | Array"
"""An integer, or an array of them over the axes of a block."""

Environment: TypeAlias = "dict[str, Number]"
"""The value of each axis in scope: a number, or inside a block an array along that axis's own dimension."""

_BLOCK = 1 << 18
"""Points of a nest that are evaluated at once."""

NEUTRAL = {operator: COMBINERS[name].neutral for name, operator in COMBINER_OPERATORS.items()}
"""The neutral element of each accumulating operator, given a dtype."""


class CheckFailed(Exception):
    """A run-time check did not hold: its number and the values that go with it."""

    def __init__(self, number: int, values: tuple[int, ...]) -> None:
        self.number = number
        self.values = values
        super().__init__(f"check {number} failed: {', '.join(map(str, values))}")


def run(kernel: Kernel, arrays: Mapping[str, Array | list[Array]], sizes: Mapping[str, int]) -> None:
    """Run a kernel on one array for each parameter (a list of arrays for a list), writing results in place.

    Raises CheckFailed at the first `Check` that does not hold.
    """
    machine = _Machine()
    env: Environment = dict(sizes)
    for buffer in kernel.parameters:
        given = arrays[buffer.name]
        if buffer.length is None:
            assert isinstance(given, np.ndarray)
            shape = tuple(int(machine.size(s, env)) for s in buffer.shape)
            assert given.shape == shape, f"{buffer.name} has shape {given.shape}, not {shape}"
            assert given.dtype == buffer.dtype.numpy, f"{buffer.name} is {given.dtype}, not {buffer.dtype}"
            if buffer.role == "out":
                _fill(given)
        machine.memory[buffer.name] = given
    with np.errstate(all="ignore"):
        machine.block(kernel.body, env)


def _fill(array: Array) -> None:
    """What memory holds before it is written."""
    if array.dtype.kind in "iub":
        array[...] = np.asarray(True if array.dtype.kind == "b" else 0x7F).astype(array.dtype)
    else:
        array[...] = np.asarray(np.nan).astype(array.dtype)


def _effective(body: tuple[Statement, ...]) -> tuple[Statement, ...]:
    """Statements without hints."""
    return tuple(s for s in body if not isinstance(s, Prefetch))


@dataclass(frozen=True, eq=False)
class _Nest:
    """Loops one inside the other around statements that write elements or check them."""

    loops: tuple[For, ...]
    body: tuple[Put | Check, ...]

    @staticmethod
    def of(loop: For) -> _Nest | None:
        """The nest that a loop begins, or None if anything else stands in it than what changes nothing."""
        loops, inside = [loop], _effective(loop.body)
        while len(inside) == 1 and isinstance(inner := inside[0], For):
            loops.append(inner)
            inside = _effective(inner.body)
        body = tuple(s for s in inside if isinstance(s, (Put, Check)))
        return _Nest(tuple(loops), body) if body and len(body) == len(inside) else None

    @cached_property
    def inner(self) -> _Nest:
        """The nest without its outermost loop."""
        return _Nest(self.loops[1:], self.body)

    @cached_property
    def is_vectorizable(self) -> bool:
        """Does running each statement for all iterations before the next give what the iterations in order give?"""
        axes = {loop.axis for loop in self.loops}
        if any(axes & (loop.lower.symbols | loop.upper.symbols) for loop in self.loops):
            return False
        puts = [s for s in self.body if isinstance(s, Put)]
        targets = {p.buffer: p.indices for p in puts}
        if any(targets[p.buffer] != p.indices for p in puts):
            return False
        exchanged = {p.buffer for p in puts if sum(q.buffer == p.buffer for q in puts) > 1}
        for statement in self.body:
            for load in (found for e in expressions(statement) for found in loads(e)):
                if load.buffer in targets:
                    exchanged.add(load.buffer)
                    if load.indices != targets[load.buffer]:
                        return False
        return all(is_injective(targets[name], self.loops) for name in exchanged)


@dataclass(frozen=True)
class _Axis:
    """An axis of a block: the values `start + step * k` for k < count, along a dimension of its own."""

    name: str
    dimension: int
    start: int
    step: int
    count: int


@dataclass(frozen=True)
class _Write:
    """How a statement writes under some loops: the dimensions of a block that it reduces over, and whether different
    points of the others write different elements."""

    reduced: tuple[int, ...]
    is_injective: bool

    @staticmethod
    def of(put: Put, loops: tuple[For, ...]) -> _Write:
        used = frozenset().union(*(i.symbols for i in put.indices))
        reduced = () if put.operator == "=" else tuple(d for d, loop in enumerate(loops) if loop.axis not in used)
        left = tuple(loop for d, loop in enumerate(loops) if d not in reduced)
        return _Write(reduced, is_injective(put.indices, left))


class _Machine:
    """The memory, and the walk over the statements. `axes` are those of the block that is evaluated."""

    def __init__(self) -> None:
        self.memory: dict[str, Array | list[Array]] = {}
        self._nests: dict[int, _Nest | None] = {}
        self._parts: dict[tuple[Size, tuple[str, ...]], tuple[Size, tuple[int, ...]] | None] = {}
        self._writes: dict[tuple[int, int], _Write] = {}
        self.axes: tuple[_Axis, ...] = ()

    # ------------------------------------------------------------------ statements

    def block(self, body: tuple[Statement, ...], env: Environment) -> None:
        for statement in body:
            self.statement(statement, env)

    def statement(self, statement: Statement, env: Environment) -> None:
        match statement:
            case For():
                self.loop(statement, env)
            case Put():
                self.put(statement, env, ())
            case If(condition, then, otherwise):
                self.block(then if self.holds(condition, env) else otherwise, env)
            case Alloc(buffer):
                array = np.empty(tuple(int(self.size(s, env)) for s in buffer.shape), buffer.dtype.numpy)
                _fill(array)
                self.memory[buffer.name] = array
            case Check():
                self.check(statement, env)
            case Call():
                self.call(statement, env)
            case Prefetch():
                pass

    def loop(self, loop: For, env: Environment) -> None:
        nest = self._nest(loop)
        if nest is not None and nest.is_vectorizable:
            self.vector(nest, env)
            return
        for i in self.range(loop, env):
            env[loop.axis] = i
            self.block(loop.body, env)
        env.pop(loop.axis, None)

    def range(self, loop: For, env: Environment) -> range:
        return range(int(self.size(loop.lower, env)), int(self.size(loop.upper, env)), loop.step)

    def _nest(self, loop: For) -> _Nest | None:
        if id(loop) not in self._nests:
            self._nests[id(loop)] = _Nest.of(loop)
        return self._nests[id(loop)]

    def vector(self, nest: _Nest, env: Environment) -> None:
        """Run a nest at once, in pieces of its outermost loops if it is large."""
        first, ranges = nest.loops[0], [self.range(loop, env) for loop in nest.loops]
        inner = math.prod(len(r) for r in ranges[1:])
        if inner > _BLOCK and len(ranges) > 1:
            for i in ranges[0]:
                env[first.axis] = i
                self.vector(nest.inner, env)
            env.pop(first.axis, None)
            return
        piece = max(1, _BLOCK // max(1, inner))
        for start in range(0, len(ranges[0]) if inner else 0, piece):
            block = (ranges[0][start : start + piece], *ranges[1:])
            self.axes = tuple(
                _Axis(loop.axis, d, r.start, r.step, len(r)) for d, (loop, r) in enumerate(zip(nest.loops, block))
            )
            for axis, values in zip(self.axes, block):
                shape = [1] * len(block)
                shape[axis.dimension] = axis.count
                env[axis.name] = np.arange(values.start, values.stop, values.step, dtype=np.int64).reshape(shape)
            for statement in nest.body:
                if isinstance(statement, Put):
                    self.put(statement, env, nest.loops)
                else:
                    self.check(statement, env)
        self.axes = ()
        for loop in nest.loops:
            env.pop(loop.axis, None)

    def check(self, check: Check, env: Environment) -> None:
        """Raise CheckFailed for the first point of a block where the condition does not hold."""
        condition = self.value(check.condition, env)
        if not np.all(condition):
            holds, *values = np.broadcast_arrays(condition, *(self.value(v, env) for v in check.values))
            raise CheckFailed(check.number, tuple(int(v[~holds][0]) for v in values))

    def call(self, call: Call, env: Environment) -> None:
        rows = []
        for name, indices in (*call.reads, *call.writes):
            array, where = self.locate(name, indices, env, None)
            rows.append(array[where])
        source, target = rows
        match call.routine:
            case "sort" | "argsort":
                # NumPy does not know that bf16 has NaNs, and would not put them last.
                keys = source.astype(np.float32) if source.dtype == BF16.numpy else source
                order = np.argsort(keys, kind="stable")
                target[...] = order if call.routine == "argsort" else source[order]
            case _:
                raise AssertionError(f"no routine is named {call.routine}")

    # ------------------------------------------------------------------ writes

    def put(self, put: Put, env: Environment, loops: tuple[For, ...]) -> None:
        """The write of every point of a block over `loops` (of one point if there are none)."""
        active = self.holds(put.mask, env)
        if active is False:
            return
        shape = tuple(axis.count for axis in self.axes)
        mask = None if active is True else np.broadcast_to(active, shape)
        value = np.broadcast_to(self.value(put.value, env, mask), shape)
        write = self.write(put, loops)
        if put.operator == "=":
            self.store(put, env, write, value, mask)
            return
        if write.reduced:
            if mask is not None:
                value = np.where(mask, value, np.asarray(NEUTRAL[put.operator](put.value.dtype), value.dtype))
                mask = np.any(mask, axis=write.reduced, keepdims=True)
            value = _ufunc(put.operator).reduce(value, axis=write.reduced, keepdims=True, dtype=value.dtype)
        self.accumulate(put, env, write, value, mask)

    def write(self, put: Put, loops: tuple[For, ...]) -> _Write:
        """How a statement writes under the loops of a nest, which is kept, so that they have an identity."""
        key = (id(put), id(loops))
        if key not in self._writes:
            self._writes[key] = _Write.of(put, loops)
        return self._writes[key]

    def store(self, put: Put, env: Environment, write: _Write, value: Array, mask: Array | None) -> None:
        view = self.view(put.buffer, put.indices, env) if mask is None and write.is_injective else None
        if view is not None:
            view[...] = value
            return
        array, where = self.locate(put.buffer, put.indices, env, mask)
        if not where:
            value = value.reshape(-1) if mask is None else value[mask]
            array[()] = value[-1] if value.size else array[()]
            return
        # Of several values for one element the last stays, as NumPy promises for such an assignment.
        array[_select(where, value.shape, mask)] = value if mask is None else value[mask]

    def accumulate(self, put: Put, env: Environment, write: _Write, value: Array, mask: Array | None) -> None:
        merge = _ufunc(put.operator)
        injective = write.is_injective
        if mask is None and injective and (view := self.view(put.buffer, put.indices, env)) is not None:
            view[...] = merge(view, value)
            return
        array, where = self.locate(put.buffer, put.indices, env, mask)
        place = _select(where, value.shape, mask)
        value = value if mask is None else value[mask]
        if injective and not place:  # one element, of a scalar buffer, or none if the mask holds nowhere
            for one in np.ravel(value):
                array[()] = merge(array[()], one)
        elif injective:
            array[place] = merge(array[place], value)
        elif array.dtype.isbuiltin == 1:
            merge.at(array, place, value)
        else:
            for *point, one in zip(*(np.ravel(p) for p in place), np.ravel(value)):
                array[tuple(point)] = merge(array[tuple(point)], one)

    # ------------------------------------------------------------------ memory

    def view(self, name: str, indices: tuple[Size, ...], env: Environment) -> Array | None:
        """The elements of a block as a strided view, if the subscripts are affine and all in bounds."""
        array = self.memory[name]
        if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
            return None
        axes, offset, strides = self.axes, 0, [0] * len(self.axes)
        names = tuple(axis.name for axis in axes)
        for index, extent, stride in zip(indices, array.shape, array.strides):
            parts = self.parts(index, names)
            if parts is None:
                return None
            start = int(self.size(parts[0], env))
            low = high = 0
            for axis, coefficient in zip(axes, parts[1]):
                if coefficient:
                    start += coefficient * axis.start
                    reach = coefficient * axis.step * (axis.count - 1)
                    low, high = low + min(reach, 0), high + max(reach, 0)
                    strides[axis.dimension] += stride * coefficient * axis.step
            if start + low < 0 or start + high >= extent:
                return None
            offset += start * stride
        shape = [axis.count if strides[axis.dimension] else 1 for axis in axes]
        memory = array.reshape(-1).view(np.uint8)
        return np.ndarray(shape, array.dtype, memory, offset, strides)

    def parts(self, size: Size, axes: tuple[str, ...]) -> tuple[Size, tuple[int, ...]] | None:
        """`size` as a rest without the axes and a constant coefficient of each axis, or None."""
        key = (size, axes)
        if key not in self._parts:
            coefficients = tuple(size.coefficient(a) for a in axes)
            known = tuple(c for c in coefficients if c is not None)
            rest = size - sum((Size.of(a) * c for a, c in zip(axes, known)), Size.of(0))
            self._parts[key] = None if len(known) < len(axes) or rest.opaques else (rest, known)
        return self._parts[key]

    def locate(
        self, name: str, indices: tuple[Size, ...], env: Environment, mask: Array | None
    ) -> tuple[Array, tuple[Number, ...]]:
        """The array of a buffer and the checked subscripts of a block; masked-off points get subscript 0."""
        found = self.memory[name]
        where = [self.size(i, env, mask) for i in indices]
        if isinstance(found, list):
            which = np.unique(where[0])
            if len(which) == 1:
                assert 0 <= which[0] < len(found), f"element {which[0]} of list {name} of {len(found)}"
                found, where, indices = found[int(which[0])], where[1:], indices[1:]
            else:
                found = np.stack(found)
        for dimension, (index, extent) in enumerate(zip(where, found.shape)):
            outside = np.asarray((np.asarray(index) < 0) | (np.asarray(index) >= extent))
            if mask is not None:
                outside = outside & mask
                where[dimension] = np.where(mask, index, 0)
            if outside.any():
                outside, *values = np.broadcast_arrays(outside, *env.values())
                first = ", ".join(f"{a} = {v[outside][0]}" for a, v in zip(env, values))
                raise AssertionError(f"{name}[{', '.join(map(str, indices))}] is outside {found.shape} at {first}")
        return found, tuple(where)

    # ------------------------------------------------------------------ values

    def holds(self, mask: Mask, env: Environment) -> bool | Array:
        """Does every condition hold? A bool if it does or does not at all points of the block."""
        result: Any = True
        for condition in mask:
            result = result & np.asarray(self.size(condition, env, None if np.ndim(result) == 0 else result) > 0)
        return bool(result) if np.size(result) == 1 else result

    def value(self, expression: Expr, env: Environment, mask: Array | None = None) -> Any:
        """The values of an expression over a block. Where `mask` is false they mean nothing."""
        memo: dict[Expr, Any] = {}

        def go(e: Expr) -> Any:
            if e not in memo:
                memo[e] = compute(e)
            return memo[e]

        def compute(e: Expr) -> Any:
            match e:
                case Const(number, dtype):
                    return literal(number, dtype)
                case Index(size):
                    return np.asarray(self.size(size, env, mask), np.int64)
                case Load():
                    return self.load(e, env, mask)
                case Apply(function, arguments):
                    return FUNCTIONS[function].reference(*map(go, arguments))
                case Cast(dtype, inner):
                    return convert(go(inner), inner.dtype, dtype)
                case Bitcast(dtype, inner):
                    return reinterpret(go(inner), inner.dtype, dtype)
            raise AssertionError(f"{e} is no expression")

        return go(expression)

    def load(self, load: Load, env: Environment, mask: Array | None) -> Array:
        other = literal(0 if load.other is None else load.other.value, load.dtype)
        own = self.holds(load.mask, env)
        if own is False:
            return other
        if own is True and (view := self.view(load.buffer, load.indices, env)) is not None:
            return view.copy()
        active = mask if own is True else own if mask is None else own & mask
        array, where = self.locate(load.buffer, load.indices, env, active)
        if array.size == 0:
            return other
        values = array[where]
        return values if own is True else np.where(own, values, other)

    def size(self, size: Size, env: Environment, mask: Array | None = None) -> Number:
        """The value of an integer expression; an array where it depends on the axes of a block."""
        return evaluate(size, env, lambda value: self.value(value, env, mask).astype(np.int64))


def evaluate(size: Size, names: Mapping[str, Number], opaque: Callable[[Expr], Number]) -> Number:
    """The value of an integer expression; an array where a name in it stands for one."""
    total: Number = 0
    for monomial, coefficient in size.terms:
        product: Number = coefficient
        for atom in monomial:
            product = product * (names[atom] if isinstance(atom, str) else _evaluate(atom, names, opaque))
        total = total + product
    return total if isinstance(total, int) or np.ndim(total) else int(total)


def _evaluate(atom: Atom, names: Mapping[str, Number], opaque: Callable[[Expr], Number]) -> Any:
    match atom:
        case Quotient(a, b):
            return FUNCTIONS["floordiv"].reference(*(np.asarray(evaluate(s, names, opaque)) for s in (a, b)))
        case Remainder(a, b):
            return FUNCTIONS["mod"].reference(*(np.asarray(evaluate(s, names, opaque)) for s in (a, b)))
        case Extremum(name, arguments):
            pick = np.minimum if name == "min" else np.maximum
            return reduce(pick, (evaluate(a, names, opaque) for a in arguments))
        case Opaque(value):
            return opaque(value)
        case str():
            return names[atom]


def _ufunc(operator: PutOperator) -> np.ufunc:
    function = FUNCTIONS[PUT_FUNCTIONS[operator]].reference
    assert isinstance(function, np.ufunc)
    return function


def _select(where: tuple[Number, ...], shape: tuple[int, ...], mask: Array | None) -> tuple[Array, ...]:
    """Subscripts of all points of a block, or of those where the mask holds."""
    full = tuple(np.broadcast_to(w, shape) for w in where)
    return full if mask is None else tuple(w[mask] for w in full)
