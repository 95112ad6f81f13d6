"""Random programs of f64 whose derivatives are hard to take: selections, products, orders, windows, updates, loops.

A program is a row of statements of `STATEMENTS`. Each says which tensors it takes, by a letter for each dimension, what
it gives, and its text: `{x}`, `{y}` and `{z}` are what it takes, `{r}` what it gives, `{I}`, `{J}` and `{K}` the sizes.
Values are nowhere equal by accident, so that what is selected does not hang on a rounding.
"""

from __future__ import annotations

import random
from itertools import product

import numpy as np
from generate import Argument, FuzzProgram

SIZES = (1, 2, 3, 4, 5, 8, 9)
DIMS = ("A", "B", "C")

FUNCTIONS = """
fn bent[T: float](x: T[..S], y: T[..S]) -> T[..S] {
    return sin(x) * y + 0.1 * x * x
}

fn energy(x: f64[..S]) -> f64 {
    return sum(sin(x) * x)
}

fn energy_between(x: f64[..S], y: f64[..S]) -> f64 {
    return sum(bent(x, y) * y)
}

fn wave(x: f64, y: f64) -> f64 {
    return where(x > y, sin(x * y), x * x * y)
}

fn bent_backward(x: f64[..S], y: f64[..S], g: f64[..S]) -> (f64[..S], f64[..S]) {
    return g * (cos(x) * y + 0.2 * x), g * sin(x)
}
"""

