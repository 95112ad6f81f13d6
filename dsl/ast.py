"""The syntax tree of a program: what the parser gives and the checker reads.

Every node is a frozen record with the `span` of source text it came from. `==` is identity, so that nodes can be keys
of the checker's tables; `same` compares structure. Nothing here knows what a name means: a type is a name with
dimensions until the checker has looked the name up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from intarsia.ir.errors import Source, Span

REDUCTIONS = ("sum", "prod", "max", "min", "any", "all", "argmax", "argmin")
"""Names that, followed by `[binders](body)`, reduce over the indices they bind."""

COMPREHENSIONS = ("tensor", *REDUCTIONS)
"""All names that may be followed by `[binders](body)`."""

DERIVATIVES = ("grad", "value_and_grad", "jvp", "custom_grad")
"""Functions of functions that are functions of the same parameters, or more: `grad(f, wrt=x)`."""

TRANSFORMS = (*DERIVATIVES, "map", "fold")
"""All functions of functions, which are called where they are made: `map(f)(p)` is f of each tensor of a struct."""

BinaryOperator: TypeAlias = Literal["or", "and", "+", "-", "*", "/", "//", "%", "@", "**"]
CompareOperator: TypeAlias = Literal["==", "!=", "<", "<=", ">", ">="]
UnaryOperator: TypeAlias = Literal["-", "not"]
DimOperator: TypeAlias = Literal["+", "-", "*", "//", "%"]
UpdateOperator: TypeAlias = Literal["=", "+=", "-=", "*=", "max=", "min="]


@dataclass(frozen=True, eq=False)
class Node:
    """A piece of a program. `span` is keyword-only, so that patterns match on the other fields."""

    span: Span = field(kw_only=True, repr=False)


@dataclass(frozen=True, eq=False)
class Identifier(Node):
    """A name where it is declared, or where it only selects: a function's, a field's, a mesh axis."""

    text: str

    def __str__(self) -> str:
        return self.text


# Dimensions and types


@dataclass(frozen=True, eq=False)
class DimName(Node):
    """A dimension name in a type: `N`."""

    name: str


@dataclass(frozen=True, eq=False)
class DimNumber(Node):
    """An integer in a type."""

    value: int


@dataclass(frozen=True, eq=False)
class DimBinary(Node):
    """Arithmetic on sizes in a type: `2*D`, `N-1`, `S//P`."""

    operator: DimOperator
    left: DimExpression
    right: DimExpression


DimExpression: TypeAlias = DimName | DimNumber | DimBinary


@dataclass(frozen=True, eq=False)
class Sharding(Node):
    """How a dimension is split over mesh axes, major first: `@data`, `@(data, ?)`, `@_`, `@?`, `@data!1`.

    `open` means that it may be split further. No axes and not open is `@_`, no axes and open is `@?`.
    """

    axes: tuple[Identifier, ...]
    open: bool
    priority: int | None


@dataclass(frozen=True, eq=False)
class Dim(Node):
    """One dimension of a type: its size and, where annotated, its sharding."""

    size: DimExpression
    sharding: Sharding | None = None


@dataclass(frozen=True, eq=False)
class Pack(Node):
    """`..S`: in a type zero or more dimensions, in index notation one index for each of them."""

    name: str


TypeDim: TypeAlias = Dim | Pack


@dataclass(frozen=True, eq=False)
class Along(Node):
    """What a type says of mesh axes that split no dimension: `{replicated: model}`, or `{sum: (data, model)}`."""

    word: str
    axes: tuple[Identifier, ...]


@dataclass(frozen=True, eq=False)
class TensorTypeExpr(Node):
    """`f32[N, M]`, `w4[K, N]` or a scalar `f32`. `name` is a dtype, a generic or a format."""

    name: Identifier
    dims: tuple[TypeDim, ...] = ()
    along: Along | None = None


@dataclass(frozen=True, eq=False)
class StructTypeExpr(Node):
    """`Linear(N, K)`, or `Layer(D, F)[L]`: a list of L of them."""

    name: Identifier
    dims: tuple[TypeDim, ...]
    list_length: DimExpression | None = None


@dataclass(frozen=True, eq=False)
class TupleTypeExpr(Node):
    """`(f32[N], i64[N])`: the type of several results, of two or more items."""

    items: tuple[TypeExpression, ...]


TypeExpression: TypeAlias = TensorTypeExpr | StructTypeExpr | TupleTypeExpr


# Expressions


@dataclass(frozen=True, eq=False)
class Name(Node):
    """A use of a name: a value, a dimension, an index, a dtype."""

    name: str


@dataclass(frozen=True, eq=False)
class Number(Node):
    """A number as written in `text`; `inf` and `nan` are floats too. An int is an integer literal."""

    text: str
    value: int | float

    @property
    def is_float(self) -> bool:
        return isinstance(self.value, float)


@dataclass(frozen=True, eq=False)
class String(Node):
    """`"..."`, without its quotes."""

    value: str


@dataclass(frozen=True, eq=False)
class Bool(Node):
    """`true` or `false`."""

    value: bool


@dataclass(frozen=True, eq=False)
class NoneLiteral(Node):
    """`none`: an absent static argument, or a new axis among subscripts."""


@dataclass(frozen=True, eq=False)
class TupleExpr(Node):
    """`(2, 3)`, `(2,)` or `()`."""

    items: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Unary(Node):
    """`-x` or `not x`."""

    operator: UnaryOperator
    operand: Expression


@dataclass(frozen=True, eq=False)
class Binary(Node):
    """`left operator right`; `operator_span` is the operator's own."""

    operator: BinaryOperator
    left: Expression
    right: Expression
    operator_span: Span


