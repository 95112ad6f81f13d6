"""The builder: evaluates expressions and runs statements on symbolic values, and collects what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from intarsia.dsl import ast
from intarsia.dsl.evaluation import calls, derivatives, fitting, index, indexing, loops, operators, updates
from intarsia.dsl.evaluation.nodes import NodeMaker
from intarsia.dsl.semantics.names import ScopeNames
from intarsia.dsl.semantics.scope import File, Scope, suggest
from intarsia.dsl.semantics.signature import Signature, read_signature
from intarsia.dsl.semantics.types import TuplePattern, named_format, read_type
from intarsia.dsl.semantics.unify import Unifier
from intarsia.dsl.semantics.values import (
    EXPRESSIONS,
    FormatTensor,
    Item,
    Poison,
    Poisoned,
    Struct,
    StructList,
    describe,
    tensor_of,
)
from intarsia.ir.dtypes import dtype
from intarsia.ir.errors import CompileError, Diagnostic, Span
from intarsia.ir.gradients.spaces import CustomRules
from intarsia.ir.graph import Value
from intarsia.ir.ops import Matmul
from intarsia.ir.types import TensorType

MAX_DIAGNOSTICS = 20


@dataclass(frozen=True)
class CallSite:
    """A function that is being evaluated, and where it was called; the function that is built has no call."""

    function: ast.Function
    file: File
    span: Span | None


@dataclass(frozen=True)
class Assigned:
    """A tensor that a name of the user's program was given: by an assignment or a definition, once for each time that
    the statement is built."""

    name: str
    value: Value
    span: Span


@dataclass
class Builder(NodeMaker):
    """One build. `assigned` collects what names were given, in order.

    `representative` says that the function is only checked: a static condition that depends on an unknown size then
    has both of its sides checked, and a tensor of a format stands for itself.
    """

    prelude: File | None = None
    representative: bool = False
    calls: list[CallSite] = field(default_factory=list)
    diagnostics: list[Diagnostic] = field(default_factory=list)
    reported: set[tuple[str, Span | None]] = field(default_factory=set)
    counters_used: set[str] = field(default_factory=set)
    signatures: dict[ast.Function, Signature] = field(default_factory=dict)
    constants: dict[ast.Const, Item] = field(default_factory=dict)
    assigned: list[Assigned] = field(default_factory=list)
    custom: CustomRules = field(default_factory=CustomRules)  # nodes that custom_grad has given a derivative

    # ------------------------------------------------------------------ reporting

    def report(self, error: CompileError) -> None:
        """Keep a mistake, once; it is blamed on the user's call where the prelude found it."""
        for diagnostic in error.diagnostics:
            placed = self._placed(diagnostic)
            key = (placed.code, placed.span)
            if key not in self.reported and len(self.diagnostics) < MAX_DIAGNOSTICS:
                self.reported.add(key)
                self.diagnostics.append(placed)

    def _placed(self, diagnostic: Diagnostic) -> Diagnostic:
        inner = next((i for i, site in enumerate(self.calls) if site.file.is_prelude), None)
        own = self.calls if inner is None else self.calls[:inner]
        notes = list(diagnostic.notes)
        span = diagnostic.span
        if inner is not None:
            site = self.calls[inner]
            is_inside = span is not None and span.source is site.file.source
            if is_inside or span is None:
                if span is not None:
                    notes.append((f"in {site.function.name} of the standard library", span))
                span = site.span
        notes += [(f"in the call of {s.function.name} from here", s.span) for s in reversed(own) if s.span is not None]
        return replace(diagnostic, span=span, notes=tuple(notes))

    @contextmanager
    def inside(self, site: CallSite) -> Iterator[None]:
        """Evaluate the body of a function."""
        self.calls.append(site)
        before = self.user_span
        if site.file.is_prelude and before is None:
            self.user_span = site.span
        try:
            yield
        finally:
            self.calls.pop()
            self.user_span = before

    # ------------------------------------------------------------------ expressions

    def evaluate(self, node: ast.Expression, scope: Scope) -> Item:
        """The value of an expression. Raises CompileError, or Poisoned where a name in it is known to be wrong."""
        match node:
            case ast.Name(name):
                return self._name(name, node.span, scope)
            case ast.Number(_, value) | ast.Bool(value):
                return value
            case ast.String(text):
                return text
            case ast.NoneLiteral():
                return None
            case ast.Binary() | ast.Compare():
                return self._binary(node, scope)
            case ast.Unary(symbol, operand):
                name = "neg" if symbol == "-" else "not"
                part = (self.evaluate(operand, scope), operand.span)
                return operators.apply_function(self, scope, name, [part], node.span)
            case ast.Call():
                return calls.call(self, node, scope)
            case ast.Derived():
                return derivatives.derived(self, node, scope)
            case ast.Subscript():
                return indexing.subscript(self, node, scope)
            case ast.Field(value, name):
                return self._field(self.evaluate(value, scope), name, node.span)
            case ast.Comprehension():
                return index.comprehension(self, node, scope)
            case ast.TupleExpr(items):
                return tuple(self.evaluate(item, scope) for item in items)
            case ast.Update():
                return updates.update(self, node, scope)
            case ast.LoopExpr():
                return loops.loop(self, node, scope)

    def _name(self, name: str, span: Span, scope: Scope) -> Item:
        if (found := scope.lookup(name)) is not None:
            return found.item
        if (constant := scope.file.constant(name)) is not None:
            return self.constant(*constant)
        if (element := dtype(name)) is not None:
            return element
        if (declared := named_format(name, scope.file.format(name))) is not None:
            return declared
        if scope.file.function(name) or calls.is_built_in(self, name):
            raise CompileError("E0301", f"`{name}` is a function", span, hint=f"call it: {name}(…)")
        hint = suggest(name, [*scope.visible(), *scope.file.names()])
        if not hint and scope.frame is not None:
            hint = f"an index is bound on the left, or by a reduction: sum[{name}](…)"
        raise CompileError("E0301", f"no value is named `{name}`", span, hint=hint)

    def constant(self, declaration: ast.Const, file: File) -> Item:
        """The literal that a constant stands for; it may use constants of its own file."""
        if declaration in self.constants:
            value = self.constants[declaration]
            if isinstance(value, Poison):
                raise CompileError("E0312", f"`{declaration.name}` is defined by itself", declaration.span)
            return value
        self.constants[declaration] = Poison()
        try:
            value = self.evaluate(declaration.value, Scope(file))
        finally:
            del self.constants[declaration]
        if not isinstance(value, (bool, int, float, str, tuple)):
            hint = "a constant is a literal: a number, true, false, a text or a tuple of these"
            raise CompileError("E0312", f"`{declaration.name}` is {describe(value)}", declaration.value.span, hint=hint)
        self.constants[declaration] = value
        return value

    def _binary(self, node: ast.Binary | ast.Compare, scope: Scope) -> Item:
        """A chain of operators that lean left is walked in a loop, however long it is."""
        chain: list[ast.Binary | ast.Compare] = [node]
        while isinstance(left := chain[-1].left, (ast.Binary, ast.Compare)):
            chain.append(left)
        result = self.evaluate(chain[-1].left, scope)
        for link in reversed(chain):
            right = self.evaluate(link.right, scope)
            if link.operator == "@":
                result = self._matmul(result, right, link, scope)
            else:
                parts = [(result, link.left.span), (right, link.right.span)]
                result = operators.apply_function(self, scope, operators.SYMBOLS[link.operator], parts, link.span)
        return result

    def _matmul(self, left: Item, right: Item, node: ast.Binary | ast.Compare, scope: Scope) -> Item:
        for item, operand in ((left, node.left), (right, node.right)):
            found = tensor_of(item)
            if isinstance(item, FormatTensor):
                hint = "a format is storage: dequantize(…) gives its values as f32"
                message = f"matrix product of {describe(left)} and {describe(right)}"
                raise CompileError("E0202", message, operand.span, hint=hint)
            if found is None or not found.rank:
                message = f"matrix product of {describe(left)} and {describe(right)}: {describe(item)} has no dimension"
                raise CompileError("E0203", message, operand.span, hint="a product with a scalar is written with `*`")
        a, b = self.as_value(left, node.left.span), self.as_value(right, node.right.span)
        inner_a, inner_b = a.tensor.shape[-1], b.tensor.shape[-2 if b.tensor.rank > 1 else 0]
        what = f"matrix product of {a.type} and {b.type}"
        if a.dtype != b.dtype:
            source = node.right.span.source.text[node.right.span.start : node.right.span.end]
            hint = f"nothing is converted unasked: cast one of them, as in {a.dtype}({source})"
            raise CompileError("E0202", f"{what}: the dtypes differ", node.span, hint=hint)
        if a.dtype.is_narrow:
            hint = f"{a.dtype} is storage: cast it up first, as in f32(x)"
            raise CompileError("E0202", f"{what}: {a.dtype} has no arithmetic", node.span, hint=hint)
        if self.bounds.compare(inner_a, inner_b) is False:
            show = self.bounds.show
            message = f"{what}: inner dimensions {show(inner_a)} and {show(inner_b)} differ"
            raise CompileError("E0203", message, node.span, hint=self._matmul_hint(node, b, inner_a, inner_b, scope))
        shape = list(b.tensor.shape)
        shape[-2 if len(shape) > 1 else 0] = inner_a
        a, b = operators.align_batches(self, a, self.reshaped(b, shape, node.span), node.span, what)
        return self.add(Matmul(a, b, span=node.span)).value

    def _matmul_hint(
        self, node: ast.Binary | ast.Compare, right: Value, wanted: object, given: object, scope: Scope
    ) -> str:
        """Where the right operand comes from, and what to do about it."""
        text = node.right.span.source.text[node.right.span.start : node.right.span.end]
        binding = scope.find(text)
        if binding is None:
            return ""
        shape = right.tensor.shape
        fits = len(shape) > 1 and shape[-1] == wanted
        advice = f"transpose it: transpose({text})" if fits else "transpose it, or change its first dimension"
        return f"{text} is {right.type} ({binding.span}); {advice}"

    def _field(self, value: Item, name: ast.Identifier, span: Span) -> Item:
        if isinstance(value, StructList):
            hint = f"it is a list: subscript it first, as in [i].{name}"
            raise CompileError("E0313", f"{value} has no field `{name}`", name.span, hint=hint)
        if not isinstance(value, (Struct, FormatTensor)):
            hint = "only structs and tensors of a format have fields; functions are called by name, as in sum(x)"
            raise CompileError("E0313", f"{describe(value)} has no field `{name}`", name.span, hint=hint)
        if name.text not in value.fields:
            hint = suggest(name.text, value.fields) or f"its fields are {', '.join(value.fields)}"
            raise CompileError("E0313", f"{value} has no field `{name}`", name.span, hint=hint)
        return value.fields[name.text]

    # ------------------------------------------------------------------ functions

    def signature(self, function: ast.Function, file: File) -> Signature:
        """The signature of a function, read once."""
        if function not in self.signatures:
            self.signatures[function] = read_signature(function, file)
        return self.signatures[function]

    def function_body(self, signature: Signature, unifier: Unifier, scope: Scope, span: Span | None) -> Item:
        """The result of a call; `scope` has the arguments. What is wrong in the body is reported here."""
        with self.inside(CallSite(signature.function, signature.file, span)):
            try:
                self._defaults(signature, unifier, scope)
                items = self._returned(signature, unifier, signature.function.body, scope)
            except CompileError as error:
                self.report(error)
                raise Poisoned from None
        return items[0] if len(items) == 1 else items

    def _defaults(self, signature: Signature, unifier: Unifier, scope: Scope) -> None:
        """Give the parameters that have no argument their defaults."""
        for parameter in signature.parameters:
            default = parameter.declaration.default
            if parameter.name in scope.names or default is None:
                continue
            item = self.evaluate(default, scope)
            if parameter.pattern is not None:
                what = f"the default of `{parameter.name}`"
                item = fitting.fit_parameter(self, item, parameter.pattern, unifier, what, default.span)
            scope.bind(parameter.name, item, parameter.declaration.name.span)

    def _returned(
        self, signature: Signature, unifier: Unifier, body: Sequence[ast.Statement], scope: Scope
    ) -> tuple[Item, ...]:
        """Run a body and give what it returns, with the declared types."""
        if not body or not isinstance(body[-1], (ast.Return, ast.If)):
            self.run(body, scope)
            hint = "it ends with `return`"
            raise CompileError("E0503", f"{signature.name} returns nothing", signature.function.name.span, hint=hint)
        *statements, last = body
        self.run(statements, scope)
        if isinstance(last, ast.If):
            results = [self._returned(signature, unifier, b, scope) for b in self.branches(last, scope)]
            return results[0]
        assert isinstance(last, ast.Return)
        items = self.values(last.values, scope)
        spans = [v.span for v in last.values] if len(last.values) == len(items) else [last.values[0].span] * len(items)
        return fitting.fit_results(self, items, signature, unifier, spans)

    # ------------------------------------------------------------------ statements

    def run(self, statements: Sequence[ast.Statement], scope: Scope) -> None:
        """Run statements that give nothing: assignments, definitions and static `if`s.

        A mistake is reported, and the names that it should have given are not reported again.
        """
        for statement in statements:
            self.attempt(statement, scope, partial(self._statement, statement, scope))

    def attempt(self, statement: ast.Statement, scope: Scope, action: Callable[[], None]) -> None:
        """Do something for a statement; if that fails, report it and poison the names that the statement binds."""
        try:
            action()
        except CompileError as error:
            self.report(error)
            self._poison(statement, scope)
        except Poisoned:
            self._poison(statement, scope)

    def _poison(self, statement: ast.Statement, scope: Scope) -> None:
        match statement:
            case ast.Assign(targets):
                for target in targets:
                    scope.bind(target.name.text, Poison(), target.span)
            case ast.Define(name):
                scope.bind(name.text, Poison(), name.span)
            case ast.If(_, then, otherwise):
                for inner in (*then, *otherwise):
                    self._poison(inner, scope)

    def _statement(self, statement: ast.Statement, scope: Scope) -> None:
        match statement:
            case ast.Assign(targets, values):
                self._assign(targets, values, scope)
            case ast.Define():
                item = index.define(self, statement, scope)
                self._bind(statement.name, item, scope)
            case ast.If():
                for branch in self.branches(statement, scope):
                    self.run(branch, scope)
            case ast.Assert():
                hint = 'asserts stand in tests: test "name" { assert … }'
                raise CompileError("E0503", "an assert outside of a test", statement.span, hint=hint)
            case ast.Return():
                raise CompileError("E0503", "`return` is the last statement of a function", statement.span)
            case ast.Yield() | ast.Emit():
                word = "yield" if isinstance(statement, ast.Yield) else "emit"
                hint = "in a loop, `yield` comes after all assignments, and `emit` beside it"
                raise CompileError("E0503", f"`{word}` stands in the wrong place", statement.span, hint=hint)

    def branches(self, statement: ast.If, scope: Scope) -> list[tuple[ast.Statement, ...]]:
        """The statements that a static `if` chooses; both sides where only sizes not at hand decide."""
        condition = self.evaluate(statement.condition, scope)
        if isinstance(condition, bool):
            return [statement.then if condition else statement.otherwise]
        decided = calls.static_truth(self, condition)
        if decided is not None:
            return [statement.then if decided else statement.otherwise]
        found = tensor_of(condition)
        if found is not None and not found.rank and calls.is_static(self, condition):
            if self.representative:
                return [statement.then, statement.otherwise]
            hint = "give the sizes that it depends on, as in --dim N=64"
            raise CompileError(
                "E0502", "this condition depends on a size that is not known", statement.condition.span, hint=hint
            )
        hint = "`if` chooses statements when the program is compiled; to choose values use where(c, a, b)"
        message = f"the condition of `if` is {describe(condition)}, which is not known when the program is compiled"
        raise CompileError("E0502", message, statement.condition.span, hint=hint)

    def _assign(self, targets: tuple[ast.Target, ...], values: tuple[ast.Expression, ...], scope: Scope) -> None:
        items = self.values(values, scope)
        spans = [v.span for v in values] if len(values) == len(items) else [values[0].span] * len(items)
        if len(targets) != len(items):
            if len(targets) == 1:
                names = ", ".join("abcdefgh"[: len(items)])
                hint = f"take them apart: {names} = …; `_` drops one"
                message = f"{len(items)} values for one name"
            else:
                hint = "`_` drops a value"
                message = f"{len(targets)} names for {_values(len(items))}"
            raise CompileError("E0505", message, targets[0].span.to(targets[-1].span), hint=hint)
        for target, item, span in zip(targets, items, spans):
            if target.type is not None:
                item = self.declared(item, target.type, scope, f"`{target.name}`", span)
            if scope.frame is None and isinstance(item, TensorType):
                raise CompileError("E0310", f"`{target.name}` would be a type", span)
            self._bind(target.name, item, scope)

    def _bind(self, name: ast.Identifier, item: Item, scope: Scope) -> None:
        """Give a name its item, and note a tensor of the user's program."""
        scope.bind(name.text, item, name.span)
        if isinstance(item, Value) and not scope.file.is_prelude:
            self.assigned.append(Assigned(name.text, item, name.span))

    def values(self, expressions: tuple[ast.Expression, ...], scope: Scope) -> tuple[Item, ...]:
        """The values of `a, b`, or of one expression that gives several tensors."""
        if len(expressions) > 1:
            return tuple(self.evaluate(e, scope) for e in expressions)
        item = self.evaluate(expressions[0], scope)
        if isinstance(item, tuple) and any(
            isinstance(i, (Value, FormatTensor, Struct, StructList, *EXPRESSIONS)) for i in item
        ):
            return item
        return (item,)

    def declared(self, item: Item, expression: ast.TypeExpression, scope: Scope, what: str, span: Span) -> Item:
        """An item that is given a type: literals take it, everything else must have it."""
        pattern = read_type(expression, ScopeNames(scope))
        if isinstance(pattern, TuplePattern):
            raise CompileError("E0304", f"{what} has the type of several values", expression.span)
        return fitting.fit_pattern(self, item, pattern, Unifier(self.bounds, {}), what, span)


def _values(count: int) -> str:
    return "1 value" if count == 1 else f"{count} values"
