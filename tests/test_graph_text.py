"""The text of modules: what prints reads back, and what does not read says why."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.ir.dtypes import BF16, BOOL, F32, F64, I8, I32, I64, U64, DType, dtype
from intarsia.ir.errors import CompileError, Source
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.graph import OPS, Module
from intarsia.ir.interpreter import evaluate
from intarsia.ir.op_table import markdown
from intarsia.ir.random_graphs import random_inputs, random_module, random_sizes
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, Index, Load, mask_text
from intarsia.ir.scalar_text import ScalarReader
from intarsia.ir.sizes import Size, maximum, minimum
from intarsia.ir.text import print_module, read_module
from intarsia.ir.verifier import require_well_formed, verify_module

BUFFERS = {"x": F32, "col": I32, "start": I64, "%3#1": F64, "%p.up": BF16, "flag": BOOL, "q": I8}


def read(text: str) -> Module:
    return read_module(Source("test.ir", text))


def read_expression(text: str) -> Expr:
    reader = ScalarReader(Source("test.ir", text), BUFFERS)
    found = reader.expression()
    assert reader.token.kind == "end"
    return found


# ---------------------------------------------------------------------- sizes and expressions

names = st.sampled_from(["i", "j", "k", "N", "i.1"])


def sizes(leaves: st.SearchStrategy[Size]) -> st.SearchStrategy[Size]:
    def grow(inner: st.SearchStrategy[Size]) -> st.SearchStrategy[Size]:
        pairs = st.tuples(inner, inner)
        return st.one_of(
            pairs.map(lambda p: p[0] + p[1]),
            pairs.map(lambda p: p[0] - p[1]),
            pairs.map(lambda p: p[0] * p[1]),
            pairs.map(lambda p: p[0] // p[1]),
            pairs.map(lambda p: p[0] % p[1]),
            pairs.map(lambda p: minimum(*p)),
            pairs.map(lambda p: maximum(*p)),
        )

    return st.recursive(leaves, grow, max_leaves=6)


plain_sizes = sizes(st.one_of(names.map(Size.of), st.integers(-9, 99).map(Size.of)))
integers = st.one_of(
    plain_sizes.map(lambda s: Load("col", (s,), I32)), plain_sizes.map(lambda s: Load("start", (s, s + 1), I64))
)
all_sizes = sizes(st.one_of(names.map(Size.of), st.integers(-9, 99).map(Size.of), integers.map(Size.opaque)))
masks = st.lists(all_sizes, min_size=1, max_size=3).map(tuple)


def literals(t: DType) -> st.SearchStrategy[Expr]:
    if t.is_float:
        return st.floats(width=32).map(lambda v: Const(v, t))
    if t == BOOL:
        return st.booleans().map(lambda v: Const(v, t))
    return st.integers(int(t.least), int(t.greatest)).map(lambda v: Const(v, t))


def expressions(t: DType, depth: int = 2) -> st.SearchStrategy[Expr]:
    """Expressions of a dtype, of every kind of node."""
    leaves = [literals(t)]
    for name, own in BUFFERS.items():
        if own == t:
            leaves.append(st.lists(all_sizes, max_size=2).map(lambda i, name=name: Load(name, tuple(i), t)))
            leaves.append(
                st.tuples(all_sizes, masks, st.none() | literals(t)).map(
                    lambda p, name=name: Load(name, (p[0],), t, p[1], p[2])
                )
            )
    if t == I64:
        leaves.append(all_sizes.map(Index))
    if depth == 0:
        return st.one_of(leaves)
    same = st.deferred(lambda: expressions(t, depth - 1))
    kinds: list[st.SearchStrategy[Expr]] = list(leaves)
    kinds.append(
        st.sampled_from([F32, F64, I64, BOOL, I8]).flatmap(lambda s: expressions(s, 0)).map(lambda e: Cast(t, e))
    )
    for name, function in FUNCTIONS.items():
        if function.arity <= 2 and function.accepts(t) and function.result_dtype is None:
            kinds.append(st.tuples(*[same] * function.arity).map(lambda a, name=name: Apply(name, a)))
    if t == BOOL:
        either = st.sampled_from([F32, I64, I8])
        kinds.append(
            either.flatmap(lambda s: st.tuples(*[expressions(s, depth - 1)] * 2)).map(lambda a: Apply("lt", a))
        )
    kinds.append(st.tuples(st.deferred(lambda: expressions(BOOL, 0)), same, same).map(lambda a: Apply("where", a)))
    if t == U64:
        kinds.append(st.deferred(lambda: expressions(F64, depth - 1)).map(lambda e: Bitcast(U64, e)))
    return st.one_of(kinds)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([F32, F64, BF16, I64, I32, I8, U64, BOOL]).flatmap(expressions))
def test_expressions_read_back(e: Expr) -> None:
    assert read_expression(str(e)) == e


@settings(max_examples=40, deadline=None)
@given(all_sizes, masks)
def test_sizes_and_masks_read_back(size: Size, mask: tuple[Size, ...]) -> None:
    assert ScalarReader(Source("test.ir", str(size)), BUFFERS).size() == size
    assert ScalarReader(Source("test.ir", mask_text(mask)), BUFFERS).mask() == mask


@pytest.mark.parametrize(
    "text",
    [
        "x[i + 1, 2 * j] * 2.0 + exp(x[i, j]) / -1.5",
        "(x[i] if i + 1 < n and 0 < j else 3.0)",
        "f32(%p.up[4 * i.1])",
        "x[col[p] + 1, {col[p] * col[q]}]",
        "x[i] - (x[j] - x[k])",
        "where(index(i + 1) < 5 and flag[], x[i // 64 % 12], -inf)",
        "bitcast(f64:0.5, i64)",
        "q[] + i8:-3",
        "1e-05 * x[]",
        "u64:18446744073709551615",
    ],
)
def test_the_form_of_expressions(text: str) -> None:
    assert str(read_expression(text)).replace("(i // 64) % 12", "i // 64 % 12") == text


# ---------------------------------------------------------------------- modules

WHOLE = """intarsia.ir 1
target cpu:x86-avx2
mesh pod(data=2, model=4)

