"""Known bugs of LLVM, and how the back end avoids them. Each has a test that shows it."""

from __future__ import annotations

import itertools
import re

_MASKED_STORE = re.compile(
    r"^ *(?:tail )?call void @llvm\.masked\.store\.v\d+(?P<type>i8|i16)\.p0"
    r"\((?P<vector><[^>]+>) (?P<value>[^,]+), ptr align (?P<align>\d+) (?P<base>[^,]+), "
    r"<\d+ x i1> <(?P<mask>[^>]+)>\).*$",
    re.MULTILINE,
)


def without_single_lane_stores(text: str) -> str:
    """Write masked stores of one known 8- or 16-bit element as stores of that element.

    The code generator of LLVM 22 for x86 turns a masked store of a truncated vector, where the mask is a constant with
    one lane, into a store of the element as it was before it was truncated: 4 bytes in place of 1 or 2.
    """
    names = itertools.count()

    def scalar(found: re.Match[str]) -> str:
        lanes = [lane.strip() == "i1 true" for lane in found["mask"].split(",")]
        if lanes.count(True) != 1:
            return found[0]
        name, lane = f"%single.{next(names)}", lanes.index(True)
        return (
            f"  {name} = extractelement {found['vector']} {found['value']}, i32 {lane}\n"
            f"  {name}.at = getelementptr {found['type']}, ptr {found['base']}, i64 {lane}\n"
            f"  store {found['type']} {name}, ptr {name}.at, align {found['align']}"
        )

    return _MASKED_STORE.sub(scalar, text)
