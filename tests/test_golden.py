"""Golden files of passes: `tests/golden/<pass>/<case>.ir` holds a command line, modules, and what must come out.

The first line is the command, `# intarsia opt %s --passes …`. Several modules are separated by `# -----`. Every pass is
verified while it runs, and input and output are evaluated on random data, so that `--update-golden` cannot bless a
wrong result.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

import pytest

from intarsia.ir.errors import CompileError, Source
from intarsia.ir.target import TARGETS
from intarsia.ir.text import print_module, read_module
from intarsia.passes.pipeline import Context, Pipeline
from intarsia.passes.verify import verification

FOLDER = Path(__file__).parent / "golden"
PREFIX = "# intarsia opt %s "
SEPARATOR = "# -----\n"


def command_line(text: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--passes", required=True)
    parser.add_argument("--target", default="cpu:x86-avx512")
    parser.add_argument("--remarks", action="store_true")
    return parser.parse_args(shlex.split(text.splitlines()[0].removeprefix(PREFIX)))


def is_case(path: Path) -> bool:
    return path.read_text("utf-8").startswith(PREFIX)


@pytest.mark.parametrize(
    "path", sorted(filter(is_case, FOLDER.glob("*/*.ir"))), ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_golden(path: Path, golden: Any) -> None:
    text = golden.input(path)
    options = command_line(text)
    outputs = [optimize(path.name, part, options) for part in text.split(SEPARATOR)]
    golden.check(path, SEPARATOR.join(outputs))


def optimize(name: str, text: str, options: argparse.Namespace) -> str:
    """What `opt` prints for one module; the diagnostic where it is refused."""
    context = Context(TARGETS[options.target])
    try:
        module = read_module(Source(name, text))
        result = Pipeline.parse(options.passes).run(module, context, verification("exec"))
    except CompileError as error:
        return "\n".join(f"# {line}".rstrip() for line in str(error).splitlines()) + "\n"
    printed = print_module(result).removeprefix("intarsia.ir 1\n\n")
    if not options.remarks:
        return printed
    remarks = [f"# {'' if r.done else 'not '}done, {r.about}: {r.message}" for r in context.remarks.items]
    return "\n".join([printed.rstrip("\n"), *remarks, ""])
