"""Parsing: what each piece of syntax becomes, where it stands, and what the parser bears."""

from __future__ import annotations

import random
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lark import Lark, UnexpectedToken
from lark import Token as LarkToken
from lark.lexer import Lexer as LarkLexer
from work import calls_made

from intarsia.dsl import ast, tables
from intarsia.dsl.automaton import Automaton
from intarsia.dsl.lexer import DECLARATION_WORDS, Lexer, Token, Tokens
from intarsia.dsl.parser import (
    parse_declaration,
    parse_expression,
    parse_program,
    split_declarations,
)
from intarsia.dsl.tree import TreeBuilder
from intarsia.ir.errors import CompileError, Source

VALID = """\
import "layers.ita"
const EPS = 1e-5
mesh pod(data=2, model=4)
format w4 = quant(i4, scale=quant(u8, scale=f32, group=256), zero=none, axis=0)
struct Linear(N, K) {
    weight: f32[N, K]
    bias: f32[N]
}
fn f[T: float, M: dim](const x: T[..S, B@(data, ?), (N-1)@model!1] {replicated: model}, p: Linear(N, 2*K)[L],
     eps: f32 = 1e-5, axis = -1) -> (f32[N], i64[B@_, C@?]) {
    y[..i, j < N] = x[..i, j] * -2 ** -j + where(not a or b == c and d, 1_000, 0x1F)
    h: f32[B@data, D] = update y[i in 1..N-1, :, pos, k < 3] max= sum[p in s[r]..s[r + 1]](v[p], )
    if axis == 0 { z = x[1:, :-1, ..., ::2, none] } else if q { z = (2,) } else { z = () }
    a, _ = scan (h = x, g: f32 = 0.5,) for t < n {
        yield h @ p[t].weight, g
        emit h
    }
    return loop (x = a) for t in 0..n while x > inf { yield x // 3 % 2; }, nan
}
test "it works" { assert all(abs(f(zeros(f32[]), M=3)) <= 1e-6); assert true }
"""


def parse(text: str) -> ast.Program:
    return parse_program(Source("test.ita", text))


def statements(text: str) -> tuple[ast.Statement, ...]:
    function = parse(f"fn f() {{\n{text}\n}}").declarations[0]
    assert isinstance(function, ast.Function)
    return function.body


def grouped(node: object) -> str:
    """An expression with every operation in parentheses."""
    match node:
        case ast.Binary(operator, left, right) | ast.Compare(operator, left, right):
            return f"({grouped(left)} {operator} {grouped(right)})"
        case ast.Unary(operator, operand):
            return f"({operator} {grouped(operand)})"
        case ast.Subscript(value, items):
            return f"{grouped(value)}[{', '.join(grouped(item) for item in items)}]"
        case ast.Call(function, positional):
            return f"{function}({', '.join(grouped(argument) for argument in positional)})"
        case ast.Field(value, name):
            return f"{grouped(value)}.{name}"
        case ast.Name(text) | ast.Number(text):
            return text
    raise AssertionError(node)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a + b - c", "((a + b) - c)"),
        ("a - (b - c)", "(a - (b - c))"),
        ("a + b * c @ d", "(a + ((b * c) @ d))"),
        ("a / b // c % d", "(((a / b) // c) % d)"),
        ("-a ** b", "(- (a ** b))"),
        ("a ** -b ** c", "(a ** (- (b ** c)))"),
        ("a ** b ** c", "(a ** (b ** c))"),
        ("-a * b", "((- a) * b)"),
        ("--a", "(- (- a))"),
        ("a or b and not c == d", "(a or (b and (not (c == d))))"),
        ("not not a", "(not (not a))"),
        ("a + 1 < b * 2", "((a + 1) < (b * 2))"),
        ("x[0][i + 1].w.b", "x[0][(i + 1)].w.b"),
        ("-f(a)[0] ** 2", "(- (f(a)[0] ** 2))"),
        ("test + mesh * format", "(test + (mesh * format))"),
    ],
)
def test_operators_group(text: str, expected: str) -> None:
    assert grouped(parse_expression(Source("test", text))) == expected


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("x = 1\ny = 2", 2),
        ("x = 1; y = 2;", 2),
        ("x = 1;;\n\n;y = 2", 2),
        ("x = 1 # one ; two\n\n# three\ny = 2", 2),
        ("x = a +\n b", 1),
        ("x =\n a", 1),
        ("x = a and\n not\n b", 1),
        ("x = f(a\n, b\n)\ny = 1", 2),
        ("x = a[\n1\n,\n2]", 1),
        ("a,\nb = f()", 1),
        ("x:\nf32 = 1", 1),
        ("x = sum[i in 0..\nn](i)", 1),
        ("x = loop (h =\n a) for t < n {\n\n yield h\n\n }\ny = 1", 2),
        ("x = f(loop (h = a) for t < n { y = h\n yield y })", 1),
        ("", 0),
        ("\r\n  x = 1\r\n\ty = 2\r\n", 2),
    ],
)
def test_line_ends(text: str, count: int) -> None:
    assert len(statements(text)) == count


