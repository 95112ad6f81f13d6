"""How long a program takes on the devices of a mesh: as a whole, and by kernels and collectives on one device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import click
import numpy as np

from intarsia.commands.binding import Bound
from intarsia.commands.timing import Row, TimedKernels, print_rows
from intarsia.deep_stack import with_deep_stack
from intarsia.ir.dtypes import Array
from intarsia.ir.graph import Node
from intarsia.ir.ops.collective import Collective
from intarsia.ir.plan_interpreter import run_plan
from intarsia.ir.spmd import Devices
from intarsia.limits import machine_limits
from intarsia.measurement import duration_text, elapsed, median_and_spread
from intarsia.mesh_calls import MeshCall, ProcessCall

_SECONDS, _MOST = 1.0, 200


def report_time(bound: Bound, call: MeshCall, compile_seconds: float) -> None:
    """Compile time, and median and spread of run time."""
    found = "compiled" if bound.function.program.is_parsed else "found in the cache"
    samples = [elapsed(call) for _ in range(runs(call, call))]
    if not is_first(call):
        return
    median, spread = median_and_spread(samples)
    click.echo(f"ready after {duration_text(compile_seconds)}, {found}", err=True)
    about = f"median {duration_text(median)}, quartiles {duration_text(spread)} apart, {len(samples)} runs"
    click.echo(f"run: {about} on {call.program.placement.mesh.devices} devices", err=True)


def report_profile(bound: Bound, call: MeshCall) -> None:
    """Each kernel and each collective on device 0, with the parts of the program's own data: a collective's time is
    also that of waiting for the others."""
    compilation = with_deep_stack(bound.compilation)
    plan = replace(compilation.plan, preparation=None)  # constants are prepared before
    timed = {n: with_deep_stack(lambda: TimedKernels(compilation)) for n in call.laid}
    rows: dict[Node, Row] = {}

    def run(device: int, exchange: Callable[[Node, Array], Array]) -> None:
        def watched(node: Node, given: Array) -> Array:
            start = time.perf_counter()
            result = exchange(node, given)
            if device == 0 and isinstance(node, Collective):
                row = rows.setdefault(node, Row(f"{node.name} over {', '.join(node.axes)}", node.span))
                row.seconds.append(time.perf_counter() - start)
                row.bytes = given.nbytes
            return result

        inputs = [list(v) if isinstance(v, tuple) else v for v in call.laid[device]]
        run_plan(plan, inputs, {}, timed[device].run, exchange=watched)

    def together() -> None:
        if not isinstance(call, ProcessCall):
            Devices(call.program.placement.mesh).run(run)
            return

        def exchange(node: Node, given: Array) -> Array:
            taken = np.empty(node.values[0].tensor.static_shape, node.values[0].dtype.numpy)
            call.processes.bind(node, given, taken).now()
            return taken

        call.together(lambda: run(call.processes.device, exchange))

    count = runs(call, together)
    for row in (*rows.values(), *(r for t in timed.values() for r in t.rows.values())):
        row.seconds.clear()
    for _ in range(count):
        together()
    if is_first(call):
        print_rows([*timed[0].rows.values(), *rows.values()], count, machine_limits(bound.function.program.cache))


def runs(call: MeshCall, run: Callable[[], object]) -> int:
    """How many runs take about a second; all processes take the number that the first one finds."""
    run()
    count = max(3, min(_MOST, round(_SECONDS / elapsed(run))))
    if not isinstance(call, ProcessCall):
        return count
    return int.from_bytes(call.processes.world.share(count.to_bytes(8, "big"))[0], "big")


def is_first(call: MeshCall) -> bool:
    return not isinstance(call, ProcessCall) or call.processes.device == 0
