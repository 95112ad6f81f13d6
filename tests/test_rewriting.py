"""Rewriting by rules, structural equality and digests, and the verifier of graphs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from work import calls_made

from intarsia.ir.digest import digest, same
from intarsia.ir.dtypes import F32
from intarsia.ir.errors import Source, Span
from intarsia.ir.graph import Graph, Module, Node, Parameter, Region, Value
from intarsia.ir.interpreter import evaluate
from intarsia.ir.ops import Elementwise, Loop, Matmul, Transpose
from intarsia.ir.random_graphs import random_inputs, random_module, random_sizes
from intarsia.ir.rewriting import rewrite
from intarsia.ir.scalar import Load
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis, Space
from intarsia.ir.text import print_module, read_module
from intarsia.ir.types import TensorType
from intarsia.ir.verifier import problems, verify_module


def read(text: str) -> Module:
    return read_module(Source("test.ir", text))


def rewritten(text: str, *rules: object) -> str:
    """The text of the body after rewriting."""
    module = read(text)
    body = rewrite(module.graph.body, rules)  # type: ignore[arg-type]
    verify_module(module.with_body(body))
    return "\n".join(line.strip() for line in print_module(module.with_body(body)).split("\n")[3:-2])


def cancel_transpose(node: Node) -> Value | None:
    """transpose(transpose(x)) -> x, where the second undoes the first"""
    match node:
        case Transpose(Value(Transpose(x, inner)), outer) if [inner[d] for d in outer] == sorted(outer):
            return x
    return None


def push_transpose(node: Node) -> Node | None:
    """transpose(a @ b) -> transpose(b) @ transpose(a)"""
    match node:
        case Transpose(Value(Matmul(a, b)), (1, 0)):
            return Matmul(Transpose(b, (1, 0)).value, Transpose(a, (1, 0)).value)
    return None


def test_nodes_that_a_rule_makes_are_rewritten_and_merged() -> None:
    text = """func @f(%x: f32[4, 8], %w: f32[8, 16]) {
      %0 = transpose %x axes=(1, 0) : f32[8, 4]
      %1 = transpose %0 axes=(1, 0) : f32[4, 8]
      %2 = matmul %1, %w : f32[4, 16]
      %3 = transpose %2 axes=(1, 0) : f32[16, 4]
      %4 = transpose %w axes=(1, 0) : f32[16, 8]
      %5 = exp %4 : f32[16, 8]
      return %3, %5, %2
    }"""
    assert (
        rewritten(text, cancel_transpose, push_transpose)
        == """%0 = transpose %x axes=(1, 0) : f32[8, 4]
%1 = matmul %x, %w : f32[4, 16]
%2 = transpose %w axes=(1, 0) : f32[16, 8]
%3 = matmul %2, %0 : f32[16, 4]
%4 = exp %2 : f32[16, 8]
return %3, %4, %1"""
    )


def test_regions_are_rewritten_and_use_what_is_around_them() -> None:
    text = """func @f[N](%x: f32[N, N]) {
      %0 = transpose %x axes=(1, 0) : f32[N, N]
      %1 = loop t in 0..3 (%h = %x) {
        %2 = transpose %x axes=(1, 0) : f32[N, N]
        %3 = transpose %2 axes=(1, 0) : f32[N, N]
        %4 = add %h, %3 : f32[N, N]
        %5 = add %4, %2 : f32[N, N]
        yield %5
      } : f32[N, N]
      %6 = add %1, %0 : f32[N, N]
      return %6
    }"""
    assert (
        rewritten(text, cancel_transpose)
        == """%0 = transpose %x axes=(1, 0) : f32[N, N]
