"""The commands of the pages about sharding, collectives and pipelines work when they are pasted, and print what these
say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest
from test_pages import matches

ROOT = Path(__file__).parent.parent
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text("utf-8") for name in ("sharding", "collectives", "pipelines")}
FILES = {"mlp.ita": "fn megatron_mlp", "train.ita": "fn train("}
"""What marks the program of a page that a reader puts into the file."""


def commands(page: str) -> list[tuple[str, str]]:
    """Each command, perhaps of several lines, with what it prints."""
    blocks = re.findall(r"```text\n(\$ .*?)```", page, re.DOTALL)
    parts = (part for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:])
    found = (re.fullmatch(r"((?:[^\n]*\\\n)*[^\n]*)\n(.*)", part, re.DOTALL) for part in parts)
    return [(f[1], f[2].rstrip()) for f in found if f is not None]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the pages are for a shell of POSIX")
@pytest.mark.parametrize("name", PAGES)
def test_commands_of_the_page(name: str, tmp_path: Path) -> None:
    found = commands(PAGES[name])
    if any("--devices mpi" in command for command, _ in found):
        pytest.importorskip("mpi4py")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for file, mark in FILES.items():
        programs = re.findall(r"```ita\n(.*?)```", PAGES["sharding"], re.DOTALL)
        (tmp_path / file).write_text(next(text for text in programs if mark in text))
    environment = {**os.environ, "INTARSIA_CACHE_DIR": str(tmp_path / "cache"), "MPLBACKEND": "Agg"}
    assert found
    for command, wanted in found:
        script = f'intarsia() {{ {sys.executable} -m intarsia "$@"; }}\n{command}'
        run = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, f"{command}\n{run.stderr}"
        lines, expected = (run.stderr + run.stdout).strip().splitlines(), wanted.splitlines()
        if not wanted or "--profile" in command:  # which is measured
            continue
        if "…" in (stripped := [line.strip() for line in expected]):  # a line that stands for several
            place = stripped.index("…")
            lines[place : len(lines) - len(expected) + place + 1] = ["…"]
        for line, other in zip_longest(lines, stripped, fillvalue=""):
            assert matches(line, other), f"{command}\n{line!r} is not {other!r}"
