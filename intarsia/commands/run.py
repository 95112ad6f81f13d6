"""`intarsia run`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import click

from intarsia.commands import processes
from intarsia.commands.binding import Bound, argument_options, bind, to_host
from intarsia.commands.interruption import interruptible
from intarsia.commands.options import (
    INTERPRETERS,
    compile_options,
    device_options,
    on_devices,
    open_program,
    options_of,
    pipeline_options,
    program_argument,
    require_pipeline,
)
from intarsia.files import require_writable, write_results
from intarsia.ir.dtypes import Array
from intarsia.program import Program
from intarsia.results import format_array, named

if TYPE_CHECKING:
    from intarsia.gpu_calls import PlacedCall
    from intarsia.ir.dtypes import DType
    from intarsia.mesh_calls import MeshCall
    from intarsia.pipeline_calls import PipelineProcess, SimulatedPipeline


@click.command("run")
@program_argument
@argument_options
@compile_options
@device_options
@pipeline_options
@click.option("--out", default=None, metavar="FILE", help="Write the results: .npy, .npz or .safetensors.")
@click.option("--compare", is_flag=True, help="Also run the reference; exit 3 where a result is beyond the tolerance.")
@click.option("--time", "timing", is_flag=True, help="Compile time, run time, and rates against the machine's limits.")
@click.option("--profile", is_flag=True, help="Time, bytes and line of each kernel.")
@click.option("--plot", metavar="FILE", help="With --pipeline and --profile: draw what each device did when.")
@click.option("--trace", metavar="NAME", help="Show the values that this name gets, wherever it is assigned.")
@click.option("--nan", "find_nan", is_flag=True, help="Name the first operation that makes a NaN.")
@click.option("--cuda-graph", is_flag=True, help="On a GPU, start all kernels of the program as one CUDA graph.")
@processes.together
def command(
    file: str | None,
    text: str | None,
    arguments: tuple[str, ...],
    weights: tuple[str, ...],
    fill: bool,
    out: str | None,
    compare: bool,
    timing: bool,
    profile: bool,
    plot: str | None,
    trace: str | None,
    find_nan: bool,
    cuda_graph: bool,
    **settings: Any,
) -> int:
    """Compile a function and run it on arguments from files, numbers or generators.

    Prints type and values of the results, or writes them with --out. What is measured or compared goes to standard
    error.
    """
    require_pipeline(settings["pipeline"], {"plot"}, {"cuda_graph"})
    if plot is not None and not profile:
        raise click.UsageError("--plot goes with --profile")
    source, name = open_program(file, text)
    options, use_cache, target = options_of(settings)
    if target in INTERPRETERS and (timing or profile):
        raise click.UsageError(f"--time and --profile are about machine code, and --target {target} runs none")
    about_runs = {"--out": out is not None, "--compare": compare, "--time": timing, "--profile": profile}
    asked = next((option for option, is_asked in about_runs.items() if is_asked), None)
    if asked is not None and (trace is not None or find_nan):
        raise click.UsageError(f"--trace and --nan watch the reference, and {asked} is about a run")
    if out is not None:
        require_writable(out)
    if settings["devices"] == "nccl" and (profile or cuda_graph):
        raise click.UsageError("--profile and --cuda-graph are for one device, or for several on CPUs")
    function = on_devices(Program(source, options, use_cache=use_cache).entry(name), target)
    is_asked = settings["devices"] == "one" or target in INTERPRETERS
    if (axes := function.form.axes) and function.options.devices is None and not is_asked:
        given = ",".join(f"{axis}=2" for axis in axes)
        click.echo(f"note: there is no mesh, and one device runs everything; --mesh {given} would split it", err=True)
    if trace is not None or find_nan:
        if processes.is_to_start(settings["devices"]) or processes.is_first(settings["devices"]):
            _watch(bind(function, arguments, weights, settings["dims"], fill), trace, find_nan)
        return 0
    if processes.is_to_start(settings["devices"]):
        if file == "-":
            raise click.UsageError("each process reads the program: give it in a file or by -e")
        # Compiled once, for all of them: how many there are is known then.
        program = bind(function, arguments, weights, settings["dims"], fill).mesh_program()
        return processes.start(settings["devices"], program.placement.mesh.devices)
    bound = bind(function, arguments, weights, settings["dims"], fill)
    start = time.perf_counter()
    if function.runs_on_gpu and target not in INTERPRETERS:
        placed = bound.placed(cuda_graph)
        call = to_host(placed)
        click.echo("note: the arguments are copied to the GPU, and the results back", err=True)
    elif cuda_graph:
        raise click.UsageError("--cuda-graph needs --target gpu")
    else:
        placed, call = None, _prepare(bound, target)
    compile_seconds = time.perf_counter() - start
    results = interruptible(call)
    is_first = processes.is_first(settings["devices"])
    if is_first:
        compiled = placed is None and target not in INTERPRETERS
        _show(named(bound.result_labels(compiled=compiled), results), bound.result_types(results), out)
    if timing:  # which all processes do together
        _report_time(bound, placed, call, compile_seconds)
    if profile:
        _report_profile(bound, placed, call, plot)
    if compare and is_first:
        from intarsia.commands.comparison import report_comparison

        statics = [a for a in arguments if a.partition("=")[0].strip() in bound.statics]
        return report_comparison(bound, results, settings, statics)
    return 0


def _watch(bound: Bound, trace: str | None, find_nan: bool) -> None:
    """What the reference computes: the values that get a name, and the first NaN."""
    from intarsia.commands.interpreting import report_nan, report_trace

    if trace is not None:
        report_trace(bound, trace)
    if find_nan:
        report_nan(bound)


def _prepare(bound: Bound, target: str | None) -> Callable[[], list[Array]]:
    """A callable that runs the program, compiled or interpreted."""
    if target is not None and target in INTERPRETERS:
        from intarsia.commands.interpreting import interpret

        return lambda: interpret(bound, target)
    return bound.call()


def _show(arrays: Sequence[tuple[str, Array, int]], types: Sequence[DType | None], out: str | None) -> None:
    """Print named results, or write them to a file."""
    if out is not None:
        known = {name: element for name, _, position in arrays if (element := types[position]) is not None}
        write_results(out, {name: array for name, array, _ in arrays}, known)
        return
    for name, array, position in arrays:
        click.echo(format_array(name, array, types[position]))


def _report_time(
    bound: Bound, placed: PlacedCall | None, call: Callable[[], list[Array]], compile_seconds: float
) -> None:
    if bound.function.mesh is not None:
        from intarsia.commands import mesh_timing

        mesh_timing.report_time(bound, cast("MeshCall", call), compile_seconds)
    elif placed is None:
        from intarsia.commands.timing import report_time

        report_time(bound, call, compile_seconds)
    else:
        from intarsia.commands import gpu_timing

        gpu_timing.report_time(placed, compile_seconds)


def _report_profile(bound: Bound, placed: PlacedCall | None, call: Callable[[], list[Array]], plot: str | None) -> None:
    if bound.function.options.pipeline is not None:
        from intarsia.commands import pipeline

        pipeline.report_profile(cast("PipelineProcess | SimulatedPipeline", call), plot)
    elif bound.function.mesh is not None:
        from intarsia.commands import mesh_timing

        mesh_timing.report_profile(bound, cast("MeshCall", call))
    elif placed is None:
        from intarsia.commands.timing import report_profile

        report_profile(bound)
    else:
        from intarsia.commands import gpu_timing

        gpu_timing.report_profile(placed)
