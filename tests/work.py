"""How much a function does, the same on every machine: for tests of how work grows with the size of a program."""

import sys
from collections.abc import Callable
from types import FrameType


def calls_made(function: Callable[[], object]) -> int:
    """How many functions, of Python and built in, are called while the function runs."""
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count
