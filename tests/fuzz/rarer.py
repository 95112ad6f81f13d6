"""Statements of the rarer kinds for `generate`: each function adds one to a generator, or returns False if it cannot.

Structs and lists of them, windows, attention, packs, static arguments, bits, narrow types, selections by data, ranges
that depend on data, loops whose count or condition depends on data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from generate import Generator, Variable

FUNCTIONS = {
    "gained": (
        "fn gained[T: float](x: T[..S, N], gain: T[N]) -> T[..S, N] {\n"
        "    y[..i, j] = x[..i, j] * gain[j] + x[..i, j]\n    return y\n}"
    ),
    "turned": (
        "fn turned[T: any](x: T[..S], axis, twice = false) {\n    if twice {\n        y = flip(flip(x, axis), axis)\n"
        "    } else if rank(x) == 1 {\n        y = flip(x, 0)\n    } else {\n        y = flip(x, axis)\n    }\n"
        "    return y\n}"
    ),
    "helper": "fn helper[T: float](x: T[..S]) -> T[..S] {\n    return tanh(x) + 0.5 * x\n}",
}
"""Declarations that statements name."""


def is_float(v: Variable) -> bool:
    return v.dtype.startswith(("f", "bf"))


def usable(g: Generator, v: Variable | None) -> bool:
    """Is it a tensor whose dims are different names, none of size 0?"""
    return v is not None and "1" not in v.dims and len(set(v.dims)) == len(v.dims) and all(g.sizes[d] for d in v.dims)


def declare(g: Generator, name: str) -> str:
    if FUNCTIONS[name] not in g.functions:
        g.functions.append(FUNCTIONS[name])
    return name


def letters(v: Variable) -> list[str]:
    return [f"i{d}" for d in range(len(v.dims))]


def subscript(g: Generator, extent: str, letter: str = "t") -> tuple[str, str] | None:
    """A subscript below an extent that depends on data, and the dim that `letter` runs over."""
    ids = g.pick(rank=1, dtype=g.random.choice(("i64", "i32", "u8")), exact=True)
    if ids is None or ids.dims == ("1",) or not g.sizes.get(extent, 1):
        return None
    return f"i64({ids.name}[{letter}]) % {extent}", ids.dims[0]


def _tuple(*items: object) -> str:
    return f"({', '.join(map(str, items))}{',' if len(items) == 1 else ''})"


def pack(g: Generator) -> bool:
    v = g.pick(floating=True, min_rank=1, bounded=True)
    if v is None or v.dims[-1] == "1":
        return False
    gain = g.pick(rank=1, dtype=v.dtype, dims=(v.dims[-1],), bounded=True)
    gain_text = gain.name if gain else f"full({v.dtype}[{v.dims[-1]}], 0.75)"
    g.add(f"{declare(g, 'gained')}({v.name}, {gain_text})", v.dtype, v.dims, False)
    return True


def static(g: Generator) -> bool:
    v = g.pick(min_rank=1)
    if v is None:
        return False
    axis, twice = g.random.randrange(len(v.dims)), g.random.choice(("", ", twice=true", ", twice=false"))
    g.add(f"{declare(g, 'turned')}({v.name}, {axis}{twice})", v.dtype, v.dims, v.exact, v.bounded)
    return True


def bits(g: Generator) -> bool:
    v = g.pick(floating=False, exact=True)
    if v is None or v.dtype == "bool":
        return False
    small = "1" if v.dtype in ("u8", "i8") else "3"
    text = g.random.choice(
        (
            f"bit_and({v.name}, {small})",
            f"bit_or({v.name}, {small})",
            f"bit_xor({v.name}, bit_not({v.name} + {small}))",
            f"shift_left({v.name}, {small})",
            f"shift_right({v.name}, {small})",
            f"popcount({v.name})",
        )
    )
    g.add(text, v.dtype, v.dims, True)
    return True


def recoded(g: Generator) -> bool:
    """Narrow types and bit patterns of exact values, and back."""
    v = g.pick(exact=True, dtype=g.random.choice(("f32", "f32", "f16", "i8", "i64", "i32")))
    if v is None:
        return False
    if v.dtype == "f32" and g.random.random() < 0.3:
        g.add(f"bitcast({v.name}, i32)", "i32", v.dims, True)
        return True
    narrow = g.random.choice(("f8e4m3", "f8e5m2", "f6e2m3", "f4e2m1") if is_float(v) else ("i4", "u4", "u2", "i7"))
    text = f"round_to({v.name}, {narrow})" if is_float(v) and g.random.random() < 0.4 else f"{narrow}({v.name})"
    if text.startswith("round_to"):
        g.add(text, v.dtype, v.dims, True, v.bounded)
        return True
    low = g.add(text, narrow, v.dims, True)
    g.scope.pop()
    back = "f32" if is_float(v) else "i32"
    g.add(f"{back}({low.name})", back, v.dims, True, is_float(v) and v.bounded)
    return True


def taken(g: Generator) -> bool:
    v, ids = g.pick(min_rank=1), g.pick(dtype="i64", min_rank=1, exact=True)
    if v is None or ids is None:
        return False
    axis = g.random.randrange(len(v.dims))
    if not g.sizes.get(v.dims[axis], 1):
        return False
    below = f"{ids.name} % {v.dims[axis]}"
    if ids.dims == v.dims and g.random.random() < 0.5:
        g.add(f"gather({v.name}, {below}, axis={axis})", v.dtype, v.dims, v.exact, v.bounded)
        return True
    dims = (*v.dims[:axis], *ids.dims, *v.dims[axis + 1 :])
    if len(dims) > 4:
        return False
    g.add(f"take({v.name}, {below}, axis={axis})", v.dtype, dims, v.exact, v.bounded)
    return True


def chosen(g: Generator) -> bool:
    """The largest, prefix products, one-hot rows, booleans."""
    v = g.pick(min_rank=1, exact=True)
    if v is None or v.dtype == "bool" or v.dims[-1] == "1" or not g.sizes[v.dims[-1]]:
        return False
    kind = g.random.choice(("top", "one_hot", "any", "prod", "cumprod"))
    if kind == "top":
        largest, places = g.fresh(), g.fresh()
        g.lines.append(f"{g.indent}{largest}, {places} = top_k({v.name}, 1)")
        g.scope.append(type(v)(largest, v.dtype, (*v.dims[:-1], "1"), True, v.bounded))
        g.scope.append(type(v)(places, "i64", (*v.dims[:-1], "1"), True, False))
    elif kind == "one_hot" and v.dtype == "i64":
        g.add(f"one_hot({v.name}, {v.dims[-1]})", "f32", (*v.dims, v.dims[-1]), True, True)
    elif kind == "any":
        name = g.random.choice(("any", "all"))
        zero = "0.0" if is_float(v) else "0"
        g.add(f"{name}({v.name} > {zero} or not {v.name} != {zero}, axis=-1)", "bool", v.dims[:-1], True)
    elif is_float(v) and v.bounded and v.dtype in ("f32", "f64"):
        text, dims = ("prod({})", v.dims[:-1]) if kind == "prod" else ("cumprod({})", v.dims)
        g.add(text.format(f"tanh({v.name}), axis=-1"), v.dtype, dims, False, True)
    else:
        return False
    return True


def reduced(g: Generator) -> bool:
    """Several axes at once, variances, argmax in index notation."""
    v = g.pick(rank=2) or g.pick(rank=3)
    if v is None or v.dtype == "bool" or not usable(g, v):
        return False
    if v.exact and len(v.dims) == 2 and g.random.random() < 0.5:
        name = g.random.choice(("argmax", "argmin", "max", "min"))
        g.define("i", f"{name}[k]({v.name}[i, k])", "i64" if name[0] == "a" else v.dtype, v.dims[:1], True)
    elif is_float(v) and v.bounded and g.random.random() < 0.5:
        g.add(f"var({v.name}, axis=-1)", v.dtype, v.dims[:-1], False)
    else:
        dtype = {"i8": "i32", "i16": "i32", "u8": "u32"}.get(v.dtype, v.dtype)
        g.add(f"sum({v.name}, axis=(0, -1))", dtype, v.dims[1:-1], not is_float(v))
    return True


def product(g: Generator) -> bool:
    """Products by einsum and by three factors."""
    v = g.pick(rank=2, floating=True, bounded=True)
    if v is None or "1" in v.dims:
        return False
    kind = g.random.choice(("ij,kj->ik", "ij,ij->i", "ij,ij->ji", "ij->j", "three"))
    dims = {"ij,kj->ik": (v.dims[0], v.dims[0]), "ij,ij->i": v.dims[:1], "ij,ij->ji": v.dims[::-1], "ij->j": v.dims[1:]}
    if kind == "three":
        text = f"sum[k]({v.name}[i, k] * {v.name}[j, k] * {v.name}[i, k])"
        g.define(f"i < {v.dims[0]}, j < {v.dims[0]}", text, v.dtype, (v.dims[0], v.dims[0]), False)
        return True
    operands = ", ".join([v.name] * (2 if "," in kind else 1))
    g.add(f'einsum("{kind}", {operands})', v.dtype, dims[kind], False)
    return True


def window(g: Generator) -> bool:
    v = g.pick(rank=2, dtype=g.random.choice(("f32", "f32", "f64")), bounded=True)
    if not usable(g, v):
        return False
    assert v is not None
    kind, stride = g.random.choice(("conv1d", "conv2d", "max_pool2d", "avg_pool2d")), g.random.choice((1, 1, 2))
    weights = f"{v.dtype}(3 * {{}} - 4 * r + 2) * 0.125"
    if kind == "conv1d":
        weight = f"tensor[o < 2, c < {v.dims[0]}, r < 3]({weights.format('o + c')})"
        text, image = f"conv1d(expand_dims({v.name}, 0), {weight}, stride={stride}, padding=1)", "[0, 1]"
        dims: tuple[str, ...] = v.dims[1:]
    else:
        operand = f"reshape({v.name}, (1, 1, {v.dims[0]}, {v.dims[1]}))"
        extra = f"tensor[o < 2, c < 1, r < 3, s < 3]({weights.format('o + c + s')})" if kind == "conv2d" else "size=3"
        text, image = f"{kind}({operand}, {extra}, stride={stride}, padding=1)", "[0, -1]"
        dims = v.dims
    if kind != "max_pool2d" or v.exact:
        exact = kind == "max_pool2d"
        if stride == 1:
            g.add(f"{text}{image}", v.dtype, dims, exact)
        else:
            g.add(f"sum({text})", v.dtype, (), False)
        return True
    return False


def attend(g: Generator) -> bool:
    q = g.pick(rank=2, floating=True, bounded=True)
    k = g.pick(rank=2, dtype=q.dtype, bounded=True) if q else None
    if q is None or k is None or q.dims[1] != k.dims[1] or not usable(g, q) or not usable(g, k):
        return False
    causal = ", causal=true" if g.random.random() < 0.4 else ""
    g.add(f"attention({q.name}, {k.name}, {k.name}{causal})", q.dtype, (q.dims[0], k.dims[1]), False, True)
    return True


def rearranged(g: Generator) -> bool:
    """Shape functions whose result has known dims again."""
    v = g.pick(min_rank=1)
    if v is None or v.dims[0] == "1":
        return False
    n = v.dims[0]
    copies, edges = _tuple(2, *(1 for _ in v.dims[1:])), _tuple("(1, 1)", *("(0, 0)" for _ in v.dims[1:]))
    halves = f"split(concat(({v.name}, {v.name}), axis=0), 2, axis=0)"
    kind = g.random.choice(("stack", "split", "repeat", "tile", "moveaxis", "broadcast", "window"))
    flags = (v.exact, v.bounded)
    if kind == "stack":
        g.add(f"stack(({v.name}, {v.name}), axis=0)[1]", v.dtype, v.dims, *flags)
    elif kind == "split":
        first, second = g.fresh(), g.fresh()
        g.lines.append(f"{g.indent}{first}, {second} = {halves}")
        g.scope.append(type(v)(second, v.dtype, v.dims, *flags))
    elif kind == "repeat" and g.sizes[n]:
        g.add(f"repeat({v.name}, 2, 0)[1::2]", v.dtype, v.dims, *flags)
    elif kind == "tile":
        g.add(f"tile({v.name}, {copies})[{n}:]", v.dtype, v.dims, *flags)
    elif kind == "moveaxis":
        g.add(f"moveaxis({v.name}, 0, -1)", v.dtype, (*v.dims[1:], n), *flags)
    elif kind == "broadcast" and len(v.dims) < 3:
        other = g.random.choice(sorted(g.sizes))
        if other not in v.dims and any(other in w.dims for w in g.scope):
            g.add(f"broadcast_to({v.name}, ({', '.join((other, *v.dims))}))", v.dtype, (other, *v.dims), *flags)
            return True
        return False
    else:
        if g.sizes[n] < 3 or v.dtype == "bool":
            return False
        g.add(f"pad({v.name}[1:-1], {edges})", v.dtype, v.dims, *flags)
    return True


def ragged(g: Generator) -> bool:
    """A sum over a range that depends on data, or on another index from below."""
    v = g.pick(rank=1, dtype=g.random.choice(("f32", "f64", "i64")))
    if v is None or v.dims == ("1",) or not g.sizes[v.dims[0]]:
        return False
    n, exact = v.dims[0], v.dtype == "i64"
    found = subscript(g, n, "i") if g.random.random() < 0.6 else None
    if found:
        low, rows = found
        bounds = g.random.choice((f"{low}..{n}", f"0..{low}", f"{low}..minimum(i + 2, {n})"))
        g.define(f"i < {rows}", f"sum[p in {bounds}]({v.name}[p])", v.dtype, (rows,), exact)
    else:
        other = g.random.choice(("max", "sum")) if exact else "sum"
        g.define(f"i < {n}", f"{other}[k in i..{n}]({v.name}[k] * {v.name}[{n} - 1 - k + i])", v.dtype, (n,), exact)
    return True


def scattered(g: Generator) -> bool:
    """Updates with slices, other writes, and rows of values at places that depend on data."""
    v = g.pick(min_rank=1)
    if v is None or v.dtype == "bool" or "1" in v.dims or not g.sizes[v.dims[0]]:
        return False
    exact, n, result = not is_float(v), v.dims[0], g.fresh()
    rest = letters(v)[1:]
    found = subscript(g, n)
    operator = g.random.choice(("+=", "-=", "max=", "min="))
    if found and g.random.random() < 0.6 and found[1] not in v.dims:
        values = g.pick(dtype=v.dtype, dims=(found[1], *v.dims[1:]))
        value = f"{values.name}[{', '.join(['t', *rest])}]" if values else f"{v.name}[{', '.join(['0', *rest])}]"
        text = f"update {v.name}[{', '.join([found[0], *rest])}] {operator} {value}"
        exact = exact or (operator in ("max=", "min=") and v.exact and (values is None or values.exact))
    else:
        start = g.random.choice(("1:", ":-1", "::2", ""))
        target = f"{v.name}[{start}]" if start else f"{v.name}[{', '.join([f'{n} - 1', *rest])}]"
        text = f"update {target} {g.random.choice(('=', '*=', operator))} {g.literal(v.dtype)}"
    g.lines.append(f"{g.indent}{result} = {text}")
    g.scope.append(type(v)(result, v.dtype, v.dims, exact, False))
    return True


def counted(g: Generator) -> bool:
    """A loop of integers whose count and condition depend on data."""
    v = g.pick(dtype=g.random.choice(("i64", "i32")), exact=True)
    if v is None or len(g.indent) > 8:
        return False
    most = f"i64(max(abs({v.name}))) % 3" if g._full(v) else "2"
    count = g.random.choice(("4", f"i64(sum({v.name})) % 5", most))
    span = g.random.choice(("< ", "in -1..", "in 1.."))
    condition = g.random.choice(("", f" while sum(s) < {g.random.choice((5, 40))}"))
    t, result = g.fresh("t"), g.fresh()
    state = f"s = {v.name}, w = {v.name}"
    g.lines += [
        f"{g.indent}{result}, _ = loop ({state}) for {t} {span}{count}{condition} {{",
        f"{g.indent}    yield s + w + {v.dtype}({t}), s - 1",
        f"{g.indent}}}",
    ]
    g.scope.append(type(v)(result, v.dtype, v.dims, True, False))
    return True


def scanned(g: Generator) -> bool:
    """A scan over the rows of a tensor, whose counter subscripts it; also backwards."""
    v = g.pick(rank=2, floating=True, bounded=True)
    if v is None or "1" in v.dims or len(g.indent) > 8:
        return False
    rows, columns = v.dims
    t, last, every = g.fresh("t"), g.fresh(), g.fresh()
    row = g.random.choice((f"{v.name}[{t}]", f"{v.name}[{rows} - 1 - {t}]"))
    inner = f"{g.indent}    "
    g.lines += [
        f"{g.indent}{last}, {every} = scan (h = zeros({v.dtype}[{columns}])) for {t} < {rows} {{",
        f"{inner}n = tanh({row} + 0.5 * h)",
        f"{inner}yield n",
        f"{inner}emit n * {row}",
        f"{g.indent}}}",
    ]
    g.scope.append(type(v)(last, v.dtype, (columns,), False, True))
    g.scope.append(type(v)(every, v.dtype, v.dims, False, True))
    return True


def layers(g: Generator) -> bool:
    """A loop over a list of structs."""
    if not g.lists or len(g.indent) > 8:
        return False
    name, dim, length = g.random.choice(g.lists)
    v = g.pick(rank=2, dtype="f32", bounded=True)
    if v is None or v.dims[1] != dim:
        return False
    t, result = g.fresh("t"), g.fresh()
    at = g.random.choice((t, f"{length} - 1 - {t}"))
    step = f"tanh(h @ transpose({name}[{at}].weight) + {name}[{at}].bias)"
    g.lines.append(f"{g.indent}{result} = loop (h = {v.name}) for {t} < {length} {{ yield {step} }}")
    g.scope.append(type(v)(result, "f32", v.dims, False, True))
    return True


STATEMENTS: tuple[Callable[[Generator], bool], ...] = (
    *(pack, static, bits, recoded, taken, chosen, reduced, product, window, attend, rearranged, ragged),
    *(scattered, counted, scanned, layers),
)
