"""Collectives that send codes of 8 bits in place of floats, with a scale for each block of them.

Source of the scheme: ZeRO++ (https://arxiv.org/abs/2306.10209), EQuARX (https://arxiv.org/abs/2506.17615): what is to
be summed goes to where it is summed as codes, is summed in f32, and comes back as codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

from intarsia.ir.dtypes import BF16, F16, F32, I8
from intarsia.ir.graph import Module, Node, Region, Value
from intarsia.ir.ops import (
    AllGather,
    AllReduce,
    AllToAll,
    Cast,
    Collective,
    CollectivePermute,
    Constant,
    Elementwise,
    Reduce,
    ReduceScatter,
)
from intarsia.ir.spmd import is_partitioned
from intarsia.passes.collectives.device_rows import Rows
from intarsia.passes.pipeline import Context, Pass
from intarsia.passes.regions import change_nodes, change_regions
from intarsia.passes.shard.memory import bytes_of

GREATEST = 127
"""The greatest code; the least is its negative."""


@dataclass(frozen=True)
class QuantizeCollectives(Pass):
    """Send floats as codes of 8 bits, `block` of which share a scale in f32: the largest of them is the code 127.

    Before:  %1 = all_gather %0 … : f32[256]
    After:   %1 = round(%0 / scale) as i8, in blocks; %2 = all_gather %1 … : i8[…]; %3 = all_gather scale …
             %4 = f32(%2) * %3 : f32[256]

    Sums are an exchange of codes between all, a sum in f32, and for an all-reduce a gather of codes. Gathers,
    permutations, and sums of f32, f16 and bf16 of which a device puts in at least `least` bytes.

    Keeps: values up to 1/254 of the largest magnitude in the block, for each time that they are sent; a block with a
    NaN or an infinity becomes NaN. Needs: a partitioned program. Leaves: the other collectives. Only for who asks.
    """

    name: ClassVar[str] = "quantize-collectives"
    exact: ClassVar[bool] = False
    lossy: ClassVar[bool] = True
    block: int = field(default=128, metadata={"least": 1})
    least: int = 65536

    def run(self, module: Module, context: Context) -> Module:
        if not is_partitioned(module):
            return module

        def changed(region: Region) -> Region:
            return change_nodes(change_regions(region, lambda _, inner: changed(inner)), change)

        def change(node: Node) -> tuple[Node, ...]:
            if not isinstance(node, Collective) or not self._takes(node):
                return (node,)
            self.remark(context, "sharding", f"the {node.name} sends codes of 8 bits", node.span)
            return _Codes(node.span, block=self.block).nodes_for(node)

        body = changed(module.graph.body)
        return module.with_body(body)

    def _takes(self, node: Collective) -> bool:
        match node:
            case AllReduce(combiner="sum") | ReduceScatter(combiner="sum") | AllGather() | CollectivePermute():
                large = bytes_of(node.x.type) >= max(self.least, 1)
                return large and node.x.dtype in (F32, F16, BF16) and not node.started
        return False


@dataclass(frozen=True)
class _Coded:
    """Codes [rows, blocks, block], and scales [rows, blocks, 1]."""

    codes: Value
    scales: Value


@dataclass
class _Codes(Rows):
    """Makes the nodes of one collective."""

    block: int = 128

    def nodes_for(self, node: Collective) -> tuple[Node, ...]:
        """What takes the place of a collective; the last one gives its result."""
        result = self.sent(node)
        if result.dtype != node.x.dtype:
            self.add(Cast(result, node.x.dtype))
        return tuple(self.nodes)

    def sent(self, node: Collective) -> Value:
        match node:
            case AllGather(x):
                row = self.of(x, None, node.devices)
                return self.gathered(self.from_all(node, row), node)
            case ReduceScatter(x, dim=dim):
                return self.like(self.to_each(node, self.of(x, dim, node.devices)), node.value)
            case AllReduce(x):
                count = math.prod(x.tensor.static_shape)
                width = -(-count // node.devices)
                rows = self.reshaped(self.padded(self.of(x, None, 1), node.devices * width), (node.devices, width))
                everything = self.from_all(node, self.to_each(node, rows))
                return self.like(self.cut(self.reshaped(everything, (1, -1)), 0, count), node.value)
            case CollectivePermute(x):
                row = self.of(x, None, 1)
                coded = self.coded(row)
                moved = _Coded(*(self.add(replace(node, x=v)) for v in (coded.codes, coded.scales)))
                return self.like(self.cut(self.rows_of(moved), 0, int(row.tensor.shape[1])), node.value)
        raise AssertionError(node.name)

    def from_all(self, node: Collective, row: Value) -> Value:
        """The rows of all devices, of each device's own; in f32."""
        coded = self.coded(row)
        sent = (AllGather(v, node.axes, node.devices, 0) for v in (coded.codes, coded.scales))
        return self.cut(self.rows_of(_Coded(*map(self.add, sent))), 0, int(row.tensor.shape[1]))

    def to_each(self, node: Collective, rows: Value) -> Value:
        """The sum over devices of the row that each of them has for this one; in f32."""
        coded = self.coded(rows)
        sent = [self.add(AllToAll(v, node.axes, node.devices, 0, 1)) for v in (coded.codes, coded.scales)]
        _, blocks, _ = coded.codes.tensor.static_shape
        codes, scales = (self.reshaped(v, (node.devices, blocks, -1)) for v in sent)
        total = self.add(Reduce(self.rows_of(_Coded(codes, scales)), "sum", (0,), keepdims=True))
        return self.cut(total, 0, int(rows.tensor.shape[1]))

    def coded(self, rows: Value) -> _Coded:
        """Rows as codes. A scale that is 0, infinite or no number makes the block 0, or no numbers."""
        height, width = rows.tensor.static_shape
        blocks = -(-width // self.block)
        x = self.reshaped(self.padded(rows, blocks * self.block), (height, blocks, self.block))
        if x.dtype != F32:
            x = self.add(Cast(x, F32))
        top = self.add(Reduce(self.add(Elementwise("abs", (x,))), "max", (2,), keepdims=True))
        scales = self.add(Elementwise("div", (top, self.add(Constant(float(GREATEST), F32)))))
        codes = self.add(Elementwise("round", (self.add(Elementwise("div", (x, scales))),)))
        return _Coded(self.add(Cast(codes, I8)), scales)

    def rows_of(self, coded: _Coded) -> Value:
        """The numbers that codes stand for, a row for each."""
        numbers = self.add(Elementwise("mul", (self.add(Cast(coded.codes, F32)), coded.scales)))
        return self.reshaped(numbers, (int(numbers.tensor.shape[0]), -1))