@dataclass(frozen=True, eq=False)
class Compare(Node):
    """One comparison; they do not chain."""

    operator: CompareOperator
    left: Expression
    right: Expression
    operator_span: Span


@dataclass(frozen=True, eq=False)
class Keyword(Node):
    """`name=value` among arguments."""

    name: Identifier
    value: Expression


@dataclass(frozen=True, eq=False)
class Call(Node):
    """`function(positional, name=value)`: a function, a built-in or a cast, always by name."""

    function: Identifier
    positional: tuple[Expression, ...]
    keywords: tuple[Keyword, ...]


@dataclass(frozen=True, eq=False)
class Derived(Node):
    """`grad(f, wrt=x)(positional, name=value)`: a function made of another one; `transform` is the first call."""

    transform: Call
    positional: tuple[Expression, ...]
    keywords: tuple[Keyword, ...]


@dataclass(frozen=True, eq=False)
class Binder(Node):
    """An index that is bound: `i`, `i < n` (only `upper`) or `i in a..b` (both)."""

    name: Identifier
    lower: Expression | None = None
    upper: Expression | None = None


BinderItem: TypeAlias = Binder | Pack


@dataclass(frozen=True, eq=False)
class Comprehension(Node):
    """`tensor[i, j < M](body)` or a reduction `sum[k](body)`; `head` is one of COMPREHENSIONS."""

    head: Identifier
    binders: tuple[BinderItem, ...]
    body: Expression


@dataclass(frozen=True, eq=False)
class Slice(Node):
    """`start:stop:step` among subscripts."""

    start: Expression | None
    stop: Expression | None
    step: Expression | None


@dataclass(frozen=True, eq=False)
class Ellipsis(Node):
    """`...` among subscripts: as many whole axes as are left."""


SubscriptItem: TypeAlias = "Expression | Slice | Ellipsis | Pack"


@dataclass(frozen=True, eq=False)
class Subscript(Node):
    """`value[items]`: indexing of a tensor or a list, or a type as an argument (`zeros(f32[N, M])`)."""

    value: Expression
    items: tuple[SubscriptItem, ...]


@dataclass(frozen=True, eq=False)
class Field(Node):
    """`value.name`: a field of a struct."""

    value: Expression
    name: Identifier


UpdateItem: TypeAlias = "Expression | Slice | Ellipsis | BinderItem"


@dataclass(frozen=True, eq=False)
class Update(Node):
    """`update target[items] operator value`. A bare name among the items stays a `Name`: only the checker knows whether
    it is an index or a value; `i < n` and `i in a..b` are binders."""

    target: Identifier
    items: tuple[UpdateItem, ...]
    operator: UpdateOperator
    value: Expression


@dataclass(frozen=True, eq=False)
class State(Node):
    """One state of a loop with its first value: `h = x` or `h: f32[D] = x`."""

    name: Identifier
    type: TypeExpression | None
    value: Expression


@dataclass(frozen=True, eq=False)
class LoopExpr(Node):
    """`loop (states) for counter < upper while condition { body }`, or `for counter in lower..upper`, or `scan`."""

    kind: Literal["loop", "scan"]
    states: tuple[State, ...]
    counter: Identifier
    lower: Expression | None
    upper: Expression
    condition: Expression | None
    body: tuple[Statement, ...]


Expression: TypeAlias = (
    Name
    | Number
    | String
    | Bool
    | NoneLiteral
    | TupleExpr
    | Unary
    | Binary
    | Compare
    | Call
    | Derived
    | Comprehension
    | Subscript
    | Field
    | Update
    | LoopExpr
)


# Statements


@dataclass(frozen=True, eq=False)
class Return(Node):
    """`return a, b`."""

    values: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Yield(Node):
    """`yield a, b`: the next value of each state of a loop."""

    values: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Emit(Node):
    """`emit a, b`: what a scan stacks."""

    values: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Assert(Node):
    """`assert condition`, in a test."""

    condition: Expression


