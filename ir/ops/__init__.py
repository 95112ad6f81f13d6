"""The ops of the Graph, one file a family."""

from intarsia.ir.ops.collective import (
    AllGather,
    AllReduce,
    AllSlice,
    AllToAll,
    Collective,
    CollectivePermute,
    DeviceIndex,
    Done,
    ReduceScatter,
    Shard,
)
from intarsia.ir.ops.control import After, Call, Fused, ListGet, Loop
from intarsia.ir.ops.elementwise import BitcastOp, Cast, Constant, Elementwise
from intarsia.ir.ops.index import Compute, Update
from intarsia.ir.ops.order import Argsort, Cumulative, Sort
from intarsia.ir.ops.reduction import ArgReduce, Matmul, Reduce
from intarsia.ir.ops.shape import BroadcastTo, Concat, Pad, Reshape, Slice, Transpose

__all__ = [
    "After",
    "AllGather",
    "AllReduce",
    "AllSlice",
    "AllToAll",
    "ArgReduce",
    "Argsort",
    "BitcastOp",
    "BroadcastTo",
    "Call",
    "Cast",
    "Collective",
    "CollectivePermute",
    "Compute",
    "Concat",
    "Constant",
    "Cumulative",
    "DeviceIndex",
    "Done",
    "Elementwise",
    "Fused",
    "ListGet",
    "Loop",
    "Matmul",
    "Pad",
    "Reduce",
    "ReduceScatter",
    "Reshape",
    "Shard",
    "Slice",
    "Sort",
    "Transpose",
    "Update",
]
