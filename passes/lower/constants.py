"""What in a lowered program never changes, or is one of several things that never change.

In `loop i { %1 = list_get %w[i]; %2 = call @transpose(%1); %3 = call @product(%h, %2) }` with a constant list w, %2 is
made of item i of constants, and so can be computed for all items before the loop, once for all calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from intarsia.ir.graph import Parameter, Value
from intarsia.ir.kernel import Check, Kernel, walk
from intarsia.ir.ops import Call, ListGet, Reshape
from intarsia.ir.sizes import Size


@dataclass(frozen=True)
class Items:
    """Items of constant lists of `length`, or rows of tensors that have so many: those at `index`."""

    length: Size
    index: Size


Made = frozenset[Items]
"""Which items of constants a value is made of, beside whole constants."""


@dataclass(frozen=True)
class Constants:
    """Says of values what constants they are made of; `kernel` gives the one of a name, `dimensions` are the sizes that
    hold for a whole call of the program."""

    kernel: Callable[[str], Kernel]
    dimensions: frozenset[str]
    _known: dict[Value, Made | None] = field(default_factory=dict)

    def of(self, value: Value) -> Made | None:
        """The items that a value is made of, none of them for one that never changes; None for what may change, or
        needs items of several places."""
        if value not in self._known:
            found = self._of(value)
            self._known[value] = None if found is None or len(found) > 1 else found
        return self._known[value]

    def _of(self, value: Value) -> Made | None:
        match value.node:
            case Parameter(constant=True):
                return frozenset()
            case Reshape(source):
                return self.of(source)
            case ListGet(source, index, ()) if not self.of(source):  # of an item of an item it would be one of several
                length = source.type.extents[0]
                fixed = index.constant is not None
                return None if self.of(source) is None else frozenset(() if fixed else (Items(length, index),))
            case Call(kernel, arguments, _, sizes) if arguments:
                found = self._together([self.of(v) for v in arguments])
                known = all(s.symbols <= self.dimensions and not s.opaques for s in sizes)
                return found if found is not None and known and self._is_pure(kernel) else None
        return None

    def _together(self, parts: Sequence[Made | None]) -> Made | None:
        known = [p for p in parts if p is not None]
        return frozenset().union(*known) if len(known) == len(parts) else None

    def _is_pure(self, name: str) -> bool:
        """Does a kernel only read its inputs, and cannot fail?"""
        kernel = self.kernel(name)
        return all(b.role in ("in", "out") for b in kernel.parameters) and not any(
            isinstance(s, Check) for s, _ in walk(kernel.body)
        )

    def marked(self, kernel: Kernel, arguments: Sequence[Value]) -> Kernel:
        """A kernel for a call, with the inputs marked of which something can be made before: those that never change,
        and the items at one place."""
        given = iter(arguments)
        place: Made = frozenset()
        parameters = []
        for buffer in kernel.parameters:
            made = self.of(next(given)) if buffer.role in ("in", "inout") else None
            is_constant = made is not None and buffer.role == "in" and (not place or not made or made == place)
            place = (made or place) if is_constant else place
            parameters.append(replace(buffer, constant=is_constant))
        return replace(kernel, parameters=tuple(parameters))
