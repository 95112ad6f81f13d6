"""Random programs whose weights are stored in formats: cut, turned, joined and gathered, then multiplied or summed.

Every weight has a format of its own; what moves it takes whole groups to whole groups. Sizes are odd and even, in
whole groups and not; some weights are large enough to be laid out before the first call.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from generate import Argument, FuzzProgram

from intarsia.dsl.library import load
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.ir.formats import BUILT_IN
from intarsia.ir.interpreter import evaluate

SIZES = (1, 2, 3, 5, 8, 13, 16, 24, 31, 33, 64, 70, 96, 128, 150)
LARGE = (512, 520, 544, 601, 1536)
FORMATS = (
    *[f"quant({kind}{bits}, scale=f16, group=G, axis=A)" for kind in "iu" for bits in range(2, 9)],
    *[f"quant(u{bits}, scale=f16, zero=u{bits}, group=G, axis=A)" for bits in (1, 3, 4, 8)],
    *[f'quant(u{bits}, scale=f16, zero=f16, zero_means="value", group=G, axis=A)' for bits in (2, 5)],
    *[f"quant({codes}, scale=bf16, group=G, axis=A)" for codes in ("ternary", "f8e4m3", "f5e2m2", "f4e2m1")],
    "quant(i4, scale=quant(u8, scale=f32, group=2, axis=A), group=G, axis=A)",
    "quant(i8, scale=f32, group=none, axis=A)",
    "quant(i6, scale=f32, axis=none)",
)
ACTIVATIONS = (
    "quant(i8, scale=f32, axis=1)",
    "quant(i5, scale=f32, axis=1)",
    "quant(u8, scale=f32, zero=u8, axis=1)",
    "quant(i8, scale=f32, axis=none)",
    "quant(i8, scale=f32, group=32, axis=1)",
)
GROUPS = {"mxfp8": 32, "mxfp6": 32, "mxfp4": 32, "mxint8": 32, "nvfp4": 16, "nf4": 64}


@dataclass
class Stored:
    """A program under construction. `lines` are its statements, `value` a matrix of `rows` by `columns`."""

    random: random.Random
    numbers: np.random.Generator
    rows: int
    columns: int
    value: str = "x"
    formats: list[str] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    arguments: dict[str, Argument] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    counter: int = 0

    def fresh(self, prefix: str) -> str:
        self.counter += 1
        return f"{prefix}{self.counter}"

    def let(self, text: str, prefix: str = "v") -> str:
        name = self.fresh(prefix)
        self.lines.append(f"    {name} = {text}")
        return name

    def parameter(self, type_: str, value: Argument, constant: bool = False) -> str:
        name = self.fresh("p")
        self.parameters.append(f"{'const ' if constant else ''}{name}: {type_}")
        self.arguments[name] = value
        return name


@dataclass
class Weight:
    """A tensor in a format: its name in the program, its shape, and elements that share a scale along an axis; all of
    them where `group` is 0."""

    name: str
    shape: list[int]
    axis: int
    group: int

    def is_free(self, axis: int) -> bool:
        """Do neighbours along an axis have scales that know nothing of each other, or one for all?"""
        return self.group == 0 or axis != self.axis


def weight(s: Stored, shape: list[int]) -> Weight:
    """A new parameter in a format of its own."""
    axis = s.random.randrange(len(shape))
    if s.random.random() < 0.4:
        name = s.random.choice(sorted(BUILT_IN))
        text, group = f"{name}(axis={axis})", GROUPS[name]
    else:
        group = s.random.choice((4, 8, 16, 32))
        text = s.random.choice(FORMATS)
        group = 0 if "group=G" not in text else 2 * group if "group=2" in text else group
        text = text.replace("G", str(group // 2 if "group=2" in text else group)).replace("A", str(axis))
    format_ = s.fresh("q")
    s.formats.append(f"format {format_} = {text}")
    dims = ", ".join(map(str, shape))
    source = f"format q = {text}\nfn f(w: f32[{dims}]) -> q[{dims}] {{ return quantize(w, q) }}"
    library = load(Source("format.ita", source))
    values = (2 / shape[0] ** 0.5 * s.numbers.standard_normal(shape)).astype(np.float32)
    parts: list[Array] = evaluate(library.build("f"), [values], {})
    leaves = [label.removeprefix("w.") for label in library_labels(text, dims)]
    return Weight(
        s.parameter(f"{format_}[{dims}]", dict(zip(leaves, parts)), s.random.random() < 0.6), shape, axis, group
    )


def library_labels(text: str, dims: str) -> list[str]:
    """The names of the tensors that store one in a format."""
    source = f"format q = {text}\nfn f(w: q[{dims}]) -> f32[{dims}] {{ return dequantize(w) }}"
    return [p.label for p in load(Source("format.ita", source)).build("f").graph.parameters]


def turn(s: Stored, w: Weight) -> Weight:
    return Weight(s.let(f"transpose({w.name})", "w"), w.shape[::-1], len(w.shape) - 1 - w.axis, w.group)


def cut(s: Stored, w: Weight) -> Weight | None:
    """A part along one axis, which begins where a group does."""
    axis = s.random.randrange(len(w.shape))
    step = 1 if w.is_free(axis) else w.group
    if w.shape[axis] <= step:
        return None
    start = s.random.randrange(0, w.shape[axis], step)
    stop = s.random.randint(start + 1, w.shape[axis])
    shape = [*w.shape[:axis], stop - start, *w.shape[axis + 1 :]]
    return Weight(s.let(f"{w.name}[{':, ' * axis}{start}:{stop}]", "w"), shape, w.axis, w.group)


def gather(s: Stored, w: Weight) -> Weight | None:
    """Rows or columns in any order."""
    axis = s.random.randrange(len(w.shape))
    if not w.is_free(axis):
        return None
    count = s.random.choice(SIZES)
    ids = s.parameter(f"i64[{count}]", s.numbers.integers(0, w.shape[axis], count))
    shape = [*w.shape[:axis], count, *w.shape[axis + 1 :]]
    return Weight(s.let(f"take({w.name}, {ids}, axis={axis})", "w"), shape, w.axis, w.group)


def join(s: Stored, w: Weight) -> Weight | None:
    """The same tensor twice, or its parts in another order."""
    axis = s.random.randrange(len(w.shape))
    if w.group == 0 or "nvfp4" in " ".join(s.formats) or (axis == w.axis and w.shape[axis] % w.group):
        return None
    shape = [*w.shape[:axis], 2 * w.shape[axis], *w.shape[axis + 1 :]]
    return Weight(s.let(f"concat(({w.name}, {w.name}), axis={axis})", "w"), shape, w.axis, w.group)


def fold(s: Stored, w: Weight) -> Weight | None:
    """Another shape and back: the axis without groups is split, a part of it is taken."""
    axis = 1 - w.axis
    if w.shape[axis] % 2:
        return None
    half = w.shape[axis] // 2
    sizes = [[size] for size in w.shape]
    sizes[axis] = [2, half]
    split = s.let(f"reshape({w.name}, ({', '.join(str(n) for size in sizes for n in size)}))", "w")
    which = s.random.randrange(2)
    shape = [*w.shape[:axis], half, *w.shape[axis + 1 :]]
    return Weight(s.let(f"{split}[{':, ' * axis}{which}]", "w"), shape, w.axis, w.group)


MOVES: tuple[Callable[[Stored, Weight], Weight | None], ...] = (turn, cut, cut, gather, join, fold)


def product(s: Stored) -> None:
    """A product with a weight that has moved, from the right; what is left over of either is cut off."""
    size = s.random.choice(LARGE if s.random.random() < 0.15 else SIZES)
    inner = s.random.choice(LARGE) if size in LARGE else max(s.columns, s.random.choice(SIZES))
    w = weight(s, [inner, size] if s.random.random() < 0.7 else [size, inner])
    for _ in range(s.random.choice((0, 0, 1, 1, 2, 3))):
        w = s.random.choice(MOVES)(s, w) or w
    values = f"dequantize({w.name})"
    rows, columns = w.shape
    if s.random.random() < 0.3:
        values, rows, columns = f"transpose({values})", columns, rows
    shared = min(rows, s.columns)
    left = s.value if shared == s.columns else f"{s.value}[:, :{shared}]"
    if s.value in s.arguments and s.random.random() < 0.3:  # what is computed could be rounded to another code
        activations = s.fresh("q")
        s.formats.append(f"format {activations} = {s.random.choice(ACTIVATIONS)}")
        left = f"dequantize(quantize({left}, {activations}))"
    right = values if shared == rows else f"{values}[:{shared}]"
    scaled = f"{left} @ {right}"
    s.value = s.let(s.random.choice((scaled, scaled, f"tanh({scaled})", f"relu({scaled}) * 0.5")))
    s.columns = columns


def layers(s: Stored) -> None:
    """A loop over stacked weights."""
    count, size = s.random.choice((1, 2, 3)), s.columns
    w = weight(s, [count, size, size])
    if w.axis == 0 and w.group:
        return
    state, layer = s.fresh("h"), s.fresh("l")
    body = f"tanh({state} @ dequantize({w.name}[{layer}]))"
    if w.axis == 0:
        body = f"tanh({state} @ dequantize({w.name})[{layer}])"
    s.value = s.let(f"loop ({state} = {s.value}) for {layer} < {count} {{ yield {body} }}")


def generate_stored(seed: int) -> FuzzProgram:
    """The program of a seed, of one to three products."""
    rng = random.Random(f"stored {seed}")
    s = Stored(rng, np.random.default_rng(seed), rng.choice((1, 1, 2, 3, 5, 16, 33)), rng.choice(SIZES))
    x = s.numbers.standard_normal((s.rows, s.columns)).astype(np.float32)
    s.value = s.parameter(f"f32[{s.rows}, {s.columns}]", x)
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choice((product, product, product, layers))(s)
    signature = f"fn main({', '.join(s.parameters)}) {{"
    text = "\n".join([*s.formats, signature, *s.lines, f"    return {s.value}", "}", ""])
    return FuzzProgram(seed, text, {}, s.arguments)
