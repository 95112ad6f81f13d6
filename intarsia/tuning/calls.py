"""How a program calls its kernels: how often, and with which values of the sizes that loops give them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from intarsia.ir.graph import Module, Region
from intarsia.ir.kernel import Kernel
from intarsia.ir.ops import Call, Loop
from intarsia.ir.sizes import Size

Runs: TypeAlias = Sequence[tuple[int, ...]]
"""Values of the sizes of a kernel, for each of several runs."""

ONCE: Runs = ((),)
"""A single run of a kernel without sizes."""

RUNS = 32
"""Runs of a kernel that are measured together, where they differ, or change something in place."""

UNKNOWN = 100
"""Steps that a loop counts as whose number depends on data."""


@dataclass(frozen=True)
class Calls:
    """How often a kernel is called, the sizes of some of its calls, spread over all of them, and whether what it makes
    is read again: by another kernel, or by the next step of a loop."""

    count: float = 1.0
    runs: Runs = ONCE
    is_read_again: bool = False


SINGLE = Calls()
"""One call of a kernel without sizes, in no loop."""


def calls_of(module: Module) -> dict[str, Calls]:
    """The calls of every kernel of a lowered module whose sizes are numbers or follow from the counters of loops."""
    found: dict[str, Calls] = {}
    kernels = {kernel.name: kernel for kernel in module.kernels}
    _collect(module.graph.body, 1.0, [{} for _ in range(RUNS)], 0, kernels, found)
    return found


def _collect(
    region: Region,
    count: float,
    samples: Sequence[Mapping[str, int]],
    depth: int,
    kernels: Mapping[str, Kernel],
    found: dict[str, Calls],
) -> None:
    """`samples` are values of the counters around a region, from all over their ranges."""
    read = {value for node in region.nodes for value in node.operands}
    for node in region.nodes:
        if isinstance(node, Call) and all(s.symbols <= samples[0].keys() and not s.opaques for s in node.sizes):
            is_changing = bool(node.sizes) or any(b.role == "inout" for b in kernels[node.kernel].parameters)
            runs = tuple(tuple(s.evaluate(own) for s in node.sizes) for own in samples[: None if is_changing else 1])
            before = found[node.kernel].count if node.kernel in found else 0.0
            found[node.kernel] = Calls(before + count, runs, depth > 0 or not read.isdisjoint(node.values))
        elif isinstance(node, Loop):
            bounds = [(_number(node.lower, own, 0), _number(node.upper, own, UNKNOWN)) for own in samples]
            steps = statistics.fmean(max(0, upper - lower) for lower, upper in bounds)
            # Counters of loops in each other are spread in different orders.
            order = [(2 * depth + 1) * n % RUNS for n in range(RUNS)]
            inside = [
                {**own, node.counter: lower + max(0, upper - lower) * (2 * place + 1) // (2 * RUNS)}
                for own, (lower, upper), place in zip(samples, bounds, order)
            ]
            _collect(node.body, count * steps, inside, depth + 1, kernels, found)


def _number(bound: Size, values: Mapping[str, int], otherwise: int) -> int:
    """A bound of a loop, where it does not depend on data."""
    return bound.evaluate(values) if bound.symbols <= values.keys() and not bound.opaques else otherwise
