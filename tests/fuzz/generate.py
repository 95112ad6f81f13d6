"""Random well-typed programs of the language.

`generate(seed)` gives the text of a program, the size of each dimension name and the arguments. A value is *exact* when
every way to compute it gives the same bits (moves, integers, minima, comparisons of exact values); only exact values
are compared, rounded, sorted or turned into integers, so that a last-digit difference between two correct
implementations never becomes a large one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import rarer

SIZES = (0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33)
DIMS = ("A", "B", "C", "D")

Argument: TypeAlias = "npt.NDArray[np.generic] | dict[str, npt.NDArray[np.generic]] | list[Argument]"
"""A tensor, a struct of them, or a list of structs."""


@dataclass(frozen=True)
class Variable:
    """A tensor in scope: its dims are dimension names or the number 1. `bounded`: magnitudes stay below about 10."""

    name: str
    dtype: str
    dims: tuple[str, ...]
    exact: bool = True
    bounded: bool = True

    @property
    def type(self) -> str:
        return f"{self.dtype}[{', '.join(self.dims)}]" if self.dims else self.dtype


@dataclass(frozen=True)
class FuzzProgram:
    seed: int
    text: str
    sizes: dict[str, int]
    arguments: dict[str, Argument]


@dataclass
class Generator:
    """Builds one function body, statement by statement.

    lists: the parameters that are lists of square structs: name, dimension, length.
    """

    random: random.Random
    sizes: dict[str, int]
    lines: list[str] = field(default_factory=list)
    scope: list[Variable] = field(default_factory=list)
    counter: int = 0
    indent: str = "    "
    functions: list[str] = field(default_factory=list)
    lists: list[tuple[str, str, int]] = field(default_factory=list)

    # ---------------------------------------------------------------- choosing

    def fresh(self, prefix: str = "v") -> str:
        self.counter += 1
        return f"{prefix}{self.counter}"

    def pick(self, **wanted: object) -> Variable | None:
        """A variable in scope with the wanted attributes; `rank` and `floating` are understood too."""
        found = []
        for v in self.scope:
            rank, floating = wanted.get("rank"), wanted.get("floating")
            rest = {k: w for k, w in wanted.items() if k not in ("rank", "floating", "min_rank")}
            if rank is not None and len(v.dims) != rank:
                continue
            if floating is not None and v.dtype.startswith(("f", "bf")) != floating:
                continue
            if len(v.dims) < int(str(wanted.get("min_rank", 0))):
                continue
            if all(getattr(v, k) == w for k, w in rest.items()):
                found.append(v)
        if not found:
            return None
        # Recent values are likelier, so that chains grow.
        return found[-1 - min(int(self.random.expovariate(0.5)), len(found) - 1)]

    def literal(self, dtype: str) -> str:
        if dtype.startswith(("f", "bf")):
            return self.random.choice(("0.5", "1.0", "2.0", "-1.5", "0.25"))
        return self.random.choice(("1", "2", "3", "-1") if dtype.startswith("i") else ("1", "2", "3"))

    def add(self, text: str, dtype: str, dims: tuple[str, ...], exact: bool, bounded: bool = False) -> Variable:
        variable = Variable(self.fresh(), dtype, dims, exact, bounded)
        self.lines.append(f"{self.indent}{variable.name} = {text}")
        self.scope.append(variable)
        return variable

    def define(
        self, binders: str, text: str, dtype: str, dims: tuple[str, ...], exact: bool, bounded: bool = False
    ) -> Variable:
        variable = Variable(self.fresh(), dtype, dims, exact, bounded)
        self.lines.append(f"{self.indent}{variable.name}[{binders}] = {text}")
        self.scope.append(variable)
        return variable

    # ---------------------------------------------------------------- statements; each returns False if it cannot

    def unary(self) -> bool:
        v = self.pick(floating=True)
        if v is None:
            return False
        smooth = {"tanh": True, "sigmoid": True, "sin": True, "cos": True, "abs": v.bounded, "-": v.bounded}
        if v.bounded:
            smooth |= {"exp": False, "erf": True, "relu": True, "silu": True, "gelu": True, "softplus": True}
        name = self.random.choice(sorted(smooth))
        exact = v.exact and name in ("abs", "-", "relu")
        text = f"-{v.name}" if name == "-" else f"{name}({v.name})"
        self.add(text, v.dtype, v.dims, exact, smooth[name])
        return True

    def safe_positive(self) -> bool:
        v = self.pick(floating=True, bounded=True)
        if v is None:
            return False
        name = self.random.choice(("sqrt", "log", "rsqrt", "log1p"))
        self.add(f"{name}({v.name} * {v.name} + 1.0)", v.dtype, v.dims, False, True)
        return True

    def binary(self) -> bool:
        a = self.pick()
        if a is None or a.dtype == "bool":
            return False
        same = [v for v in self.scope if v.dtype == a.dtype and self._broadcasts(a.dims, v.dims)]
        b = self.random.choice(same)
        operators = ["+", "-", "*", "minimum", "maximum"]
        if a.dtype in ("f32", "f64"):
            operators.append("/")
        elif not a.dtype.startswith(("f", "bf")):
            operators += ["//", "%"]
        operator = self.random.choice(operators)
        dims = self._broadcast(a.dims, b.dims)
        integer = not a.dtype.startswith(("f", "bf"))
        exact = integer or (a.exact and b.exact and operator in ("minimum", "maximum"))
        bounded = a.bounded and b.bounded and operator in ("minimum", "maximum")
        if operator in ("minimum", "maximum"):
            text = f"{operator}({a.name}, {b.name})"
        elif operator == "/":
            text = f"{a.name} / (abs({b.name}) + 1.0)"
        else:
            text = f"{a.name} {operator} {b.name}"
        self.add(text, a.dtype, dims, exact, bounded)
        return True

    def scale(self) -> bool:
        v = self.pick(floating=True)
        if v is None:
            return False
        self.add(f"{self.literal(v.dtype)} * {v.name} + {self.literal(v.dtype)}", v.dtype, v.dims, False, False)
        return True

    def select(self) -> bool:
        a = self.pick()
        c = self.pick(exact=True)
        if a is None or c is None or c.dtype == "bool" or not self._broadcasts(a.dims, c.dims):
            return False
        operator = self.random.choice(("<", "<=", ">", ">=", "==", "!="))
        literal = self.literal(c.dtype)
        if a.dtype == "bool":
            self.add(f"{c.name} {operator} {literal}", "bool", c.dims, True)
        else:
            other = self.literal(a.dtype)
            text = f"where({c.name} {operator} {literal}, {a.name}, {other})"
            self.add(text, a.dtype, self._broadcast(a.dims, c.dims), a.exact, a.bounded)
        return True

    def reduce(self) -> bool:
        v = self.pick(min_rank=1)
        if v is None or v.dtype == "bool":
            return False
        axis = self.random.randrange(len(v.dims))
        keep = self.random.random() < 0.4
        integer = not v.dtype.startswith(("f", "bf"))
        names = ["sum", "max", "min"] + ([] if integer else ["mean", "logsumexp"] if v.bounded else ["mean"])
        name = self.random.choice(names)
        if name in ("max", "min") and not v.exact:
            name = "sum"
        if name != "sum" and self.sizes.get(v.dims[axis], 1) == 0:
            name = "sum"
        dims = tuple("1" if d == axis else n for d, n in enumerate(v.dims) if keep or d != axis)
        dtype = {"i8": "i32", "i16": "i32", "u8": "u32"}.get(v.dtype, v.dtype) if name == "sum" else v.dtype
        exact = integer or (v.exact and name in ("max", "min"))
        arguments = f"{v.name}, axis={axis - len(v.dims) if self.random.random() < 0.5 else axis}"
        bounded = v.bounded and name in ("max", "min", "mean")
        self.add(f"{name}({arguments}{', keepdims=true' if keep else ''})", dtype, dims, exact, bounded)
        return True

    def softmax(self) -> bool:
        v = self.pick(floating=True, bounded=True, min_rank=1)
        if v is None:
            return False
        axis = self.random.choice((-1, -1, 0))
        if self.sizes.get(v.dims[axis], 1) == 0:
            return False
        self.add(f"softmax({v.name}, axis={axis})", v.dtype, v.dims, False, True)
        return True

    def normalize(self) -> bool:
        v = self.pick(dtype="f32", bounded=True, min_rank=1)
        if v is None or self.sizes.get(v.dims[-1], 1) == 0 or v.dims[-1] == "1":
            return False
        weight = f"ones(f32[{v.dims[-1]}])"
        text = self.random.choice(
            (f"layer_norm({v.name}, {weight}, 0.5 * {weight}, eps=0.1)", f"rms_norm({v.name}, {weight}, eps=0.1)")
        )
        self.add(text, v.dtype, v.dims, False, True)
        return True

    def matmul(self) -> bool:
        a = self.pick(rank=2)
        if a is None or a.dtype == "bool":
            return False
        partners = [v for v in self.scope if v.dtype == a.dtype and len(v.dims) == 2 and v.dims[0] == a.dims[1]]
        turned = [v for v in self.scope if v.dtype == a.dtype and len(v.dims) == 2 and v.dims[1] == a.dims[1]]
        dtype = {"i8": "i32", "i16": "i32", "u8": "u32"}.get(a.dtype, a.dtype)
        integer = not a.dtype.startswith(("f", "bf"))
        if partners and self.random.random() < 0.6:
            b = self.random.choice(partners)
            self.add(f"{a.name} @ {b.name}", dtype, (a.dims[0], b.dims[1]), integer)
        elif turned:
            b = self.random.choice(turned)
            self.add(f"{a.name} @ transpose({b.name})", dtype, (a.dims[0], b.dims[0]), integer)
        else:
            return False
        return True

    def move(self) -> bool:
        v = self.pick(min_rank=1)
        if v is None:
            return False
        kind = self.random.choice(("transpose", "flip", "slice", "reshape", "concat", "pad", "expand", "tile"))
        n = len(v.dims)
        flags = (v.exact, v.bounded)
        if kind == "transpose" and n >= 2:
            axes = list(range(n))
            self.random.shuffle(axes)
            self.add(
                f"transpose({v.name}, axes=({', '.join(map(str, axes))}))",
                v.dtype,
                tuple(v.dims[a] for a in axes),
                *flags,
            )
        elif kind == "flip":
            axis = self.random.randrange(n)
            self.add(f"flip({v.name}, axis={axis})", v.dtype, v.dims, *flags)
        elif kind == "slice" and self.sizes.get(v.dims[0], 1) >= 1:
            self.add(f"{v.name}[{self.random.choice(('0', '-1'))}]", v.dtype, v.dims[1:], *flags)
        elif kind == "reshape":
            flat = self.add(f"reshape({v.name}, (-1,))" if self._full(v) else v.name, v.dtype, v.dims, *flags)
            self.scope.pop()
            self.lines.append(f"{self.indent}{self.fresh('w')} = sum({flat.name})" if v.dtype != "bool" else "")
        elif kind == "concat" and v.dims[0] != "1":
            both = self.add(f"concat(({v.name}, {v.name}), axis=0)", v.dtype, v.dims, *flags)
            self.scope.pop()
            self.add(f"{both.name}[{v.dims[0]}:]", v.dtype, v.dims, *flags)
            self.scope.pop()
            name = self.fresh()
            self.lines.append(f"{self.indent}{name} = {both.name}[::2]")
        elif kind == "pad" and v.dtype != "bool":
            pads = ", ".join(f"({self.random.randrange(3)}, {self.random.randrange(3)})" for _ in v.dims)
            padded = self.add(f"pad({v.name}, ({pads}{',' if n == 1 else ''}))", v.dtype, v.dims, *flags)
            self.scope.pop()
            self.add(f"sum({padded.name})", *self._summed(v))
        elif kind == "expand":
            axis = self.random.randrange(n + 1)
            self.add(f"expand_dims({v.name}, axis={axis})", v.dtype, (*v.dims[:axis], "1", *v.dims[axis:]), *flags)
        else:
            return False
        return True

    def _full(self, v: Variable) -> bool:
        return all(self.sizes.get(d, 1) for d in v.dims)

    def _summed(self, v: Variable) -> tuple[str, tuple[str, ...], bool]:
        dtype = {"i8": "i32", "i16": "i32", "u8": "u32"}.get(v.dtype, v.dtype)
        return dtype, (), not v.dtype.startswith(("f", "bf"))

    def index_notation(self) -> bool:
        """A definition by index notation: affine, reversed, quotient, guarded or gathering subscripts."""
        v = self.pick(min_rank=1)
        if v is None or "1" in v.dims or len(set(v.dims)) != len(v.dims):
            return False
        letters = [f"i{d}" for d in range(len(v.dims))]
        binders = ", ".join(f"{i} < {d}" for i, d in zip(letters, v.dims))
        axis = self.random.randrange(len(v.dims))
        extent = v.dims[axis]
        zero = "false" if v.dtype == "bool" else "0" if not v.dtype.startswith(("f", "bf")) else "0.0"
        kind = self.random.choice(("reverse", "shift", "half", "guard", "self"))
        subscripts = list(letters)
        if kind == "reverse":
            subscripts[axis] = f"{extent} - 1 - {letters[axis]}"
        elif kind == "half":
            subscripts[axis] = f"{letters[axis]} // 2"
        elif kind == "shift":
            step = self.random.choice((1, 2))
            subscripts[axis] = f"{letters[axis]} - {step}"
        load = f"{v.name}[{', '.join(subscripts)}]"
        if kind == "shift":
            load = f"where({letters[axis]} >= {step}, {load}, {zero})"
        elif kind == "guard":
            load = f"where({letters[0]} < {letters[-1]} + 1, {load}, {zero})"
        if v.dtype != "bool" and self.random.random() < 0.5:
            load = f"{load} * {v.name}[{', '.join(letters)}]"
            self.define(binders, load, v.dtype, v.dims, not v.dtype.startswith(("f", "bf")))
        else:
            self.define(binders, load, v.dtype, v.dims, v.exact, v.bounded)
        return True

    def index_reduction(self) -> bool:
        """A sum or maximum over an index, rectangular or triangular."""
        v = self.pick(rank=2, dtype="f32") or self.pick(rank=2, dtype="i64")
        if v is None or "1" in v.dims:
            return False
        rows, columns = v.dims
        kind = self.random.choice(("rows", "triangle", "window", "columns"))
        exact = v.dtype == "i64"
        if kind == "rows":
            self.define("i", f"sum[k]({v.name}[i, k] * {v.name}[i, k])", v.dtype, (rows,), exact)
        elif kind == "columns":
            self.define("j", f"sum[k]({v.name}[k, j])", v.dtype, (columns,), exact)
        elif kind == "triangle":
            text = f"sum[k < minimum(i + 1, {columns})]({v.name}[i, k])"
            self.define(f"i < {rows}", text, v.dtype, (rows,), exact)
        else:
            zero = "0.0" if v.dtype == "f32" else "0"
            text = f"sum[r < 3](where(j + r >= 1 and j + r <= {columns}, {v.name}[i, j + r - 1], {zero}))"
            self.define(f"i < {rows}, j < {columns}", text, v.dtype, v.dims, exact)
        return True

    def gather(self) -> bool:
        v, ids = self.pick(min_rank=1), self.pick(rank=1, dtype="i64")
        if v is None or ids is None or not self.sizes.get(v.dims[0], 1) or ids.dims[0] == "1" or "1" in v.dims:
            return False
        letters = [f"j{d}" for d in range(1, len(v.dims))]
        if ids.dims[0] in v.dims[1:]:
            return False
        safe = f"abs({ids.name}[t]) % {v.dims[0]}"
        text = f"{v.name}[{', '.join([safe, *letters])}]"
        self.define(", ".join(["t", *letters]), text, v.dtype, (ids.dims[0], *v.dims[1:]), v.exact, v.bounded)
        return True

    def update(self) -> bool:
        v = self.pick(min_rank=1)
        if v is None or v.dtype == "bool" or "1" in v.dims:
            return False
        letters = [f"i{d}" for d in range(len(v.dims))]
        integer = not v.dtype.startswith(("f", "bf"))
        kind = self.random.choice(("inner", "row", "scatter", "accumulate"))
        old = f"{v.name}[{', '.join(letters)}]"
        result = self.fresh()
        exact = integer
        if kind == "inner":
            if self.sizes[v.dims[0]] < 2:
                return False
            binders = ", ".join([f"{letters[0]} in 1..{v.dims[0]}", *letters[1:]])
            left = f"{v.name}[{', '.join([f'{letters[0]} - 1', *letters[1:]])}]"
            text = f"update {v.name}[{binders}] = {old} + {left}"
        elif kind == "row":
            if not self.sizes[v.dims[0]]:
                return False
            text = f"update {v.name}[{', '.join(['0', *letters[1:]])}] = {self.literal(v.dtype)}"
            exact = v.exact
        elif kind == "accumulate":
            text = f"update {v.name}[{', '.join(letters)}] += {old}"
        else:
            ids = self.pick(rank=1, dtype="i64")
            if ids is None or len(v.dims) != 1 or not self.sizes[v.dims[0]] or ids.dims == ("1",):
                return False
            operator = self.random.choice(("+=", "max=", "min="))
            text = f"update {v.name}[abs({ids.name}[t]) % {v.dims[0]}] {operator} {self.literal(v.dtype)}"
            exact = integer or (v.exact and operator != "+=")
        self.lines.append(f"{self.indent}{result} = {text}")
        self.scope.append(replace(v, name=result, exact=exact, bounded=False))
        return True

    def loop(self) -> bool:
        """A loop over a bounded float state, perhaps with another one inside it, perhaps a scan."""
        v = self.pick(floating=True, bounded=True, min_rank=1)
        if v is None or len(self.indent) > 8:
            return False
        t, state, result = self.fresh("t"), self.fresh("s"), self.fresh()
        steps = self.random.choice((0, 1, 2, 3, 5))
        scan = self.random.random() < 0.4
        outer = (list(self.scope), self.indent, list(self.lines))
        self.lines = []
        self.indent += "    "
        inner = replace(v, name=state, exact=False)
        self.scope = [*self.scope, inner]
        for _ in range(self.random.randrange(3)):
            self.statement(("unary", "binary", "scale", "index_notation", "reduce", "loop"))
        body = self.lines
        candidates = [x for x in self.scope if x.dtype == v.dtype and x.dims == v.dims and x is not inner]
        other = self.random.choice(candidates).name if candidates else state
        self.scope, self.indent, self.lines = outer
        emits = f"{self.indent}    emit {state}" if scan else None
        step = f"{self.indent}    yield tanh(0.5 * {state} + 0.25 * {other} + {v.dtype}({t}) * 0.1)"
        condition = f" while any({state} < 100.0)" if not scan and self.random.random() < 0.3 else ""
        target = f"{result}, {self.fresh('e')}" if scan else result
        head = (
            f"{self.indent}{target} = {'scan' if scan else 'loop'} ({state} = {v.name}) for {t} < {steps}{condition} {{"
        )
        self.lines += [head, *body, step, *([emits] if emits else []), f"{self.indent}}}"]
        self.scope.append(Variable(result, v.dtype, v.dims, False, True))
        return True

    def order(self) -> bool:
        v = self.pick(exact=True, min_rank=1)
        if v is None or v.dtype == "bool" or "1" in v.dims:
            return False
        kind = self.random.choice(("sort", "argsort", "cumsum", "argmax", "argmin"))
        axis = self.random.randrange(len(v.dims))
        integer = not v.dtype.startswith(("f", "bf"))
        if kind == "sort":
            self.add(f"sort({v.name}, axis={axis})", v.dtype, v.dims, True, v.bounded)
        elif kind == "argsort":
            self.add(f"argsort({v.name}, axis={axis})", "i64", v.dims, True)
        elif kind == "cumsum":
            if v.dtype in ("i8", "i16", "u8"):
                return False
            self.add(f"cumsum({v.name}, axis={axis})", v.dtype, v.dims, integer)
        else:
            if not self.sizes.get(v.dims[axis], 1):
                return False
            dims = tuple(n for d, n in enumerate(v.dims) if d != axis)
            self.add(f"{kind}({v.name}, axis={axis})", "i64", dims, True)
        return True

    def cast(self) -> bool:
        v = self.pick()
        if v is None:
            return False
        dtype = self.random.choice(("f32", "f64", "i64", "i32", "i8", "u8", "f16", "bf16"))
        if dtype == v.dtype or (not v.exact and not dtype.startswith(("f", "bf"))):
            return False
        exact = v.exact
        self.add(f"{dtype}({v.name})", dtype, v.dims, exact, v.bounded and dtype in ("f32", "f64", "f16", "bf16"))
        return True

    def call(self) -> bool:
        """A helper function, generic in rank and dtype."""
        v = self.pick(floating=True)
        if v is None:
            return False
        self.add(f"{rarer.declare(self, 'helper')}({v.name})", v.dtype, v.dims, False, False)
        return True

    STATEMENTS = (
        *("unary", "unary", "binary", "binary", "binary", "scale", "safe_positive", "select", "reduce", "reduce"),
        *("softmax", "normalize", "matmul", "matmul", "move", "move", "index_notation", "index_notation"),
        *("index_reduction", "gather", "update", "update", "loop", "order", "cast", "call"),
    )

    def statement(self, kinds: tuple[str, ...] = STATEMENTS) -> None:
        for _ in range(8):
            rare = self.random.random() < 0.35
            done = self.random.choice(rarer.STATEMENTS)(self) if rare else getattr(self, self.random.choice(kinds))()
            if done:
                self.lines = [line for line in self.lines if line]
                return

    # ---------------------------------------------------------------- broadcasting by name

    def _broadcasts(self, a: tuple[str, ...], b: tuple[str, ...]) -> bool:
        return all(x == y or "1" in (x, y) for x, y in zip(reversed(a), reversed(b)))

    def _broadcast(self, a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
        long, short = (a, b) if len(a) >= len(b) else (b, a)
        short = ("1",) * (len(long) - len(short)) + short
        return tuple(y if x == "1" else x for x, y in zip(long, short))


def generate(seed: int, statements: int | None = None) -> FuzzProgram:
    """The program of a seed; `statements` limits how many statements it has."""
    rng = random.Random(seed)
    sizes = {d: rng.choice(SIZES) for d in DIMS}
    generator = Generator(rng, sizes)
    numbers = np.random.default_rng(seed)
    arguments: dict[str, Argument] = {}
    parameters = []
    for _ in range(rng.randint(1, 4)):
        dims = tuple(rng.sample(DIMS, rng.choice((0, 1, 1, 2, 2, 2, 3))))
        dtype = rng.choice(("f32", "f32", "f32", "f32", "f64", "i64", "i32", "i8", "u8", "f16"))
        variable = Variable(generator.fresh("x"), dtype, dims)
        generator.scope.append(variable)
        shape = tuple(sizes[d] for d in dims)
        parameters.append(f"{variable.name}: {variable.type}")
        numpy_dtype = np.dtype({"f": "f", "i": "i", "u": "u"}[dtype[0]] + str(int(dtype[1:]) // 8))
        if dtype[0] == "f":
            arguments[variable.name] = numbers.uniform(-2, 2, shape).astype(numpy_dtype)
        else:
            low = 0 if dtype[0] == "u" else -9
            arguments[variable.name] = numbers.integers(low, 10, shape).astype(numpy_dtype)
    _more_parameters(seed, generator, parameters, arguments)
    first = len(generator.scope)
    unbound = [d for d in DIMS if not any(d in v.dims for v in generator.scope)]
    for _ in range(statements or rng.randint(1, 9)):
        generator.statement()
    results = generator.scope[first:][-4:] or generator.scope[-1:]
    result_types = ", ".join(v.type for v in results)
    result_types = f"({result_types})" if len(results) > 1 else result_types
    body = "\n".join([*generator.lines, f"    return {', '.join(v.name for v in results)}"])
    head = f"fn main({', '.join(parameters)}) -> {result_types} {{"
    text = "\n\n".join([*generator.functions, f"{head}\n{body}\n}}"]) + "\n"
    return FuzzProgram(seed, text, {d: n for d, n in sizes.items() if d not in unbound}, arguments)


def _more_parameters(seed: int, generator: Generator, parameters: list[str], arguments: dict[str, Argument]) -> None:
    """Perhaps a tensor with NaN, infinities and zeros of both signs or of a rarer dtype, a struct, a list of structs.

    By random numbers of their own: the other parameters of a seed stay what they are.
    """
    rng, numbers, sizes = random.Random(seed + 0.5), np.random.default_rng(seed + 1), generator.sizes
    if rng.random() < 0.3:
        dims = tuple(rng.sample(DIMS, rng.choice((1, 2, 2))))
        variable = Variable(generator.fresh("z"), rng.choice(("f32", "f32", "f16", "bool", "i16", "u32", "u64")), dims)
        shape = tuple(sizes[d] for d in dims)
        if variable.dtype.startswith("f"):
            special = rng.choice(([np.nan], [np.inf, -np.inf], [0.0, -0.0]))
            values = np.where(numbers.random(shape) < 0.2, numbers.choice(special, shape), numbers.normal(size=shape))
        else:
            values = numbers.integers(0, 2 if variable.dtype == "bool" else 9, shape)
        numpy_dtype = {"f32": "f4", "f16": "f2", "bool": "?", "i16": "i2", "u32": "u4", "u64": "u8"}[variable.dtype]
        arguments[variable.name] = values.astype(numpy_dtype)
        parameters.append(f"{variable.name}: {variable.type}")
        generator.scope.append(variable)
    if rng.random() < 0.3:
        rows, columns = rng.sample(DIMS, 2)
        name, listed = generator.fresh("p"), rng.random() < 0.5
        columns = rows if listed else columns
        generator.functions.append("struct Linear(N, K) {\n    weight: f32[N, K]\n    bias: f32[N]\n}")

        def linear() -> dict[str, npt.NDArray[np.generic]]:
            shape = (sizes[rows], sizes[columns])
            return {"weight": _uniform(numbers, shape), "bias": _uniform(numbers, shape[:1])}

        length = rng.randint(1, 3)
        arguments[name] = [linear() for _ in range(length)] if listed else linear()
        parameters.append(f"{name}: Linear({rows}, {columns}){f'[{length}]' if listed else ''}")
        if listed:
            generator.lists.append((name, rows, length))
        place = f"[{rng.randrange(length)}]" if listed else ""
        generator.add(f"{name}{place}.weight", "f32", (rows, columns), True, True)
        generator.add(f"{name}{place}.bias", "f32", (rows,), True, True)


def _uniform(numbers: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
    return numbers.uniform(-1, 1, shape).astype(np.float32)