STATEMENTS = tuple(
    tuple(part.strip() for part in line.split(":", 2))
    for line in """
    i : i : {r} = sin({x}) * 1.5
    ij : ij : {r} = tanh({x}) + 0.1 * {x}
    ijk : ijk : {r} = gelu({x})
    ij : ij : {r} = exp(tanh({x})) - log({x} * {x} + 0.5)
    ij : ij : {r} = softplus({x}) * sigmoid({x}) + elu({x})
    i : i : {r} = sqrt(abs({x}) + 0.1) - {x} ** 3 * 0.1
    ij : ij : {r} = (abs({x}) + 0.2) ** (0.5 * tanh({x}))
    ij,ij : ij : {r} = {x} / (1.5 + sin({y})) + atan2({x}, abs({y}) + 0.3)
    ij,ij : ij : {r} = where({x} > {y}, {x} * {y}, cos({x}) - {y})
    ij,ij : ij : {r} = maximum({x}, {y}) * minimum({x}, 0.5 * {y})
    ij,i : ij : {r} = {x} * expand_dims({y}, 1) + 0.3
    ij,j : ij : {r} = {x} * {y} - {y}
    ij,j : ij : {r} = clip({x}, -0.7, 0.7) + {y}
    i,j : ij : {r}[i, j] = sin({x}[i] * {y}[j])
    i,j,ij : ij : {r}[i, j] = ({x}[i] - {y}[j]) * {z}[i, j]
    ij : i : {r} = max({x}, axis=1)
    ij : j : {r} = min({x}, axis=0) * 0.7
    ijk : ij : {r} = max({x}, axis=2) - mean({x}, axis=2)
    ijk : j : {r} = sum({x} * {x}, axis=(0, 2)) * 0.2
    ij : i : {r} = logsumexp({x}, axis=1)
    ij : ij : {r} = softmax({x}, axis=0) * {x}
    ij : ij : {r} = log_softmax({x}) * 0.3
    ij : j : {r} = var({x}, axis=0)
    ij,j : ij : {r} = layer_norm({x}, {y}, 0.5 * {y}, eps=0.1)
    ij : i : {r} = prod(tanh({x}), axis=1)
    ij : j : {r}[j] = prod[k]({x}[k, j] * 0.8 + 0.1)
    ij : ij : {r} = cumsum({x}, axis=0) * 0.4
    ij : ij : {r} = flip(cumsum(flip({x}, 1), axis=1), 1) * 0.4
    ij : ij : {r} = cumprod(sin({x}), axis=1)
    ij : ij : {r} = sort({x}, axis=1)
    ij : ij : {r} = sort({x} * 0.5, axis=0) * {x}
    ij,jk : ik : {r} = ({x} @ {y}) * 0.4
    ij,kj : ik : {r} = ({x} @ transpose({y})) * 0.4
    ij,ik : jk : {r}[j, k] = sum[i]({x}[i, j] * {y}[i, k]) * 0.4
    ij,j : i : {r} = ({x} @ {y}) * 0.4
    ijk,ikl : ijl : {r} = ({x} @ {y}) * 0.4
    ijk,jk : ik : {r} = einsum("ijk,jk->ik", {x}, {y}) * 0.4
    ij : ij : {r}[i, j] = sum[k]({x}[i, k] * {x}[k % {I}, j]) * 0.3
    ij,kj,kl : il : {r} = attention({x}, {y}, {z})
    ij,kj,kl : il : {r} = attention({x}, {y}, {z}, causal=true)
    ij : ji : {r} = transpose({x}) * 0.9
    ijk : kij : {r} = transpose({x}, axes=(2, 0, 1))
    ij : ij : {r} = reshape(transpose(reshape({x}, ({J}, {I}))), ({I}, {J})) + {x}
    ij : ij : {r} = flip({x}, axis=0) * {x}
    ij : ij : {r} = concat(({x}[{I} // 2:], {x}[:{I} // 2]), axis=0) * {x}
    ij : ij : {r} = pad({x}[1:], ((1, 0), (0, 0)), value=0.3) * {x}
    ij,ij : ij : {r} = stack(({x}, {y}, {x}), axis=1)[:, 1] * concat(({y}, {x}), axis=1)[:, {J}:]
    ij : ij : {r} = repeat({x}, 3, axis=1)[:, ::3] * tile({x}, (2, 1))[{I}:]
    ij : i : {r}[i] = {x}[i, i % {J}] * {x}[i, 0]
    ij : i : {r}[i < {I}] = sum[j]({x}[{I} - 1 - i, j] * {x}[i // 2, j])
    ij : ij : {r}[i, j] = {x}[(i + j) % {I}, j] * {x}[i, j]
    ij : ij : {r}[i, j] = where(i > 0, {x}[i - 1, j], 0.25) * {x}[i, j] + where(i < j, {x}[i, j - 1 - i], 0.0)
    ij : ij : {r}[i, j < {J}] = where(j > 0, {x}[i, j - 1] * 2.0, 0.0) - where(j > 1, {x}[i, j - 2], {x}[i, 0])
    i : i : {r}[i < {I}] = max[r < 3](where(i + r >= 1 and i + r <= {I}, {x}[i + r - 1] * (1.0 + 0.1 * f64(r)), 0.2))
    i,j : i : {r}[i < {I}] = sum[k](where(i >= k, {x}[i - k] * {y}[k], 0.0)) * 0.5
    i,j : i : {r}[i < {I}] = sum[k](where(2 * k < {I} - i, {x}[i + 2 * k] * {y}[k], 0.1)) * 0.5
    ij : i : {r}[i] = sum[k < minimum(i + 1, {J})]({x}[i, k] * {x}[k % {I}, k])
    ij : i : {r}[i] = max[k < minimum(i + 1, {J})]({x}[i, k])
    ij : ij : {r}[a < {I}, b < {J}] = reshape({x}, (-1,))[{J} * a + b] * {x}[a, {J} - 1 - b]
    i : i : {r}[a < {I}] = tensor[p < 3 * {I}]({x}[p // 3] * f64(p % 3 + 1) * 0.4)[3 * a + 1]
    ij,i : ij : {r} = take({x}, ids % {I}, axis=0)[:1] * {x} + expand_dims({y}, 1)
    ij : ij : {r}[i, j] = {x}[ids[0] % {I}, j] * {x}[i, ids[3] % {J}]
    i : i : {r} = update {x}[ids[t] % {I}] += {x}[t % {I}] * 0.5
    ij : ij : {r} = update {x}[i in 1..{I}, j] = {x}[i - 1, j] * {x}[i, j]
    ij,j : ij : {r} = update {x}[ids[1] % {I}, :] = {y} * {y}
    ij,i : ij : {r} = update {x}[i, i % {J}] = {y}[i] * {x}[i, 0]
    ij : ij : {r} = update {x}[::2] += {x}[::2] * {x}[::2]
    i,j : j : {r} = update {y}[t % {J}] *= {x}[t] + 0.3
    i,j : j : {r} = update {y}[t % {J}] max= 0.9 * {x}[t]
    ij,j : ij : {r} = update {x}[ids[1] % {I}, b] min= sin({y}[b])
    ij : i : {r}[i < {I}] = prod[k < i](0.4 + {x}[i, k % {J}])
    i : i : {r} = loop (s = {x}) for t < 4 while sum(s * s) < 3.0 { yield 1.2 * s + 0.3 * sin(s) }
    i,j : i : {r} = loop (s = {x}) for t in 1..minimum(ids[0] % 4, {J}) { yield sin(s) + {y}[0] * {x} }
    ij : j : {r} = loop (s = {x}[0]) for t < {I} { yield loop (u = s) for q < t { yield 0.5 * u + {x}[q] } }
    i,i : i : {r}[i] = grad(wave, wrt=x)({x}[i], {y}[i])
    i : i : {r} = loop (s = {x}) for t < 3 { yield sin(s) * {x} + 0.2 * f64(t) }
    ij,jj : ij : {r} = loop (s = {x}) for t < 3 { yield tanh(s @ {y}) + 0.1 * {x} }
    ij,j : j : {r} = loop (s = {y}) for t < {I} { yield tanh({x}[t] * s) + 0.5 * s }
    ij,j : j : {r} = loop (s = {y}) for t in 1..{I} { yield {x}[t - 1] * s + {x}[{I} - t] }
    i,i : i : {r}, _ = loop (s = {x}, u = {y}) for t < 3 { yield 0.5 * s * u + {x}, u - 0.3 * s }
    ij : ij : {r} = loop (s = {x}) for t in 1..{I} { yield update s[t, :] = s[t] * 0.5 + sin(s[t - 1]) }
    ij : ij : {r} = loop (s = {x}) for t < 2 { yield update s[i in 1..{I}, j] = s[i, j] * s[i - 1, j] + s[i, 0] }
    ij,j : j,ij : {r}, {q} = scan (s = {y}) for t < {I} { u = 0.5 * s + sin({x}[t]) yield u emit u * s }
    ij,i : i : {r} = loop (s = {y}) for t < 2 { yield loop (u = s) for q < {J} { yield sin(u) * {x}[:, q] + 0.3 * s } }
    i,j : i : {r} = loop (s = {x}) for t < 2 { yield (loop (u = s) for q < 2 { yield sin(u) * {x} + f64(t) }) * {x} }
    i,i : i : {r} = bent({x}, {y})
    ij : ij : {r} = grad(energy, wrt=x)({x}) * 0.5
    ij,ij : ij : {r} = grad(energy_between, wrt=y)({x}, {y}) * 0.5
    i,i : i : _, {r} = jvp(bent, wrt=x)({x}, {y}, {y})
    ij,ij : ij : {r} = custom_grad(bent, bent_backward)({x}, {y})
    """.strip().splitlines()
)


