"""Random programs of the language mean the same at every level: 400 of them, and every failure found before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from chains import generate_chain
from compare import compare
from generate import generate

CHUNK = 20


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 300, CHUNK))
def test_random_programs(first: int) -> None:
    for seed in range(first, first + CHUNK):
        program = generate(seed)
        failure = compare(program.text, program.arguments)
        assert failure is None, f"seed {seed}: {failure}\n{program.text}"


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 100, CHUNK))
def test_chains_of_products(first: int) -> None:
    for seed in range(first, first + CHUNK):
        program = generate_chain(seed)
        failure = compare(program.text, program.arguments)
        assert failure is None, f"seed {seed}: {failure}\n{program.text}"


@pytest.mark.parametrize("seed", (300015, 300152))
def test_a_few_chains_of_products(seed: int) -> None:
    program = generate_chain(seed)
    failure = compare(program.text, program.arguments, ("scheduled", "cpu"))
    assert failure is None, f"{failure}\n{program.text}"


@pytest.mark.parametrize("seed", range(1000, 1012))
def test_a_few_random_programs(seed: int) -> None:
    program = generate(seed)
    failure = compare(program.text, program.arguments)
    assert failure is None, f"{failure}\n{program.text}"


KEPT = sorted((Path(__file__).parent / "fuzz" / "kept").glob("*.ita"))


@pytest.mark.parametrize("path", KEPT, ids=lambda p: p.stem)
def test_failures_found_before(path: Path) -> None:
    """Each file is a reduced program named after the seed whose arguments it runs on."""
    arguments = generate(int(path.stem.split("-")[0])).arguments
    text = path.read_text(encoding="utf-8")
    used = {name: np.asarray(a) for name, a in arguments.items() if f"{name}:" in text}
    failure = compare(text, used)
    assert failure is None, failure
