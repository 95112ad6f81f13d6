"""Formatting: the one way to write a program, which keeps its tree, its comments and itself."""

from __future__ import annotations

import re

import pytest

from intarsia.dsl import ast
from intarsia.dsl.format import WIDTH, format_program
from intarsia.dsl.parser import parse_program
from intarsia.ir.errors import CompileError, Source


def formatted(text: str) -> str:
    """`text` in canonical form, checked: it is stable, keeps the tree and the comments."""
    source = Source("test.ita", text)
    result = format_program(source)
    again = Source("test.ita", result)
    assert format_program(again) == result
    assert ast.same(parse_program(again), parse_program(source))
    assert sorted(comments(result)) == sorted(comments(text))
    return result


def comments(text: str) -> list[str]:
    return [m[1].rstrip() for m in re.finditer(r'"[^"\n]*"|(#[^\n]*)', text) if m[1]]


def body(text: str) -> str:
    """A statement in canonical form."""
    lines = formatted(f"fn f() {{\n{text}\n}}").splitlines()
    return "\n".join(line.removeprefix("    ") for line in lines[1:-1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("y=a+b*c", "y = a + b * c"),
        ("y = (a+b)*c", "y = (a + b) * c"),
        ("y = ( (a) )", "y = (a)"),
        ("y = -x**-2", "y = -x ** -2"),
        ("y = not(a) and b==c or d", "y = not (a) and b == c or d"),
        ("y = f( x ,axis = -1, )", "y = f(x, axis=-1)"),
        ("y = (x,)", "y = (x,)"),
        ("y = ()", "y = ()"),
        ("y[ i,j<N ]=x[ i,j ]", "y[i, j < N] = x[i, j]"),
        ("y = sum[ i in 1 .. N - 1 ]( x[i+1] )", "y = sum[i in 1..N-1](x[i + 1])"),
        ("y = x[ 1 : , : - 1, ..., ::2, none, a+1 : b*(c - 1) ]", "y = x[1:, :-1, ..., ::2, none, a+1:b*(c-1)]"),
        ("y = update x[ i<3 , : ]max= 1", "y = update x[i < 3, :] max= 1"),
        ("a ,b: f32[ N-1 ,2 * D,( N + 1 )// 2, ..S ]= f( )", "a, b: f32[N-1, 2*D, (N+1)//2, ..S] = f()"),
        ("a: f32[B @ data, (N-1) @ (x, ?) ! 1, D@_, E@?] {replicated : m} = b",
         "a: f32[B@data, (N-1)@(x, ?)!1, D@_, E@?]{replicated: m} = b"),
        ("y = zeros( f32[ ] )", "y = zeros(f32[])"),
        ("return a ,b", "return a, b"),
        ("x = 1; y = 2", "x = 1\ny = 2"),
    ],
)  # fmt: skip
def test_spaces(text: str, expected: str) -> None:
    assert body(text) == expected


def test_declarations() -> None:
    text = """
import   "a.ita"
const A=1


const B = 2
mesh pod( data = 2,model=4 )
format w = quant( i4,scale = f16 )
struct P( ) { }
struct S( N,M ) { a:f32[ N ];b : P( )[ M ] }
fn f[ T : float,N:dim ]( const x: T[ ..S ],eps : f32=1e-5, axis=-1, mode )->(f32, S(N, 2)) { return x }
fn g() { if a { x = 1 } else if b { x = 2 } else { x = 3 }
return x }
test   "t" { assert all( a ) }
"""
    assert (
        formatted(text)
        == """\
import "a.ita"
const A = 1

const B = 2
mesh pod(data=2, model=4)
format w = quant(i4, scale=f16)

struct P() {}

struct S(N, M) {
    a: f32[N]
    b: P()[M]
}

fn f[T: float, N: dim](const x: T[..S], eps: f32 = 1e-5, axis = -1, mode) -> (f32, S(N, 2)) {
    return x
}

fn g() {
    if a {
        x = 1
    } else if b {
        x = 2
    } else {
        x = 3
    }
    return x
}

test "t" {
    assert all(a)
}
"""
    )