def test_a_line_end_before_an_arrow_does_not_count() -> None:
    program = parse("fn f(x: f32)\n\n  -> f32 {\n return x }\n\nfn g() -> f32 { return 1.0 }; const A = 1\n")
    assert [type(d) for d in program.declarations] == [ast.Function, ast.Function, ast.Const]


def test_a_program_with_everything() -> None:
    program = parse(VALID)
    kinds = [ast.Import, ast.Const, ast.Mesh, ast.Format, ast.Struct, ast.Function, ast.Test]
    assert [type(d) for d in program.declarations] == kinds
    function = program.declarations[5]
    assert isinstance(function, ast.Function)
    x, p, eps, axis = function.parameters
    assert (x.const, p.const, axis.is_static, eps.is_static) == (True, False, True, False)
    assert isinstance(x.type, ast.TensorTypeExpr)
    pack, batch, shifted = x.type.dims
    assert isinstance(pack, ast.Pack) and pack.name == "S"
    assert isinstance(batch, ast.Dim) and batch.sharding is not None
    assert ([a.text for a in batch.sharding.axes], batch.sharding.open, batch.sharding.priority) == (
        ["data"],
        True,
        None,
    )
    assert isinstance(shifted, ast.Dim) and shifted.sharding is not None and shifted.sharding.priority == 1
    assert x.type.along is not None and [axis.text for axis in x.type.along.axes] == ["model"]
    assert isinstance(p.type, ast.StructTypeExpr) and isinstance(p.type.list_length, ast.DimName)
    assert isinstance(function.result, ast.TupleTypeExpr)
    _, integers = function.result.items
    assert isinstance(integers, ast.TensorTypeExpr)
    unsplit, free = (d.sharding for d in integers.dims if isinstance(d, ast.Dim))
    assert unsplit is not None and unsplit.axes == () and not unsplit.open
    assert free is not None and free.axes == () and free.open
    define, assign, choice, scanned, returned = function.body
    assert isinstance(define, ast.Define) and isinstance(define.binders[0], ast.Pack)
    assert isinstance(assign, ast.Assign) and isinstance(assign.values[0], ast.Update)
    update = assign.values[0]
    assert [type(item) for item in update.items] == [ast.Binder, ast.Slice, ast.Name, ast.Binder]
    assert update.operator == "max=" and isinstance(update.value, ast.Comprehension)
    assert isinstance(choice, ast.If) and isinstance(choice.otherwise[0], ast.If)
    assert isinstance(scanned, ast.Assign) and isinstance(scanned.values[0], ast.LoopExpr)
    assert [target.name.text for target in scanned.targets] == ["a", "_"]
    assert isinstance(returned, ast.Return)
    loop, nan = returned.values
    assert isinstance(loop, ast.LoopExpr) and loop.lower is not None and loop.condition is not None
    assert isinstance(nan, ast.Number) and nan.is_float


def test_numbers() -> None:
    text = "(0, 12, 1_000, 0x1F, 0b101, 0o17, 1.5, 1e-5, 1_0.2_5e+1_0, 2E3, inf)"
    numbers = parse_expression(Source("test", text))
    assert isinstance(numbers, ast.TupleExpr)
    values = [number.value for number in numbers.items if isinstance(number, ast.Number)]
    assert values == [0, 12, 1000, 31, 5, 15, 1.5, 1e-5, 10.25e10, 2e3, float("inf")]
    assert [isinstance(value, float) for value in values] == [False] * 6 + [True] * 5


