"""A pipeline run with the graph interpreter, on threads of this process: what cutting and schedules are checked
against, without compiled code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intarsia.ir.arithmetic import Arithmetic
from intarsia.ir.dtypes import Array
from intarsia.ir.graph import Node
from intarsia.ir.interpreter import evaluate_with
from intarsia.ir.ops import AllSlice, DeviceIndex
from intarsia.ir.points import Operand
from intarsia.ir.spmd import Devices, Here, alone, part, whole
from intarsia.passes.stages.program import PipelineProgram
from intarsia.passes.stages.running import Given, Piece, Script, StageDevice


@dataclass(frozen=True)
class Simulation:
    """The results of a step, and the devices after it."""

    results: tuple[Array, ...]
    devices: tuple[StageDevice, ...]


def simulate_pipeline(program: PipelineProgram, inputs: Sequence[Operand]) -> Simulation:
    """Run a step for whole inputs, each device in a thread of its own."""
    script, fragments = Script.of(program)
    placement = program.placement

    def work(number: int, here: Here) -> tuple[StageDevice, dict[int, Array]]:
        def own(given: Operand, microbatch: int, n: int) -> Any:
            device = microbatch * script.devices + number % script.devices
            if isinstance(given, list):
                return [part(placement.mesh, np.asarray(a), placement.parameters[n].sharding, device) for a in given]
            return part(placement.mesh, np.asarray(given), placement.parameters[n].sharding, device)

        def call(piece: Piece, arrays: Sequence[Array], microbatch: int) -> Sequence[Array]:
            def exchange(node: Node, array: Array) -> Array:
                if isinstance(node, AllSlice | DeviceIndex):
                    return alone(placement.mesh, node, microbatch * script.devices + number % script.devices, array)
                return here(node, array)

            operands: list[Operand] = [*arrays]
            return evaluate_with(Arithmetic(), fragments[piece.code].module, operands, exchange=exchange)

        given: list[Given] = [
            [own(a, m, n) for m in range(program.schedule.microbatches)] if n in script.data else own(a, 0, n)
            for n, a in enumerate(inputs)
        ]
        device = StageDevice(script, number, given, call, here)
        return device, device.step()

    found = Devices(program.mesh).run(work)
    results: list[Array] = []
    for (value, owner), type_ in zip(script.results, placement.results):
        parts = [made[value] for device, made in found if device.number // script.devices == owner]
        results.append(whole(program.inner, parts, type_.tensor))
    return Simulation(tuple(results), tuple(device for device, _ in found))