@dataclass(frozen=True, eq=False)
class Target(Node):
    """A name that is assigned, with its type where given. `_` drops a value."""

    name: Identifier
    type: TypeExpression | None = None


@dataclass(frozen=True, eq=False)
class Assign(Node):
    """`a = x`, `a: f32[N] = x`, `a, b = f(x)`."""

    targets: tuple[Target, ...]
    values: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class Define(Node):
    """`y[i, j] = value`: the tensor `y`, by index."""

    name: Identifier
    binders: tuple[BinderItem, ...]
    value: Expression


@dataclass(frozen=True, eq=False)
class If(Node):
    """`if condition { then } else { otherwise }`, decided when compiled. `else if` is an `If` in `otherwise`."""

    condition: Expression
    then: tuple[Statement, ...]
    otherwise: tuple[Statement, ...]


Statement: TypeAlias = Return | Yield | Emit | Assert | Assign | Define | If


# Declarations


@dataclass(frozen=True, eq=False)
class Import(Node):
    """`import "layers.ita"`."""

    path: String


@dataclass(frozen=True, eq=False)
class Const(Node):
    """`const EPS = 1e-5`: a name for a literal, which takes a type where it is used."""

    name: Identifier
    value: Expression


@dataclass(frozen=True, eq=False)
class Mesh(Node):
    """`mesh pod(data=2, model=4)`."""

    name: Identifier
    axes: tuple[Keyword, ...]


@dataclass(frozen=True, eq=False)
class Format(Node):
    """`format w4 = quant(i4, scale=f16, group=128)`."""

    name: Identifier
    value: Call


@dataclass(frozen=True, eq=False)
class StructField(Node):
    """One line of a struct: `weight: f32[N, K]`."""

    name: Identifier
    type: TypeExpression


@dataclass(frozen=True, eq=False)
class Struct(Node):
    """`struct Linear(N, K) { … }`."""

    name: Identifier
    dims: tuple[Identifier, ...]
    fields: tuple[StructField, ...]


@dataclass(frozen=True, eq=False)
class Generic(Node):
    """`T: float` in `fn f[T: float, N: dim]`; `kind` is float, int, number, any, format or dim, not yet verified."""

    name: Identifier
    kind: Identifier


@dataclass(frozen=True, eq=False)
class Parameter(Node):
    """`const w: f32[K, N]`, `eps: f32 = 1e-5`, or without a type a static one: `axis = -1`, `axis`."""

    name: Identifier
    type: TypeExpression | None
    default: Expression | None
    const: bool = False

    @property
    def is_static(self) -> bool:
        return self.type is None


@dataclass(frozen=True, eq=False)
class Function(Node):
    """`fn name[generics](parameters) -> result { body }`."""

    name: Identifier
    generics: tuple[Generic, ...]
    parameters: tuple[Parameter, ...]
    result: TypeExpression | None
    body: tuple[Statement, ...]


@dataclass(frozen=True, eq=False)
class Test(Node):
    """`test "name" { … }`."""

    name: String
    body: tuple[Statement, ...]

    __test__ = False  # not a test case of pytest


Declaration: TypeAlias = Import | Const | Mesh | Format | Struct | Function | Test


@dataclass(frozen=True, eq=False)
class Program(Node):
    """A file: its declarations in order."""

    source: Source
    declarations: tuple[Declaration, ...]


def parts(node: Node) -> Iterator[object]:
    """The fields of a node but for spans and sources, in order: nodes, tuples of nodes, strings, numbers or None."""
    return (part for part in vars(node).values() if not isinstance(part, (Span, Source)))


def children(node: Node) -> Iterator[Node]:
    """The nodes directly under `node`, in source order."""
    for part in parts(node):
        if isinstance(part, Node):
            yield part
        elif isinstance(part, tuple):
            yield from part


def walk(node: Node) -> Iterator[Node]:
    """`node` and every node below it, each before its children, in source order."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        stack.extend(reversed(list(children(current))))


def same(left: Node, right: Node) -> bool:
    """Whether two trees are equal up to spans. Numbers are equal when written alike."""
    stack: list[tuple[object, object]] = [(left, right)]
    while stack:
        a, b = stack.pop()
        if type(a) is not type(b):
            return False
        if isinstance(a, Number) and isinstance(b, Number):
            if a.text != b.text:
                return False
        elif isinstance(a, Node) and isinstance(b, Node):
            stack.extend(zip(parts(a), parts(b), strict=True))
        elif isinstance(a, tuple) and isinstance(b, tuple):
            if len(a) != len(b):
                return False
            stack.extend(zip(a, b, strict=True))
        elif a != b:
            return False
    return True
