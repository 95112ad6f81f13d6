"""The lines of a function that is being written, and the names in it."""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from intarsia.backends.gpu.values import ATOM, Value
from intarsia.ir.kernel import For

_RESERVED = frozenset(
    {*keyword.kwlist, *keyword.softkwlist, "tl", "triton", "libdevice", "min", "max", "range", "float"}
)


@dataclass
class Scope:
    """The variables of a block of statements: texts that have a name, with what they read.

    start: the line with which the block's loop begins; loop: that loop. changes: the buffers that the block writes.
    is_loop: does what stands before the block run whether or not the block does?
    """

    start: int = 0
    changes: frozenset[str] = frozenset()
    is_loop: bool = True
    loop: For | None = None
    names: dict[str, Value] = field(default_factory=dict)
    variables: set[str] = field(default_factory=set)


class Lines:
    """Writes lines at a depth. scopes: the blocks of statements that are open, the function itself first. first_lines:
    what is computed at its beginning. used: how often each name was wanted."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.first_lines: list[str] = []
        self.depth = 1
        self.scopes: list[Scope] = [Scope()]
        self.used: Counter[str] = Counter(_RESERVED)

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text if text else "")

    def fresh(self, hint: str) -> str:
        """A name that nothing else has."""
        base = "".join(c if c.isalnum() else "_" for c in hint).strip("_") or "v"
        base = f"_{base}" if base[0].isdigit() else base
        while True:
            number = self.used[base]
            self.used[base] += 1
            name = base if number == 0 else f"{base}_{number}"
            if number == 0 or name not in self.used:
                self.used[name] += number > 0
                return name

    def named(self, value: Value, hint: str, outermost: bool = False) -> Value:
        """A value under a name of its own; the one that it has, if it has one already. `outermost`: it can be computed
        at the beginning of the function."""
        if value.text.isidentifier() or value.literal:
            return value
        for scope in reversed(self.scopes):
            if (found := scope.names.get(value.text)) is not None:
                return replace(found, axes=value.axes)
        name = self.fresh(hint)
        level = 0 if outermost else self._level(value)
        scope = self.scopes[level]
        if outermost:
            self.first_lines.append(f"    {name} = {value.text}")
        elif level + 1 < len(self.scopes):
            inner = self.scopes[level + 1 :]
            self.lines.insert(inner[0].start, "    " * (self.depth - len(inner)) + f"{name} = {value.text}")
            for later in inner:
                later.start += 1
        else:
            self.line(f"{name} = {value.text}")
        result = replace(value, text=name, level=ATOM)
        scope.names[value.text] = result
        scope.variables.add(name)
        return result

    def _level(self, value: Value) -> int:
        """The outermost scope in which a value can be computed: what it is made of is there, and does not change."""
        words = set(re.findall(r"[A-Za-z_]\w*", value.text))
        level = len(self.scopes) - 1
        while level > 0:
            scope = self.scopes[level]
            if not scope.is_loop or scope.variables & words or scope.changes & value.depends:
                break
            level -= 1
        return level

    def forget(self, buffers: Collection[str]) -> None:
        """Forget what was read of buffers that change."""
        for scope in self.scopes:
            scope.names = {t: v for t, v in scope.names.items() if v.depends.isdisjoint(buffers)}
