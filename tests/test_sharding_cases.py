"""Situations of other compilers' tests of sharding, in programs of our own, with their names and outcomes."""

from __future__ import annotations

import pytest
from sharded import on_mesh, run_passes
from test_sharding import built, bytes_of, check, collectives
from test_sharding_search import SENDING, mlp, proposed

from intarsia.ir.cluster import Cluster, Level
from intarsia.ir.sharding import Mesh, MeshAxis


def types(text: str, mesh: str, **dims: int) -> dict[str, str]:
    """The types of parameters and of the result after propagation."""
    module, _ = run_passes(on_mesh(built(text, **dims), Mesh.parse(mesh)), "canonicalize,cse,dce,propagate-sharding")
    body = module.graph.body
    named = {p.label: str(p.type) for p in body.parameters}
    return named | {"result": str(body.results[0].type)}


class TestXla:
    """https://github.com/openxla/xla: sharding_propagation_test.cc and spmd_partitioner_test.cc."""

    def test_tiled_to_tiled_even(self) -> None:
        local = check("mesh m(x=2)\nfn f(a: i32[8@x, 2]) -> i32[8, 2@x] { return a }", {"all_to_all": 1})
        assert str(local.graph.body.results[0].type) == "i32[8, 1]"

    def test_broadcast_forward_pass(self) -> None:
        text = "fn f(x: f32[5, 7@a, 11@b, 13]) -> f32[3, 5, 7, 11, 13] { return broadcast_to(x, (3, 5, 7, 11, 13)) }"
        assert types(text, "a=2,b=2")["result"] == "f32[3, 5, 7@a, 11@b, 13]"

    def test_broadcast_backward_pass(self) -> None:
        text = "fn f(x: f32[13]) -> f32[5, 7@a, 11@b, 13] { return broadcast_to(x, (5, 7, 11, 13)) }"
        assert types(text, "a=2,b=2") == {"x": "f32[13]", "result": "f32[5, 7@a, 11@b, 13]"}

    def test_broadcast_forward_partial(self) -> None:
        text = (
            "fn f(x: f32[3, 2048@a]) -> f32[3, 2048, 3] { return broadcast_to(expand_dims(x, axis=2), (3, 2048, 3)) }"
        )
        assert types(text, "a=2,b=2")["result"] == "f32[3, 2048@a, 3]"

    def test_broadcast_merge(self) -> None:
        text = """fn f(x: f32[3, 2048@a]) -> f32[3, 2048, 4@b] {
    return sin(broadcast_to(expand_dims(x, axis=2), (3, 2048, 4)))
}"""
        assert types(text, "a=2,b=2") == {"x": "f32[3, 2048@a]", "result": "f32[3, 2048@a, 4@b]"}


class TestMlir:
    """https://github.com/llvm/llvm-project: mlir/test/Dialect/Shard/sharding-propagation.mlir."""

    PRODUCT = "fn f(x: f32[2{}, 16{}, K{}], y: f32[2{}, K{}, 32{}]) -> f32[2{}, 16{}, 32{}] {{ return x @ y }}"

    def test_matmul_on_def_shard_batch_and_m(self) -> None:
        text = self.PRODUCT.format("", "", "", "", "", "", "@a", "@b", "")
        assert types(text, "a=2,b=2", K=8) == {
            "x": "f32[2@a, 16@b, 8]",
            "y": "f32[2@a, 8, 32]",
            "result": "f32[2@a, 16@b, 32]",
        }

    def test_matmul_on_def_shard_m_and_n(self) -> None:
        text = self.PRODUCT.format("", "", "", "", "", "", "", "@a", "@b")
        assert types(text, "a=2,b=2", K=8) == {
            "x": "f32[2, 16@a, 8]",
            "y": "f32[2, 8, 32@b]",
            "result": "f32[2, 16@a, 32@b]",
        }

    def test_matmul_on_use_shard_m_and_k(self) -> None:
        text = "mesh m(a=2, b=2)\n" + self.PRODUCT.format("", "@b", "@a", "", "@a", "", "", "", "")
        local = check(text, {"all_reduce": 1}, K=256)
        (merged,) = collectives(local)
        assert merged.axes == ("a",) and str(merged.x.type) == "f32[2, 8, 32]"

    def test_resolve_conflicting_annotations(self) -> None:
        text = "mesh m(a=2)\nfn f(x: f32[2@a, 3], y: f32[3, 2]) -> f32[2@_, 2@_] { return x @ y }"
        local = check(text, {"all_gather": 1})
        assert str(local.graph.body.results[0].type) == "f32[2, 2]"

    def test_mlp_1d_weight_stationary(self) -> None:
        """https://arxiv.org/abs/2211.05102, figure 2a: weights stay, activations are gathered and scattered."""
        text = """mesh m(a=4)
fn f(x: f32[2, 4, 8@a], w1: f32[8, 32@a], w2: f32[32@a, 8]) -> f32[2, 4, 8@a] { return sigmoid(x @ w1) @ w2 }"""
        check(text, {"all_gather": 1, "reduce_scatter": 1})


