"""Pipelines on processes of MPI, by each schedule: results, what is sent between them and what each has in memory (run
by these processes)."""

from __future__ import annotations

from typing import Any

import numpy as np
from test_pipelines import LAPTOP, layers
from test_presets import EXAMPLE

import intarsia
from intarsia.function import Function
from intarsia.ir.dtypes import Array
from intarsia.ir.errors import Source
from intarsia.mpi import MpiWorld
from intarsia.passes.stages.schedules import SCHEDULES, run
from intarsia.pipeline_calls import PipelineCalls, PipelineProcess, pipeline_of
from intarsia.processes import Sent, world
from intarsia.program import Program

SIZES = {"B": 16, "D": 8}


def function_of(text: str, **options: Any) -> Function:
    return Program(Source(str(EXAMPLE), text), intarsia.Options(**options)).entry("step")


def arguments(function: Function) -> dict[str, Array]:
    generator = np.random.default_rng(0)
    shapes = {t.label: [SIZES[d] for d in t.dims] for t in function.form.tensors}
    return {label: np.asarray(generator.standard_normal(shape), np.float32) for label, shape in shapes.items()}


def main() -> None:
    sent = [0]
    send = MpiWorld.send

    def counted(self: MpiWorld, memory: Array, to: int, tag: int) -> Sent:
        sent[0] += memory.nbytes
        return send(self, memory, to, tag)

    MpiWorld.send = counted  # type: ignore[method-assign]
    from mpi4py import MPI

    every = MPI.COMM_WORLD
    text = layers(every.size * 2, clip=True)
    alone = function_of(text)
    arrays = arguments(alone)
    first = alone(**arrays)
    order = [f"{letter}{n}" for n in range(every.size * 2) for letter in "wm"]
    second = alone(**{**arrays, **dict(zip(order, first[1:]))})
    for name in SCHEDULES:
        stages = every.size * (2 if name == "interleaved" else 1)
        function = function_of(text, devices="mpi", pipeline=name, stages=stages, microbatches=2 * every.size)
        sent[0] = 0
        parts = function.local(**arrays)
        program = pipeline_of(function.lower(**arrays).compilation, LAPTOP)
        total = every.allreduce(sent[0])
        assert total == program.bytes_sent, f"{name}: {total} bytes, and {program.bytes_sent} by the formula"
        there = every.allgather([part.array is not None for part in parts])
        assert all(sum(column) == 1 for column in zip(*there))  # each weight is on one device
        assert isinstance(function.mesh, PipelineCalls)
        call = function.mesh.call_for(arrays, {}, {})
        assert isinstance(call, PipelineProcess)
        assert [w.live for w in call.watch()] == list(run(program.schedule).held)
        found = function(**{**arrays, **dict(zip(order, parts[1:]))})
        for one, wanted in zip(found, second, strict=True):
            np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-5)
    if every.rank == 0:
        print("pipelines are right")


if __name__ == "__main__":
    world("mpi").or_end_all(main)
