"""Scalar expressions: what one element is. The body of every op of the Graph and every statement of a Kernel.

An expression is typed when it is built; nothing converts implicitly. In the Graph, `Load.buffer` names an operand by
position (`a0`, `a1`, …; text shows the operand itself); in a Kernel it names a buffer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial, reduce
from typing import TypeAlias

from intarsia.ir.dtypes import BOOL, I64, DType, have_same_bits
from intarsia.ir.functions import FUNCTIONS
from intarsia.ir.sizes import ZERO, Size

Mask: TypeAlias = "tuple[Size, ...]"
"""A conjunction: every expression in it must be greater than 0. `i < n` is stored as `n - i`."""


@dataclass(frozen=True, eq=False)
class _Expression:
    """Structural equality with a cached hash, so that deep expressions compare and look up in about constant time."""

    @cached_property
    def _key(self) -> tuple[object, ...]:
        return (type(self).__name__, *(getattr(self, f.name) for f in fields(self)))

    @cached_property
    def _hash(self) -> int:
        return hash(self._key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, _Expression) or self._hash != other._hash or self._key != other._key:
            return False
        vars(other)["_key"] = self._key  # identity is all that is compared the next time they meet, as shared parts do
        return True

    @property
    def children(self) -> tuple[Expr, ...]:
        return ()

    @cached_property
    def symbols(self) -> frozenset[str]:
        """The names (axes, dimensions, counters) that the value depends on."""
        return frozenset().union(*(c.symbols for c in self.children))

    @cached_property
    def length(self) -> int:
        """The number of parts of the expression written out."""
        return 1 + sum(c.length for c in self.children)

    @property
    def subscript_text(self) -> str:
        """The text of the value as a part of a size."""
        return f"{{{self}}}"

    def substitute(self, names: Mapping[str, Size]) -> Expr:
        """Replace names in every subscript, mask and index value."""
        return transform(self, names=names)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Const(_Expression):
    """A number. Floats are kept in double precision and rounded to `dtype` where they are used."""

    value: int | float | bool
    dtype: DType

    def __post_init__(self) -> None:
        plain = float if self.dtype.is_float else bool if self.dtype == BOOL else int
        object.__setattr__(self, "value", plain(self.value))

    @cached_property
    def _key(self) -> tuple[object, ...]:
        """nan equals nan, and 0.0 differs from -0.0."""
        return ("Const", repr(self.value), self.dtype)

    def __str__(self) -> str:
        return _const_text(self.value, self.dtype)


@dataclass(frozen=True, eq=False)
class Index(_Expression):
    """An integer expression over names as an i64 value."""

    size: Size

    @property
    def dtype(self) -> DType:
        return I64

    @cached_property
    def symbols(self) -> frozenset[str]:
        return self.size.symbols

    def __str__(self) -> str:
        return f"index({self.size})"


@dataclass(frozen=True, eq=False)
class Load(_Expression):
    """One element of a buffer; `other`, or 0, where the mask does not hold (memory is then not touched)."""

    buffer: str
    indices: tuple[Size, ...]
    dtype: DType
    mask: Mask = ()
    other: Const | None = None

    @cached_property
    def symbols(self) -> frozenset[str]:
        return frozenset().union(*(i.symbols for i in self.indices), *(m.symbols for m in self.mask))

    @cached_property
    def length(self) -> int:
        """The number of parts of the expression written out."""
        return 1 + sum(c.length for c in self.children)

    @property
    def subscript_text(self) -> str:
        return f"{{{self}}}" if self.mask else str(self)

    def __str__(self) -> str:
        text = f"{self.buffer}[{', '.join(map(str, self.indices))}]"
        if self.mask:
            text += f" if {mask_text(self.mask)}"
            text += f" else {self.other}" if self.other is not None else ""
            text = f"({text})"
        return text


@dataclass(frozen=True, eq=False)
class Apply(_Expression):
    """A function of `ir/functions.py` applied to values; `where` is `Apply("where", (condition, a, b))`."""

    function: str
    arguments: tuple[Expr, ...]

    def __post_init__(self) -> None:
        FUNCTIONS[self.function].result(tuple(a.dtype for a in self.arguments))

    @cached_property
    def dtype(self) -> DType:
        return FUNCTIONS[self.function].result(tuple(a.dtype for a in self.arguments))

    @property
    def children(self) -> tuple[Expr, ...]:
        return self.arguments

    def __str__(self) -> str:
        return expression_text(self)


@dataclass(frozen=True, eq=False)
class Cast(_Expression):
    """Conversion of a value (language.md, section 4, Casts)."""

    dtype: DType
    value: Expr

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.value,)

    def __str__(self) -> str:
        return f"{self.dtype}({self.value})"


@dataclass(frozen=True, eq=False)
class Bitcast(_Expression):
    """The same bits read as another type of the same width, or the code of a narrow element as `u8` and back.

    A code has zeros above its bits; of a `u8` the low bits are taken.
    """

    dtype: DType
    value: Expr

    def __post_init__(self) -> None:
        assert have_same_bits(self.dtype, self.value.dtype), f"bitcast of {self.value.dtype} to {self.dtype}"

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.value,)

    def __str__(self) -> str:
        return f"bitcast({self.value}, {self.dtype})"


Expr: TypeAlias = Const | Index | Load | Apply | Cast | Bitcast


def factors(expression: Expr) -> Iterator[Expr]:
    """The factors of a product, in order; another expression is its own only one."""
    match expression:
        case Apply("mul", (left, right)):
            yield from factors(left)
            yield from factors(right)
        case _:
            yield expression


def product_of(factors: Iterable[Expr]) -> Expr:
    """The product of some factors, at least one, from the first to the last."""
    return reduce(partial(apply, "mul"), factors)


def sides(uses: Sequence[Collection[str]]) -> tuple[set[str], set[str]] | None:
    """The names that some factors of a product use and the others do not, and those of the others: the rows and columns
    of a product of matrices. uses: the names that each factor uses, of those that may be either. None if there are no
    two such sides."""
    for own in map(set, uses):
        others = set[str]().union(*(u for u in uses if not own.issuperset(u)))
        if own - others and others - own:
            return own - others, others - own
    return None


def apply(function: str, *arguments: Expr) -> Apply:
    return Apply(function, arguments)


def where(condition: Expr, then: Expr, otherwise: Expr) -> Apply:
    return Apply("where", (condition, then, otherwise))


def every(conditions: Iterable[Expr]) -> Expr:
    """The conjunction of one or more conditions."""
    return reduce(lambda a, b: apply("and", a, b), conditions)


def holds(mask: Mask) -> Expr:
    """A mask, which is not empty, as a condition."""
    return every(apply("gt", Index(m), Index(ZERO)) for m in mask)


def cast(dtype: DType, value: Expr) -> Expr:
    return value if value.dtype == dtype else Cast(dtype, value)


def constant(value: int | float | bool, dtype: DType) -> Const:
    return Const(value, dtype)


def walk(expression: Expr) -> Iterator[Expr]:
    """Every distinct sub-expression in the order of the text, parents first, data-dependent subscripts included.

    Each is visited once, however often it occurs: written out, an expression of shared parts can be exponentially long.
    """
    stack = [expression]
    seen: set[Expr] = set()
    while stack:
        e = stack.pop()
        if e in seen:
            continue
        seen.add(e)
        yield e
        stack.extend(reversed(e.children))
        if isinstance(e, Load):
            stack.extend(reversed([o for i in (*e.indices, *e.mask) for o in i.opaques]))
        elif isinstance(e, Index):
            stack.extend(reversed(e.size.opaques))


def loads(expression: Expr) -> Iterator[Load]:
    return (e for e in walk(expression) if isinstance(e, Load))


def transform(
    expression: Expr,
    names: Mapping[str, Size] | None = None,
    rule: Callable[[Expr], Expr | None] | None = None,
) -> Expr:
    """Rebuild an expression, children first: replace names, then apply `rule` to each node (None keeps it).

    Data-dependent subscripts are rebuilt too. Equal shared sub-expressions are visited once.
    """
    names = names or {}
    memo: dict[Expr, Expr] = {}

    def size(s: Size) -> Size:
        return s.substitute(names, lambda value: as_size(go(value)))

    def go(e: Expr) -> Expr:
        if e in memo:
            return memo[e]
        new: Expr = e
        match e:
            case Load(indices=indices, mask=mask):
                new = replace(e, indices=tuple(map(size, indices)), mask=tuple(map(size, mask)))
            case Index(s):
                new = Index(size(s))
            case Apply(function, arguments):
                new = Apply(function, tuple(map(go, arguments)))
            case Cast(dtype, value):
                new = Cast(dtype, go(value))
            case Bitcast(dtype, value):
                new = Bitcast(dtype, go(value))
            case Const():
                pass
        if rule is not None and (better := rule(new)) is not None:
            new = better
        memo[e] = new
        return new

    return go(expression)


def as_size(value: Expr) -> Size:
    """An integer expression as a subscript: affine where it can be seen to be, else opaque."""
    match value:
        case Index(size):
            return size
        case Const(value=int() as number):
            return Size.of(number)
        case Cast(dtype, Index(size)) if dtype.kind == "int" and dtype.bits >= 64:
            return size
    return Size.opaque(value)


# ---------------------------------------------------------------------- text

INFIX = {
    "or": ("or", 1), "and": ("and", 2),
    "eq": ("==", 4), "ne": ("!=", 4), "lt": ("<", 4), "le": ("<=", 4), "gt": (">", 4), "ge": (">=", 4),
    "add": ("+", 5), "sub": ("-", 5), "mul": ("*", 6), "div": ("/", 6), "floordiv": ("//", 6), "mod": ("%", 6),
}  # fmt: skip
"""Functions written between their arguments: the symbol, and how tightly it binds."""


_LONG = 500
"""Parts of an expression, written out, beyond which those that occur several times are given names."""


def expression_text(e: Expr) -> str:
    """Text with as few brackets as the grammar of the language needs; a literal shows its dtype where it is unusual.

    Shared parts of a long expression are written once, `let(t0 = a * b, t1 = t0 + a, t1 * t1)`: without names its text
    can be exponentially long.
    """
    return _text(e, 0, {}) if e.length <= _LONG else _text_with_names(e)


def _text_with_names(e: Expr) -> str:
    parts = _parts(e)
    uses = Counter(child for part in parts for child in part.children)
    names: dict[Expr, str] = {}
    definitions: list[str] = []
    for part in parts:
        if part.children and uses[part] > 1:
            definitions.append(f"t{len(names)} = {_text(part, 0, names)}")
            names[part] = f"t{len(names)}"
    whole = _text(e, 0, names)
    return f"let({', '.join((*definitions, whole))})" if definitions else whole


def _parts(e: Expr) -> list[Expr]:
    """Every distinct part, each after its own parts."""
    found: dict[Expr, None] = {}
    stack = [(e, False)]
    while stack:
        part, ready = stack.pop()
        if part in found:
            continue
        if ready:
            found[part] = None
        else:
            stack.append((part, True))
            stack += [(child, False) for child in reversed(part.children)]
    return list(found)


def _text(e: Expr, level: int, names: Mapping[Expr, str]) -> str:
    if e in names:
        return names[e]
    match e:
        case Apply(function, (left, right)) if function in INFIX:
            symbol, own = INFIX[function]
            tight = own + 1 if own == 4 else own
            text = f"{_text(left, tight, names)} {symbol} {_text(right, own + 1, names)}"
            return f"({text})" if own < level else text
        case Apply(function, arguments):
            return f"{function}({', '.join(_text(a, 0, names) for a in arguments)})"
        case Cast(dtype, value):
            return f"{dtype}({_text(value, 0, names)})"
        case Bitcast(dtype, value):
            return f"bitcast({_text(value, 0, names)}, {dtype})"
    return str(e)


def _const_text(value: int | float | bool, dtype: DType) -> str:
    """f32 and i64 literals are bare; others carry their dtype, as in `f64 1.5`."""
    if dtype == BOOL:
        return "true" if value else "false"
    text = repr(float(value)) if dtype.is_float else str(int(value))
    bare = dtype.name in ("f32", "i64")
    return text if bare else f"{dtype}:{text}"


def mask_text(mask: Mask) -> str:
    """`0 < e` of each condition, printed with its negative terms on the left: `i + 1 < n`."""
    parts = []
    for m in mask:
        left = Size(tuple((k, -c) for k, c in m.terms if c < 0))
        right = Size(tuple((k, c) for k, c in m.terms if c > 0))
        parts.append(f"{left} < {right}")
    return " and ".join(parts)
