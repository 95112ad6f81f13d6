"""Results that lie where operands did: kernels that may do that, and training steps that change parameters in place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from schedule_samples import SAMPLES, arrays_for, sample

import intarsia
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.kernel import Kernel
from intarsia.ir.kernel_interpreter import run
from intarsia.ir.kernel_text import read_kernel
from intarsia.ir.kernel_verifier import verify_kernel
from intarsia.ir.plan import Plan, Repeat
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.plan_liveness import verify_plan
from intarsia.ir.target import TARGETS
from intarsia.ir.text import read_module
from intarsia.options import Options
from intarsia.passes.lower import Lower
from intarsia.passes.pipeline import Context
from intarsia.passes.plan_memory import plan
from intarsia.passes.plan_memory.overwriting import may_overwrite, with_overwritten
from intarsia.passes.schedule.scheduling import schedule_of

EXAMPLES = Path(__file__).parent.parent / "examples"

KERNELS = {
    "the same element": ("y[i, j] = x[i, j] + x[i, j]", True),
    "a transposed element": ("y[i, j] = x[i, j] + x[j, i]", False),
    "an element before": ("y[i, j] = x[i, maximum(j - 1, 0)]", False),
    "an element after": ("y[i, j] = x[i, minimum(j + 1, 7)]", True),
    "read again": ("y[i, j] = 1.0\n z[i, j] = x[i, j]", True),  # the first write moves behind the second
    "what is written is read again": ("y[i, j] = 1.0\n z[i, j] = x[i, j] + y[i, j]", False),
    "a row": ("for k in 0..8 { t[] += x[i, k] }\n y[i, j] = t[]", False),
}


def _kernel(body: str, kind: str = "for") -> Kernel:
    body = body.replace("maximum(j - 1, 0)", "max(0, j - 1)").replace("minimum(j + 1, 7)", "min(7, j + 1)")
    text = f"""kernel f(x: f32[8, 8], out y: f32[8, 8], out z: f32[8, 8]) {{
      {kind} i in 0..8 {{ {kind} j in 0..8 {{
        alloc t: f32
        t[] = 0.0
        {body}
      }} }}
    }}"""
    return read_kernel(Source("kernel", text))


def _check(kernel: Kernel, operand: str, result: str, sizes: Mapping[str, int]) -> None:
    """The kernel gives every bit that it gives with a result of its own."""
    merged = with_overwritten(kernel, {result: operand})
    verify_kernel(merged)
    apart = arrays_for(kernel, sizes)
    together = {b.name: apart[b.name].copy() for b in merged.parameters} | {result: apart[operand].copy()}
    run(kernel, apart, sizes)
    run(merged, together, sizes)
    for buffer in kernel.outputs:
        np.testing.assert_array_equal(together[buffer.name], apart[buffer.name])


@pytest.mark.parametrize("name", KERNELS)
def test_which_kernels_may_overwrite(name: str) -> None:
    body, expected = KERNELS[name]
    kernel = _kernel(body)
    assert may_overwrite(kernel, "x", "y") == expected
    if expected:
        _check(kernel, "x", "y", {})


def test_iterations_that_run_beside_each_other() -> None:
    """The element after it is read before it is written only where iterations run in order."""
    assert not may_overwrite(_kernel(KERNELS["an element after"][0], "parallel"), "x", "y")
    assert may_overwrite(_kernel(KERNELS["the same element"][0], "parallel"), "x", "y")


@pytest.mark.parametrize("name", SAMPLES)
def test_scheduled_kernels_give_the_same_in_place(name: str) -> None:
    kernel, sizes = sample(name)
    scheduled = schedule_of(kernel, Context(TARGETS["cpu:x86-avx2"])).kernel
    for operand in scheduled.inputs:
        for result in scheduled.outputs:
            if may_overwrite(scheduled, operand.name, result.name):
                _check(scheduled, operand.name, result.name, sizes)


TRAINING = """
import "optim.ita"

fn loss(x: f32[B, I], y: f32[B, O], w: f32[I, H], b: f32[H], u: f32[H, O]) -> f32 {
    e = relu(x @ w + b) @ u - y
    return mean(e * e)
}

fn step(
    x: f32[B, I], y: f32[B, O], w: f32[I, H], b: f32[H], u: f32[H, O], mw: f32[I, H], mb: f32[H], mu: f32[H, O],
    vw: f32[I, H], vb: f32[H], vu: f32[H, O], t: i64
) {
    dw, db, du = grad(loss, wrt=(w, b, u))(x, y, w, b, u)
    w, mw, vw = adam(w, dw, mw, vw, t, 0.01, decay=0.1)
    b, mb, vb = adam(b, db, mb, vb, t, 0.01, decay=0.1)
    u, mu, vu = adam(u, du, mu, vu, t, 0.01, decay=0.1)
    return w, b, u, mw, mb, mu, vw, vb, vu
}

