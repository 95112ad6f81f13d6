"""`loop` and `scan`: state that is carried from step to step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intarsia.dsl import ast
from intarsia.dsl.evaluation.fitting import fit
from intarsia.dsl.evaluation.structs import listed, put_together, same_struct, tensors_of
from intarsia.dsl.semantics.scope import Scope
from intarsia.dsl.semantics.values import Item, describe, leaves_of, tensor_of
from intarsia.ir.dtypes import BOOL, I64
from intarsia.ir.errors import CompileError, Span
from intarsia.ir.gradients.records import recording
from intarsia.ir.graph import Node, Parameter, Region, Value, region_of
from intarsia.ir.ops import Compute, Loop
from intarsia.ir.scalar import Index
from intarsia.ir.sizes import ZERO, Size, maximum, minimum
from intarsia.ir.space import Space
from intarsia.ir.types import TensorType

if TYPE_CHECKING:
    from intarsia.dsl.evaluation.builder import Builder


def loop(builder: Builder, node: ast.LoopExpr, scope: Scope) -> Item:
    """The last states of a loop, and what a scan stacks."""
    states = [_State.of(builder, state, scope) for state in node.states]
    initial = [value for state in states for value in state.initial]
    count = len(initial)
    names = [state.name.text for state in node.states]
    if len(set(names)) < len(names):
        raise CompileError("E0314", "two states have one name", node.states[-1].span)
    lower = ZERO if node.lower is None else _bound(builder, node.lower, scope)
    upper = _bound(builder, node.upper, scope)
    if node.kind == "scan":
        upper = _require_scan(builder, node, lower, upper)
    counter = builder.counter_symbol(node.counter.text, builder.counters_used)
    with _counting(builder, counter, lower, upper):
        body, emitted = _body(builder, node, states, counter, scope)
        condition = _condition(builder, node, states, counter, scope)
        used = (v for r in (body, condition) if r is not None for v in r.captures)
        if counter in builder.counter_values and builder.counter_values[counter] in used:
            body, condition = _carry_counter(builder, counter, body, condition, count, node.span)
            initial.append(_scalar(builder, lower, node.span))
    bounds, scalars = builder.canonical([lower, upper])
    stacked = len(body.results) - len(initial)
    made = Loop(counter, bounds[0], bounds[1], scalars, tuple(initial), body, condition, stacked, span=node.span)
    values = _added(builder, made)
    last, rows = iter(values[:count]), iter(values[len(initial) :])
    results = (
        *(put_together(state.form, last) for state in states),
        *(listed(form, upper - lower, rows, node.span) for form in emitted),
    )
    return results[0] if len(results) == 1 else results


def _added(builder: Builder, node: Loop) -> Sequence[Value]:
    """The results of a loop in the graph; where a derivative wants them, it stacks the states of its steps too."""
    count = len(node.initial) + node.stacked
    if builder.saves_states:
        node = recording(node, builder.bounds.counters, builder.add) or node
    return builder.add(node).values[:count]


def stack(builder: Builder, length: Size, step: Callable[[Size], Sequence[Item]], span: Span) -> list[Item]:
    """What `step` gives for each index below a length, stacked: a list of structs where it gives a struct."""
    counter = builder.counter_symbol("item", builder.counters_used)
    with _counting(builder, counter, ZERO, length), builder.region() as nodes:
        forms = list(step(Size.of(counter)))
        results = [value for form in forms for value in tensors_of(builder, form, span)]
        body = _region(builder, (), nodes, results)
    rows = iter(_added(builder, Loop(counter, ZERO, length, (), (), body, None, len(results), span=span)))
    return [listed(form, length, rows, span) for form in forms]


def accumulate(builder: Builder, length: Size, first: Value, step: Callable[[Size, Value], Item], span: Span) -> Value:
    """What `step` makes of a value, one after the other for each index below a length."""
    counter = builder.counter_symbol("item", builder.counters_used)
    total = Parameter("total", first.type)
    with _counting(builder, counter, ZERO, length), builder.region() as nodes:
        item = fit(builder, step(Size.of(counter), total.value), first.tensor, "the total", span)
        body = _region(builder, [total], nodes, [builder.as_value(item, span)])
    return _added(builder, Loop(counter, ZERO, length, (), (first,), body, span=span))[0]


@contextmanager
def _counting(builder: Builder, counter: str, lower: Size, upper: Size) -> Iterator[None]:
    """The counter has its range inside; if that ends where data says, it has a value too, by which it subscripts."""
    builder.bounds.counters[counter] = (lower, upper)
    if lower.opaques or upper.opaques:
        builder.counter_values[counter] = Parameter(counter, TensorType(I64)).value
    try:
        yield
    finally:
        del builder.bounds.counters[counter]
        builder.counter_values.pop(counter, None)


def _carry_counter(
    builder: Builder, counter: str, body: Region, condition: Region | None, states: int, span: Span
) -> tuple[Region, Region | None]:
    """The value of a counter as one more state of the loop."""
    carried = builder.counter_values[counter]
    assert isinstance(carried.node, Parameter)
    following = Compute((), Space((), Index(Size.of(counter) + 1), I64), span=span)
    results = (*body.results[:states], following.value, *body.results[states:])
    body = Region((*body.parameters, carried.node), (*body.nodes, following), results)
    if condition is not None:
        own = Parameter(counter, TensorType(I64))
        renamed = condition.rebuild({carried: own.value})
        condition = Region((*condition.parameters, own), renamed.nodes, renamed.results)
    return body, condition


def _scalar(builder: Builder, size: Size, span: Span) -> Value:
    """An integer as a scalar tensor."""
    return builder.compute(Space((), Index(size), I64), span)


@dataclass(frozen=True)
class _State:
    """A state of a loop: `form` is its first value, `initial` the tensors of that."""

    declared: ast.State
    form: Item
    initial: Sequence[Value]

    @staticmethod
    def of(builder: Builder, state: ast.State, scope: Scope) -> _State:
        item = builder.evaluate(state.value, scope)
        if state.type is not None:
            item = builder.declared(item, state.type, scope, f"`{state.name}`", state.value.span)
        initial = tensors_of(builder, item, state.value.span)
        return _State(state, put_together(item, initial), initial)


def _bound(builder: Builder, expression: ast.Expression, scope: Scope) -> Size:
    """A bound of a loop; that one of data is at most a size stays to be seen: `minimum(n, 100)`."""
    match expression:
        case ast.Call(ast.Identifier("minimum"), (first, second), ()) if not _is_hidden("minimum", scope):
            return minimum(_bound(builder, first, scope), _bound(builder, second, scope))
    return builder.integer(builder.evaluate(expression, scope), expression.span, "a bound of a loop")


def _is_hidden(name: str, scope: Scope) -> bool:
    """Does a name of a built-in function stand for something else?"""
    return scope.find(name) is not None or scope.file.function(name) is not None


def _require_scan(builder: Builder, node: ast.LoopExpr, lower: Size, upper: Size) -> Size:
    """The upper bound of a scan: a size, and no condition."""
    if node.condition is not None:
        hint = "a loop has `while`; a scan stacks a fixed number of results"
        raise CompileError("E0506", "a scan has no `while`", node.condition.span, hint=hint)
    if lower.opaques or upper.opaques:
        hint = "its number of steps is the size of what it stacks: use a dimension, or a loop"
        raise CompileError("E0506", "the steps of a scan depend on data", node.upper.span, hint=hint)
    return upper if builder.bounds.holds(upper - lower) is not False else maximum(lower, upper)


def _body(
    builder: Builder, node: ast.LoopExpr, states: Sequence[_State], counter: str, scope: Scope
) -> tuple[Region, Sequence[Item]]:
    """The region of one step, and what it emits."""
    inner = _step_scope(builder, node, counter, scope)
    parameters = _bind_states(states, inner)
    with builder.region() as nodes:
        statements, yielded, emitted = _parts(node)
        builder.run(statements, inner)
        results = _yielded(builder, yielded, states, inner)
        emits, spans = _items(builder, emitted, inner)
        stacked = [v for item, span in zip(emits, spans) for v in tensors_of(builder, item, span)]
        return _region(builder, parameters, nodes, [*results, *stacked]), emits


def _region(
    builder: Builder, parameters: Sequence[Parameter], nodes: Sequence[Node], results: Sequence[Value]
) -> Region:
    """A region of what its results need, and what the derivatives that custom_grad gives may need."""
    if builder.custom.keys().isdisjoint(nodes):
        return region_of(parameters, nodes, results)
    return Region(tuple(parameters), tuple(nodes), tuple(results))


def _step_scope(builder: Builder, node: ast.LoopExpr, counter: str, scope: Scope) -> Scope:
    """The scope of a step. No index of index notation around the loop may be used in it."""
    inner = Scope(scope.file, {}, scope, None, scope.memo)
    inner.bind(node.counter.text, Size.of(counter), node.counter.span, "counter")
    return inner


def _bind_states(states: Sequence[_State], scope: Scope) -> list[Parameter]:
    """A parameter for each tensor of the states."""
    parameters: list[Parameter] = []
    for state in states:
        name = state.declared.name
        labels = [label for label, _ in leaves_of(state.form, name.text)]
        own = [Parameter(n.replace(".*", ""), v.type, span=state.declared.span) for n, v in zip(labels, state.initial)]
        scope.bind(name.text, put_together(state.form, [p.value for p in own]), name.span)
        parameters += own
    return parameters


def _parts(node: ast.LoopExpr) -> tuple[Sequence[ast.Statement], ast.Yield, ast.Emit | None]:
    """The assignments of a body, its `yield` and its `emit`. Raises E0503 and E0506."""
    statements = list(node.body)
    ending: list[ast.Statement] = []
    while statements and isinstance(statements[-1], (ast.Yield, ast.Emit)):
        ending.append(statements.pop())
    yields = [s for s in ending if isinstance(s, ast.Yield)]
    emits = [s for s in ending if isinstance(s, ast.Emit)]
    if len(yields) != 1:
        text = "a body ends with one `yield`" if not yields else "a second `yield`"
        names = ", ".join(str(s.name) for s in node.states)
        where = yields[0].span if yields else node.span
        raise CompileError("E0503", text, where, hint=f"it gives the next value of {names}")
    if node.kind == "loop" and emits:
        raise CompileError("E0506", "a loop has no `emit`", emits[0].span, hint="a scan stacks what it emits")
    if node.kind == "scan" and len(emits) != 1:
        hint = "a scan emits what it stacks; without that it is a loop"
        raise CompileError("E0506", "a scan has one `emit`", node.span, hint=hint)
    return statements, yields[0], emits[0] if emits else None


def _items(builder: Builder, node: ast.Yield | ast.Emit | None, scope: Scope) -> tuple[Sequence[Item], Sequence[Span]]:
    """What is yielded or emitted, with places."""
    if node is None:
        return (), ()
    items = builder.values(node.values, scope)
    return items, [v.span for v in node.values] if len(node.values) == len(items) else [node.span] * len(items)


def _yielded(builder: Builder, node: ast.Yield, states: Sequence[_State], scope: Scope) -> list[Value]:
    """The next states, of the types of the first ones."""
    items, spans = _items(builder, node, scope)
    if len(items) != len(states):
        names = ", ".join(str(s.declared.name) for s in states)
        count = "1 value is" if len(items) == 1 else f"{len(items)} values are"
        raise CompileError("E0505", f"{count} yielded for the states {names}", node.span)
    return [v for state, item, span in zip(states, items, spans) for v in _next(builder, state, item, span)]


def _next(builder: Builder, state: _State, item: Item, span: Span) -> list[Value]:
    """The tensors of a state after a step. Raises E0504 where it changes its type."""
    name = state.declared.name
    if not isinstance(state.form, Value):
        if not same_struct(builder, state.form, item):
            message = f"the state `{name}` is {describe(state.form)}, and {describe(item)} is yielded"
            raise CompileError("E0504", message, span)
        found = tensors_of(builder, item, span)
    else:
        wanted, kind = state.form.tensor, tensor_of(item)
        if kind is not None and (kind.dtype != wanted.dtype or kind.rank != wanted.rank):
            hint = "a state keeps its dtype and shape"
            if kind.dtype != wanted.dtype:
                hint += f": give it a type, ({name}: {kind} = …), or cast what is yielded"
            message = f"the state `{name}` is {wanted}, and {describe(item)} is yielded"
            raise CompileError("E0504", message, span, hint=hint)
        found = [builder.as_value(fit(builder, item, wanted, f"the state `{name}`", span), span)]
    return [builder.reshaped(v, first.tensor.shape, span) for v, first in zip(found, state.initial)]


def _condition(
    builder: Builder, node: ast.LoopExpr, states: Sequence[_State], counter: str, scope: Scope
) -> Region | None:
    """The region of a `while`, with states of its own."""
    if node.condition is None:
        return None
    inner = _step_scope(builder, node, counter, scope)
    parameters = _bind_states(states, inner)
    with builder.region() as nodes:
        item = builder.evaluate(node.condition, inner)
        found = tensor_of(item)
        if not isinstance(item, bool) and (found is None or found.rank or found.dtype != BOOL):
            message = f"the condition of `while` is {describe(item)}, not a scalar bool"
            hint = "any(…) and all(…) of a tensor are scalars" if found is not None and found.rank else ""
            raise CompileError("E0506", message, node.condition.span, hint=hint)
        return region_of(parameters, nodes, [builder.as_value(item, node.condition.span)])
