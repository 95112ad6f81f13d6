"""Memory planning: random programs with loops and updates, run on a real workspace, give what the graph gives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intarsia.ir.dtypes import F32, I64
from intarsia.ir.errors import Remarks, Source
from intarsia.ir.graph import Graph, Module, Parameter, Region, Value
from intarsia.ir.interpreter import evaluate
from intarsia.ir.kernel import Alloc, Buffer
from intarsia.ir.kernel_scratch import scratch
from intarsia.ir.kernel_text import print_kernel, read_kernel
from intarsia.ir.kernel_verifier import verify_kernel
from intarsia.ir.ops import BroadcastTo, Constant, Elementwise, Fused, ListGet, Loop, Reduce, Reshape, Update
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.plan_liveness import moments, plan_report, slot_bytes, verify_plan
from intarsia.ir.plan_text import print_plan
from intarsia.ir.scalar import Load, apply
from intarsia.ir.sizes import ZERO, Size
from intarsia.ir.space import Axis
from intarsia.ir.target import TARGETS
from intarsia.ir.text import read_module
from intarsia.ir.types import ListType, TensorType
from intarsia.passes.dce import Dce
from intarsia.passes.lower import Lower
from intarsia.passes.pipeline import Context
from intarsia.passes.plan_memory import plan
from intarsia.passes.plan_memory.offsets import Piece, aligned, peak, place
from intarsia.passes.plan_memory.program import with_scratch_parameters

LENGTHS = (3, 17)
i = Size.of("i")


@dataclass
class RandomProgram:
    """Makes a graph of i64 vectors from a seed."""

    rng: np.random.Generator
    counters: int = 0
    parameters: list[Parameter] = field(default_factory=list)

    def pick(self, scope: list[Value], length: int | None = None) -> Value:
        """A value, likely a late one; of some length if that is asked for."""
        fits = [v for v in scope if length is None or v.tensor.shape[0].constant == length]
        position = int(len(fits) * np.sqrt(self.rng.random()))
        return fits[position]

    def graph(self) -> Graph:
        tensors = [Parameter(f"p{n}", TensorType.of(I64, length)) for n, length in enumerate((*LENGTHS, 3))]
        layers = Parameter("w", ListType(Size.of(3), TensorType.of(I64, 3)))
        self.parameters = [*tensors, layers]
        scope = [p.value for p in tensors]
        self.steps(scope, int(self.rng.integers(2, 8)), 0)
        results = [self.pick(scope) for _ in range(self.rng.integers(1, 4))]
        return Graph("f", Region.of(self.parameters, results))

    def steps(self, scope: list[Value], count: int, depth: int) -> None:
        for _ in range(count):
            scope += self.step(scope, depth)

    def step(self, scope: list[Value], depth: int) -> list[Value]:
        x = self.pick(scope)
        n = int(x.tensor.shape[0])
        y = self.pick(scope, n)
        match self.rng.integers(0, 9):
            case 0 | 1:
                return [Elementwise("add", (x, y)).value]
            case 2:
                return [Elementwise("neg", (x,)).value]
            case 3:
                return [self.update(x, y, "=", apply("add", load(0, i), load(1, i)))]
            case 4:
                return [self.update(x, y, "=", apply("sub", load(0, i - 1), load(1, i)))]
            case 5:
                return [self.update(x, y, "+=", load(1, i))]
            case 6:
                return [Reshape(x, x.tensor.shape).value]
            case 7 if n == 3:
                return [self.layer(scope)]
            case _ if depth < 3:
                return self.loop(scope, depth)
        return [BroadcastTo(Constant(int(self.rng.integers(0, 5)), I64).value, (Size.of(n),)).value]

    def update(self, base: Value, other: Value, operator: Any, body: Any) -> Value:
        axes = (Axis("i", Size.of(1), base.tensor.shape[0]),)
        return Update(base, (other,), axes, (i,), operator, body).value

    def scalar(self, x: Value) -> Value:
        """A number from 0 to 3 that depends on data."""
        return Elementwise("mod", (Reduce(x, "sum", (0,)).value, Constant(4, I64).value)).value

    def layer(self, scope: list[Value]) -> Value:
        lists = self.parameters[-1].value
        if self.rng.random() < 0.5:
            return ListGet(lists, Size.of(int(self.rng.integers(0, 3)))).value
        return ListGet(lists, Size.opaque(Load("a0", (), I64)) - 1, (self.scalar(self.pick(scope)),)).value

    def loop(self, scope: list[Value], depth: int) -> list[Value]:
        rng = self.rng
        initial = [self.pick(scope) for _ in range(rng.integers(1, 4))]
        if rng.random() < 0.3:
            initial.append(initial[0])
        states = [Parameter(f"s{n}", v.tensor) for n, v in enumerate(initial)]
        scalars, upper = (), Size.of(int(rng.integers(0, 4)))
        stacked = int(rng.integers(0, 3))
        if rng.random() < 0.3:
            scalars, upper, stacked = (self.scalar(self.pick(scope)),), Size.opaque(Load("a0", (), I64)), 0
        outer = frozenset(v.node for v in self.everything(scope))
        inner = [*scope, *(s.value for s in states)]
        self.steps(inner, int(rng.integers(1, 5)), depth + 1)
        results = [self.pick(inner, int(v.tensor.shape[0])) for v in initial]
        emitted = [self.pick(inner) for _ in range(stacked)]
        condition = None
        if not stacked and rng.random() < 0.3:
            tested = [Parameter(f"s{n}", v.tensor) for n, v in enumerate(initial)]
            total = Reduce(self.pick([*scope, *(t.value for t in tested)]), "sum", (0,)).value
            test = Elementwise("lt", (total, Constant(20, I64).value)).value
            condition = Region.of(tested, (test,), outer)
        self.counters += 1
        body = Region.of(states, (*results, *emitted), outer)
        node = Loop(f"t{self.counters}", ZERO, upper, scalars, tuple(initial), body, condition, stacked)
        return [v for v in node.values if v.tensor.rank == 1]

    def everything(self, scope: list[Value]) -> list[Value]:
        """The values in scope and what they come from: nothing of it is computed again inside a loop."""
        found: dict[Value, None] = {}
        stack = list(scope)
        while stack:
            value = stack.pop()
            if value not in found:
                found[value] = None
                stack += value.node.inputs
        return list(found)


def load(position: int, index: Size) -> Load:
    return Load(f"a{position}", (index,), I64)


def lower(module: Module) -> Module:
    """Loops stay loops, so that plans have more of them."""
    return Lower(pointwise_loops=False).run(module, Context(TARGETS["cpu:x86-avx2"]))


def check(seed: int) -> None:
    rng = np.random.default_rng(seed)
    module = Module(RandomProgram(rng).graph())
    inputs = [rng.integers(-3, 4, n) for n in (*LENGTHS, 3)]
    operands = [*inputs, [rng.integers(-3, 4, 3) for _ in range(3)]]
    expected = evaluate(module, operands)
    made = plan(lower(module))
    verify_plan(made)
    actual = run_plan(made, operands)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("seed", range(60))
def test_random_programs(seed: int) -> None:
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(60, 2060, 100))
def test_more_random_programs(first: int) -> None:
    for seed in range(first, first + 100):
        check(seed)


@pytest.mark.parametrize("seed", range(60))
def test_the_workspace_is_no_larger_than_what_is_live(seed: int) -> None:
    """But for rounding up to the alignment; a state that only a condition reads is kept through it."""
    graph = RandomProgram(np.random.default_rng(seed)).graph()
    made = plan(lower(Dce().run(Module(graph), Context(TARGETS["cpu:x86-avx2"]))))
    live = [[int(aligned(slot_bytes(s))) for s in m.live if s.place == "workspace"] for m in moments(made)]
    assert int(made.workspace_bytes) <= max(map(sum, live), default=0)


def pieces(*given: tuple[int, int, int]) -> list[Piece]:
    return [Piece(Size.of(64 * n), ((a, b),)) for n, a, b in given]


@pytest.mark.parametrize("seed", range(20))
def test_placement_overlaps_nothing_and_reaches_the_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, 30, 40)
    some = pieces(*((int(rng.integers(1, 9)), int(a), int(a + rng.integers(0, 6))) for a in starts))
    placement = place(some)
    for n, (a, x) in enumerate(zip(some, placement.offsets)):
        for b, y in zip(some[:n], placement.offsets):
            assert not a.meets(b) or int(x + a.bytes) <= int(y) or int(y + b.bytes) <= int(x)
    assert int(placement.bytes) <= 1.1 * peak(some)


def test_a_small_program_is_searched() -> None:
    """No order by size, length or start alone places these without a gap."""
    some = pieces((3, 0, 1), (2, 0, 3), (1, 2, 4), (3, 4, 6), (2, 3, 3), (1, 5, 7), (2, 7, 8), (3, 8, 9), (1, 6, 9))
    assert int(place(some).bytes) == peak(some)


def test_open_sizes_share_regions() -> None:
    n, m = Size.of("N") * 4, Size.of("M") * 4
    some = [Piece(n, ((0, 1),)), Piece(m, ((1, 2),)), Piece(n * 2, ((2, 3),)), Piece(Size.of(100), ((0, 3),))]
    placement = place(some, ("N", "M"))
    assert placement.offsets[0] == placement.offsets[2] != placement.offsets[1]
    assert placement.bytes.evaluate({"N": 16, "M": 8}) == 128 + 128 + 64


def test_an_overlap_is_found() -> None:
    x = Parameter("x", TensorType.of(I64, 30))
    first = Elementwise("neg", (x.value,)).value
    second = Elementwise("abs", (x.value,)).value
    total = Reduce(Elementwise("add", (first, second)).value, "sum", (0,)).value
    made = plan(lower(Module(Graph("f", Region.of([x], [total])))))
    verify_plan(made)
    together = [replace(s, offset=ZERO) for s in made.slots]
    with pytest.raises(AssertionError, match="overlap at"):
        verify_plan(replace(made, slots=tuple(together)))


def test_scratch_memory_of_kernels_is_planned() -> None:
    """A large temporary of a kernel becomes a parameter, a small one stays with the kernel."""
    x = Parameter("x", TensorType.of(F32, 40, 50))
    e = Elementwise("exp", (x.value,)).value
    y = Elementwise("div", (e, Reduce(e, "sum", (1,), True).value)).value
    module = Module(Graph("f", Region.of([x], Fused(Region.of((), (y,))).values)))
    made = plan(lower(module))
    (kernel,) = made.kernels
    assert [b.name for b in kernel.parameters if b.role == "temp"] == ["t_exp"]
    assert int(made.workspace_bytes) == 40 * 50 * 4
    data = np.ones((40, 50), np.float32)
    np.testing.assert_allclose(run_plan(made, [data])[0], data / 50, rtol=1e-6)
    verify_kernel(kernel)
    assert read_kernel(Source("kernel", print_kernel(kernel))) == kernel


def test_scratch_memory_whose_size_depends_on_a_counter_stays_with_the_kernel() -> None:
    """The workspace is made before any loop runs, so no counter may decide how large it is."""
    text = """
