"""Random programs with random shardings on processes: `process_programs.py KIND FOLDER SEED…`, where each process runs
what `write` has compiled and compares with what one device gives."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from sharded import MESHES, annotated, check_results, compiled

from intarsia.ir.graph import Module
from intarsia.ir.random_graphs import random_inputs, random_module, random_sizes
from intarsia.mesh_program import DeviceProgram, MeshProgram
from intarsia.passes.specialize import specialize
from intarsia.processes import digest_of, processes, world


def modules(seed: int, count: int) -> tuple[Module, Module]:
    """A random program for a mesh of so many devices, and the same without shardings."""
    plain = specialize(random_module(seed), random_sizes(seed))
    meshes = [m for m in MESHES if m.devices == count]
    return annotated(plain, meshes[seed % len(meshes)], seed), plain


def write(folder: Path, seeds: Iterable[int], count: int) -> None:
    """Compile programs, once for all processes."""
    for seed in seeds:
        program, _ = compiled(modules(seed, count)[0])
        (folder / f"{seed}").write_bytes(program.to_bytes())


def check(folder: Path, seed: int, kind: str) -> None:
    """Run a program on all processes; one of them looks at the results."""
    every = world(kind)
    module, plain = modules(seed, every.size)
    program = MeshProgram.from_bytes((folder / f"{seed}").read_bytes())
    devices = processes(kind, program.placement.mesh)
    inputs = random_inputs(plain, seed, {})
    arguments = [tuple(i) if isinstance(i, list) else i for i in inputs]
    code, laid = DeviceProgram(program, devices.bind), program.laid(arguments, devices.device)
    digest = digest_of("", str(seed), "", program.text)
    results = devices.run(program, digest, lambda: list(map(devices.whole, code(laid), program.results)))
    if seed % every.size == every.rank:
        check_results(module, inputs, results, plain)


def main() -> None:
    kind, folder, *seeds = sys.argv[1:]
    for seed in map(int, seeds):
        check(Path(folder), seed, kind)
    if world(kind).rank == 0:
        print(f"{len(seeds)} programs are right")


if __name__ == "__main__":
    world(sys.argv[1]).or_end_all(main)
