"""Programs on the devices of a mesh, compiled: what all devices give together is what one gives."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from process_bytes import PROGRAMS, by_formulas, function_of
from sharded import MESHES, annotated, check_compiled

import intarsia
from intarsia.collectives import Transfer
from intarsia.ir.cluster import FOLDER
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Module
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.random_graphs import random_inputs, random_module, random_sizes
from intarsia.ir.sharding import Mesh, ring_elements
from intarsia.ir.spmd import Devices
from intarsia.mesh_program import DeviceProgram, MeshProgram
from intarsia.passes.specialize import specialize

MEGATRON = """mesh pod(data=2, model=2)

fn mlp(x: f32[B@data, D], w1: f32[D, F@model], w2: f32[F@model, D]) -> f32[B@data, D] {
    return gelu(x @ w1) @ w2
}
"""
LOOP = """mesh pod(data=2)

fn f(x: f32[N@data, N], w: f32[N@data, N], steps: i64[]) -> f32[N@data, N] {
    return loop (h = x) for i < steps { yield 0.5 * (w @ h) }
}
"""
FILES = {"mlp.ita": MEGATRON}
SIMULATED = intarsia.Options(devices="simulate")


def sharded(seed: int) -> tuple[Module, Module, Mesh]:
    """A random program, and the same with shardings."""
    module = specialize(random_module(seed), random_sizes(seed))
    mesh = random.Random(seed).choice(MESHES)
    return annotated(module, mesh, seed), module, mesh


@pytest.mark.parametrize("seed", [3, 4])
def test_random_programs(seed: int) -> None:
    module, plain, _ = sharded(seed)
    program = check_compiled(module, random_inputs(plain, seed, {}), plain)
    assert MeshProgram.from_bytes(program.to_bytes()).text == program.text


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(300))
def test_many_random_programs(seed: int) -> None:
    module, plain, _ = sharded(seed)
    check_compiled(module, random_inputs(plain, seed, {}), plain)


def data(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_python_and_command_line(ita: Run) -> None:
    """Where the devices do not divide the sizes, too."""
    x, w1, w2 = data(5, 6), data(6, 7), data(7, 6)
    alone = intarsia.compile(MEGATRON, intarsia.Options(devices="one")).mlp(x, w1, w2)
    for mesh in ("data=3,model=2", "data=1,model=2"):
        together = intarsia.compile(MEGATRON, intarsia.Options(devices="simulate", mesh=mesh)).mlp(x, w1, w2)
        np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)
    sizes = ("--dim", "B=4", "--dim", "D=4", "--dim", "F=4")
    status, _, report = ita("run", "mlp.ita", "--random", *sizes, "--compare")
    assert status == 0 and "equal to the reference" in report
    assert "all_reduce %9 axes=(model,)" in ita("emit", "mlp.ita", *sizes, "--to", "partitioned")[1]
    twice = ita("emit", "mlp.ita", *sizes, "--to", "partitioned", "--device-passes", "partition")
    assert twice[:2] == ita("emit", "mlp.ita", *sizes, "--to", "partitioned")[:2]  # it is one device's already
    assert "%10 = shard %9 : f32[4@data, 4]" in ita("emit", "mlp.ita", *sizes, "--to", "sharded")[1]
    plan = ita("emit", "mlp.ita", *sizes, "--to", "plan")[1]
    assert "exchange all_reduce axes=(model,) devices=2 : f32[2, 4] matmul -> result" in plan
    table = ita("explain", "mlp.ita", *sizes, "--about", "sharding", "--mesh", "data=4,model=2")[1]
    assert re.search(r"all_reduce +model +16 B +1 .* mlp.ita:4\n", table)


def test_collectives_in_a_loop() -> None:
    """The plan in its workspace, and the code, do what the program says."""
    x, w = data(4, 4), data(4, 4)
    function = intarsia.compile(LOOP, SIMULATED).f
    wanted = x
    for _ in range(3):
        wanted = 0.5 * (w @ wanted)
    np.testing.assert_allclose(function(x, w, 3), wanted, rtol=1e-4)
    compilation = function.lower(x, w, 3).compilation
    assert "exchange all_gather" in compilation.text("plan")
    program = MeshProgram.of(compilation.executable(), compilation.scheduled, compilation.plan)
    arguments = x, w, np.array(3)
    found = Devices(program.placement.mesh).run(
        lambda device, meet: run_plan(compilation.plan, program.parts(arguments, device), exchange=meet)
    )
    np.testing.assert_allclose(program.whole(found)[0], wanted, rtol=1e-4)


def test_rows_from_neighbours_stand_apart(ita: Run) -> None:
    """In the middle of its part a device reads its own rows, and chooses nothing."""
    path = str(Path(__file__).parent.parent / "examples" / "sharded" / "heat.ita")
    text = ita("emit", path, "--dim", "N=64", "--dim", "M=64", "--mesh", "rows=2", "--to", "scheduled")[1]
    middle = re.search(r"i\.0 in 1\.\.31 \{(.*?)\n  \}", text, re.DOTALL)
    assert middle is not None and "x[" not in middle[1] and "x.1[" not in middle[1]


def test_a_device_that_fails_ends_all() -> None:
    """One of them fails a check while the others wait for it."""
    text = """mesh pod(data=2)
