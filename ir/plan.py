"""The plan: what remains of a program after `lower` and `plan-memory`. Calls, loops and copies over buffers.

The CPU back end compiles a plan to one native entry function. A plan never writes an input, but for those that outputs
take.

Entry (C ABI): `int32_t NAME(const void *const *inputs, void *const *outputs, const int64_t *sizes, char *workspace,
int64_t *error_record, const int32_t *interrupt)`. `inputs` has one pointer for each parameter of the graph (for a list
parameter a pointer to a table of pointers), `outputs` one for each result, `sizes` the values of `sizes`. The workspace
is 64-byte aligned and holds `workspace_bytes`. Returns 0, a positive number of a failed run-time check (its details are
in the error record: number, count, values…), or -1 where `interrupt` was seen not to be 0 between kernels.
The entry of a plan with exchanges has one more argument, `int32_t (*exchange)(int64_t number, const void *source, void
*target)`, which does the one of that number; where it gives anything but 0, the entry ends with -2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from intarsia.ir.dtypes import DType
from intarsia.ir.errors import Span
from intarsia.ir.kernel import Kernel
from intarsia.ir.ops.collective import Collective, DeviceIndex, Done
from intarsia.ir.sizes import ZERO, Size


@dataclass(frozen=True)
class Slot:
    """A piece of memory with a name.

    place: `input` number `index`, `output` number `index`, or `workspace` at byte `offset`, a multiple of 64.
    A list input has `length` set and `shape` is that of one element. There is one output slot for each result, in
    order; workspace slots may overlap where their values are not needed at the same time. An output that `takes` an
    input is the memory of it, given away by the caller, and begins with its contents; the plan does not name that input
    elsewhere.
    """

    name: str
    dtype: DType
    shape: tuple[Size, ...]
    place: Literal["input", "output", "workspace"]
    index: int = 0
    offset: Size = ZERO
    length: Size | None = None
    takes: str = ""


@dataclass(frozen=True)
class Reference:
    """An operand of a statement: a slot or a loop state by name, element `element` of a list, or the part that begins
    `start` elements in (a row of a stacked result, at any multiple of its element's size).

    `element` and `start` may use sizes and the counters of loops around, and `element` may read scalars as the bounds
    of a `Repeat` do; it is in range.
    """

    name: str
    element: Size | None = None
    start: Size = ZERO


@dataclass(frozen=True)
class Invoke:
    """Run a kernel: one reference for each of its parameters, one size for each of its `sizes`.

    A result (role `out` or `inout`) shares no memory with another parameter; inputs may be the same memory. A parameter
    of role `temp` is scratch memory, undefined before and after: what was an `Alloc` at the top level of the kernel and
    large or of open size.
    """

    kernel: str
    arguments: tuple[Reference, ...]
    sizes: tuple[Size, ...] = ()
    span: Span | None = None


@dataclass(frozen=True)
class Copy:
    """Copy `elements` elements of `dtype`; source and target do not overlap."""

    source: Reference
    target: Reference
    dtype: DType
    elements: Size


@dataclass(frozen=True)
class Exchange:
    """Take part in a collective with what is at `source`, and put what it gives at `target`, which does not overlap.

    `node` says what is done; its operand is a parameter that stands for `source`, which is None for a `DeviceIndex`.
    One that is started reads `source` and writes `target` until its `Done`, an exchange of the same two, whose operand
    is the node of the first. The exchanges of a plan are numbered from 0 in the order of its text.
    """

    node: Collective | DeviceIndex | Done
    source: Reference | None
    target: Reference
    number: int


@dataclass(frozen=True)
class State:
    """A loop-carried tensor. Within the loop `name` is the current value and `name.next` where the step writes.

    The first step reads `initial`; steps write `buffers[0]`, `buffers[1]`, `buffers[0]`, … in turn, so a step never
    writes what it reads. With one buffer the step works in place, and `initial` is that buffer. With two, `initial` is
    never written while it is read; it may be `buffers[1]`. After the loop, as far as the statements around it go,
    `name` is the last value: `initial` if no step ran.
    """

    name: str
    initial: Reference
    buffers: tuple[Reference, ...]


@dataclass(frozen=True)
class Repeat:
    """`for counter in lower..upper`, and, if `condition` is given, as long as it holds: before each step run `test`,
    then read the bool scalar `condition`.

    Bounds are evaluated once, on entry. They use sizes and the counters of loops around, and may read scalars: an
    `Opaque` expression with a load, without subscripts, of a slot or state by name. The counter is a name for the sizes
    of the statements inside, not of `initial` and `buffers` of states.
    """

    counter: str
    lower: Size
    upper: Size
    states: tuple[State, ...]
    body: tuple[PlanStatement, ...]
    test: tuple[PlanStatement, ...] = ()
    condition: Reference | None = None


PlanStatement: TypeAlias = Invoke | Copy | Exchange | Repeat


@dataclass(frozen=True)
class Plan:
    """The whole program. `sizes` are the dimension names that stayed open and are passed at run time.

    Its last inputs are the results of `preparation`, if there is one.
    """

    name: str
    slots: tuple[Slot, ...]
    body: tuple[PlanStatement, ...]
    kernels: tuple[Kernel, ...]
    sizes: tuple[str, ...]
    workspace_bytes: Size
    preparation: Preparation | None = None

    @property
    def whole(self) -> tuple[Plan, ...]:
        """The plan, after the one that prepares its constants."""
        return (self,) if self.preparation is None else (self.preparation.plan, self)

    @cached_property
    def exchanges(self) -> tuple[Exchange, ...]:
        """All exchanges, by their numbers."""
        return tuple(sorted(_exchanges(self.body), key=lambda e: e.number))

    def slot(self, name: str) -> Slot:
        return next(s for s in self.slots if s.name == name)


def _exchanges(body: Sequence[PlanStatement]) -> Iterator[Exchange]:
    for statement in body:
        if isinstance(statement, Exchange):
            yield statement
        elif isinstance(statement, Repeat):
            yield from _exchanges((*statement.test, *statement.body))


@dataclass(frozen=True)
class Preparation:
    """What a program computes from constants alone, once for any number of calls: a plan whose inputs are the
    program's inputs of these numbers."""

    plan: Plan
    inputs: tuple[int, ...]
