"""The analytic model: a roofline with cache levels, for a scheduled kernel.

Instructions are counted as the loops say, arithmetic against loads against stores, with chains of dependent additions
and vectors that do not fit the registers. Bytes are counted through every cache (costmodel/extents.py). The slowest
resource sets the time; the others hide behind it for the most part. After Williams, Waterman and Patterson, "Roofline",
CACM 52(4), 2009, with the cache levels of Stengel et al., "Quantifying performance bottlenecks of stencil computations
using the execution-cache-memory model", ICS 2015.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from intarsia.costmodel.extents import Extents, Footprints, traffic
from intarsia.ir.dots import Dot, find_dot, widened_factors
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.kernel import Call, Check, For, Kernel, Put, Statement, walk
from intarsia.ir.kernel_access import expressions
from intarsia.ir.preparation import split_preparation
from intarsia.ir.scalar import Apply, Cast, Expr, Load, loads
from intarsia.ir.scalar import walk as walk_expression
from intarsia.ir.sizes import Size, row_major_strides
from intarsia.ir.target import Target

SLOW = {"div": 8, "sqrt": 10, "rsqrt": 12, "floordiv": 12, "mod": 12, "pow": 30}
"""Cycles of a vector unit for a function that is not one instruction a cycle."""

HIDDEN = 0.85
"""The part of what is not the slowest resource that runs behind it."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of a kernel, and what each resource alone would take.

    resources: seconds by name: `arithmetic`, `loads`, `stores`, `chains`, `cache 2`, …, `memory`, and `threads` for
    starting them.
    """

    seconds: float
    resources: dict[str, float]

    @property
    def limit(self) -> str:
        """The resource that takes longest."""
        return max(self.resources, key=lambda name: self.resources[name])


def estimate(kernel: Kernel, target: Target) -> Estimate:
    """The time of one run of a scheduled kernel on all cores of a target, without what is computed once for all."""
    _, kernel = split_preparation(kernel)
    extents = Extents.of(kernel)
    cycles = dict.fromkeys(("arithmetic", "loads", "stores", "chains"), 0.0)
    for leaf, loops in extents.leaves(kernel.body):
        for name, count in _instructions(leaf, loops, extents, target).items():
            cycles[name] += count
    resources = {name: count / target.rates.clock for name, count in cycles.items()}
    resources |= _transfers(kernel, extents, target)
    waking = forks(kernel.body, extents) * target.rates.fork if target.cores > 1 else 0.0
    slowest = max(resources.values())
    rest = sum(resources.values()) - slowest
    return Estimate(slowest + (1 - HIDDEN) * rest + waking, {**resources, "threads": waking})


# ---------------------------------------------------------------------- instructions


def _instructions(leaf: Statement, loops: tuple[For, ...], extents: Extents, target: Target) -> dict[str, float]:
    """Cycles of one core for all executions of a leaf, by unit."""
    if isinstance(leaf, Call):
        length = max(2, extents.value(leaf.length))
        return {"arithmetic": extents.points(loops) * length * math.log2(length) * 4 / share_of(loops, extents, target)}
    if not isinstance(leaf, (Put, Check)):
        return {}
    rates = target.rates
    share = share_of(loops, extents, target)
    values = list(expressions(leaf))
    width = max((e.dtype.bits for v in values for e in walk_expression(v)), default=32)
    lanes = extents.points([loop for loop in loops if loop.kind == "lane"])
    vectors = math.ceil(lanes * width / target.vector_bits) if lanes > 1 else 1
    times = extents.points([loop for loop in loops if loop.kind != "lane"]) * vectors / share
    arithmetic = sum(map(_operations, values))
    dot = dot_of(leaf, loops, target) if isinstance(leaf, Put) else None
    if isinstance(leaf, Put) and dot is not None:
        times, arithmetic = times / dot.width, rates.arithmetic / rates.dots + _prepared_parts(leaf)
    stored = 0.0
    if isinstance(leaf, Put):
        merges = leaf.operator != "=" and dot is None and not (leaf.operator == "+=" and is_product(leaf.value))
        arithmetic += merges
        if extents.buffers[leaf.buffer].memory != "register":
            stored = times * _apart(leaf, loops, lanes / vectors, extents)
    read = sum(_loads(load, loops, extents, target) for load in dict.fromkeys(x for v in values for x in loads(v)))
    return {
        "arithmetic": times * arithmetic / rates.arithmetic,
        "loads": read / share / rates.loads,
        "stores": stored / rates.stores,
        "chains": _chain(leaf, loops, extents) * rates.latency / share if isinstance(leaf, Put) else 0.0,
    }


def dot_of(put: Put, loops: tuple[For, ...], target: Target) -> Dot | None:
    """The instruction by which a dot loop is written."""
    found = find_dot(target, put)
    return found if found is not None and [loop.kind for loop in loops[-2:]] == ["lane", "dot"] else None


def _prepared_parts(put: Put) -> float:
    """Operations on the parts of words before they are multiplied."""
    return sum(_operations(e) for e in widened_factors(put) or ())


def _operations(value: Expr) -> float:
    total = 0.0
    for e in walk_expression(value):
        match e:
            case Apply(function):
                total += SLOW.get(function, FUNCTIONS[function].operations)
            case Cast():
                total += 1
    return total


def is_product(value: Expr) -> bool:
    return isinstance(value, Apply) and value.function == "mul"


def _loads(load: Load, loops: tuple[For, ...], extents: Extents, target: Target) -> float:
    """Load instructions: a load is repeated by the loops outside the innermost one that it depends on, and inside of
    that by those written out that it depends on."""
    buffer = extents.buffers[load.buffer]
    if buffer.memory == "register":
        return 0.0
    order = [loop for loop in loops if loop.kind not in ("unroll", "lane", "dot")]
    used = [n for n, loop in enumerate(order) if loop.axis in load.symbols]
    times = extents.points(order[: used[-1] + 1] if used else [])
    written_out = [loop for loop in loops if loop.kind == "unroll" and loop.axis in load.symbols]
    return times * extents.points(written_out) * _parts(buffer.name, load.indices, loops, extents, target)


def _parts(name: str, indices: Sequence[Size], loops: tuple[For, ...], extents: Extents, target: Target) -> float:
    """Instructions for one access over all lanes: vectors where they lie together, else one a lane. The parts of words
    are one element if they lie together too."""
    buffer = extents.buffers[name]
    total, bits, width = 1.0, buffer.dtype.bits, 1
    for loop in reversed(loops):
        if loop.kind not in ("lane", "dot"):
            continue
        step = stride_of(name, indices, loop.axis, extents)
        lanes = extents.trips[loop.axis]
        if loop.kind == "dot" and step == 1:
            bits, width = bits * int(lanes), int(lanes)
        elif step == width:
            total *= math.ceil(lanes * bits / target.vector_bits)
        elif step != 0:
            total *= lanes
    return total


def _apart(put: Put, loops: tuple[For, ...], lanes: float, extents: Extents) -> float:
    """How many instructions a stored vector takes: as many as it has lanes if they do not lie together."""
    steps = [stride_of(put.buffer, put.indices, loop.axis, extents) for loop in loops if loop.kind == "lane"]
    return 1.0 if not steps or 1 in steps else lanes


def stride_of(name: str, indices: Sequence[Size], axis: str, extents: Extents) -> int | None:
    strides = row_major_strides(extents.buffers[name].shape)
    total = 0
    for index, step in zip(indices[len(indices) - len(strides) :], strides):
        coefficient = index.coefficient(axis)
        if coefficient is None:
            return None
        total += coefficient * extents.value(step)
    return total


def _chain(put: Put, loops: tuple[For, ...], extents: Extents) -> float:
    """Additions that wait for each other: those into one element, along the loops that do not move it."""
    if put.operator == "=":
        return 0.0
    moved = frozenset().union(*(i.symbols for i in put.indices))
    order = [loop for loop in loops if loop.kind not in ("lane", "dot")]
    independent = [loop for loop in order if loop.axis in moved and loop.kind == "unroll"]
    still = [loop for loop in order if loop.axis not in moved]
    if not still:
        return 0.0
    return extents.points(order) / max(1.0, extents.points(independent))


# ---------------------------------------------------------------------- bytes


def _transfers(kernel: Kernel, extents: Extents, target: Target) -> dict[str, float]:
    """Seconds for the bytes through each cache and from memory."""
    rates = target.rates
    written = {name for name, buffer in extents.buffers.items() if buffer.role != "in"}
    streamed = {s.buffer for s, _ in walk(kernel.body) if isinstance(s, Put) and s.nontemporal}
    threads = _threads(kernel.body, extents, target)
    footprints = Footprints(extents, target.cache_line)
    found: dict[str, float] = {}
    for level, size in enumerate(target.caches):
        brought = traffic(footprints, size, kernel.body)
        moved = sum(n * (2 if name in written and name not in streamed else 1) for name, n in brought.items())
        rate = rates.cache_bytes[min(level, len(rates.cache_bytes) - 1)] * rates.clock
        if level == len(target.caches) - 1:
            found["memory"] = moved / min(threads * rates.memory_of_one, rates.memory)
        else:
            found[f"cache {level + 2}"] = moved / threads / rate
    return found


# ---------------------------------------------------------------------- threads


def share_of(loops: Iterable[For], extents: Extents, target: Target) -> float:
    """By how much threads divide the work inside of loops: all of them if the iterations come out even."""
    for loop in loops:
        if loop.kind == "parallel":
            trips = max(1.0, extents.trips[loop.axis])
            return trips / math.ceil(trips / target.cores)
    return 1.0


def _threads(body: Sequence[Statement], extents: Extents, target: Target) -> float:
    """The threads of a kernel: the largest share of its loops."""
    return max((share_of(loops, extents, target) for _, loops in extents.leaves(body)), default=1.0)


def forks(body: Sequence[Statement], extents: Extents) -> float:
    """How often threads are started."""
    total = 0.0
    for statement in extents.statements(body):
        if isinstance(statement, For):
            inner = (
                1.0 if statement.kind == "parallel" else extents.trips[statement.axis] * forks(statement.body, extents)
            )
            total += inner
    return total
