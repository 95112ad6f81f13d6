"""Index notation as ops: `compute` defines every element of a tensor, `update` changes a region of one."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.ir.graph import Node, Structured, Value
from intarsia.ir.kernel import PutOperator
from intarsia.ir.scalar import Expr
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis, Space
from intarsia.ir.types import TensorType, Type


@dataclass(frozen=True, eq=False)
class Compute(Structured):
    """A tensor given by a space: `y[i, j] = sum[k](x[i, k] * w[k, j])`.

    Text: `%2 = compute [i < 4, j < 8] sum[k < 16](%x[i, k] * %w[k, j]) : f32[4, 8]`. The operands are distinct
    values, in the order in which the space first reads them; a list operand is read with one more, leading, subscript.
    A subscript that depends on data is clamped to the tensor; an affine one is in bounds wherever its value counts.
    """

    arguments: tuple[Value, ...]
    definition: Space

    @property
    def space(self) -> Space:
        return self.definition

    def infer(self) -> tuple[Type, ...]:
        return (TensorType(self.definition.dtype, self.definition.shape),)


@dataclass(frozen=True, eq=False)
class Update(Node):
    """A tensor equal to `base` but where the targets are written: `update a[i in 1..N-1, j] += …`.

    For every point of `axes`, the element of the result at `targets` is combined with `body` by `operator`. The body
    reads operands as `a0`, `a1`, …: `a0` is the old base. A write outside the tensor (targets that depend on data) is
    dropped. With `=` no two points have the same target, unless data makes them so.

    Text: `%2 = update %a[i, bin] += [i in 1..N - 1] (…) : f32[N]`.
    """

    base: Value
    arguments: tuple[Value, ...]
    axes: tuple[Axis, ...]
    targets: tuple[Size, ...]
    operator: PutOperator
    body: Expr

    def infer(self) -> tuple[Type, ...]:
        return (self.base.tensor,)
