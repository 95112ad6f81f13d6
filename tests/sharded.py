"""Programs with shardings at random, and their results on simulated devices against those of one device."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from intarsia.driver import Compilation
from intarsia.ir.dtypes import Array
from intarsia.ir.graph import Module, Node, Region, Value
from intarsia.ir.interpreter import evaluate
from intarsia.ir.ops import Shard
from intarsia.ir.plan import Plan
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.plan_liveness import verify_plan
from intarsia.ir.points import Operand
from intarsia.ir.sharding import Axes, DimensionSharding, Mesh, MeshAxis, Sharding
from intarsia.ir.spmd import Devices, simulate
from intarsia.ir.tolerance import expected
from intarsia.ir.types import ListType
from intarsia.mesh_program import MeshProgram
from intarsia.options import Options
from intarsia.passes.pipeline import Context, Pipeline
from intarsia.passes.shard.meshes import with_parameters_laid

SHARD = "propagate-sharding,split-scans,reshard,partition"

MESHES = tuple(map(Mesh.parse, ("a=2", "a=3", "a=4", "a=2,b=2")))


def run_passes(module: Module, passes: str) -> tuple[Module, Context]:
    context = Context(Options().resolve_target())
    return Pipeline.parse(passes).run(module, context), context


def on_mesh(module: Module, mesh: Mesh) -> Module:
    return replace(module, header=(str(mesh),))


def sharded_like(value: Value, axes: tuple[Axes, ...]) -> Sharding:
    assert len(axes) == len(_shape(value))
    return Sharding(tuple(DimensionSharding(a, not a) for a in axes))


def _shape(value: Value) -> tuple[object, ...]:
    return value.type.tensor.shape


def with_parameters(module: Module, shardings: Mapping[int, Sharding]) -> Module:
    """The module with shardings on some parameters, by position."""
    body = module.graph.body
    laid = [shardings.get(n, p.type.sharding) for n, p in enumerate(body.parameters)]
    return module.with_body(with_parameters_laid(body, laid))


def random_sharding(value: Value, mesh: Mesh, choose: random.Random) -> Sharding:
    """Each axis of the mesh on one of the dimensions, or on none."""
    rank = len(_shape(value))
    axes: list[list[MeshAxis]] = [[] for _ in range(rank)]
    names = [n for n, _ in mesh.axes]
    choose.shuffle(names)
    for name in names:
        if rank and choose.random() < 0.7:
            axes[choose.randrange(rank)].append(MeshAxis(name))
    return Sharding(tuple(DimensionSharding(tuple(a), choose.random() < 0.3) for a in axes))


def annotated(module: Module, mesh: Mesh, seed: int) -> Module:
    """The module with random shardings on parameters and results."""
    choose = random.Random(seed)
    body = module.graph.body
    some = {n: random_sharding(p.value, mesh, choose) for n, p in enumerate(body.parameters) if choose.random() < 0.6}
    module = with_parameters(on_mesh(module, mesh), some)
    body = module.graph.body
    nodes, results = list(body.nodes), list(body.results)
    for n, value in enumerate(results):
        if choose.random() < 0.4 and not isinstance(value.type, ListType):
            node = Shard(value, shardings=(random_sharding(value, mesh, choose),))
            nodes.append(node)
            results[n] = node.value
    return module.with_body(Region(body.parameters, tuple(nodes), tuple(results)))


def compiled(
    module: Module,
    collectives: Literal["gather", "ring", "auto"] = "gather",
    device_passes: str | None = None,
    checks: bool = False,
) -> tuple[MeshProgram, Plan]:
    """The code for the devices of a mesh, and its plan."""
    options = Options(devices="simulate", collectives=collectives, device_passes=device_passes, checks=checks)
    compilation = Compilation(module, {}, options)
    plan = compilation.plan
    verify_plan(plan)
    return MeshProgram.of(compilation.executable(), compilation.scheduled, plan), plan


def check_compiled(
    module: Module, inputs: list[Operand], plain: Module | None = None, device_passes: str | None = None
) -> MeshProgram:
    """Compile, run on simulated devices and compare with one device; the code."""
    program, _ = compiled(module, device_passes=device_passes)
    arguments = [tuple(i) if isinstance(i, list) else i for i in inputs]
    check_results(module, inputs, program.simulate(arguments), plain)
    return program


def check_plan(
    module: Module, inputs: list[Operand], plain: Module | None = None, device_passes: str | None = None
) -> Plan:
    """The same by the plan interpreter, which holds back what is started until it is done; the plan."""
    program, plan = compiled(module, device_passes=device_passes)
    arguments = [tuple(i) if isinstance(i, list) else i for i in inputs]

    def run(device: int, meet: Callable[[Node, Array], Array]) -> tuple[Array, ...]:
        parts = [list(a) if isinstance(a, tuple) else a for a in program.parts(arguments, device)]
        return run_plan(plan, parts, exchange=meet)

    check_results(module, inputs, program.whole(Devices(program.placement.mesh).run(run)), plain)
    return plan


def check_results(module: Module, inputs: list[Operand], results: Sequence[Array], plain: Module | None = None) -> None:
    """Compare with what one device gives: the same, or as near to the reference in f64 as a correct result is."""
    alone = evaluate(module, inputs)
    assert len(results) == len(alone)
    others = [n for n, one in enumerate(alone) if not np.array_equal(results[n], one, equal_nan=one.dtype.kind == "f")]
    if others:
        wanted = expected(plain or module, inputs)
        for number in others:
            difference = wanted[number].mismatch(results[number])
            assert difference is None, f"result {number}: {difference}"


def check_sharded(module: Module, inputs: list[Operand], plain: Module | None = None) -> Module:
    """Partition, run on simulated devices and compare with one device; the program of a device."""
    local, _ = run_passes(module, SHARD)
    check_results(module, inputs, simulate(local, inputs), plain)
    return local
