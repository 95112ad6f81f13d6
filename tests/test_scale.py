"""Work grows with the program: calls of functions are counted, not seconds, so that nothing depends on the machine."""

from __future__ import annotations

import cProfile
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import intarsia
from intarsia.cache import Cache, KernelStore
from intarsia.deep_stack import with_deep_stack
from intarsia.driver import Compilation
from intarsia.ir.dtypes import F32
from intarsia.ir.errors import Source
from intarsia.ir.kernel_text import print_kernel, read_kernel
from intarsia.ir.plan import Plan
from intarsia.ir.scalar import Apply, Expr, Load, apply, expression_text, loads, walk
from intarsia.ir.text import print_module
from intarsia.passes.fuse import chains
from intarsia.passes.fuse.chains import Chains
from intarsia.passes.fuse.groups import Group
from intarsia.passes.fuse.order import GroupOrder
from intarsia.passes.plan_memory import plan
from intarsia.passes.schedule import scheduling
from intarsia.passes.schedule.builder import Builder
from intarsia.program import Program


def chain(count: int) -> str:
    """Elementwise statements that read several of those before them."""
    lines = ["v0 = x"]
    for i in range(1, count):
        a, b = f"v{i - 1}", f"v{max(0, i - 2 - i * 7 % 5)}"
        lines.append(f"v{i} = " + [f"{a} * 0.5 + {b}", f"tanh({a}) - {b}", f"maximum({a}, {b} * 0.25)"][i % 3])
    return _function(lines, count)


def mixed(count: int) -> str:
    """Matrix products, reductions, views and elementwise statements."""
    lines = ["v0 = x"]
    for i in range(1, count):
        a, b = f"v{i - 1}", f"v{max(0, i - 1 - i * 7 % 5)}"
        kinds = [
            f"{a} @ w",
            f"{a} * 0.5 + {b}",
            f"softmax({a})",
            f"{a} - sum({b}, axis=1, keepdims=true)",
            f"transpose(reshape({a}, (64, 8)))",
        ]
        lines.append(f"v{i} = {kinds[i % 5]}")
    return _function(lines, count)


def one_for_all(count: int) -> str:
    """A computed value that every statement reads, and one that is read at the very end."""
    lines = ["mask = exp(x)", "early = tanh(x) * 3.0", "v0 = x"]
    lines += [f"v{i} = v{i - 1} @ w + mask" for i in range(1, count - 1)]
    return _function([*lines, f"v{count - 1} = v{count - 2} + early"], count)


