"""What verification runs programs on: random inputs, small sizes, and an estimate of the work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np

from intarsia.ir import kernel
from intarsia.ir.conversion import convert
from intarsia.ir.dtypes import F64, I64, Array, DType
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Module, Region, Structured
from intarsia.ir.kernel import For, If, Put, Statement
from intarsia.ir.ops import Call, Loop, Slice, Update
from intarsia.ir.sizes import Size
from intarsia.ir.spmd import Placement, is_partitioned
from intarsia.ir.types import ListType, TensorType, Type
from intarsia.passes.specialize import specialize

Operand: TypeAlias = "Array | list[Array]"

CHECK_SIZES = (7, 17, 5, 3, 2, 6, 4, 1)
"""Small and distinct, so that no two dimensions agree by chance; 17 is one past a tile."""

SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0)


def random_inputs(module: Module, sizes: Mapping[str, int], seed: int, special: bool = False) -> list[Operand]:
    """An input for each parameter; for the program of one of several devices, those of all together. Floats are
    normal; if `special`, they are halves of small numbers, so that many are equal, and an eighth of them, and one of
    each kind at least, are NaN, infinities and zeros. Integers are small, since they may count steps or subscript."""
    generator = np.random.default_rng(seed)
    types = Placement.of(module).parameters if is_partitioned(module) else [p.type for p in module.graph.parameters]
    return [_input(t, sizes, generator, special) for t in types]


def _input(type_: Type, sizes: Mapping[str, int], generator: np.random.Generator, special: bool) -> Operand:
    if isinstance(type_, ListType):
        return [_array(type_.element, sizes, generator, special) for _ in range(type_.length.evaluate(sizes))]
    return _array(type_, sizes, generator, special)


def _array(type_: TensorType, sizes: Mapping[str, int], generator: np.random.Generator, special: bool) -> Array:
    shape = tuple(s.evaluate(sizes) for s in type_.shape)
    dtype: DType = type_.dtype
    if dtype.is_float:
        values = np.asarray(generator.standard_normal(shape))
        if special:
            values = np.round(2 * values) / 2
            places = generator.permutation(values.size)[: max(min(values.size // 2, len(SPECIAL)), values.size // 8)]
            values.flat[places] = np.resize(generator.permutation(SPECIAL), places.shape)
        return convert(values, F64, dtype)
    least = -4 if dtype.kind == "int" else 0
    return convert(np.asarray(generator.integers(least, 9, shape)), I64, dtype)


def check_sizes(module: Module) -> dict[str, int] | None:
    """Small numbers for the dimension names that fit the program; None if none of a few choices does."""
    names = module.graph.dimensions
    for shift in range(len(CHECK_SIZES)):
        numbers = {n: CHECK_SIZES[(i + shift) % len(CHECK_SIZES)] for i, n in enumerate(names)}
        if _fits(module, numbers):
            return numbers
    for unit in (8, 24):  # where dimensions have to divide each other
        numbers = {n: unit * (i + 1) for i, n in enumerate(names)}
        if _fits(module, numbers):
            return numbers
    return None


def edge_sizes(module: Module, fixed: Mapping[str, int]) -> list[dict[str, int]]:
    """Dimension names that stay open, all 1 and all 0, as far as the program allows that; `fixed` become numbers."""
    names = [n for n in module.graph.dimensions if n not in fixed]
    choices = [{**fixed, **dict.fromkeys(names, number)} for number in (1, 0)] if names else []
    return [numbers for numbers in choices if _fits(module, numbers)]


def _fits(module: Module, numbers: Mapping[str, int]) -> bool:
    try:
        fixed = specialize(module, numbers)
    except CompileError:
        return False
    return not any(isinstance(node, Slice) and _leaves(node) for node in fixed.graph.body.walk())


def _leaves(node: Slice) -> bool:
    """Does a slice take what its operand does not have, as one of the first row of no rows does?"""
    lasts = (start + (extent - 1) * step for start, extent, step in zip(node.starts, node.extents, node.steps))
    beyond = [(last - size).constant for last, size in zip(lasts, node.x.tensor.shape)]
    return any(n is not None and n >= 0 and extent.constant != 0 for n, extent in zip(beyond, node.extents))


def work(module: Module, sizes: Mapping[str, int]) -> int:
    """An estimate of the points that the interpreter evaluates. What depends on data counts as 8."""
    return _region_work(module, module.graph.body, sizes)


def _region_work(module: Module, region: Region, names: Mapping[str, int]) -> int:
    total = 0
    for node in region.nodes:
        match node:
            case Structured():
                total += _points((a.extent for a in node.space.all_axes), names)
            case Update():
                total += _points((*node.base.tensor.shape,), names) + _points((a.extent for a in node.axes), names)
            case Loop():
                steps = _number(node.upper - node.lower, names)
                inner = {**names, node.counter: 0}
                total += steps * sum(_region_work(module, r, inner) for r in node.regions)
            case Call():
                called = module.kernel(node.kernel)
                given = dict(zip(called.sizes, (_number(s, names) for s in node.sizes)))
                total += sum(_statement_work(s, given) for s in called.body)
            case _:
                total += sum(_region_work(module, r, names) for r in node.regions)
                total += sum(_points(t.shape, names) for t in node.results if isinstance(t, TensorType))
    return total


def _statement_work(statement: Statement, names: Mapping[str, int]) -> int:
    match statement:
        case For(axis, lower, upper, body, _, step):
            inner = {**names, axis: _number(lower, names)}
            steps = -(-_number(upper - lower, names) // step)
            return steps * sum(_statement_work(s, inner) for s in body)
        case If(_, then, otherwise):
            return sum(_statement_work(s, names) for s in (*then, *otherwise))
        case Put():
            return 1
        case kernel.Call(length=length):
            return _number(length, names)
    return 0


def _points(extents: Iterator[Size] | tuple[Size, ...], names: Mapping[str, int]) -> int:
    total = 1
    for extent in extents:
        total *= _number(extent, names)
    return total


def _number(size: Size, names: Mapping[str, int]) -> int:
    known = {**dict.fromkeys(size.symbols, 8), **names}
    return max(0, size.evaluate(known, lambda value: 8))
