"""Schedule steps about elements of few bits."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.ir.schedule_step import AtAxis


@dataclass(frozen=True)
class Squeeze(AtAxis):
    """Let elements of few bits that follow one another along a loop share a byte: `squeeze wp at k -> wq`.

        alloc wp: i4[8, 16]; for k in 0..8 { for j in 0..16 { wp[k, j] = w[k, j] } }; … wp[i, j.1] …
     -> alloc wq: u8[4, 16]
        for k in 0..4 { for j in 0..16 { wq[k, j] = code of w[2 * k, j] | code of w[2 * k + 1, j] << 4 } }
        … bitcast(wq[i // 2, j.1] >> 4 * (i % 2), i4) …

    The first of them is in the low bits. Refused but for a temporary of 1, 2 or 4 bits that one statement sets, in a
    loop over all of one dimension whose length is a multiple of the elements of a byte.
    """
