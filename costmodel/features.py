"""What a learned model sees of a scheduled kernel: numbers read off it by walking it, without running it.

Counts, bytes and times are logarithms to base 2, so that a factor counts the same everywhere; shares are between 0 and
1. `FEATURES` names them with their units. The estimate of the analytic model is among them: what is learned is by how
much it is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intarsia.costmodel.analytic import SLOW, dot_of, estimate, forks, is_product, share_of, stride_of
from intarsia.costmodel.extents import Extents, Footprints, traffic
from intarsia.costmodel.launch_features import LAUNCH_FEATURES, launch_features
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.kernel import Alloc, Buffer, For, If, Kernel, Prefetch, Put, Statement, walk
from intarsia.ir.kernel_access import expressions
from intarsia.ir.preparation import split_preparation
from intarsia.ir.scalar import Apply, Cast, Expr, Load, loads
from intarsia.ir.scalar import walk as walk_expression
from intarsia.ir.sizes import Size, product
from intarsia.ir.target import Target

FEATURES: dict[str, str] = {
    "estimate": "log2 s: the time that the analytic model predicts",
    "share arithmetic": "time of the arithmetic units / estimate",
    "share loads": "time of the load units / estimate",
    "share stores": "time of the store units / estimate",
    "share chains": "time of additions that wait for each other / estimate",
    "share cache 2": "time of what the second cache sends / estimate",
    "share memory": "time of what comes from the last level / estimate",
    "share threads": "time of starting threads / estimate",
    "operations": "log2 scalar operations",
    "executions": "log2 executions of statements, lanes counted one by one",
    "parameter bytes": "log2 bytes of all parameters",
    "intensity": "log2 scalar operations a parameter byte",
    "redundancy": "log2 executions an element of the results",
    "multiply-adds": "share of statements' executions that add a product",
    "slow functions": "share of operations that are divisions, roots or powers",
    "long functions": "share of operations inside functions of several instructions, such as exp",
    "conversions": "casts an operation",
    "integers": "share of values computed that are integers",
    "narrow loads": "share of loads of types of 16 bits and less, which are widened",
    "decoded loads": "share of loads of types below 8 bits, which are unpacked",
    "bits": "log2 bits of the widest element",
    "vector share": "share of executions inside lanes",
    "filled lanes": "share of the lanes of vector registers that are used, over all vectors",
    "vectors": "log2 vectors side by side in a statement, over all executions",
    "masked": "share of executions under a mask",
    "contiguous loads": "share of loads along lanes that are next to each other",
    "uniform loads": "share of loads in vectors that are one number for all lanes",
    "strided loads": "share of loads with lanes apart",
    "gathers": "share of loads whose lanes are anywhere",
    "contiguous stores": "share of stores with lanes next to each other",
    "register loads": "share of loads that are of registers",
    "register bytes": "log2 bytes of temporaries in registers",
    "pressure": "log2 vectors of temporaries in registers / vector registers",
    "loads an operation": "log2 vector loads from memory a vector operation",
    "code": "log2 statements after everything that is unrolled is written out",
    "largest body": "log2 statements of the largest innermost body, written out",
    "inner trips": "log2 iterations of the innermost loop that runs, over all executions",
    "loop overhead": "log2 iterations of loops an execution of a vector statement",
    "depth": "greatest depth of loops that run",
    "loops": "log2 number of loops",
    "statements": "log2 number of statements",
    "branches": "log2 number of branches",
    "cache 1 traffic": "log2 bytes into the first cache / parameter bytes",
    "cache 2 traffic": "log2 bytes into the second cache / parameter bytes",
    "memory traffic": "log2 bytes into the last cache / parameter bytes",
    "copied bytes": "log2 bytes written to temporaries in memory / parameter bytes",
    "scratch": "log2 bytes of temporaries in memory / second cache",
    "footprint 1": "log2 bytes that the innermost loop touches / first cache",
    "footprint 2": "log2 bytes that the loop around it touches / first cache",
    "footprint 3": "log2 bytes that the third loop from inside touches / first cache",
    "footprint 4": "log2 bytes that the fourth loop from inside touches / first cache",
    "crowding": "log2 cache lines taken in the first cache / lines touched, by the third loop from inside",
    "streams": "log2 places of memory that the innermost loop reads or writes",
    "longest step": "log2 bytes between iterations of the innermost loop, the longest",
    "short runs": "share of memory traffic in runs of less than four lines",
    "prefetches": "log2 prefetches an execution of a vector statement",
    "past the caches": "share of stores that bypass the caches",
    "whole lines": "share of parameters whose rows are whole cache lines",
    "cores": "log2 cores",
    "parallel trips": "log2 iterations of the parallel loop that most work is in",
    "balance": "work / (cores * the work of the busiest core)",
    "forks": "log2 starts of threads",
}
"""Every feature by its name, with unit and meaning."""

NAMES = tuple(FEATURES)

NAMES_BY_KIND = {"cpu": NAMES, "gpu": tuple(LAUNCH_FEATURES)}
"""The names of features by the kind of target, in order."""

AT_ONCE = ("lane", "unroll", "dot")
"""Kinds of loops that are no loops when they run."""

Vector = npt.NDArray[np.float32]


def features(kernel: Kernel, target: Target) -> Vector:
    """The features of a scheduled kernel, in the order of `FEATURES`, for a GPU of `LAUNCH_FEATURES`: (features,)."""
    names = NAMES_BY_KIND[target.kind]
    if target.kind == "gpu":
        found = launch_features(kernel, target)
    else:
        _, kernel = split_preparation(kernel)
        found = _read(kernel, target)
    assert found.keys() == set(names), found.keys() ^ set(names)
    return np.array([found[name] for name in names], np.float32)


def _log(value: float, least: float = 2.0**-40) -> float:
    return math.log2(max(value, least))


@dataclass
class _Sums:
    """What is added up over all statements."""

    values: dict[str, float]

    def add(self, name: str, value: float) -> None:
        self.values[name] = self.values.get(name, 0.0) + value

    def __getitem__(self, name: str) -> float:
        return self.values.get(name, 0.0)

    def share(self, name: str, whole: str) -> float:
        return self[name] / self[whole] if self[whole] else 0.0


def _read(kernel: Kernel, target: Target) -> dict[str, float]:
    extents = Extents.of(kernel)
    estimated = estimate(kernel, target)
    resources = {
        name: seconds / estimated.seconds if estimated.seconds else 0.0 for name, seconds in estimated.resources.items()
    }
    parameter_bytes = sum(_bytes(b, extents) for b in kernel.parameters)
    results = sum(_elements(b, extents) for b in kernel.outputs)
    sums = _Sums({})
    bodies: dict[str, float] = {}
    for statement, loops in extents.leaves(kernel.body):
        if isinstance(statement, Put):
            _count(statement, loops, extents, target, sums, bodies)
    statements = sum(1 for s, _ in walk(kernel.body) if isinstance(s, Put))
    every = [s for s, _ in walk(kernel.body) if isinstance(s, For)]
    inner = _innermost(extents)
    return {
        "estimate": _log(estimated.seconds),
        "share arithmetic": resources["arithmetic"],
        "share loads": resources["loads"],
        "share stores": resources["stores"],
        "share chains": resources["chains"],
        "share cache 2": resources.get("cache 2", 0.0),
        "share memory": resources["memory"],
        "share threads": resources["threads"],
        "operations": _log(sums["operations"]),
        "executions": _log(sums["executions"]),
        "parameter bytes": _log(parameter_bytes),
        "intensity": _log(sums["operations"] / max(1.0, parameter_bytes)),
        "redundancy": _log(sums["executions"] / max(1.0, results)),
        "multiply-adds": sums.share("multiply-adds", "executions"),
        "slow functions": sums.share("slow", "operations"),
        "long functions": sums.share("long", "operations"),
        "conversions": sums.share("casts", "operations"),
        "integers": sums.share("integers", "values"),
        "narrow loads": sums.share("narrow", "loads"),
        "decoded loads": sums.share("decoded", "loads"),
        "bits": _log(max((b.dtype.bits for b in extents.buffers.values()), default=32)),
        "vector share": sums.share("in lanes", "executions"),
        "filled lanes": sums.share("lanes used", "lanes there"),
        "vectors": _log(sums["vectors side by side"] / max(1.0, sums["vector statements"])),
        "masked": sums.share("masked", "executions"),
        "contiguous loads": sums.share("contiguous", "loads"),
        "uniform loads": sums.share("uniform", "loads"),
        "strided loads": sums.share("strided", "loads"),
        "gathers": sums.share("gathers", "loads"),
        "contiguous stores": sums.share("contiguous stores", "executions"),
        "register loads": sums.share("register loads", "loads"),
        **_registers(extents, target),
        "loads an operation": _log(sums["vector loads"] / max(1.0, sums["vector statements"])),
        "code": _log(sums["written out"]),
        "largest body": _log(max(bodies.values(), default=1.0)),
        "inner trips": _log(sums["inner trips"] / max(1.0, sums["vector statements"])),
        "loop overhead": _log(_iterations(extents) / max(1.0, sums["vector statements"])),
        "depth": max((len(loops) for _, loops in extents.leaves(kernel.body)), default=0),
        "loops": _log(len(every), 1.0),
        "statements": _log(statements, 1.0),
        "branches": _log(1 + sum(1 for s, _ in walk(kernel.body) if isinstance(s, If))),
        **_memory(kernel, extents, target, inner, parameter_bytes),
        "copied bytes": _log(sums["copied bytes"] / max(1.0, parameter_bytes), 2.0**-20),
        "prefetches": _log(_prefetches(extents) / max(1.0, sums["vector statements"]), 2.0**-20),
        "past the caches": sums.share("nontemporal", "executions"),
        "whole lines": _whole_lines(kernel, extents, target),
        "cores": _log(target.cores),
        **_threads(kernel, extents, target),
        "forks": _log(forks(kernel.body, extents), 2.0**-4),
    }


# ---------------------------------------------------------------------- statements


def _count(
    put: Put, loops: tuple[For, ...], extents: Extents, target: Target, sums: _Sums, bodies: dict[str, float]
) -> None:
    """Add up what the executions of one statement do."""
    points = extents.points(loops)
    lanes = [loop for loop in loops if loop.kind == "lane"]
    width = extents.points(lanes)
    bits = max((e.dtype.bits for e in walk_expression(put.value)), default=32)
    vectors = max(1.0, math.ceil(width * bits / target.vector_bits))
    dot = dot_of(put, loops, target)
    products = 1 if dot is None else dot.width
    runs = points / max(1.0, width) / products
    buffer = extents.buffers[put.buffer]
    sums.add("executions", points)
    sums.add("vector statements", runs * vectors)
    sums.add("vectors side by side", runs * vectors * vectors)
    if lanes:
        sums.add("in lanes", points)
        sums.add("lanes used", points / products)
        sums.add("lanes there", runs * vectors * target.vector_bits / bits)
    if put.mask or any(x.mask for x in loads(put.value)):
        sums.add("masked", points)
    if put.operator == "+=" and is_product(put.value):
        sums.add("multiply-adds", points)
    if put.nontemporal:
        sums.add("nontemporal", points)
    parts = [loop for loop in loops if loop.kind == "dot"]
    if not lanes or 1 in _steps(put.buffer, put.indices, lanes, parts, extents):
        sums.add("contiguous stores", points)
    if buffer.role == "temp" and buffer.memory not in ("register",):
        sums.add("copied bytes", points * buffer.dtype.bytes)
    for value in expressions(put):
        _count_operations(value, points, sums)
    for load in dict.fromkeys(loads(put.value)):
        _count_load(load, lanes, parts, points, runs * vectors, extents, sums)
    unrolled = extents.points([loop for loop in loops if loop.kind == "unroll"]) * vectors
    sums.add("written out", unrolled)
    running = [loop for loop in loops if loop.kind not in AT_ONCE]
    place = running[-1].axis if running else ""
    bodies[place] = bodies.get(place, 0.0) + unrolled
    sums.add("inner trips", runs * vectors * (extents.trips[place] if place else 1.0))


def _count_operations(value: Expr, points: float, sums: _Sums) -> None:
    for e in walk_expression(value):
        match e:
            case Apply(function):
                count = SLOW.get(function, FUNCTIONS[function].operations)
                sums.add("operations", points * max(1.0, count))
                if function in SLOW:
                    sums.add("slow", points * count)
                elif count > 2:
                    sums.add("long", points * count)
                sums.add("values", points)
                if e.dtype.is_integer:
                    sums.add("integers", points)
            case Cast():
                sums.add("casts", points)
                sums.add("operations", points)


def _count_load(
    load: Load,
    lanes: Sequence[For],
    parts: Sequence[For],
    points: float,
    times: float,
    extents: Extents,
    sums: _Sums,
) -> None:
    buffer = extents.buffers[load.buffer]
    sums.add("loads", points)
    if load.dtype.bits <= 16:
        sums.add("narrow", points)
    if load.dtype.bits < 8:
        sums.add("decoded", points)
    if buffer.memory == "register":
        sums.add("register loads", points)
        return
    sums.add("vector loads", times)
    steps = _steps(load.buffer, load.indices, lanes, parts, extents)
    if None in steps:
        kind = "gathers"
    elif 1 in steps:
        kind = "contiguous"
    elif any(steps):
        kind = "strided"
    else:
        kind = "uniform"
    sums.add(kind, points)


def _steps(
    name: str, indices: Sequence[Size], lanes: Sequence[For], parts: Sequence[For], extents: Extents
) -> list[int | None]:
    """Elements between lanes; where the parts of words lie together, words."""
    together = [extents.trips[x.axis] for x in parts if _step(name, indices, x, extents) == 1]
    width = int(math.prod(together))
    steps = [_step(name, indices, loop, extents) for loop in lanes]
    return [step if step is None or step % width else step // width for step in steps]


def _step(name: str, indices: Sequence[Size], loop: For, extents: Extents) -> int | None:
    """Elements between neighbouring iterations of a loop; None where that is not one number."""
    if any(loop.axis in o.symbols for i in indices for o in i.opaques):
        return None
    return stride_of(name, indices, loop.axis, extents)


# ---------------------------------------------------------------------- registers and loops


def _registers(extents: Extents, target: Target) -> dict[str, float]:
    held = [b for b in extents.buffers.values() if b.memory == "register"]
    count = sum(_bytes(b, extents) for b in held)
    most = max((_bytes(b, extents) for b in held), default=0.0)
    return {
        "register bytes": _log(count, 1.0),
        "pressure": _log(most * 8 / target.vector_bits / target.registers, 2.0**-8),
    }


def _iterations(extents: Extents) -> float:
    """Iterations of all loops that run."""

    def count(body: Sequence[Statement], times: float) -> Iterator[float]:
        for statement in extents.statements(body):
            if isinstance(statement, For):
                inside = times * extents.trips[statement.axis]
                if statement.kind not in AT_ONCE:
                    yield inside
                yield from count(statement.body, inside)

    return sum(count(extents.kernel.body, 1.0))


def _prefetches(extents: Extents) -> float:
    return sum(extents.points(loops) for s, loops in walk(extents.kernel.body) if isinstance(s, Prefetch))


def _innermost(extents: Extents) -> tuple[For, ...]:
    """The loops that run around the statement that is executed most often, from the inside."""
    found: Mapping[tuple[For, ...], float] = {
        loops: extents.points(loops) for s, loops in extents.leaves(extents.kernel.body) if isinstance(s, Put)
    }
    most = max(found, key=lambda loops: found[loops], default=())
    return tuple(loop for loop in reversed(most) if loop.kind not in AT_ONCE)


# ---------------------------------------------------------------------- memory


def _memory(
    kernel: Kernel, extents: Extents, target: Target, inner: tuple[For, ...], parameter_bytes: float
) -> dict[str, float]:
    first, second, last = target.caches[0], target.caches[min(1, len(target.caches) - 1)], target.caches[-1]
    plain = Footprints(extents, target.cache_line, startup=0)
    found: dict[str, float] = {}
    for name, capacity in (("cache 1", first), ("cache 2", second), ("memory", last)):
        brought = sum(traffic(plain, capacity, kernel.body).values())
        found[f"{name} traffic"] = _log(brought / max(1.0, parameter_bytes), 2.0**-20)
    whole = plain.of(kernel.body).values()
    short = sum(f.bytes for f in whole if f.stride and f.run < 4 * target.cache_line)
    scratch = sum(
        _bytes(s.buffer, extents)
        for s, _ in walk(kernel.body)
        if isinstance(s, Alloc) and s.buffer.memory not in ("register", "prepared")
    )
    touched = [plain.of((loop,)) for loop in inner[:4]]
    sizes = [sum(f.bytes for f in t.values()) for t in touched] or [parameter_bytes]
    sizes += [sizes[-1]] * (4 - len(sizes))
    third = touched[min(2, len(touched) - 1)].values() if touched else ()
    taken = sum(f.occupied(first, target.cache_line) for f in third)
    return {
        **found,
        "scratch": _log(scratch / second, 2.0**-20),
        **{f"footprint {n}": _log(size / first, 2.0**-20) for n, size in enumerate(sizes, start=1)},
        "crowding": _log(taken / max(1.0, sum(f.bytes for f in third)), 1.0),
        "streams": _log(_streams(extents, inner), 1.0),
        "longest step": _longest_step(extents, inner),
        "short runs": short / max(1.0, sum(f.bytes for f in whole)),
    }


def _streams(extents: Extents, inner: tuple[For, ...]) -> float:
    """Places of memory that the innermost loop goes through, unrolled ones counted each."""
    if not inner:
        return 1.0
    total = 0.0
    for statement, loops in extents.leaves(inner[0].body):
        if isinstance(statement, Put):
            for _, symbols in _places(statement, extents):
                unrolled = [loop for loop in loops if loop.kind == "unroll" and loop.axis in symbols]
                total += extents.points(unrolled)
    return total


def _places(put: Put, extents: Extents) -> Iterator[tuple[str, frozenset[str]]]:
    for load in dict.fromkeys(loads(put.value)):
        if extents.buffers[load.buffer].memory != "register":
            yield load.buffer, load.symbols
    if extents.buffers[put.buffer].memory != "register":
        yield put.buffer, frozenset().union(*(i.symbols for i in put.indices))


def _longest_step(extents: Extents, inner: tuple[For, ...]) -> float:
    if not inner:
        return 0.0
    loop, steps = inner[0], [1.0]
    for statement, _ in extents.leaves(loop.body):
        if isinstance(statement, Put):
            for load in loads(statement.value):
                buffer = extents.buffers[load.buffer]
                if buffer.memory != "register":
                    step = _step(load.buffer, load.indices, loop, extents)
                    steps.append(4096.0 if step is None else abs(step) * loop.step * buffer.dtype.bytes)
    return _log(max(steps), 1.0)


def _whole_lines(kernel: Kernel, extents: Extents, target: Target) -> float:
    rows = [extents.value(b.shape[-1]) * b.dtype.bytes for b in kernel.parameters if b.shape]
    return sum(row % target.cache_line == 0 for row in rows) / max(1, len(rows))


def _bytes(buffer: Buffer, extents: Extents) -> float:
    return _elements(buffer, extents) * buffer.dtype.bytes


def _elements(buffer: Buffer, extents: Extents) -> float:
    return float(max(0, extents.value(product(buffer.extents))))


# ---------------------------------------------------------------------- threads


def _threads(kernel: Kernel, extents: Extents, target: Target) -> dict[str, float]:
    """Of the statement that is executed most often."""
    most: tuple[For, ...] = ()
    executed = 0.0
    for statement, loops in extents.leaves(kernel.body):
        if isinstance(statement, Put) and extents.points(loops) > executed:
            most, executed = loops, extents.points(loops)
    parallel = [extents.trips[loop.axis] for loop in most if loop.kind == "parallel"]
    return {
        "parallel trips": _log(max(parallel, default=1.0), 1.0),
        "balance": share_of(most, extents, target) / target.cores,
    }
