"""Loading, signatures, sizes, imports, instances and spans."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from work import calls_made

from intarsia.dsl.library import Library, load
from intarsia.files import read_source
from intarsia.ir.dtypes import BF16, F32, I32
from intarsia.ir.errors import CompileError, Source
from intarsia.ir.graph import Parameter
from intarsia.ir.sizes import Size
from intarsia.ir.text import print_module
from intarsia.ir.types import ListType, TensorType

STACK = """
struct Linear(N, K) {
    weight: f32[N, K]
    bias: f32[N]
}
struct Layer(D, F) {
    up: Linear(F, D)
    down: Linear(D, F)
}
fn linear(x: f32[B, K], p: Linear(N, K)) -> f32[B, N] {
    return x @ transpose(p.weight) + p.bias
}
fn stack_of(x: f32[B, D], const layer: Layer(D, F)[L], scale: f32 = 1.0, axis = -1) -> f32[B, D] {
    return loop (h = x * scale) for i < L {
        yield h + linear(relu(linear(h, layer[i].up)), layer[i].down)
    }
}
"""


def library(text: str) -> Library:
    return load(Source("t.ita", text))


def failure(action: Callable[[], Any]) -> CompileError:
    with pytest.raises(CompileError) as caught:
        action()
    return caught.value


def test_the_entry_is_main_or_the_last_function() -> None:
    assert library(STACK).entry() == "stack_of"
    assert library("fn main(x: f32) { return x }\nfn other(x: f32) { return x }").entry() == "main"
    assert library(STACK).entry("linear") == "linear"
    assert "did you mean `linear`" in str(failure(lambda: library(STACK).entry("liner")))
    assert failure(library("const A = 1").entry).code == "E0316"


def test_signature() -> None:
    found = library(STACK).signature()
    assert [(p.label, p.parameter, p.type, p.const, p.default) for p in found.parameters] == [
        ("x", "x", "f32[B, D]", False, None),
        ("layer.up.weight", "layer", "list[L] f32[F, D]", True, None),
        ("layer.up.bias", "layer", "list[L] f32[F]", True, None),
        ("layer.down.weight", "layer", "list[L] f32[D, F]", True, None),
        ("layer.down.bias", "layer", "list[L] f32[D]", True, None),
        ("scale", "scale", "f32", False, "1.0"),
        ("axis", "axis", None, False, "-1"),
    ]
    assert found.dims == ("B", "D", "F", "L") and found.explicit_dims == () and found.result == "f32[B, D]"
    assert str(found).startswith("fn stack_of(x: f32[B, D]") and str(found).endswith("-> f32[B, D]")
    generic = library("fn f[T: float, N: dim](x: T[..S, 2*M]) -> T[N] { return zeros(T[N]) }").signature()
    assert generic.generics == {"T": "float"} and generic.dims == ("M", "N") and generic.explicit_dims == ("N",)


def test_sizes_of_arguments() -> None:
    types = {
        "x": TensorType.of(F32, 4, 8),
        "layer.up.weight": ListType(Size.of(3), TensorType.of(F32, 16, 8)),
        "layer.up.bias": ListType(Size.of(3), TensorType.of(F32, 16)),
    }
    assert library(STACK).bind_sizes(None, types) == {"B": 4, "D": 8, "L": 3, "F": 16}
    types["layer.up.bias"] = ListType(Size.of(3), TensorType.of(F32, 15))
    error = failure(lambda: library(STACK).bind_sizes(None, types))
    assert error.code == "E0307" and "F is 16" in str(error) and "15 in `layer.up.bias`" in str(error)
    types["layer.up.bias"] = ListType(Size.of(2), TensorType.of(F32, 16))
    assert "L is 3" in str(failure(lambda: library(STACK).bind_sizes(None, types)))


def test_sizes_of_compound_dimensions_and_packs() -> None:
    text = "fn f(x: f32[..S, 2*D], y: f32[N - 1], z: f32[D, N]) { return x }"
    types = {"x": TensorType.of(F32, 5, 6, 8), "y": TensorType.of(F32, 3), "z": TensorType.of(F32, 4, 4)}
    assert library(text).bind_sizes("f", types) == {"D": 4, "N": 4, "S_0": 5, "S_1": 6}
    assert library("fn f(x: f32[2*D]) { return x }").bind_sizes("f", {"x": TensorType.of(F32, 8)}) == {"D": 4}
    error = failure(lambda: library("fn f(x: f32[2*D]) { return x }").bind_sizes("f", {"x": TensorType.of(F32, 7)}))
    assert error.code == "E0308" and "not exact" in str(error)
    stated = library("fn f(x: f32[N]) { return x }")
    error = failure(lambda: stated.bind_sizes("f", {"x": TensorType.of(F32, 7)}, {"N": 8}))
    assert error.code == "E0307"


def test_a_graph_keeps_the_names_of_dimensions() -> None:
    module = library(STACK).build(types={"x": TensorType.of(F32, 4, 8)} | _layers())
    labels = [(p.label, str(p.type), p.constant) for p in module.graph.parameters]
    assert labels[:2] == [("x", "f32[B, D]", False), ("layer.up.weight", "list[L] f32[F, D]", True)]
    assert len(labels) == 5  # the parameters with defaults are left out
    assert module.graph.dimensions == ("B", "D", "F", "L")
    assert [p.label for p in library(STACK).build().graph.parameters][-1] == "scale"


def _layers() -> dict[str, TensorType | ListType]:
    shapes = {"up.weight": (16, 8), "up.bias": (16,), "down.weight": (8, 16), "down.bias": (8,)}
    return {f"layer.{n}": ListType(Size.of(3), TensorType.of(F32, *s)) for n, s in shapes.items()}


def test_generics_take_the_dtypes_of_the_arguments() -> None:
    text = "fn f[T: float](x: T[..S]) -> T[..S] { return gelu(x) }"
    module = library(text).build(types={"x": TensorType.of(BF16, 2, 3)})
    assert [str(r.type) for r in module.graph.results] == ["bf16[S_0, S_1]"]
    assert failure(lambda: library(text).build(types={"x": TensorType.of(I32, 2)})).code == "E0305"
    assert failure(lambda: library(text).build()).code == "E0309"


def test_a_missing_argument_is_named() -> None:
    error = failure(
        lambda: library("fn f(x: f32[N], y: f32[N]) { return x }").build(types={"x": TensorType.of(F32, 2)})
    )
    assert error.code == "E0315" and "`y` is not given" in str(error)
    error = failure(lambda: library("fn f(x: f32[N], axis) { return x }").build())
    assert error.code == "E0315" and "`axis`" in str(error)


def test_static_values_of_the_entry() -> None:
    text = "fn f(x: f32[N, M], axis, keep = false) { return sum(x, axis=axis, keepdims=keep) }"
    for axis, keep, expected in ((0, False, "f32[M]"), ((0, 1), True, "f32[1, 1]"), (None, False, "f32")):
        module = library(text).build(statics={"axis": axis, "keep": keep})
        assert [str(r.type) for r in module.graph.results] == [expected]


def test_a_static_condition_on_sizes_is_decided_by_them() -> None:
    text = "fn f(x: f32[N]) { if N % 2 == 0 { y = x } else { y = exp(x) }; return y }"
    assert library(text).check() == []
    assert len(library(text).build(dims={"N": 4}).graph.body.nodes) == 0
    assert len(library(text).build(dims={"N": 5}).graph.body.nodes) == 1
    assert failure(library(text).build).code == "E0502"


def test_checks_by_value_wait_for_the_sizes() -> None:
    text = "fn f(x: f32[E], y: f32[2*(E//2)]) -> f32[E] { return x + y }"
    assert library(text).check() == [] and library(text).build().graph.results
    assert library(text).build(dims={"E": 4}).graph.results
    assert failure(lambda: library(text).build(dims={"E": 5})).code == "E0204"
    text = "fn f(x: f32[N], y: f32[M]) { z[i < M] = x[i]; return z + y }"
    assert library(text).check() == [] and library(text).build(dims={"N": 4, "M": 4}).graph.results
    assert failure(lambda: library(text).build(dims={"N": 3, "M": 4})).code == "E0403"


def files(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.ita").write_text(text)
    return folder / "main.ita"


def loaded(path: Path) -> Library:
    return load(read_source(path))


def test_imports(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "acts.ita").write_text("const SLOPE = 0.5\nfn act(x: f32[N]) -> f32[N] { return x * SLOPE }")
    main = files(
        tmp_path,
        layers='import "lib/acts.ita"\nstruct P(N) { w: f32[N] }\nfn layer(x: f32[N], p: P(N)) { return act(x * p.w) }',
        main='import "layers.ita"\nimport "lib/acts.ita"\nfn main(x: f32[N], p: P(N)) { return act(layer(x, p)) }',
    )
    found = loaded(main)
    assert found.check() == [] and [f.source.name.rpartition("/")[2] for f in found.files] == [
        "main.ita", "layers.ita", "acts.ita",
    ]  # fmt: skip
    assert list(found.functions) == ["main", "layer", "act"] and len(found.build().graph.body.nodes) == 5


def test_an_own_function_hides_imported_and_built_in_ones(tmp_path: Path) -> None:
    main = files(
        tmp_path,
        other="fn act(x: f32[N]) { return exp(x) }\nfn relu(x: f32[N]) { return exp(x) }",
        main='import "other.ita"\nfn act(x: f32[N]) { return x }\nfn exp(x: f32[N]) { return x }\n'
        "fn main(x: f32[N]) { return act(exp(relu(x))) }",
    )
    assert [str(n.attributes) for n in loaded(main).build("main").graph.body.nodes] == ["{'function': 'exp'}"]


def test_wrong_imports(tmp_path: Path) -> None:
    cycle = files(tmp_path, main='import "b.ita"\nfn f(x: f32) { return x }', b='import "main.ita"')
    error = failure(lambda: loaded(cycle))
    assert (
        error.code == "E0320" and "main.ita imports b.ita imports main.ita" in str(error) and "b.ita:1:1" in str(error)
    )
    both = files(tmp_path, main='import "b.ita"\nimport "c.ita"', b="fn g(x: f32) { return x }", c="const g = 1")
    assert failure(lambda: loaded(both)).code == "E0314"
    wrong = files(tmp_path, main='import "b.ita"', b="fn g(x: f32) { return x +")
    assert "imported from here" in str(failure(lambda: loaded(wrong)))
    inside = files(
        tmp_path, main='import "b.ita"\nfn f(x: f32[N]) { return g(x) }', b="fn g(x: f32[N]) {\n    return x + y\n}"
    )
    messages = [d.render() for d in loaded(inside).check()]
    assert len(messages) == 1 and "b.ita:2:16" in messages[0]


def test_an_error_inside_a_generic_function_shows_the_call() -> None:
    text = "fn g(x: f32[N], axis) {\n    return sum(x, axis=axis)\n}\nfn f(x: f32[N]) {\n    return g(x, 3)\n}"
    (message,) = (d.render() for d in library(text).check())
    assert "t.ita:2:24" in message and "in the call of g from here" in message and "t.ita:5:12" in message


def test_nodes_have_the_line_of_the_user() -> None:
    text = "fn f(x: f32[N]) {\n    y = softmax(x)\n    return g(y)\n}\nfn g(x: f32[N]) {\n    return x * 2.0\n}"
    nodes = [n for n in library(text).build("f").graph.body.nodes if not isinstance(n, Parameter)]
    assert [n.span.line for n in nodes if n.span] == [2] * 5 + [6] * 2
    assert {s.source.name for s in nodes[0].more_spans} == {"prelude.ita"}


def test_the_same_program_gives_the_same_text() -> None:
    text = "fn f(x: f32[N, M]) { return attention(x, x, x), top_k(layer_norm(x, x[0], x[1]), 2)[1 - 1] }"
    text = text.replace(", top_k(layer_norm(x, x[0], x[1]), 2)[1 - 1]", ", layer_norm(x, x[0], x[1])")
    assert print_module(library(text).build()) == print_module(library(text).build())


def test_counters_and_indices_never_share_a_symbol() -> None:
    text = """fn f(x: f32[k, i]) {
        return loop (s = 0.0) for t < k {
            y = softmax(x)
            r = loop (u = s) for t2 < i { yield u + total(x, t2) }
            yield r + sum[a](y[a, 0]) * f32(t)
        }
    }
    fn total(x: f32[A, B], t: i64) -> f32 {
        z[t2] = x[t2, 0] * f32(t)
        return sum[k](z[k]) + sum(iota(A)) * 0 + f32(t)
    }""".replace(" + sum(iota(A)) * 0", "")
    module = library(text).build("f", dims={"k": 3, "i": 4})
    assert "t2_1" in print_module(module) and "k_1" in print_module(module)


def deep(action: Callable[[], None]) -> None:
    """Run in a thread with a large stack, as the driver does."""
    failed: list[BaseException] = []

    def target() -> None:
        try:
            action()
        except BaseException as error:
            failed.append(error)

    limit, size = sys.getrecursionlimit(), threading.stack_size(256 << 20)
    sys.setrecursionlimit(100_000)
    try:
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(limit)
        threading.stack_size(size)
    if failed:
        raise failed[0]


def test_deep_nesting() -> None:
    for text in ("exp(" * 190 + "x" + ")" * 190, "-" * 190 + "x", "(" * 90 + "x" + " + 1.0)" * 90):
        deep(lambda text=text: library(f"fn f(x: f32[N]) {{ return {text} }}").build())
        element = text.replace("exp", "abs").replace("x", "x[i]")
        deep(lambda text=element: library(f"fn f(x: f32[N]) {{ y[i < N] = {text}; return y }}").build())


@pytest.mark.slow
def test_work_grows_with_the_size_of_the_program() -> None:
    def work(count: int) -> int:
        body = "\n".join(f"    x{i} = x{i - 1} * 2.0 + relu(x{i - 1})" for i in range(1, count + 1))
        return calls_made(library(f"fn f(x0: f32[N]) {{\n{body}\n    return x{count}\n}}").build)

    work(50)
    assert work(1200) < 4.2 * work(300)


def test_values_at_the_edges_of_literals(run: Any) -> None:
    x = np.array([1, 2], np.int8)
    np.testing.assert_array_equal(run("fn f(x: i8[N]) { return x + 127, x * -128, maximum(x, 0x7F) }", x)[0], x + 127)
    assert failure(lambda: library("fn f(x: i8[N]) { return x + 128 }").build()).code == "E0208"
    assert failure(lambda: library("fn f(x: u8[N]) { return x - -1 }").build()).code == "E0208"
    assert failure(lambda: library("fn f(x: f16[N]) { return x * 65520.0 }").build()).code == "E0208"
    y = np.array([1, 2], np.float16)
    assert run("fn f(x: f16[N]) { return x * inf + 2 }", y).dtype == np.float16
