"""Shardings that the search proposes: the known best ones of Alpa's programs, and of layers in loops."""

from __future__ import annotations

from pathlib import Path

import pytest
from sharded import on_mesh, run_passes
from test_sharding import built, bytes_of, collectives

from intarsia.ir.cluster import FOLDER, Cluster, Level
from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Module
from intarsia.ir.ops import Collective
from intarsia.ir.sharding import Mesh, MeshAxis
from intarsia.passes.shard.report import sent_by
from intarsia.passes.shard.search import search
from intarsia.passes.shard.search.proposal import propose

SENDING = Cluster("sending", (Level(1 << 20, 1e-6, 1e10),), 1e11, 1e30, 1e12)
"""Element-wise ops take no time, as in Alpa's model: what counts is what is sent."""


def mlp(layers: int) -> str:
    """Steps of training, in a loop: weights lie after a step as before it."""
    names = [f"w{n}" for n in range(layers)]
    weights = ", ".join(f"{n}: f32[H, H]" for n in names)
    all_of = {prefix: ", ".join(f"{prefix}{n}" for n in names) for prefix in "sd"}
    chain = "x @ w0"
    for name in names[1:]:
        chain = f"maximum({chain}, 0.0) @ {name}"
    return f"""fn loss(x: f32[B, H], y: f32[B, H], {weights}) -> f32 {{
    e = {chain} - y
    return sum(e * e)
}}
fn train(x: f32[B, H], y: f32[B, H], {weights}) -> ({", ".join(["f32[H, H]"] * layers)}) {{
    return loop ({", ".join(f"s{n} = {n}" for n in names)}) for t in 0..8 {{
        {all_of["d"]} = grad(loss, wrt=({", ".join(names)}))(x, y, {all_of["s"]})
        yield {", ".join(f"s{n} - 0.1 * d{n}" for n in names)}
    }}
}}"""


def proposed(text: str, mesh: str, cluster: Cluster = SENDING, **dims: int) -> tuple[Module, list[Collective]]:
    """The annotated program, and all that it sends: for no longer than the search says."""
    module, context = run_passes(on_mesh(built(text, **dims), Mesh.parse(mesh)), "canonicalize,cse,dce")
    found = search(module, Mesh.parse(mesh), cluster)
    laid = propose(module, cluster, found, context).module
    local, _ = run_passes(laid, "propagate-sharding,reshard,partition")
    assert sum(s.seconds for s in sent_by(local, cluster)) <= found.sending + 1e-9
    return laid, collectives(local)


def test_many_rows_are_data_parallel() -> None:
    laid, sent = proposed(mlp(2), "d=4", B=1024, H=128)
    assert [str(p.type) for p in laid.graph.parameters][:2] == ["f32[1024@d, 128]"] * 2
    assert [(n.name, bytes_of(n)) for n in sent] == [("all_reduce", 128 * 128 * 4)] * 2


def test_wide_layers_are_split_as_megatron_does() -> None:
    laid, sent = proposed(mlp(2), "d=4", B=128, H=1024)
    assert [str(p.type) for p in laid.graph.parameters][2:] == ["f32[1024, 1024@d]", "f32[1024@d, 1024]"]
    assert [(n.name, bytes_of(n)) for n in sent] == [("all_reduce", 128 * 1024 * 4)]


@pytest.mark.slow
def test_twelve_layers_take_an_all_reduce_each() -> None:
    _, sent = proposed(mlp(12), "d=4", B=1024, H=128)
    assert [(n.name, bytes_of(n)) for n in sent] == [("all_reduce", 128 * 128 * 4)] * 12


@pytest.mark.slow
def test_six_wide_layers_send_as_much_as_five_all_reduces() -> None:
    _, sent = proposed(mlp(6), "d=4", B=128, H=1024)
    ring = {"all_gather": 3.0, "reduce_scatter": 3 / 4, "all_reduce": 2 * 3 / 4}  # of what a device puts in, it sends
    assert sum(bytes_of(n) * ring[n.name] for n in sent) == 5 * 2 * 3 / 4 * (128 * 1024 * 4)


@pytest.mark.parametrize(("batch", "permutes"), [(4, 0), (1, 4)])
def test_what_neighbours_send_is_counted(batch: int, permutes: int) -> None:
    # images are split if there are enough; else rows or columns, of which each convolution takes two halos
    text = """fn f(x: f32[B, C, H, W], w: f32[C, C, 3, 3]) -> f32[B, C, H, W] {
    return conv2d(relu(conv2d(x, w, padding=1)), w, padding=1)
}"""
    _, sent = proposed(text, "d=4", Cluster.read("laptop"), B=batch, C=16, H=64, W=64)
    assert [n.name for n in sent] == ["collective_permute"] * permutes


def test_what_the_program_says_stays() -> None:
    text = "fn f(x: f32[N, M@d], w: f32[M, K]) -> f32[N, K] { return x @ w }"
    laid, _ = proposed(text, "d=2", N=64, M=64, K=64)
    assert str(laid.graph.parameters[0].type) == "f32[64, 64@d]"


def test_every_cluster_reads_and_near_devices_are_faster() -> None:
    for path in FOLDER.glob("*.json"):
        assert Cluster.read(path.stem).name == path.stem
    mesh = Mesh.parse("data=4,model=8")
    nodes = Cluster.read("multi-node")
    near, far = (nodes.seconds(mesh, "all_reduce", (MeshAxis(name),), 1e6) for name in ("model", "data"))
    assert near < far
    link = nodes.levels[0]
    assert near == pytest.approx(link.alpha + 2 * 7 / 8 * 1e6 / link.bytes_per_second)


def test_a_file_that_describes_no_cluster(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"name": "mine"}')
    with pytest.raises(CompileError, match="describes no cluster"):
        Cluster.read(str(path))


def test_the_condition_of_a_loop_is_searched_too() -> None:
    text = "fn f(x: f32[N, N]) -> f32[N, N] { return loop (h = x) for t < 9 while max(h) < 9.0 { yield h @ x } }"
    mesh = Mesh.parse("d=2")
    module, _ = run_passes(on_mesh(built(text, N=64), mesh), "canonicalize,cse,dce")
    found = search(module, mesh, SENDING)
    assert len(found.values) == sum(len(node.values) for node in module.graph.body.walk())
