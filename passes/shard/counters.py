"""Names for new counters."""

from __future__ import annotations

from intarsia.ir.graph import Module
from intarsia.ir.ops.control import Loop


class Counters:
    """The dimensions and counters of a module, and those that are made for it."""

    def __init__(self, module: Module) -> None:
        counters = (n.counter for n in module.graph.body.walk() if isinstance(n, Loop))
        self.names = list(dict.fromkeys((*module.graph.dimensions, *counters)))

    def fresh(self, base: str) -> str:
        """A new name: `ring`, then `ring1`."""
        name, number = base, 0
        while name in self.names:
            number += 1
            name = f"{base}{number}"
        self.names.append(name)
        return name