def test_every_span_is_the_text_of_its_node() -> None:
    program = parse(VALID)
    for node in ast.walk(program):
        text = VALID[node.span.start : node.span.end]
        for child in ast.children(node):
            assert node.span.start <= child.span.start <= child.span.end <= node.span.end
        match node:
            case ast.Identifier(name) | ast.Name(name) | ast.DimName(name):
                assert text == name
            case ast.Number(written):
                assert text == written
            case ast.Binary() | ast.Compare():
                assert VALID[node.operator_span.start : node.operator_span.end] == node.operator
            case ast.Function() | ast.LoopExpr() | ast.Struct() | ast.Test():
                assert text.endswith("}")


def test_parentheses_belong_to_the_span() -> None:
    source = Source("test", "(a + b) * c")
    product = parse_expression(source)
    assert isinstance(product, ast.Binary)
    assert source.text[product.left.span.start : product.left.span.end] == "(a + b)"


def test_declaration_words_are_names_elsewhere() -> None:
    words = sorted(DECLARATION_WORDS)
    body = "\n".join(f"{word} = {word} + f({word}={word}).{word}" for word in words)
    parse(f"fn test({', '.join(f'{word}: f32' for word in words if word != 'const')}) {{\n{body}\nreturn test }}")
    parse("fn f() {\n x = sum[\n mesh in 0..3](\n format or test)\n}")


def test_the_prelude_can_be_read_function_by_function() -> None:
    source = Source("test.ita", VALID + "\n# About g.\nfn g(x: f32) -> f32 { return x }\n")
    ranges = split_declarations(source)
    assert list(ranges) == ["EPS", "pod", "w4", "Linear", "f", "g"]
    whole = {d.name.text: d for d in parse_program(source).declarations if not isinstance(d, ast.Import | ast.Test)}
    for name, (start, end) in ranges.items():
        alone = parse_declaration(source, start, end)
        assert ast.same(alone, whole[name])
        assert (alone.span.start, alone.span.end) == (whole[name].span.start, whole[name].span.end)


def test_an_empty_file() -> None:
    for text in ("", "\n\n", "# nothing\n", "\ufeff", "\r\n"):
        assert parse(text).declarations == ()


def test_files_that_are_no_text() -> None:
    with pytest.raises(CompileError, match="0xE9 is not UTF-8") as caught:
        Source.decoded("latin.ita", "# caf\u00e9\n".encode() + b"# caf\xe9\n")
    span = caught.value.diagnostics[0].span
    assert caught.value.code == "E0102" and span is not None and (span.line, span.column) == (2, 6)
    with pytest.raises(CompileError, match="not a text file") as caught:
        parse("fn f() {\0}")
    assert caught.value.code == "E0102"
    with_mark = Source.decoded("f.ita", b"\xef\xbb\xbffn f() {\r\n return 1\r\n}\r\n")
    assert len(parse_program(with_mark).declarations) == 1


def test_carets_in_lines_with_tabs_and_carriage_returns() -> None:
    with pytest.raises(CompileError) as caught:
        parse("fn f() {\r\n\ty = a b\r\n}\r\n")
    assert "\n 2 | \ty = a b\n   | \t      ^ here" in str(caught.value)


def test_errors_are_limited_and_in_order() -> None:
    with pytest.raises(CompileError) as caught:
        parse("fn f() {\n" + "x = = 1\n" * 50 + "}\n")
    lines = [d.span.line for d in caught.value.diagnostics if d.span]
    assert lines == list(range(2, 22))


@pytest.mark.parametrize(
    "text",
    [
        "(" * 1000 + "x" + ")" * 1000,
        "f(" * 1000 + "x" + ")" * 1000,
        " + ".join(["x"] * 1000),
        "-" * 1000 + "x",
        "**".join(["x"] * 1000),
        "x" + "[0]" * 1000,
        "x" + ".a" * 1000,
        "(" * 100000,
    ],
    ids=lambda text: text[:12],
)
def test_deep_expressions_give_an_error(text: str) -> None:
    with pytest.raises(CompileError) as caught:
        statements(f"y = {text}")
    assert caught.value.code == "E0110"


def test_a_long_chain_of_conditions_gives_an_error() -> None:
    with pytest.raises(CompileError) as caught:
        statements("if c { x = 1 } else " * 1000 + "{ x = 2 }")
    assert caught.value.code == "E0110"


@pytest.mark.slow
def test_long_programs_parse_with_linear_work() -> None:
    def work(count: int) -> int:
        text = "\n".join(f"    x{i} = x{i - 1} * 0.5 + f(x{i - 1}, axis=-1)" for i in range(count))
        return calls_made(lambda: statements(text))

    work(10)
    assert work(5_000) < 5.2 * work(1_000)