%1 = loop t in 0..3 (%h = %x) {
%2 = add %h, %x : f32[N, N]
%3 = add %2, %0 : f32[N, N]
yield %3
} : f32[N, N]
%4 = add %1, %0 : f32[N, N]
return %4"""
    )


def test_a_region_that_no_rule_changes_is_itself() -> None:
    body = read("func @f(%x: f32[4]) { %0 = exp %x : f32[4] %1 = neg %0 : f32[4] return %1 }").graph.body
    assert rewrite(body, (cancel_transpose,)) is body


def test_new_nodes_inherit_the_span_and_merged_nodes_keep_all() -> None:
    source = Source("f.ita", "a line of text")
    spans = [Span(source, k, k + 1) for k in range(3)]
    x, w = (Parameter(n, TensorType.of(F32, 4, 4)).value for n in "xw")
    product = Matmul(x, w, span=spans[0]).value
    turned = Transpose(product, (1, 0), span=spans[1]).value
    again = Transpose(product, (1, 0), span=spans[2]).value
    nodes = [v.node for v in (x, w)]
    region = Region.of([n for n in nodes if isinstance(n, Parameter)], [turned, again])
    merged = rewrite(region, ())
    assert merged.results[0] == merged.results[1]
    assert (merged.nodes[-1].span, merged.nodes[-1].more_spans) == (spans[1], (spans[2],))
    pushed = rewrite(region, (push_transpose,))
    assert [n.span for n in pushed.nodes] == [spans[1]] * 3
    assert pushed.nodes[-1].more_spans == (spans[2],)


def test_rules_that_do_not_settle_are_named() -> None:
    def swap(node: Node) -> Node | None:
        """a + b -> b + a"""
        match node:
            case Elementwise("add", (a, b)):
                return Elementwise("add", (b, a))
        return None

    with pytest.raises(AssertionError, match="do not settle at elementwise: swap"):
        rewritten("func @f(%x: f32, %y: f32) { %0 = add %x, %y : f32 return %0 }", swap)


def test_a_rule_may_not_change_the_type() -> None:
    def wrong(node: Node) -> Value | None:
        return node.operands[0] if isinstance(node, Transpose) else None

    with pytest.raises(AssertionError, match="changes the type of transpose"):
        rewritten("func @f(%x: f32[2, 3]) { %0 = transpose %x axes=(1, 0) : f32[3, 2] return %0 }", wrong)


@pytest.mark.slow
def test_deep_graphs_take_linear_work_and_no_recursion() -> None:
    x = Parameter("x", TensorType.of(F32, 4))

    def work(length: int) -> int:
        value = x.value
        for _ in range(length):
            value = Elementwise("neg", (value,)).value
        region = Region((x,), tuple(_nodes(value)), (value,))
        rewritten: list[Region] = []
        count = calls_made(lambda: rewritten.append(rewrite(region, (cancel_negation,))))
        assert rewritten[0].results[0] in (x.value, region.nodes[0].value)
        return count

    assert work(20_000) < 21 * work(1_000)


def _nodes(value: Value) -> list[Node]:
    found: list[Node] = []
    while not isinstance(value.node, Parameter):
        found.append(value.node)
        value = value.node.operands[0]
    return found[::-1]


def cancel_negation(node: Node) -> Value | None:
    """-(-x) -> x"""
    match node:
        case Elementwise("neg", (Value(Elementwise("neg", (x,))),)):
            return x
    return None


@pytest.mark.parametrize("seed", range(0, 120, 3))
def test_merging_equal_nodes_keeps_the_meaning(seed: int) -> None:
    module, sizes = random_module(seed, 16), random_sizes(seed)
    after = module.with_body(rewrite(module.graph.body, ()))
    verify_module(after)
    inputs = random_inputs(module, seed, sizes)
    for a, b in zip(evaluate(module, inputs, sizes), evaluate(after, inputs, sizes)):
        assert np.array_equal(a, b, equal_nan=a.dtype.kind not in "iub")


# ---------------------------------------------------------------------- equality


def test_structure_counts_and_names_of_values_do_not() -> None:
    one = "func @f(%x: f32[4], const %w: f32[4]) { %0 = add %x, %w : f32[4] return %0 }"
    module = read(one)
    assert same(module, read(one.replace("%w", "%p.weight")))
    assert digest(module) == digest(read(one.replace("%x", "%input")))
    for other in ("%0 = add %w, %x", "%0 = sub %x, %w", "%0 = add %x, %x"):
        assert not same(module, read(one.replace("%0 = add %x, %w", other)))
    assert not same(module, read(one.replace("const ", "")))
    zero = "func @f() { %0 = constant 0.0 : f32 return %0 }"
    assert not same(read(zero), read(zero.replace("0.0", "-0.0")))


def test_the_digest_is_stable() -> None:
    module = read("func @f(%x: f32[4]) { %0 = exp %x : f32[4] return %0 }")
    assert digest(module) == "ddc75cb8a08323de4f00cb820726965c054f12e3c21b26c7ae0460e2fe62cf5e"


@pytest.mark.parametrize("seed", range(30))
def test_a_module_is_the_same_as_its_text(seed: int) -> None:
    module = random_module(seed)
    assert same(module, read(print_module(module)))


# ---------------------------------------------------------------------- verifier

x4 = Parameter("x", TensorType.of(F32, 4))
y4 = Parameter("y", TensorType.of(F32, "N"))


def module_of(
    nodes: list[Node], results: list[Value], *parameters: Parameter, dimensions: tuple[str, ...] = ()
) -> Module:
    return Module(Graph("f", Region(parameters, tuple(nodes), tuple(results)), dimensions))


def with_space(space: Space) -> Module:
    """A compute whose space has been put in from outside, unchecked."""
    good = read("func @f(%x: f32[4]) { %0 = compute [i < 4] (%x[i]) : f32[4] return %0 }")
    node = good.graph.body.nodes[0]
    object.__setattr__(node, "definition", space)
    return good


def wrong_order() -> Module:
    first = Elementwise("exp", (x4.value,))
    second = Elementwise("neg", (first.value,))
    return module_of([second, first], [second.value], x4)


def wrong_type() -> Module:
    node = Elementwise("exp", (x4.value,))
    object.__setattr__(node, "results", (TensorType.of(F32, 5),))
    return module_of([node], [node.value], x4)


def twice() -> Module:
    node = Elementwise("exp", (x4.value,))
    return module_of([node, node], [node.value], x4)


def missing_result() -> Module:
    node = Elementwise("exp", (x4.value,))
    return module_of([], [node.value], x4)


def state_type() -> Module:
    module = read("func @f(%x: f32[4]) { %0 = loop t in 0..3 (%h = %x) { yield %h } : f32[4] return %0 }")
    loop = module.graph.body.nodes[0]
    assert isinstance(loop, Loop)
    object.__setattr__(loop, "body", dataclasses.replace(loop.body, parameters=(y4,), results=(y4.value,)))
    return module


def counter_twice() -> Module:
    text = """func @f(%x: f32[4]) {
      %0 = loop t in 0..3 (%h = %x) { %1 = loop t in 0..3 (%g = %h) { yield %g } : f32[4] yield %1 } : f32[4]
      return %0
    }"""
    return read(text)


def unknown_kernel() -> Module:
    return read("func @f(%x: f32[4]) { %0 = call @k(%x) : f32[4] return %0 }")


def call_rank() -> Module:
    return read("func @f(%x: f32[4]) { %0 = call @k(%x) : f32[4] return %0 } kernel k(a: f32[4, 4], out b: f32[4]) { }")


i, four = Size.of("i"), Axis.of("i", 4)
BROKEN = {
    "order": (wrong_order, "uses the result of a elementwise that is not made before it"),
    "type": (wrong_type, "has results of type f32[5] but makes f32[4]"),
    "twice": (twice, "occurs twice"),
    "result": (missing_result, "gives the result of a elementwise that is not made in it"),
    "dimension": (lambda: module_of([], [y4.value], y4), "N is no dimension here"),
    "state": (state_type, "a state is f32[4] but becomes f32[N]"),
    "counter": (counter_twice, "the counter t is not the only one"),
    "kernel": (unknown_kernel, "there is no kernel k"),
    "call": (call_rank, "does not fit a: f32[4, 4]"),
    "load rank": (lambda: with_space(Space((four,), Load("a0", (i, i), F32), F32)), "has 2 subscripts into f32[4]"),
    "load dtype": (lambda: with_space(Space((four,), Load("a0", (i,), F32), F32, (), None)), ""),
    "operand": (lambda: with_space(Space((four,), Load("a1", (i,), F32), F32)), "loads no operand"),
    "name": (lambda: with_space(Space((four,), Load("a0", (i + "q",), F32), F32)), "q has no value here"),
    "lower": (lambda: with_space(Space((Axis("i", i, i),), Load("a0", (i,), F32), F32)), "begins at i"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_the_verifier_finds_what_is_broken(case: str) -> None:
    make, message = BROKEN[case]
    found = "\n".join(problems(make()))
    assert message in found if message else not found


@pytest.mark.parametrize("seed", range(40))
def test_random_modules_are_well_formed(seed: int) -> None:
    verify_module(random_module(seed))
