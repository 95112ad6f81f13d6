"""Arrays that a caller gives away, so that results lie in their memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from intarsia.executable import Executable
from intarsia.ir.dtypes import Array
from intarsia.runtime.native import address_of


def with_own_memory(
    executable: Executable, inputs: Sequence[Array | tuple[Array, ...]], bound: Collection[str]
) -> list[Array | tuple[Array, ...]]:
    """The inputs of a call, where a result takes one as an array that nothing else reads: a copy of those that are
    `bound` for further calls, that cannot be written, or that share memory with another input."""
    taken = {t.takes for t in executable.outputs if t.takes >= 0}
    if not taken:
        return list(inputs)
    shared = _shared(a for i in inputs for a in (i if isinstance(i, tuple) else (i,)))

    def is_own(position: int) -> bool:
        array = inputs[position]
        label = executable.inputs[position].label.partition(".")[0]
        writable = isinstance(array, np.ndarray) and array.flags.writeable
        return writable and label not in bound and id(array) not in shared

    return [np.array(a) if n in taken and not is_own(n) else a for n, a in enumerate(inputs)]


def _shared(arrays: Iterable[Array]) -> set[int]:
    """The arrays, by identity, that share memory with another one, or are given twice."""
    found: set[int] = set()
    reach, last = 0, 0
    for start, end, key in sorted((address_of(a), address_of(a) + a.nbytes, id(a)) for a in arrays):
        if start < reach:
            found |= {key, last}
        if end > reach:
            reach, last = end, key
    return found
