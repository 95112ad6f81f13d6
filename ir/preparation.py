"""What a kernel computes from constants only, and therefore once for all calls.

A temporary in `prepared` memory belongs to it, and the statements at the top level of the kernel that write one. Run in
order with all others, as the interpreter does, they mean what they always mean; a plan runs them once, before the first
call, as a kernel of their own:

    kernel f(x: …, const w: …, out y: …) {         kernel f_prepare(const w: …, out wp: …) { for i { wp[i] = w[…] } }
      alloc wp: f32[64] prepared              =>
      for i { wp[i] = w[…] }                       kernel f(x: …, const w: …, const wp: …, out y: …) {
      for j { y[j] = x[j] * wp[…] }                  for j { y[j] = x[j] * wp[…] }
    }                                              }
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from intarsia.ir.kernel import Alloc, Buffer, Call, Check, Kernel, Prefetch, Put, Statement, walk
from intarsia.ir.kernel_access import expressions, sizes_of
from intarsia.ir.scalar import loads


def prepared_buffers(kernel: Kernel) -> tuple[Buffer, ...]:
    """The temporaries that are computed once."""
    return tuple(_prepared(kernel.body))


def preparation_problems(kernel: Kernel) -> Iterator[str]:
    """Why what is to be computed once cannot be: it lives inside a loop, or something else is done along with it, or it
    depends on what changes."""
    names = {b.name for b in _prepared(s for s, _ in walk(kernel.body))}
    if not names:
        return
    if inside := names - {b.name for b in prepared_buffers(kernel)}:
        yield f"{', '.join(sorted(inside))} would be made anew in each iteration of a loop"
    known = names | {b.name for b in kernel.parameters if b.constant}
    for statement in kernel.body:
        written = _written(statement)
        if written.isdisjoint(names):
            continue
        own = {s.buffer.name for s, _ in walk((statement,)) if isinstance(s, Alloc)}
        if others := written - names - own:
            yield f"{', '.join(sorted(others))} would be written together with {', '.join(sorted(written & names))}"
        if others := _read(statement) - known - own:
            yield f"{', '.join(sorted(written & names))} would depend on {', '.join(sorted(others))}, which may change"
        if any(isinstance(s, Check) for s, _ in walk((statement,))):
            yield "a check would run once for all calls"


def split_preparation(kernel: Kernel) -> tuple[Kernel | None, Kernel]:
    """What is computed once, as a kernel from constants to the prepared temporaries, and the kernel that takes these as
    constants too. None and the kernel as it is where there is nothing."""
    prepared = prepared_buffers(kernel)
    if not prepared:
        return None, kernel
    names = {b.name for b in prepared}
    first = tuple(s for s in kernel.body if not _written(s).isdisjoint(names))
    rest = tuple(s for s in kernel.body if s not in first and not (isinstance(s, Alloc) and s.buffer in prepared))
    used = {name for s in first for name in _read(s)}
    constants = tuple(b for b in kernel.parameters if b.constant and b.name in used)
    made = tuple(replace(b, memory="global", role="out") for b in prepared)
    given = tuple(replace(b, memory="global", role="in", constant=True) for b in prepared)
    others = tuple(b for b in kernel.parameters if b.role != "in")
    symbols = _symbols(first).union(*(extent.symbols for b in (*constants, *made) for extent in b.extents))
    sizes = tuple(name for name in kernel.sizes if name in symbols)
    once = Kernel(f"{kernel.name}.prepare", (*constants, *made), first, sizes, kernel.span)
    return once, replace(kernel, parameters=(*kernel.inputs, *given, *others), body=rest)


def _prepared(statements: Iterable[Statement]) -> Iterator[Buffer]:
    return (s.buffer for s in statements if isinstance(s, Alloc) and s.buffer.memory == "prepared")


def _written(statement: Statement) -> set[str]:
    """The buffers that a statement, or one inside it, writes."""
    found: set[str] = set()
    for inner, _ in walk((statement,)):
        match inner:
            case Put(buffer):
                found.add(buffer)
            case Call(writes=writes):
                found.update(name for name, _ in writes)
    return found


def _read(statement: Statement) -> set[str]:
    """The buffers that a statement, or one inside it, reads."""
    found: set[str] = set()
    for inner, _ in walk((statement,)):
        found.update(load.buffer for e in expressions(inner) for load in loads(e))
        match inner:
            case Prefetch(buffer):
                found.add(buffer)
            case Call(reads=reads):
                found.update(name for name, _ in reads)
    return found


def _symbols(body: tuple[Statement, ...]) -> frozenset[str]:
    """The names that integer expressions of statements use."""
    found: set[str] = set()
    for statement, _ in walk(body):
        found.update(s for size in sizes_of(statement) for s in size.symbols)
        found.update(s for e in expressions(statement) for s in e.symbols)
        if isinstance(statement, Alloc):
            found.update(s for extent in statement.buffer.shape for s in extent.symbols)
    return frozenset(found)
