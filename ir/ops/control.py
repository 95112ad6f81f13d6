"""Loops, lists of tensors, an order of execution, and the groups that passes make."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.ir.graph import Node, Parameter, Region, Value
from intarsia.ir.sizes import Size
from intarsia.ir.space import arrange, rename_size_buffers, size_loads
from intarsia.ir.types import ListType, TensorType, Type


@dataclass(frozen=True, eq=False)
class Loop(Node):
    """Runs `body` for `counter` in lower..upper while `condition` holds, and gives the last state, then what a scan
    stacks along a new first dimension.

    The parameters of `body` (and of `condition`) are the states; body yields the next states, then the `stacked`
    values to emit. `counter` is a name, unique in the graph, that spaces inside use as a symbol. The bounds may load
    scalar operands as `a0`, `a1`, … (the `scalars`). A loop with upper <= lower runs no step. `stacked` values need
    bounds that do not depend on data.

    Text: `%3:2 = loop t in 0..10 (%x = %a, %y = %b) while { … } { … yield %5, %6 } : f32[4], f32[4]`; a loop with
    stacked values prints as `scan`.
    """

    counter: str
    lower: Size
    upper: Size
    scalars: tuple[Value, ...]
    initial: tuple[Value, ...]
    body: Region
    condition: Region | None = None
    stacked: int = 0

    def __post_init__(self) -> None:
        scalars, names = arrange(self.scalars, size_loads((self.lower, self.upper)))
        if names or len(scalars) != len(self.scalars):
            object.__setattr__(self, "scalars", scalars)
            object.__setattr__(self, "lower", rename_size_buffers(self.lower, names))
            object.__setattr__(self, "upper", rename_size_buffers(self.upper, names))
        super().__post_init__()

    def infer(self) -> tuple[Type, ...]:
        states = self.body.results[: len(self.initial)]
        emitted = self.body.results[len(self.initial) :]
        fits = len(emitted) == self.stacked and len(self.body.parameters) == len(self.initial) == len(states)
        self.require(fits, "a step yields one value for each state")
        for state, initial in zip(states, self.initial):
            same = state.tensor.plain == initial.tensor.plain  # how it lies may change
            self.require(same, f"a state is {initial.type} but becomes {state.type}")
        steps = self.upper - self.lower
        return (
            *(s.type for s in states),
            *(TensorType(e.dtype, (steps, *e.tensor.shape)) for e in emitted),
        )

    @property
    def states(self) -> tuple[Parameter, ...]:
        return self.body.parameters


@dataclass(frozen=True, eq=False)
class ListGet(Node):
    """One tensor of a list, or row of a tensor: `%1 = list_get %w[t]`. The subscript is an integer expression over
    counters and names, or loads scalar operands (`a0` is the first of `scalars`); one that depends on data is clamped.
    """

    source: Value
    index: Size
    scalars: tuple[Value, ...] = ()

    def __post_init__(self) -> None:
        scalars, names = arrange(self.scalars, size_loads((self.index,)))
        if names or len(scalars) != len(self.scalars):
            object.__setattr__(self, "scalars", scalars)
            object.__setattr__(self, "index", rename_size_buffers(self.index, names))
        super().__post_init__()

    def infer(self) -> tuple[Type, ...]:
        match self.source.type:
            case ListType(element=element):
                return (element,)
            case TensorType(dtype, (_, *shape)):
                return (TensorType(dtype, tuple(shape)),)
        self.require(False, f"{self.source.type} has no rows")
        return ()


@dataclass(frozen=True, eq=False)
class After(Node):
    """x, once the other values are there: what reads it is not done before them, as equal work on x may be."""

    x: Value
    others: tuple[Value, ...]

    def infer(self) -> tuple[Type, ...]:
        return (self.x.type,)


@dataclass(frozen=True, eq=False)
class Fused(Node):
    """Nodes that become one kernel. The body has no parameters; it uses values from outside directly.

    Text: `%3 = fused { … yield %1, %2 } : f32[4], f32[4, 8]`.
    """

    body: Region

    def infer(self) -> tuple[Type, ...]:
        return tuple(v.type for v in self.body.results)


@dataclass(frozen=True, eq=False)
class Call(Node):
    """A kernel run on tensors: what `lower` leaves. `sizes` are the values of the kernel's `sizes`, in order."""

    kernel: str
    arguments: tuple[Value, ...]
    types: tuple[Type, ...]
    sizes: tuple[Size, ...] = ()

    def infer(self) -> tuple[Type, ...]:
        return self.types
