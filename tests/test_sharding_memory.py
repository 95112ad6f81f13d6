"""What each device holds: equal to what the plan of its program takes, and a limit of the search."""

from __future__ import annotations

import pytest
from sharded import on_mesh, run_passes
from test_sharded_examples import FOLDER, SENT
from test_sharding import built
from test_sharding_search import SENDING, mlp

from intarsia.commands.shard import memory_text
from intarsia.driver import Compilation
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Module
from intarsia.ir.plan_liveness import plan_report
from intarsia.ir.sharding import Mesh
from intarsia.options import Options
from intarsia.passes.pipeline import default_pipeline
from intarsia.passes.shard.memory import DeviceMemory, device_memory
from intarsia.passes.shard.search import search
from intarsia.passes.shard.search.proposal import with_parameters


def held(module: Module) -> DeviceMemory:
    """What a device of a program with shardings holds."""
    local, _ = run_passes(module, "canonicalize,cse,dce,propagate-sharding,reshard,partition")
    return device_memory(run_passes(local, str(default_pipeline().before("lower")))[0])


@pytest.mark.parametrize("name", SENT)
def test_it_is_at_least_what_the_plan_takes(name: str) -> None:
    """And not much more: a kernel may write over what it reads, and the states of a loop count twice."""
    module = built((FOLDER / f"{name}.ita").read_text(), **SENT[name][1])
    compilation = Compilation(module, {}, Options(devices="simulate"))
    found, planned = device_memory(compilation.fused), plan_report(compilation.plan)
    assert int(planned.inputs) == found.parameters and int(planned.outputs) == found.results
    more = 1.0 if name in ("megatron", "experts") else 1.34
    assert planned.peak_live <= found.peak - found.parameters <= more * planned.peak_live


WHOLE = """fn f(x: f32[8@d, 4]) -> (f32[4], f32[1, 4], f32[8@d, 4], f32[8@d, 4]) {
    y = max(x, axis=0)
    return y, expand_dims(y, axis=0), x, loop (h = x) for t < 9 while any(h < 1.0) { yield h + 1.0 }
}"""


def test_results_that_show_one_value_are_copies() -> None:
    """And what the condition of a loop makes counts."""
    module = on_mesh(built(WHOLE), Mesh.parse("d=2"))
    compilation = Compilation(module, {}, Options(devices="simulate"))
    found, planned = device_memory(compilation.fused), plan_report(compilation.plan)
    assert int(planned.outputs) == found.results == 2 * 16 + 2 * 64
    assert planned.peak_live <= found.peak - found.parameters


def test_what_is_told_adds_up() -> None:
    """Of results it counts those that are made by then."""
    found = DeviceMemory(parameters=12, results=4, between=8, peak=20, span=None)
    assert memory_text(found) == "each device holds 20 B at most: parameters 12 B, results 0 B, others 8 B"


def test_results_may_take_the_memory_of_parameters() -> None:
    module = built((FOLDER / "zero3.ita").read_text(), **SENT["zero3"][1])
    fused = Compilation(module, {}, Options(devices="simulate")).fused
    assert device_memory(fused).results == 2 * 8 * 16 // 4 * 4 and device_memory(fused, ("up", "down")).results == 0


def test_a_limit_of_memory_changes_what_the_search_finds() -> None:
    """Wide layers on many rows: to copy the weights takes least time, and more memory than to split them."""
    mesh = Mesh.parse("d=4")
    module, _ = run_passes(on_mesh(built(mlp(2), B=1024, H=256), mesh), "canonicalize,cse,dce")
    free = search(module, mesh, SENDING)
    most = held(with_parameters(module, free)).peak
    found = search(module, mesh, SENDING, memory=0.8 * most)
    laid = with_parameters(module, found)
    assert [str(p.type) for p in with_parameters(module, free).graph.parameters][2:] == ["f32[256, 256]"] * 2
    assert found.seconds > free.seconds and held(laid).peak <= 0.8 * most
    with pytest.raises(CompileError, match="no way to split the program fits"):
        search(module, mesh, SENDING, memory=1000)
