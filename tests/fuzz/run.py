"""A long run of the fuzzer: `python tests/fuzz/run.py FIRST COUNT [--chains] [--stored] [--gradients] [--dynamic] …`.

Seeds FIRST to FIRST + COUNT; progress and failures grouped by kind; for each new kind a reduced program is kept in DIR
(default tests/fuzz/found), named by its seed. A run is resumed by its range of seeds. With `--dynamic` some of the
dimensions of each program stay open. With `--chains` the programs are products, reductions and products again, at
larger sizes; with `--stored` weights are in formats. With `--gradients` the derivatives of programs are checked against
finite differences, and compiled in place of the programs; `--segments 2` lets their loops keep every second state.
With `--mesh` programs, or derivatives, run on the devices of a random mesh, with random layouts of their values.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

from chains import generate_chain
from compare import LEVELS, Failure, compare
from differentiable import check_derivatives, generate_differentiable, gradient_of
from generate import FuzzProgram, generate
from meshes import MESH_LEVELS, check_on_mesh
from stored import generate_stored

from intarsia.deep_stack import with_deep_stack
from intarsia.ir.errors import Source
from intarsia.options import Options
from intarsia.passes.pipeline import DEFAULT
from intarsia.reduction import reduce_program


def options_for(program: FuzzProgram, target: str, dynamic: bool, segments: int = 0) -> Options:
    """How a program is compiled: dimensions that stay open are chosen by its seed; loops keep states for segments."""
    names = sorted(name for name in program.sizes if not name.isdigit())
    chosen = random.Random(program.seed).sample(names, random.Random(program.seed).randint(0, len(names)))
    passes = DEFAULT.replace("checkpoint", f"checkpoint{{every={segments}}}") if segments else None
    return Options(target=target, dynamic=tuple(chosen) if dynamic else (), passes=passes)


Check = Callable[[FuzzProgram, Sequence[str], Options], "Failure | None"]


def check_results(program: FuzzProgram, levels: Sequence[str], options: Options) -> Failure | None:
    return compare(program.text, program.arguments, levels, options)


def check_derivatives_on_mesh(program: FuzzProgram, levels: Sequence[str], options: Options) -> Failure | None:
    return check_on_mesh(program, levels, options, gradient_of(program))


def reduced(program: FuzzProgram, check: Check, failure: Failure, levels: Sequence[str], options: Options) -> str:
    """The smallest program that fails at the same level; the program itself if it could not be built."""
    if failure.level == "build":
        return program.text

    def fails(source: Source) -> bool:
        found = check(replace(program, text=source.text), levels, options)
        return found is not None and found.level == failure.level

    return reduce_program(Source("fuzz.ita", program.text), fails).text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--keep", type=Path, default=Path(__file__).parent / "found")
    parser.add_argument("--levels", help=",".join(LEVELS))
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--dynamic", action="store_true", help="keep some of the dimensions open")
    parser.add_argument("--chains", action="store_true", help="chains of products and reductions")
    parser.add_argument("--stored", action="store_true", help="weights that are stored in formats")
    parser.add_argument("--gradients", action="store_true", help="derivatives of programs")
    parser.add_argument("--segments", type=int, default=0, help="keep a state of loops for so many steps (checkpoint)")
    parser.add_argument("--mesh", action="store_true", help="on several devices, with random layouts")
    options = parser.parse_args()
    levels = options.levels.split(",") if options.levels else MESH_LEVELS if options.mesh else LEVELS
    made = generate_chain if options.chains else generate_stored if options.stored else generate
    check = check_results
    if options.gradients:
        made, check = generate_differentiable, check_derivatives
    if options.mesh:
        check = check_derivatives_on_mesh if options.gradients else check_on_mesh
    kinds: dict[str, list[int]] = {}
    start = time.perf_counter()
    for number, seed in enumerate(range(options.first, options.first + options.count)):
        program = made(seed)
        compiled = options_for(program, options.target, options.dynamic, options.segments)
        failure = check(program, levels, compiled)
        if failure is not None:
            if failure.kind not in kinds:
                print(f"\nseed {seed}: {failure.level}: {failure.message}\n", flush=True)
                options.keep.mkdir(exist_ok=True, parents=True)
                text = reduced(program, check, failure, levels, compiled)
                (options.keep / f"{seed}.ita").write_text(f"# {failure.kind}\n{text}", encoding="utf-8")
            kinds.setdefault(failure.kind, []).append(seed)
        if number % 100 == 99:
            rate = (number + 1) / (time.perf_counter() - start)
            print(f"{number + 1} programs, {rate:.1f} a second, {sum(map(len, kinds.values()))} failures", flush=True)
    for kind, seeds in sorted(kinds.items(), key=lambda item: -len(item[1])):
        print(f"{len(seeds):5}  {kind}  seeds {seeds[:5]}")
    print(f"{options.count} programs from seed {options.first}: {sum(map(len, kinds.values()))} failures")
    return 1 if kinds else 0


if __name__ == "__main__":
    raise SystemExit(with_deep_stack(main))
