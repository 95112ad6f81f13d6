"""Every kind of op through every level: graph, naive kernels and plan give the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from graph_shorthands import Program, binary, i, k, load, parameter, program, scalar, update
from op_programs import PROGRAMS, gather, sparse_rows

import intarsia
from intarsia.ir.dtypes import F32, I32, I64, Array
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Graph, Module
from intarsia.ir.interpreter import evaluate
from intarsia.ir.kernel import Buffer, Kernel
from intarsia.ir.kernel_interpreter import CheckFailed
from intarsia.ir.kernel_verifier import unproved_accesses, verify_kernel
from intarsia.ir.ops import Compute, Loop
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.proofs import Facts, ranges
from intarsia.ir.ranges import cut_ranges
from intarsia.ir.scalar import Const, Index, apply, where
from intarsia.ir.sizes import ONE, Size
from intarsia.ir.space import Axis, Space
from intarsia.ir.target import TARGETS
from intarsia.passes.lower import Kernels, Lower
from intarsia.passes.lower.checks import check_messages
from intarsia.passes.pipeline import Context
from intarsia.passes.plan_memory import plan


def lower(module: Module, checks: bool = False, pointwise_loops: bool = True) -> Module:
    return Lower(pointwise_loops).run(module, Context(TARGETS["cpu:x86-avx2"], checks=checks))


def counters(graph: Graph) -> Facts:
    """What holds of the counters of loops, which kernels get as sizes."""
    loops = [n for n in graph.body.walk() if isinstance(n, Loop) and not (n.lower.opaques or n.upper.opaques)]
    return ranges({n.counter: (n.lower, n.upper) for n in loops})


def assert_equal(actual: Sequence[Array], expected: Sequence[Array]) -> None:
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected):
        assert a.dtype == e.dtype and a.shape == e.shape
        np.testing.assert_array_equal(a.astype(np.float64), e.astype(np.float64))


@pytest.mark.parametrize("name", PROGRAMS)
def test_kernels_give_what_the_graph_gives(name: str) -> None:
    case = PROGRAMS[name]()
    module = Module(case.graph)
    lowered = lower(module)
    for kernel in lowered.kernels:
        verify_kernel(kernel)
        assert unproved_accesses(kernel, counters(case.graph)) == (), "an access that is neither proved nor guarded"
    expected = evaluate(module, case.inputs, case.sizes)
    assert_equal(evaluate(lowered, case.inputs, case.sizes), expected)


@pytest.mark.parametrize("name", PROGRAMS)
def test_plans_give_what_the_graph_gives(name: str) -> None:
    case = PROGRAMS[name]()
    module = Module(case.graph)
    expected = evaluate(module, case.inputs, case.sizes)
    assert_equal(run_plan(plan(lower(module)), case.inputs, case.sizes), expected)
    if any(isinstance(node, Loop) for node in case.graph.body.walk()):
        assert_equal(run_plan(plan(lower(module, pointwise_loops=False)), case.inputs, case.sizes), expected)


def failed(case: Program) -> tuple[str, tuple[int, ...]]:
    """The code of the first check that fails, and its values."""
    with pytest.raises(CompileError) as expected:
        evaluate(Module(case.graph), case.inputs, checks=True)
    values = []
    for target in ("cpu:x86-avx2", "gpu:sm_90"):  # where checks stand outside of loops
        lowered = Lower().run(Module(case.graph), Context(TARGETS[target], checks=True))
        messages = {m.number: m for m in check_messages(lowered.kernels)}
        with pytest.raises(CheckFailed) as found:
            evaluate(lowered, case.inputs)
        assert messages[found.value.number].code == expected.value.code
        assert messages[found.value.number].message.count("{}") == len(found.value.values)
        values.append(found.value.values)
    assert values[0] == values[1]
    return expected.value.code, values[0]


def test_checks_of_subscripts() -> None:
    case = gather(I32)
    assert failed(case) == ("E0801", (200, 4))
    fine = (case.inputs[0], np.array([0, 3, 1, 2], np.int32))
    assert_equal(evaluate(lower(Module(case.graph), checks=True), fine), evaluate(Module(case.graph), fine))


def test_checks_of_ranges() -> None:
    assert failed(sparse_rows()) == ("E0801", (-2, 6))


def test_checks_count_only_where_the_value_does() -> None:
    """A subscript in the arm of a `where` that is not taken may be anything."""
    x, ids = parameter("x", F32, 3), parameter("ids", I64, 4)
    index = Size.opaque(load(0, I64, "i"))
    guarded = where(apply("ge", load(0, I64, "i"), Const(0, I64)), load(1, F32, index), Const(9.0, F32))
    node = Compute((ids.value, x.value), Space((Axis.of("i", 4),), guarded, F32))
    case = program([ids, x], [node.value], ids=np.array([0, -5, 2, 1]))
    assert_equal(
        evaluate(lower(Module(case.graph), checks=True), case.inputs), evaluate(Module(case.graph), case.inputs)
    )
    assert failed(replace(case, inputs=(np.array([0, -5, 3, 1]), case.inputs[1]))) == ("E0801", (3, 3))


def test_checks_of_divisors() -> None:
    x, y = parameter("x", I32, 3), parameter("y", I32, 3)
    quotient = binary("floordiv", binary("mod", x.value, scalar(3, I32)), y.value)
    case = program([x, y], [quotient], y=np.array([1, 0, 2], np.int32))
    assert failed(case) == ("E0802", ())


def test_checks_of_targets() -> None:
    a, at = parameter("a", F32, 4, 3), parameter("at", I64, 3)
    targets = (Size.opaque(load(1, I64, "i")), ONE)
    node = update(a.value, (at.value,), (Axis.of("i", 3),), targets, "=", Const(1.0, F32))
    assert failed(program([a, at], [node], at=np.array([0, 2, 0]))) == ("E0803", (1,))
    assert failed(program([a, at], [node], at=np.array([0, 4, 1]))) == ("E0801", (4, 4))
    case = program([a, at], [node], at=np.array([3, 0, 1]))
    assert_equal(
        evaluate(lower(Module(case.graph), checks=True), case.inputs), evaluate(Module(case.graph), case.inputs)
    )


def test_ranges_by_data_are_cut_where_they_are_always_read() -> None:
    p = Axis("p", Size.opaque(load(0, I64)), Size.opaque(load(0, I64)) + 4)
    always = Space((), load(1, F32, "p"), F32, (p,), "sum")
    guarded = replace(always, body=where(apply("lt", Index(k), Index(i)), always.body, Const(1.0, F32)))
    extents = {"a0": (), "a1": (Size.of(7),)}
    (cut,) = cut_ranges(always, extents.__getitem__).reduced
    assert str(cut) == "p in max(0, a0[])..min(7, a0[] + 4)"
    assert cut_ranges(guarded, extents.__getitem__) == guarded


@pytest.mark.parametrize(("name", "inside"), [("escape f32", 1), ("scalar_recurrence", 1), ("loops", 0), ("layers", 0)])
def test_pointwise_loops_become_kernels(name: str, inside: int) -> None:
    lowered = lower(Module(PROGRAMS[name]().graph))
    assert sum(k.name.startswith(("f_loop", "f_scan")) for k in lowered.kernels) == inside


def test_updates_work_in_place_where_no_point_reads_what_another_writes() -> None:
    lowered = lower(Module(PROGRAMS["tables"]().graph))
    roles = {tuple(b.role for b in k.parameters) for k in lowered.kernels}
    assert roles == {("inout",), ("in", "out")}
    assert sum(b.role == "out" for k in lowered.kernels for b in k.parameters) == 1, "only the shifted row is copied"


def test_a_sweep_in_place_leaves_its_input_alone() -> None:
    """A loop that became one kernel changes its state, never the argument that the state begins as."""
    text = """
fn f(x: f64[N]) -> (f64[N], f64[N]) {
    y = loop (s = x) for j in 1..N { yield update s[j] += s[j - 1] }
    return x, y
}
"""
    x = np.arange(1.0, 8.0)
    same, sums = intarsia.compile(text, use_cache=False).f(x)
    np.testing.assert_array_equal(x, np.arange(1.0, 8.0))
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(sums, np.cumsum(x))


def test_kernels_have_names_of_their_own() -> None:
    """A second kernel of a loop over t, and one of a loop over t.1 or t_1, whose dots and numbers look alike."""
    kernels = Kernels("f", ())
    buffers = [Buffer("x", F32, (Size.of(n),), "global", "in") for n in range(1, 5)]
    labels = ("loop_t", "loop_t", "loop_t.1", "loop_t_1")
    made = [kernels.add(Kernel("", (b,), ()), label) for b, label in zip(buffers, labels)]
    assert len({k.name for k in made}) == 4
    assert kernels.add(Kernel("", (buffers[0],), ()), "other") is made[0]
