"""Writes: masks, reductions over lanes, and what lanes do one by one; and the branches that masks become."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable

from intarsia.backends.cpu import routines
from intarsia.backends.cpu.analysis import loads_of
from intarsia.backends.cpu.expressions import Expressions
from intarsia.backends.cpu.registers import Place
from intarsia.backends.cpu.values import Value, constant, select, widen
from intarsia.ir.dtypes import BOOL, F32, F64
from intarsia.ir.functions import COMBINERS
from intarsia.ir.kernel import COMBINER_OPERATORS, PUT_FUNCTIONS, Check, Put, Statement
from intarsia.ir.scalar import Apply, Expr

_NEUTRAL = {operator: COMBINERS[name].neutral for name, operator in COMBINER_OPERATORS.items()}


class Writes(Expressions):
    """Writes `Put` statements."""

    @abstractmethod
    def block(self, body: tuple[Statement, ...]) -> None:
        """Write statements in order."""

    def branch(
        self,
        condition: str,
        written: Iterable[str],
        then: Callable[[], None],
        otherwise: Callable[[], None] | None = None,
    ) -> None:
        """Write both sides; registers that differ after them become phis. `written`: buffers that they may write."""
        if condition in ("true", "false"):
            taken = then if condition == "true" else otherwise
            if taken is not None:
                taken()
            return
        before, known = dict(self.registers.values), self.known_loads()
        ends: list[dict[Place, Value]] = []

        def arm(write: Callable[[], None]) -> Callable[[], None]:
            def run() -> None:
                self.registers.values = dict(before)
                self.restore_loads(dict(known), ())
                write()
                ends.append(self.registers.values)

            return run

        then_end, else_end = self.function.fork(condition, arm(then), arm(otherwise) if otherwise else None)
        first, second = ends[0], ends[1] if otherwise else before
        self.registers.values = before
        for place in dict.fromkeys((*first, *second)):
            self.registers.values = first
            one = self.registers.current(place)
            self.registers.values = second
            other = self.registers.current(place)
            text = self.function.phi(one.type, [(one.text, then_end), (other.text, else_end)])
            before[place] = self.renamed(place, text)
        self.registers.values = before
        self.restore_loads(known, written)

    def renamed(self, place: Place, name: str) -> Value:
        """A register's value under a new name."""
        return Value(name, self.buffers[place.buffer].dtype, self.registers.layouts[place.buffer].lanes)

    def put(self, put: Put) -> None:
        condition = self.condition(put.mask)
        if condition.uniform == "true" or condition.uniform == "false":
            if condition.uniform == "true":
                self.masked_put(put, condition.lanes)
        elif self.registers.holds(put.buffer) and not self._touches_memory(put.value):
            mask = condition.lanes if condition.lanes is None else self.lane_mask(condition)
            if mask is None:
                before = dict(self.registers.values)
                self.masked_put(put, None)
                self._keep_unless(condition.uniform, before)
            else:
                self.masked_put(put, mask)
        else:
            self.branch(condition.uniform, [put.buffer], lambda: self.masked_put(put, condition.lanes))

    def _touches_memory(self, value: Expr) -> bool:
        return any(not self.registers.holds(load.buffer) for load in loads_of(value))

    def _keep_unless(self, condition: str, before: dict[Place, Value]) -> None:
        """Undo what changed in registers where the condition does not hold."""
        after = self.registers.values
        self.registers.values = before
        old = {place: self.registers.current(place) for place in after}
        self.registers.values = after
        for place, value in after.items():
            after[place] = select(self.function, Value(condition, BOOL), value, old[place])

    def masked_put(self, put: Put, mask: Value | None) -> None:
        """A write of which `mask` says in which lanes it counts."""
        if self.lane is None:
            self.scalar_put(put)
        elif self._is_reduction(put):
            if put.operator == "=" or put.atomic:
                self.lane_by_lane(put)
            else:
                self.reducing_put(put, mask)
        elif put.atomic or (put.operator != "=" and self._may_collide(put)):
            self.lane_by_lane(put)
        else:
            outer, self.active = self.active, mask
            value = self.combined(put, lambda: self.read(put.buffer, put.indices, mask))
            self.active = outer
            self.write(put.buffer, put.indices, value, mask, put.nontemporal)

    def _is_reduction(self, put: Put) -> bool:
        """Do all lanes write the same element?"""
        if self.registers.holds(put.buffer):
            private = self.registers.layouts[put.buffer].private
            return not private and all(step == 0 for _, step in self.positions(put.indices))
        return self.address(put.buffer, put.indices).is_uniform

    def _may_collide(self, put: Put) -> bool:
        """Can two lanes write the same element, so that the old values cannot be read at once?"""
        return not self.registers.holds(put.buffer) and self.address(put.buffer, put.indices).index is not None

    def scalar_put(self, put: Put) -> None:
        if put.atomic and put.operator != "=":
            routines.atomic_update(self, put)
            return
        value = self.combined(put, lambda: self.read(put.buffer, put.indices))
        self.write(put.buffer, put.indices, value, None, put.nontemporal)

    def combined(self, put: Put, old: Callable[[], Value]) -> Value:
        """The new value of the target."""
        if put.operator == "=":
            return self.value(put.value)
        match put.operator, put.value:
            case "+=", Apply("mul", (a, b)) if put.value.dtype in (F32, F64):
                return self.arithmetic.fused_multiply_add(self.value(a), self.value(b), old())
        value = self.value(put.value)
        return self._merge(put, value, old())

    def _merge(self, put: Put, value: Value, old: Value) -> Value:
        lanes = max(value.lanes, old.lanes)
        pair = widen(self.function, value, lanes), widen(self.function, old, lanes)
        return self.arithmetic.apply(PUT_FUNCTIONS[put.operator], pair, numbers=put.numbers)

    def reducing_put(self, put: Put, mask: Value | None) -> None:
        """All lanes into one element: combine them first."""
        assert self.lane is not None and put.operator != "="
        outer, self.active = self.active, mask
        value = widen(self.function, self.value(put.value), self.lane.lanes)
        self.active = outer
        if mask is not None:
            # -0.0 is neutral for every sum, +0.0 would change one of negative zeros.
            number = -0.0 if put.operator == "+=" and value.dtype.is_float else _NEUTRAL[put.operator](value.dtype)
            value = select(self.function, mask, value, constant(number, value.dtype))
        total = self.arithmetic.reduce_lanes(PUT_FUNCTIONS[put.operator], value, numbers=put.numbers)
        lane, self.lane = self.lane, None
        some = None if mask is None else self.arithmetic.reduce_lanes("or", mask).text
        self.axes[lane.axis] = lane.base

        def write() -> None:
            self.write(put.buffer, put.indices, self._merge(put, total, self.read(put.buffer, put.indices)))

        if some is None or self.registers.holds(put.buffer):
            write()
        else:
            self.branch(some, [put.buffer], write)
        self.lane = lane
        del self.axes[lane.axis]

    def lane_by_lane(self, statement: Put | Check) -> None:
        """One lane after the other, as scalars."""
        lane = self.lane
        assert lane is not None
        self.lane = None
        for number in range(lane.lanes):
            self.axes[lane.axis] = self.function.add(lane.base, number * lane.step)
            self.registers.only_lane = number
            self.block((statement,))
        self.registers.only_lane = None
        self.lane = lane
        del self.axes[lane.axis]
        self.forget_values()
