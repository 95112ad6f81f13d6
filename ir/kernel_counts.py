"""How often a kernel touches memory: element loads and stores of each buffer, counted without running the kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from intarsia.ir.dtypes import Array
from intarsia.ir.kernel import Alloc, For, If, Kernel, Put, Statement, walk
from intarsia.ir.kernel_access import accesses, sizes_of
from intarsia.ir.kernel_interpreter import evaluate
from intarsia.ir.scalar import Expr, Mask
from intarsia.ir.sizes import Size

_BLOCK = 1 << 16


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

    Equal loads of one statement count once; a masked-off access does not count. Loops whose axis no mask or inner bound
    needs are multiplied out, others are run through. Raises ValueError if a bound or condition of a loop depends on
    data.
    """
    counter = _Counter(dict(sizes))
    counter.counts = {name: AccessCount() for name in kernel.buffers()}
    counter.block(kernel.body, {}, 1)
    return counter.counts


@dataclass
class _Counter:
    sizes: dict[str, int]
    counts: dict[str, AccessCount] = field(default_factory=dict)
    _needed: dict[int, frozenset[str]] = field(default_factory=dict)

    def block(self, body: tuple[Statement, ...], env: dict[str, Array], times: int) -> None:
        for statement in body:
            match statement:
                case For():
                    self.loop(statement, env, times)
                case If(condition, then, otherwise):
                    holds = self.holds(condition, env)
                    assert np.ndim(holds) == 0, "a condition is evaluated for one iteration at a time"
                    self.block(then if holds else otherwise, env, times)
                case Alloc():
                    pass
                case _:
                    self.leaf(statement, env, times)

    def loop(self, loop: For, env: dict[str, Array], times: int) -> None:
        bounds = int(self.value(loop.lower, env)), int(self.value(loop.upper, env))
        values = np.arange(*bounds, loop.step, dtype=np.int64)
        if loop.axis not in self.needed(loop):
            if len(values):
                self.block(loop.body, {**env, loop.axis: np.asarray(values[0])}, times * len(values))
        elif all(not isinstance(s, (For, If)) for s in loop.body):
            for start in range(0, len(values), _BLOCK):
                self.block(loop.body, {**env, loop.axis: values[start : start + _BLOCK]}, times)
        else:
            for value in values:
                self.block(loop.body, {**env, loop.axis: np.asarray(value)}, times)

    def leaf(self, statement: Statement, env: dict[str, Array], times: int) -> None:
        own = self.holds(statement.mask, env) if isinstance(statement, Put) else np.True_
        for access in dict.fromkeys(accesses((statement,))):
            holds = own & self.holds(access.mask, env)
            lengths = [len(v) for v in env.values() if np.ndim(v)]
            points = times * int(np.broadcast_to(holds, lengths[0] if lengths else ()).sum())
            count = self.counts[access.buffer]
            self.counts[access.buffer] = count.plus(points if access.reads else 0, points if access.writes else 0)

    def needed(self, loop: For) -> frozenset[str]:
        """The names on which the course of the loop's body depends."""
        if id(loop) not in self._needed:
            names: set[str] = set()
            for statement, _ in walk(loop.body):
                match statement:
                    case Put():
                        names.update(n for m in statement.mask for n in m.symbols)
                    case For() | If():
                        names.update(n for s in sizes_of(statement) for n in s.symbols)
                for access in accesses((statement,)) if not isinstance(statement, (For, If)) else ():
                    names.update(n for m in access.mask for n in m.symbols)
            self._needed[id(loop)] = frozenset(names)
        return self._needed[id(loop)]

    def holds(self, mask: Mask, env: dict[str, Array]) -> Array:
        result = np.asarray(True)
        for condition in mask:
            result = result & (self.value(condition, env) > 0)
        return result

    def value(self, size: Size, env: dict[str, Array]) -> Array:
        return np.asarray(evaluate(size, {**self.sizes, **env}, _refuse))


def _refuse(value: Expr) -> int:
    raise ValueError(f"{value} depends on data")
