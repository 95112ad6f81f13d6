"""The launches of a kernel that is scheduled for a GPU, and about what each takes of the chip.

Shared memory and registers are decided by Triton and ptxas. What is said here is an estimate from the blocks that a
program works on: good enough to leave out what cannot be, and to tell how many programs a core has room for.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from intarsia.ir.dots import find_scaled_dot, matrix_dot, widened_factors
from intarsia.ir.dtypes import BF16
from intarsia.ir.halves import are_in_bf16
from intarsia.ir.kernel import LANES, Alloc, Buffer, For, Kernel, Put, Statement, walk
from intarsia.ir.kernel_access import trips
from intarsia.ir.scalar import Apply, Cast, Load, factors, loads, sides
from intarsia.ir.target import Target

WARPS = (1, 2, 4, 8, 16)
"""Warps that a program may have."""

STAGES = 3
"""Steps of a loop that are under way at once where nothing is said."""

LARGE = 4096
"""Elements of a block beyond which a program has eight warps, where nothing is said; else four."""

SHORTEST = 16
"""Lanes that each dimension of a product for matrix units has at least."""

MATRIX_BITS = (4, 8, 16, 64)
"""Bits of the elements that matrix units multiply exactly, those of 4 with scales of groups."""

WIDE_ROWS, WIDE_WARPS = 64, 4
"""Rows (or columns) and warps from which on matrix units of later chips are filled."""

OPERANDS = 6
"""Registers for operands in registers, by the side of the square of results that a thread has: both of them, three
steps deep, as ptxas was seen to arrange them."""

ADDRESSES = 24
"""Registers of a thread for addresses and counters."""


@dataclass(frozen=True)
class Product:
    """A sum of products of blocks. shape: its rows, columns and depth; bits: of the elements in memory at least;
    multiplied: of the elements as they are multiplied. is_in_steps: it runs in a loop, of which several steps may be
    under way."""

    put: Put
    loops: tuple[For, ...]
    shape: tuple[int, int, int]
    bits: int
    multiplied: int
    is_in_steps: bool

    @property
    def on_matrix_units(self) -> bool:
        """Does it fit those, as far as a size says?"""
        return self.multiplied in MATRIX_BITS and min(self.shape) >= SHORTEST

    def is_wide(self, warps: int) -> bool:
        """Do matrix units of later chips take the operands from shared memory? Four warps do that together, for 64 rows
        at least; else they lie in registers, and half of the units rest."""
        return self.on_matrix_units and max(self.shape[:2]) >= WIDE_ROWS and warps >= WIDE_WARPS

    @property
    def step_bytes(self) -> int:
        """Bytes of what one step multiplies."""
        rows, columns, depth = self.shape
        return (rows + columns) * depth * self.bits // 8


@dataclass(frozen=True)
class Launch:
    """One launch: the statements that it carries out, and the loops over its programs, outermost first.

    largest: elements of its largest block. held: bytes of the blocks that stay in registers. staged: bytes of those
    that descriptors write, which lie in shared memory before.
    """

    body: tuple[Statement, ...]
    grid: tuple[For, ...]
    warps: int
    stages: int
    largest: int
    held: int
    staged: int
    products: tuple[Product, ...]

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a program: the blocks of as many steps as are under way, and what is written."""
        steps = (p.step_bytes * (self.stages if p.is_in_steps else 1) for p in self.products)
        return self.staged + max(steps, default=0)

    @property
    def registers(self) -> int:
        """Registers of a thread: its part of the blocks, and of what it multiplies a row and a column."""
        sides = (math.sqrt(p.shape[0] * p.shape[1] / self.threads) for p in self.products if not p.is_wide(self.warps))
        return ADDRESSES + -(-self.held // (4 * self.threads)) + math.ceil(OPERANDS * max(sides, default=0.0))


def statements_of_launches(kernel: Kernel) -> list[list[Statement]]:
    """The statements of each launch: every loop over a grid is one, and so is what stands between such loops."""
    groups: list[list[Statement]] = []
    for statement in kernel.body:
        if (isinstance(statement, For) and statement.kind == "grid") or not groups or _is_grid(groups[-1]):
            groups.append([statement])
        else:
            groups[-1].append(statement)
    return [g for g in groups if not all(isinstance(s, Alloc) for s in g)]


def _is_grid(group: Sequence[Statement]) -> bool:
    return any(isinstance(s, For) and s.kind == "grid" for s in group)


def launches_of(kernel: Kernel) -> tuple[Launch, ...]:
    """The launches of a scheduled kernel, in order."""
    buffers = kernel.buffers()
    return tuple(_launch(kernel, buffers, tuple(group)) for group in statements_of_launches(kernel))


def has_products_in_steps(kernel: Kernel) -> bool:
    """Are there loops inside of programs whose steps multiply blocks, so that several of them may be under way?"""
    return any(p.is_in_steps for launch in launches_of(kernel) for p in launch.products)


def launch_problem(kernel: Kernel, target: Target) -> str | None:
    """Why a launch would not fit on a core of a target, as far as an estimate can say; None if it does."""
    for launch in launches_of(kernel):
        if launch.shared > target.shared_memory:
            needed, there = launch.shared >> 10, target.shared_memory >> 10
            return f"a program needs about {needed} KiB of shared memory, and a core has {there}"
        most = min(target.registers, target.chip.registers // launch.threads)
        if launch.registers > most:
            return f"a thread needs about {launch.registers} registers, and has {most} at most"
    return None


def _launch(kernel: Kernel, buffers: Mapping[str, Buffer], body: tuple[Statement, ...]) -> Launch:
    around_alloc = {s.buffer.name: lanes_in(loops) for s, loops in walk(body) if isinstance(s, Alloc)}
    sizes: dict[str, int] = {}
    widest, working, staged, products = 1, 0, 0, []
    for statement, loops in walk(body):
        if not isinstance(statement, Put):
            continue
        lanes = lanes_in(loops)
        used = frozenset().union(*(i.symbols for i in statement.indices))
        own = around_alloc.get(statement.buffer, {}) if statement.buffer in around_alloc else lanes
        elements = math.prod(n for axis, n in lanes.items() if axis in own or axis in used)
        if (product := _product(buffers, statement, loops)) is not None:
            products.append(product)
        else:
            every = math.prod(lanes.values())
            widest = max(widest, every)
            working = max(working, every * _bytes_loaded(buffers, statement))
        widest = max(widest, elements)
        if buffers[statement.buffer].described:
            staged += elements * buffers[statement.buffer].dtype.bytes
        if statement.buffer in around_alloc and buffers[statement.buffer].memory != "global":
            kept = elements * max(4, buffers[statement.buffer].dtype.bytes)
            sizes[statement.buffer] = max(sizes.get(statement.buffer, 0), kept)
    warps = kernel.warps or (4 if widest <= LARGE else 8)
    held = sum(sizes.values()) + working
    return Launch(body, tuple(_grid(body)), warps, kernel.stages or STAGES, widest, held, staged, tuple(products))


def lanes_in(loops: Sequence[For]) -> dict[str, int]:
    """The dimensions of blocks around a statement, and how long they are."""
    return {loop.axis: int(trips(loop)) for loop in loops if loop.kind in LANES}


def _grid(body: Sequence[Statement]) -> Iterator[For]:
    while len(body) == 1 and isinstance(loop := body[0], For) and loop.kind == "grid":
        yield loop
        body = loop.body


def _bytes_loaded(buffers: Mapping[str, Buffer], put: Put) -> int:
    """Bytes for each element of a block that a statement loads from memory."""
    found = {x.buffer: buffers[x.buffer] for x in loads(put.value)}
    return sum(max(4, b.dtype.bytes) for b in found.values() if b.memory in ("global", "prepared"))


def _product(buffers: Mapping[str, Buffer], put: Put, loops: tuple[For, ...]) -> Product | None:
    """The sum of products that a statement is, if it has two sides that share the lanes that are summed, and each has
    some of its own."""
    if put.operator != "+=" or not isinstance(put.value, Apply) or put.value.function != "mul":
        return None
    lanes = lanes_in(loops)
    kept = frozenset().union(*(i.symbols for i in put.indices))
    uses = [{a for a in lanes if a in f.symbols} for f in factors(put.value)]
    if (found := sides(uses)) is None:
        return None
    rows, columns = found
    own = {*rows, *columns, *kept}
    if not (shared := [a for a in lanes if a not in own and sum(a in u for u in uses) > 1]):
        return None
    shape = (*(math.prod(lanes[a] for a in side) for side in (rows, columns)), math.prod(lanes[a] for a in shared))
    plain = [f.value if isinstance(f, Cast) else f for f in factors(put.value)]
    bits = min((buffers[f.buffer].dtype.bits for f in plain if isinstance(f, Load)), default=put.value.dtype.bits)
    multiplied = _multiplied_bits(put, columns, shared, bits)
    bits = min(bits, BF16.bits) if are_in_bf16(put.value, columns) else bits
    inside = loops[max((n for n, x in enumerate(loops) if x.kind == "grid"), default=-1) + 1 :]
    moving = frozenset().union(*(x.symbols for x in loads(put.value)))
    steps = any(x.kind == "seq" and trips(x).constant != 1 and x.axis in moving for x in inside)
    return Product(put, loops, (shape[0], shape[1], shape[2]), bits, multiplied, steps)


def _multiplied_bits(put: Put, columns: Collection[str], shared: Sequence[str], bits: int) -> int:
    """Bits of what matrix units multiply in a product whose elements have at least so many in memory."""
    scaled = filter(None, (find_scaled_dot(put.value, columns, axis) for axis in shared))
    if (dot := next(scaled, None)) is not None:
        return max(dot.left.bits, dot.right.bits)
    if are_in_bf16(put.value, columns):
        return BF16.bits
    pair = widened_factors(put)
    dot = None if pair is None else matrix_dot(pair[0].dtype, pair[1].dtype, put.value.dtype)
    return bits if dot is None else max(dot.left.bits, dot.right.bits)
