"""The threads that share the parallel loops of compiled programs: `team.ll`, compiled when a program first wants them.

OpenMP's runtimes could do it, and compiled code calls the team as it would call GCC's (`GOMP_parallel`), so that C
libraries of programs run on OpenMP. Inside Python the team is better for three reasons. A join in OpenMP waits until
every thread of the team has begun and ended; where another process has a core, that is until the system gives it back:
milliseconds, for a loop of 30 microseconds. The team waits only for those that have joined in. There is nothing to find
on the machine. And no other library in the process shares, configures or blocks it.

Helpers look for the next loop for a quarter of a millisecond after the last one, and then sleep. They keep away from
the core of the thread that they help (`team_linux.ll`). That thread itself is not pinned, as its affinity mask is that
of every process and thread that it starts. A thread of Python that finds the team at work for another one does all the
work itself. A forked child has no helpers, and runs on one thread.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_PAUSES = {"x86_64": "pause", "AMD64": "pause", "aarch64": "isb", "arm64": "isb"}
"""The instruction by which a core that waits in a loop lets others run faster, by architecture."""

_SIGNALS = ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIG_BLOCK")

_ANYWHERE = "define internal void @place(i64 %wanted) { ret void }"
"""In place of `team_linux.ll`: helpers run where the system puts them."""

_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_PARALLEL = ctypes.CFUNCTYPE(None, _BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)

CAN_SHARE = os.name == "posix"
"""Has this system the threads that the team is made of?"""


@functools.cache
def team_entry() -> int:
    """The address of a function with the interface of `GOMP_parallel(body, data, threads, flags)`.

    It stays for the life of the process, since helpers run its code. Without threads, it calls the body.
    """
    if not CAN_SHARE:
        return _address_of_sequential()
    from intarsia.backends.cpu.machine import assemble, load

    folder = Path(__file__).parent
    text = (folder / "team.ll").read_text(encoding="utf-8")
    text += (folder / "team_linux.ll").read_text(encoding="utf-8") if sys.platform == "linux" else _ANYWHERE
    words = {"PAUSE": _PAUSES.get(platform.machine(), "")} | {
        name: str(int(getattr(signal, name))) for name in _SIGNALS
    }
    for word, meaning in words.items():
        text = text.replace(word, meaning)
    loaded = load(assemble(text), "team_parallel", {})
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(loaded))
    return loaded.address


def _run_alone(body: Callable[[int | None], None], data: int | None, threads: int, flags: int) -> None:
    body(data)


_SEQUENTIAL = _PARALLEL(_run_alone)


def _address_of_sequential() -> int:
    address = ctypes.cast(_SEQUENTIAL, ctypes.c_void_p).value
    assert address is not None
    return address