func @whole[N, K](%x: f32[N@data, K@(z:(2)2, ?)]{sum: x}, const %p.layer.w: list[3] f32[K, 4], %bin: i64[N]) {
  %0 = constant -0.0 : f32
  %1 = broadcast_to %0 : f32[N, K]
  %2 = compute [i < N, j < 4] sum[k < K](%x[i, k] * %p.layer.w[1, k, j]) : f32[N, 4]
  %3 = compute [i < N] max[k in max(0, i - 2)..min(K, %bin[i])](f64(%x[i, k])) : f64[N]
  %4 = update %1[%bin[i], {%bin[i] * %bin[i]}] max= [i in 1..N, j < K] (%1[i - 1, j] + %x[i, j]) : f32[N, K]
  %5:3 = scan t in 0..%bin[0] (%h = %4, %s = %0) {
    %6 = list_get %p.layer.w[t] : f32[K, 4]
    %7 = pad %6 before=(0, 1) after=(N, 0) literal=nan : f32[K + N, 5]
    %8 = exp %s : f32
    yield %h, %8
    emit %7
  } : f32[N, K], f32, f32[%bin[0], K + N, 5]
  %9:2 = fused {
    %10 = reduce %5#0 combiner=max axes=(0,) keepdims=true : f32[1, K]
    %11 = where %12, %10, %10 : f32[1, K]
    yield %10, %11
  } : f32[1, K], f32[1, K]
  %13:2 = call @whole_0(%9#1, %p.layer.w)[N, 2 * K] : f32[4], i4[N]
  return %13#0, %2, %3
}

kernel whole_0(a: f32[1, K], w: list[3] f32[K, 4], out y: f32[4], out z: i4[N])[sizes N, K] {
  for i in 0..4 {
    y[i] = a[0, 0] * 2.0
  }
}
"""


def test_a_module_with_everything_reads_back() -> None:
    text = WHOLE.replace("    %11 = where %12, %10, %10 : f32[1, K]\n", "    %11 = exp %10 : f32[1, K]\n")
    text = text.replace("%13", "%12").replace("0..%bin[0]", "0..5").replace("f32[%bin[0], K", "f32[5, K")
    module = read(text)
    assert print_module(module) == text
    assert module.graph.parameters[1].constant and module.header == ("target cpu:x86-avx2", "mesh pod(data=2, model=4)")
    assert module.kernels[0].name == "whole_0"
    assert print_module(read(text.split("\n\n", 1)[1])).split("\n\n", 1)[1] == text.split("\n\n", 1)[1]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6))
def test_random_modules_read_back(seed: int) -> None:
    module, sizes = random_module(seed), random_sizes(seed)
    text = print_module(module)
    again = read(text)
    assert print_module(again) == text
    inputs = random_inputs(module, seed, sizes)
    for a, b in zip(evaluate(module, inputs, sizes), evaluate(again, inputs, sizes)):
        assert a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind not in "iub")


def test_places_in_the_user_s_text_are_kept_on_demand() -> None:
    text = """intarsia.ir 1

func @f(%x: f32[4] loc("mlp.ita":3:6)) {
  %0 = exp %x : f32[4] loc("mlp.ita":4:17, "lib.ita":9:1)
  return %0
}
"""
    module = read(text)
    assert print_module(module, debug_info=True) == text
    assert "loc" not in print_module(module)
    assert str(module.graph.body.nodes[0].span) == "mlp.ita:4:17"


PAGE = (Path(__file__).parent.parent / "docs" / "graph-ir.md").read_text("utf-8")


@pytest.mark.parametrize("block", re.findall(r"```ir\n(.*?)```", PAGE, re.DOTALL))
def test_the_examples_of_the_page_read_back(block: str) -> None:
    printed = print_module(read(block))
    verify_module(read(block))
    assert printed.split("\n\n", 1)[1] == block.removeprefix("intarsia.ir 1\n\n")


def test_the_tables_of_the_page_are_those_of_the_ops() -> None:
    assert PAGE.endswith("<!-- ops -->\n\n" + markdown()), "write markdown() of ir/op_table.py at the end of the page"


@pytest.mark.parametrize(
    "page", sorted((Path(__file__).parent.parent / "docs" / "errors").glob("E15*.md")), ids=lambda p: p.stem
)
def test_the_error_pages_show_what_happens(page: Path) -> None:
    example, message = re.findall(r"```text\n(.*?)```", page.read_text("utf-8"), re.DOTALL)[:2]
    with pytest.raises(CompileError) as error:
        require_well_formed(read_module(Source("example.ir", example)))
    assert str(error.value) == message.rstrip() and message.startswith(f"error[{page.stem}]")


def test_labels_that_clash_or_are_no_names_become_others() -> None:
    text = "func @f(%x: f32) { %0 = loop t in 0..3 (%x_1 = %x) { yield %x_1 } : f32 return %0 }"
    module = read(text)
    loop = module.graph.body.nodes[0]
    assert print_module(read(print_module(module))) == print_module(module)
    assert loop.regions[0].parameters[0].label == "x_1"


def test_no_op_is_named_like_a_function() -> None:
    assert not OPS.keys() & FUNCTIONS.keys()
    assert not any(dtype(name) for name in FUNCTIONS)


def test_operands_of_a_space_are_put_in_the_order_of_reading() -> None:
    text = "func @f(%x: f32[4], %y: f32[4]) { %0 = compute [i < 4] (%y[i] - %x[i] + %y[0]) : f32[4] return %0 }"
    node = read(text).graph.body.nodes[0]
    assert [v.node.label for v in node.operands] == ["y", "x"]  # type: ignore[attr-defined]
    merged = node.with_operands({node.operands[0]: node.operands[1]})
    assert len(merged.operands) == 1 and str(merged.attributes["definition"].body) == "a0[i] - a0[i] + a0[0]"


# ---------------------------------------------------------------------- mistakes


def body(lines: str) -> str:
    return f"func @f(%x: f32[4], %w: list[2] f32[4]) {{\n{lines}\nreturn %x\n}}"


MISTAKES = {
    "character": ("func $f", "E1501", "no token begins with '$'"),
    "bracket": (body("%0 = compute [i < 4] (%x[i) : f32[4]"), "E1502", "expected ']', found ')'"),
    "end": ("func @f(%x: f32[4]", "E1502", "expected ')', found the end of the text"),
    "op": (body("%0 = expp %x : f32[4]"), "E1503", "did you mean exp"),
    "value": (body("%0 = exp %y : f32[4]"), "E1503", "nothing is named '%y'"),
    "load": (body("%0 = compute [i < 4] (%y[i]) : f32[4]"), "E1503", "nothing is named '%y'"),
    "dtype": ("func @f(%x: f33[4]) { return %x }", "E1503", "no element type is named 'f33'"),
    "function": (body("%0 = compute [i < 4] (ex(%x[i])) : f32[4]"), "E1503", "no function is named 'ex'"),
    "reduction": (body("%0 = compute [] summ[i < 4](%x[i]) : f32"), "E1503", "did you mean sum"),
    "dtypes": (body("%0 = compute [i < 4] (%x[i] + 1) : f32[4]"), "E1504", "add of f32 and i64"),
    "subscript": (body("%0 = compute [i < 4] (%x[%x[i]]) : f32[4]"), "E1504", "a subscript or bound is an integer"),
    "chain": (body("%0 = compute [i < 4] (1 < 2 < 3) : bool[4]"), "E1502", "comparisons do not chain"),
    "axis twice": (body("%0 = compute [i < 4, i < 4] (1.0) : f32[4, 4]"), "E1504", "'i' occurs twice"),
    "value twice": (body("%x = exp %x : f32[4]"), "E1504", "'%x' has a value already"),
    "result type": (body("%0 = exp %x : f32[5]"), "E1505", "makes f32[4], the text says f32[5]"),
    "result count": (body("%0:2 = exp %x : f32[4]"), "E1505", "has 1 results, the text says 2"),
    "version": ("intarsia.ir 9\nfunc @f() { return }", "E1506", "reads version 1"),
    "missing operand": (body("%0 = matmul %x : f32"), "E1507", "lacks its operand 'rhs'"),
    "operand too many": (body("%0 = transpose %x, %x axes=(0,) : f32[4]"), "E1507", "too many"),
    "missing attribute": (body("%0 = reduce %x axes=(0,) : f32"), "E1507", "reduce lacks combiner"),
    "unknown attribute": (body("%0 = reduce %x axis=(0,) combiner=sum : f32"), "E1507", "no attribute 'axis'"),
    "missing type": (body("%0 = constant 1.0"), "E1507", "lacks its type"),
    "type of the op": (body("%0 = reshape %x : f32[5]"), "E0205", "4 elements do not make 5"),
    "kernel": ("func @f() { return }\nkernel k(a: f32[4]) { b[0] = 1.0 }", "E1503", "nothing is named 'b'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_told_with_their_place(case: str) -> None:
    text, code, message = MISTAKES[case]
    with pytest.raises(CompileError) as error:
        read(text)
    assert error.value.code == code and message in str(error.value)
    assert "test.ir:" in str(error.value) and "^" in str(error.value)
