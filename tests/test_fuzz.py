"""Random programs of the language mean the same at every level: 500 of them, and every failure found before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from chains import generate_chain
from compare import LEVELS, compare
from differentiable import check_derivatives, generate_differentiable, gradient_of
from generate import FuzzProgram, generate
from meshes import check_on_mesh
from stored import generate_stored

CHUNK = 20


def require_agreement(program: FuzzProgram, levels: Sequence[str] = LEVELS) -> None:
    failure = compare(program.text, program.arguments, levels)
    assert failure is None, f"seed {program.seed}: {failure}\n{program.text}"


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 300, CHUNK))
def test_random_programs(first: int) -> None:
    for seed in range(first, first + CHUNK):
        require_agreement(generate(seed))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 100, CHUNK))
def test_chains_of_products(first: int) -> None:
    for seed in range(first, first + CHUNK):
        require_agreement(generate_chain(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", (300015, 300152))
def test_a_few_chains_of_products(seed: int) -> None:
    require_agreement(generate_chain(seed), ("scheduled", "cpu"))


@pytest.mark.slow
def test_weights_in_formats() -> None:
    for seed in range(6):
        require_agreement(generate_stored(seed), ("fused", "cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 100, CHUNK))
def test_derivatives(first: int) -> None:
    for seed in range(first, first + CHUNK):
        program = generate_differentiable(seed)
        failure = check_derivatives(program, ("fused", "cpu"))
        assert failure is None, f"seed {seed}: {failure}\n{program.text}"


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 200, CHUNK))
def test_on_a_mesh(first: int) -> None:
    """With random layouts, and collectives done in random ways."""
    for seed in range(first, first + CHUNK):
        made = (generate, generate, generate_chain, generate_differentiable)[seed % 4]
        program = made(seed)
        name = gradient_of(program) if made is generate_differentiable else None
        failure = check_on_mesh(program, name=name)
        assert failure is None, f"seed {seed}: {failure}\n{program.text}"


@pytest.mark.parametrize("seed", range(1000, 1008, 2))
def test_a_few_derivatives(seed: int) -> None:
    program = generate_differentiable(seed)
    failure = check_derivatives(program, ("fused",))
    assert failure is None, f"seed {seed}: {failure}\n{program.text}"


ON_A_MESH = (104, 182, 430, 909, 1136)
"""Seeds that found mistakes: a size of 0, gathers in one message, lists of single elements, in parts that go in turn,
a layout between two slices."""


@pytest.mark.parametrize("seed", ON_A_MESH)
def test_a_few_on_a_mesh(seed: int) -> None:
    failure = check_on_mesh(generate(seed), ("text", "partitioned"))
    assert failure is None, failure


@pytest.mark.parametrize("seed", (*range(1000, 1005), *range(1006, 1009)))
def test_a_few_random_programs(seed: int) -> None:
    require_agreement(generate(seed))


KEPT = sorted((Path(__file__).parent / "fuzz" / "kept").glob("*.ita"))


@pytest.mark.parametrize("path", KEPT, ids=lambda p: p.stem)
def test_failures_found_before(path: Path) -> None:
    """Each file is a reduced program named after the seed whose arguments it runs on."""
    arguments = generate(int(path.stem.split("-")[0])).arguments
    text = path.read_text(encoding="utf-8")
    used = {name: np.asarray(a) for name, a in arguments.items() if f"{name}:" in text}
    failure = compare(text, used)
    assert failure is None, failure
