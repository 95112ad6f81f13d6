"""Tables of 16 numbers, looked up for four codes at a time: `prmt` picks bytes by 3 bits each.

Each byte of the numbers is looked up by itself, in the lower half of the table and in the upper one; the fourth bit of
a code chooses. Then bytes of four numbers become numbers: 7 instructions for each, in place of 15 choices and what
tests the bits. A number is any function of a code, such as the entries of `nf4`.
"""

from __future__ import annotations

from intarsia.ir.dtypes import Array

CODES = 4
"""Codes that are looked up at a time."""

ENTRIES = 16

_MASK_AND_FLIP = 0x6A
"""The function (a & b) ^ c of `lop3`."""

_CHOOSE = 0xE4
"""The function of `lop3` that gives a bit of a where c has one, else one of b."""


def look_up_function(name: str, numbers: Array, place: int, in_bytes: bool) -> str:
    """A function of codes, bits `place` to `place + 3` of bytes or of words of 16 bits, which gives numbers in f32."""
    lines = [".reg .b32 a, b, code, upper, low, high, first, second, byte<4>;"]
    sources = ["$4"] if in_bytes else ["$4", "$5"]
    mask = 0x0F0F0F0F if in_bytes else 0x000F000F
    for register, source in zip("ab", sources):
        if place:
            lines.append(f"shr.b32 {register}, {source}, {place};")
            source = register
        lines.append(f"lop3.b32 {register}, {source}, {mask:#010x}, 0, {_MASK_AND_FLIP:#04x};")
    lines += [
        "mov.b32 code, a;" if in_bytes else "prmt.b32 code, a, b, 0x6420;",
        "shl.b32 upper, code, 4;",
        "prmt.b32 upper, upper, 0, 0xba98;",  # all bits of a byte are its first one
        f"lop3.b32 code, code, 0x07070707, 0, {_MASK_AND_FLIP:#04x};",
        "shr.b32 low, code, 4;",
        f"lop3.b32 code, low, 0xffffffff, code, {_MASK_AND_FLIP:#04x};",
        "prmt.b32 code, code, 0, 0x4420;",  # four bits for each byte to pick
    ]
    planes = numbers.astype("<f4").view("u1").reshape(ENTRIES, 4).T
    for n, plane in enumerate(planes):
        quarters = [f"{int.from_bytes(plane[q : q + 4].tobytes(), 'little'):#010x}" for q in range(0, ENTRIES, 4)]
        lines += [
            f"prmt.b32 low, {quarters[0]}, {quarters[1]}, code;",
            f"prmt.b32 high, {quarters[2]}, {quarters[3]}, code;",
            f"lop3.b32 byte{n}, high, low, upper, {_CHOOSE:#04x};",
        ]
    for n, selector in enumerate(("0x5140", "0x7362")):
        lines += [
            f"prmt.b32 first, byte0, byte1, {selector};",
            f"prmt.b32 second, byte2, byte3, {selector};",
            f"prmt.b32 ${2 * n}, first, second, 0x5410;",
            f"prmt.b32 ${2 * n + 1}, first, second, 0x7632;",
        ]
    asm = "\n".join(f"        {line}" for line in lines)
    registers = ",".join(["=&r"] * CODES + ["r"] * len(sources))
    return f'''
@triton.jit
def {name}(codes):
    """The numbers that codes stand for, of four at a time."""
    return tl.inline_asm_elementwise(
        """{{
{asm}
        }}""",
        "{registers}", [codes], dtype=tl.float32, is_pure=True, pack={CODES},
    )
'''.strip()
