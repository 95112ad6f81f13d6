"""Bits of codes in words, moved to where they belong in numbers of 16 bits: two numbers at a time, in one register.

Of `(word >> 4 & 15) ^ 0x4308` each bit is one of the word, or known. Two words side by side in a register of 32 bits
are shifted together, and `lop3` masks and flips both: two instructions for two numbers. What a compiler makes of the
same expression takes each number apart, and packs them again. Bytes are spread out with `prmt` first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from intarsia.ir.dtypes import U8, U16, U32, DType
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, Load

_SPREAD = (0x4140, 0x4342)
"""Selectors of `prmt`: the first two bytes of a register, and the last two, each with zeros above it."""

_MASK_AND_FLIP = 0x6A
"""The function (a & b) ^ c of `lop3`."""


@dataclass(frozen=True)
class MovedBits:
    """A number of which each bit is one of a source, or 0; and then some are flipped.

    places: for each bit, the lowest first, the bit of the source that it is.
    """

    source: Load | None
    places: tuple[int | None, ...]
    flipped: int = 0

    def cut(self, bits: int) -> MovedBits:
        """The low bits, with zeros above where there are fewer."""
        places = (*self.places, *(None,) * bits)[:bits]
        return MovedBits(self.source, places, self.flipped & ((1 << bits) - 1))

    def shifted(self, distance: int) -> MovedBits:
        """Moved up by a distance, which may be negative."""
        width = len(self.places)
        kept = (*(None,) * distance, *self.places[: width - distance]) if distance >= 0 else self.places[-distance:]
        flipped = self.flipped << distance if distance >= 0 else self.flipped >> -distance
        return MovedBits(self.source, kept, flipped).cut(width)

    def masked(self, mask: int) -> MovedBits:
        places = tuple(p if mask >> n & 1 else None for n, p in enumerate(self.places))
        return MovedBits(self.source, places, self.flipped & mask)

    def joined(self, other: MovedBits) -> MovedBits | None:
        """Both of them, if no bit of one is where one of the other may be 1."""
        mine, theirs = (b.flipped | sum(1 << n for n, p in enumerate(b.places) if p is not None) for b in (self, other))
        if mine & theirs or (self.source and other.source and self.source != other.source):
            return None
        places = tuple(a if b is None else b for a, b in zip(self.places, other.places))
        return MovedBits(self.source or other.source, places, self.flipped | other.flipped)

    @property
    def moves(self) -> dict[int, int]:
        """By how much bits move up, and the mask of those that do, where they are then."""
        found: dict[int, int] = {}
        for n, place in enumerate(self.places):
            if place is not None:
                found[n - place] = found.get(n - place, 0) | 1 << n
        return found

    def name(self, dtype: DType) -> str:
        """The name of the function, another one for each."""
        assert self.source is not None
        source = "bytes" if self.source.dtype.bits <= 8 else "words"
        moves = "".join(f"_{'up' if d > 0 else 'down'}{abs(d)}_{mask:04x}" for d, mask in self.moves.items())
        return f"{dtype}_of_{source}{moves}_flip_{self.flipped:04x}"

    def function(self, dtype: DType, type_name: str) -> str:
        """A function of words, or of bytes, which gives numbers of 16 bits."""
        assert self.source is not None and dtype.bits == 16
        is_bytes = self.source.dtype.bits <= 8
        results = len(_SPREAD) if is_bytes else 1
        lines = [".reg .b32 word, bits;"]
        for result in range(results):
            lines.append(f"prmt.b32 word, ${results}, 0, {_SPREAD[result]:#06x};" if is_bytes else "mov.b32 word, $1;")
            flipped = f"{self.flipped * 0x10001:#010x}"
            for distance, mask in self.moves.items():
                direction = "shl" if distance > 0 else "shr"
                source = "word"
                if distance:
                    lines.append(f"{direction}.b32 bits, word, {abs(distance)};")
                    source = "bits"
                lines.append(f"lop3.b32 ${result}, {source}, {mask * 0x10001:#010x}, {flipped}, {_MASK_AND_FLIP:#04x};")
                flipped = f"${result}"
        asm = "\n".join(f"        {line}" for line in lines)
        registers = ",".join(["=r"] * results + ["r"])
        if results > 1:
            registers = registers.replace("=r", "=&r")  # written before the source is read for the last time
        return f'''
@triton.jit
def {self.name(dtype)}(codes):
    """{self}"""
    return tl.inline_asm_elementwise(
        """{{
{asm}
        }}""",
        "{registers}", [codes], dtype={type_name}, is_pure=True, pack={2 * results},
    )
'''.strip()

    def __str__(self) -> str:
        parts = [
            f"{'codes' if not d else f'codes << {d}' if d > 0 else f'codes >> {-d}'} & {mask:#06x}"
            for d, mask in self.moves.items()
        ]
        return f"({' | '.join(parts)}) ^ {self.flipped:#06x}, of several codes at a time."


def moved_bits(e: Expr, number: Callable[[Expr], int | None]) -> MovedBits | None:
    """An unsigned integer, or a code, as bits of what is loaded; None if it is anything else. `number` gives that of a
    constant."""
    match e:
        case Load(dtype=dtype) if dtype.is_narrow or dtype in (U8, U16):
            return MovedBits(e, tuple(range(dtype.bits)))
        case Const(int() as value):
            return MovedBits(None, (None,) * e.dtype.bits, value)
        case Bitcast(dtype, inner) | Cast(dtype, inner) if _are_bits(e, dtype, inner):
            found = moved_bits(inner, number)
            return None if found is None else found.cut(dtype.bits)
        case Apply("shift_left" | "shift_right" as function, (inner, count)):
            found, distance = moved_bits(inner, number), number(count)
            if found is None or distance is None:
                return None
            return found.shifted(distance if function == "shift_left" else -distance)
        case Apply("bit_and", (inner, mask)):
            found, bits = moved_bits(inner, number), number(mask)
            return None if found is None or bits is None else found.masked(bits)
        case Apply("bit_or", (left, right)):
            first, second = moved_bits(left, number), moved_bits(right, number)
            return None if first is None or second is None else first.joined(second)
        case Apply("bit_xor", (inner, flipped)):
            found, bits = moved_bits(inner, number), number(flipped)
            return (
                None if found is None or bits is None else MovedBits(found.source, found.places, found.flipped ^ bits)
            )
    return None


def _are_bits(e: Expr, dtype: DType, inner: Expr) -> bool:
    """Does a cast or bitcast only take the low bits of another one?"""
    if isinstance(e, Cast):
        return dtype in (U8, U16, U32) and inner.dtype.kind == "uint" and not inner.dtype.is_narrow
    return (dtype == U8 and inner.dtype.is_narrow) or (dtype.is_narrow and inner.dtype == U8)
