"""A function compiled for one set of types, to be looked at: every stage as text, and the decisions taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from intarsia.deep_stack import with_deep_stack
from intarsia.driver import Compilation
from intarsia.ir.errors import Remark


class Stages(Mapping[str, str]):
    """The text of every stage by name, made when it is asked for."""

    def __init__(self, compilation: Compilation) -> None:
        self._compilation = compilation

    def __getitem__(self, name: str) -> str:
        if name not in self._compilation.stages:
            raise KeyError(f"{name!r}; the stages are {', '.join(self)}")
        return with_deep_stack(lambda: self._compilation.text(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._compilation.stages)

    def __len__(self) -> int:
        return len(self._compilation.stages)


class Lowered:
    """A function compiled for one set of types: its stages as text (`asm["llvm"]`), and the decisions taken."""

    def __init__(self, compilation: Compilation) -> None:
        self.compilation = compilation
        self.asm = Stages(compilation)

    @property
    def remarks(self) -> list[Remark]:
        """The decisions of the passes, in order."""
        with_deep_stack(lambda: self.compilation.plan)
        return self.compilation.remarks.items

    @property
    def schedule(self) -> dict[str, str]:
        """The schedule of each kernel, as text."""
        return with_deep_stack(lambda: self.compilation.schedules)

    @property
    def timing(self) -> dict[str, float]:
        """Seconds that each stage took, from the graph to object code."""
        with_deep_stack(self.compilation.executable)
        return dict(self.compilation.seconds)