def test_long_lines_break_at_brackets() -> None:
    name = "a_rather_long_name"
    call = ", ".join(f"{name}_{i}" for i in range(6))
    assert body(f"y = f({call})") == "\n".join(
        ["y = f(", *(f"    {name}_{i}," for i in range(6)), ")"],
    )
    total = " + ".join(f"{name}_{i}" for i in range(6))
    assert body(f"y = {total}").splitlines()[:2] == [f"y = {name}_0 +", f"    {name}_1 +"]
    assert body(f"y = sum[i]({total})").splitlines()[:2] == ["y = sum[i](", f"    {name}_0 +"]
    long = formatted(f"fn f({', '.join(f'{name}_{i}: f32[N]' for i in range(6))}) -> f32[N] {{ return x }}")
    assert long.splitlines()[0] == "fn f(" and long.splitlines()[-3] == ") -> f32[N] {"
    assert all(len(line) <= WIDTH for line in long.splitlines())


def test_a_loop_inside_an_expression() -> None:
    assert body("y = f(loop (h = x) for t < 3 while h > 0 { yield h }, 1)") == (
        "y = f(\n    loop (h = x) for t < 3 while h > 0 {\n        yield h\n    },\n    1,\n)"
    )


def test_comments_stay_where_they_mean_something() -> None:
    text = """\
# About the file.

# About f.
fn f(  # the parameters
    x: f32[N],  # the input
    # The weights.
    w: f32[N],
) -> f32[N] {  # the body
    # First.
    y = x +  # why
        w

    # Second.
    if c {  # yes
        z = 1  # one
        # End of then.
    } else {
        z = 2
    }  # after if
    return g(
        y,  # the y
        z
        # Last of the arguments.
    )
    # End of f.
}  # after f
# End of file.
"""
    assert (
        formatted(text)
        == """\
# About the file.

# About f.
fn f(  # the parameters
    x: f32[N],  # the input
    # The weights.
    w: f32[N],
) -> f32[N] {  # the body
    # First.
    # why
    y = x + w

    # Second.
    if c {  # yes
        z = 1  # one
        # End of then.
    } else {
        z = 2
    }  # after if
    return g(
        y,  # the y
        z,
        # Last of the arguments.
    )
    # End of f.
}  # after f
# End of file.
"""
    )


@pytest.mark.parametrize(
    "text",
    [
        "# only a comment\n\n# and another",
        "fn f() { # nothing\n}",
        "fn f() { return x[ # a\n 1 ] # b\n}",
        "fn f() { return sum[i]( # a\n x[i] # b\n # c\n) }",
        'fn f() { return g("# no comment") # one\n}',
        "struct S(N) { # a\n # b\n x: f32[ # c\n N] # d\n # e\n}",
        "fn f(\n# a\n) { return ( # b\n x + # c\n y) }",
        "fn f() { x = loop ( # a\n h = 1) for t < 3 { # b\n yield h # c\n } # d\n return x }",
        "fn f() { if a { # a\n x = 1 } else if b { # b\n x = 2 # c\n } else { # d\n x = 3 } \n # e\n}",
        "mesh pod( # a\n data=2, # b\n)\n# c\n",
        "fn f() -> (f32, # a\n f32) { a, # b\n c = g(); return a, # c\n c }",
    ],
)
def test_no_comment_is_lost(text: str) -> None:
    formatted(text)


def test_line_ends_of_windows_and_a_byte_order_mark() -> None:
    assert formatted("\ufefffn f() {\r\n    # one\r\n    return 1\r\n}\r\n") == "fn f() {\n    # one\n    return 1\n}\n"


def test_wrong_programs_are_not_formatted() -> None:
    with pytest.raises(CompileError):
        format_program(Source("test.ita", "fn f( {"))


@pytest.mark.slow
def test_deep_and_long_programs() -> None:
    body("y = " + "f(" * 190 + "x" + ")" * 190)
    body("y = " + " + ".join(["x"] * 190))
    body("y = " + "-" * 190 + "x")
    body("y = " + "(" * 190 + "x" + ")" * 190)
    formatted("fn f() {\n" + "\n".join(f"    x{i} = g(x{i - 1})" for i in range(2000)) + "\n}\n")
