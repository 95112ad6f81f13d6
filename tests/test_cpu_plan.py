"""Entry functions: states that change places, conditions, copies, lists, interrupts; random programs, compiled."""

from __future__ import annotations

import copy
import ctypes
import subprocess
import sys

import numpy as np
import pytest

from intarsia.backends.cpu.compile import compile_plan, host_target, load
from intarsia.ir.dtypes import BOOL, F32, I64, Array
from intarsia.ir.errors import Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_text import read_kernel
from intarsia.ir.plan import Copy, Invoke, Plan, PlanStatement, Reference, Repeat, Slot, State
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.random_graphs import random_inputs, random_module, random_sizes
from intarsia.ir.scalar import Load
from intarsia.ir.sizes import Size
from intarsia.passes.lower import Lower
from intarsia.passes.pipeline import Context
from intarsia.passes.plan_memory import plan
from intarsia.passes.specialize import Specialize
from intarsia.runtime.native import CheckFailure, NativeFunction, native_symbols


def kernel_of(text: str) -> Kernel:
    return read_kernel(Source("test", text))


STEP = kernel_of("kernel step(x: f32[8], out y: f32[8])[sizes t] { for i in 0..8 { y[i] = x[7 - i] + f32(index(t)) } }")
SMALL = kernel_of("kernel small(x: f32[8], out c: bool) { c[] = x[0] < 20.0 }")
ADD = kernel_of("kernel add(x: f32[8], inout y: f32[8]) { for i in 0..8 { y[i] += x[i] } }")
EIGHT = (Size.of(8),)


def compiled(program: Plan) -> NativeFunction:
    code = compile_plan(program, host_target())
    loaded = load(code.object_code, code.entry, native_symbols())
    inputs, outputs = (sum(s.place == p for s in program.slots) for p in ("input", "output"))
    return NativeFunction(loaded.address, inputs, outputs, len(program.sizes), owner=loaded)


def prepared(program: Plan, inputs: list[Array | list[Array]], sizes: dict[str, int]) -> list[Array]:
    """What the compiled program makes of its constants."""
    if (once := program.preparation) is None:
        return []
    slots = [s for s in once.plan.slots if s.place == "output"]
    made = [np.zeros([n.evaluate(sizes) for n in s.shape], s.dtype.numpy) for s in slots]
    values = [sizes[name] for name in once.plan.sizes]
    workspace = once.plan.workspace_bytes.evaluate(sizes)
    assert compiled(once.plan).run([inputs[n] for n in once.inputs], made, values, workspace) is None
    return made


def number(n: int) -> Size:
    return Size.of(n)


def loop_plan(*, conditional: bool, upper: Size) -> Plan:
    """x goes through `step` for t in 0..upper, while x[0] < 20 if `conditional`."""
    slots = (
        Slot("x", F32, EIGHT, "input", 0),
        Slot("n", I64, (), "input", 1),
        Slot("y", F32, EIGHT, "output", 0),
        Slot("a", F32, EIGHT, "workspace", offset=number(0)),
        Slot("b", F32, EIGHT, "workspace", offset=number(64)),
        Slot("c", BOOL, (), "workspace", offset=number(128)),
    )
    state = State("s", Reference("x"), (Reference("a"), Reference("b")))
    body = (Invoke("step", (Reference("s"), Reference("s.next")), (number(0) + "t",)),)
    test: tuple[PlanStatement, ...] = (Invoke("small", (Reference("s"), Reference("c"))),)
    repeat = Repeat(
        "t", number(0), upper, (state,), body, test if conditional else (), Reference("c") if conditional else None
    )
    copy_out = Copy(Reference("s"), Reference("y"), F32, number(8))
    kernels = (STEP, SMALL) if conditional else (STEP,)
    return Plan("main", slots, (repeat, copy_out), kernels, (), number(192))


@pytest.mark.parametrize("conditional", [False, True])
def test_states_take_turns(conditional: bool) -> None:
    function = compiled(loop_plan(conditional=conditional, upper=Size.opaque(Load("n", (), I64))))
    for steps in (-3, 0, 1, 2, 5, 40):
        x, y = np.arange(8, dtype=np.float32), np.zeros(8, np.float32)
        assert function.run([x, np.array(steps)], [y], [], 192) is None
        expected, t = x, 0
        while t < steps and (not conditional or expected[0] < 20):
            expected = expected[::-1] + np.float32(t)
            t += 1
        np.testing.assert_array_equal(y, expected)


def test_each_turn_reads_what_the_one_before_wrote() -> None:
    """LLVM's passes, which a kernel without a schedule calls for, keep apart the turns that swap two buffers."""
    start = kernel_of("kernel start(x: i64, out y: i64[16]) { for i in 0..16 { y[i] = 0 }  y[15] = x[] }")
    chain = kernel_of(
        "kernel chain(x: i64[16], out y: i64[16])[sizes t] {"
        "  unroll i in 0..2 { lane j in 0..8 { y[8 * i + j] = x[8 * i + j] } }  y[t + 1] = x[t] + 1 }"
    )
    slots = (
        Slot("x", I64, (), "input", 0),
        Slot("y", I64, (number(16),), "output", 0),
        Slot("a", I64, (number(16),), "workspace", offset=number(0)),
    )
    state = State("s", Reference("a"), (Reference("y"), Reference("a")))
    turn = Invoke("chain", (Reference("s"), Reference("s.next")), (number(0) + "t",))
    body = (
        Invoke("start", (Reference("x"), Reference("a"))),
        Repeat("t", number(0), number(15), (state,), (turn,), (), None),
    )
    program = Plan("main", slots, body, (start, chain), (), number(128))
    assert compile_plan(program, host_target()).passes
    y = np.zeros(16, np.int64)
    assert compiled(program).run([np.array(0)], [y], [], 128) is None
    np.testing.assert_array_equal(y, np.arange(16))


