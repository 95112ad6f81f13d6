"""Names in Python that nothing else has."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterable


class Names:
    """Gives names like those of the user, but legal in Python and each to one thing."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self.taken = {*taken, *keyword.kwlist, *keyword.softkwlist, *dir(builtins)}

    def fresh(self, hint: str) -> str:
        """A name like `hint` that was not given before."""
        base = re.sub(r"\W", "_", hint, flags=re.ASCII).strip("_") or "v"
        base = f"_{base}" if base[0].isdigit() else base
        name, number = base, 0
        while name in self.taken:
            number += 1
            name = f"{base}_{number}"
        self.taken.add(name)
        return name
