"""`intarsia list …`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click


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


def targets() -> Iterable[tuple[str, str]]:
    from intarsia.ir.target import TARGETS
    from intarsia.options import resolve_target

    host = resolve_target("cpu:host")
    yield "cpu:host", f"this machine: {host.cpu}, {host.vector_bits}-bit vectors, {host.cores} cores"
    for target in TARGETS.values():
        yield target.name, f"{target.cpu}, {target.vector_bits}-bit vectors, {target.registers} registers"
    yield "reference", "the graph, interpreted with NumPy"
    yield "kernels", "the scheduled kernels, interpreted with NumPy"


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
    yield "quant(codes, scale=, group=, axis=, zero=)", "codes with one scale, and perhaps a zero point, per group"
    for name in ("mxfp8", "mxfp6", "mxfp4", "mxint8"):
        yield name, "OCP microscaling: 32 elements share a power of two"
    yield "nvfp4", "16 elements of f4e2m1 share an f8e4m3 scale; one f32 scale for the tensor"
    yield "nf4", "64 elements of a 16-entry table share their largest magnitude"


def errors() -> Iterable[tuple[str, str]]:
    from intarsia.documentation import error_pages, error_title

    return [(code, error_title(page)) for code, page in error_pages().items()]


LISTS: dict[str, Callable[[], Iterable[tuple[str, str]]]] = {
    f.__name__: f for f in (ops, passes, targets, steps, dtypes, formats, errors)
}


@click.command("list")
@click.argument("kind", type=click.Choice(list(LISTS)))
def command(kind: str) -> None:
    """List what the compiler knows."""
    rows = list(LISTS[kind]())
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        click.echo(f"{name:<{width}}  {text}".rstrip())