fn train(
    x: f32[B, I], y: f32[B, O], w: f32[I, H], b: f32[H], u: f32[H, O], mw: f32[I, H], mb: f32[H], mu: f32[H, O],
    vw: f32[I, H], vb: f32[H], vu: f32[H, O], steps: i64
) {
    return loop (w = w, b = b, u = u, mw = mw, mb = mb, mu = mu, vw = vw, vb = vb, vu = vu) for t < steps {
        dw, db, du = grad(loss, wrt=(w, b, u))(x, y, w, b, u)
        w, mw, vw = adam(w, dw, mw, vw, t, 0.01, decay=0.1)
        b, mb, vb = adam(b, db, mb, vb, t, 0.01, decay=0.1)
        u, mu, vu = adam(u, du, mu, vu, t, 0.01, decay=0.1)
        yield w, b, u, mw, mb, mu, vw, vb, vu
    }
}
"""
STATE = ("w", "b", "u", "mw", "mb", "mu", "vw", "vb", "vu")
SHAPES = {"x": (6, 24), "y": (6, 40), "w": (24, 96), "b": (96,), "u": (96, 40)}


def _arguments() -> dict[str, Array]:
    random = np.random.default_rng(0)
    named = {n: SHAPES[n[-1]] for n in ("x", "y", *STATE)}
    found = {n: random.standard_normal(shape).astype(np.float32) for n, shape in named.items()}
    return {n: np.abs(a) if n.startswith("v") else a for n, a in found.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("training")
    (made / "optim.ita").write_text((EXAMPLES / "optim.ita").read_text("utf-8"), "utf-8")
    (made / "training.ita").write_text(TRAINING, "utf-8")
    return made


IN_PLACE = {"w", "u", "mu", "vu"}
"""Not the moments of `w`: the kernel that changes these also makes the powers of Adam's factors, which all parameters
need, between writing them and reading them again for `w`."""


def _plan(folder: Path, name: str, donated: tuple[str, ...], **more: int) -> Plan:
    program = intarsia.load(folder / "training.ita", Options(target="cpu:x86-avx2", donated=donated))
    made = program[name].lower(**_arguments(), **more).compilation.plan
    verify_plan(made)
    return made


def test_a_loop_of_training_steps_holds_no_second_copy_of_parameters(folder: Path) -> None:
    """Parameters and moments are changed where they lie, in the results."""
    made = _plan(folder, "train", (), steps=3)
    (loop,) = (s for s in made.body if isinstance(s, Repeat))
    assert {s.name.partition(".")[0] for s in loop.states if len(s.buffers) == 1} >= IN_PLACE


def test_a_step_changes_donated_parameters_in_place(folder: Path) -> None:
    made = _plan(folder, "step", STATE, t=3)
    taken = {s.takes for s in made.slots if s.place == "output"}
    assert taken >= IN_PLACE
    assert _plan(folder, "step", (), t=3).slots[-1].takes == ""


def test_donated_arguments_are_the_results(folder: Path) -> None:
    given = _arguments()
    expected = intarsia.load(folder / "training.ita").step(**given, t=0)
    step = intarsia.load(folder / "training.ita", Options(donated=STATE)).step
    kept = {n: a.copy() for n, a in given.items()}
    for _ in range(3):  # the second and third call go other ways through the interface
        own = {n: a.copy() for n, a in kept.items()}
        results = step(*own.values(), 0)
        assert all(r is own[n] for n, r in zip(STATE, results, strict=True) if n in IN_PLACE)
        assert all(np.array_equal(r, e) for r, e in zip(results, expected, strict=True))
        assert np.array_equal(own["x"], kept["x"]) and np.array_equal(own["y"], kept["y"])


def test_what_others_read_is_not_given_away() -> None:
    """Arrays that are bound, cannot be written or are given twice stay as they are."""
    program = intarsia.compile("fn f(a: f32[N], b: f32[N]) { return a + b, a - b }", Options(donated=("a", "b")))
    x = np.arange(64, dtype=np.float32)
    y = x.copy()
    y.flags.writeable = False
    whole = np.arange(65, dtype=np.float32)
    for a, b in ((x, x), (x[:], x), (x.copy(), y), (whole[1:], whole[:-1])):
        kept = a.copy(), b.copy()
        total, difference = program.f(a, b)
        assert np.array_equal(total, kept[0] + kept[1]) and np.array_equal(difference, kept[0] - kept[1])
        assert np.array_equal(b, kept[1]) and (np.array_equal(a, kept[0]) or b is y)
    bound = program.f.bind(a=x)
    for _ in range(2):
        assert np.array_equal(bound(np.ones(64, np.float32))[0], np.arange(64) + 1)


def test_an_operand_gives_its_place_to_one_result() -> None:
    """Even where nothing reads the other ones."""
    module = read_module(Source("two.ir", TWO_RESULTS))
    made = plan(Lower().run(module, Context(TARGETS["cpu:x86-avx2"])))
    verify_plan(made)
    given = np.arange(4, dtype=np.float32)
    (result,) = run_plan(made, [given])
    np.testing.assert_array_equal(result, np.exp(given) * np.exp(given))


TWO_RESULTS = """
func @two(%x: f32[4]) {
  %0 = exp %x : f32[4]
  %1:2 = fused {
    %2 = add %0, %0 : f32[4]
    %3 = mul %0, %0 : f32[4]
    yield %2, %3
  } : f32[4], f32[4]
  return %1#1
}
"""
