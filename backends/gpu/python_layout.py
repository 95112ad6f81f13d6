"""Python statements broken into lines as `ruff format` does it, so that what is written reads like written by hand.

A statement that is too long is parsed and printed again: the outermost brackets are broken first, their content stands
on a line of its own if it fits there, else each element on one. A sum of terms goes into brackets, a term a line; of
a sum of two that would be broken inside a subscript, the first gets a name.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

WIDTH = 88
"""Columns of a line: what `ruff format` takes where nothing is configured."""

_SYMBOLS: dict[type[ast.AST], tuple[str, int]] = {
    ast.Or: ("or", 1), ast.And: ("and", 2), ast.Not: ("not ", 3),
    ast.Eq: ("==", 4), ast.NotEq: ("!=", 4), ast.Lt: ("<", 4), ast.LtE: ("<=", 4), ast.Gt: (">", 4), ast.GtE: (">=", 4),
    ast.BitOr: ("|", 5), ast.BitXor: ("^", 6), ast.BitAnd: ("&", 7), ast.LShift: ("<<", 8), ast.RShift: (">>", 8),
    ast.Add: ("+", 9), ast.Sub: ("-", 9), ast.Mult: ("*", 10), ast.Div: ("/", 10), ast.FloorDiv: ("//", 10),
    ast.Mod: ("%", 10), ast.MatMult: ("@", 10), ast.UAdd: ("+", 11), ast.USub: ("-", 11), ast.Invert: ("~", 11),
}  # fmt: skip
"""Operators and how tightly they bind."""

_ATOM = 13


@dataclass(frozen=True)
class Line:
    """Nothing, or a space, where the group around stays on one line, else the end of a line."""

    flat: str = ""


@dataclass(frozen=True)
class IfBroken:
    """What stands there only where the group around is broken."""

    text: str


@dataclass(frozen=True)
class Group:
    """Parts on one line if they fit, else broken at every `Line` that is not inside another group. `indent`: what
    follows such a line is moved right."""

    parts: tuple[Part, ...]
    indent: bool = False


Part: TypeAlias = "str | Line | IfBroken | Group"


def wrapped(text: str, width: int = WIDTH) -> str:
    """Every statement of a text on lines of at most `width` columns where that can be done. Each stands on one line
    before, but those that are short enough as they are."""
    return "\n".join(line for statement in text.split("\n") for line in _wrapped(statement, width, text))


def _wrapped(line: str, width: int, whole: str) -> Iterator[str]:
    text = line.lstrip(" ")
    indent = len(line) - len(text)
    if len(line) <= width or text.startswith(("#", '"')):
        yield line
        return
    header = text if not text.endswith(":") else f"{text} pass"
    try:
        (statement,) = ast.parse(header).body
    except (SyntaxError, ValueError):  # a piece of a statement that is broken already
        yield line
        return
    match statement:
        case ast.Assign(targets=[ast.Name(id=target)], value=ast.BinOp(left=left, op=op, right=right) as value) if (
            _is_kept_open(value) and not isinstance(right, ast.Call) and not isinstance(left, ast.Name)
        ):
            part = f"{target}_part"
            while part in whole:
                part += "_"
            yield from _wrapped(f"{line[:indent]}{part} = {_flat(left)}", width, whole)
            sum_of_two = ast.BinOp(ast.Name(part), op, right)
            yield from _wrapped(f"{line[:indent]}{target} = {_flat(sum_of_two)}", width, whole)
        case _:
            yield from _Printer(indent, width).lines(_statement(statement))


def _statement(statement: ast.stmt) -> list[Part]:
    match statement:
        case ast.Assign(targets=[target], value=value):
            return [ast.unparse(target), " = ", *_right_side(value)]
        case ast.Expr(value=value):
            return _right_side(value)
        case ast.Return(value=ast.Tuple() as value):
            return ["return ", _brackets("(", [[*_expression(e)] for e in value.elts], ")")]
        case ast.Return(value=ast.expr() as value):
            return ["return ", *_right_side(value)]
        case ast.If(test=test):
            return ["if ", *_right_side(test), ":"]
        case ast.For(target=target, iter=iterable):
            return ["for ", ast.unparse(target), " in ", *_right_side(iterable), ":"]
        case ast.FunctionDef(name=name, args=arguments, returns=returns):
            words: list[list[Part]] = [[word] for word in _parameters(arguments)]
            arrow = f" -> {ast.unparse(returns)}:" if returns is not None else ":"
            return [f"def {name}", _brackets("(", words, ")", together=True), arrow]
        case ast.Raise(exc=ast.expr() as value):
            return ["raise ", *_right_side(value)]
    raise AssertionError(f"no layout of {ast.dump(statement)}")


def _parameters(arguments: ast.arguments) -> Iterator[str]:
    for argument in arguments.args:
        yield ast.unparse(argument)
    if arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults):
        text = ast.unparse(argument)
        yield text if default is None else f"{text}={_flat(default)}"


def _right_side(value: ast.expr) -> list[Part]:
    """An expression that stands in no brackets. One with operators gets some where it is broken."""
    if _is_kept_open(value):
        return _expression(value, free=False)
    if isinstance(value, ast.BinOp | ast.Compare | ast.BoolOp | ast.UnaryOp | ast.IfExp):
        return [Group((IfBroken("("), Line(), Group(tuple(_expression(value))), Line(), IfBroken(")")), indent=True)]
    return _expression(value)


def _is_kept_open(value: ast.expr) -> bool:
    """Is an expression broken inside the brackets that it begins or ends with, and gets none around it? That is one
    with a single operator of those that bind least."""
    if not isinstance(value, ast.BinOp | ast.Compare | ast.BoolOp):
        return False
    if len(list(_chain(value))) != 2:
        return False
    return _begins_with_brackets(_outermost(value, 0)) or _ends_with_brackets(_outermost(value, -1))


def _outermost(e: ast.expr, end: int) -> ast.expr:
    """The operand at which an expression begins (`end` 0) or ends (-1); one that gets brackets is the whole."""
    while isinstance(e, ast.BinOp | ast.Compare | ast.BoolOp):
        _, operand, level = list(_chain(e))[end]
        if _level(operand) < level:
            break
        e = operand
    return e


def _begins_with_brackets(e: ast.expr) -> bool:
    while isinstance(e, ast.Call | ast.Subscript | ast.Attribute):
        e = e.func if isinstance(e, ast.Call) else e.value
    return isinstance(e, ast.BinOp | ast.Compare | ast.BoolOp | ast.Tuple | ast.List)


def _ends_with_brackets(e: ast.expr) -> bool:
    match e:
        case ast.Call(args=arguments, keywords=keywords):
            return bool(arguments or keywords)
        case ast.BinOp() | ast.Compare() | ast.BoolOp() | ast.Subscript() | ast.Tuple() | ast.List():
            return True
    return False


def _expression(e: ast.expr, level: int = 0, free: bool = True) -> list[Part]:
    """The parts of an expression. `free`: does it stand inside brackets, so that a line may end before an operator?"""
    own = _level(e)
    if own < level:
        return ["(", _inside(e), ")"]
    match e:
        case ast.BinOp() | ast.BoolOp() | ast.Compare():
            first, *rest = _chain(e)
            parts = _nested(first[1], first[2], free)
            for symbol, operand, tight in rest:
                parts += [Line(" ") if free else " ", f"{symbol} ", *_nested(operand, tight, free)]
            return parts
        case ast.UnaryOp(op=op, operand=operand):
            return [_SYMBOLS[type(op)][0], *_expression(operand, own, free)]
        case ast.Call(func=function, args=arguments, keywords=keywords):
            elements = [_nested(a, 0) for a in arguments]
            elements += [[f"{k.arg}=" if k.arg else "**", *_nested(k.value, 0)] for k in keywords]
            return [*_expression(function, _ATOM, free), _brackets("(", elements, ")", together=True)]
        case ast.Attribute(value=value, attr=name):
            return [*_expression(value, _ATOM, free), f".{name}"]
        case ast.Subscript(value=value, slice=ast.Tuple(elts=elements)) if len(elements) > 1:
            subscripts = _brackets("[", [_expression(x) for x in elements], "]", together=True)
            return [*_expression(value, _ATOM, free), subscripts]
        case ast.Subscript(value=value, slice=index):
            return [*_expression(value, _ATOM, free), "[", _inside(index), "]"]
        case ast.Tuple(elts=[one]):
            return ["(", *_expression(one), ",)"]
        case ast.Tuple(elts=elements):
            return [_brackets("(", [_nested(x, 0) for x in elements], ")")]
        case ast.List(elts=elements):
            return [_brackets("[", [_nested(x, 0) for x in elements], "]")]
        case ast.Slice(lower=lower, upper=upper, step=step):
            return [_slice(lower, upper, step)]
        case ast.IfExp(test=test, body=body, orelse=otherwise):
            words = [("if ", test), ("else ", otherwise)]
            parts = _nested(body, 1, free)
            for word, operand in words:
                parts += [Line(" ") if free else " ", word, *_nested(operand, 1, free)]
            return parts
    return [ast.unparse(e).replace("'", '"')]


def _slice(lower: ast.expr | None, upper: ast.expr | None, step: ast.expr | None) -> str:
    """A range of subscripts; colons stand apart where what is between them has operators."""
    bounds = [lower, upper] if step is None else [lower, upper, step]
    simple = all(isinstance(b, ast.Name | ast.Constant | None) for b in bounds)
    texts = ["" if b is None else _flat(b) for b in bounds]
    return (":" if simple else " : ").join(texts).strip()


def _inside(e: ast.expr) -> Group:
    """What brackets hold that are broken only around it, if that is enough."""
    return Group((Line(), Group(tuple(_expression(e))), Line()), indent=True)


def _nested(e: ast.expr, level: int, free: bool = True) -> list[Part]:
    """An operand: operators in it are broken only where it does not fit on a line of its own."""
    parts = _expression(e, level, free)
    return [Group(tuple(parts))] if free and isinstance(e, ast.BinOp | ast.BoolOp | ast.Compare) else parts


def _chain(e: ast.expr) -> Iterator[tuple[str, ast.expr, int]]:
    """The operands of operators that bind alike, each with the operator before it and how tightly it must bind."""
    match e:
        case ast.BinOp(left=left, op=op, right=right):
            symbol, level = _SYMBOLS[type(op)]
            inner = isinstance(left, ast.BinOp) and _level(left) == level
            yield from _chain(left) if inner else [("", left, level)]
            yield symbol, right, level + 1
        case ast.Compare(left=left, ops=ops, comparators=values):
            yield "", left, 5
            yield from ((_SYMBOLS[type(op)][0], value, 5) for op, value in zip(ops, values))
        case ast.BoolOp(op=op, values=values):
            symbol, level = _SYMBOLS[type(op)]
            yield from (("" if n == 0 else symbol, value, level + 1) for n, value in enumerate(values))


def _level(e: ast.expr) -> int:
    match e:
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.UnaryOp(op=op):
            return _SYMBOLS[type(op)][1]
        case ast.Compare():
            return 4
        case ast.IfExp() | ast.Lambda():
            return 0
    return _ATOM


def _brackets(opening: str, elements: Iterable[list[Part]], closing: str, together: bool = False) -> Group:
    """Elements between brackets. `together`: they may share one line where the brackets are broken."""
    parts: list[Part] = []
    for element in elements:
        parts += [",", Line(" "), *element] if parts else element
    if not parts:
        return Group((opening, closing))
    parts.append(IfBroken(","))
    inner: tuple[Part, ...] = (Group(tuple(parts)),) if together else tuple(parts)
    return Group((opening, Line(), *inner, Line(), closing), indent=True)


def tidy(text: str) -> str:
    """An expression on one line, without the brackets that Python does not need."""
    return _flat(ast.parse(text, mode="eval").body)


def _flat(e: ast.expr) -> str:
    return "".join(_flat_parts(_expression(e)))


def _flat_parts(parts: Iterable[Part]) -> Iterator[str]:
    for part in parts:
        match part:
            case str(text) | Line(text):
                yield text
            case Group(inner):
                yield from _flat_parts(inner)


class _Printer:
    """Places parts on lines. What is still to be placed lies on a stack: a part, the indentation of its lines, and
    whether the group around it is broken."""

    def __init__(self, indent: int, width: int) -> None:
        self.indent = indent
        self.width = width

    def lines(self, parts: Iterable[Part]) -> list[str]:
        """The lines of a statement."""
        done: list[str] = []
        line = " " * self.indent
        stack: list[tuple[Part, int, bool]] = [(part, self.indent, True) for part in reversed(list(parts))]
        while stack:
            part, indent, broken = stack.pop()
            match part:
                case str(text):
                    line += text
                case IfBroken(text):
                    line += text if broken else ""
                case Line(flat) if not broken:
                    line += flat
                case Line():
                    done.append(line.rstrip())
                    line = " " * indent
                case Group(inner, moved):
                    broken = not self._fits(part, self.width - len(line), stack)
                    stack += _placed(inner, indent, broken, moved)
        return [*done, line]

    def _fits(self, group: Group, room: int, rest: list[tuple[Part, int, bool]]) -> bool:
        """Does a group fit on the line, with what follows it up to where a line may end?"""
        pending = [*((part, broken) for part, _, broken in rest), (group, False)]
        while pending and room >= 0:
            part, broken = pending.pop()
            match part:
                case str(text):
                    room -= len(text)
                case IfBroken(text):
                    room -= len(text) if broken else 0
                case Line(flat):
                    if broken:
                        return True
                    room -= len(flat)
                case Group(inner):
                    pending += [(p, broken) for p in reversed(inner)]
        return room >= 0


def _placed(parts: tuple[Part, ...], indent: int, broken: bool, moved: bool) -> list[tuple[Part, int, bool]]:
    """The parts of a group for the stack. All lines of an indented group but the last are moved right."""
    last = max((n for n, part in enumerate(parts) if isinstance(part, Line)), default=-1)
    inside = indent + 4 if moved else indent
    placed = [(part, inside if n < last else indent, broken) for n, part in enumerate(parts)]
    return placed[::-1]