fn f(x: f32[N@data], i: i64[N@data]) -> f32[] { return sum(tensor[n < N](x[n] / f32(7 // i[n]))) }
"""
    function = intarsia.compile(text, intarsia.Options(devices="simulate", checks=True)).f
    with pytest.raises(CompileError, match=r"device 1: .*zero"):
        function(data(4), np.array([1, 1, 1, 0]))


def test_an_exchange_that_fails_ends_a_device() -> None:
    x, w = data(4, 4), data(4, 4)
    function = intarsia.compile(LOOP, SIMULATED).f
    assert function.mesh is not None
    program = function.mesh.program({"x": x, "w": w, "steps": np.array(2)}, {}, {})

    def bind(*given: object) -> Transfer:
        def fail() -> None:
            raise OSError("no one answers")

        return Transfer.at_once(fail)

    with pytest.raises(OSError, match="no one answers"):
        DeviceProgram(program, bind)(program.laid((x, w, np.array(2)), 0))


def test_a_cluster_decides_between_ways_of_sending(ita: Run, tmp_path: Path) -> None:
    """Also one in a file, which may change."""
    text = "mesh pod(d=4)\nfn f(x: f32[B@d, D], w: f32[D, F@d]) -> f32[B, F@d] { return x @ w }"

    words = ("--dim", "B=128", "--dim", "D=128", "--dim", "F=128", "--to", "partitioned", "--collectives", "auto")

    def is_ring(cluster: str) -> bool:
        status, out, _ = ita("emit", "-e", text, *words, "--cluster", cluster)
        assert status == 0
        return "collective_permute" in out

    file = tmp_path / "mine.json"
    for name, wanted in (("laptop", True), ("nvlink-node", False)):
        file.write_text((FOLDER / f"{name}.json").read_text())
        assert is_ring(name) is is_ring(str(file)) is wanted
    assert "E1905" in ita("emit", "-e", text, *words, "--cluster", "lap")[2]


def test_what_devices_cannot_do(ita: Run) -> None:
    double = "fn f(x: f32[N]) -> f32[N] { return 2.0 * x }"
    with pytest.raises(CompileError, match="E1901"):
        intarsia.compile(double, SIMULATED).f(data(4))
    with pytest.raises(CompileError, match="E1901"):
        intarsia.compile(double, intarsia.Options(devices="simulate", mesh="data")).f(data(4))
    for words in (("--to", "so", "-o", "x.so"), ("--to", "plan", "--target", "gpu:sm_90", "--devices", "simulate")):
        status, _, report = ita("emit", "-e", double, "--dim", "N=4", "--mesh", "a=2", *words)
        assert status == 1 and "E1906" in report
    assert ita("emit", "-e", double, "--dim", "N=4", "--to", "sharded")[0] == 1
    for asked in ("--preset=data", "--device-passes=overlap", "--sharding=strict", "--collectives=ring"):
        status, _, report = ita("explain", "-e", double, "--dim", "N=4", "--about", "sharding", asked)
        assert status == 1 and "E1901" in report  # which one device would ignore
    for verb in ("shard", "explain"):
        about = ("--about", "memory") if verb == "explain" else ()
        status, _, report = ita(verb, "-e", double, "--dim", "N=4", "--mesh", "a=2", "--donate", "x,y", *about)
        assert status == 1 and "E0610" in report and "'y'" in report
    for options in (intarsia.Options(devices="simulate", mesh="data=2"), intarsia.Options()):
        with pytest.raises(CompileError, match="E1911"):
            intarsia.compile(double, options).f.local(data(4))
    with pytest.raises(CompileError, match="E1911"):  # whose would it be, of those that are all here?
        intarsia.compile(double, intarsia.Options(mesh="a=2")).f(intarsia.Part(data(4), "f32[8@a]"))


@pytest.mark.slow
def test_time_and_profile(ita: Run) -> None:
    sizes = ("--dim", "B=4", "--dim", "D=4", "--dim", "F=4")
    status, _, report = ita("run", "mlp.ita", "--random", *sizes, "--time", "--profile")
    assert status == 0 and "runs on 4 devices" in report
    assert "  all_reduce over model  mlp.ita:4" in report and "  mlp_matmul" in report


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_bytes_of_simulated_devices(name: str) -> None:
    """What each sends is what the formulas say."""
    function, arrays = function_of(name, "simulate")
    assert function.mesh is not None
    program = function.mesh.program(arrays, {}, {})
    devices = Devices(program.placement.mesh)
    arguments = [arrays[layout.label] for layout in program.inputs]
    program.run_all([program.laid(arguments, n) for n in range(devices.mesh.devices)], devices)
    sent = sum(ring_elements(node.name, size, node.devices) for node, size in devices.log)
    assert sent == by_formulas(function, arrays) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, sizes",
    [
        ("megatron", "B=4 S=8 D=16 H=4 K=4 F=32"),
        ("heat", "N=16 M=8"),
        ("sequence", "H=2 S=8 K=4"),
    ],
)
def test_examples(name: str, sizes: str, ita: Run) -> None:
    words = [w for size in sizes.split() for w in ("--dim", size)]
    steps = ("--arg", "steps=3") if name == "heat" else ()
    path = Path(__file__).parent.parent / "examples" / "sharded" / f"{name}.ita"
    status, _, report = ita("run", str(path), "--random", *words, *steps, "--compare")
    assert status == 0 and "equal to the reference" in report
