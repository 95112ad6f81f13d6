"""One group of nodes becomes one naive kernel.

Inside a kernel every value of the group is a `Definition`: an expression over axes that loads buffers. Values that are
cheap or used once are put into what uses them by substituting subscripts; the others, reductions and results are
stored, each by a stage of its own, in the order of the nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from intarsia.ir.dtypes import I64, DType
from intarsia.ir.errors import Span
from intarsia.ir.functions import COMBINERS
from intarsia.ir.graph import Node, Structured, Value
from intarsia.ir.kernel import COMBINER_OPERATORS, Alloc, Buffer, Kernel, PutOperator
from intarsia.ir.ops import ArgReduce, Argsort, Cumulative, Sort, Update
from intarsia.ir.ops.elementwise import axes_for
from intarsia.ir.proofs import Facts
from intarsia.ir.ranges import cut_ranges
from intarsia.ir.scalar import Const, Expr, Index, Load, apply, as_size, cast, loads, transform, where
from intarsia.ir.sizes import Size
from intarsia.ir.space import Axis, Space, operand, operand_position
from intarsia.ir.types import ListType
from intarsia.passes.canonicalize.values import literal_of
from intarsia.passes.lower.access import clamp
from intarsia.passes.lower.checks import Checks, check_space
from intarsia.passes.lower.names import buffer_label, op_label, value_extents
from intarsia.passes.lower.rows import lower_cumulative, lower_sort
from intarsia.passes.lower.stages import StageWriter, subscripts, symbols
from intarsia.passes.lower.update import lower_update
from intarsia.passes.lower.uses import CHEAP, Uses, sums_of, work


@dataclass(frozen=True)
class Definition:
    """What a value is at a point: an expression over axes whose loads name buffers of the kernel."""

    axes: tuple[str, ...]
    value: Expr

    def at(self, indices: Sequence[Size]) -> Expr:
        """The value with subscripts for the axes."""
        changed = {a: i for a, i in zip(self.axes, indices, strict=True) if i.as_name != a}
        return transform(self.value, changed) if changed else self.value

    @property
    def buffer(self) -> str | None:
        """The buffer that holds exactly this value, if one does."""
        match self.value:
            case Load(buffer, indices) if indices == tuple(Size.of(a) for a in self.axes):
                return buffer
        return None


def buffer_definition(buffer: Buffer) -> Definition:
    """The value that a buffer holds."""
    axes = tuple(f"d{n}" for n in range(len(buffer.extents)))
    return Definition(axes, Load(buffer.name, tuple(map(Size.of, axes)), buffer.dtype))


@dataclass(frozen=True)
class LoweredGroup:
    """A kernel, and the values that its parameters stand for: what it reads (then the old values of what it changes
    in place), and its results."""

    kernel: Kernel
    arguments: tuple[Value, ...]
    results: tuple[Value, ...]


def _numbers_first(members: Sequence[Node]) -> list[Node]:
    """The members, numbers that need no others first, so that none stands between sweeps that could be one."""
    inside, numbers = set(members), set[Node]()
    for node in members:
        is_number = isinstance(node, Structured) and not node.space.all_axes
        if is_number and all(v.node in numbers or v.node not in inside for v in node.inputs):
            numbers.add(node)
    return sorted(members, key=lambda node: node not in numbers)


class GroupLowering:
    """Lowers one group. `outputs` are the values of the members that are used outside; `names` are the symbols
    (dimensions, counters) that may occur, in order; `facts` what is known of them. `is_owned` says which values from
    outside the program made itself, so that they can be changed in place."""

    def __init__(
        self,
        members: Sequence[Node],
        outputs: Sequence[Value],
        names: Sequence[str],
        facts: Facts,
        is_owned: Callable[[Value], bool] = lambda value: False,
        checks: Checks | None = None,
    ) -> None:
        self.members = tuple(_numbers_first(members))
        self.outputs = tuple(outputs)
        self.symbols = tuple(names)
        self.is_owned = is_owned
        self.checks = checks
        self.uses = Uses.of(members)
        self.writer = StageWriter(facts, names)
        self.definitions: dict[Value, Definition] = {}
        self.inputs: dict[Value, Buffer] = {}
        self.results: dict[Value, Buffer] = {}
        self.temporaries: dict[str, Buffer] = {}
        self.bases: dict[Value, Value] = {}
        self._stored: dict[_Key, Definition] = {}
        self._postponed: dict[str, tuple[Value, Space]] = {}
        updates = [m for m in members if isinstance(m, Update)]
        self._sums = sums_of(updates[0], self.members, self.outputs) if len(updates) == 1 else frozenset()

    def run(self, name: str, span: Span | None) -> LoweredGroup:
        """The kernel of the members."""
        for node in self.members:
            self._member(node)
        return self.finish(name, span)

    def finish(self, name: str, span: Span | None) -> LoweredGroup:
        """The kernel of what has been written."""
        outs = [self.results[v] for v in self.outputs]
        body = tuple(self.writer.body)
        used = symbols(body, (*self.inputs.values(), *outs))
        kernel = Kernel(
            name, (*self.inputs.values(), *outs), body, tuple(s for s in self.symbols if s in used), span=span
        )
        old = tuple(self.bases[v] for v in self.outputs if v in self.bases)
        return LoweredGroup(kernel, (*self.inputs, *old), self.outputs)

    def _member(self, node: Node) -> None:
        match node:
            case Structured():
                self._structured(node)
            case Update():
                lower_update(self, node)
            case ArgReduce():
                self._arg_reduce(node)
            case Cumulative():
                lower_cumulative(self, node)
            case Sort() | Argsort():
                lower_sort(self, node)
            case _:
                raise AssertionError(f"{node.name} in a group that becomes one kernel")

    # ------------------------------------------------------------------ values and buffers

    def definition(self, value: Value) -> Definition:
        """What a value is here: as its member was lowered, a literal, or a parameter of the kernel."""
        if value not in self.definitions:
            if (literal := literal_of(value)) is not None:
                axes = axes_for(value.tensor.shape)
                self.definitions[value] = Definition(tuple(a.name for a in axes), literal)
            else:
                self.definitions[value] = buffer_definition(self._input(value))
        return self.definitions[value]

    def _input(self, value: Value) -> Buffer:
        kind = value.type
        tensor, length = (kind.element, kind.length) if isinstance(kind, ListType) else (kind, None)
        name = self.writer.names.fresh(buffer_label(value))
        buffer = Buffer(name, tensor.dtype, tensor.shape, "global", "in", length)
        self.inputs[value] = self.writer.declare(buffer)
        return buffer

    def result(self, value: Value) -> Buffer:
        """A parameter for a value that leaves the group."""
        tensor = value.tensor
        buffer = Buffer(self.writer.names.fresh("y"), tensor.dtype, tensor.shape, "global", "out")
        self.results[value] = self.writer.declare(buffer)
        return buffer

    def storage(self, value: Value) -> Buffer:
        """Where a member writes its value itself: a result of the kernel, or a temporary."""
        if value in self.outputs:
            buffer = self.result(value)
        else:
            buffer = self.temporary(value.node, value.dtype, value.tensor.shape)
        self.define_as(value, buffer)
        return buffer

    def define_as(self, value: Value, buffer: Buffer) -> None:
        """From here on, a value is what a buffer holds."""
        self.definitions[value] = buffer_definition(buffer)

    def define_at(self, value: Value, axes: Sequence[Axis], expression: Expr) -> None:
        """From here on, a value is an expression over axes."""
        self.definitions[value] = Definition(tuple(a.name for a in axes), expression)

    def take_over(self, node: Update, buffer: str) -> bool:
        """Give an update the buffer of its base, if nothing that comes later reads the base; the buffer then holds the
        result. It is a temporary, which may become a result, or an input that the program owns."""
        later = {v for m in self.members[self.members.index(node) + 1 :] for v in m.inputs}
        held = [
            v for v, d in self.definitions.items() if v == node.base or any(x.buffer == buffer for x in loads(d.value))
        ]
        if any(v in later or v in self.outputs for v in held):
            return False
        is_output = node.value in self.outputs
        if (temporary := self.temporaries.get(buffer)) is not None:
            if is_output:
                del self.temporaries[buffer]
                self.writer.body = [s for s in self.writer.body if s != Alloc(temporary)]
                self.results[node.value] = replace(temporary, role="out")
        elif node.base in self.inputs and is_output and self.is_owned(node.base):
            self.results[node.value] = replace(self.inputs.pop(node.base), role="inout")
            self.bases[node.value] = node.base
        else:
            return False
        self.define_as(node.value, self.results.get(node.value) or self.temporaries[buffer])
        self._stored = {k: d for k, d in self._stored.items() if d.buffer != buffer and not k.reads(buffer)}
        return True

    def temporary(self, node: Node, dtype: DType, shape: tuple[Size, ...]) -> Buffer:
        """A new temporary, allocated before the next stage."""
        alloc = self.writer.temporary(f"t_{op_label(node)}", dtype, shape)
        self.writer.body.append(alloc)
        self.temporaries[alloc.buffer.name] = alloc.buffer
        return alloc.buffer

    def extents(self, operands: Sequence[Value]) -> Mapping[str, tuple[Size, ...]]:
        """The extents of operands by the names `a0`, `a1`, … that a space gives them."""
        return {operand(p): value_extents(v) for p, v in enumerate(operands)}

    # ------------------------------------------------------------------ composing

    def inlined(self, expression: Expr, operands: Sequence[Value]) -> Expr:
        """An expression over operands `a0`, … as one over buffers: subscripts clamped, definitions put in."""
        extents = self.extents(operands)

        def read(e: Expr) -> Expr | None:
            if not isinstance(e, Load):
                return None
            return self.definition(operands[operand_position(e.buffer)]).at(e.indices)

        return transform(clamp(expression, extents.__getitem__), rule=read)

    def inlined_size(self, size: Size, operands: Sequence[Value]) -> Size:
        return size.substitute({}, lambda value: as_size(self.inlined(value, operands))) if size.opaques else size

    def inlined_axes(self, axes: Sequence[Axis], operands: Sequence[Value]) -> tuple[Axis, ...]:
        return tuple(
            Axis(a.name, self.inlined_size(a.lower, operands), self.inlined_size(a.upper, operands)) for a in axes
        )

    def inlined_space(self, space: Space, operands: Sequence[Value]) -> Space:
        return replace(
            space,
            axes=self.inlined_axes(space.axes, operands),
            reduced=self.inlined_axes(space.reduced, operands),
            body=self.inlined(space.body, operands),
        )

    # ------------------------------------------------------------------ members

    def _structured(self, node: Structured) -> None:
        assert all(a.lower == Size.of(0) for a in node.space.axes), "the axes of a result begin at 0"
        if self.checks is not None:
            check_space(self, node, node.space, self.checks)
        cut = cut_ranges(node.space, self.extents(node.operands).__getitem__)
        space = self.inlined_space(cut, node.operands)
        if node.value in self._sums:
            self._postpone(node.value, space)
        elif space.reduced:
            self.reduce(node.value, space)
        else:
            self.define(node.value, space.axes, cast(space.dtype, space.body))

    def define(self, value: Value, axes: Sequence[Axis], expression: Expr) -> None:
        """A pointwise value: put into its uses, or stored where it leaves the group or is too dear to compute again."""
        definition = Definition(tuple(a.name for a in axes), expression)
        dear = not self.uses.is_single(value) and work(expression) > CHEAP
        must = value in self.uses.stored and definition.buffer is None
        if value in self.outputs or dear or must:
            stored = self._store(value, axes, expression)
            if dear or must:
                definition = stored
        self.definitions[value] = definition

    def _store(self, value: Value, axes: Sequence[Axis], expression: Expr) -> Definition:
        """The stage that writes a value to its result or to a temporary; an equal temporary is shared."""
        key = _Key.of(axes, (), expression, "=")
        if (shared := self._stored.get(key)) is not None:
            if value not in self.outputs:
                return shared
            expression = shared.at(subscripts(axes))
        target = self._target(value, axes, value.dtype)
        self._write(target, axes, axes, "=", expression, value.node.span)
        self._stored.setdefault(key, target)
        return target

    def reduce(self, value: Value, space: Space) -> None:
        """A reduction: set to the neutral element, accumulate in the dtype of the body, then round to the result's."""
        total = self._accumulated(value, space).at(subscripts(space.axes))
        if self.results.get(value) is None:
            self.define(value, space.axes, cast(space.dtype, total))
        else:
            self.definitions[value] = Definition(tuple(a.name for a in space.axes), total)

    def _postpone(self, value: Value, space: Space) -> None:
        """A reduction that an update reads: it runs over the elements that the update writes, see `reduce_for`."""
        buffer = self.temporary(value.node, space.body.dtype, value.tensor.shape)
        element = Load(buffer.name, subscripts(space.axes), buffer.dtype)
        self.definitions[value] = Definition(tuple(a.name for a in space.axes), cast(space.dtype, element))
        self._postponed[buffer.name] = value, space

    def reduce_for(self, axes: Sequence[Axis], expression: Expr) -> None:
        """The stages of the postponed reductions that an expression over axes reads, where it reads them."""
        for load in dict.fromkeys(loads(expression)):
            if load.buffer not in self._postponed:
                continue
            value, space = self._postponed.pop(load.buffer)
            assert space.combiner is not None
            combiner, span = COMBINERS[space.combiner], value.node.span
            names = {a.name: index for a, index in zip(space.axes, load.indices)}
            reduced = []
            for axis in space.reduced:
                name = axis.name
                while name in {a.name for a in axes}:
                    name += "'"
                reduced.append(Axis(name, axis.lower.substitute(names), axis.upper.substitute(names)))
                names[axis.name] = Size.of(name)
            neutral = Const(combiner.neutral(load.dtype), load.dtype)
            self.writer.write(axes, load.buffer, load.indices, "=", neutral, span)
            body = transform(space.body, names)
            operator = COMBINER_OPERATORS[combiner.name]
            self.writer.write((*axes, *reduced), load.buffer, load.indices, operator, body, span)

    def _accumulated(self, value: Value, space: Space, in_result: bool = True) -> Definition:
        """The stages of a reduction, in the result itself where nothing is rounded; an equal one is shared."""
        assert space.combiner is not None
        combiner = COMBINERS[space.combiner]
        key = _Key.of(space.axes, space.reduced, space.body, combiner.name)
        if (shared := self._stored.get(key)) is not None:
            return shared
        dtype, span = space.body.dtype, value.node.span
        target = self._target(value, space.axes, dtype, in_result)
        neutral = Const(combiner.neutral(dtype), dtype)
        self._write(target, space.axes, space.axes, "=", neutral, span)
        self._write(target, space.axes, space.all_axes, COMBINER_OPERATORS[combiner.name], space.body, span)
        self._stored[key] = target
        return target

    def _target(self, value: Value, axes: Sequence[Axis], dtype: DType, in_result: bool = True) -> Definition:
        """Where a stage writes: the result, if the value is one that has no buffer yet and is of that type; else a
        temporary, without dimensions of extent 1 unless it is read as a whole."""
        if in_result and value in self.outputs and value not in self.results and dtype == value.dtype:
            return buffer_definition(self.result(value))
        names = tuple(f"d{n}" for n in range(len(axes)))
        kept = [n for n, a in enumerate(axes) if a.extent.constant != 1 or value in self.uses.stored]
        buffer = self.temporary(value.node, dtype, tuple(axes[n].extent for n in kept))
        return Definition(names, Load(buffer.name, tuple(Size.of(names[n]) for n in kept), dtype))

    def _write(
        self,
        target: Definition,
        axes: Sequence[Axis],
        loops: Sequence[Axis],
        operator: PutOperator,
        value: Expr,
        span: Span | None,
    ) -> None:
        """The stage `for loops { target[axes] operator value }`."""
        element = target.at(subscripts(axes))
        assert isinstance(element, Load)
        self.writer.write(loops, element.buffer, element.indices, operator, value, span)

    def _arg_reduce(self, node: ArgReduce) -> None:
        """The best value, NaN winning, then the least index where it stands."""
        shape = node.x.tensor.shape
        axes = axes_for(shape)
        along = axes[node.axis]
        kept = tuple(a for a in axes if a is not along)
        element = self.definition(node.x).at(subscripts(axes))
        combiner = "max" if node.which == "argmax" else "min"
        best = self._accumulated(node.value, Space(kept, element, element.dtype, (along,), combiner), in_result=False)
        is_best: Expr = apply("eq", element, best.at(subscripts(kept)))
        if element.dtype.is_float:
            is_best = apply("or", is_best, apply("isnan", element))
        index = where(is_best, Index(Size.of(along.name)), Index(shape[node.axis]))
        self.reduce(node.value, Space(kept, index, I64, (along,), "min"))


@dataclass(frozen=True)
class _Key:
    """Equal for stages that compute the same, whatever their axes are called."""

    bounds: tuple[tuple[Size, Size], ...]
    kept: int
    expression: Expr
    operator: str

    @staticmethod
    def of(axes: Sequence[Axis], reduced: Sequence[Axis], expression: Expr, operator: str) -> _Key:
        names = {a.name: Size.of(f"#{n}") for n, a in enumerate((*axes, *reduced))}
        bounds = tuple((a.lower.substitute(names), a.upper.substitute(names)) for a in (*axes, *reduced))
        return _Key(bounds, len(axes), transform(expression, names), operator)

    def reads(self, buffer: str) -> bool:
        sizes = (size for pair in self.bounds for size in pair)
        expressions = (self.expression, *(o for s in sizes for o in s.opaques))
        return any(load.buffer == buffer for e in expressions for load in loads(e))
