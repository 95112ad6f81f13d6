"""Random programs on the devices of a mesh, with random layouts: their results against those of one device."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from compare import FAILURES, OPTIONS, Failure, arranged, failed, mismatch
from generate import FuzzProgram
from layouts import MESHES, with_random_layouts

from intarsia.driver import Compilation
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import CompileError, Source
from intarsia.ir.graph import Module, Node
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.points import Operand
from intarsia.ir.sharding import Mesh
from intarsia.ir.spmd import Devices, simulate
from intarsia.ir.text import print_module, read_module
from intarsia.ir.tolerance import expected
from intarsia.mesh_program import MeshProgram
from intarsia.options import Options
from intarsia.passes.specialize import specialize

MESH_LEVELS = ("text", "partitioned", "plan", "cpu")
"""What is looked at: that every stage is read back from its text, and results of what a device runs."""

CANNOT_GO_IN_TURN = "E1912"


def check_on_mesh(
    program: FuzzProgram, levels: Sequence[str] = MESH_LEVELS, options: Options = OPTIONS, name: str | None = None
) -> Failure | None:
    """What goes wrong with a program on a mesh, laid out, and its collectives done, as its seed says; `name` is another
    function than the entry point."""
    choose = random.Random(program.seed)
    mesh = choose.choice(MESHES)
    level = "build"
    try:
        alone, inputs = arranged(program.text, program.arguments, options, name)
        plain = specialize(alone.source_module, alone.sizes)
        module = with_random_layouts(plain, mesh, program.seed)
        wanted = expected(plain, inputs)
        compilation = _compilation(module, options, mesh, choose)
        for level in levels:
            message = mismatch(wanted, _run(level, compilation, inputs))
            if message is not None:
                return Failure(level, f"{mesh.said}: {message}")
    except FAILURES as error:
        return failed(level, error)
    return None


def _compilation(module: Module, options: Options, mesh: Mesh, choose: random.Random) -> Compilation:
    """With random ways to do collectives, and when; without an axis in turn where the layouts do not allow it."""
    cluster = choose.choice(("laptop", "nvlink-node", "multi-node"))
    known = ("scatter-rows{%s}", "gather-ahead", "combine-collectives{%s}", "overlap{%s}")
    passes = [p.replace("%s", f"cluster={cluster}") for p in known if choose.random() < 0.4]
    if choose.random() < 0.4:
        passes.insert(0, f"deep-halos{{steps={choose.randint(1, 5)}}}")
    axis = choose.choice(mesh.axes)[0]
    collectives = choose.choice(("gather", "gather", "ring", "auto"))
    found = replace(options, devices="simulate", collectives=collectives, checks=choose.random() < 0.1)
    if choose.random() < 0.3:
        in_turn = Compilation(module, {}, replace(found, device_passes=",".join([f"in-turn{{axis={axis}}}", *passes])))
        try:
            if in_turn.partitioned:
                return in_turn
        except CompileError as error:
            if error.code != CANNOT_GO_IN_TURN:
                raise
    return Compilation(module, {}, replace(found, device_passes=",".join(passes) or None))


def _run(level: str, compilation: Compilation, inputs: list[Operand]) -> Sequence[Array]:
    """The results of one level, of all devices together."""
    match level:
        case "text":
            for stage in (compilation.source_module, compilation.sharded, compilation.partitioned, compilation.fused):
                text = print_module(stage)
                assert print_module(read_module(Source("stage", text))) == text
            return ()
        case "partitioned":
            return simulate(compilation.partitioned, inputs)
    plan = compilation.plan
    program = MeshProgram.of(compilation.executable(), compilation.scheduled, plan)
    arguments = [tuple(i) if isinstance(i, list) else i for i in inputs]
    if level == "cpu":
        return program.simulate(arguments)

    def run(device: int, meet: Callable[[Node, Array], Array]) -> tuple[Array, ...]:
        parts = [list(a) if isinstance(a, tuple) else a for a in program.parts(arguments, device)]
        return run_plan(plan, parts, exchange=meet)

    return program.whole(Devices(program.placement.mesh).run(run))
