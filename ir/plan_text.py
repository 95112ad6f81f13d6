"""The text of a plan, for people: where everything lies, and what runs.

    plan f(B) workspace 128 bytes {
      input 0 x: f32[4, 8]
      output 0 result: f32[4]
      workspace 0 exp: f32[4, 8]
      run f_exp(x, exp)
      repeat t in 0..10 (h = x: h.0, h.1) {
        run f_step(h, h.next) sizes t
        copy 32 f32 h.next -> result from 32 * t
        exchange all_reduce axes=(data,) devices=2 : f32[4, 8] h -> h.next
      }
    }

The kernels follow. A plan that prepares constants stands before the one that takes what it made. Nothing reads it back:
`intarsia opt` takes the dumps before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from intarsia.ir.kernel_text import print_kernel
from intarsia.ir.plan import Copy, Exchange, Invoke, Plan, PlanStatement, Reference, Repeat, Slot, State
from intarsia.ir.sizes import ZERO
from intarsia.ir.text_printer import operation_text


def print_plan(plan: Plan, kernels: bool = True) -> str:
    """The text of a plan and, unless told otherwise, of its kernels."""
    sizes = f"({', '.join(plan.sizes)})" if plan.sizes else ""
    lines = [f"plan {plan.name}{sizes} workspace {plan.workspace_bytes} bytes {{"]
    lines += [f"  {_slot(s)}" for s in plan.slots]
    lines += [f"  {line}" for line in _lines(plan.body)]
    text = "\n".join((*lines, "}"))
    text = "\n\n".join((text, *(print_kernel(k) for k in plan.kernels))) if kernels else text
    return text if plan.preparation is None else f"{print_plan(plan.preparation.plan, kernels)}\n\n{text}"


def print_plan_statement(statement: PlanStatement) -> str:
    """The text of one statement."""
    return "\n".join(_lines((statement,)))


def _slot(slot: Slot) -> str:
    shape = f"[{', '.join(map(str, slot.shape))}]" if slot.shape else ""
    many = f"list[{slot.length}] " if slot.length is not None else ""
    where = slot.offset if slot.place == "workspace" else slot.index
    return f"{slot.place} {where} {slot.name}: {many}{slot.dtype}{shape}{f' in {slot.takes}' if slot.takes else ''}"


def _lines(body: Iterable[PlanStatement]) -> Iterator[str]:
    for statement in body:
        match statement:
            case Invoke(kernel, arguments, sizes):
                tail = f" sizes {', '.join(map(str, sizes))}" if sizes else ""
                yield f"run {kernel}({', '.join(map(_reference, arguments))}){tail}"
            case Copy(source, target, dtype, elements):
                yield f"copy {elements} {dtype} {_reference(source)} -> {_reference(target)}"
            case Exchange(node, given, made):
                read = "" if given is None else f"{_reference(given)} "
                yield f"exchange {operation_text(node)} : {node.value.type} {read}-> {_reference(made)}"
            case Repeat():
                yield from _repeat(statement)


def _repeat(loop: Repeat) -> Iterator[str]:
    states = f" ({'; '.join(map(_state, loop.states))})" if loop.states else ""
    yield f"repeat {loop.counter} in {loop.lower}..{loop.upper}{states} {{"
    if loop.condition is not None:
        yield from (f"  {line}" for line in _lines(loop.test))
        yield f"  while {_reference(loop.condition)}"
    yield from (f"  {line}" for line in _lines(loop.body))
    yield "}"


def _state(state: State) -> str:
    if state.buffers == (state.initial,):
        return f"{state.name} in {_reference(state.initial)}"
    return f"{state.name} = {_reference(state.initial)}: {', '.join(map(_reference, state.buffers))}"


def _reference(reference: Reference) -> str:
    element = f"[{reference.element}]" if reference.element is not None else ""
    start = f" from {reference.start}" if reference.start != ZERO else ""
    return f"{reference.name}{element}{start}"