class TestTvm:
    """https://github.com/apache/tvm: test_distributed_transform_propagate_sharding.py."""

    def test_mlp(self) -> None:
        text = """mesh m(s=2)
fn f(x: f32[128, 128], w1: f32[128, 128@s], w2: f32[128, 128]) -> f32[128@_, 128@_] { return gelu(x @ w1) @ w2 }"""
        assert types(text, "s=2")["w2"] == "f32[128@s, 128]"
        check(text, {"all_reduce": 1})

    def test_decoder_layer(self) -> None:
        """Heads and the wide layer are split: one all-reduce each."""
        text = """mesh m(s=2)
fn decoder(x: f32[16, 64], wq: f32[64, 4@s, 16], wk: f32[64, 4, 16], wv: f32[64, 4, 16], wo: f32[4, 16, 64],
           w1: f32[64, 256@s], w2: f32[256, 64]) -> f32[16@_, 64@_] {
    q[h, t, d] = sum[c](x[t, c] * wq[c, h, d])
    k[h, t, d] = sum[c](x[t, c] * wk[c, h, d])
    v[h, t, d] = sum[c](x[t, c] * wv[c, h, d])
    a = attention(q, k, v, causal=true)
    y[t, c] = x[t, c] + sum[h, d](a[h, t, d] * wo[h, d, c])
    return y + silu(y @ w1) @ w2
}"""
        check(text, {"all_reduce": 2})


class TestAlpa:
    """https://github.com/alpa-projects/alpa: playground/auto_sharding_solver."""

    FAR_AND_NEAR = ((4, 8), (8, 4), (3, 4))

    @pytest.mark.slow
    @pytest.mark.parametrize(("far", "near"), FAR_AND_NEAR)
    def test_mlp_2_layer_forward_backward_2d_mesh(self, far: int, near: int) -> None:
        """At most what data parallel over the slow links and Megatron's split over the fast ones cost."""
        batch, hidden = 24 * 1024, 12 * 128
        cluster = Cluster("two levels", (Level(near, 1e-6, 1e12), Level(far * near, 1e-6, 1e10)), 1e11, 1e30, 1e12)
        mesh = Mesh.parse(f"far={far},near={near}")
        _, sent = proposed(mlp(2), f"far={far},near={near}", cluster, B=batch, H=hidden)
        weights = cluster.seconds(mesh, "all_reduce", (MeshAxis("far"),), hidden * hidden * 4 / near)
        activations = cluster.seconds(mesh, "all_reduce", (MeshAxis("near"),), batch * hidden * 4 / far)
        assert sum(cluster.collective_seconds(mesh, n) for n in sent) <= 2 * weights + activations

    @pytest.mark.parametrize("text", ["reshape(reshape(x, (128, 2048)), (32, 4, 2048))", "x"])
    def test_reshapes_cost_one_all_reduce(self, text: str) -> None:
        """All-gathers are forbidden in Alpa's test: y is split over what is summed here."""
        program = f"""fn f(x: f32[128, 1024, 2], y: f32[1024@d, 2, 128]) -> f32[128@_, 128@_] {{
    return reshape({text}, (128, 2048)) @ reshape(y, (2048, 128))
}}"""
        _, sent = proposed(program, "d=4", SENDING)
        assert [(n.name, bytes_of(n)) for n in sent] == [("all_reduce", 128 * 128 * 4)]

    def test_allreduce_simplification(self) -> None:
        """Alpa sums both products; their sum is summed here, once."""
        program = """fn f(x: f32[128, 2048], y: f32[2048@d, 128], z: f32[2048@d, 128]) -> f32[128@_, 128@_] {
    return x @ y + x @ z
}"""
        _, sent = proposed(program, "d=4", SENDING)
        assert [(n.name, bytes_of(n)) for n in sent] == [("all_reduce", 128 * 128 * 4)]
