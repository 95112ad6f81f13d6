"""A pipeline run on simulated devices: what cutting, scheduling and sending are checked against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from intarsia.ir.arithmetic import Arithmetic
from intarsia.ir.dtypes import Array
from intarsia.ir.graph import Node, Value
from intarsia.ir.interpreter import evaluate_with
from intarsia.ir.ops import AllReduce, Collective
from intarsia.ir.points import Operand
from intarsia.ir.sharding import Mesh
from intarsia.ir.spmd import Devices, alone, combine, part
from intarsia.passes.stages.program import AXIS, Fragment, PipelineProgram, Transfer
from intarsia.passes.stages.schedules import Action

Exchange = Callable[[Node, Array], Array]


@dataclass(frozen=True)
class Simulation:
    """The results of a step, what device 0 took part in, with the bytes it had, and the most bytes of values of
    micro-batches that each device held after a round."""

    results: tuple[Array, ...]
    log: Sequence[tuple[Collective, int]]
    held: tuple[int, ...]


def simulate_pipeline(program: PipelineProgram, inputs: Sequence[Array]) -> Simulation:
    """Run a step for whole inputs, each device in a thread of its own."""
    mesh = Mesh(((AXIS, program.schedule.devices),))
    devices = Devices(mesh)
    whole = {p.value: np.asarray(a) for p, a in zip(program.body.parameters, inputs)}
    _ = program.rounds, program.update  # made before there are threads

    def work(number: int, exchange: Exchange) -> tuple[dict[Value, Array], int]:
        device = _Device(program, number, whole, exchange)
        device.step()
        return device.update(), device.most

    found = devices.run(work)
    owner = program.update.owner
    results = tuple(found[owner.get(v, 0)][0][v] for v in program.body.results)
    return Simulation(results, devices.log, tuple(most for _, most in found))


@dataclass
class _Device:
    """One device. `values` are those of micro-batches that it has made or was sent, by stage and micro-batch; `parts`
    those that are summed over micro-batches."""

    program: PipelineProgram
    number: int
    whole: Mapping[Value, Array]
    exchange: Exchange
    values: dict[tuple[int, int], dict[Value, Array]] = field(default_factory=dict)
    parts: dict[AllReduce, list[Array]] = field(default_factory=dict)
    most: int = 0

    def step(self) -> None:
        """All micro-batches forwards and backwards."""
        for one in self.program.rounds:
            action = one.actions[self.number]
            if action is not None:
                self._act(action)
            self.most = max(self.most, sum(a.nbytes for own in self.values.values() for a in own.values()))
            for node, transfers in one.sends:
                self._send(node, transfers)
            if action is not None and action.kind == self.program.schedule.kinds[-1]:
                del self.values[action.stage, action.microbatch]

    def _act(self, action: Action) -> None:
        own = self.values.setdefault((action.stage, action.microbatch), {})
        placement = self.program.placement

        def given(value: Value) -> Array:
            if value in own:
                return own[value]
            return part(placement.mesh, self.whole[value], self.program.shardings[value], action.microbatch)

        def lone(node: Node, array: Array) -> Array:
            return alone(placement.mesh, node, action.microbatch, array)

        fragment = self.program.fragments[action.stage, action.kind]
        made = _evaluated(fragment, given, lone)
        own.update(made)
        for node in self.program.cut.parts.sums:
            if node.x in made:
                self.parts.setdefault(node, []).append(made[node.x])

    def _send(self, node: Collective, transfers: Sequence[Transfer]) -> None:
        p = self.program.schedule.devices
        mine = next((t for t in transfers if t.source % p == self.number), None)
        array = _zeros(node) if mine is None else self.values[mine.source, mine.microbatch][mine.value]
        taken = self.exchange(node, array)
        for one in transfers:
            if one.target % p == self.number:
                self.values.setdefault((one.target, one.microbatch), {})[one.value] = taken

    def update(self) -> dict[Value, Array]:
        """The results that this device makes."""
        known = {**self.whole, **{node.value: combine(node, parts, 0) for node, parts in self.parts.items()}}
        update = self.program.update
        for fragment, node in update.shared:
            (value,) = fragment.outputs
            array = _zeros(node)
            if update.owner[value] == self.number:
                array = _evaluated(fragment, known.__getitem__, None)[value]
            known[value] = self.exchange(node, array)
        return _evaluated(update.results[self.number], known.__getitem__, None)


def _evaluated(fragment: Fragment, given: Callable[[Value], Array], exchange: Exchange | None) -> dict[Value, Array]:
    inputs: list[Operand] = [given(v) for v in fragment.inputs]
    results = evaluate_with(Arithmetic(), fragment.module, inputs, exchange=exchange)
    return dict(zip(fragment.outputs, results))


def _zeros(node: Collective) -> Array:
    return np.zeros(node.x.tensor.static_shape, node.x.dtype.numpy)
