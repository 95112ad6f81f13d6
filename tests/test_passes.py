"""What passes promise: algebra that keeps every bit, groups that become one kernel, types that the target has."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))

from expressions import AXIS, Expressions, module_of

from intarsia.driver import Compilation, Options
from intarsia.dsl.library import load
from intarsia.ir.dtypes import BF16, BOOL, F16, F32, I32, DType
from intarsia.ir.errors import Source
from intarsia.ir.graph import Module, Node, Structured
from intarsia.ir.interpreter import evaluate
from intarsia.ir.ops import Fused, Loop, Reduce, Update
from intarsia.ir.random_graphs import random_module
from intarsia.ir.scalar import Apply, walk
from intarsia.ir.target import TARGETS
from intarsia.ir.text import print_module, read_module
from intarsia.memory_passes import MemoryPasses
from intarsia.passes.canonicalize.spaces import facts_of, simplify_body
from intarsia.passes.fuse.groups import Search
from intarsia.passes.fuse.report import pass_counts, pass_report
from intarsia.passes.pipeline import Context, Pipeline
from intarsia.passes.verify import difference, verification
from intarsia.program import Program

GRAPH_PASSES = (
    "canonicalize,cse,dce,expand-sorts,legalize-dtype,canonicalize,cse,sink-scales,sample,dce,contract,exchange,hoist{always=true},"
    "merge{always=true},fuse,skip-rounding,dce"
)
CPU = TARGETS["cpu:x86-avx2"]


def context() -> Context:
    return Context(CPU)


def program(text: str) -> Module:
    """The graph of a program of the language with one function."""
    return load(Source("test.ita", text)).build(None)


def run(module: Module, passes: str = GRAPH_PASSES) -> tuple[Module, Context]:
    given = context()
    return Pipeline.parse(passes).run(module, given, verification("exec")), given


def kernels(module: Module) -> list[Node]:
    """The nodes that become kernels."""
    return [n for n in module.graph.body.walk() if isinstance(n, Fused)]


# ---------------------------------------------------------------------- scalar algebra


def special_inputs() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    values = [0.0, -0.0, 1.0, -1.0, 0.5, 3.0, np.inf, -np.inf, np.nan, 1e-40, 3e38, 2.0**31, -5.0]
    floats = [generator.choice(np.array(values, np.float32), 64) for _ in range(2)]
    integers = [generator.choice(np.array([0, 1, -1, 7, 2**31 - 1, -(2**31)], np.int32), 64) for _ in range(2)]
    with np.errstate(over="ignore"):
        halves = [generator.choice(np.array(values, np.float16), 64) for _ in range(2)]
    return [*floats, *integers, *halves, *(generator.random(64) < 0.5 for _ in range(2))]


@pytest.mark.parametrize("dtype", [F32, I32, BOOL], ids=str)
def test_algebra_keeps_every_bit(dtype: DType) -> None:
    """NaN, infinities, subnormals, the sign of zero and the ends of the integers included."""
    inputs = special_inputs()
    bodies = [Expressions(seed).of(dtype, 5) for seed in range(150)]
    better = [simplify_body(body, facts_of([AXIS])) for body in bodies]
    assert sum(a != b for a, b in zip(bodies, better)) > 60
    for body, simple in zip(bodies, better):
        before, after = evaluate(module_of([body, simple]), inputs)
        assert difference(before, after, dtype, lambda: None, exact=True) is None, f"{body}\n-> {simple}"


# ---------------------------------------------------------------------- random graphs


@pytest.mark.parametrize("seed", [837, *range(2000, 2012)])
def test_random_graphs_keep_their_meaning(seed: int) -> None:
    run(random_module(seed), f"{GRAPH_PASSES},lower")


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 1000, 100))
def test_many_random_graphs_keep_their_meaning(first: int) -> None:
    for seed in range(first, first + 100):
        run(random_module(seed), f"{GRAPH_PASSES},lower")


def test_passes_settle_and_repeat() -> None:
    """Twice is the same as once, and so is another run."""
    for seed in range(6):
        once, again = (Pipeline.parse(GRAPH_PASSES).run(random_module(seed), context()) for _ in range(2))
        assert print_module(once) == print_module(again)
        for name in ("dce", "sample", "fuse", "legalize-dtype", "skip-rounding"):  # the others look into groups
            twice = Pipeline.parse(name).run(once, context())
            assert print_module(twice) == print_module(once), name


def test_contracting_says_what_it_did() -> None:
    text = """fn f(g: f32[16, 16], u: f32[40, 16], v: f32[50, 16]) -> f32[40, 50] {
        return tensor[i, j](sum[a, b](g[a, b] * u[i, a] * v[j, b]))
    }"""
    _, given = run(program(text), "contract")
    (remark,) = given.remarks.items
    assert remark.done and remark.about == "fusion" and "two at a time" in remark.message and remark.span is not None


# ---------------------------------------------------------------------- fusion

ONE_KERNEL = {
    "gelu": "fn f(x: f32[N, M]) -> f32[N, M] { return gelu(x) * 2.0 }",
    "gelu_tanh": "fn f(x: f32[N, M]) -> f32[N, M] { return gelu_tanh(x) }",
    "softmax": "fn f(x: f32[N, M]) -> f32[N, M] { return softmax(x, axis=-1) }",
    "log_softmax": "fn f(x: f32[N, M]) -> f32[N, M] { return log_softmax(x, axis=-1) }",
    "masked softmax": "fn f(x: f32[N, M], m: bool[N, M]) -> f32[N, M] { return softmax(where(m, x, -inf)) }",
    "layer_norm": "fn f(x: f32[N, M], g: f32[M], b: f32[M]) -> f32[N, M] { return layer_norm(x, g, b) }",
    "rms_norm": "fn f(x: f32[N, M], g: f32[M]) -> f32[N, M] { return rms_norm(x, g) }",
    "logsumexp": "fn f(x: f32[N, M]) -> f32[N] { return logsumexp(x, axis=-1) }",
    "sum of rows": "fn f(x: f32[N, M]) -> f32[N] { return sum(tanh(x * x), axis=1) }",
    "sum of columns": "fn f(x: f32[N, M]) -> f32[M] { return sum(tanh(x * x), axis=0) }",
    "mean square": "fn f(x: f32[N, M], y: f32[N, M]) -> f32 { return mean((x - y) ** 2) }",
    "variance": "fn f(x: f32[N, M]) -> f32[N] { return var(x, axis=1) }",
    "bf16 softmax": "fn f(x: bf16[N, M]) -> bf16[N, M] { return softmax(x) }",
    "residual norm": "fn f(x: f32[N, M], y: f32[N, M], g: f32[M]) -> (f32[N, M], f32[N, M]) "
    "{ h = x + y; return h, rms_norm(h, g) }",
    "linear gelu": "fn f(x: f32[N, K], w: f32[K, M], b: f32[M]) -> f32[N, M] { return gelu(x @ w + b) }",
    "scatter": "fn f(x: f32[N], b: i64[N]) -> f32[8] { z = zeros(f32[8]); return update z[b[i]] += x[i] * x[i] }",
    "blur": "fn f(x: f32[N]) -> f32[N - 2] { return (x[2:] + x[1:-1] + x[:-2]) / 3.0 }",
    "index notation": "fn f(x: f32[N, M]) -> f32[N, M] "
    "{ s[i] = sum[j](exp(x[i, j])); return tensor[i, j](exp(x[i, j]) / s[i]) }",
}


@pytest.mark.parametrize("name", ONE_KERNEL)
def test_one_kernel(name: str) -> None:
    text = (
        ONE_KERNEL[name]
        .replace("return update", "z = zeros(f32[8]); return update")
        .replace("update zeros(f32[8])", "update z")
    )
    module, _ = run(program(text))
    assert [n.name for n in module.graph.body.nodes if n.name != "reshape"] == ["fused"], print_module(module)


@pytest.mark.parametrize("size", ["N=1 M=1", "N=1 M=5", "N=5 M=1", "N=0 M=3", "N=3 M=0"])
def test_one_kernel_at_odd_sizes(size: str) -> None:
    for name in ("softmax", "layer_norm", "sum of columns", "mean square"):
        run(program(ONE_KERNEL[name]), f"specialize{{{size}}},{GRAPH_PASSES},lower")


def test_an_attention_is_three_groups() -> None:
    module, given = run(
        program("""fn attend(q: f32[H, S, D], k: f32[H, T, D], v: f32[H, T, D]) -> f32[H, S, D] {
            score[h, i, j] = sum[d](q[h, i, d] * k[h, j, d]) / sqrt(f32(D))
            p = softmax(score, axis=-1)
            return tensor[h, i, d](sum[j](p[h, i, j] * v[h, j, d]))
        }""")
    )
    assert len([n for n in module.graph.body.nodes if isinstance(n, (Fused, Structured))]) <= 4
    refused = [r for r in given.remarks.items if not r.done]
    assert refused and all(r.span is not None for r in refused)
    assert any("different rows" in r.message and r.span and r.span.line == 3 for r in refused)


def test_loops_hold_groups() -> None:
    module, given = run(
        program("""fn f(x: f32[N], n: i64) -> f32[N] {
            return loop (h = exp(x)) for t < n { yield tanh(h * 0.5 + x) }
        }""")
    )
    loop = next(n for n in module.graph.body.nodes if isinstance(n, Loop))
    assert [n.name for n in loop.body.nodes] == ["fused"]
    assert any("loop boundary" in r.message for r in given.remarks.items)


REASONS = {
    "contraction-contraction": "fn f(x: f32[N, N]) -> f32[N, N] { return x @ x @ x }",
    "different rows": "fn f(x: f32[N, M]) -> f32[N, M] { return softmax(x, axis=0) }",
    "chain": "fn f(a: f32[600, 64], b: f32[600, 64]) -> f32[600, 64] "
    "{ return softmax(a @ transpose(b)) @ b @ b[:64, :] }",
    "dear recompute": "fn f(x: f32[N, M], g: f32[M]) -> f32[N, M] { return x + tanh(g) }",
    "multiple uses": "fn f(x: f32[N, N]) -> (f32[N, N], f32[N, N]) { h = exp(x); return h, h @ x }",
    "cycle": "fn f(x: f32[N, N], w: f32[N, N]) -> f32[N, N] "
    "{ h = exp(x); return h - max(h @ w, axis=1, keepdims=true) }",
    "ordered op": "fn f(x: f32[N]) -> f32[N] { return sort(x * x) }",
    "loop boundary": "fn f(x: f32[N]) -> f32[N] { return loop (h = x * x) for t < 3 { yield h * h } }",
    "update": "fn f(x: f32[N]) -> f32[N] { y = update x[0] = 1.0; return y * y }",
}


@pytest.mark.parametrize("reason", REASONS)
def test_every_edge_that_stays_says_why(reason: str) -> None:
    _, given = run(program(REASONS[reason]))
    refused = [r for r in given.remarks.items if r.about == "fusion" and not r.done]
    assert any(f": {reason}: " in r.message for r in refused), [r.message for r in refused]
    assert all(r.span is not None for r in refused)


def test_groups_say_what_they_save() -> None:
    module = program("fn f(x: f32[N, M]) -> f32[N, M] { return exp(x) * 2.0 }")
    _, given = run(module, "specialize{N=256 M=1024},fuse")
    saved = [r.message for r in given.remarks.items if r.done and r.about == "fusion"]
    assert saved == ["one kernel for exp, mul: saves 2.0 MiB"]  # 1 MiB is not written, and not read again


def test_passes_over_memory_are_counted() -> None:
    softmax, _ = run(program(ONE_KERNEL["softmax"]))
    assert [(c.before, c.after) for c in pass_counts(softmax)] == [(2, 1)]
    norm, _ = run(program(ONE_KERNEL["layer_norm"]))
    assert [(c.value.node.label, c.before, c.after) for c in pass_counts(norm)] == [  # type: ignore[attr-defined]
        ("x", 2, 1),
        ("g", 1, 1),
        ("b", 1, 1),
    ]
    columns, _ = run(program("fn f(x: f32[N]) -> f32[N] { return x / sum(x) }"))
    assert [(c.before, c.after) for c in pass_counts(columns)] == [(2, 2)]  # no rows: once a stage
    assert "2 passes with a kernel for each op, 1 fused" in pass_report(softmax)


def test_passes_of_the_scheduled_kernels_are_counted() -> None:
    """What a row that is longer than a cache takes; a product once more where a group of it does not share rows."""

    def passes(text: str) -> list[tuple[int, int]]:
        compilation = Compilation(program(text), {}, Options(target="cpu:x86-avx512"))
        return [(c.before, c.after) for c in pass_counts(compilation.fused, MemoryPasses(compilation))]

    assert passes("fn f(x: f32[2, 1000]) -> f32[2, 1000] { return softmax(x, axis=-1) }") == [(2, 1)]
    assert passes("fn f(x: f32[2, 1000000]) -> f32[2, 1000000] { return softmax(x, axis=-1) }") == [(2, 2)]
    assert passes("fn f(x: f32[2, 1000000]) -> f32[2] { return logsumexp(x, axis=-1) }") == [(2, 1)]
    scaled = "fn f(x: f32[4, 1000000], g: f32[1000000]) -> f32[4, 1000000] { return exp(x) * g }"
    assert passes(scaled) == [(1, 1), (4, 4)]


def test_ops_and_kernels_are_counted_as_they_run() -> None:
    triple = "fn f(a: f32[40, 40], b: f32[40, 40], c: f32[40, 40]) -> f32[40, 40]"
    einsum, _ = run(program(triple + ' { return einsum("ij,jk,kl->il", a, b, c) }'), "contract,fuse")
    assert pass_report(einsum) == "2 ops in 2 kernels\n"
    one, _ = run(program("fn f(x: f32[9]) -> f32[9] { return exp(x) }"))
    assert pass_report(one) == "1 op in 1 kernel\n"


def test_no_dear_value_is_computed_twice() -> None:
    """A value that two kernels need is stored, not computed in both."""
    module, _ = run(
        program("fn f(x: f32[N, M]) -> (f32[M, N], f32[N]) { h = tanh(x); return transpose(h), sum(h, axis=1) }")
    )
    tanhs = [n for n in module.graph.body.walk() if getattr(n, "function", "") == "tanh"]
    assert len(tanhs) == 1


def test_cheap_work_on_a_stored_value_joins_what_reads_it() -> None:
    """The square of what a product gives belongs to the norm, not to the product, which would store both."""
    module, _ = run(
        program("""fn f(x: f32[N, K], w: f32[K, M]) -> f32[N, M] {
            y = x @ w
            return y / sqrt(sum(y * y, axis=1, keepdims=true))
        }""")
    )
    groups = [n for n in module.graph.body.nodes if n.name in ("fused", "matmul")]
    assert [len(n.results) for n in groups] == [1, 1]


def test_max_ops_bounds_groups() -> None:
    module, _ = run(program("fn f(x: f32[N]) -> f32[N] { return tanh(sin(cos(exp(x)))) }"), "fuse{max-ops=2}")
    assert [len(n.body.nodes) for n in kernels(module) if isinstance(n, Fused)] == [2, 2]


# ---------------------------------------------------------------------- dtypes


def slow_arithmetic(module: Module, slow: frozenset[DType]) -> list[str]:
    """Arithmetic on the given dtypes that is left in bodies and reductions."""
    found: list[str] = []
    for node in module.graph.body.walk():
        spaces = [node.space] if isinstance(node, Structured) else []
        bodies = [node.body] if isinstance(node, Update) else [s.body for s in spaces]
        for e in (e for body in bodies for e in walk(body)):
            if isinstance(e, Apply) and e.arguments[-1].dtype in slow and e.function != "where":
                found.append(f"{node.name}: {e}")
        found += [f"{node.name}: {s.combiner}" for s in spaces if s.reduced and s.body.dtype in slow]
        if isinstance(node, Update) and node.operator != "=" and node.base.dtype in slow:
            found.append(f"update {node.operator}")
    return found


HALVES = """fn f[T: float](x: T[N, M], y: T[M], i: i64[N]) -> (T[N, M], T[N], T[N, M], T[M], bool[N, M]) {
    a[n, m] = where(x[n, m] > y[m], exp(x[n, m]) * y[m], x[n, m] - 1.0)
    b = sum(x * y, axis=1)
    c = update x[n, i[n]] += b[n]
    return softmax(a), b, c, max(x, axis=0), x < y
}
fn main(x: HALF[N, M], y: HALF[M], i: i64[N]) -> (HALF[N, M], HALF[N], HALF[N, M], HALF[M], bool[N, M]) {
    return f(x, y, i)
}"""


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_no_slow_arithmetic_is_left(dtype: DType) -> None:
    module = program(HALVES.replace("HALF", str(dtype)))
    assert slow_arithmetic(module, frozenset({dtype}))
    legal, _ = run(module)
    assert slow_arithmetic(legal, frozenset({dtype})) == []
    same, _ = run(module, "legalize-dtype")
    assert [v.dtype for v in same.graph.results] == [v.dtype for v in module.graph.results]


def test_native_types_stay() -> None:
    module = program("fn f(x: f16[N]) -> f16[N] { return x * x }")
    target = replace(TARGETS["cpu:neon"], features=("neon", "fullfp16"))
    assert Pipeline.parse("legalize-dtype").run(module, Context(target)) is module


def test_bools_are_ordered_as_bits() -> None:
    module, _ = run(program("fn f(x: bool[N], y: bool[N]) -> (bool[N], bool) { return x < y, max(minimum(x, y)) }"))
    for node in module.graph.body.walk():
        if isinstance(node, Reduce):
            assert node.combiner == "any"


# ---------------------------------------------------------------------- sizes


def test_dynamic_names_stay() -> None:
    module = program("fn f(x: f32[N, M]) -> f32[N] { return sum(x, axis=1) }")
    given = Context(CPU, dynamic=frozenset({"N"}))
    result = Pipeline.parse("specialize{N=3 M=4}").run(module, given)
    assert result.graph.dimensions == ("N",)
    assert str(result.graph.parameters[0].type) == "f32[N, 4]"


def test_cse_keeps_all_spans() -> None:
    source = Source("test.ita", "fn f(x: f32[N]) -> f32[N] {\n    a = exp(x)\n    b = exp(x)\n    return a * b\n}")
    module = load(source).build(None)
    result = Pipeline.parse("cse").run(module, context())
    exp = next(n for n in result.graph.body.nodes if getattr(n, "function", "") == "exp")
    assert {s.line for s in (exp.span, *exp.more_spans) if s} == {2, 3}


def test_dead_code_goes_but_parameters_stay() -> None:
    text = """func @f(%x: f32[4], %unused: f32[4]) {
      %0 = exp %x : f32[4]
      %1 = neg %x : f32[4]
      return %1
    }"""
    module = read_module(Source("test.ir", text))
    result = Pipeline.parse("dce").run(module, context())
    assert [n.name for n in result.graph.body.nodes] == ["elementwise"]
    assert len(result.graph.parameters) == 2


SIBLINGS = """
fn main(a: f32[N, M], b: f32[N, M], row: f32[M]) -> (f32[N, M], f32[N, M], f32[N, M]) {
    t = sort(a, axis=1)  # in memory of the program, which one of the results may take over
    return (t * 2.0 + b, exp(t) - row, maximum(t, b))
}
"""


@pytest.mark.parametrize("shape", [(2, 5), (3, 37), (64, 256)])
def test_siblings_keep_every_bit(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups that read one value become one kernel; each result stays what it was."""
    chance = np.random.default_rng(0)
    a, b = (chance.standard_normal(shape, np.float32) for _ in range(2))
    row = chance.standard_normal(shape[1], np.float32)
    results = []
    for sideways in (True, False):
        if not sideways:
            monkeypatch.setattr(Search, "_join_readers", lambda self, value: None)
        function = Program(Source("siblings.ita", SIBLINGS), use_cache=False).entry()
        results.append(function(a, b, row))
        kernels = function.lower(a, b, row).compilation.kernels.kernels
        assert len(kernels) == (2 if sideways else 4)
    for one, other in zip(*results):
        np.testing.assert_array_equal(one.view(np.int32), other.view(np.int32))


