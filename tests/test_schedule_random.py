"""Random steps on every sample kernel: a step is refused, or the kernel means what it meant."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from schedule_samples import SAMPLES, assert_same_meaning, sample

from intarsia.ir.errors import ScheduleError
from intarsia.ir.kernel import Alloc, For, Kernel, walk
from intarsia.ir.kernel_access import accesses
from intarsia.ir.kernel_text import print_kernel
from intarsia.ir.kernel_verifier import problems
from intarsia.ir.schedule import STEPS, Schedule
from intarsia.passes.schedule.apply import apply_step
from intarsia.passes.schedule.tree import blocks, loops_in

DEPTH = 6
LONGEST = 15_000  # characters of a kernel: unrolled versions of versions only take time


class Proposals:
    """Steps that may or may not fit a kernel, in text, drawn so that many do."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.count = 0

    def draw(self, kernel: Kernel) -> str:
        weights = Counter(dict.fromkeys(STEPS, 1))
        weights.update(split=3, reorder=2, merge=3, localize=3, accumulate=4, pack=3)
        word = self.random.choices(list(weights), list(weights.values()))[0]
        special = getattr(self, f"_{word}", None)
        if special is not None:
            return str(special(kernel))
        if word in ("unmask", "restrict", "inline", "nontemporal", "factor", "describe"):
            return f"{word} {self._buffer(kernel)}"
        return f"{word} {self._axis(kernel)}"

    def _axis(self, kernel: Kernel) -> str:
        return self.random.choice([loop.axis for loop in loops_in(kernel.body)])

    def _buffer(self, kernel: Kernel) -> str:
        return self.random.choice(list(kernel.buffers()))

    def _new(self) -> str:
        self.count += 1
        return f"new{self.count}"

    def _split(self, kernel: Kernel) -> str:
        factor = self.random.choice([2, 3, 4, 5, 16])
        return f"split {self._axis(kernel)} {factor} {self.random.choice(['mask', 'min', 'peel', 'step'])}"

    def _collapse(self, kernel: Kernel) -> str:
        pairs = [(s.axis, s.body[0].axis) for s in loops_in(kernel.body) if s.body and isinstance(s.body[0], For)]
        return "collapse {} {}".format(*self.random.choice(pairs or [("i", "j")]))

    def _reorder(self, kernel: Kernel) -> str:
        axes = [loop.axis for loop in loops_in(kernel.body)]
        return f"reorder {' '.join(self.random.sample(axes, min(len(axes), self.random.choice([2, 2, 3]))))}"

    def _skew(self, kernel: Kernel) -> str:
        nested = [(s.axis, outer.axis) for s, around in walk(kernel.body) if isinstance(s, For) for outer in around]
        inner, outer = self.random.choice(nested or [("j", "i")])
        return f"skew {inner} {outer} {self.random.choice([1, 2, 3])}"

    def _wavefront(self, kernel: Kernel) -> str:
        nested = [(s.axis, own.axis) for s in loops_in(kernel.body) for own in s.body if isinstance(own, For)]
        outer, inner = self.random.choice(nested or [("i", "j")])
        return f"wavefront {outer} {inner} {self.random.choice([1, 2, 3])}"

    def _merge(self, kernel: Kernel) -> str:
        siblings = [[s.axis for s in block if isinstance(s, For)] for block, _ in blocks(kernel)]
        siblings = [axes for axes in siblings if len(axes) > 1] or [["i", "j"]]
        axes = self.random.choice(siblings)
        start = self.random.randrange(len(axes) - 1)
        return f"merge {axes[start]} {axes[start + 1]}"

    def _move(self, kernel: Kernel) -> str:
        names = [loop.axis for loop in loops_in(kernel.body)] + list(kernel.buffers())
        return f"move {self.random.choice(names)} before {self.random.choice(names)}"

    def _sink(self, kernel: Kernel) -> str:
        later = [
            (s.axis, inner.axis)
            for block, _ in blocks(kernel)
            for n, s in enumerate(block)
            if isinstance(s, For)
            for inner in loops_in(block[n + 1 :])
        ]
        return "sink {} into {}".format(*self.random.choice(later or [("i", "j")]))

    def _warps(self, kernel: Kernel) -> str:
        return f"warps {self.random.choice([4, 8, 12])}"

    def _stages(self, kernel: Kernel) -> str:
        return f"stages {self.random.choice([2, 9])}"

    def _programs(self, kernel: Kernel) -> str:
        return f"programs {self.random.choice([0, 3])}"

    def _stage(self, kernel: Kernel) -> str:
        return f"stage {self._buffer(kernel)} -> {self._new()}"

    def _distribute(self, kernel: Kernel) -> str:
        names = [loop.axis for loop in loops_in(kernel.body)] + list(kernel.buffers())
        return f"distribute {self._axis(kernel)} at {self.random.choice(names)}"

    def _localize(self, kernel: Kernel) -> str:
        temporaries = [b.name for b in kernel.buffers().values() if b.role == "temp"] or ["t"]
        memory = self.random.choice(["register", "cache"])
        return f"localize {self.random.choice(temporaries)} at {self._axis(kernel)} {memory}"

    def _squeeze(self, kernel: Kernel) -> str:
        word = self.random.choice(["u8", "u16", "u32"])
        axes = " ".join(self._axis(kernel) for _ in range(self.random.choice([1, 1, 2])))
        return f"squeeze {self._buffer(kernel)} at {axes} in {word} -> {self._new()}"

    def _group(self, kernel: Kernel) -> str:
        added = [a for a in accesses(kernel.body) if a.writes and a.operator == "+="] or [*accesses(kernel.body)]
        put = self.random.choice(added)
        axis = self.random.choice([loop.axis for loop in put.loops] or ["i"])
        total = self.random.choice(["", " as i32"])
        return f"group {put.buffer} at {axis} {self.random.choice([2, 4, 8])}{total} -> {self._new()}"

    def _overlap(self, kernel: Kernel) -> str:
        extents = [str(self.random.choice((1, 2, 3, 5, 8))) for _ in range(self.random.choice((1, 1, 2)))]
        outs = [b.name for b in kernel.parameters if b.role == "out"]
        results = outs if outs and self.random.random() < 0.5 else [self._buffer(kernel)]
        return f"overlap {' '.join(results)} {' '.join(extents)}"

    def _reuse(self, kernel: Kernel) -> str:
        blocks_of = [[s.buffer.name for s in block if isinstance(s, Alloc)] for block, _ in blocks(kernel)]
        names = self.random.choice([names for names in blocks_of if len(names) > 1] or [["s", "t"]])
        return "reuse {} for {}".format(*self.random.sample(names, 2))

    def _pack(self, kernel: Kernel) -> str:
        read = self.random.choice([a for a in accesses(kernel.body) if not a.writes] or [*accesses(kernel.body)])
        axes = [loop.axis for loop in read.loops]
        depth = self.random.randrange(len(axes) + 1)
        at = axes[depth - 1] if depth else "root"
        layout = [a for a in axes[depth:] if any(a in i.symbols for i in read.indices)] or ["i"]
        self.random.shuffle(layout)
        if len(layout) > 1 and self.random.random() < 0.3:
            layout[:2] = [" + ".join(layout[:2])]
        memory = "prepared" if kernel.buffers()[read.buffer].constant and at == "root" else "cache"
        return f"pack {read.buffer} at {at} -> {self._new()}[{', '.join(layout)}] {memory}"

    def _accumulate(self, kernel: Kernel) -> str:
        found = [a for a in accesses(kernel.body) if a.writes and a.operator != "="] or [*accesses(kernel.body)]
        put = self.random.choice(found)
        axes = [loop.axis for loop in put.loops] or ["i"]
        mode = self.random.choice(["", "", "set", "load", f"first {self.random.choice(axes)}"])
        keep = self.random.choice(["", "", f" keep {self.random.choice(axes)}"])
        return f"accumulate {put.buffer} at {self.random.choice(axes)} -> {self._new()} cache {mode}{keep}"

    def _multiply(self, kernel: Kernel) -> str:
        types = self.random.choice(["u8 i8", "i8 u8", "i16 i16"])
        return f"multiply {self._buffer(kernel)} as {types} -> {self._new()}"

    def _restart(self, kernel: Kernel) -> str:
        return f"restart {self._buffer(kernel)} at {self._axis(kernel)} -> {self._new()}"

    def _align(self, kernel: Kernel) -> str:
        return f"align {self._axis(kernel)} to {self._buffer(kernel)}"

    def _online(self, kernel: Kernel) -> str:
        return f"online {self._buffer(kernel)} {self.random.choice([2, 4, 16])}"

    def _parts(self, kernel: Kernel) -> str:
        return f"parts {self._buffer(kernel)} {self.random.choice([2, 4, 5, 16])}"

    def _fetch(self, kernel: Kernel) -> str:
        later = self.random.choice(["", " +2"])
        return f"fetch {self._buffer(kernel)} for {self._axis(kernel)}{later} in {self._axis(kernel)} L1"

    def _prefetch(self, kernel: Kernel) -> str:
        return f"prefetch {self._buffer(kernel)} in {self._buffer(kernel)} {self._axis(kernel)} +1 L1"


