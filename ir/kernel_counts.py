"""What a run of a kernel does, counted without running it: element loads and stores, and scalar operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from intarsia.ir.dtypes import Array
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.kernel import Alloc, Call, Check, For, If, Kernel, Prefetch, Put, Statement, walk
from intarsia.ir.kernel_access import accesses, expressions, sizes_of
from intarsia.ir.kernel_interpreter import evaluate
from intarsia.ir.scalar import Apply, Expr, Mask
from intarsia.ir.scalar import walk as walk_expression
from intarsia.ir.sizes import Size

_BLOCK = 1 << 16
"""Iterations that are looked at together."""


@dataclass(frozen=True)
class AccessCount:
    """Elements read and written, each counted as often as it is touched; `total` of both."""

    loads: int = 0
    stores: int = 0

    @property
    def total(self) -> int:
        return self.loads + self.stores

    def plus(self, loads: int, stores: int) -> AccessCount:
        return AccessCount(self.loads + loads, self.stores + stores)


def count_accesses(kernel: Kernel, sizes: Mapping[str, int]) -> dict[str, AccessCount]:
    """Loads and stores of every buffer, by name. An accumulating write loads its element as well.

    Equal loads of one statement count once; a masked-off access does not count. Raises ValueError if a bound or
    condition of a loop depends on data.
    """
    if depends_on_data(kernel):
        raise ValueError(f"what {kernel.name} does depends on data")
    counts = {name: AccessCount() for name in kernel.buffers()}
    for leaf, iterations in _leaves(kernel, sizes, lambda s: [a.mask for a in accesses((s,))]):
        own = leaf.mask if isinstance(leaf, Put) else ()
        for access in dict.fromkeys(accesses((leaf,))):
            points = iterations.count((*own, *access.mask))
            counts[access.buffer] = counts[access.buffer].plus(
                points if access.reads else 0, points if access.writes else 0
            )
    return counts


def count_operations(kernel: Kernel, sizes: Mapping[str, int]) -> int:
    """Scalar arithmetic operations that a run does at least: what runs or not by data does not count.

    Equal operations of one statement count once, those that a mask leaves out do not.
    """
    total = 0
    once: dict[int, int] = {}
    for leaf, iterations in _leaves(kernel, sizes, lambda s: [s.mask] if isinstance(s, Put) else []):
        match leaf:
            case Put(mask=mask) if any(size.opaques for size in mask):
                pass
            case Put() | Check():
                if id(leaf) not in once:
                    once[id(leaf)] = _operations(leaf)
                total += once[id(leaf)] * iterations.count(leaf.mask if isinstance(leaf, Put) else ())
            case Call(_, _, _, length) if not length.opaques:
                lengths = np.maximum(iterations.value(length), 2)
                total += int((iterations.weights * lengths * np.ceil(np.log2(lengths))).sum())
    return total


def depends_on_data(kernel: Kernel) -> bool:
    """Does data decide how often a loop of a kernel runs, or which branch?"""
    loops = (s for s, _ in walk(kernel.body) if isinstance(s, (For, If)))
    return any(size.opaques for loop in loops for size in sizes_of(loop))


def _operations(leaf: Put | Check) -> int:
    applied = dict.fromkeys(e for value in expressions(leaf) for e in walk_expression(value) if isinstance(e, Apply))
    merges = isinstance(leaf, Put) and leaf.operator != "="
    return sum(FUNCTIONS[e.function].operations for e in applied) + merges


# ---------------------------------------------------------------------- iterations


@dataclass(frozen=True)
class _Iterations:
    """Iterations of the loops around a statement.

    names: the axes that matter, each with its value in every iteration. weights: how many iterations each stands for,
    since loops whose axis does not matter are multiplied out.
    """

    sizes: Mapping[str, int]
    names: Mapping[str, Array]
    weights: Array

    def value(self, size: Size) -> Array:
        found = np.asarray(evaluate(size, {**self.sizes, **self.names}, _refuse))
        return np.asarray(np.broadcast_to(found, self.weights.shape))

    def holds(self, mask: Mask) -> Array:
        result = np.ones(self.weights.shape, np.bool_)
        for condition in mask:
            result = result & (self.value(condition) > 0)
        return result

    def count(self, mask: Mask) -> int:
        return int(self.weights[self.holds(mask)].sum())

    def chosen(self, which: Array | slice) -> _Iterations:
        return _Iterations(self.sizes, {n: v[which] for n, v in self.names.items()}, self.weights[which])

    def along(self, axis: str, values: Array) -> _Iterations:
        return _Iterations(self.sizes, {**self.names, axis: values}, self.weights)


@dataclass
class _Counter:
    """Goes through loops, a block of iterations at a time. masks: those of a leaf that are asked for."""

    masks: Callable[[Statement], list[Mask]]
    needed_by: dict[int, frozenset[str]] = field(default_factory=dict)

    def block(self, body: tuple[Statement, ...], iterations: _Iterations) -> Iterator[tuple[Statement, _Iterations]]:
        if not len(iterations.weights):
            return
        for statement in body:
            match statement:
                case For():
                    if not (statement.lower.opaques or statement.upper.opaques):
                        yield from self.loop(statement, iterations)
                case If(condition, then, otherwise):
                    if not any(size.opaques for size in condition):
                        holds = iterations.holds(condition)
                        yield from self.block(then, iterations.chosen(holds))
                        yield from self.block(otherwise, iterations.chosen(~holds))
                case Alloc() | Prefetch():
                    pass
                case _:
                    yield statement, iterations

    def loop(self, loop: For, iterations: _Iterations) -> Iterator[tuple[Statement, _Iterations]]:
        lower = iterations.value(loop.lower)
        trips = np.maximum(0, -(-(iterations.value(loop.upper) - lower) // loop.step))
        if loop.axis not in self.needed(loop):
            some = _Iterations(iterations.sizes, iterations.names, iterations.weights * trips).chosen(trips > 0)
            yield from self.block(loop.body, some.along(loop.axis, lower[trips > 0]))
            return
        ends = np.cumsum(trips)
        for start in range(0, int(ends[-1]), _BLOCK):
            numbers = np.arange(start, min(start + _BLOCK, int(ends[-1])))
            around = np.searchsorted(ends, numbers, side="right")
            values = lower[around] + (numbers - (ends - trips)[around]) * loop.step
            yield from self.block(loop.body, iterations.chosen(around).along(loop.axis, values))

    def needed(self, loop: For) -> frozenset[str]:
        """The names on which the course of the loop's body depends."""
        if id(loop) not in self.needed_by:
            found: list[Size] = []
            for statement, _ in walk(loop.body):
                if isinstance(statement, (For, If)):
                    found += sizes_of(statement)
                else:
                    found += (size for mask in self.masks(statement) for size in mask)
                    found += (statement.length,) if isinstance(statement, Call) else ()
            self.needed_by[id(loop)] = frozenset(name for size in found for name in size.symbols)
        return self.needed_by[id(loop)]


def _leaves(
    kernel: Kernel, sizes: Mapping[str, int], masks: Callable[[Statement], list[Mask]]
) -> Iterator[tuple[Statement, _Iterations]]:
    """Every statement that is no loop, with iterations in which it runs; what runs by data is left out."""
    return _Counter(masks).block(kernel.body, _Iterations(sizes, {}, np.ones(1, np.int64)))


def _refuse(value: Expr) -> int:
    raise ValueError(f"{value} depends on data")
