"""Running values: what a loop accumulates and reads again while it runs, as prefix sums do.

    run = 0.0; scan k in 0..64 { run += x[k]; y[k] = run }

The meaning of a `scan` loop is that of any loop: its iterations in order. Its promise is that the only thing that an
iteration needs of others is what they add to running values, each of which one statement accumulates, before it is
read. Then all iterations can run at once, with a parallel scan for each running value.
"""

from __future__ import annotations

from collections.abc import Sequence

from intarsia.ir.kernel import Alloc, For, If, Put, walk
from intarsia.ir.kernel_access import Access, accesses


def running_values(loop: For) -> tuple[Put, ...]:
    """The statements of a loop that accumulate what all its iterations share and some of them read."""
    local = {s.buffer.name for s, _ in walk(loop.body) if isinstance(s, Alloc)}
    found = list(accesses(loop.body))
    read = {a.buffer for a in found if not a.writes} - local
    shared = (a for a in found if a.writes and a.buffer in read and not _uses(loop.axis, a))
    return tuple(dict.fromkeys(a.statement for a in shared if isinstance(a.statement, Put) and a.operator != "="))


def scan_problem(loop: For) -> str | None:
    """Why the running values of a loop are not the prefixes of a scan; None if they are."""
    found = list(accesses(loop.body))
    if running_values(loop) and any(isinstance(s, If) for s, _ in walk(loop.body)):
        return "what is accumulated depends on a branch"
    for put in running_values(loop):
        users = [a for a in found if a.buffer == put.buffer]
        if (problem := _problem(put, users)) is not None:
            return f"{put.buffer} {problem}"
    return None


def _problem(put: Put, users: Sequence[Access]) -> str | None:
    """Why one running value is no prefix; `users` are all accesses of it in the loop, in the order of the text."""
    own = next(a for a in users if a.statement is put and a.writes)
    if sum(a.writes for a in users) > 1:
        return "is written by several statements"
    if put.atomic:
        return "is accumulated in any order"
    if any(index.opaques for index in put.indices):
        return "is subscripted by data"
    if any(not _uses(loop.axis, own) for loop in own.loops):
        return "is accumulated several times in an iteration"
    if any(not a.writes for a in users[: users.index(own)]):
        return "is read before it is accumulated"
    if any(a.indices != put.indices or a.loops != own.loops for a in users):
        return "is read elsewhere than where it is accumulated"
    return None


def _uses(axis: str, access: Access) -> bool:
    return any(axis in index.symbols for index in access.indices)