# ---------------------------------------------------------------------- copies of products

BOTH_WAYS = {
    "rows and columns": "logsumexp(s, axis=1) - d) + sum(logsumexp(s, axis=0) - d",
    "a view of it": "logsumexp(s, axis=1) - d) + sum(logsumexp(transpose(s), axis=1) - d",
    "work on it": "logsumexp(s * 2.0, axis=1) - d) + sum(logsumexp(s * s, axis=0) - d",
}


@pytest.mark.parametrize(
    "losses", [pytest.param(n, marks=() if n == "rows and columns" else pytest.mark.slow) for n in BOTH_WAYS]
)
def test_a_product_that_is_too_large_is_computed_for_each_direction(losses: str) -> None:
    """Where it does not fit the caches, each direction is one sweep; where it does, it is stored."""
    text = f"""fn f(a: f32[40, 8], b: f32[40, 8]) -> f32 {{
        s = a @ transpose(b) / 0.3
        d[i] = s[i, i]
        return sum({BOTH_WAYS[losses]})
    }}"""
    for cache, stored in ((1 << 10, 0), (1 << 20, 1)):
        given = Context(replace(CPU, caches=(256, 512, cache)))
        module = Pipeline.parse(GRAPH_PASSES).run(program(text), given, verification("exec"))
        results = [v for n in kernels(module) for v in n.values]
        assert sum(v.tensor.elements.constant == 1600 for v in results) == stored
        told = [r for r in given.remarks.items if "is computed again in each sweep over it" in r.message]
        assert len(told) == 1 - stored and all(r.done and "6.2 KiB less memory" in r.message for r in told)


def test_a_product_that_is_needed_as_a_whole_is_computed_once() -> None:
    text = """fn f(a: f32[40, 8], b: f32[40, 8]) -> (f32[40, 40], f32) {
        s = a @ transpose(b)
        return s, sum(logsumexp(s, axis=1)) + sum(logsumexp(s, axis=0))
    }"""
    given = Context(replace(CPU, caches=(256, 512, 1 << 10)))
    module = Pipeline.parse(GRAPH_PASSES).run(program(text), given, verification("exec"))
    assert sum(n.name == "matmul" for n in module.graph.body.walk()) == 1
