"""One way to write every program: four spaces, one hundred columns, brackets broken where a line would be longer.

Comments, parentheses and single blank lines stay as they are; all else follows from the syntax tree.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from intarsia.dsl import ast
from intarsia.dsl.comments import Comment, Comments, attach, is_chained
from intarsia.dsl.documents import BLANK, HARD, SOFT, SPACE, Document, Group, IfBroken, Indent, LineEnd, join, render
from intarsia.dsl.parser import parse_program
from intarsia.ir.errors import Source

WIDTH = 100

# How tightly an expression binds, as in the grammar: an operand that binds less needs parentheses.
_LOOSE, _OR, _AND, _NOT, _COMPARISON, _SUM, _PRODUCT, _NEGATION, _POWER, _POSTFIX, _ATOM = range(11)
_LEVELS = {"or": _OR, "and": _AND, "**": _POWER}
_LEVELS |= dict.fromkeys(["+", "-"], _SUM) | dict.fromkeys(["*", "/", "//", "%", "@"], _PRODUCT)

_DECLARATIONS_WITH_BODY = (ast.Struct, ast.Function, ast.Test)


def format_program(source: Source) -> str:
    """The canonical text of a file. Raises CompileError where it does not parse."""
    program = parse_program(source)
    text = render(Printer(source, attach(program)).program(program), WIDTH)
    assert ast.same(parse_program(Source(source.name, text)), program)
    return text


def print_node(node: ast.Program) -> str:
    """The text of a tree that need not come from a file."""
    return render(Printer(node.source, Comments()).program(node), WIDTH)


def level(node: ast.Expression) -> int:
    """How tightly an expression binds."""
    match node:
        case ast.LoopExpr() | ast.Update():
            return _LOOSE
        case ast.Binary(operator):
            return _LEVELS[operator]
        case ast.Compare():
            return _COMPARISON
        case ast.Unary(operator):
            return _NOT if operator == "not" else _NEGATION
    return _ATOM


def _is_short(node: ast.Expression) -> bool:
    """Whether an operand is a name or a number, and the other stays on its line."""
    return isinstance(node, (ast.Name, ast.Number))


class Printer:
    """Lays out the nodes of one source."""

    def __init__(self, source: Source, comments: Comments) -> None:
        self.text = source.text
        self.comments = comments

    # Lines

    def program(self, program: ast.Program) -> Document:
        lines: list[tuple[Document, bool]] = self.whole_lines(self.comments.alone)
        previous: ast.Declaration | None = None
        for declaration in program.declarations:
            apart = isinstance(previous, _DECLARATIONS_WITH_BODY) or isinstance(declaration, _DECLARATIONS_WITH_BODY)
            lines += self.lines(declaration, self.declaration(declaration), apart)
            previous = declaration
        return (self.stacked(lines), HARD) if lines else ""

    def block(self, statements: Sequence[ast.Statement | ast.StructField]) -> Document:
        if not statements:
            return "{}"
        lines: list[tuple[Document, bool]] = []
        for statement in statements:
            line = self.item(statement) if isinstance(statement, ast.StructField) else self.statement(statement)
            lines += self.lines(statement, line, False)
        opening = self.line_ends(self.comments.before, statements[0])
        return ("{", *opening, Indent((HARD, self.stacked(lines))), HARD, "}")

    def lines(self, node: ast.Node, document: Document, apart: bool) -> list[tuple[Document, bool]]:
        """A node with its comments, each with whether a blank line stands before it."""
        behind = self.line_ends(self.comments.behind, node)
        lines = self.whole_lines(self.comments.above.get(node, []))
        lines += [((document, *behind), self.blank_before(node.span.start))]
        lines += self.whole_lines(self.comments.below.get(node, []))
        return [(lines[0][0], lines[0][1] or apart), *lines[1:]]

    def whole_lines(self, comments: Sequence[Comment]) -> list[tuple[Document, bool]]:
        return [(comment.text, self.blank_before(comment.position)) for comment in comments]

    def line_ends(self, comments: Mapping[ast.Node, Sequence[Comment]], node: ast.Node) -> tuple[LineEnd, ...]:
        return tuple(LineEnd(comment.text) for comment in comments.get(node, ()))

    def stacked(self, lines: list[tuple[Document, bool]]) -> Document:
        parts: list[Document] = []
        for document, blank in lines:
            if parts:
                parts.append(BLANK if blank else HARD)
            parts.append(document)
        return tuple(parts)

    def blank_before(self, position: int) -> bool:
        """Whether the line above that of `position`, which begins it, is empty."""
        line = self.text.rfind("\n", 0, position)
        if line < 0 or self.text[line + 1 : position].strip():
            return False
        return not self.text[self.text.rfind("\n", 0, line) + 1 : line].strip()

    # Declarations and statements

    def declaration(self, node: ast.Declaration) -> Document:
        match node:
            case ast.Import(path):
                return ("import ", self.expression(path))
            case ast.Const(name, value):
                return ("const ", name.text, " = ", self.expression(value))
            case ast.Mesh(name, axes):
                return ("mesh ", name.text, self.items("(", axes, ")"))
            case ast.Format(name, value):
                return ("format ", name.text, " = ", self.expression(value))
            case ast.Struct(name, dims, fields):
                return ("struct ", name.text, self.items("(", dims, ")"), " ", self.block(fields))
            case ast.Function(name, generics, parameters, result, statements):
                head = ("fn ", name.text, self.items("[", generics, "]") if generics else "")
                arrow = (" -> ", self.type(result)) if result is not None else ("",)
                return (*head, self.items("(", parameters, ")"), *arrow, " ", self.block(statements))
            case ast.Test(name, statements):
                return ("test ", self.expression(name), " ", self.block(statements))

    def statement(self, node: ast.Statement) -> Document:
        match node:
            case ast.Return(values):
                return ("return ", self.values(values))
            case ast.Yield(values):
                return ("yield ", self.values(values))
            case ast.Emit(values):
                return ("emit ", self.values(values))
            case ast.Assert(condition):
                return ("assert ", self.expression(condition))
            case ast.Assign(targets, values):
                return (join(", ", [self.item(target) for target in targets]), " = ", self.values(values))
            case ast.Define(name, binders, value):
                return (name.text, self.items("[", binders, "]"), " = ", self.expression(value))
            case ast.If(condition, then, otherwise):
                head = ("if ", self.unbroken(condition, _OR), " ", self.block(then))
                if is_chained(node):
                    return (*head, " else ", self.statement(otherwise[0]))
                return (*head, " else ", self.block(otherwise)) if otherwise else head

    def values(self, values: Sequence[ast.Expression]) -> Document:
        if len(values) == 1:
            return self.expression(values[0])
        return Group(Indent(join((",", SPACE), [self.expression(value) for value in values])))

    # Lists in brackets

    def items(self, opening: str, nodes: Sequence[ast.Node], closing: str) -> Document:
        """A list on the line of its brackets, else on one of its own, else with a line for each item and a comma after
        the last."""
        if not nodes:
            return opening + closing
        broken = any(self.comments.of(node) for node in nodes)
        parts: list[Document] = []
        for node in nodes:
            document = self.item(node)
            comma: Document = "," if node is not nodes[-1] else IfBroken(",")
            parts.append(self.commented(node, document, comma) if broken else (document, comma))
            if node is not nodes[-1]:
                parts.append(HARD if broken else SPACE)
        if broken:
            behind = self.line_ends(self.comments.before, nodes[0])
            return Group((opening, *behind, Indent((HARD, *parts)), HARD, closing))
        return Group((opening, Indent((SOFT, Group(tuple(parts)))), SOFT, closing))

    def commented(self, node: ast.Node, document: Document, comma: Document) -> Document:
        """An item of a list with its comments, the comma before the one at the end of its line."""
        behind = self.line_ends(self.comments.behind, node)
        lines: list[Document] = [comment.text for comment in self.comments.above.get(node, [])]
        lines.append((document, comma, *behind))
        lines += [comment.text for comment in self.comments.below.get(node, [])]
        return join(HARD, lines)

    def item(self, node: ast.Node) -> Document:
        """One item of a list, or a name with its type."""
        match node:
            case ast.Identifier(text):
                return text
            case ast.Keyword(name, value):
                return (name.text, "=", self.expression(value))
            case ast.StructField(name, type) | ast.State(name, type) | ast.Target(name, type):
                typed = (name.text, ": ", self.type(type)) if type is not None else (name.text,)
                return (*typed, " = ", self.expression(node.value)) if isinstance(node, ast.State) else typed
            case ast.Parameter(name, type, default, const):
                head = ("const " if const else "", name.text, (": ", self.type(type)) if type is not None else "")
                return (*head, " = ", self.expression(default)) if default is not None else head
            case ast.Generic(name, kind):
                return f"{name.text}: {kind.text}"
            case ast.Pack(name):
                return f"..{name}"
            case ast.Ellipsis():
                return "..."
            case ast.Slice(start, stop, step):
                ends = [self.tight(end) if end is not None else "" for end in (start, stop)]
                return (ends[0], ":", ends[1], (":", self.tight(step)) if step is not None else "")
            case ast.Binder(name, lower, upper):
                return self.binder(name, lower, upper)
            case ast.Dim(size, sharding):
                return self.dim(size, _ATOM) + self.sharding(sharding) if sharding is not None else self.dim(size, 0)
            case ast.TensorTypeExpr() | ast.StructTypeExpr() | ast.TupleTypeExpr():
                return self.type(node)
        assert isinstance(node, ast.Expression)
        return self.expression(node)

    def binder(self, name: ast.Identifier, lower: ast.Expression | None, upper: ast.Expression | None) -> Document:
        if upper is None:
            return name.text
        if lower is None:
            return (name.text, " < ", self.expression(upper, _SUM))
        return (name.text, " in ", self.tight(lower, _SUM), "..", self.tight(upper, _SUM))

    # Types

    def type(self, node: ast.TypeExpression) -> Document:
        match node:
            case ast.TensorTypeExpr(name, dims, along):
                axes = ", ".join(axis.text for axis in along.axes) if along else ""
                axes = f"({axes})" if along and len(along.axes) > 1 else axes
                empty = "[]" if along and along.word != "replicated" else ""
                suffix = f"{{{along.word}: {axes}}}" if along else ""
                return (name.text, self.items("[", dims, "]") if dims else empty, suffix)
            case ast.StructTypeExpr(name, dims, length):
                suffix = f"[{self.dim(length, 0)}]" if length is not None else ""
                return (name.text, self.items("(", dims, ")"), suffix)
            case ast.TupleTypeExpr(items):
                return self.items("(", items, ")")

    def dim(self, node: ast.DimExpression, minimum: int) -> str:
        """A size, without spaces."""
        match node:
            case ast.DimName(name):
                text, own = name, _ATOM
            case ast.DimNumber(value):
                text, own = str(value), _ATOM
            case ast.DimBinary(operator, left, right):
                own = _LEVELS[operator]
                text = f"{self.dim(left, own)}{operator}{self.dim(right, own + 1)}"
        return f"({text})" if own < minimum or self.parenthesised(node) else text

    def sharding(self, node: ast.Sharding) -> str:
        axes = [axis.text for axis in node.axes] + ["?"] * node.open
        text = ", ".join(axes) or "_"
        priority = "" if node.priority is None else f"!{node.priority}"
        return f"@({text}){priority}" if len(axes) > 1 else f"@{text}{priority}"

    # Expressions

    def tight(self, node: ast.Expression, minimum: int = _LOOSE) -> Document:
        """A bound of a range or slice: arithmetic on names and numbers without spaces."""
        match node:
            case ast.Binary(operator, left, right) if operator not in ("and", "or"):
                own = _LEVELS[operator]
                text: Document = (self.tight(left, own), operator, self.tight(right, own + 1))
                return ("(", text, ")") if own < minimum or self.parenthesised(node) else text
        return self.expression(node, minimum)

    def expression(self, node: ast.Expression, minimum: int = _LOOSE, hang: bool = True) -> Document:
        """An expression, in parentheses where it binds less than `minimum`. Where `hang` is false it stands alone in
        brackets, so that its further lines need no indentation."""
        if level(node) < minimum or self.parenthesised(node):
            return Group(("(", Indent((SOFT, self.bare(node, False))), SOFT, ")"))
        return self.bare(node, hang)

    def bare(self, node: ast.Expression, hang: bool) -> Document:
        """An expression without parentheses of its own."""
        match node:
            case ast.Name(text) | ast.Number(text):
                return text
            case ast.String(value):
                return f'"{value}"'
            case ast.Bool(value):
                return "true" if value else "false"
            case ast.NoneLiteral():
                return "none"
            case ast.TupleExpr((single,)):
                return ("(", self.item(single), ",)")
            case ast.TupleExpr(items):
                return self.items("(", items, ")")
            case ast.Unary(operator, operand):
                return ("not " if operator == "not" else "-", self.expression(operand, level(node)))
            case ast.Binary() | ast.Compare():
                return self.chain(node, hang)
            case ast.Call(function, positional, keywords):
                return (function.text, self.items("(", (*positional, *keywords), ")"))
            case ast.Derived(transform, positional, keywords):
                return (self.expression(transform), self.items("(", (*positional, *keywords), ")"))
            case ast.Comprehension(head, binders, body):
                return (head.text, self.items("[", binders, "]"), self.body(body))
            case ast.Subscript(value, items):
                return (self.expression(value, _POSTFIX), self.items("[", items, "]"))
            case ast.Field(value, name):
                # 1.x would read as a number.
                minimum = _ATOM + 1 if isinstance(value, ast.Number) else _POSTFIX
                return (self.expression(value, minimum), ".", name.text)
            case ast.Update(target, items, operator, value):
                region = (target.text, self.items("[", items, "]"))
                return Group(("update ", *region, f" {operator}", Indent((SPACE, self.expression(value)))))
            case ast.LoopExpr():
                return self.loop(node)

    def body(self, node: ast.Expression) -> Document:
        """The body of a reduction in its parentheses."""
        document = self.expression(node, hang=False)
        if not self.comments.of(node):
            return Group(("(", Indent((SOFT, document)), SOFT, ")"))
        behind = self.line_ends(self.comments.before, node)
        return ("(", *behind, Indent((HARD, self.commented(node, document, ""))), HARD, ")")

    def chain(self, node: ast.Binary | ast.Compare, hang: bool) -> Document:
        """Operators of one level, broken all or none, after the operator."""
        own = level(node)
        rest: list[Document] = []
        first: ast.Expression = node
        while isinstance(first, (ast.Binary, ast.Compare)) and level(first) == own:
            if first is not node and self.parenthesised(first):
                break
            operand = self.expression(first.right, _NEGATION if own == _POWER else own + 1)
            rest += [operand, SPACE, f" {first.operator}"]
            first = first.left
            if own in (_POWER, _COMPARISON):
                break
        if len(rest) == 3 and {_is_short(node.left), _is_short(node.right)} == {True, False}:
            rest[1] = " "  # 0.5 * (…): the brackets break
        tail = tuple(reversed(rest))
        # Of a power the left side, and of a comparison both, bind more than it does.
        head = self.expression(first, own + 1)
        return Group((head, Indent(tail) if hang else tail))

    def unbroken(self, node: ast.Expression, minimum: int) -> Document:
        """An expression on one line, unless it is long: there is a better place to break before it."""
        document = self.expression(node, minimum)
        text = render(document, sys.maxsize)
        return text if len(text) < WIDTH // 2 and "\n" not in text else document

    def loop(self, node: ast.LoopExpr) -> Document:
        head = (node.kind, " ", self.items("(", node.states, ")"), " for ")
        counted = self.binder(node.counter, node.lower, node.upper)
        condition = (" while ", self.unbroken(node.condition, _OR)) if node.condition is not None else ()
        return (*head, counted, *condition, " ", self.block(node.body))

    def parenthesised(self, node: ast.Expression | ast.DimExpression) -> bool:
        """Whether the source has parentheses around just this node: its span takes them in."""
        start = node.span.start
        if isinstance(node, ast.TupleExpr) or self.text[start : start + 1] != "(":
            return False
        match node:
            case ast.Binary() | ast.Compare() | ast.DimBinary():
                return node.left.span.start > start
            case ast.Subscript(value) | ast.Field(value):
                return value.span.start > start
        return True
