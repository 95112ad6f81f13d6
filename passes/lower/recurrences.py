"""Loops whose steps each change one element or a short row become one kernel: a sweep through a state in place.

    %1 = loop j in 1..9 (%x = %0) {               kernel f_update_j(a: f64[9], inout x: f64[9]) {
      %2 = call @f_update(%a, %x)[j] : f64[9]  =>   for j in 1..9 { x[j] = a[j] * x[j - 1] }
      yield %2                                    }
    } : f64[9]

A call for each element would cost more than the element, and rows that need each other can be walked side by side. The
order of the steps is kept, as that of a loop is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from intarsia.ir.graph import Value
from intarsia.ir.kernel import For, Kernel, Put, Statement
from intarsia.ir.ops import Call, Loop
from intarsia.ir.proofs import Facts
from intarsia.ir.sizes import Size
from intarsia.ir.types import Type
from intarsia.passes.lower.stages import symbols


@dataclass(frozen=True)
class Recurrence:
    """A kernel that does all steps of a loop, what its call gets and gives, and which of its results each state is."""

    kernel: Kernel
    arguments: tuple[Value, ...]
    types: tuple[Type, ...]
    results: tuple[int, ...]


def recurrence(loop: Loop, kernels: Mapping[str, Kernel], names: Sequence[str], facts: Facts) -> Recurrence | None:
    """A lowered loop as one kernel, if its body is one call that changes elements or short rows of the states in place.

    `names` are the symbols in scope around the loop, in order; `facts` hold inside of it.
    """
    nodes = loop.body.nodes
    if len(nodes) != 1 or not isinstance(call := nodes[0], Call) or loop.condition is not None or loop.stacked:
        return None
    kernel = kernels[call.kernel]
    if loop.scalars or not _is_short(kernel.body, facts) or call.sizes != _own(kernel):
        return None
    states = {p.value: n for n, p in enumerate(loop.states)}
    given = [b for b in kernel.parameters if b.role in ("in", "inout")]
    changed = [states.get(v) for b, v in zip(given, call.arguments, strict=True) if b.role == "inout"]
    read = [v for b, v in zip(given, call.arguments) if b.role == "in"]
    in_place = sorted(n for n in changed if n is not None) == list(range(len(states)))
    if not in_place or len(kernel.outputs) != len(changed) or any(v in states for v in read):
        return None
    results = tuple(changed.index(n) for n in range(len(states)))
    if loop.body.results != tuple(call.values[r] for r in results):
        return None
    body = (For(loop.counter, loop.lower, loop.upper, kernel.body),)
    used = symbols(body, kernel.parameters)
    whole = replace(kernel, body=body, sizes=tuple(n for n in names if n in used))
    arguments = tuple(loop.initial[states[v]] if v in states else v for v in call.arguments)
    return Recurrence(whole, arguments, call.types, results)


ROW = 4096
"""Elements of a row up to which it is short."""


def _is_short(body: Sequence[Statement], facts: Facts) -> bool:
    """Does a step change single elements, or short rows of them? Longer ones are worth a kernel, and threads, each."""
    return all(
        isinstance(s, Put)
        or (isinstance(s, For) and facts.proves(ROW - (s.upper - s.lower)) and all(isinstance(p, Put) for p in s.body))
        for s in body
    )


def _own(kernel: Kernel) -> tuple[Size, ...]:
    return tuple(map(Size.of, kernel.sizes))
