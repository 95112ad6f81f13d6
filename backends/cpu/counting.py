"""What code generation makes of a kernel, in numbers: instructions, vector registers that are spilled, and how many
vectors are live at once.

Vectors are those of 16 bytes and more: what is shorter, masks of lanes among it, lies in other registers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import llvmlite.binding as llvm

from intarsia.backends.cpu.compile import Compiled
from intarsia.backends.cpu.machine import machine

VECTOR_BYTES = 16
"""The shortest vector register of any target."""

_POINTER_BITS = 64

_SPILL = re.compile(r"(\d+)-byte (?:Folded )?(?:Spill|Reload)")


@dataclass(frozen=True)
class Counts:
    """Of one kernel. instructions: of the LLVM IR that code is generated from. spills: instructions that move a vector
    register to the stack or back. live: vector registers that the values alive at one point would fill, at most;
    constants are not counted."""

    instructions: int
    spills: int
    live: int


def count(compiled: Compiled) -> Counts:
    """Count the code of a program's kernels, its entry function left out."""
    module = compiled.module
    functions = [f for f in module.functions if not f.is_declaration and f.name != compiled.entry]
    instructions = sum(1 for f in functions for block in f.blocks for _ in block.instructions)
    live = max((peak_live(f, compiled.target.vector_bits) for f in functions), default=0)
    generator = machine(compiled.target)
    generator.set_asm_verbosity(True)  # with comments at what is spilled
    return Counts(instructions, vector_spills(generator.emit_assembly(module)), live)  # which changes the module


def vector_spills(assembly: str) -> int:
    """How often verbose assembly moves a vector register to the stack or back."""
    return sum(int(size) >= VECTOR_BYTES for size in _SPILL.findall(assembly))


# ---------------------------------------------------------------------- liveness


@dataclass(frozen=True)
class _Block:
    """A basic block, its values by number. steps: what each instruction defines (or None) and uses, in order. phis:
    what it begins with. taken: what these use, by the block that control comes from. after: the blocks that it may go
    to."""

    steps: Sequence[tuple[int | None, frozenset[int]]]
    phis: frozenset[int]
    taken: dict[llvm.ValueRef, set[int]]
    after: tuple[llvm.ValueRef, ...]

    def before(self, live: set[int]) -> set[int]:
        """What is live where the block begins, its phis among it, if `live` is where it ends."""
        for value, used in reversed(self.steps):
            live = (live - {value}) | used
        return live


def peak_live(function: llvm.ValueRef, register_bits: int) -> int:
    """The most registers that values of vector type fill at one point of a function, in the order of its instructions.

    The usual backward analysis: live where a block ends is what its successors need, until nothing changes.
    """
    numbers: dict[llvm.ValueRef, int] = {}
    sizes: list[int] = []
    for value in (*function.arguments, *(i for b in function.blocks for i in b.instructions)):
        if registers := _registers(value.type, register_bits):
            numbers[value] = len(sizes)
            sizes.append(registers)
    blocks = {block: _block(block, numbers) for block in function.blocks}
    begins: dict[llvm.ValueRef, set[int]] = {name: set() for name in blocks}
    ends = dict(begins)
    changed = True
    while changed:
        changed = False
        for name, block in reversed(blocks.items()):
            needed = [(begins[s] - blocks[s].phis) | blocks[s].taken.get(name, set()) for s in block.after]
            ends[name] = set().union(*needed)
            begin = block.before(ends[name])
            changed |= begin != begins[name]
            begins[name] = begin
    return max((_most(block, ends[name], sizes) for name, block in blocks.items()), default=0)


def _registers(kind: llvm.TypeRef, register_bits: int) -> int:
    """The registers that a value of a type fills; 0 if it is no vector, or a short one."""
    if not kind.is_vector:
        return 0
    bits = kind.type_width or kind.element_count * _POINTER_BITS  # LLVM tells no width of pointers
    return -(-bits // register_bits) if bits >= 8 * VECTOR_BYTES else 0


def _block(block: llvm.ValueRef, numbers: dict[llvm.ValueRef, int]) -> _Block:
    """A block, without what is not a vector."""
    steps: list[tuple[int | None, frozenset[int]]] = []
    phis: set[int] = set()
    taken: dict[llvm.ValueRef, set[int]] = {}
    last: tuple[llvm.ValueRef, ...] = ()
    for instruction in block.instructions:
        number, last = numbers.get(instruction), tuple(instruction.operands)
        if instruction.opcode != "phi":
            steps.append((number, frozenset(_known(last, numbers))))
        elif number is not None:
            phis.add(number)
            for source, value in zip(instruction.incoming_blocks, last):
                taken.setdefault(source, set()).update(_known((value,), numbers))
    targets = tuple(o for o in last if o.value_kind == llvm.ValueKind.basic_block)
    return _Block(steps, frozenset(phis), taken, targets)


def _known(values: Iterable[llvm.ValueRef], numbers: dict[llvm.ValueRef, int]) -> Iterable[int]:
    return (numbers[v] for v in values if v in numbers)


def _most(block: _Block, live: set[int], sizes: Sequence[int]) -> int:
    """The most registers that are live at once in a block, of which `live` are where it ends."""

    def filled(values: Iterable[int]) -> int:
        return sum(sizes[v] for v in values)

    most = filled(live)
    for value, used in reversed(block.steps):
        if value is not None:
            most = max(most, filled(live | {value}))
        live = (live - {value}) | used
        most = max(most, filled(live))
    return most
