"""Products whose rows are reduced: attention in any form and contrastive losses are one kernel of little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
from _pytest.mark import ParameterSet

from intarsia.backends.cpu.compile import compile_kernel, host_target
from intarsia.backends.cpu.compile import load as load_code
from intarsia.driver import Compilation, Options
from intarsia.dsl.library import load
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.kernel import Alloc, For, Kernel, Put, Statement, walk
from intarsia.ir.kernel_counts import count_operations
from intarsia.ir.kernel_interpreter import run
from intarsia.ir.kernel_verifier import unproved_accesses, verify_kernel
from intarsia.ir.scalar import loads
from intarsia.ir.target import TARGETS
from intarsia.passes.schedule.default import build_schedule
from intarsia.passes.schedule.tree import rewrite
from intarsia.runtime.native import NativeFunction, native_symbols

TARGET = "cpu:x86-avx512"


def compilation(text: str) -> Compilation:
    library = load(Source("program.ita", text))
    return Compilation(library.build("f"), {}, Options(target=TARGET))


def one_kernel(text: str) -> Kernel:
    """The scheduled kernel of a program that has to be one."""
    (kernel,) = compilation(text).scheduled.kernels
    verify_kernel(kernel)
    assert not unproved_accesses(kernel)
    return kernel


def draw(kernel: Kernel) -> list[Array]:
    random = np.random.default_rng(0)
    return [
        random.standard_normal([int(e) for e in b.shape]).astype(np.float32)
        for b in kernel.parameters
        if b.role == "in"
    ]


def computed(kernel: Kernel, inputs: list[Array]) -> Array:
    (out,) = kernel.outputs
    result = np.full([int(e) for e in out.shape], np.nan, np.float32)
    names = [b.name for b in kernel.inputs]
    with np.errstate(all="ignore"):
        run(kernel, {**dict(zip(names, inputs)), out.name: result}, {})
    return result


def attention(rows: int, keys: int, depth: int, score: str, more: str = "", heads: int = 2, shared: int = 2) -> str:
    """`score` says what a score is, with DOT for the product; `shared` heads of keys serve all heads."""
    head = "h" if heads == shared else f"h * {shared} // {heads}"
    product = f"sum[d](q[h, i, d] * k[{head}, j, d])"
    return f"""fn f(q: f32[{heads}, {rows}, {depth}], k: f32[{shared}, {keys}, {depth}],
                    v: f32[{shared}, {keys}, {depth}]{more}) -> f32[{heads}, {rows}, {depth}] {{
        s[h, i, j] = {score.replace("DOT", product)}
        p = softmax(s, axis=-1)
        return tensor[h, i, d](sum[j](p[h, i, j] * v[{head}, j, d]))
    }}"""


def expected(q: Array, k: Array, v: Array, score: Callable[[Array, Array, Array], Array]) -> Array:
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, len(q) // len(x), 0) for x in (k, v))
    i, j = np.arange(q.shape[1])[:, None], np.arange(k.shape[1])
    s = score(q @ k.swapaxes(1, 2), i, j)
    e = np.exp(s - s.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True) @ v)


SCORES: dict[str, tuple[str, Callable[[Array, Array, Array], Array]]] = {
    "scaled": ("DOT / 8.0", lambda s, i, j: s / 8),
    "causal": ("where(j <= i, DOT * 0.2, -inf)", lambda s, i, j: np.where(j <= i, s * 0.2, -np.inf)),
    "window": (
        "where(j <= i and i < j + 20, DOT, -inf)",
        lambda s, i, j: np.where((j <= i) & (i < j + 20), s, -np.inf),
    ),
    "alibi": ("DOT / 8.0 - f32(abs(i - j)) * 0.1", lambda s, i, j: s / 8 - abs(i - j) * 0.1),
    "capped": ("tanh(DOT / 50.0) * 50.0", lambda s, i, j: np.tanh(s / 50) * 50),
}


def quickly(names: Iterable[str], *few: str) -> list[ParameterSet]:
    """Parameters, of which all but a few are for the slow run."""
    return [pytest.param(n, marks=() if n in few else pytest.mark.slow) for n in names]


@pytest.mark.parametrize("score", quickly(SCORES, "scaled", "window", "alibi"))
@pytest.mark.parametrize(
    "shape",
    [(70, 100, 20), *(pytest.param(s, marks=pytest.mark.slow) for s in ((64, 64, 16), (130, 530, 80)))],
    ids=str,
)
def test_attention_is_one_kernel(shape: tuple[int, int, int], score: str) -> None:
    text, reference = SCORES[score]
    kernel = one_kernel(attention(*shape, text))
    inputs = draw(kernel)
    np.testing.assert_allclose(computed(kernel, inputs), expected(*inputs, reference), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["lengths", *(pytest.param(k, marks=pytest.mark.slow) for k in ("", "special"))])
def test_few_queries_share_their_keys_in_parts(kind: str) -> None:
    """Of 1024 keys, the last one shorter; some rows see no key of a part, one none at all."""
    score = "where(j < n[i], DOT * 0.2, -inf)" if kind == "lengths" else "DOT * 0.2"
    text = attention(5, 2100, 16, score, ", n: i64[5]" if kind == "lengths" else "", heads=1, shared=1)
    (naive,) = compilation(text).kernels.kernels
    b = build_schedule(naive, replace(TARGETS[TARGET], cores=4))
    assert "parts t_max 1024" in str(b.schedule) and "parallel" in str(b.schedule)
    verify_kernel(b.kernel)
    assert not unproved_accesses(b.kernel)
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((1, n, 16)).astype(np.float32) for n in (5, 2100, 2100))
    lengths = np.array([0, 7, 1024, 2049, 2100])
    if kind == "special":
        k[0, 2099, 3], v[0, 1500, 2], v[0, 3, 5] = np.inf, np.nan, -np.inf

    def scores(s: Array, i: Array, j: Array) -> Array:
        return np.asarray(np.where(j < lengths[i], s * 0.2, -np.inf) if kind == "lengths" else s * 0.2)

    with np.errstate(all="ignore"):
        reference = expected(q, k, v, scores)
    inputs = {"q": q, "k": k, "v": v, "n": lengths}
    actual = computed(b.kernel, [inputs[x.name] for x in b.kernel.inputs])
    np.testing.assert_allclose(actual, reference, rtol=1e-4, atol=1e-5)


def test_odd_rows_keys_and_columns_mask_little_but_the_ends() -> None:
    """Nearly all work is done without a mask on rows or keys, also where no tile has a whole number of vectors."""
    kernel = one_kernel(attention(1023, 1023, 72, "DOT / 8.0", heads=1, shared=1))
    lanes = {s.axis for s, _ in walk(kernel.body) if isinstance(s, For) and s.kind == "lane"}

    def drop(statement: Statement) -> tuple[()] | None:
        if not isinstance(statement, Put):
            return None
        masks = [*statement.mask, *(m for x in loads(statement.value) for m in x.mask)]
        return () if any(not m.symbols & lanes for m in masks) else None

    free = kernel.with_body(rewrite(kernel.body, drop))
    assert count_operations(free, {}) > 0.97 * count_operations(kernel, {})


def panels(kernel: Kernel) -> int:
    """The panels of keys that all blocks of rows go through, for each head."""
    sweep, around = next((s, a) for s, a in walk(kernel.body) if isinstance(s, For) and s.step > 1)
    rows = around[-1]
    axes = [{rows.axis: n} for n in range(int(rows.lower), int(rows.upper))]
    return sum(sweep.upper.evaluate(a) - sweep.lower.evaluate(a) for a in axes)


BANDS: dict[str, tuple[str, Callable[[Array, Array], Array], int]] = {
    "causal": ("j <= i", lambda i, j: j <= i, 36),
    "anticausal": ("j >= i", lambda i, j: j >= i, 36),
    "window": ("j <= i and i < j + 20", lambda i, j: (j <= i) & (i < j + 20), 15),
    "difference": ("j <= i and i - j < 20", lambda i, j: (j <= i) & (i < j + 20), 15),
    "band": ("abs(i - j) <= 20", lambda i, j: abs(i - j) <= 20, 22),
    "not": ("not (j > i or i - j >= 20)", lambda i, j: (j <= i) & (i < j + 20), 15),
    "padding": ("j <= i and b[j] > 0.0", lambda i, j: (j <= i) & (j % 3 != 1), 36),
}
"""The condition under which a score counts, and the panels of 32 keys that 256 rows in blocks of 32 need, of 64."""


SLOW_BANDS = ("anticausal", "difference", "not")
TURNED = ("window", "padding")


@pytest.mark.parametrize(
    "band, turned",
    [
        *(pytest.param(band, False, marks=pytest.mark.slow if band in SLOW_BANDS else ()) for band in BANDS),
        *((band, True) for band in TURNED),
    ],
)
@pytest.mark.slow
def test_blocks_without_scores_are_left_out(band: str, turned: bool) -> None:
    """However the condition is written, also with one that depends on data."""
    condition, reference, most = BANDS[band]
    score = f"where(not ({condition}), -inf, DOT)" if turned else f"where({condition}, DOT, -inf)"
    more = ", b: f32[256]" if "b[" in condition else ""
    kernel = one_kernel(attention(256, 256, 16, score, more, heads=1, shared=1))
    assert panels(kernel) == most < 8 * 8
    by_name = dict(zip((b.name for b in kernel.inputs), draw(kernel)))
    inputs = [by_name[n] for n in ("q", "k", "v")]
    by_name["b"] = np.where(np.arange(256) % 3 != 1, 1.0, -1.0).astype(np.float32)
    np.testing.assert_allclose(
        computed(kernel, [by_name[b.name] for b in kernel.inputs]),
        expected(*inputs, lambda s, i, j: np.asarray(np.where(reference(i, j), s, -np.inf))),
        rtol=1e-4,
        atol=1e-5,
    )


MASKED = "where(j <= i, DOT, -inf)"


@pytest.mark.parametrize("score", quickly(["DOT * 0.25", MASKED], "DOT * 0.25"))
def test_nan_in_a_score_reaches_all_of_its_row(score: str) -> None:
    """The maximum need not keep it: on x86 it is one instruction then."""
    kernel = one_kernel(attention(70, 70, 16, score))
    maxima = [s for s, _ in walk(kernel.body) if isinstance(s, Put) and s.operator == "max="]
    assert maxima and all(m.numbers for m in maxima)
    compiled = compile_kernel(kernel, host_target())
    loaded = load_code(compiled.object_code, compiled.entry, native_symbols())
    function = NativeFunction(loaded.address, 3, 1, owner=loaded)
    for key in (0, 17, 33, 69):
        q, k, v = draw(kernel)
        k[0, key] = k[1, key, 0] = q[1, 5] = np.nan
        q[1, 40] = np.inf
        result = np.zeros_like(q)
        assert function.run([q, k, v], [result]) is None
        with np.errstate(all="ignore"):
            wanted = expected(q, k, v, lambda s, i, j: s * 0.25 if "0.25" in score else np.where(j <= i, s, -np.inf))
        np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-4)


def test_a_maximum_that_is_needed_keeps_nan() -> None:
    kernel = one_kernel(LOSSES["contrastive"])
    assert not any(isinstance(s, Put) and s.numbers for s, _ in walk(kernel.body))


def test_heads_may_share_keys() -> None:
    kernel = one_kernel(attention(40, 70, 32, "DOT / 8.0", heads=4, shared=2))
    inputs = draw(kernel)
    np.testing.assert_allclose(computed(kernel, inputs), expected(*inputs, lambda s, i, j: s / 8), rtol=1e-4, atol=1e-5)


def test_a_bias_may_be_added() -> None:
    kernel = one_kernel(attention(40, 70, 32, "DOT / 8.0 + b[i, j]", ", b: f32[40, 70]"))
    by_name = dict(zip((b.name for b in kernel.inputs), draw(kernel)))
    bias = by_name.pop("b")
    inputs = [by_name[n] for n in ("q", "k", "v")]
    given = [{**by_name, "b": bias}[b.name] for b in kernel.inputs]
    np.testing.assert_allclose(
        computed(kernel, given), expected(*inputs, lambda s, i, j: s / 8 + bias), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("options", quickly(["", ", causal=true", ", scale=0.3"], ", causal=true"))
def test_the_function_of_the_library_is_one_kernel(options: str) -> None:
    kind = "f32[2, 3, 40, 16]"
    text = f"fn f(q: {kind}, k: {kind}, v: {kind}) -> {kind} {{ return attention(q, k, v{options}) }}"
    kernel = one_kernel(text)
    inputs = [x.reshape(6, 40, 16) for x in draw(kernel)]
    scale = 0.3 if "scale" in options else 0.25
    actual = computed(kernel, [x.reshape(2, 3, 40, 16) for x in inputs]).reshape(6, 40, 16)

    def score(s: Array, i: Array, j: Array) -> Array:
        return np.asarray(np.where(j <= i, s * scale, -np.inf) if "causal" in options else s * scale)

    np.testing.assert_allclose(actual, expected(*inputs, score), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_attention_of_halves_is_one_kernel(dtype: str) -> None:
    """Nothing is rounded between the scores and the result, which would need the finished sum of a row."""
    kind = f"{dtype}[2, 40, 16]"
    one_kernel(f"fn f(q: {kind}, k: {kind}, v: {kind}) -> {kind} {{ return attention(q, k, v, causal=true) }}")


def test_a_contrastive_loss_is_one_kernel() -> None:
    kernel = one_kernel(
        "fn f(a: f32[70, 24], b: f32[90, 24]) -> f32[70] { return logsumexp(a @ transpose(b) / 0.3, axis=-1) }"
    )
    by_name = dict(zip((b.name for b in kernel.inputs), draw(kernel)))
    scores = by_name["a"].astype(np.float64) @ by_name["b"].T / 0.3
    top = scores.max(-1)
    actual = computed(kernel, [by_name[b.name] for b in kernel.inputs])
    np.testing.assert_allclose(
        actual[:, 0] if actual.ndim > 1 else actual, np.log(np.exp(scores - top[:, None]).sum(-1)) + top, rtol=1e-5
    )


LOSSES = {
    "contrastive": """fn f(a: f32[70, 24], b: f32[70, 24]) -> f32[70] {
        s[i, j] = sum[d](a[i, d] * b[j, d]) / 0.3
        l = logsumexp(s, axis=-1)
        return tensor[i](l[i] - s[i, i])
    }""",
    "cross entropy": """fn f(a: f32[70, 24], b: f32[300, 24], t: i32[70]) -> f32[70] {
        s[i, j] = sum[d](a[i, d] * b[j, d]) / 0.3
        l = logsumexp(s, axis=-1)
        return tensor[i](l[i] - s[i, t[i]])
    }""",
}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_that_read_one_score_of_a_row_are_one_kernel(loss: str) -> None:
    """The score is computed twice; a target out of range means the nearest class."""
    kernel = one_kernel(LOSSES[loss])
    random = np.random.default_rng(0)
    given = {b.name: random.standard_normal([int(e) for e in b.shape]).astype(np.float32) for b in kernel.inputs}
    targets = np.arange(70)
    if "t" in given:
        targets = random.integers(-5, 305, 70)
        given["t"] = targets.astype(np.int32)
    scores = given["a"].astype(np.float64) @ given["b"].T / 0.3
    top = scores.max(-1)
    own = scores[np.arange(70), np.clip(targets, 0, scores.shape[1] - 1)]
    np.testing.assert_allclose(
        computed(kernel, [given[b.name] for b in kernel.inputs]),
        np.log(np.exp(scores - top[:, None]).sum(-1)) + top - own,
        rtol=1e-4,
        atol=1e-5,
    )
    largest = max(int(np.prod([int(e) for e in s.buffer.shape])) for s, _ in walk(kernel.body) if isinstance(s, Alloc))
    assert largest < 70 * 300 or loss == "contrastive"


@pytest.mark.parametrize("score", quickly(["scaled", "causal"], "causal"))
def test_memory_does_not_grow_with_the_square(score: str) -> None:
    """What is allocated for one head: the keys as panels, and blocks of a fixed size."""

    def largest(length: int) -> int:
        done = compilation(attention(length, length, 64, SCORES[score][0]))
        (kernel,) = done.scheduled.kernels
        shapes = [s.buffer.shape for s, _ in walk(kernel.body) if isinstance(s, Alloc)]
        return max(int(np.prod([int(e) for e in shape])) for shape in shapes)

    assert largest(8192) == 8192 * 64
    assert largest(16384) == 16384 * 64


def test_weights_that_are_needed_are_kept() -> None:
    """The program returns the weights too: nothing can be left out."""
    text = """fn f(q: f32[64, 16], k: f32[64, 16], v: f32[64, 16]) -> (f32[64, 16], f32[64, 64]) {
        p = softmax(q @ transpose(k), axis=-1)
        return p @ v, p
    }"""
    assert len(compilation(text).scheduled.kernels) == 3


SWEEPS: dict[str, tuple[str, Callable[[Array, Array, Array], Array]]] = {
    "without softmax": (
        "tensor[i, e](sum[j](maximum(sum[d](x[i, d] * y[j, d]), 0.0) * v[j, e]))",
        lambda x, y, v: np.maximum(x @ y.T, 0) @ v,
    ),
    "masked": (
        "tensor[i, e](sum[j](where(j <= i, sum[d](x[i, d] * y[j, d]), 0.0) * v[j, e]))",
        lambda x, y, v: np.tril(x @ y.T) @ v,
    ),
    "kernel density": (
        "tensor[i, e](sum[j](exp(-sum[d]((x[i, d] - y[j, d]) * (x[i, d] - y[j, d]))) * v[j, e]))",
        lambda x, y, v: np.exp(-((x[:, None] - y) ** 2).sum(-1)) @ v,
    ),
    "nearest": (
        "tensor[i, e](min[j](sum[d]((x[i, d] - y[j, d]) * (x[i, d] - y[j, d]))) + v[i, e])",
        lambda x, y, v: ((x[:, None] - y) ** 2).sum(-1).min(-1)[:, None] + v,
    ),
}


@pytest.mark.parametrize("name", quickly(SWEEPS, "without softmax", "nearest"))
def test_what_is_dear_to_keep_is_swept(name: str) -> None:
    """Rows of a large product of few summands are reduced, without any maximum: no element of it is stored."""
    text, reference = SWEEPS[name]
    kernel = one_kernel(f"fn f(x: f32[530, 5], y: f32[530, 5], v: f32[530, 3]) -> f32[530, 3] {{ return {text} }}")
    by_name = dict(zip((b.name for b in kernel.inputs), draw(kernel)))
    wanted = reference(*(by_name[n].astype(np.float64) for n in "xyv"))
    np.testing.assert_allclose(computed(kernel, list(by_name.values())), wanted, rtol=1e-4, atol=1e-4)


def test_a_product_of_one_summand_is_none() -> None:
    text = "fn f(x: f32[1000, 1], y: f32[1000, 1]) -> f32[1000, 1] { return relu(x @ transpose(y)) @ y }"
    assert compilation(text).scheduled.kernels


@pytest.mark.parametrize("depth", [5, 300])
def test_what_is_cheap_to_keep_is_stored(depth: int) -> None:
    """A product takes longer than to write it where it has many summands, or few elements."""
    rows = 1000 if depth > 200 else 64
    kind = f"f32[{rows}, {depth}]"
    text = f"fn f(x: {kind}, y: {kind}, v: {kind}) -> {kind} {{ return relu(x @ transpose(y)) @ v }}"
    assert len(compilation(text).scheduled.kernels) == 2


def test_two_losses_of_one_batch_are_a_sweep_each() -> None:
    """What both need, the scores of the pairs, does not tie them together; neither keeps its scores."""
    text = """fn f(a: f32[600, 24], b: f32[600, 24]) -> f32 {
      s = a @ transpose(b)
      t = b @ transpose(a)
      d[i] = s[i, i]
      return mean(logsumexp(s, axis=1) - d) + mean(logsumexp(t, axis=1) - d)
    }"""
    done = compilation(text)
    assert sum("online" in steps for steps in done.schedules.values()) == 2
    assert int(done.plan.workspace_bytes) < 600 * 600
