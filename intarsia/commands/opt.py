"""`intarsia opt`: run passes over IR text."""

from __future__ import annotations

from typing import Literal

import click

from intarsia.commands.options import WRONG, read_text, write_output
from intarsia.deep_stack import with_deep_stack
from intarsia.ir.errors import CompileError, Remarks, Source

SEPARATOR = "# -----"


@click.command("opt")
@click.argument("file", metavar="IR", default="-")
@click.option("--passes", default="", metavar="TEXT", help='The pipeline, as in "canonicalize,fuse{max-ops=8}".')
@click.option(
    "--verify-each",
    is_flag=False,
    flag_value="types",
    default=None,
    type=click.Choice(["types", "text", "exec"]),
    help="Check after every pass: types; text that reads back; results by execution.",
)
@click.option("--print-ir-before", multiple=True, metavar="PASS", help="Dump before this pass.")
@click.option("--print-ir-after", multiple=True, metavar="PASS", help="Dump after this pass.")
@click.option("--print-ir-before-all", is_flag=True, help="Dump before every pass.")
@click.option("--print-ir-after-all", is_flag=True, help="Dump after every pass.")
@click.option("--print-ir-after-change", is_flag=True, help="Dump after every pass that changed something.")
@click.option("--diff", "show_diff", is_flag=True, help="Show what each pass changed.")
@click.option("--timing", is_flag=True, help="Show how long each pass took.")
@click.option("--remarks", "show_remarks", is_flag=True, help="Show the decisions of the passes.")
@click.option("--debug-info", is_flag=True, help="Print the user's place on every line that has one.")
@click.option("--split-input-file", is_flag=True, help=f"The file holds several modules, between lines `{SEPARATOR}`.")
@click.option("--stop-after", type=click.IntRange(0), default=None, metavar="N", help="Run the first N passes only.")
@click.option("--target", default="cpu:x86-avx512", show_default=True, help="The machine that passes ask about.")
@click.option("--list", "list_passes", is_flag=True, help="List the passes.")
@click.option("-o", "output", default="-", metavar="FILE", help="Where the result goes.")
def command(
    file: str,
    passes: str,
    verify_each: Literal["types", "text", "exec"] | None,
    print_ir_before: tuple[str, ...],
    print_ir_after: tuple[str, ...],
    print_ir_before_all: bool,
    print_ir_after_all: bool,
    print_ir_after_change: bool,
    show_diff: bool,
    timing: bool,
    show_remarks: bool,
    debug_info: bool,
    split_input_file: bool,
    stop_after: int | None,
    target: str,
    list_passes: bool,
    output: str,
) -> int:
    """Run passes over IR text: files from `emit`, written by hand, or standard input.

    The result goes to standard output; dumps, differences, times and remarks go to standard error.
    """
    from intarsia.commands.list import passes as pass_rows
    from intarsia.ir.text import print_module, read_module
    from intarsia.ir.verifier import require_well_formed
    from intarsia.options import resolve_target
    from intarsia.passes.instruments import ALL, Diff, PrintIR, Timing
    from intarsia.passes.pipeline import Context, Instrument, PassError, Pipeline
    from intarsia.passes.verify import verification

    if list_passes:
        for name, text in pass_rows():
            click.echo(f"{name:<18}{text}")
        return 0
    pipeline = Pipeline.parse(passes)
    if stop_after is not None:
        pipeline = pipeline.first(stop_after)

    def note(text: str) -> None:
        click.echo(text, err=True, nl=not text.endswith("\n"))

    def run(source: Source) -> str:
        module = read_module(source)
        require_well_formed(module)
        remarks = Remarks()
        times = Timing()
        before = frozenset(print_ir_before) | ({ALL} if print_ir_before_all else set())
        after = frozenset(print_ir_after) | ({ALL} if print_ir_after_all or print_ir_after_change else set())
        instruments: list[Instrument] = [PrintIR(note, before, after, print_ir_after_change, debug_info)]
        if show_diff:
            instruments.append(Diff(note))
        if verify_each:
            instruments += verification(verify_each)
        context = Context(resolve_target(target), remarks)
        result = pipeline.run(module, context, [*instruments, times])
        if timing:
            note(times.table())
        if show_remarks:
            for remark in remarks.items:
                place = f"{remark.span}: " if remark.span else ""
                note(f"{place}{remark.pass_name}: {remark.message}")
        return print_module(result, debug_info)

    whole = read_text(file)
    texts = _split(whole) if split_input_file else [whole]
    results: list[str] = []
    mistakes: list[CompileError] = []
    for source in texts:
        try:
            results.append(with_deep_stack(lambda source=source: run(source)))  # type: ignore[misc]
        except CompileError as error:
            mistakes.append(error)
        except PassError as error:
            note(str(error))
            return WRONG
    text = f"{SEPARATOR}\n".join(results)
    write_output(output, text)
    if mistakes:
        raise CompileError.of([d for error in mistakes for d in error.diagnostics])
    return 0


def _split(source: Source) -> list[Source]:
    """The modules of a file. Blank lines stand for those before, so that errors name the right line."""
    parts: list[Source] = []
    lines: list[str] = []
    start = 0
    for number, line in enumerate([*source.text.splitlines(), SEPARATOR]):
        if line.strip() == SEPARATOR:
            if any(text.strip() for text in lines):
                parts.append(Source(source.name, "\n" * start + "\n".join(lines) + "\n"))
            lines, start = [], number + 1
        else:
            lines.append(line)
    return parts
