"""Known plans of training, as rules that write shardings on a program for one device.

A preset splits what a training step works on (`training.py`) over one axis of the mesh. Presets of several axes are
written one after the other, and add up: `data=zero1,model=megatron`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeAlias

from intarsia.ir.errors import CompileError
from intarsia.ir.graph import Module, Parameter, Value
from intarsia.ir.ops import Loop
from intarsia.ir.sharding import DimensionSharding, Mesh, MeshAxis, Sharding
from intarsia.ir.spmd import mesh_of
from intarsia.ir.types import ListType, placed
from intarsia.passes.pipeline import Context, Pass, Pipeline
from intarsia.passes.shard.edges import shape_of
from intarsia.passes.shard.meshes import described, reshard_values
from intarsia.passes.shard.presets.training import TrainingStep


@dataclass(frozen=True)
class Preset(Pass):
    """Write the shardings of a known plan of training over one axis of the mesh: `axis`, or the only one.

    Before:  func @step(%x: f32[8, 4], %w: f32[4, 6]) { … return %9 }              the next weights
    After:   func @step(%x: f32[8@data, 4], %w: f32[4, 6]{replicated: data}) { … } with plan=data axis=data

    Keeps: values. Needs: a training step, a mesh. Leaves: shardings of parameters, gradients and results; what
    the program says already stays.

    Raises CompileError: E1901 an axis that the mesh has not, E1910 no such plan, or no training step.
    """

    name: ClassVar[str] = "preset"
    exact: ClassVar[bool] = True
    plan: str = "data"
    axis: str = ""

    def run(self, module: Module, context: Context) -> Module:
        mesh = mesh_of(module)
        if mesh is None:
            raise CompileError("E1901", "the program has no mesh of devices", hint="give --mesh data=2")
        if self.plan not in PLANS:
            raise CompileError("E1910", f"there is no plan '{self.plan}'", hint=", ".join(PLANS))
        axis = self.axis or mesh.axes[0][0]
        if axis not in mesh.sizes or (not self.axis and len(mesh.axes) > 1):
            message = f"the mesh has no axis '{axis}'" if self.axis else f"which axis is {self.plan} for?"
            hint = f"the mesh is {mesh.said}; a plan for each axis is data=zero1,model=megatron"
            raise CompileError("E1901", message, hint=hint)
        step = TrainingStep(module.graph.body).require()
        plan = Plan(step, mesh, MeshAxis(axis))
        PLANS[self.plan](step, plan)
        for message in plan.problems:
            self.remark(context, "sharding", message, None, done=False)
        for value, wanted in step.next.items():
            if value in plan.laid:
                plan.laid[wanted] = plan.stacked(value)
        for value, laid in plan.laid.items():
            message = f"{described(value)} is {placed(value.type, laid)} (preset {self.plan} over {axis})"
            self.remark(context, "sharding", message, value.node.span)
        loops = (node for node in module.graph.body.walk() if isinstance(node, Loop))
        for state, value in (pair for n in loops for r in n.regions for pair in zip(r.parameters, n.initial)):
            if value in plan.laid:  # states lie as what they begin with
                plan.laid[state.value] = plan.laid[value]
        return module.with_body(reshard_values(module.graph.body, lambda v: plan.laid.get(v) or v.type.sharding))


def presets_of(text: str) -> tuple[Pass, ...]:
    """The passes of `zero3`, or of a preset for each axis, `data=zero1,model=megatron`, on a graph made simple. Those
    that split weights by what lies along them go first, so that those that only spread them take what is left.

    Raises CompileError E1901 where an axis has several.
    """
    parts = [part.strip().rpartition("=") for part in text.split(",")]
    for axis, plans in Counter(axis for axis, _, _ in parts).items():
        if plans > 1:
            message = f"the axis '{axis}' has {plans} plans" if axis else f"which axes are the plans of '{text}' for?"
            raise CompileError("E1901", message, hint="a plan for each axis is data=zero1,model=megatron")
    parts.sort(key=lambda part: part[2].startswith("zero"))
    return (*Pipeline.parse("canonicalize,cse,dce").passes, *(Preset(plan, axis) for axis, _, plan in parts))


@dataclass
class Plan:
    """The shardings that rules have written, and what they could not split."""

    step: TrainingStep
    mesh: Mesh
    axis: MeshAxis
    laid: dict[Value, Sharding] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def of(self, value: Value) -> Sharding:
        said = self.laid.get(value) or value.type.sharding
        return said or Sharding((DimensionSharding(),) * len(shape_of(value)))

    def split(self, value: Value, d: int, priority: int = 0) -> None:
        """Split a dimension over the axis too."""
        own = self.of(value)
        dimensions = list(own.dimensions)
        axes = self.mesh.joined((*dimensions[d].axes, self.axis))
        dimensions[d] = replace(dimensions[d], axes=axes, open=False, priority=max(priority, dimensions[d].priority))
        self.laid[value] = replace(own, dimensions=tuple(dimensions))

    def split_somewhere(self, value: Value, priority: int = 0) -> None:
        """Split a dimension that is none of layers: the first that the devices divide, of those first that nothing
        splits; else the longest that nothing splits, which is padded. Without one, each device has all of it."""
        own, rows = self.of(value), self.step.rows(value)
        sizes = {d: s.constant or 1 for d, s in enumerate(shape_of(value)) if d not in rows}
        parts = {d: self.mesh.size(own.dimensions[d].axes) * self.mesh.size(self.axis) for d in sizes}
        free = [d for d, size in sizes.items() if not own.dimensions[d].axes and size > 1]
        fits = [d for d, size in sizes.items() if size % parts[d] == 0]
        if fits:
            self.split(value, min(fits, key=lambda d: (bool(own.dimensions[d].axes), d)), priority)
        elif free:
            self.split(value, max(free, key=lambda d: (sizes[d], -d)), priority)
        else:
            self.keep_whole(value)
            if isinstance(value.node, Parameter) and max(sizes.values(), default=1) > 1:
                self.problems.append(
                    f"{value.node.label} is whole on each device: other axes split all of {value.type}"
                )

    def stacked(self, value: Value) -> Sharding:
        """That of the tensors of a list as one tensor."""
        own = self.laid[value]
        layers = (DimensionSharding(),) if isinstance(value.type, ListType) else ()
        return replace(own, dimensions=(*layers, *own.dimensions))

    def keep_whole(self, value: Value) -> None:
        """The axis may not split a value."""
        own = self.of(value)
        self.laid[value] = replace(own, replicated=(*own.replicated, self.axis))


Rule: TypeAlias = Callable[[TrainingStep, Plan], None]
"""Writes the shardings of one preset."""


def _zero(*roles: str) -> Rule:
    """The batch is split, and of weights, gradients and states those that are named: Rajbhandari and others, "ZeRO:
    Memory Optimizations Toward Training Trillion Parameter Models", 2019. What is not named is whole on each device;
    gradients that are not stay parts of sums until the update. Split weights give way to the batch."""

    def rule(step: TrainingStep, plan: Plan) -> None:
        for value, d in step.batch.items():
            plan.split(value, d)
        values: Mapping[str, Iterable[Value]] = {
            "weights": step.weights,
            "gradients": [v for own in step.gradients.values() for v in own],
            "states": step.states,
        }
        for role, own in values.items():
            for value in own:
                if role in roles:
                    plan.split_somewhere(value, priority=1 if role == "weights" else 0)
                else:
                    plan.keep_whole(value)

    return rule


def _megatron(step: TrainingStep, plan: Plan) -> None:
    """Weights are split along what lies between them: hidden features, heads, a vocabulary. Shoeybi and others,
    "Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism", 2019.

    These are dimensions of weights that no data have, and that are summed over in products with weights only: what one
    weight makes in parts, the next one sums up. Those of the largest weights go first; a weight is split once.
    """
    devices = plan.mesh.size(plan.axis)
    split: set[Value] = set()
    uneven: dict[Value, int] = {}
    for name in step.hidden:
        values = (*step.next, *(v for own in step.gradients.values() for v in own))
        places = [(v, d) for v in values for d, own in enumerate(step.classes_of(v)) if own == name]
        fits = all((shape_of(v)[d].constant or 0) % devices == 0 for v, d in places)
        if fits and not any(v in split for v, _ in places):
            for v, d in places:
                plan.split(v, d)
                split.add(v)
        elif not fits:
            uneven.update((v, d) for v, d in places if v in step.weights)
    for value in step.next:
        if value not in split:
            plan.keep_whole(value)
    for v, d in uneven.items():
        if v not in split:
            size, label = shape_of(v)[d], getattr(v.node, "label", "")
            plan.problems.append(
                f"{label} is whole on each device: {devices} devices do not divide the {size} of {v.type}"
            )
    if not split and not uneven:
        plan.problems.append("no weight is split: no dimension lies between two weights that data do not have")


def _sequence(step: TrainingStep, plan: Plan) -> None:
    """Weights as Megatron splits them, and a dimension of the data besides the batch over the same devices, so that
    what is not split by weights is split by it. Korthikanti and others, "Reducing Activation Recomputation in Large
    Transformer Models", 2022."""
    _megatron(step, plan)
    for value, d in step.sequence.items():
        plan.split(value, d)


def _expert(step: TrainingStep, plan: Plan) -> None:
    """The batch is split, and of weights with experts each device has some: dimensions that are no sum of a product
    with a weight, but one for itself for each element. Lepikhin and others, "GShard", 2020."""
    for value, d in step.batch.items():
        plan.split(value, d)
    split: set[Value] = set()
    for name in step.experts:
        for v in step.next:
            for d, own in enumerate(step.classes_of(v)):
                if own == name and v not in split:
                    plan.split(v, d)
                    split.add(v)
    for value in step.next:
        if value not in split:
            plan.keep_whole(value)
    if not split:
        plan.problems.append("no weight is split: none has a dimension that what it is multiplied with has too")


PLANS: Mapping[str, Rule] = {
    "data": _zero(),
    "zero1": _zero("states"),
    "zero2": _zero("states", "gradients"),
    "zero3": _zero("states", "gradients", "weights"),
    "megatron": _megatron,
    "sequence": _sequence,
    "expert": _expert,
}
"""The rule of each preset."""
