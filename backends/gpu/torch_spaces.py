"""Index notation in PyTorch.

Each axis is a dimension; an operand that is subscripted by whole axes is used as it is, any other one by subscripts
that are tensors. A sum of products is an `einsum` of its factors.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from intarsia.backends.gpu.torch_texts import (
    Text,
    Unwritten,
    applied,
    converted,
    integer,
    number,
    reinterpreted,
    require_type,
    torch_arithmetic_type,
)
from intarsia.backends.gpu.torch_types import TORCH_TYPES
from intarsia.ir.dtypes import BOOL, I64, DType
from intarsia.ir.graph import Value
from intarsia.ir.ops import Update
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, Index, Load, factors
from intarsia.ir.sizes import ZERO, Size
from intarsia.ir.space import Axis, Space, operand_position
from intarsia.ir.types import ListType, TensorType

_REDUCTIONS = {"sum": "sum", "prod": "prod", "max": "amax", "min": "amin", "any": "any", "all": "all"}


@dataclass
class SpaceWriter:
    """Writes one space or update.

    operands, values: the texts and the values of `a0`, `a1`, … size: an integer without axes as text. line: adds a
    line. fresh: makes a name.
    """

    operands: Sequence[Text]
    values: Sequence[Value]
    size: Callable[[Size], str]
    line: Callable[[str, str], None]
    fresh: Callable[[str], str]
    axes: dict[str, Axis] = field(default_factory=dict)
    ranges: dict[str, str] = field(default_factory=dict)
    conditions: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    def space(self, space: Space) -> Text:
        """The tensor that a space describes."""
        order = self.begin(space.all_axes)
        if (product := self._einsum(space)) is not None:
            return converted(product, space.dtype)
        body = self.value(space.body, order)
        if space.combiner is None:
            return converted(self._over(body, space.body, order), space.dtype)
        for condition, _ in self.conditions:
            neutral = number(space.neutral, body.dtype)
            body = applied("where", (Text(condition, BOOL), body, neutral), body.dtype)
        whole = self._over(body, space.body, order).text
        dims = tuple(range(len(space.axes), len(order)))
        return converted(Text(reduced(whole, space.combiner, dims, False, body.dtype), body.dtype), space.dtype)

    def update(self, node: Update) -> str:
        """The name of a copy of a tensor in which a region is changed."""
        order = self.begin(node.axes)
        if node.operator not in ("=", "+=") or not node.targets:
            raise Unwritten(f"PyTorch has no update by {node.operator} of any elements")
        shape = node.base.tensor.shape
        names = [self.fresh("target") for _ in shape]
        value = self.fresh("value")
        written = self._over(converted(self.value(node.body, order), node.base.dtype), node.body, order)
        targets = [self.index(t, order) for t in node.targets]
        self.line(", ".join((*names, value)), f"torch.broadcast_tensors({', '.join((*targets, written.tensor))})")
        inside = [f"({n} >= 0) & ({n} < {self.size(s)})" for n, s, t in zip(names, shape, node.targets) if t.opaques]
        inside += [condition for condition, _ in self.conditions]
        if inside:
            kept = self.fresh("inside")
            self.line(kept, f"({' & '.join(f'({i})' for i in inside)}).broadcast_to({value}.shape)")
            names, value = [f"{n}[{kept}]" for n in names], f"{value}[{kept}]"
        accumulate = ", accumulate=True" if node.operator == "+=" else ""
        return f"{self.operands[0].tensor}.index_put(({', '.join(names)},), {value}{accumulate})"

    # ------------------------------------------------------------------ axes

    def begin(self, axes: Sequence[Axis]) -> tuple[str, ...]:
        """Take the axes; those whose bounds are not the same everywhere get a condition."""
        self.axes = {a.name: a for a in axes}
        order = tuple(self.axes)
        for axis in axes:
            if any(b.opaques or b.symbols & self.axes.keys() for b in (axis.lower, axis.upper)):
                self._ragged(axis, order)
        return order

    def _ragged(self, axis: Axis, order: tuple[str, ...]) -> None:
        """An axis whose range depends on others, or on data: the widest range, under a condition."""
        lower, upper = (self.index(b, order) for b in (axis.lower, axis.upper))
        low, high = self.fresh(f"{axis.name}_lower"), self.fresh(f"{axis.name}_upper")
        self.line(low, lower)
        self.line(high, upper)
        name = self.ranges[axis.name] = self.fresh(axis.name)
        self.line(name, f"torch.arange(int({low}.min()), max(int({low}.min()), int({high}.max())), device=device)")
        here = self.axis(axis.name, order)
        self.conditions.append((f"(({here} >= {low}) & ({here} < {high}))", order))

    def axis(self, name: str, order: tuple[str, ...]) -> str:
        """The index of an axis as a tensor with a dimension for each axis from this one on."""
        if name not in self.ranges:
            axis = self.axes[name]
            self.ranges[name] = self.fresh(name)
            bounds = [self.size(axis.upper)] if axis.lower == ZERO else [self.size(axis.lower), self.size(axis.upper)]
            self.line(self.ranges[name], f"torch.arange({', '.join(bounds)}, device=device)")
        after = len(order) - order.index(name) - 1
        return self.ranges[name] + (f"[:{', None' * after}]" if after else "")

    def _extent(self, name: str) -> str:
        return f"len({self.ranges[name]})" if name in self.ranges else self.size(self.axes[name].extent)

    def _shape(self, order: Sequence[str]) -> str:
        return f"({', '.join(self._extent(a) for a in order)},)"

    def _over(self, value: Text, body: Expr, order: tuple[str, ...]) -> Text:
        """A value with all dimensions."""
        if value.literal or not order:
            if not order:
                return value
            shape, dtype = self._shape(order), torch_arithmetic_type(value.dtype)
            return Text(f"torch.full({shape}, {value.text}, dtype={dtype}, device=device)", value.dtype)
        used = self._axes_of(body) | {a for _, axes in self.conditions for a in axes}
        if used >= set(order):
            return value
        return Text(f"{value.text}.broadcast_to({self._shape(order)})", value.dtype)

    def _axes_of(self, e: Expr) -> set[str]:
        return {n for n in e.symbols if n in self.axes}

    # ------------------------------------------------------------------ values

    def value(self, e: Expr, order: tuple[str, ...]) -> Text:
        """An expression at every point of some axes: a tensor that broadcasts over them."""
        match e:
            case Const(literal, dtype):
                return number(literal, dtype)
            case Index(size):
                if not size.symbols & self.axes.keys() and not size.opaques:
                    return Text(self.size(size), I64, literal=True)
                return Text(self.subscript(size, order), I64)
            case Apply(function, arguments):
                return applied(function, [self.value(a, order) for a in arguments], e.dtype)
            case Cast(dtype, inner):
                return converted(self.value(inner, order), dtype)
            case Bitcast(dtype, inner):
                return reinterpreted(self.value(inner, order), dtype)
            case Load():
                return self.load(e, order)

    def load(self, load: Load, order: tuple[str, ...]) -> Text:
        """Elements of an operand; where the mask does not hold, `other`."""
        position = operand_position(load.buffer)
        source, kind = self.operands[position], self.values[position].type
        require_type(load.dtype)
        if isinstance(kind, ListType):
            raise Unwritten("a tensor of a list is chosen for each element")
        if source.literal:
            return source
        indices = load.indices
        if (whole := self._whole(load, kind, order)) is not None:
            found = Text(source.text + whole, load.dtype)
        else:
            if any(extent == ZERO for extent in kind.shape):
                raise Unwritten("elements are chosen from none")
            subscripts = [self._inside(i, extent, order) for i, extent in zip(indices, kind.shape)]
            found = Text(f"{source.text}[{', '.join(subscripts)}]", load.dtype)
        for condition in load.mask:
            holds = Text(f"({self.index(condition, order)} > 0)", BOOL)
            other = load.other if load.other is not None else Const(0, load.dtype)
            found = applied("where", (holds, found, number(other.value, other.dtype)), load.dtype)
        return found

    def _whole(self, load: Load, kind: TensorType, order: tuple[str, ...]) -> str | None:
        """How an operand subscripted by different whole axes gets its dimensions; None for any other."""
        names = [i.as_name for i in load.indices]
        found = [n for n in names if n is not None and n in self.axes]
        if len(found) != len(names) or len(set(found)) != len(found) or load.mask:
            return None
        for name, extent in zip(found, kind.shape):
            if self.axes[name].lower != ZERO or self.axes[name].upper != extent:
                return None
        places = [order.index(n) for n in found]
        rising = sorted(range(len(places)), key=lambda p: places[p])
        moved = "" if rising == list(range(len(places))) else f".permute({', '.join(map(str, rising))})"
        first = min(places, default=len(order))
        marks = [":" if a in found else "None" for a in order[first:]]
        return moved + (f"[{', '.join(marks)}]" if "None" in marks else "")

    def _inside(self, index: Size, extent: Size, order: tuple[str, ...]) -> str:
        """A subscript, moved into its dimension: what lies outside does not count, or is clamped."""
        if index.constant is not None:
            return str(index)
        text = self.subscript(index, order)
        if not index.symbols & self.axes.keys() and not index.opaques:
            return text if index.as_name is not None else f"max(0, min({text}, {self.size(extent - 1)}))"
        name = index.as_name
        if name is not None and name in self.axes and self.axes[name].lower == ZERO and self.axes[name].upper == extent:
            return text
        return f"{text}.clamp(0, {self.size(extent - 1)})"

    def index(self, size: Size, order: tuple[str, ...]) -> str:
        """An integer expression at every point as a tensor."""
        text = self.subscript(size, order)
        is_number = not size.opaques and not size.symbols & self.axes.keys()
        return f"torch.tensor({text}, device=device)" if is_number else text

    def subscript(self, size: Size, order: tuple[str, ...]) -> str:
        """An integer expression at every point: a tensor, or a number where it is the same at all."""
        if not size.opaques and not size.symbols & self.axes.keys():
            return self.size(size)

        def name(n: str) -> str:
            return self.axis(n, order) if n in self.axes else self.size(Size.of(n))

        return integer(size, name, lambda value: f"{converted(self.value(value, order), I64).tensor}", True)

    # ------------------------------------------------------------------ sums of products

    def _einsum(self, space: Space) -> Text | None:
        """A sum of products over ranges that are the same everywhere; None for any other."""
        if space.combiner != "sum" or self.conditions or not space.body.dtype.is_float:
            return None
        parts = [f for f in factors(space.body) if self._axes_of(f)]
        numbers = [f for f in factors(space.body) if not self._axes_of(f)]
        used = [self._axes_of(f) for f in parts]
        if len(parts) < 2 or set().union(*used) != set(self.axes):
            return None
        letters = _letters(list(self.axes))
        texts: list[str] = []
        for factor, own in zip(parts, used):
            order = tuple(a for a in self.axes if a in own)
            texts.append(self.value(factor, order).tensor)
        inputs = ",".join("".join(letters[a] for a in self.axes if a in own) for own in used)
        output = "".join(letters[a.name] for a in space.axes)
        result = Text(f'torch.einsum("{inputs}->{output}", {", ".join(texts)})', space.body.dtype)
        for factor in numbers:
            result = applied("mul", (result, self.value(factor, ())), space.body.dtype)
        return result


def _letters(axes: Sequence[str]) -> Mapping[str, str]:
    """A letter for each axis: its own if it has but one."""
    own = {a: a for a in axes if len(a) == 1 and a in string.ascii_letters}
    if len(axes) > len(string.ascii_letters):
        raise Unwritten("more axes than letters")
    others = iter(c for c in string.ascii_lowercase + string.ascii_uppercase if c not in own)
    return {a: own.get(a) or next(others) for a in axes}


def reduced(text: str, combiner: str, dims: tuple[int, ...], keepdims: bool, dtype: DType) -> str:
    """A reduction over some dimensions of a tensor; `dtype` is that of the result."""
    keep = ", keepdim=True" if keepdims else ""
    typed = "" if dtype.is_float or combiner not in ("sum", "prod") else f", dtype={TORCH_TYPES[dtype]}"
    if combiner == "prod":
        for d in sorted(dims, reverse=True):
            text = f"{text}.prod(dim={d}{keep}{typed})"
        return text
    where = str(dims[0]) if len(dims) == 1 else f"({', '.join(map(str, dims))})"
    return f"{text}.{_REDUCTIONS[combiner]}(dim={where}{keep}{typed})"
