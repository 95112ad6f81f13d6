"""Circular functions and their inverses in basic functions.

Arguments are reduced to |r| <= pi/4 by subtracting a multiple of pi/2: up to 2^30 with pi/2 as a sum of three numbers
(Cody and Waite, "Software Manual for the Elementary Functions", 1980; exact products by fma), beyond that with as
many bits of 2/pi as the exponent asks for (Payne and Hanek, "Radian reduction for trigonometric functions", SIGNUM
1983), so that every finite argument gives a result of the stated accuracy. Polynomials as in `ir/exponentials.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from intarsia.ir.dtypes import F32, F64, I32, I64, U64
from intarsia.ir.exponentials import INFINITY, NAN, copy_sign, has_sign
from intarsia.ir.terms import Term, fma, polynomial, where

_HALF_PI = (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33)
_NEAR = 2.0**30
"""Arguments up to here are reduced by subtraction."""

_SIN = {
    "f32": (-0.16666655242443085, 0.008332188241183758, -0.0001951809535967186),
    "f64": (
        -0.1666666666666663, 0.00833333333332184, -0.00019841269829358512, 2.7557313538503625e-06,
        -2.5050734386966312e-08, 1.5895433126606487e-10,
    ),
}  # fmt: skip
"""(sin r - r) / r^3 in powers of r^2."""

_COS = {
    "f32": (0.04166664555668831, -0.0013887309469282627, 2.4432327336398885e-05),
    "f64": (
        0.041666666666666595, -0.0013888888888873325, 2.480158728898368e-05, -2.7557314210073095e-07,
        2.0875704270478016e-09, -1.1358683291362489e-11,
    ),
}  # fmt: skip
"""(cos r - 1 + r^2/2) / r^4 in powers of r^2."""

_ASIN = {
    "f32": (0.16666753590106964, 0.07495247572660446, 0.045477259904146194, 0.0241427943110466, 0.04223301634192467),
    "f64": (
        0.16666666666665375, 0.07500000000345518, 0.04464285682097452, 0.030381959451967838, 0.02237175024953307,
        0.01735982576306583, 0.013884009980549608, 0.012177442300414778, 0.006491631213701264, 0.019629659588437796,
        -0.016386248947855005, 0.032025203370757434,
    ),
}  # fmt: skip
"""(asin x - x) / x^3 in powers of x^2, up to x = 1/2."""

_ATAN = {
    "f32": (-0.33333316445350647, 0.19998525083065033, -0.1424429714679718, 0.10598265379667282, -0.0608733706176281),
    "f64": (
        -0.3333333333333319, 0.1999999999995218, -0.14285714280053705, 0.11111110776277074, -0.09090897550238719,
        0.07692056508550778, -0.0666306173852139, 0.05847580054864653, -0.05037904743227951, 0.03802882211097004,
        -0.017867883728888742,
    ),
}  # fmt: skip
"""(atan z - z) / z^3 in powers of z^2, up to z = tan(pi/8)."""

_LARGE = {"f32": 2.0**125, "f64": 2.0**1021}

_TWO_OVER_PI = (
    0x0000000000000000, 0xA2F9836E4E441529, 0xFC2757D1F534DDC0, 0xDB6295993C439041, 0xFE5163ABDEBBC561,
    0xB7246E3A424DD2E0, 0x06492EEA09D1921C, 0xFE1DEB1CB129A73E, 0xE88235F52EBB4484, 0xE99C7026B45F7E41,
    0x3991D639835339F4, 0x9C845F8BBDF9283B, 0x1FF897FFDE05980F, 0xEF2F118B5A0A6D1F, 0x6D367ECF27CB09B7,
    0x4F463F669E5FEA2D, 0x7527BAC7EBE5F17B, 0x3D0739F78A5292EA, 0x6BFB5FB11F8D5D08, 0x56033046FC7B6BAB,
    0xF0CFBC209AF4361D,
)  # fmt: skip
"""A word of zeros and the binary digits of 2/pi."""


@dataclass(frozen=True)
class _Reduced:
    """x = quadrant * pi/2 + r + low, with |r| <= pi/4; two bits of the quadrant count. f32 needs no `low`."""

    r: Term
    low: Term | None
    quadrant: Term


def sin(x: Term) -> Term:
    return _keep_zero(x, _of_reduced(x, lambda a: _turned(a, 0)))


def cos(x: Term) -> Term:
    return _of_reduced(x, lambda a: _turned(a, 1))


def tan(x: Term) -> Term:
    return _keep_zero(x, _of_reduced(x, lambda a: _turned(a, 0) / _turned(a, 1)))


def _keep_zero(x: Term, result: Term) -> Term:
    """An odd function at a zero: the same zero."""
    return where(x.equals(0.0), x, result)


def _of_reduced(x: Term, function: Callable[[_Reduced], Term]) -> Term:
    """A function of the reduced argument. What large arguments need is costly and, as the first side of `where`, is
    left out where no argument is large."""
    far = where(abs(x) < INFINITY, function(_reduce_far(x)), NAN)
    return where(abs(x) > _NEAR, far, function(_reduce_near(x)))


def _turned(a: _Reduced, turn: int) -> Term:
    """sin(r + low + (quadrant + turn) pi/2)."""
    name = a.r.dtype.name
    z = a.r * a.r
    cube, fourth = polynomial(z, _SIN[name]), polynomial(z, _COS[name])
    half = z * 0.5
    head = 1.0 - half
    if a.low is None:
        sine = fma(a.r * z, cube, a.r)
        cosine = fma(z * z, fourth, head)
    else:
        sine = a.r + fma(a.r * z, cube, fma(-half, a.low, a.low))
        cosine = head + (((1.0 - head) - half) + fma(z * z, fourth, -(a.r * a.low)))
    quadrant = a.quadrant + turn
    value = where((quadrant & 1).equals(0), sine, cosine)
    return where((quadrant & 2).equals(0), value, -value)


# ---------------------------------------------------------------------- reduction


def _reduce_near(x: Term) -> _Reduced:
    """Subtract n * pi/2; for f32 in f64."""
    wide = x.cast(F64)
    magic = 1.5 * 2.0**52
    shifted = fma(wide, 2.0 / math.pi, magic)
    n, quadrant = shifted - magic, shifted.bitcast(I64)
    if x.dtype == F32:
        r = fma(n, -_HALF_PI[1], fma(n, -_HALF_PI[0], wide))
        return _Reduced(r.cast(F32), None, quadrant.cast(I32))
    # n times each part of pi/2 as a product and its error; x less the first product is exact, as both are close.
    product, second = n * _HALF_PI[0], n * _HALF_PI[1]
    error, second_error = fma(n, _HALF_PI[0], -product), fma(n, _HALF_PI[1], -second)
    a, a_low = _sum(wide - product, -error)
    b, b_low = _sum(a, -second)
    high, low = _sum(b, (a_low + b_low) - second_error - n * _HALF_PI[2])
    return _Reduced(high, low, quadrant)


def _sum(a: Term, b: Term) -> tuple[Term, Term]:
    """a + b as the rounded sum and its error (Knuth's)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _reduce_far(x: Term) -> _Reduced:
    """|x| * 2/pi modulo 4 in integers: the digits of 2/pi that matter begin where the exponent says."""
    wide = abs(x).cast(F64)
    bits = wide.bitcast(U64)
    # |x| = m * 2^exponent with m of 53 bits
    m = (bits & ((1 << 52) - 1)) | (1 << 52)
    exponent = (bits >> 52) - (1023 + 52)
    skipped = exponent + (64 - 2)
    largest = 127 if x.dtype == F32 else 1023
    window = _words(skipped >> 6, 4, (largest - 52 + 62) // 64)
    shift = skipped & 63
    words = [(window[k] << shift) | ((window[k + 1] >> 1) >> (63 - shift)) for k in range(3)]
    top, middle, bottom = words
    # m * (top, middle, bottom) modulo 2^192, without its last 64 bits
    low_word = m * middle
    tail = low_word + _high_product(m, bottom)
    carry = where(tail < low_word, 1, m.like(0))
    head = m * top + _high_product(m, middle) + carry
    # Two bits of quadrant, then the fraction; as a signed fraction it is at most 1/2.
    fraction = (head << 2) | (tail >> 62)
    signed = fraction.bitcast(I64)
    quadrant = (head >> 62).bitcast(I64) + where(signed < 0, 1, signed.like(0))
    high = signed.cast(F64)
    rest = (signed - high.cast(I64)).cast(F64) * 2.0**-64 + (tail << 2).cast(F64) * 2.0**-128
    r = high * 2.0**-64
    scaled = r * _HALF_PI[0]
    low = fma(r, _HALF_PI[0], -scaled) + fma(r, _HALF_PI[1], rest * _HALF_PI[0])
    value, low = _sum(scaled, low)
    negative = x < 0.0
    quadrant = where(negative, -quadrant, quadrant)
    value, low = where(negative, -value, value), where(negative, -low, low)
    if x.dtype == F32:
        return _Reduced(value.cast(F32), None, quadrant.cast(I32))
    return _Reduced(value, low, quadrant)


def _words(index: Term, count: int, largest: int) -> list[Term]:
    """`count` consecutive words of 2/pi from a position up to `largest`: halves of the table are chosen by the bits of
    the position, the highest first."""
    steps = largest.bit_length()
    words = [index.like(w) for w in (*_TWO_OVER_PI, *([0] * (1 << steps)))][: (1 << steps) - 1 + count]
    for step in reversed(range(steps)):
        kept = (1 << step) - 1 + count
        chosen = (index & (1 << step)).differs(0)
        words = [where(chosen, b, a) for a, b in zip(words[:kept], words[1 << step :])]
    return words


def _high_product(a: Term, b: Term) -> Term:
    """The upper 64 bits of the product of two u64."""
    low = 0xFFFFFFFF
    a0, a1, b0, b1 = a & low, a >> 32, b & low, b >> 32
    middle = a1 * b0 + ((a0 * b0) >> 32)
    other = a0 * b1 + (middle & low)
    return a1 * b1 + (middle >> 32) + (other >> 32)


# ---------------------------------------------------------------------- inverses


def _asin_parts(magnitude: Term) -> tuple[Term, Term, Term]:
    """Is the number above 1/2; then the root t of (1 - |x|) / 2, else t = |x|; and asin(t) - t."""
    large = magnitude > 0.5
    z = where(large, (1.0 - magnitude) * 0.5, magnitude * magnitude)
    root = where(large, z.sqrt(), magnitude)
    return large, root, root * z * polynomial(z, _ASIN[magnitude.dtype.name])


def asin(x: Term) -> Term:
    """Above 1/2: pi/2 - 2 asin(sqrt((1 - |x|) / 2))."""
    high, low = _half_pi(x)
    large, root, excess = _asin_parts(abs(x))
    y = root + excess
    return copy_sign(where(large, high - (y * 2.0 - low), y), x)


def acos(x: Term) -> Term:
    """Up to 1/2: pi/2 - asin(x); above: 2 asin(sqrt((1 - |x|) / 2)), or pi less that for negative numbers."""
    high, low = _half_pi(x)
    large, root, excess = _asin_parts(abs(x))
    negative = x < 0.0
    outer = (root + excess) * 2.0
    outer = where(negative, high * 2.0 - (outer - low * 2.0), outer)
    inner = high - (x - (low - where(negative, -excess, excess)))
    return where(large, outer, inner)


def _half_pi(x: Term) -> tuple[float, float]:
    """pi/2 in two parts of the dtype."""
    return (1.5707963705062866, -4.371138828673793e-08) if x.dtype == F32 else _HALF_PI[:2]


def atan(x: Term) -> Term:
    return copy_sign(_atan_ratio(abs(x), x.like(1.0)), x)


def _atan_ratio(y: Term, x: Term) -> Term:
    """atan(y / x) for y, x >= 0, from 0 to pi/2, by one division.

    With t = y / x: above tan(3 pi/8) it is pi/2 + atan(-1/t), above tan(pi/8) pi/4 + atan((t - 1) / (t + 1)).
    """
    steep, middle = y > x * 2.414213562373095, y > x * 0.41421356237309503
    numerator = where(steep, -x, where(middle, y - x, y))
    denominator = where(steep, y, where(middle, y + x, x))
    z = numerator / denominator
    square = z * z
    high, low = (part / 2 for part in _half_pi(y))
    turns = where(steep, 2.0, where(middle, 1.0, y.like(0.0)))
    tail = fma(z * square, polynomial(square, _ATAN[y.dtype.name]), turns * low)
    return fma(turns, high, z + tail)


def atan2(y: Term, x: Term) -> Term:
    """The angle of the point (x, y), from -pi to pi, with the cases of IEEE 754 for zeros and infinities."""
    a, b = abs(y), abs(x)
    corner = a.equals(INFINITY) & b.equals(INFINITY)
    # So that sums and multiples of the largest numbers stay finite.
    scale = where((a > _LARGE[y.dtype.name]) | (b > _LARGE[y.dtype.name]), 0.125, y.like(1.0))
    angle = _atan_ratio(where(corner, 1.0, a) * scale, where(corner, 1.0, b) * scale)
    angle = where(a.equals(0.0), 0.0, angle)
    high, low = (part * 2 for part in _half_pi(y))
    result = where(has_sign(x), high - (angle - low), angle)
    defined = y.equals(y) & x.equals(x)
    return where(defined, copy_sign(result, y), NAN)