kernel f(x: f32[B, 9], inout y: f32[9])[sizes B, k] {
  alloc open: f32[B, 999]
  alloc counted: f32[k + 1, 999]
  y[k] = x[0, k]
}
"""
    kernel = with_scratch_parameters(read_kernel(Source("kernel", text)), ("B",), 4096)
    assert [b.name for b in kernel.parameters if b.role == "temp"] == ["open"]
    assert kernel.body[0] == Alloc(Buffer("counted", F32, (Size.of("k") + 1, Size.of(999))))


def test_the_report_counts_live_bytes() -> None:
    x = Parameter("x", TensorType.of(F32, 16))
    first = Elementwise("exp", (x.value,)).value
    second = Elementwise("add", (Elementwise("exp", (first,)).value, first)).value
    report = plan_report(plan(lower(Module(Graph("f", Region.of([x], [second]))))))
    assert (int(report.inputs), int(report.outputs), report.peak_live) == (64, 64, 128)
    assert [int(total) for _, total in report.live] == [64, 128, 128]
    assert str(report).splitlines()[2].split() == ["64", "run", "f_exp(x,", "exp)"]


def test_reports_name_what_kernels_make_for_themselves() -> None:
    text = """kernel f(x: f32[8, 6], out y: f32[8, 6]) {
      alloc all: f32[48] cache
      alloc once: f32[6] prepared
      parallel i in 0..8 {
        alloc row: f32[6] cache
        alloc tile: f32[6] register
        for j in 0..6 { y[i, j] = x[i, j] }
      }
    }"""
    found = scratch(read_kernel(Source("f.ir", text)))
    assert [str(one) for one in found] == ["all: f32[48], 192 bytes", "row: f32[6], 24 bytes a thread"]


FOLDER = Path(__file__).parent / "golden" / "plan-memory"
SEPARATOR = "# -----\n"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ir")), ids=lambda p: p.stem)
def test_golden(path: Path, golden: Any) -> None:
    """Graphs after `fuse`, and their plans with the remarks."""
    outputs = []
    for text in golden.input(path).split(SEPARATOR):
        remarks = Remarks()
        made = plan(lower(read_module(Source(path.name, text))), remarks)
        verify_plan(made)
        outputs.append("\n".join([print_plan(made, kernels=False), *(f"# {r.message}" for r in remarks.items), ""]))
    golden.check(path, SEPARATOR.join(outputs))
