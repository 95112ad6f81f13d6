"""The Kernel: loops over buffers, the same nodes before and after scheduling.

Semantics is the sequential reading: loops in order, statements in order; a mask skips the element; a masked-off load
gives `other` and touches no memory; a fresh `Alloc` holds undefined values. The kind of a loop only adds a promise,
checked when a schedule step makes it: `parallel` and `grid` iterations touch nothing that another writes, `lane`
iterations run at once (or the statement reduces over them), those of `scan` too, but for the running values of
reductions, which they read; `unroll` bounds are numbers; the iterations of `dot` are parts of a word in each lane.
There are no vector types: a `lane` loop is a vector, a `register` buffer is memory whose subscripts are all unroll,
lane and dot axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, TypeAlias

from intarsia.ir.dtypes import DType
from intarsia.ir.errors import Span
from intarsia.ir.scalar import Expr, Mask
from intarsia.ir.sizes import Size

Memory = Literal["global", "cache", "register", "shared", "prepared"]
Role = Literal["in", "out", "inout", "temp"]
LoopKind = Literal["seq", "parallel", "grid", "unroll", "lane", "scan", "dot"]
PutOperator = Literal["=", "+=", "*=", "max=", "min=", "and=", "or="]

LANES: frozenset[LoopKind] = frozenset({"lane", "scan"})
"""Kinds of loops whose iterations are elements of a vector or block."""

FIXED: frozenset[LoopKind] = LANES | {"unroll", "dot"}
"""Kinds of loops whose bounds are numbers, so that their axes may subscript registers."""

PUT_FUNCTIONS: dict[PutOperator, str] = {
    "+=": "add", "*=": "mul", "max=": "maximum", "min=": "minimum", "and=": "and", "or=": "or",
}  # fmt: skip
"""The scalar function by which an accumulating `Put` merges the old value with the new."""

COMBINER_OPERATORS: dict[str, PutOperator] = {
    "sum": "+=", "prod": "*=", "max": "max=", "min": "min=", "all": "and=", "any": "or=",
}  # fmt: skip


@dataclass(frozen=True)
class Buffer:
    """A dense row-major array. Parameters of a kernel are `global`; a temporary lives from its `Alloc` to the end of
    the block. A `list` parameter has `length` set: it is a table of that many buffers of one `shape`, subscripted by
    one more, leading, index. A `constant` parameter does not change between calls; a temporary in `prepared` memory
    depends on such parameters only and is computed once for all calls (`ir/preparation.py`). `described`: a GPU moves
    blocks of it by tensor descriptors, where a block is a rectangle (`ir/rectangles.py`). `rounded`: the type of 16
    bits to which all is rounded that later kernels make of it, if there is one."""

    name: str
    dtype: DType
    shape: tuple[Size, ...]
    memory: Memory = "global"
    role: Role = "temp"
    length: Size | None = None
    constant: bool = False
    described: bool = False
    rounded: DType | None = None

    @property
    def extents(self) -> tuple[Size, ...]:
        """One extent for each subscript: `shape`, after the length of a list."""
        return self.shape if self.length is None else (self.length, *self.shape)

    def __str__(self) -> str:
        text = f"{self.dtype}[{', '.join(map(str, self.shape))}]" if self.shape else str(self.dtype)
        return text if self.length is None else f"list[{self.length}] {text}"


@dataclass(frozen=True)
class For:
    """`for axis in lower..upper step n`. Axis names are unique in a kernel."""

    axis: str
    lower: Size
    upper: Size
    body: tuple[Statement, ...]
    kind: LoopKind = "seq"
    step: int = 1


@dataclass(frozen=True)
class Put:
    """The only write: `buffer[indices] op value where mask`. It converts nothing. With `numbers`, it does not matter
    what a minimum or maximum becomes if a value is NaN: whatever depends on it is NaN then, by way of something else.
    """

    buffer: str
    indices: tuple[Size, ...]
    operator: PutOperator
    value: Expr
    mask: Mask = ()
    nontemporal: bool = False
    atomic: bool = False
    numbers: bool = False
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class If:
    """Whole tiles that differ. The condition is affine; masks of single elements sit on loads and writes."""

    condition: Mask
    then: tuple[Statement, ...]
    otherwise: tuple[Statement, ...] = ()


@dataclass(frozen=True)
class Alloc:
    """Makes a temporary; its values are undefined until written."""

    buffer: Buffer


@dataclass(frozen=True)
class Prefetch:
    """A hint: bring the line that holds this element into cache `level` (1 nearest)."""

    buffer: str
    indices: tuple[Size, ...]
    level: int = 1
    write: bool = False


@dataclass(frozen=True)
class Check:
    """A run-time check: where `condition` (bool) is false, record `number` and `values` (i64) as the error."""

    number: int
    condition: Expr
    values: tuple[Expr, ...] = ()
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Call:
    """An opaque routine (sort) over whole rows: `call sort(x[i, :]) -> y[i, :]`. Leading subscripts are given; the
    last dimension is the row."""

    routine: str
    reads: tuple[tuple[str, tuple[Size, ...]], ...]
    writes: tuple[tuple[str, tuple[Size, ...]], ...]
    length: Size


Statement: TypeAlias = For | Put | If | Alloc | Prefetch | Check | Call


@dataclass(frozen=True)
class Kernel:
    """A function over buffers. `sizes` are names (dynamic dimensions, loop counters) passed as i64 arguments.
    On a GPU, `warps` groups of 32 threads run a program, and `stages` steps of a loop are under way at once; 0 leaves
    that to the back end. At most `programs` programs share what the loops over a grid do, each of them every so many
    iterations of these, in order; 0 is a program for each iteration.

    Parameters come inputs first, then results (role `out`) and in-place ones (role `inout`), then, in a plan, scratch
    memory (role `temp`), all `global`.
    """

    name: str
    parameters: tuple[Buffer, ...]
    body: tuple[Statement, ...]
    sizes: tuple[str, ...] = ()
    span: Span | None = field(default=None, compare=False, repr=False)
    warps: int = 0
    stages: int = 0
    programs: int = 0

    @property
    def inputs(self) -> tuple[Buffer, ...]:
        return tuple(b for b in self.parameters if b.role == "in")

    @property
    def outputs(self) -> tuple[Buffer, ...]:
        return tuple(b for b in self.parameters if b.role in ("out", "inout"))

    def buffers(self) -> Mapping[str, Buffer]:
        """Every buffer, parameters and temporaries, by name."""
        return self._buffers

    @cached_property
    def _buffers(self) -> Mapping[str, Buffer]:
        found = {b.name: b for b in self.parameters}
        found.update((s.buffer.name, s.buffer) for s, _ in walk(self.body) if isinstance(s, Alloc))
        return found

    def with_body(self, body: tuple[Statement, ...]) -> Kernel:
        return replace(self, body=body)


def walk(body: tuple[Statement, ...], loops: tuple[For, ...] = ()) -> Iterator[tuple[Statement, tuple[For, ...]]]:
    """Every statement with the loops around it, outermost first; a loop comes before what is in it."""
    pending = [(statement, loops) for statement in reversed(body)]
    while pending:
        statement, around = pending.pop()
        yield statement, around
        if isinstance(statement, For):
            inside = (*around, statement)
            pending += [(s, inside) for s in reversed(statement.body)]
        elif isinstance(statement, If):
            pending += [(s, around) for s in reversed((*statement.then, *statement.otherwise))]
