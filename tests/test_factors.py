"""The rule of each kind of op: which dimensions of its operands and of its result are one factor. Those of Shardy's
`op_sharding_rule_registry.mlir`; what moves along a dimension (slices, pads, windows) is in `passes/shard/windows`."""

from __future__ import annotations

import pytest

from intarsia.dsl.library import load
from intarsia.ir.errors import Source
from intarsia.ir.factors import factors

RULES = {
    "(x: f32[8, 4], y: f32[8, 4]) -> f32[8, 4] { return x + y }": "[i0, i1], [i0, i1] -> [i0, i1]",
    "(x: f32[4, 8]) -> f32[3, 4, 8] { return broadcast_to(x, (3, 4, 8)) }": "[i1, i2] -> [i0, i1, i2]",
    "(x: f32[4, 1, 8]) -> f32[4, 5, 8] { return broadcast_to(x, (4, 5, 8)) }": "[i0, 1, i2] -> [i0, i1, i2]",
    "(x: f32[2, 3, 4]) -> f32[4, 2, 3] { return transpose(x, (2, 0, 1)) }": "[i1, i2, i0] -> [i0, i1, i2]",
    "(x: f32[8, 4], y: f32[4, 6]) -> f32[8, 6] { return x @ y }": "[i0, k], [k, i1] -> [i0, i1] sum(k)",
    "(x: f32[3, 8, 4], y: f32[3, 4, 6]) -> f32[3, 8, 6] { return x @ y }": (
        "[i0, i1, k], [i0, k, i2] -> [i0, i1, i2] sum(k)"
    ),
    "(x: f32[8, 4, 6]) -> f32[8, 6] { return sum(x, axis=1) }": "[i0, r1, i1] -> [i0, i1] sum(r1)",
    "(x: f32[8, 4, 6]) -> f32[8, 6] { return max(x, axis=1) }": "[i0, r1, i1] -> [i0, i1] max(r1)",
    "(x: f32[2, 4]) -> f32[8] { return reshape(x, (8,)) }": "[i0.0, i0.1] -> [(i0.0 i0.1)]",
    "(x: f32[8]) -> f32[2, 4] { return reshape(x, (2, 4)) }": "[(i0 i1)] -> [i0, i1]",
    "(x: f32[5, 24]) -> f32[5, 2, 3, 4] { return reshape(x, (5, 2, 3, 4)) }": "[i0, (i1 i2 i3)] -> [i0, i1, i2, i3]",
    "(x: f32[8, 4]) -> f32[2, 16] { return reshape(x, (2, 16)) }": "[(i0 i1.0), i1.1] -> [i0, (i1.0 i1.1)]",
    "(x: f32[3, 4]) -> f32[2, 6] { return reshape(x, (2, 6)) }": "[*, *] -> [i0, i1]",
    "(x: f32[4, 3], y: f32[4, 5]) -> f32[4, 8] { return concat((x, y), axis=1) }": "[i0, *], [i0, *] -> [i0, i1]",
    "(x: f32[8, 6], i: i64[5]) -> f32[5, 6] { return take(x, i, axis=0) }": "[*, i0], [j0] -> [j0, i0]",
    "(x: f32[8, 6], i: i64[5], u: f32[5, 6]) -> f32[8, 6] { return update x[i[k], j] += u[k, j] }": (
        "[*, j], [k], [k, j] -> [*, j] sum(k)"
    ),
    "(x: f32[8, 6]) -> f32[8, 6] { return sort(x) }": "[i0, *] -> [i0, *]",
    "(x: f32[8, 6]) -> i64[8] { return argmax(x, axis=1) }": "[i0, *] -> [i0]",
    "(x: f32[8, 6]) -> f32[8, 6] { return cumsum(x, axis=0) }": "[*, i1] -> [*, i1]",
    "(x: f32[0]) -> f32[0] { return tensor[i < 0](sum[r < 3](where(i + r < 0, x[i + r], 0.0))) }": "[*] -> [i]",
    """(x: f32[2, 16, 3], w: f32[5, 3, 8]) -> f32[2, 12, 8] {
    return tensor[n < 2, i < 12, o < 8](sum[r < 5, c < 3](x[n, i + r, c] * w[r, c, o]))
}""": "[n, *, c], [r, c, o] -> [n, i, o] sum(r) sum(c)",
}


@pytest.mark.parametrize("program", RULES, ids=lambda p: p.split("return ")[1].split("(")[0].strip())
def test_rule(program: str) -> None:
    nodes = load(Source("test.ita", f"fn f{program}")).build(dims={}).graph.body.nodes
    found = [str(rule) for node in nodes if (rule := factors(node)) is not None and node.operands]
    assert found[-1] == RULES[program]