def test_a_state_in_place() -> None:
    slots = (Slot("x", F32, EIGHT, "input", 0), Slot("y", F32, EIGHT, "output", 0))
    state = State("s", Reference("y"), (Reference("y"),))
    add = Invoke("add", (Reference("x"), Reference("s.next")))
    body = (
        Copy(Reference("x"), Reference("y"), F32, number(8)),
        Repeat("t", number(2), number(5), (state,), (add,)),
    )
    x, y = np.arange(8, dtype=np.float32), np.zeros(8, np.float32)
    compiled(Plan("f", slots, body, (ADD,), (), number(0))).run([x], [y])
    np.testing.assert_array_equal(y, 4 * x)


def test_elements_of_lists_and_parts_of_results() -> None:
    """y[t] = w[2 - t], rows of a stacked result one after the other, for a run-time number of rows."""
    slots = (
        Slot("w", F32, EIGHT, "input", 0, length=number(3)),
        Slot("y", F32, (Size.of("N"), number(8)), "output", 0),
    )
    source = Reference("w", element=number(2) - "t")
    target = Reference("y", start=Size.of("t") * 8)
    rows = Repeat("t", number(0), Size.of("N"), (), (Copy(source, target, F32, number(8)),))
    w = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    y = np.zeros((3, 8), np.float32)
    compiled(Plan("f", slots, (rows,), (), ("N",), number(0))).run([list(w)], [y], [3])
    np.testing.assert_array_equal(y, w[::-1])


def test_a_failed_check_ends_the_plan() -> None:
    checked = kernel_of(
        "kernel checked(x: f32[8], out y: f32[8]) { for i in 0..8 { check 4: x[i] < 3.0 (index(i)) y[i] = x[i] } }"
    )
    slots = (Slot("x", F32, EIGHT, "input", 0), Slot("y", F32, EIGHT, "output", 0))
    x, y = Reference("x"), Reference("y")
    body = (Invoke("checked", (x, y)), Invoke("add", (x, y)))
    function = compiled(Plan("f", slots, body, (checked, ADD), (), number(0)))
    values, result = np.arange(8, dtype=np.float32), np.zeros(8, np.float32)
    assert function.run([values], [result]) == CheckFailure(4, (3,))
    np.testing.assert_array_equal(result, values)  # `add` did not run
    assert function.run([values / 10], [result]) is None


def test_the_interrupt_flag_is_read_between_kernels() -> None:
    program = loop_plan(conditional=False, upper=number(1 << 40))
    code = compile_plan(program, host_target())
    entry = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 6)
    loaded = load(code.object_code, code.entry, native_symbols())
    x, n, y, workspace = np.zeros(8, np.float32), np.zeros((), np.int64), np.zeros(8, np.float32), np.zeros(64)
    inputs = (ctypes.c_void_p * 2)(x.ctypes.data, n.ctypes.data)
    outputs = (ctypes.c_void_p * 1)(y.ctypes.data)
    flag = ctypes.c_int32(1)
    arguments = (inputs, outputs, None, workspace.ctypes.data, None, ctypes.addressof(flag))
    assert entry(loaded.address)(*arguments) == -1


def random_program(seed: int, *, specialised: bool) -> tuple[Plan, list[Array | list[Array]], dict[str, int]]:
    """A random graph, lowered and planned; its inputs and the sizes that stayed open."""
    module, sizes = random_module(seed), random_sizes(seed)
    context = Context(host_target())
    inputs = [np.ascontiguousarray(i) if isinstance(i, np.ndarray) else i for i in random_inputs(module, seed, sizes)]
    if specialised:
        module = Specialize(tuple(sizes.items())).run(module, context)
    program = plan(Lower().run(module, context))
    return program, inputs, {n: sizes[n] for n in program.sizes}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("specialised", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_random_programs(seed: int, specialised: bool) -> None:
    program, inputs, sizes = random_program(seed, specialised=specialised)
    wanted = run_plan(program, copy.deepcopy(inputs), sizes)
    results = [np.zeros_like(w) for w in wanted]
    workspace = program.workspace_bytes.evaluate(sizes)
    given = [*inputs, *prepared(program, inputs, sizes)]
    assert compiled(program).run(given, results, list(sizes.values()), workspace) is None
    for result, value in zip(results, wanted):
        if result.dtype.kind in "biu":
            np.testing.assert_array_equal(result, value)
        else:
            # Two ways to compute exp and sums of f32 differ by some units, which casts to f64 keep.
            unit = 2.0**-7 if result.dtype.itemsize == 2 else 2.0**-20
            wide = result.astype(np.float64), value.astype(np.float64)
            np.testing.assert_allclose(*wide, rtol=8 * unit, atol=8 * unit)


def test_the_garbage_collector_ends_modules_before_what_they_need() -> None:
    """In a cycle it finalises in any order: a context or a linker must stay until what lies in it is gone."""
    text = """
import gc
from intarsia.backends.cpu.machine import assemble, load, parse

source = "define i32 @f() { ret i32 1 }"
code = assemble(source)
for make in (lambda: parse(source), lambda: load(code, "f", {})):
    for _ in range(3):
        cycle = [make()]
        cycle.append(cycle)
    del cycle
    gc.collect()
"""
    subprocess.run([sys.executable, "-c", text], check=True)
