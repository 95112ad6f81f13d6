"""Exponentials, logarithms, powers, hyperbolic functions and the error function in basic functions.

Each follows one plan: reduce the argument exactly to a short interval, evaluate a polynomial there, put the result
together with at most one more rounding of note. Polynomials are minimax fits (Remez' exchange, coefficients rounded
one after the other with the rest fitted anew) on the interval that the code states, of relative error below 2^-27 for
f32 and 2^-57 for f64 unless said otherwise. Formulas of reduction after Cody and Waite, "Software Manual for the
Elementary Functions" (1980), and Muller, "Elementary Functions" (3rd edition, 2016), chapters 9 and 11.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from intarsia.ir.dtypes import F32, F64, I32, I64, DType
from intarsia.ir.scalar import Apply, Const, Expr
from intarsia.ir.terms import Term, fma, ldexp, polynomial, where

INFINITY = float("inf")
NAN = float("nan")


@dataclass(frozen=True)
class _Constants:
    """What differs between f32 and f64.

    ln2 is ln2_high + ln2_low, and n * ln2_high is exact for every exponent n. exp: (e^r - 1 - r) / r^2 for |r| <= ln 2
    / 2; exp2: (2^r - 1 - r ln 2) / r^2 for |r| <= 1/2. erf_small: erf(x) / x - 1 in powers of x^2 up to 1; erf_large:
    log2 erfc(x) from 1 to `erf_one`, beyond which erf is 1.
    """

    integer: DType
    exp_range: tuple[float, float]
    exp2_range: tuple[float, float]
    expm1_lowest: float
    sigmoid_one: float
    tanh_one: float
    ln2_high: float
    ln2_low: float
    smallest_normal: float
    tiny: float
    exp: tuple[float, ...]
    exp2: tuple[float, ...]
    erf_small: tuple[float, ...]
    erf_large: tuple[float, ...]
    erf_one: float


_F32 = _Constants(
    integer=I32,
    exp_range=(-104.0, 91.0),
    exp2_range=(-151.0, 129.0),
    expm1_lowest=-20.0,
    sigmoid_one=20.0,
    tanh_one=10.0,
    ln2_high=0.69317626953125,
    ln2_low=-2.9088971132296138e-05,
    smallest_normal=2.0**-126,
    tiny=2.0**-24,
    exp=(0.4999999403953552, 0.16666516661643982, 0.04166810214519501, 0.008369200862944126, 0.0013839062303304672),
    exp2=(
        0.24022647738456726, 0.055503588169813156, 0.009618482552468777, 0.0013391360407695174, 0.0001533759932499379,
    ),
    erf_small=(
        0.12837916612625122, -0.3761262595653534, 0.11283578723669052, -0.026853347197175026, 0.005187162198126316,
        -0.0007997853099368513, 7.806903158780187e-05,
    ),
    erf_large=(
        -0.0004897148464806378, -1.626057744026184, -0.9206293821334839, -0.14876756072044373, 0.03151305764913559,
        -0.004254358820617199, 0.00026906433049589396,
    ),
    erf_one=4.0,
)  # fmt: skip

_F64 = _Constants(
    integer=I64,
    exp_range=(-746.0, 712.0),
    exp2_range=(-1076.0, 1025.0),
    expm1_lowest=-40.0,
    sigmoid_one=40.0,
    tanh_one=20.0,
    ln2_high=0.6931471805598903,
    ln2_low=5.497923018708371e-14,
    smallest_normal=2.0**-1022,
    tiny=2.0**-53,
    exp=(
        0.5000000000000001, 0.1666666666666667, 0.04166666666664941, 0.008333333333328682, 0.001388888889735173,
        0.00019841269864994532, 2.480157038623457e-05, 2.7557267091443975e-06, 2.757193480128866e-07,
        2.510079686941856e-08, 1.634286671916071e-09,
    ),
    exp2=(
        0.2402265069591007, 0.05550410866482345, 0.009618129107630175, 0.001333355814599318, 0.0001540353038958836,
        1.5252734224173746e-05, 1.3215490191567873e-06, 1.0177902452777569e-07, 7.053573983005658e-09,
        4.4784966264670416e-10, 2.761676387087074e-11,
    ),
    erf_small=(
        0.1283791670955126, -0.376126389031841, 0.11283791670971098, -0.026866170648031065, 0.005223977652690588,
        -0.000854832853560479, 0.00012055386183276634, -1.4926881150303807e-05, 1.6481052761042408e-06,
        -1.655705428484074e-07, 1.601265776025049e-08, -1.6462313440762141e-09, 1.4339110146750919e-10,
    ),
    erf_large=(
        -3.9410865108732794e-08, -1.6279066730452323, -0.9184495424983953, -0.14826704537051777, 0.027596139041415235,
        0.00029155415317242095, -0.002416102085761737, 0.0007965553456554198, 3.1995203190599845e-05,
        -0.00015997127983893348, 9.349918763602074e-05, -3.505531583220858e-05, 9.795543823070296e-06,
        -2.1223136508400616e-06, 3.583677005319908e-07, -4.650275114967464e-08, 4.490188230079518e-09,
        -3.0418084085428375e-10, 1.2902933048404534e-11, -2.578278200841287e-13,
    ),
    erf_one=6.0,
)  # fmt: skip

_LOG_F32 = (
    0.3333333134651184, -0.2500082552433014, 0.20001265406608582, -0.16623219847679138, 0.14200714230537415,
    -0.13160490989685059, 0.12769606709480286, -0.07644126564264297,
)  # fmt: skip
"""(ln(1 + f) - f + f^2/2) / f^3 for 1 + f from sqrt(1/2) to sqrt(2)."""

_LOG_F64 = (
    0.6666666666666735, 0.3999999999940937, 0.28571428743681204, 0.22222198429627718, 0.18183572316898852,
    0.15313833227562854, 0.14798247370686032,
)  # fmt: skip
"""(ln((1 + s) / (1 - s)) - 2s) / s^3 in powers of s^2, s = f / (2 + f)."""

_LOG_SHORT = (0.6666666564127757, 0.4000033622192416, 0.2853723818626657, 0.23583571125673297)
"""The same to 2^-37."""

_ATANH = (
    0.20000000000001136, 0.1428571428504561, 0.11111111260740904, 0.09090892112638714, 0.0769338204912579,
    0.06628327554838988, 0.06598941093146808,
)  # fmt: skip
"""(atanh(s) / s - 1 - s^2/3) / s^4 in powers of s^2, to 2^-66 of atanh(s) / s."""


def _constants(x: Term) -> _Constants:
    return _F32 if x.dtype == F32 else _F64


def clamp(x: Term, low: float, high: float) -> Term:
    """x within low..high; NaN stays. Written so that each bound is one instruction."""
    x = where(x > high, high, x)
    return where(x < low, low, x)


def copy_sign(magnitude: Term, sign: Term) -> Term:
    """A magnitude without a sign with the sign of another number, also of zero."""
    integer = _constants(sign).integer
    bit = sign.bitcast(integer) & (-1 << (integer.bits - 1))
    return (magnitude.bitcast(integer) | bit).bitcast(sign.dtype)


def has_sign(x: Term) -> Term:
    """Is the sign bit set? True of -0.0 too."""
    return x.bitcast(_constants(x).integer) < 0


# ---------------------------------------------------------------------- exponentials


def _reduced(x: Term) -> tuple[Term, Term]:
    """n and r with x = n ln 2 + r."""
    c = _constants(x)
    n = (x * math.log2(math.e)).round()
    return n, fma(n, -c.ln2_low, fma(n, -c.ln2_high, x))


def _exp_scaled(x: Term, power: float) -> Term:
    """e^x * 2^power, without overflow on the way."""
    c = _constants(x)
    n, r = _reduced(clamp(x, *c.exp_range))
    return ldexp(polynomial(r, (1.0, 1.0, *c.exp)), n + power if power else n)


def exp(x: Term) -> Term:
    return exp2(_in_powers_of_two(x)) if _is_rounded(x.expr) else _exp_scaled(x, 0.0)


def exp2(x: Term) -> Term:
    return _exp2_inside(clamp(x, *_constants(x).exp2_range))


def _exp2_inside(x: Term) -> Term:
    """2^x, as far as `ldexp` goes."""
    n = x.round()
    return ldexp(_exp2_fraction(x - n, _constants(x)), n)


def _exp2_fraction(r: Term, c: _Constants) -> Term:
    """2^r for |r| <= 1/2."""
    return fma(r, fma(r, polynomial(r, c.exp2), math.log(2.0)), 1.0)


def expm1(x: Term) -> Term:
    c = _constants(x)
    result = _expm1_inside(clamp(x, c.expm1_lowest, c.exp_range[1]))
    return where(x.equals(0.0), x, result)


def _expm1_inside(x: Term) -> Term:
    """e^x - 1 = 2^n ((e^r - 1) + (1 - 2^-n)) where neither is far beyond the range; of any zero +0."""
    n, r = _reduced(x)
    p = fma(r * r, polynomial(r, _constants(x).exp), r)
    return ldexp(p + (1.0 - ldexp(x.like(1.0), -n)), n)


def sigmoid(x: Term) -> Term:
    return _sigmoid_of(exp(_below_one(x)))


def _below_one(x: Term) -> Term:
    """An argument of `sigmoid`, cut off where the result is 1."""
    limit = _constants(x).sigmoid_one
    return where(x > limit, limit, x)


def _sigmoid_of(e: Term) -> Term:
    """e^x / (e^x + 1), which keeps its digits where it is small."""
    return e / (e + 1.0)


def sinh(x: Term) -> Term:
    """Near 0 from e^x - 1; else half of e^x less its reciprocal."""
    magnitude = abs(x)
    t = _expm1_inside(where(magnitude > 1.0, 1.0, magnitude))
    near = (t + t / (t + 1.0)) * 0.5
    half = _exp_scaled(magnitude, -1.0)
    return copy_sign(where(magnitude > 1.0, half - 0.25 / half, near), x)


def cosh(x: Term) -> Term:
    half = _exp_scaled(abs(x), -1.0)
    return half + 0.25 / half


def tanh(x: Term) -> Term:
    """t / (t + 2) with t = e^2|x| - 1."""
    magnitude = abs(x)
    limit = _constants(x).tanh_one
    t = _expm1_inside(where(magnitude > limit, limit, magnitude) * 2.0)
    return copy_sign(t / (t + 2.0), x)


def erf(x: Term) -> Term:
    """Up to 1 a polynomial in x^2; beyond 1 - erfc(x), with a polynomial for log2 erfc(x)."""
    c = _constants(x)
    magnitude = abs(x)
    near = fma(magnitude, polynomial(magnitude * magnitude, c.erf_small), magnitude)
    power = polynomial(where(magnitude > c.erf_one, c.erf_one, magnitude), c.erf_large)
    n = power.round()
    far = 1.0 - ldexp(_exp2_fraction(power - n, c), n)
    return copy_sign(where(magnitude > 1.0, far, near), x)


# ---------------------------------------------------------------------- where arguments are rounded

LOG2_E = math.log2(math.e)

_ROUNDED = frozenset(("add", "sub", "mul", "div", "fma"))
_EXACT = frozenset(("neg", "abs", "minimum", "maximum"))


def _is_rounded(e: Expr) -> bool:
    """Is a number the result of a rounding? Its error changes e^x as much as another rounding of x does, so that
    2^(x log2 e) is as good as the longer way to e^x."""
    match e:
        case Apply("where", (_, *chosen)):
            return all(isinstance(a, Const) or _is_rounded(a) for a in chosen)
        case Apply(function, arguments) if function in _EXACT:
            return all(isinstance(a, Const) or _is_rounded(a) for a in arguments)
        case Apply(function):
            return function in _ROUNDED
    return False


def _in_powers_of_two(x: Term) -> Term:
    """x log2(e), where x is c a or c a + b with fewer roundings.

    Not c log2(e) a + b log2(e), of which the second part may have been computed before: it may be infinite where b is
    not, and the sum NaN where a is infinite.
    """
    match x.expr:
        case Apply("mul", (a, Const(c))) if 1e-30 < abs(c) < 1e30:
            return Term(a) * (c * LOG2_E)
        case Apply("add", (Apply("mul", (a, c)), b)):
            return fma(Term(a), Term(c), Term(b)) * LOG2_E
        case Apply("sub", (Apply("mul", (a, c)), b)):
            return fma(Term(a), Term(c), -Term(b)) * LOG2_E
    return x * LOG2_E


# ---------------------------------------------------------------------- where `ldexp` takes any power

# There a power that is NaN gives NaN, and an infinite one gives 0 or infinity, even of NaN, as AVX-512's vscalef does.


def exp_unbounded(x: Term) -> Term:
    """A remainder of a large argument makes no sense. Without the highest bit of its exponent it is below 2, so that
    the polynomial is positive and finite, and the power decides."""
    if _is_rounded(x.expr):
        return exp2_unbounded(_in_powers_of_two(x))
    c = _constants(x)
    n, r = _reduced(x)
    r = (r.bitcast(c.integer) & ~(1 << (c.integer.bits - 2))).bitcast(x.dtype)
    return ldexp(polynomial(r, (1.0, 1.0, *c.exp)), n)


def exp2_unbounded(x: Term) -> Term:
    """The remainder is at most 1/2, and NaN where x is infinite."""
    return _exp2_inside(x)


def sigmoid_unbounded(x: Term) -> Term:
    return _sigmoid_of(exp_unbounded(_below_one(x)))


# ---------------------------------------------------------------------- logarithms


def _split(x: Term) -> tuple[Term, Term]:
    """e and m with x = 2^e m and m from sqrt(1/2) to sqrt(2), for positive finite x."""
    integer, mantissa = _constants(x).integer, x.dtype.mantissa
    small = x < _constants(x).smallest_normal
    bits = where(small, x * 2.0 ** (mantissa + 1), x).bitcast(integer)
    least = 0x3F3504F3 if x.dtype == F32 else 0x3FE6A09E667F3BCD  # sqrt(1/2)
    above = bits - least
    exponent = (above >> mantissa).cast(x.dtype) - where(small, float(mantissa + 1), x.like(0.0))
    return exponent, ((above & ((1 << mantissa) - 1)) + least).bitcast(x.dtype)


def _special_logarithms(x: Term, result: Term) -> Term:
    """The logarithms of 0, negative numbers, infinity and NaN."""
    result = where(x > 0.0, result, where(x.equals(0.0), -INFINITY, x.like(NAN)))
    return where(x.equals(INFINITY), x, result)


def _log_of(f: Term, e: Term, correction: Term | None = None) -> Term:
    """ln(1 + f) + e ln 2 + correction, for 1 + f from sqrt(1/2) to sqrt(2); the last is small."""
    c = _constants(f)
    low = e * c.ln2_low if correction is None else fma(e, c.ln2_low, correction)
    half = f * f * 0.5
    if f.dtype == F32:
        tail = fma(f * f * f, polynomial(f, _LOG_F32), low)
        return fma(e, c.ln2_high, f - (half - tail))
    s = f / (f + 2.0)
    z = s * s
    tail = fma(s, fma(z, polynomial(z, _LOG_F64), half), low)
    return fma(e, c.ln2_high, f - (half - tail))


def log(x: Term) -> Term:
    e, m = _split(x)
    return _special_logarithms(x, _log_of(m - 1.0, e))


def log2(x: Term) -> Term:
    """e + ln(m) / ln 2, the product with 1 / ln 2 in two parts."""
    e, m = _split(x)
    y = _log_of(m - 1.0, x.like(0.0))
    high = 1.44269502162933349609375 if x.dtype == F32 else 1.4426950408889634
    low = 1.925963033500212e-08 if x.dtype == F32 else 2.0355273740931033e-17
    return _special_logarithms(x, fma(y, high, e) + y * low)


def log1p(x: Term) -> Term:
    """ln u + (x - (u - 1)) / u with u = 1 + x rounded."""
    u = x + 1.0
    e, m = _split(u)
    lost = where(u >= 2.0, 1.0 - (u - x), x - (u - 1.0)) / u
    near = e.equals(0.0)
    result = _log_of(where(near, x, m - 1.0), e, where(near, 0.0, lost))
    result = where(u > 0.0, result, where(u.equals(0.0), -INFINITY, x.like(NAN)))
    return where((abs(x) < _constants(x).tiny) | x.equals(INFINITY), x, result)


# ---------------------------------------------------------------------- powers


def power(x: Term, y: Term) -> Term:
    """x^y = 2^(y log2 |x|), with the sign and the special cases of IEEE 754."""
    magnitude = abs(x)
    result = _power_f32(magnitude, y) if x.dtype == F32 else _power_f64(magnitude, y)
    whole = y.floor().equals(y)
    half = y * 0.5
    odd = whole & half.floor().differs(half)
    result = where(magnitude.equals(1.0) & y.equals(y), 1.0, result)
    result = where(has_sign(x) & odd, -result, result)
    undefined = (x < 0.0) & ~whole & (magnitude < INFINITY)
    result = where(undefined, NAN, result)
    return where(y.equals(0.0) | x.equals(1.0), 1.0, result)


def _power_f32(magnitude: Term, y: Term) -> Term:
    """By way of f64, where the logarithm has bits to spare."""
    a, exponent = magnitude.cast(F64), y.cast(F64)
    e, m = _split(a)
    f = m - 1.0
    s = f / (f + 2.0)
    z = s * s
    logarithm = fma(s * fma(z, polynomial(z, _LOG_SHORT), 2.0), 1.4426950408889634, e)
    logarithm = _ends(a, logarithm)
    t = clamp(logarithm * exponent, -1000.0, 1000.0)
    n = t.round()
    return ldexp(_exp2_fraction(t - n, _F32), n).cast(F32)


def _ends(a: Term, logarithm: Term) -> Term:
    """The logarithm of a number that is not negative, 0 and infinity included."""
    return where(a.equals(0.0), -INFINITY, where(a < INFINITY, logarithm, a))


def _power_f64(a: Term, y: Term) -> Term:
    """With the logarithm as a sum of two numbers, to 2^-65 of itself."""
    high, low = _log2_pair(a)
    product = y * high
    rest = fma(y, high, -product) + y * low
    inside = abs(product) < 1100.0
    t = clamp(product, -1100.0, 1100.0)
    n = t.round()
    r = (t - n) + where(inside, rest, 0.0)
    return ldexp(_exp2_fraction(r, _F64), n)


def _log2_pair(a: Term) -> tuple[Term, Term]:
    """log2 of a number that is not negative, in two parts: log2 m = 2/ln 2 atanh(s), s = (m - 1) / (m + 1)."""
    e, m = _split(a)
    f = m - 1.0
    d = f + 2.0
    d_low = f - (d - 2.0)
    s = f / d
    s_low = (fma(-s, d, f) - s * d_low) / d
    z = s * s
    z_low = fma(s, s, -z) + s * s_low * 2.0
    # atanh(s) = s (1 + z/3 + z^2 G(z)), the middle term in two parts
    third, third_low = 0.3333333333333333, 1.850371707708594e-17
    u = z * third
    u_low = fma(z, third, -u) + fma(z, third_low, z_low * third) + z * z * polynomial(z, _ATANH)
    v = u + u_low
    v_low = (u - v) + u_low
    w = v + 1.0
    w_low = (1.0 - w) + v + v_low
    p, p_low = _product(s * 2.0, s_low * 2.0, w, w_low)
    q, q_low = _product(p, p_low, a.like(1.4426950408889634), a.like(2.0355273740931033e-17))
    total = e + q
    error = (e - total) + q + q_low
    high = total + error
    return _ends(a, high), where((a < INFINITY) & (a > 0.0), (total - high) + error, 0.0)


def _product(a: Term, a_low: Term, b: Term, b_low: Term) -> tuple[Term, Term]:
    """The product of two sums of two numbers, again as such a sum."""
    high = a * b
    low = fma(a, b, -high) + fma(a, b_low, a_low * b)
    total = high + low
    return total, (high - total) + low
