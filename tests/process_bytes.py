"""Bytes on the wire: what each device sends by the formulas of rings, beside what processes hand to MPI (run by these)
and what simulated devices exchange."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import intarsia
from intarsia.function import Function
from intarsia.ir.cluster import Cluster
from intarsia.ir.dtypes import Array
from intarsia.ir.sharding import MeshAxis, ring_elements
from intarsia.ir.spmd import Placement
from intarsia.mpi import MpiGroup
from intarsia.passes.shard.report import sent_by
from intarsia.processes import world

FOLDER = Path(__file__).parent.parent / "examples" / "sharded"
HALF = """mesh pod(d=4)

fn half(x: bf16[N, K@d], w: bf16[K@d, M]) -> bf16[N, M] { return x @ w }
"""
PROGRAMS: dict[str, dict[str, tuple[int, ...]]] = {
    "zero3": {"x": (64, 8), "y": (64, 8), "up": (8, 16), "down": (16, 8), "rate": ()},
    "sequence": {"q": (4, 16, 4), "k": (4, 16, 4), "v": (4, 16, 4)},
    "heat": {"u": (8, 6)},
    "half": {"x": (8, 8), "w": (8, 4)},
}


def function_of(name: str, devices: Any) -> tuple[Function, dict[str, Array]]:
    """A program for 4 devices, and arguments for it."""
    options = intarsia.Options(devices=devices)
    program = intarsia.compile(HALF, options) if name == "half" else intarsia.load(FOLDER / f"{name}.ita", options)
    generator = np.random.default_rng(0)
    arrays = {n: np.asarray(generator.standard_normal(s), np.float32) for n, s in PROGRAMS[name].items()}
    if name == "half":
        import ml_dtypes

        arrays = {n: a.astype(ml_dtypes.bfloat16) for n, a in arrays.items()}
    if name == "heat":
        arrays["steps"] = np.array(3)  # two with one exchange, and one
    return program.entry(), arrays


def by_formulas(function: Function, arrays: dict[str, Array]) -> float:
    """What each device sends."""
    module = function.lower(**arrays).compilation.partitioned
    mesh = Placement.of(module).mesh
    sent = sent_by(module, Cluster.read("laptop"))
    return sum(ring_elements(s.kind, s.bytes, mesh.size(map(MeshAxis.parse, s.axes))) * s.times for s in sent)


class Counted:
    """A communicator that counts the bytes that are handed to it."""

    KINDS = {
        "Allreduce": "all_reduce",
        "Reduce_scatter_block": "reduce_scatter",
        "Allgather": "all_gather",
        "Alltoall": "all_to_all",
        "Send": "collective_permute",
        "Sendrecv": "collective_permute",
    }

    def __init__(self, communicator: Any) -> None:
        self.communicator = communicator
        self.bytes = 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.communicator, name)
        if name not in self.KINDS:
            assert name in ("rank", "size", "Recv") or name[0] == "I", name
            return found

        def count(source: Array, *rest: Any) -> Any:
            self.bytes += ring_elements(self.KINDS[name], source.nbytes, self.communicator.size)
            return found(source, *rest)

        return count


def main() -> None:
    groups: list[Counted] = []
    make = MpiGroup.__init__

    def counted(self: MpiGroup, module: Any, communicator: Any) -> None:
        groups.append(Counted(communicator))
        make(self, module, groups[-1])

    MpiGroup.__init__ = counted  # type: ignore[method-assign]
    from mpi4py import MPI

    for name in PROGRAMS:
        function, arrays = function_of(name, "mpi")
        function.local(**arrays)
        most = MPI.COMM_WORLD.allreduce(sum(g.bytes for g in groups), MPI.MAX)
        for group in groups:
            group.bytes = 0.0
        wanted = by_formulas(function, arrays)
        assert most == wanted, f"{name}: {most} bytes, and {wanted} by the formulas"
    if MPI.COMM_WORLD.rank == 0:
        print("all bytes are right")


if __name__ == "__main__":
    world("mpi").or_end_all(main)