def test_the_tables_are_those_of_the_grammar() -> None:
    """If not: python -m intarsia.dsl.tables"""
    built = tables.build_tables()
    assert tables.TABLES.read_text("utf-8") == tables.tables_text(built)
    assert tables.load_tables() == built


def test_tables_of_a_changed_grammar_are_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "grammar.lark"
    changed.write_text(tables.GRAMMAR.read_text("utf-8").replace('"yield"', '"produce"'), "utf-8")
    monkeypatch.setattr(tables, "GRAMMAR", changed)
    assert "produce" in Lexer(tables.load_tables.__wrapped__().terminals).reserved


def test_the_builder_has_a_method_for_every_alternative() -> None:
    actions = {rule.action for rule in tables.load_tables().rules} - {"", "list"}
    assert [action for action in sorted(actions) if not callable(getattr(TreeBuilder, action, None))] == []


def test_reserved_words() -> None:
    page = "fn if else return yield emit loop scan for in while update assert and or not true false none inf nan"
    assert Lexer(tables.load_tables().terminals).reserved == set(page.split())


def test_every_node_has_a_span() -> None:
    kinds = [kind for kind in vars(ast).values() if isinstance(kind, type) and issubclass(kind, ast.Node)]
    assert len(kinds) > 40
    assert all(any(f.name == "span" and f.kw_only for f in fields(kind)) for kind in kinds)


PIECES = [*VALID.replace("\n", " \n ").split(" "), "(", ")", "[", "]", "{", "}", "=", "1.", '"', "fn g", "?", "\\", "é"]


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False))
def test_any_text_gives_a_program_or_errors(chance: random.Random) -> None:
    """Programs with pieces dropped, doubled and exchanged: never another exception, never a span outside."""
    pieces = VALID.split(" ")
    for _ in range(chance.randint(1, 4)):
        index = chance.randrange(len(pieces))
        pieces[index : index + chance.randint(0, 2)] = chance.choices(PIECES, k=chance.randint(0, 2))
    text = " ".join(pieces)
    try:
        parse(text)
    except CompileError as error:
        assert str(error)
        for diagnostic in error.diagnostics:
            assert diagnostic.span is not None and 0 <= diagnostic.span.start <= diagnostic.span.end <= len(text)
            assert diagnostic.code.startswith("E01")


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_random_characters(text: str) -> None:
    try:
        parse(text)
        parse_expression(Source("test", text))
    except CompileError as error:
        assert str(error)


@pytest.fixture(scope="module")
def lark_parser() -> Lark:
    class Unused(LarkLexer):
        def __init__(self, *_: object) -> None: ...
        def lex(self, *_: object) -> None: ...  # type: ignore[override]

    return Lark(tables.GRAMMAR.read_text("utf-8"), parser="lalr", lexer=Unused, start=list(tables.STARTS), strict=True)


def lark_accepts(parser: Lark, tokens: list[Token]) -> bool:
    """Whether lark's own automaton reads the tokens to the end."""
    run = parser.parse_interactive("", "program")
    soft = {word.upper() for word in DECLARATION_WORDS}
    try:
        for token in tokens:
            is_name = token.kind in soft and token.kind not in run.choices()  # type: ignore[no-untyped-call]
            run.feed_token(LarkToken("NAME" if is_name else token.kind, token.text))
    except UnexpectedToken:
        return False
    return True


@pytest.mark.parametrize("seed", range(40))
def test_lark_reads_the_same_programs(lark_parser: Lark, seed: int) -> None:
    """The automaton against lark's, on the tokens of a program with a few of them exchanged."""
    chance = random.Random(seed)
    grammar = tables.load_tables()
    source = Source("test.ita", VALID)
    whole = Lexer(grammar.terminals).tokens(source, 0, len(VALID))
    items = list(whole.items)
    for _ in range(seed % 4):
        index = chance.randrange(len(items) - 1)
        items[index : index + chance.randint(0, 1)] = chance.choices(items[:-1], k=chance.randint(0, 1))
    automaton = Automaton(grammar, Tokens(source, items, {}, (), True), TreeBuilder(source))
    end = grammar.ends["program"]
    automaton.states = [grammar.starts["program"]]
    assert (automaton.advance(0, end) == len(items)) == lark_accepts(lark_parser, items)
