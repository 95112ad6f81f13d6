"""Bits of codes in words, moved to where they belong in numbers of 16 bits: two numbers at a time, in one register.

Of `(word >> 4 & 15) ^ 0x4308` each bit is one of the word, or known. Two words side by side in a register of 32 bits
are shifted together, and `lop3` masks and flips both: two instructions for two numbers. What a compiler makes of the
same expression takes each number apart, and packs them again. Bytes are spread out with `prmt` first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from intarsia.ir.dtypes import U8, U16, U32, DType
from intarsia.ir.scalar import Apply, Bitcast, Cast, Const, Expr, Load

_SPREAD = (0x4140, 0x4342)
"""Selectors of `prmt`: the first two bytes of a register, and the last two, each with zeros above it."""

_MASK_AND_FLIP = 0x6A
"""The function (a & b) ^ c of `lop3`."""


@dataclass(frozen=True)
class MovedBits:
    """A number of which each bit is one of a source, or 0; and then some are flipped. A code that ends in another word
    than it begins in has two sources, which are of one type.

    places: for each bit, the lowest first, the source, by its number, and the bit of that which it is.
    """

    sources: tuple[Load, ...]
    places: tuple[tuple[int, int] | None, ...]
    flipped: int = 0

    def cut(self, bits: int) -> MovedBits:
        """The low bits, with zeros above where there are fewer; no source of which there is nothing in them."""
        places = (*self.places, *(None,) * bits)[:bits]
        left = [n for n in range(len(self.sources)) if any(p is not None and p[0] == n for p in places)]
        moved = tuple(None if p is None else (left.index(p[0]), p[1]) for p in places)
        return MovedBits(tuple(self.sources[n] for n in left), moved, self.flipped & ((1 << bits) - 1))

    def shifted(self, distance: int) -> MovedBits:
        """Moved up by a distance, which may be negative."""
        width = len(self.places)
        kept = (*(None,) * distance, *self.places[: width - distance]) if distance >= 0 else self.places[-distance:]
        flipped = self.flipped << distance if distance >= 0 else self.flipped >> -distance
        return MovedBits(self.sources, kept, flipped).cut(width)

    def masked(self, mask: int) -> MovedBits:
        places = tuple(p if mask >> n & 1 else None for n, p in enumerate(self.places))
        return MovedBits(self.sources, places, self.flipped & mask)

    def joined(self, other: MovedBits) -> MovedBits | None:
        """Both of them, if no bit of one is where one of the other may be 1."""
        mine, theirs = (b.flipped | sum(1 << n for n, p in enumerate(b.places) if p is not None) for b in (self, other))
        sources = tuple(dict.fromkeys((*self.sources, *other.sources)))
        if mine & theirs or len(sources) > 2 or len({x.dtype for x in sources}) > 1:
            return None
        moved = tuple(None if p is None else (sources.index(other.sources[p[0]]), p[1]) for p in other.places)
        places = tuple(a if b is None else b for a, b in zip(self.places, moved))
        return MovedBits(sources, places, self.flipped | other.flipped)

    @property
    def moves(self) -> dict[tuple[int, int], int]:
        """By the source and by how much bits move up, the mask of those that do, where they are then."""
        found: dict[tuple[int, int], int] = {}
        for n, place in enumerate(self.places):
            if place is not None:
                source, bit = place
                found[source, n - bit] = found.get((source, n - bit), 0) | 1 << n
        return found

    @property
    def are_bytes(self) -> bool:
        """Are the sources bytes, not words of 16 bits?"""
        return self.sources[0].dtype.bits <= 8

    def name(self, dtype: DType) -> str:
        """The name of the function, another one for each."""
        source = "bytes" if self.are_bytes else "words"
        moves = "".join(
            f"_{'next_' * n}{'up' if d > 0 else 'down'}{abs(d)}_{mask:04x}" for (n, d), mask in self.moves.items()
        )
        return f"{dtype}_of_{source}{moves}_flip_{self.flipped:04x}"

    def function(self, dtype: DType, type_name: str) -> str:
        """A function of words, or of bytes, which gives numbers of 16 bits."""
        assert self.sources and dtype.bits == 16
        results = len(_SPREAD) if self.are_bytes else 1
        lines = [".reg .b32 word, bits;"]
        for result in range(results):
            flipped = f"{self.flipped * 0x10001:#010x}"
            spread = -1
            for (source, distance), mask in self.moves.items():
                register = f"${results + source}"
                if source != spread:
                    selector = f"{_SPREAD[result]:#06x}"
                    lines.append(
                        f"prmt.b32 word, {register}, 0, {selector};" if self.are_bytes else f"mov.b32 word, {register};"
                    )
                    spread = source
                direction = "shl" if distance > 0 else "shr"
                bits = "word"
                if distance:
                    lines.append(f"{direction}.b32 bits, word, {abs(distance)};")
                    bits = "bits"
                lines.append(f"lop3.b32 ${result}, {bits}, {mask * 0x10001:#010x}, {flipped}, {_MASK_AND_FLIP:#04x};")
                flipped = f"${result}"
        asm = "\n".join(f"        {line}" for line in lines)
        registers = ",".join(["=r"] * results + ["r"] * len(self.sources))
        if results > 1 or len(self.sources) > 1:
            registers = registers.replace("=r", "=&r")  # written before the sources are read for the last time
        codes = ", ".join(f"codes{'_1' * n}" for n in range(len(self.sources)))
        return f'''
@triton.jit
def {self.name(dtype)}({codes}):
    """{self}"""
    return tl.inline_asm_elementwise(
        """{{
{asm}
        }}""",
        "{registers}", [{codes}], dtype={type_name}, is_pure=True, pack={2 * results},
    )
'''.strip()

    def __str__(self) -> str:
        parts = [
            f"codes{'_1' * n}{f' << {d}' if d > 0 else f' >> {-d}' if d else ''} & {mask:#06x}"
            for (n, d), mask in self.moves.items()
        ]
        return f"({' | '.join(parts)}) ^ {self.flipped:#06x}, of several codes at a time."


def moved_bits(e: Expr, number: Callable[[Expr], int | None]) -> MovedBits | None:
    """An unsigned integer, or a code, as bits of what is loaded; None if it is anything else. `number` gives that of a
    constant."""
    match e:
        case Load(dtype=dtype) if dtype.is_narrow or dtype in (U8, U16):
            return MovedBits((e,), tuple((0, n) for n in range(dtype.bits)))
        case Const(int() as value):
            return MovedBits((), (None,) * e.dtype.bits, value)
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
            return None if found is None or bits is None else replace(found, flipped=found.flipped ^ bits)
    return None


def _are_bits(e: Expr, dtype: DType, inner: Expr) -> bool:
    """Does a cast or bitcast only take the low bits of another one?"""
    if isinstance(e, Cast):
        return dtype in (U8, U16, U32) and inner.dtype.kind == "uint" and not inner.dtype.is_narrow
    return (dtype == U8 and inner.dtype.is_narrow) or (dtype.is_narrow and inner.dtype == U8)
