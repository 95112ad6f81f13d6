"""Derivatives of random programs, in f64: backwards against forwards and against finite differences.

A program with the floats of another one in f64 gets a `loss`, the sum of all its float results with weights of their
own. Its gradient is compared with differences of the loss along a random direction, and with what `jvp` says of that
direction; then the gradient is a program like any other, whose levels have to agree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from chains import generate_chain
from compare import LEVELS, OPTIONS, Failure, compare
from generate import Argument, FuzzProgram, generate
from smooth import generate_smooth

from intarsia.dsl.library import Library, load
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError, Source
from intarsia.ir.graph import Module
from intarsia.ir.interpreter import evaluate
from intarsia.ir.points import Operand
from intarsia.options import Options

NO_DERIVATIVE = "E0325"
STEPS = (1e-5, 1e-6, 1e-7)
"""Of differences: the first is the most precise, unless an edge of a function is nearer than that."""

NEAR = 1e-7
"""The share of the terms of a derivative by which two ways to compute it in f64 may differ."""


def generate_differentiable(seed: int) -> FuzzProgram:
    """The program of a seed, of one of three kinds, with its loss."""
    made = (generate_smooth, generate, generate_smooth, generate_chain)[seed % 4]
    try:
        found = with_loss(made(seed))
    except CompileError:  # not in f64, such as the bits of an f32
        found = None
    return found or with_loss(generate_smooth(seed)) or generate_differentiable(seed + 1)


def with_loss(program: FuzzProgram) -> FuzzProgram | None:
    """The program in f64 with a loss; None where no result is a float, or no parameter a tensor of floats."""
    text = re.sub(r"\b(f32|f16|bf16)\b", "f64", program.text)
    numbers = np.random.default_rng(program.seed)
    arguments = {name: _in_f64(a, numbers) for name, a in program.arguments.items()}
    head = re.search(r"fn main\((.*?)\)(?= -> | \{)", text)
    assert head is not None
    results = load(Source("fuzz.ita", text)).build("main").graph.results
    weighted = {f"r{n}": v.tensor for n, v in enumerate(results) if v.dtype.is_float}
    if not weighted or not _differentiated(arguments):
        return None
    weights = []
    for name, tensor in weighted.items():
        weights.append(f"{name}_weight: {tensor}")
        arguments[f"{name}_weight"] = np.asarray(numbers.normal(size=[s.evaluate(program.sizes) for s in tensor.shape]))
    names, calls = ", ".join(f"r{n}" for n in range(len(results))), ", ".join(program.arguments)
    total = " + ".join(f"sum({name} * {name}_weight)" for name in weighted)
    loss = f"fn loss({head[1]}, {', '.join(weights)}) -> f64 {{\n    {names} = main({calls})\n    return {total}\n}}\n"
    return replace(program, text=f"{text}\n{loss}", arguments=arguments)


def _in_f64(argument: Argument, numbers: np.random.Generator) -> Argument:
    """Floats in f64, away from the edges of functions and from ties; numbers in place of NaN and infinities."""
    match argument:
        case dict():
            return {name: np.asarray(_in_f64(a, numbers)) for name, a in argument.items()}
        case list():
            return [_in_f64(a, numbers) for a in argument]
    if argument.dtype.kind != "f":
        return argument
    finite = np.where(np.isfinite(argument), argument, 0.5).astype(np.float64)
    return np.asarray(finite + 0.01 * numbers.random(finite.shape))


def _differentiated(arguments: Mapping[str, Argument]) -> list[str]:
    """The tensors of floats, and structs of them, but for the weights of the loss."""
    found = [name for name in arguments if not name.endswith("_weight")]
    kinds = {name: a for name in found if not isinstance(a := arguments[name], list)}
    return [name for name, a in kinds.items() if isinstance(a, dict) or a.dtype.kind == "f"]


def gradient_of(program: FuzzProgram) -> str:
    """The function that gives the loss and its gradients."""
    return f"value_and_grad(loss, wrt=({', '.join(_differentiated(program.arguments))}))"


def check_derivatives(
    program: FuzzProgram, levels: Sequence[str] = LEVELS, options: Options = OPTIONS
) -> Failure | None:
    """What is wrong with the gradient of a program with a loss; None if nothing is, or if it says to have none."""
    try:
        return _check(program, levels, options)
    except CompileError as error:
        return None if error.code == NO_DERIVATIVE else Failure("build", f"{error.code}: {error}")
    except AssertionError as error:
        return Failure("derivative", f"AssertionError: {error}")


def _check(program: FuzzProgram, levels: Sequence[str], options: Options) -> Failure | None:
    library = load(Source("fuzz.ita", program.text))
    leaves, names = _leaves(program.arguments), _differentiated(program.arguments)
    numbers = np.random.default_rng(program.seed)
    wanted = [label for label in leaves if label.split(".")[0] in names]
    changes = {label: np.asarray(numbers.normal(size=np.shape(leaves[label]))) for label in wanted}
    gradient = gradient_of(program)
    value, *gradients = _run(library.build(gradient), leaves)
    terms = [g * changes[label] for label, g in zip(wanted, gradients)]
    backwards = float(sum(t.sum() for t in terms))
    scale = 1e-3 + sum(float(np.abs(t).sum()) for t in terms)
    if not np.isfinite(scale):
        return None  # it overflows
    forwards = _forwards(library, f"jvp(loss, wrt=({', '.join(names)}))", leaves, changes)
    if forwards is not None and not abs(forwards - backwards) <= NEAR * (scale + abs(forwards)):
        return Failure("forwards", f"jvp {forwards:.9g}, by the gradient {backwards:.9g} of {scale:.3g}")
    loss = library.build("loss")
    slopes = (_slope(loss, leaves, changes, step) for step in STEPS)
    if not any(abs(s - backwards) <= NEAR * (scale + abs(float(value)) + abs(s)) for s in slopes):
        slope = _slope(loss, leaves, changes, STEPS[0])
        return Failure("differences", f"{slope:.9g}, by the gradient {backwards:.9g} of {scale:.3g}")
    return compare(program.text, program.arguments, levels, options, gradient)


def _forwards(
    library: Library, transform: str, leaves: Mapping[str, Operand], changes: Mapping[str, Array]
) -> float | None:
    """The change of the loss along a direction by `jvp`; None where an op has a derivative backwards alone."""
    try:
        module = library.build(transform)
    except CompileError as error:
        if error.code == NO_DERIVATIVE and "forwards" in error.diagnostics[0].message:
            return None
        raise
    return float(_run(module, {**leaves, **{f"d_{label}": change for label, change in changes.items()}})[1])


def _slope(loss: Module, leaves: Mapping[str, Operand], changes: Mapping[str, Array], step: float) -> float:
    """The change of the loss along a direction by central differences."""
    ends = []
    for sign in (1, -1):
        moved = {label: np.asarray(leaves[label]) + sign * step * change for label, change in changes.items()}
        ends.append(float(_run(loss, {**leaves, **moved})[0]))
    return (ends[0] - ends[1]) / (2 * step)


def _run(module: Module, leaves: Mapping[str, Operand]) -> tuple[Array, ...]:
    with np.errstate(all="ignore"):
        return evaluate(module, [leaves[p.label] for p in module.graph.parameters])


def _leaves(arguments: Mapping[str, Argument]) -> dict[str, Operand]:
    """The arguments by the labels of the parameters that they become: the fields of a struct are one each."""
    found: dict[str, Operand] = {}
    for name, argument in arguments.items():
        match argument:
            case dict():
                found.update((f"{name}.{field}", a) for field, a in argument.items())
            case list():
                fields = [item for item in argument if isinstance(item, dict)]
                found.update((f"{name}.{field}", [a[field] for a in fields]) for field in fields[0])
            case _:
                found[name] = argument
    return found