def generate_smooth(seed: int) -> FuzzProgram:
    """The program of a seed, of two to eight statements."""
    rng, numbers = random.Random(f"smooth {seed}"), np.random.default_rng(seed)
    sizes = {d: rng.choice(SIZES) for d in DIMS}
    scope: list[tuple[str, str]] = []
    parameters, lines = ["ids: i64[4]"], []
    arguments: dict[str, Argument] = {"ids": numbers.integers(0, 90, 4)}
    for number, rank in enumerate((1, 2, *rng.choices((1, 2, 2, 3), k=rng.randint(0, 2)))):
        dims = "".join(rng.choices(DIMS, k=rank))
        scope.append((f"x{number}", dims))
        parameters.append(f"x{number}: f64[{', '.join(dims)}]")
        arguments[f"x{number}"] = numbers.uniform(-1.5, 1.5, [sizes[d] for d in dims])
    given = len(scope)
    while len(lines) < rng.randint(2, 8):
        takes, gives, text = rng.choice(STATEMENTS)
        if (found := _operands(rng, takes, scope)) is None:
            continue
        names, letters = found
        results = [f"v{len(scope) + n}" for n in range(gives.count(",") + 1)]
        words = dict(zip("xyz", names)) | dict(zip("rq", results)) | {c.upper(): d for c, d in letters.items()}
        for word, name in words.items():
            text = text.replace(f"{{{word}}}", name)
        lines.append(f"    {text}".replace(" yield ", "\n        yield ").replace(" emit ", "\n        emit "))
        scope += zip(results, ("".join(letters[c] for c in dims) for dims in gives.split(",")))
    used = [name for name, _ in scope[given:][-4:]]
    head = f"{FUNCTIONS}\nfn main({', '.join(parameters)}) {{\n"
    text = head + "\n".join(lines) + f"\n    return {', '.join(used)}\n}}\n"
    bound = {d: n for d, n in sizes.items() if any(d in dims for _, dims in scope[:given])}
    return FuzzProgram(seed, text, bound, arguments)


def _operands(rng: random.Random, takes: str, scope: list[tuple[str, str]]) -> tuple[list[str], dict[str, str]] | None:
    """Tensors whose dimensions fit, rather late ones, and the dimension of each letter; None if there are none."""
    found = []
    for chosen in product(scope[-6:], repeat=takes.count(",") + 1):
        letters: dict[str, str] = {}
        pairs = [(c, d) for wanted, (_, dims) in zip(takes.split(","), chosen) for c, d in zip(wanted, dims)]
        fits = all(len(wanted) == len(dims) for wanted, (_, dims) in zip(takes.split(","), chosen))
        if fits and all(letters.setdefault(c, d) == d for c, d in pairs):
            found.append(([name for name, _ in chosen], letters))
    return rng.choice(found) if found else None
