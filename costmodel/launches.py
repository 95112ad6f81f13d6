"""The analytic model for a GPU: a roofline of each launch of a scheduled kernel, and what keeps it from its roofs.

Bytes and operations are counted from the blocks that programs work on. A core has room for so many programs, and these
for so many bytes that are under way, which bounds how fast they come (Little, "A proof for the queuing formula L = λW",
Operations Research 9(3), 1961); programs that do not come out even leave cores idle. No chip has been measured: the
figures are those of data sheets and of published microbenchmarks, and the model is meant to order candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from intarsia.costmodel.analytic import HIDDEN, Estimate, stride_of
from intarsia.costmodel.extents import Extents, Footprints, traffic
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.kernel import LANES, For, Kernel, Put
from intarsia.ir.kernel_launch import Launch, Product, launches_of
from intarsia.ir.preparation import split_preparation
from intarsia.ir.scalar import Apply, Cast, Expr, Load, loads, walk
from intarsia.ir.sizes import Quotient, Size
from intarsia.ir.target import Target

SECTOR = 32
"""Bytes that memory and caches give at least."""

EXCHANGE = 60
"""Cycles until the threads of a program have exchanged something: what a reduction along lanes takes, and a step of a
product whose blocks go through shared memory."""

FUNCTION_UNITS = 8
"""Operations that a function of many takes at most: there are units for exponentials, roots and reciprocals."""

SCHEDULERS = 4
"""Warps that a core can let go on in one cycle; with fewer resident ones it does less."""


@dataclass(frozen=True)
class Work:
    """What a program does, in a block that it works on: multiply-adds of matrix units in cycles, other instructions of
    f32 units, bytes that it asks the second cache for, those of them that come one step after the other, and cycles in
    which it waits."""

    matrix: float = 0.0
    operations: float = 0.0
    bytes: float = 0.0
    waiting: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.matrix + other.matrix,
            self.operations + other.operations,
            self.bytes + other.bytes,
            self.waiting + other.waiting,
        )


@dataclass(frozen=True)
class Occupancy:
    """How a launch lies on a chip. programs: blocks of work; room: programs that a core can hold; cores: those that
    have work; rounds: blocks that the core with most of them does, `together` of them at a time."""

    programs: float
    room: int
    cores: float
    rounds: float
    together: float


@dataclass(frozen=True)
class Report:
    """What there is to say of one launch. resources: seconds that each alone would take."""

    launch: Launch
    lying: Occupancy
    work: Work
    resources: dict[str, float]

    @property
    def seconds(self) -> float:
        """The slowest resource, and what does not hide behind it of the others."""
        slowest = max(self.resources.values())
        return slowest + (1 - HIDDEN) * (sum(self.resources.values()) - slowest)


def estimate_launches(kernel: Kernel, target: Target) -> Estimate:
    """The time of one run of a scheduled kernel on a GPU, without what is computed once for all."""
    _, kernel = split_preparation(kernel)
    found = reports(kernel, Extents.of(kernel), target)
    total: dict[str, float] = {}
    for report in found:
        for name, value in report.resources.items():
            total[name] = total.get(name, 0.0) + value
    starting = len(found) * target.chip.launch / target.rates.clock
    return Estimate(sum(r.seconds for r in found) + starting, {**total, "launches": starting})


def reports(kernel: Kernel, extents: Extents, target: Target) -> list[Report]:
    """What there is to say of each launch of a kernel."""
    return [_report(launch, extents, kernel, target) for launch in launches_of(kernel)]


def occupancy(launch: Launch, extents: Extents, kernel: Kernel, target: Target) -> Occupancy:
    """How many programs a core has room for, and how many it gets."""
    chip = target.chip
    programs = extents.points(launch.grid) if launch.grid else 1.0
    registers = min(launch.registers, target.registers)
    rooms = (
        chip.programs,
        chip.threads // launch.threads,
        chip.registers // (registers * launch.threads),
        chip.shared // (launch.shared + 1024) if launch.shared else chip.programs,
    )
    started = min(programs, kernel.programs) if kernel.programs else programs
    cores = max(1.0, min(started, float(target.cores)))
    room = max(1, min(rooms))
    return Occupancy(programs, room, cores, math.ceil(programs / cores), min(room, math.ceil(started / cores)))


def _report(launch: Launch, extents: Extents, kernel: Kernel, target: Target) -> Report:
    chip, rates = target.chip, target.rates
    lying = occupancy(launch, extents, kernel, target)
    work = _work(launch, extents, target)
    busy = min(1.0, lying.together * launch.warps / SCHEDULERS)
    begun = 1.0 if kernel.programs else lying.rounds / lying.together  # a walk loads ahead what its next block needs
    cycles = {
        "matrix units": lying.rounds * work.matrix,
        "arithmetic": lying.rounds * work.operations / (chip.operations * busy),
        "cache 2": lying.rounds * work.bytes / rates.cache_bytes[0],
        "waiting": lying.rounds / lying.together * work.waiting + 2 * begun * chip.latency,
    }
    footprints = Footprints(extents, SECTOR, startup=0)
    brought = sum(traffic(footprints, target.caches[-1], launch.body).values())
    seconds = {name: n / rates.clock for name, n in cycles.items()}
    return Report(launch, lying, work, {**seconds, "memory": brought / rates.memory})


# ---------------------------------------------------------------------- what a program does


def _work(launch: Launch, extents: Extents, target: Target) -> Work:
    """What a program does for one block."""
    products = {p.put: p for p in launch.products}
    grid = frozenset(loop.axis for loop in launch.grid)
    total, steps = Work(), set[tuple[str, ...]]()
    for leaf, around in extents.leaves(launch.body):
        if not isinstance(leaf, Put):
            continue
        loops = tuple(loop for loop in around if loop.axis not in grid)
        product = products.get(leaf)
        total += (
            _multiplied(product, loops, launch, extents, target) if product else _computed(leaf, loops, launch, extents)
        )
        total += _moved(leaf, loops, launch, extents, target, steps, product)
    return total


def _times(loops: Sequence[For], extents: Extents) -> float:
    """How often a program carries out a statement, for all lanes at once."""
    return extents.points([loop for loop in loops if loop.kind not in LANES])


def _multiplied(product: Product, loops: Sequence[For], launch: Launch, extents: Extents, target: Target) -> Work:
    """A product of blocks."""
    times = _times(loops, extents)
    done = times * math.prod(product.shape)
    rate = dict(target.chip.matrix).get(product.multiplied)
    if rate is None or not product.on_matrix_units:
        return Work(operations=done, waiting=times * EXCHANGE)
    return Work(matrix=done / rate * (1 if product.is_wide(launch.warps) else 2), waiting=times * EXCHANGE)


def _computed(put: Put, loops: Sequence[For], launch: Launch, extents: Extents) -> Work:
    """What is computed point by point, or reduced. A block with fewer elements than threads is computed by all."""
    times = _times(loops, extents)
    lanes = extents.points([loop for loop in loops if loop.kind in LANES])
    used = frozenset().union(*(i.symbols for i in put.indices))
    is_reduced = any(loop.kind == "scan" or loop.axis not in used for loop in loops if loop.kind in LANES)
    exchanged = times * EXCHANGE if put.operator != "=" and is_reduced else 0.0
    return Work(operations=times * max(lanes, launch.threads) * (1 + _operations(put.value)), waiting=exchanged)


def _operations(value: Expr) -> float:
    total = 0.0
    for e in walk(value):
        match e:
            case Apply(function):
                total += min(FUNCTION_UNITS, FUNCTIONS[function].operations)
            case Cast():
                total += 0.5
    return total


def _moved(
    put: Put,
    loops: Sequence[For],
    launch: Launch,
    extents: Extents,
    target: Target,
    steps: set[tuple[str, ...]],
    product: Product | None,
) -> Work:
    """What a statement loads and stores, and how long a program waits for it: once in each step of the loops that move
    it, for all that these steps load; less, where several of them are under way."""
    total = Work()
    for load in dict.fromkeys(loads(put.value)):
        if extents.buffers[load.buffer].memory not in ("global", "prepared"):
            continue
        moving = _moving(load, loops)
        total += _transfer(load.buffer, load.indices, moving, loops, launch, extents)
        place = tuple(loop.axis for loop in moving)
        if place in steps:
            continue
        steps.add(place)
        ahead = launch.stages - 1 if product is not None and product.is_in_steps else 0
        total += Work(waiting=extents.points(moving) * target.chip.latency / max(1, ahead))
    if extents.buffers[put.buffer].memory in ("global", "prepared"):
        running = [loop for loop in loops if loop.kind not in LANES]
        total += _transfer(put.buffer, put.indices, running, loops, launch, extents)
    return total


def _moving(load: Load, loops: Sequence[For]) -> list[For]:
    """The loops of a program that repeat a load: those outside of the innermost one that moves it, and that one."""
    running = [loop for loop in loops if loop.kind not in LANES]
    places = [n for n, loop in enumerate(running) if loop.axis in load.symbols]
    return running[: places[-1] + 1] if places else []


def _transfer(
    buffer: str, indices: Sequence[Size], moving: Sequence[For], loops: Sequence[For], launch: Launch, extents: Extents
) -> Work:
    """Bytes of one access, whole sectors of them, and the instructions that it takes."""
    size = extents.buffers[buffer].dtype.bytes
    used = frozenset().union(*(i.symbols for i in indices))
    lanes = [loop for loop in loops if loop.kind in LANES and loop.axis in used]
    shared = {loop.axis: _sharing(indices, loop.axis) for loop in lanes}
    elements = extents.points(lanes) / math.prod(shared.values())
    indices = tuple(i.substitute({a: Size.of(a) * n for a, n in shared.items()}) for i in indices)
    steps = {loop.axis: stride_of(buffer, indices, loop.axis, extents) for loop in loops}
    run = size * max((extents.trips[a] / shared.get(a, 1) for a, step in steps.items() if step == 1), default=1.0)
    sectors = max(1.0, math.ceil(run / SECTOR) * SECTOR / run) if elements > 1 else 1.0
    times = extents.points(moving)
    wide = min(16.0 / size, max(1.0, elements / launch.threads)) if run >= 16 else 1.0
    return Work(operations=times * max(elements, launch.threads) / wide, bytes=times * elements * size * sectors)


def _sharing(indices: Sequence[Size], axis: str) -> int:
    """How many neighbours along an axis load one element, as the codes of a group load its scale."""
    found = []
    for index in (i for i in indices if axis in i.symbols):
        match [m for m, c in index.terms if axis in Size(((m, c),)).symbols]:
            case [(Quotient(numerator, denominator),)] if numerator.coefficient(axis) == 1 and denominator.constant:
                found.append(denominator.constant)
            case _:
                return 1
    return min(found, default=1)
