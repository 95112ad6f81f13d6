"""The programs of the tutorial check, run, and agree with the reference."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from intarsia.cli import main

TEXT = (Path(__file__).parent.parent / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
FUNCTION = re.compile(r"^fn (\w+)", re.MULTILINE)
SIZES = {"N": 6, "D": 4, "M": 5, "K": 3, "T": 7, "V": 9, "R": 4, "E": 8, "B": 2, "F": 8, "L": 2}


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_program(number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.ita"
    path.write_text(BLOCKS[number], encoding="utf-8")
    assert main(["check", str(path)]) == 0
    assert main(["fmt", "--check", str(path)]) == 0
    assert main(["test", str(path)]) == 0
    for name in FUNCTION.findall(BLOCKS[number]):
        head = BLOCKS[number].split(f"fn {name}", 1)[1].split("{", 1)[0]
        if ".." in head:
            continue  # a rank that only an argument decides; the test block of the program runs it
        used = {d for d in SIZES if re.search(rf"\b{d}\b", BLOCKS[number])}
        dims = [f"--dim={d}={SIZES[d]}" for d in sorted(used) if re.search(rf"\b{d}\b", head)]
        fixed = ["--arg", "steps=3"] if "steps" in head else []
        status = main(["run", f"{path}:{name}", "--random", "--compare", *dims, *fixed])
        assert status == 0, f"{name}: {capsys.readouterr().err}"


def test_every_example_is_there() -> None:
    assert len(BLOCKS) == 10
