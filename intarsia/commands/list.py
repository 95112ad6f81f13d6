"""`intarsia list …`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click

from intarsia.measurement import duration_text, size_text


def _first_line(documented: object) -> str:
    return (documented.__doc__ or "").strip().partition("\n")[0]


def ops() -> Iterable[tuple[str, str]]:
    import intarsia.ir.ops  # noqa: F401  fills the table
    from intarsia.ir.functions import FUNCTIONS
    from intarsia.ir.graph import OPS

    rows = {name: _first_line(cls) for name, cls in OPS.items() if name not in ("parameter", "elementwise")}
    rows |= {f.name: f"{f.description} (elementwise)" for f in FUNCTIONS.values()}
    return sorted(rows.items())


def passes() -> Iterable[tuple[str, str]]:
    from intarsia.passes import all_passes
    from intarsia.passes.pipeline import PASSES

    all_passes()
    return [(name, _first_line(cls)) for name, cls in sorted(PASSES.items())]


def measured_rates() -> Iterable[tuple[str, str]]:
    from intarsia.cache import Cache
    from intarsia.ir.dots import dots_of
    from intarsia.limits import measure_rates
    from intarsia.options import host_target

    click.echo("measuring this machine, for a few seconds …", err=True)
    cache = Cache()
    rates = measure_rates(cache)
    target = host_target()
    peak = rates.clock * rates.arithmetic * 2 * target.lanes(32)
    yield (
        "f32 operations",
        f"{peak / 1e9:.1f} GFLOP/s a core, as {rates.arithmetic:g} units at {rates.clock / 1e9:.2f} GHz",
    )
    for dot in dots_of(target):
        yield (
            f"{dot.left} by {dot.right}",
            f"{rates.clock * rates.dots * 2 * dot.width * target.lanes(32) / 1e9:.1f} G operations/s a core, "
            f"as {rates.dots:.2g} dot instructions a cycle",
        )
    for level, (size, rate) in enumerate(zip(target.caches[1:], rates.cache_bytes), 2):
        yield (
            f"cache {level}",
            f"{size_text(size)}, {rate * rates.clock / 1e9:.1f} GB/s a core, {rate:.1f} bytes a cycle",
        )
    yield (
        "memory",
        f"{rates.memory_of_one / 1e9:.1f} GB/s for one core, {rates.memory / 1e9:.1f} GB/s for all {target.cores}",
    )
    yield "threads", f"{duration_text(rates.fork)} to start and join them"


def targets() -> Iterable[tuple[str, str]]:
    from intarsia.ir.target import TARGETS
    from intarsia.options import resolve_target

    host = resolve_target("cpu:host")
    yield "cpu:host", f"this machine: {host.cpu}, {host.vector_bits}-bit vectors, {host.cores} cores"
    for target in TARGETS.values():
        yield target.name, f"{target.cpu}, {target.vector_bits}-bit vectors, {target.registers} registers"
    yield "reference", "the graph, interpreted with NumPy"
    yield "kernels", "the scheduled kernels, interpreted with NumPy"
    yield "plan", "the scheduled kernels in their workspace, interpreted with NumPy"
    yield "triton-interpret", "the kernels for a GPU, in Triton's interpreter"


def steps() -> Iterable[tuple[str, str]]:
    from intarsia.ir.schedule import STEPS

    return [(name, _first_line(cls)) for name, cls in sorted(STEPS.items())]


def dtypes() -> Iterable[tuple[str, str]]:
    from intarsia.ir.dtypes import ALL_NAMES, dtype

    for name in ALL_NAMES:
        t = dtype(name)
        assert t is not None
        split = f", {t.exponent} exponent and {t.mantissa} mantissa bits, {t.specials}" if t.is_float else ""
        yield name, f"{t.kind}, {t.bits} bits{split}; NumPy {t.numpy}"


def formats() -> Iterable[tuple[str, str]]:
    from intarsia.ir.dtypes import DType
    from intarsia.ir.formats import BUILT_IN

    yield "quant(codes, scale=, group=, axis=, zero=)", "codes with one scale, and perhaps a zero point, per group"
    for name, found in BUILT_IN.items():
        assert isinstance(found.scale, DType) and found.group is not None
        codes = f"{found.codes} codes of a table of {len(found.table)}" if found.table else f"{found.codes} codes"
        unit = f" of {found.unit:g}" if found.unit != 1.0 else ""
        whole = f", one {found.tensor_scale} scale for the tensor" if found.tensor_scale is not None else ""
        bits = found.codes.bits + found.scale.bits / found.group
        yield name, f"{codes}{unit}, one {found.scale} scale for {found.group} elements{whole}; {bits:g} bits each"


def errors() -> Iterable[tuple[str, str]]:
    from intarsia.documentation import error_pages, error_title

    return [(code, error_title(page)) for code, page in error_pages().items()]


LISTS: dict[str, Callable[[], Iterable[tuple[str, str]]]] = {
    f.__name__: f for f in (ops, passes, targets, steps, dtypes, formats, errors)
}


@click.command("list")
@click.argument("kind", type=click.Choice(list(LISTS)))
@click.option(
    "--measure", is_flag=True, help="targets: measure what this machine does in a cycle, for every compilation."
)
def command(kind: str, measure: bool) -> None:
    """List what the compiler knows."""
    if measure and kind != "targets":
        raise click.UsageError("--measure goes with targets")
    rows = [*(measured_rates() if measure else ()), *LISTS[kind]()]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        click.echo(f"{name:<{width}}  {text}".rstrip())
