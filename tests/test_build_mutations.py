"""Programs with wrong words in them: what is said is a diagnostic, never a bug, and what is accepted is in bounds."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intarsia.dsl.library import Library, load
from intarsia.ir.errors import CompileError, Source
from intarsia.ir.interpreter import evaluate
from intarsia.ir.types import ListType, Type
from intarsia.ir.verifier import verify_module

ROOT = Path(__file__).parent.parent
TOKEN = re.compile(r'"[^"\n]*"|[A-Za-z_]\w*|\d[\w.]*|\.\.\.|\.\.|[-+*/<>=!]=|->|//|\*\*|\s+|.')


def words(text: str) -> list[str]:
    """The words of a line."""
    return text.split()


NAMES = words("x y i j k N M p w z a b D T S")
NUMBERS = [*words("0 1 2 -1 0.5 3 7 none true x[0] x[i] N i sum(x) 2*i x"), "(1, 2)", "M - 1", "i + 1", "i // 2"]
OPERATORS = words("+ - * / // % @ ** < == >= and or")
FUNCTIONS = words("sum max exp softmax where relu transpose sort split argmax cumsum take gelu top_k flip mean f32")
WORDS = set(words("fn return loop scan for in yield emit update if else struct const test assert while import mesh"))


def programs() -> list[str]:
    """The programs of the error tests, the language page and the pages of error codes."""
    found = [
        p.read_text("utf-8").partition("# ===== expected")[0] for p in sorted((ROOT / "tests/errors").glob("*/*.ita"))
    ]
    for page in [ROOT / "docs/language.md", *sorted((ROOT / "docs/errors").glob("*.md"))]:
        found += re.findall(r"^```\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return found


def mutate(text: str, generator: random.Random) -> str:
    """Replace one to three words by others of their kind."""
    tokens = TOKEN.findall(text)
    for _ in range(generator.choice([1, 1, 2, 3])):
        position = generator.randrange(len(tokens))
        token = tokens[position]
        if token.isidentifier() and token not in WORDS:
            is_called = tokens[position + 1 : position + 2] == ["("]
            tokens[position] = generator.choice(FUNCTIONS if is_called else generator.choice([NAMES, NUMBERS]))
        elif token[0].isdigit():
            tokens[position] = generator.choice(NUMBERS)
        elif token in OPERATORS:
            tokens[position] = generator.choice(OPERATORS)
    return "".join(tokens)


def small_input(type_: Type, sizes: dict[str, int]) -> Any:
    if isinstance(type_, ListType):
        return [small_input(type_.element, sizes) for _ in range(type_.length.evaluate(sizes))]
    shape = tuple(s.evaluate(sizes) for s in type_.shape)
    return np.asarray(np.random.default_rng(0).integers(-3, 4, shape)).astype(type_.dtype.numpy)


def build_and_run(library: Library, name: str, sizes: dict[str, int]) -> None:
    """Build for these sizes and evaluate: the interpreter asserts that what does not depend on data is in bounds."""
    module = library.build(name, dims=sizes)
    verify_module(module)
    if all(n in sizes for n in module.graph.dimensions):
        declared = [p.type for p in module.graph.parameters]
        dims = [d for t in declared for d in t.tensor.shape]
        if all(d.evaluate(sizes) >= 0 for d in dims):
            evaluate(module, [small_input(t, sizes) for t in declared], sizes)


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_programs(count: int) -> None:
    generator = random.Random(count)
    originals = programs()
    built = 0
    for _ in range(count):
        text = mutate(generator.choice(originals), generator)
        try:
            library = load(Source("mutated.ita", text))
        except CompileError:
            continue
        for diagnostic in library.check():
            assert diagnostic.render()
        for name in list(library.functions)[:2]:
            sizes = {n: generator.choice([1, 2, 3, 4, 6]) for n in _dimensions(library, name)}
            try:
                build_and_run(library, name, sizes)
                built += 1
            except CompileError as error:
                assert str(error)
    assert built > count // 20


def _dimensions(library: Library, name: str) -> tuple[str, ...]:
    try:
        return library.signature(name).dims
    except CompileError:
        return ()