def independent(count: int) -> str:
    """Statements that only a sum joins."""
    lines = [f"u{i} = x * {i}.5 + 1.0" for i in range(count // 2)]
    lines += ["v0 = u0", *(f"v{i} = v{i - 1} + u{i}" for i in range(1, count // 2))]
    return _function(lines, count // 2)


def index_notation(count: int) -> str:
    lines = ["v0 = x"]
    for i in range(1, count):
        a, b = f"v{i - 1}", f"v{max(0, i - 4)}"
        body = [f"{a}[i, j] * {b}[i, 0]", f"sum[k < 64]({a}[i, k] * w[k, j])", f"{a}[7 - i, j] + 1.0"][i % 3]
        lines.append(f"v{i}[i < 8, j < 64] = {body}")
    return _function(lines, count)


def changes(count: int) -> str:
    """Values that are changed in place."""
    lines = ["v0 = x * 2.0"]
    lines += [f"v{i} = update v{i - 1}[i in 1..7, j in 0..64] += v{i - 1}[0, j] * {i}.0" for i in range(1, count)]
    return _function(lines, count)


def _function(lines: list[str], count: int) -> str:
    body = "\n".join(f"    {line}" for line in (*lines, f"return v{count - 1}"))
    return f"fn main(x: f32[8, 64], w: f32[64, 64]) -> f32[8, 64] {{\n{body}\n}}\n"


LAYER = """
struct Layer(D, F) {
    g: f32[D]
    b: f32[D]
    wq: f32[D, D]
    wk: f32[D, D]
    wv: f32[D, D]
    w1: f32[D, F]
    w2: f32[F, D]
}

fn layer(x: f32[S, D], p: Layer(D, F)) -> f32[S, D] {
    n = layer_norm(x, p.g, p.b)
    h = x + softmax((n @ p.wq) @ transpose(n @ p.wk)) @ (n @ p.wv)
    return h + gelu_tanh(layer_norm(h, p.g, p.b) @ p.w1) @ p.w2
}
"""


def layers(count: int) -> str:
    """A network whose layers are written out."""
    parameters = ", ".join(f"p{i}: Layer(64, 96)" for i in range(count))
    lines = "\n".join(f"    h{i + 1} = layer(h{i}, p{i})" for i in range(count))
    return f"{LAYER}\nfn main(h0: f32[16, 64], {parameters}) -> f32[16, 64] {{\n{lines}\n    return h{count}\n}}\n"


def layers_in_a_loop(count: int) -> str:
    return f"""{LAYER}
struct Net(D, F, L) {{
    layers: Layer(D, F)[L]
}}

fn main(x: f32[16, 64], p: Net(64, 96, {count})) -> f32[16, 64] {{
    return loop (h = x) for i < {count} {{
        yield layer(h, p.layers[i])
    }}
}}
"""


def compilation(text: str) -> Compilation:
    return Program(Source("scale.ita", text), use_cache=False).entry("main").compilation_of_types(None, {}, {})


def planned(text: str) -> Plan:
    """Everything but what is done to each kernel by itself: scheduling and code."""
    return plan(compilation(text).kernels)


def calls(work: Callable[[], object]) -> int:
    """How many calls of functions, those of Python itself included, some work takes."""
    profile = cProfile.Profile()

    def counted() -> None:
        profile.enable()
        work()
        profile.disable()

    with_deep_stack(counted)
    return sum(entry.callcount for entry in profile.getstats())


@pytest.mark.slow
@pytest.mark.parametrize("program", [chain, mixed, one_for_all, independent, index_notation, changes])
def test_work_is_linear_in_statements(program: Callable[[int], str]) -> None:
    calls(lambda: planned(program(10)))  # what is made once a process
    # Smaller programs are one or two kernels, between which there is nothing to do yet.
    few, many = (calls(lambda n=n: planned(program(n))) for n in (60, 240))  # type: ignore[misc]
    assert many < 4.7 * few


@pytest.mark.slow
def test_work_is_linear_in_layers() -> None:
    one, three, five = (calls(lambda n=n: planned(layers(n))) for n in (1, 3, 5))  # type: ignore[misc]
    assert five - three < 1.1 * (three - one)


@pytest.mark.slow
@pytest.mark.parametrize("program", [layers, layers_in_a_loop])
def test_equal_layers_share_their_kernels(
    program: Callable[[int], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scheduled: list[str] = []
    build, sweep = scheduling.best_schedule, chains.schedule_in_one

    def counted(kernel: Any, *rest: Any, **more: Any) -> Any:
        scheduled.append(kernel.name)
        return build(kernel, *rest, **more)

    def tried(builder: Builder) -> bool:
        scheduled.append("chain")
        return sweep(builder)

    monkeypatch.setattr(scheduling, "best_schedule", counted)
    monkeypatch.setenv("INTARSIA_COMPILE_PROCESSES", "1")  # what other processes do is not counted
    monkeypatch.setattr(chains, "schedule_in_one", tried)
    pieces, store = [], Cache(tmp_path)
    for count in (2, 5):
        scheduled.clear()
        made = compilation(program(count))
        pieces.append(len(made.executable(KernelStore(store)).pieces))
        kernels = len(made.plan.kernels)
        assert len(scheduled) == kernels == pieces[-1] - 1 and scheduled.count("chain") == 1
    assert pieces[0] == pieces[1]


@pytest.mark.slow
def test_chains_that_cannot_be_scheduled_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like a chain is tried; where that fails, the search goes back to what works."""
    together = compilation(layers(1)).kernels.kernels
    monkeypatch.setattr(chains, "schedule_in_one", lambda builder: False)
    apart = compilation(layers(1))
    assert len(apart.kernels.kernels) > len(together)
    monkeypatch.setattr(Chains, "looks_right", Chains.works)
    assert print_module(compilation(layers(1)).kernels) == print_module(apart.kernels)


@pytest.mark.slow
def test_a_loop_over_layers_costs_the_same_for_any_number() -> None:
    planned(layers_in_a_loop(2))
    two, many = (calls(lambda n=n: planned(layers_in_a_loop(n))) for n in (2, 48))  # type: ignore[misc]
    assert many < 1.05 * two


# ---------------------------------------------------------------------- expressions with shared parts


def nested(depth: int) -> str:
    """Written out, the one expression has 3 ** depth parts."""
    value = "x[i]"
    for _ in range(depth):
        value = f"step({value})"
    return f"""
fn step(a: f32) -> f32 {{
    return (a * a + a) * 0.5
}}

fn main(x: f32[N]) -> f32[N] {{
    return tensor[i]({value})
}}
"""


def test_shared_parts_are_visited_once() -> None:
    program = intarsia.compile(nested(60))
    x = np.linspace(-1, 1, 37, dtype=np.float32)
    wanted = x
    for _ in range(60):
        wanted = (wanted * wanted + wanted) * np.float32(0.5)
    np.testing.assert_allclose(program.main(x), wanted, rtol=1e-5, atol=1e-6)
    made = program.main.lower(x)
    for stage in ("graph", "kernels", "scheduled", "llvm"):
        assert len(made.asm[stage]) < 30_000
    few, many = (calls(lambda n=n: intarsia.compile(nested(n)).main.lower(x).asm["llvm"]) for n in (20, 80))  # type: ignore[misc]
    assert many < 4.7 * few


def doubled(depth: int) -> Expr:
    e: Expr = Load("x", (), F32)
    for _ in range(depth):
        e = apply("mul", apply("add", e, e), e)
    return e


def test_equality_of_shared_parts() -> None:
    assert doubled(100) == doubled(100) and hash(doubled(100)) == hash(doubled(100))
    assert doubled(100) != doubled(101)
    other = apply("mul", doubled(99), apply("add", doubled(99), doubled(99)))
    assert doubled(100) != other


def test_walks_visit_each_part_once() -> None:
    assert len(list(walk(doubled(50)))) == 101
    assert len(list(loads(doubled(50)))) == 1
    nested_parts = [e for e in walk(doubled(2)) if isinstance(e, Apply)]
    assert [e.function for e in nested_parts] == ["mul", "add", "mul", "add"]


def test_long_text_names_shared_parts() -> None:
    assert expression_text(doubled(1)) == "(x[] + x[]) * x[]"
    text = expression_text(doubled(60))
    assert text.startswith("let(t0 = (x[] + x[]) * x[], t1 = (t0 + t0) * t0, ") and len(text) < 2500
    made = intarsia.compile(nested(30)).main.lower(np.zeros(5, np.float32))
    for kernel in made.compilation.kernels.kernels:
        printed = print_kernel(kernel)
        assert "let(" in printed
        assert read_kernel(Source("kernel.ir", printed)) == kernel


# ---------------------------------------------------------------------- the order of groups


@pytest.mark.parametrize("seed", range(30))
def test_the_order_of_groups_stays_true(seed: int) -> None:
    """Random merges in random graphs, against a search of the whole graph."""
    chance = random.Random(seed)
    count = chance.randrange(2, 25)
    groups: dict[int, Group] = {n: Group([]) for n in range(count)}  # of each node
    edges = {(a, b) for b in range(count) for a in chance.sample(range(b), min(b, chance.randrange(4)))}

    def after(group: Group) -> list[Group]:
        return [groups[b] for a, b in sorted(edges) if groups[a] is group]

    def before(group: Group) -> list[Group]:
        return [groups[a] for a, b in sorted(edges) if groups[b] is group]

    def leads(start: Group, end: Group) -> bool:
        return start is end or any(leads(g, end) for g in after(start) if g is not start)

    order = GroupOrder(groups.values(), after, before)
    for _ in range(2 * count):
        crossing = [(groups[a], groups[b]) for a, b in sorted(edges) if groups[a] is not groups[b]]
        if not crossing:
            break
        first, last = chance.choice(crossing)
        meets = any(leads(g, last) for g in after(first) if g is not last and g is not first)
        assert order.meets_elsewhere(first, last) == meets
        if not meets:
            merged = Group([])
            order.merge(first, last, merged)
            groups.update({n: merged for n, g in groups.items() if g in (first, last)})
            places = {g: order._place[g] for g in groups.values()}
            assert all(places[groups[a]] <= places[groups[b]] for a, b in edges)
            assert len(set(places.values())) == len(places) == len(order._place)