def accepted(kernel: Kernel, draw: Callable[[Kernel], str], tries: int) -> Iterator[tuple[str, Kernel]]:
    """Steps that are legal one after the other, each with the kernel after it."""
    count = 0
    for _ in range(tries):
        text = draw(kernel)
        try:
            (step,) = Schedule.parse(text)
            new = apply_step(kernel, step)
        except ScheduleError as error:
            assert str(error).startswith(str(step)), "an error names its step"
            continue
        if len(print_kernel(new)) > LONGEST:
            return
        yield str(step), new
        kernel, count = new, count + 1
        if count == DEPTH:
            return


def check(name: str, seed: int, tries: int = 60) -> int:
    kernel, sizes = sample(name)
    done: list[str] = []
    for text, new in accepted(kernel, Proposals(seed).draw, tries):
        done.append(text)
        said = f"{name}: {'; '.join(done)}"
        # Kinds come last in a schedule: before them a register tile may have any subscripts.
        found = [p for p in problems(new) if "is subscripted by" not in p]
        assert not found, f"{said}: {found}"
        try:
            assert_same_meaning(kernel, new, sizes)
        except AssertionError as error:
            raise AssertionError(f"{said}\n{error}") from error
    return len(done)


@pytest.mark.parametrize("name", SAMPLES)
def test_random_steps_keep_the_meaning(name: str) -> None:
    assert sum(check(name, seed) for seed in range(2)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
def test_many_random_steps_keep_the_meaning(name: str) -> None:
    for seed in range(100, 160):
        check(name, seed)
