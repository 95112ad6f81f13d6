"""Integer expressions: arithmetic against Python's, proofs and simplification against every value in small boxes."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.ir.dtypes import F32
from intarsia.ir.errors import Source
from intarsia.ir.graph import Parameter
from intarsia.ir.ops import Reshape
from intarsia.ir.proofs import Facts, _prove, _Search, ranges, simplify
from intarsia.ir.scalar import Load
from intarsia.ir.scalar_text import ScalarReader
from intarsia.ir.sizes import ONE, ZERO, Size, maximum, minimum, product, row_major_strides
from intarsia.ir.types import TensorType

NAMES = ("i", "j", "n")


def size(text: str) -> Size:
    return ScalarReader(Source("size", text)).size()


def floor_quotient(a: int, b: int) -> int:
    return a // b if b else 0


def remainder(a: int, b: int) -> int:
    return a % b if b else 0


OPERATIONS: tuple[tuple[Callable[..., Size], Callable[..., int]], ...] = (
    (operator.add, operator.add),
    (operator.sub, operator.sub),
    (operator.mul, operator.mul),
    (operator.floordiv, floor_quotient),
    (operator.mod, remainder),
    (minimum, min),
    (maximum, max),
)

Meaning = Callable[[dict[str, int]], int]


def leaf(value: str | int) -> tuple[Size, Meaning]:
    if isinstance(value, str):
        return Size.of(value), lambda env: env[value]
    return Size.of(value), lambda env: value


def combine(pair: tuple[tuple[Size, Meaning], tuple[Size, Meaning], int]) -> tuple[Size, Meaning]:
    (a, mean_a), (b, mean_b), which = pair
    on_sizes, on_numbers = OPERATIONS[which]
    return on_sizes(a, b), lambda env: on_numbers(mean_a(env), mean_b(env))


leaves = st.one_of(st.sampled_from(NAMES).map(leaf), st.integers(-6, 12).map(leaf))
trees = st.recursive(
    leaves, lambda inner: st.tuples(inner, inner, st.integers(0, len(OPERATIONS) - 1)).map(combine), max_leaves=7
)
environments = st.fixed_dictionaries({n: st.integers(-5, 9) for n in NAMES})


@settings(max_examples=150, deadline=None)
@given(trees, environments)
def test_arithmetic_is_that_of_integers(tree: tuple[Size, Meaning], names: dict[str, int]) -> None:
    """By zero, quotient and remainder are 0."""
    expression, meaning = tree
    assert expression.evaluate(names) == meaning(names)


@settings(max_examples=100, deadline=None)
@given(trees, trees, environments)
def test_substitution_is_evaluation_in_two_steps(
    tree: tuple[Size, Meaning], other: tuple[Size, Meaning], names: dict[str, int]
) -> None:
    expression, inner = tree[0], other[0]
    replaced = expression.substitute({"i": inner})
    assert replaced.evaluate(names) == expression.evaluate({**names, "i": inner.evaluate(names)})
    numbers = {n: Size.of(v) for n, v in names.items()}
    assert expression.substitute(numbers).constant == expression.evaluate(names)


@settings(max_examples=75, deadline=None)
@given(trees, trees)
def test_equal_polynomials_are_equal_objects(tree: tuple[Size, Meaning], other: tuple[Size, Meaning]) -> None:
    a, b = tree[0], other[0]
    assert a + b == b + a and hash(a + b) == hash(b + a)
    assert a * b == b * a
    assert (a + b) - b == a
    assert (a + b) * 3 == 3 * a + b * 3
    assert minimum(a, b) == minimum(b, a)


@pytest.mark.parametrize(
    "written, simpler",
    [
        ("(6 * i + 3 * j + 7) // 3", "2 * i + j + 2"),
        ("(6 * i + 3 * j + 7) % 3", "1"),
        ("(4 * i + 5) // 6", "(2 * i + 2) // 3"),
        ("(4 * i + 5) % 6", "2 * ((2 * i + 2) % 3) + 1"),
        ("i // 4 // 16", "i // 64"),
        ("(i // 4 + 3) // 16", "(i + 12) // 64"),
        ("i % 768 % 64", "i % 64"),
        ("i % 768 // 64", "(i // 64) % 12"),
        ("i // 0", "0"),
        ("0 // n", "0"),
        ("min(i, i + 3, j)", "min(i, j)"),
        ("max(max(i, 2), j, 5)", "max(5, i, j)"),
    ],
)
def test_normal_forms(written: str, simpler: str) -> None:
    assert str(size(written)) == simpler


# ---------------------------------------------------------------------- proofs

BOX = range(-2, 7)


def assignments(facts: Facts) -> Iterator[dict[str, int]]:
    """Every assignment of small numbers to the names under which the facts hold."""
    for numbers in itertools.product(BOX, repeat=len(NAMES)):
        names = dict(zip(NAMES, numbers))
        if all(names[n] >= 0 for n in facts.names) and all(f.evaluate(names) >= 0 for f in facts.nonnegative):
            yield names


def facts_of(i: tuple[int, int], with_j: str, others: list[Size]) -> Facts:
    """0 <= n, a range for i, a range for j that may depend on i or n, and what else is given."""
    facts = Facts(names=frozenset("n")).within("i", *i)
    upper = {"n": Size.of("n"), "i": Size.of("i"), "6": Size.of(6), "2*n": 2 * Size.of("n")}[with_j]
    return facts.within("j", 0, upper).given(*others)


def polynomials() -> st.SearchStrategy[Size]:
    """Sums of names, products, quotients and extrema: what subscripts and bounds are made of."""
    name = st.sampled_from(NAMES).map(Size.of)
    term = st.one_of(
        name,
        st.tuples(name, name).map(lambda p: p[0] * p[1]),
        st.tuples(name, st.integers(1, 5), st.integers(-3, 3)).map(lambda p: (p[0] * 2 + p[2]) // p[1]),
        st.tuples(name, name, st.integers(1, 5)).map(lambda p: (p[0] + p[1]) % p[2]),
        st.tuples(name, name, st.integers(-3, 5)).map(lambda p: minimum(p[0], p[1] + p[2])),
        st.tuples(name, st.integers(-3, 5)).map(lambda p: maximum(*p)),
        st.tuples(name, name).map(lambda p: p[0] // p[1]),
        st.tuples(name, name).map(lambda p: p[0] % p[1]),
    )
    terms = st.lists(st.tuples(st.integers(-4, 4), term), min_size=1, max_size=3)
    return st.tuples(terms, st.integers(-8, 20)).map(lambda p: sum((t * c for c, t in p[0]), Size.of(p[1])))


fact_sets = st.builds(
    facts_of,
    st.sampled_from([(0, 6), (-2, 5), (1, 4), (2, 2)]),
    st.sampled_from(["n", "i", "6", "2*n"]),
    st.lists(polynomials(), max_size=2),
)


@settings(max_examples=150, deadline=None)
@given(polynomials(), fact_sets)
def test_what_is_proved_holds(expression: Size, facts: Facts) -> None:
    if facts.proves(expression):
        for names in assignments(facts):
            assert expression.evaluate(names) >= 0, names


@settings(max_examples=30, deadline=None)
@given(polynomials(), st.integers(1, 7), st.integers(1, 7), fact_sets)
def test_simplification_keeps_the_value(expression: Size, d: int, m: int, facts: Facts) -> None:
    for e in (expression, expression // d, expression % d, (expression // d) % m, expression // Size.of("n")):
        simpler = simplify(e, facts)
        for names in assignments(facts):
            assert simpler.evaluate(names) == e.evaluate(names), (str(e), str(simpler), names)


N, M = Size.of("N"), Size.of("M")
DIMENSIONS = Facts((N - 1, M - 1), frozenset(("N", "M")))


@pytest.mark.parametrize(
    "bounds, expression",
    [
        ({"i": (0, N)}, "N - i - 1"),
        ({"i": (1, N)}, "i - 1"),
        ({"i": (0, N - 1)}, "N - 2 - i"),
        ({"i": (0, N), "j": (0, "i")}, "N - 2 - j"),
        ({"i": (0, N), "j": (0, M)}, "N * M - M * i - j - 1"),
        ({"i": (0, N // 2)}, "N - 2 * i - 2"),
        ({"i": (0, (N + 15) // 16), "j": (0, 16)}, "N + 15 - 16 * i - j"),
        ({"i": (0, 768)}, "11 - i // 64"),
        ({"i": (0, 4 * M)}, "3 - i // M"),
        ({"i": (0, N), "j": (1, N)}, "i // j"),
        ({"i": (0, N), "j": (1, N)}, "j - 1 - i % j"),
        ({"i": (0, N)}, "min(N - 1, i + 1) - i"),
        ({"i": (0, N)}, "max(i - 1, 0)"),
        ({"i": (0, N), "k": (0, 3)}, "N - 1 - max(0, min(N - 1, i + k - 1))"),
    ],
)
def test_what_programs_need_is_proved(bounds: dict[str, tuple[Size | int, Size | int]], expression: str) -> None:
    assert ranges(bounds, DIMENSIONS).proves(size(expression))  # type: ignore[arg-type]


def test_a_quotient_of_what_is_not_negative_is_not_negative() -> None:
    """The rest of a block that was split once more, as `schedule` leaves it."""
    block = minimum(250, N - size("i") * 250)
    facts = Facts(DIMENSIONS.nonnegative, DIMENSIONS.names | {"i"}).within("i", 0, (N + 249) // 250)
    facts = facts.within("j", block // 4 * 4, block)
    assert facts.proves(size("250 * i + j")) and facts.proves_below(size("250 * i + j"), N)


def test_a_search_tries_nothing_twice() -> None:
    """The height of an image under a window of open height: what takes the one away brings the other back."""
    rows, columns = size("H - R + 2 * (R // 2)"), size("W + 2 * (R // 2) - 3")
    facts = ranges({"i": (0, rows + 1), "j": (0, columns + 1)}, Facts((rows, columns), frozenset("HRW")))
    search = _Search()
    assert not _prove(size("1 - R"), facts, search, 0)
    assert search.budget > 350


@pytest.mark.parametrize("expression", ["i - 1", "N - i - 2", "i - j", "N // 2 - i"])
def test_what_is_false_is_not_proved(expression: str) -> None:
    assert not ranges({"i": (0, N), "j": (0, N)}, DIMENSIONS).proves(size(expression))


# ---------------------------------------------------------------------- simplification


@pytest.mark.parametrize(
    "written, simpler",
    [
        ("(i // 64) % 12", "i // 64"),
        ("(64 * h + d) // 64", "h"),
        ("(64 * h + d) % 64", "d"),
        ("(64 * h + d) // 768", "0"),
        ("(64 * h + d) % 768", "d + 64 * h"),
        ("((i // 64) * 64 + i % 64)", "i"),
        ("3 * (i // 8) * 8 + 3 * (i % 8) + 1", "3 * i + 1"),
        ("(N * h + k) // N", "h"),
        ("(N * h + k) % N", "k"),
        ("(M * N * h + N * g + k) // (M * N)", "h"),
        ("((M * N * h + N * g + k) // N) % M", "g"),
        ("min(i, 800)", "i"),
        ("max(d - 64, 0)", "0"),
        ("(i % 768) % 96 // 32", "(i // 32) % 3"),
    ],
)
def test_quotients_and_remainders_that_bounds_make_trivial(written: str, simpler: str) -> None:
    bounds = {"i": (0, 768), "h": (0, 12), "d": (0, 64), "k": (0, N), "g": (0, M)}
    assert str(simplify(size(written), ranges(bounds, DIMENSIONS))) == simpler  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "source, target, indices",
    [
        (("N", "768"), ("N", "12", "64"), "i0, 64 * i1 + i2"),
        (("N", "12", "64"), ("N", "768"), "i0, i1 // 64, i1 % 64"),
        (("N", "M", "4"), ("N", "4 * M"), "i0, i1 // 4, i1 % 4"),
        (("N", "4 * M"), ("N", "M", "4"), "i0, 4 * i1 + i2"),
        (("N", "M"), ("N * M",), "i0 // M, i0 % M"),
        (("N * M",), ("N", "M"), "M * i0 + i1"),
        (("2", "3", "4"), ("6", "1", "4"), "i0 // 3, i0 % 3, i2"),
        (("1", "N"), ("N", "1"), "0, i0"),
        (("8", "16", "32"), ("128", "4", "8"), "i0 // 16, i0 % 16, 8 * i1 + i2"),
        (("N", "6", "4"), ("N", "2", "12"), "i0, 3 * i1 + i2 // 4, i2 % 4"),
        (("N", "M", "4"), ("N * M", "4"), "i0 // M, i0 % M, i1"),
        (("N * M", "4", "M"), ("N", "M", "4 * M"), "M * i0 + i1, i2 // M, i2 % M"),
        (("4", "6"), ("3", "8"), "(2 * i0 + i1) // 6 + i0, (2 * i0 + i1) % 6"),
    ],
)
def test_reshapes_have_simple_subscripts(source: tuple[str, ...], target: tuple[str, ...], indices: str) -> None:
    x = Parameter("x", TensorType(F32, tuple(map(size, source)))).value
    body = Reshape(x, tuple(map(size, target))).space.body
    assert isinstance(body, Load) and ", ".join(map(str, body.indices)) == indices


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_reshapes_subscript_the_same_element(factors: list[int], random: object) -> None:
    """Against row-major order: cut the same list of factors in two ways."""

    def cut() -> list[int]:
        shape, rest = [1], list(factors)
        while rest:
            shape[-1] *= rest.pop(0)
            if random.random() < 0.5:  # type: ignore[attr-defined]
                shape.append(1)
        return shape

    source, target = cut(), cut()
    x = Parameter("x", TensorType.of(F32, *source)).value
    body = Reshape(x, tuple(map(Size.of, target))).space.body
    assert isinstance(body, Load)
    for flat, place in enumerate(itertools.product(*map(range, target))):
        names = {f"i{d}": k for d, k in enumerate(place)}
        found = [i.evaluate(names) for i in body.indices]
        assert sum(k * int(s) for k, s in zip(found, row_major_strides(map(Size.of, source)))) == flat


def test_small_things() -> None:
    assert product(()) == ONE and Size.of(0) == ZERO
    assert (2 * Size.of("i") + 3).coefficient("i") == 2 and (Size.of("i") * "j").coefficient("i") is None
    assert size("i * j + i // n").symbols == {"i", "j", "n"}
    with pytest.raises(KeyError):
        Size.of("q").evaluate({})
