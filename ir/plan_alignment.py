"""Which parameters of kernels may begin anywhere: a row of a stacked result begins at any multiple of its elements."""

from __future__ import annotations

from collections.abc import Iterator

from intarsia.ir.plan import Invoke, Plan, PlanStatement, Reference, Repeat, State
from intarsia.ir.sizes import Size


def unaligned_parameters(plan: Plan, bytes_: int) -> dict[str, frozenset[str]]:
    """For each kernel, the parameters that are somewhere given memory that may not begin at a multiple of so many
    bytes. Memory that a caller gives begins at one."""
    states = [s for statement in _walk(plan.body) if isinstance(statement, Repeat) for s in statement.states]
    loose = _loose_states(plan, states, bytes_)
    kernels = {k.name: k for k in plan.kernels}
    found: dict[str, set[str]] = {k.name: set() for k in plan.kernels}
    for statement in _walk(plan.body):
        if isinstance(statement, Invoke):
            for given, parameter in zip(statement.arguments, kernels[statement.kernel].parameters):
                if given.name in loose or not _is_multiple(given.start * parameter.dtype.bytes, bytes_):
                    found[statement.kernel].add(parameter.name)
    return {name: frozenset(parameters) for name, parameters in found.items()}


def _loose_states(plan: Plan, states: list[State], bytes_: int) -> set[str]:
    """Names of states, and of what their steps write, that may begin anywhere."""
    element = {slot.name: slot.dtype.bytes for slot in plan.slots}
    loose: set[str] = set()

    def is_loose(r: Reference) -> bool:
        return r.name in loose or not _is_multiple(r.start * element.get(r.name, 1), bytes_)

    while True:
        more = {s.name for s in states if s.name not in loose and any(map(is_loose, (s.initial, *s.buffers)))}
        if not more:
            return loose
        loose |= more | {f"{name}.next" for name in more}


def _is_multiple(size: Size, number: int) -> bool:
    return all(coefficient % number == 0 for _, coefficient in size.terms)


def _walk(body: tuple[PlanStatement, ...]) -> Iterator[PlanStatement]:
    for statement in body:
        yield statement
        if isinstance(statement, Repeat):
            yield from _walk((*statement.test, *statement.body))
