"""Index notation as ops: `compute` defines every element of a tensor, `update` changes a region of one."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.ir.graph import Node, Structured, Value
from intarsia.ir.kernel import PutOperator
from intarsia.ir.scalar import Expr, loads
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis, Space, arrange, rename_buffers, rename_size_buffers, size_loads
from intarsia.ir.types import TensorType, Type


@dataclass(frozen=True, eq=False)
class Compute(Structured):
    """A tensor given by a space: `y[i, j] = sum[k](x[i, k] * w[k, j])`.

    Text: `%2 = compute [i < 4, j < 8] sum[k < 16](%x[i, k] * %w[k, j]) : f32[4, 8]`. The operands are distinct
    values, in the order in which the space first reads them (they are put so on construction); a list operand is read
    with one more, leading, subscript.
    A subscript that depends on data is clamped to the tensor; an affine one is in bounds wherever its value counts.
    """

    arguments: tuple[Value, ...]
    definition: Space

    def __post_init__(self) -> None:
        arguments, names = arrange(self.arguments, self.definition.loads())
        if names or len(arguments) != len(self.arguments):
            object.__setattr__(self, "arguments", arguments)
            object.__setattr__(self, "definition", self.definition.rename_operands(names))
        super().__post_init__()

    @property
    def space(self) -> Space:
        return self.definition

    def infer(self) -> tuple[Type, ...]:
        return (TensorType(self.definition.dtype, self.definition.shape),)


@dataclass(frozen=True, eq=False)
class Update(Node):
    """A tensor equal to `base` but where the targets are written: `update a[i in 1..N-1, j] += …`.

    For every point of `axes`, the element of the result at `targets` is combined with `body` by `operator`. The body
    reads operands as `a0`, `a1`, …: `a0` is the old base, the others are put in the order of first reading. A write
    outside the tensor (targets that depend on data) is dropped. With `=` no two points have the same target, unless
    data makes them so.

    Text: `%2 = update %a[i, %bin[i]] += [i in 1..N - 1] (…) : f32[N, 8]`.
    """

    base: Value
    arguments: tuple[Value, ...]
    axes: tuple[Axis, ...]
    targets: tuple[Size, ...]
    operator: PutOperator
    body: Expr

    def __post_init__(self) -> None:
        values = (self.base, *self.arguments)
        bounds = (b for a in self.axes for b in (a.lower, a.upper))
        arranged, names = arrange(values, (*size_loads((*self.targets, *bounds)), *loads(self.body)), kept=1)
        if names or len(arranged) != len(values):
            object.__setattr__(self, "arguments", arranged[1:])
            object.__setattr__(self, "axes", tuple(a.rename_operands(names) for a in self.axes))
            object.__setattr__(self, "targets", tuple(rename_size_buffers(t, names) for t in self.targets))
            object.__setattr__(self, "body", rename_buffers(self.body, names))
        super().__post_init__()

    def infer(self) -> tuple[Type, ...]:
        return (self.base.tensor,)
