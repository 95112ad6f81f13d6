"""The command line. Each verb lives in its own file of `intarsia/commands` and is imported when it is used."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import shlex
import sys
import warnings
from collections.abc import Sequence

import click

from intarsia import __version__
from intarsia.ir.errors import CompileError

VERBS = {
    "run": "Compile a program and run it.",
    "emit": "Show or write any stage of a program.",
    "opt": "Run passes over IR text.",
    "check": "Check syntax, names, types, shapes and bounds; run nothing.",
    "explain": "The page of an error code, or the decisions of the compiler about a program.",
    "fmt": "Format a program.",
    "test": "Run the test blocks of a program.",
    "shard": "Show what a program on a mesh of devices sends, or propose shardings.",
    "tune": "Search the schedules of a program's kernels for faster ones, and keep them.",
    "costmodel": "Collect measurements of schedules, and fit the learned cost model.",
    "bench": "Time a program, beside NumPy or PyTorch if asked.",
    "reduce": "Find the smallest program that still shows a failure.",
    "quantize": "Store tensors of a file in a block format, and say how much is lost.",
    "cache": "Show or clear the cache of compiled programs.",
    "list": "List ops, passes, targets, steps, dtypes, formats or error codes.",
}

REPORT_TO = "https://github.com/intarsia-compiler/intarsia/issues"


class _Verbs(click.Group):
    """Imports a verb when it is asked for, so that `--help` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"intarsia.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="intarsia")
def intarsia() -> None:
    """Intarsia, a compiler for tensor programs: write a kernel in one line, see every stage, run it fast."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 fine, 1 the user's program or data is wrong, 2 wrong usage,
    3 a result that `--compare` found wrong; 70 is a bug of ours, after a report on stderr.

    Without `arguments` it is the command of this process, which then ends."""
    if arguments is None:
        # What is left ends with the process; to search it for cycles takes a fifth of the time of a short compilation.
        atexit.register(_freeze)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _main(list(sys.argv[1:] if arguments is None else arguments))


def _freeze() -> None:
    """Leave what is left to the end of the process; but Triton's bindings report what nobody takes away."""
    if "triton" not in sys.modules:
        gc.freeze()


def _show_warning(message: Warning | str, *where: object, **named: object) -> None:
    """A warning as one line: where in our code it was raised tells a user nothing."""
    click.echo(f"warning: {message}", err=True)


def _main(arguments: list[str]) -> int:
    try:
        colour = False if os.environ.get("NO_COLOR") else None  # None: on a terminal
        result = intarsia.main(args=arguments, prog_name="intarsia", standalone_mode=False, color=colour, obj=arguments)
        return result if isinstance(result, int) else 0
    except CompileError as error:
        click.echo(_coloured(str(error)), err=True)
        return 1
    except MemoryError as error:
        message = "the memory of this machine does not suffice" + (f": {error}" if str(error) else "")
        click.echo(_coloured(str(CompileError("E0618", message, hint="choose smaller sizes"))), err=True)
        return 1
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; leave quietly, also when Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        _report_bug(error, arguments)
        return 70


def _coloured(text: str) -> str:
    """Diagnostics with colour on a terminal, unless NO_COLOR is set."""
    if not sys.stderr.isatty() or os.environ.get("NO_COLOR"):
        return text
    lines = []
    for line in text.splitlines():
        if line.startswith("error["):
            head, _, rest = line.partition(": ")
            line = f"{click.style(head, fg='red', bold=True)}: {click.style(rest, bold=True)}"
        elif line.lstrip().startswith(("-->", "|", "=")):
            line = click.style(line, fg="cyan")
        lines.append(line)
    return "\n".join(lines)


def _report_bug(error: Exception, arguments: list[str]) -> None:
    import platform
    import traceback

    traceback.print_exception(type(error), error, error.__traceback__)
    command = shlex.join(["intarsia", *arguments])
    click.echo(
        f"\nThis is a bug in Intarsia {__version__}, not in your program. Please report it at {REPORT_TO}\n"
        f"with the text above, your program, and this: `{command}`\n"
        f"on Python {platform.python_version()}, {platform.platform()}.",
        err=True,
    )
