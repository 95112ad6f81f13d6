"""Random programs of the kind that schedules are made for: products, reductions of their rows, products again.

A chain begins with a matrix and goes from value to value: products with weights, attention with masks and biases,
normalised rows, windows with strides and gaps, convolutions, loops that change one row or one element at a time. Sizes
are larger than those of `generate`, and few of them are multiples of a tile. Weights are small, so that values stay
near 1; what decides (masks, subscripts) is exact.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from generate import Argument, FuzzProgram

SIZES = (1, 2, 3, 5, 8, 13, 16, 17, 24, 31, 33, 47, 64, 65)
DTYPES = ("f32", "f32", "f32", "f32", "f64", "f16")
ACTIVATIONS = ("tanh({})", "relu({})", "gelu({})", "sigmoid({}) * {}", "{} * 0.5 + 0.25", "exp(-abs({}))", "silu({})")


@dataclass
class Chain:
    """A program under construction; the current value is a matrix of `rows` by `columns`, which are names of sizes.

    matrices: every matrix so far with its dimensions.
    """

    seed: int
    random: random.Random
    numbers: np.random.Generator
    dtype: str
    sizes: dict[str, int] = field(default_factory=dict)
    parameters: list[str] = field(default_factory=list)
    arguments: dict[str, Argument] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    matrices: list[tuple[str, str, str]] = field(default_factory=list)
    counter: int = 0

    @property
    def current(self) -> tuple[str, str, str]:
        return self.matrices[-1]

    def fresh(self, prefix: str = "v") -> str:
        self.counter += 1
        return f"{prefix}{self.counter}"

    def size(self) -> str:
        """A dimension name, perhaps one that is there."""
        if self.sizes and self.random.random() < 0.4:
            return self.random.choice(sorted(self.sizes))
        name = self.fresh("D")
        self.sizes[name] = self.random.choice(SIZES)
        return name

    def number(self, value: int) -> str:
        """A dimension that is a number: then all of them are, since names would stand for any size."""
        self.sizes[str(value)] = value
        return str(value)

    def parameter(self, *dims: str, dtype: str | None = None) -> str:
        """A new parameter: floats of a magnitude that products keep, integers from 0 on, or truth values."""
        name, dtype = self.fresh("p"), dtype or self.dtype
        shape = tuple(self.sizes[d] for d in dims)
        self.parameters.append(f"{name}: {dtype}[{', '.join(dims)}]")
        if dtype == "bool":
            values = self.numbers.random(shape) < 0.7
        elif dtype == "i64":
            values = self.numbers.integers(0, 70, shape)
        else:
            scale = 2 / max(shape[0] if shape else 1, 1) ** 0.5
            values = (scale * self.numbers.standard_normal(shape)).astype(f"f{int(dtype[1:]) // 8}")
        self.arguments[name] = values
        return name

    def let(self, text: str, rows: str, columns: str, binders: str = "") -> None:
        """Define the next value."""
        name = self.fresh()
        self.lines.append(f"    {name}{f'[{binders}]' if binders else ''} = {text}")
        self.matrices.append((name, rows, columns))

    def vector(self, text: str, binders: str = "") -> str:
        name = self.fresh("r")
        self.lines.append(f"    {name}{f'[{binders}]' if binders else ''} = {text}")
        return name

    def scalar(self, value: float) -> str:
        return f"{value:.3g}" if "." in f"{value:.3g}" else f"{value:.1f}"


# ---------------------------------------------------------------------- links; each returns False if it cannot


def product(c: Chain) -> bool:
    """A product with a weight, on either side, in any notation, perhaps with a bias."""
    v, rows, columns = c.current
    other = c.size()
    kind = c.random.choice(("right", "turned", "left", "index", "index turned", "itself"))
    bias = f" + {c.parameter(other)}" if c.random.random() < 0.4 else ""
    if kind == "right":
        c.let(f"{v} @ {c.parameter(columns, other)}{bias}", rows, other)
    elif kind == "turned":
        c.let(f"{v} @ transpose({c.parameter(other, columns)}){bias}", rows, other)
    elif kind == "left":
        c.let(f"{c.parameter(other, rows)} @ {v}", other, columns)
    elif kind == "index":
        c.let(f"sum[k]({v}[i, k] * {c.parameter(columns, other)}[k, j])", rows, other, "i, j")
    elif kind == "index turned":
        c.let(f"sum[k]({v}[k, j] * {c.parameter(rows, other)}[k, i])", other, columns, "i, j")
    else:
        c.let(f"0.1 * ({v} @ transpose({v}))", rows, rows)
    return True


def again(c: Chain) -> bool:
    """A product of two values of the chain."""
    v, rows, columns = c.current
    partners = [m for m in c.matrices[:-1] if m[1] == columns] + [m for m in c.matrices[:-1] if m[2] == columns]
    if not partners:
        return False
    w, first, second = c.random.choice(partners)
    if first == columns:
        c.let(f"0.2 * ({v} @ {w})", rows, second)
    else:
        c.let(f"0.2 * ({v} @ transpose({w}))", rows, first)
    return True


def pointwise(c: Chain) -> bool:
    v, rows, columns = c.current
    same = [m[0] for m in c.matrices[:-1] if m[1:] == (rows, columns)]
    text = c.random.choice(ACTIVATIONS).replace("{}", v)
    if same and c.random.random() < 0.5:
        text = f"{text} {c.random.choice('+-*')} {c.random.choice(same)}"
    c.let(text, rows, columns)
    return True


def normalized(c: Chain) -> bool:
    """Rows, or columns, divided by something that is reduced over them."""
    v, rows, columns = c.current
    kind = c.random.choice(("softmax", "first", "norm", "rms", "sum", "max", "centred", "written"))
    if kind in ("softmax", "first"):
        c.let(f"softmax({v}, axis={-1 if kind == 'softmax' else 0})", rows, columns)
    elif kind == "norm":
        c.let(f"layer_norm({v}, {c.parameter(columns)}, {c.parameter(columns)}, eps=0.1)", rows, columns)
    elif kind == "rms":
        c.let(f"rms_norm({v}, {c.parameter(columns)}, eps=0.1)", rows, columns)
    elif kind == "sum":
        c.let(f"{v} / (sum(abs({v}), axis=1, keepdims=true) + 1.0)", rows, columns)
    elif kind == "max":
        c.let(f"{v} - max({v}, axis=1, keepdims=true)", rows, columns)
    elif kind == "centred":
        c.let(f"{v} - mean({v}, axis=0, keepdims=true)", rows, columns)
    else:
        top = c.vector(f"max[j]({v}[i, j])", "i")
        total = c.vector(f"sum[j](exp({v}[i, j] - {top}[i]))", "i")
        c.let(f"exp({v}[i, j] - {top}[i]) / {total}[i]", rows, columns, "i, j")
    return True


def attention(c: Chain) -> bool:
    """Scores of products, masks and biases, weights of rows, and a product of these."""
    q, rows, columns = c.current
    keys, width = c.size(), c.size()
    k, v = c.parameter(keys, columns), c.parameter(keys, width)
    scores = c.vector(f"{q} @ transpose({k}) * {c.scalar(c.random.choice((0.125, 0.5, 1.0)))}")
    s = f"{scores}[i, j]"
    if c.random.random() < 0.3:
        s = f"2.0 * tanh({s} * 0.5)"
    if c.random.random() < 0.3:
        s = f"{s} + {c.parameter(rows, keys)}[i, j]"
    low = c.random.choice(("-inf", "-inf", "-10000.0"))
    mask = {
        "causal": "j <= i",
        "band": "j <= i and i - j < 7",
        "near": "i - j < 5 and j - i < 5",
        "given": f"{c.parameter(rows, keys, dtype='bool')}[i, j]",
        "lengths": f"j < {c.parameter(rows, dtype='i64')}[i]",
        "prefix": "j < 4 or j <= i",
        "none": "",
    }
    kind = c.random.choice(sorted(mask))
    if mask[kind]:
        s = f"where({mask[kind]}, {s}, {low if kind not in ('given', 'lengths') else '-10000.0'})"
    masked = c.vector(s, f"i < {rows}, j < {keys}")
    if c.random.random() < 0.6:
        c.let(f"softmax({masked}) @ {v}", rows, width)
    elif c.random.random() < 0.5:
        top = c.vector(f"max[j]({masked}[i, j])", "i")
        weights = c.vector(f"exp({masked}[i, j] - {top}[i])", "i, j")
        total = c.vector(f"sum[j]({weights}[i, j])", "i")
        c.let(f"sum[j]({weights}[i, j] * {v}[j, d]) / {total}[i]", rows, width, "i, d")
    else:
        c.let(f"{v}[i % {keys}, j] * 0.1 + logsumexp({masked}, axis=1)[i]", rows, width, f"i < {rows}, j < {width}")
    return True


def built_in_attention(c: Chain) -> bool:
    q, rows, columns = c.current
    keys, width = c.size(), c.size()
    causal = c.random.choice(("", ", causal=true"))
    c.let(f"attention({q}, {c.parameter(keys, columns)}, {c.parameter(keys, width)}{causal})", rows, width)
    return True


def windows(c: Chain) -> bool:
    """Sums, products and maxima over windows with strides and gaps, and padding by conditions."""
    v, rows, columns = c.current
    n, m = c.sizes[rows], c.sizes[columns]
    reach, step, gap = c.random.choice((2, 3, 5)), c.random.choice((1, 1, 2, 3)), c.random.choice((1, 1, 2))
    left = gap * (reach // 2)
    kind = c.random.choice(("weights", "mean", "max", "rows", "both"))
    at = f"{step} * j + {gap} * r - {left}"
    inside = f"{at} >= 0 and {at} < {columns}"
    if kind == "both":
        weight = c.parameter(c.number(3), c.number(3))
        text = f"sum[r < 3, s < 3](where(i + r >= 1 and i + r <= {rows} and j + s >= 1 and j + s <= {columns}, "
        c.let(f"{text}{v}[i + r - 1, j + s - 1], 0.0) * {weight}[r, s])", rows, columns, f"i < {rows}, j < {columns}")
        return True
    if kind == "rows":
        if n < reach:
            return False
        new, weight = c.number((n - reach) // step + 1), c.parameter(c.number(reach))
        text = f"sum[r < {reach}]({v}[{step} * i + r, j] * {weight}[r])"
        c.let(text, new, columns, f"i < ({rows} - {reach}) // {step} + 1, j < {columns}")
    elif kind == "max":
        new = c.number(-(-m // step))
        text = f"max[r < {reach}](where({inside}, {v}[i, {at}], -5.0))"
        c.let(text, rows, new, f"i < {rows}, j < ({columns} + {step - 1}) // {step}")
    else:
        new = c.number(-(-m // step))
        factor = f" * {c.parameter(c.number(reach))}[r]" if kind == "weights" else " * 0.25"
        text = f"sum[r < {reach}](where({inside}, {v}[i, {at}], 0.0){factor})"
        c.let(text, rows, new, f"i < {rows}, j < ({columns} + {step - 1}) // {step}")
    return True


def convolution(c: Chain) -> bool:
    """A convolution of an image made of the matrix, or of the matrix with its columns as positions."""
    v, rows, columns = c.current
    n, m = c.sizes[rows], c.sizes[columns]
    out, reach, stride = c.random.choice((1, 2, 5, 8, 17)), c.random.choice((1, 3)), c.random.choice((1, 1, 2))
    pad = c.random.choice((0, reach // 2))
    if min(n, m) + 2 * pad < reach:
        return False
    bias = c.random.choice(("", " + 0.5", "tanh"))
    tall, wide, depth, side = (
        c.number(k) for k in (*((k + 2 * pad - reach) // stride + 1 for k in (n, m)), out, reach)
    )
    if c.random.random() < 0.5:
        image = f"conv1d(expand_dims({v}, 0), {c.parameter(depth, rows, side)}, stride={stride}, padding={pad})"
        text, kept = f"reshape({image}, ({depth}, {wide}))", (depth, wide)
    else:
        image, weight = f"expand_dims(expand_dims({v}, 0), 0)", c.parameter(depth, c.number(1), side, side)
        axis, first = c.random.choice(((0, tall), (1, depth)))
        image = f"conv2d({image}, {weight}, stride={stride}, padding={pad})"
        text, kept = f"sum({image}[0], axis={axis})", (first, wide)
    c.let(f"tanh({text})" if bias == "tanh" else f"{text}{bias}", *kept)
    return True


def sequential(c: Chain) -> bool:
    """A loop whose steps change one row, one element or everything."""
    v, rows, columns = c.current
    t, state, result = c.fresh("t"), c.fresh("s"), c.fresh()
    kind = c.random.choice(("rows", "solve", "element", "relax", "prefix", "recurrent", "network"))
    if kind == "network":
        return network(c)
    steps = rows
    if kind == "rows":
        step = f"update {state}[{t}] = tanh({v}[{t}] + 0.5 * {state}[0])"
    elif kind == "solve":
        lower = c.parameter(rows, rows)
        step = f"update {state}[{t}, j < {columns}] = {v}[{t}, j] - 0.2 * sum[k < {t}]({lower}[{t}, k] * {state}[k, j])"
    elif kind == "element":
        step = f"update {state}[{t}, {t} % {columns}] += 0.5 * {state}[0, {columns} - 1]"
    elif kind == "relax":
        square = c.parameter(rows, rows)
        step = f"minimum({state}, {state} * 0.5 + {square}[{t}, 0])"
    elif kind == "prefix":
        step = f"update {state}[i in 1..{rows}, j] = 0.5 * {state}[i - 1, j] + {v}[i, j]"
        steps = c.random.choice(("1", "2", "3"))
    else:
        step = f"tanh(0.2 * ({state} @ {c.parameter(columns, columns)}) + {v} * 0.5)"
        steps = c.random.choice(("0", "1", "4"))
    next_ = c.fresh("n")
    c.lines.append(f"    {result} = loop ({state} = {v}) for {t} < {steps} {{")
    c.lines += [f"        {next_} = {step}", f"        yield {next_}", "    }"]
    c.matrices.append((result, rows, columns))
    return True


def network(c: Chain) -> bool:
    """A recurrent network, of which a matrix is the sequence, for one sequence or for several."""
    v, rows, columns = c.current
    w, u = c.parameter(columns, columns), c.parameter(columns, columns)
    t, state, given, next_, states, result = (c.fresh(name) for name in ("t", "s", "g", "n", "e", "v"))
    batch = c.random.choice(("", "2, ", "19, "))
    start = f"zeros({c.dtype}[{batch}{columns}])"
    c.lines += [
        f"    _, {states} = scan ({state} = {start}) for {t} < {rows} {{",
        f"        {given} = {v}[{t}] @ {w} * 0.2",
        f"        {next_} = tanh({given} + 0.2 * ({state} @ {u})) * 0.5 + 0.5 * {state}",
        f"        yield {next_}",
        f"        emit {next_}",
        "    }",
        f"    {result} = {f'sum({states}, axis=1) * 0.1' if batch else states}",
    ]
    c.matrices.append((result, rows, columns))
    return True


def vectors(c: Chain) -> bool:
    """Products with vectors, there and back, and an outer product of what they give."""
    v, rows, columns = c.current
    x = c.parameter(columns)
    y = c.vector(f"sum[j]({v}[i, j] * {x}[j])", "i")
    z = c.vector(f"sum[i]({v}[i, j] * {y}[i])", "j")
    c.let(f"{v}[i, j] * 0.5 + 0.01 * {y}[i] * {z}[j]", rows, columns, "i, j")
    return True


def triangles(c: Chain) -> bool:
    """Sums of products over a part of an index that depends on another one."""
    v, rows, columns = c.current
    square = c.parameter(rows, rows)
    bounds = c.random.choice(
        ("k < i + 1", f"k in i..{rows}", "k < i", f"k in maximum(i - 3, 0)..minimum(i + 3, {rows})")
    )
    c.let(f"0.2 * sum[{bounds}]({square}[i, k] * {v}[k, j])", rows, columns, f"i < {rows}, j < {columns}")
    return True


LINKS: tuple[Callable[[Chain], bool], ...] = (
    *(product, product, product, again, again, pointwise, pointwise, normalized, normalized, attention, attention),
    *(built_in_attention, windows, windows, convolution, sequential, sequential, vectors, triangles),
)


def generate_chain(seed: int) -> FuzzProgram:
    """The chain of a seed, of one to six links."""
    rng = random.Random(f"chain {seed}")
    c = Chain(seed, rng, np.random.default_rng(seed), rng.choice(DTYPES))
    rows, columns = c.size(), c.size()
    first = c.parameter(rows, columns)
    c.arguments[first] = c.numbers.standard_normal((c.sizes[rows], c.sizes[columns])).astype(c.arguments[first].dtype)
    c.matrices.append((first, rows, columns))
    for _ in range(rng.choice((1, 2, 3, 3, 4, 5, 6))):
        while not rng.choice(LINKS)(c):
            pass
    results = [m[0] for m in c.matrices[1:]]
    kept = [name for name in results[:-1] if rng.random() < 0.2] + results[-1:]
    text = f"fn main({', '.join(c.parameters)}) {{\n{chr(10).join(c.lines)}\n    return {', '.join(kept)}\n}}\n"
    if any(name.isdigit() for name in c.sizes):
        text = re.sub(r"\bD\d+\b", lambda found: str(c.sizes[found[0]]), text)
    return FuzzProgram(seed, text, {n: k for n, k in c.sizes.items() if re.search(rf"\b{n}\b", text)}, c.arguments)
