"""The memory that a kernel needs while it runs beside its parameters: copies for packing, tiles, rows in between."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.ir.kernel import Alloc, Buffer, Kernel, walk
from intarsia.ir.sizes import Size, product


@dataclass(frozen=True)
class Scratch:
    """A temporary of a kernel in memory; one for each thread if it is made in a loop that threads share."""

    buffer: Buffer
    is_shared: bool

    @property
    def bytes(self) -> Size:
        return product(self.buffer.shape) * self.buffer.dtype.bytes

    def __str__(self) -> str:
        return f"{self.buffer.name}: {self.buffer}, {self.bytes} bytes{'' if self.is_shared else ' a thread'}"


def scratch(kernel: Kernel) -> tuple[Scratch, ...]:
    """The temporaries of a kernel that lie in memory, in the order in which they are made. What is prepared once for
    all calls is none."""
    return tuple(
        Scratch(statement.buffer, all(loop.kind != "parallel" for loop in around))
        for statement, around in walk(kernel.body)
        if isinstance(statement, Alloc) and statement.buffer.memory not in ("register", "prepared")
    )
