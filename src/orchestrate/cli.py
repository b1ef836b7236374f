"""The `orchestrate` command line. Each command's module is imported only when the command runs.

Exit codes: 0 done, 1 the run failed or the check found errors, 2 wrong usage, 3 missing key, package or
configuration, 4 the host rejected the request or is unavailable, 5 outcome unknown, 6 over budget, 130
interrupted.
"""

from __future__ import annotations

import codecs
import gc
import os
import sys
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, TextIO, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from orchestrate.commands import COMMANDS, MEANT, load
from orchestrate.commands.terminal.pages import prepare_help, prepare_parameter, prepare_parameters
from orchestrate.core.underway import ProgressCallback, listening
from orchestrate.text import escaped, inert, lookalike

_WRITABLE = "orchestrate"
"""Name of the codec error handler that replaces characters that a stream's encoding can't represent."""

_LATE = 200_000
"""Number of allocations before the first garbage collection. High enough that short commands finish before it
starts."""


class LazyCommand(TyperCommand):
    """A command with its name and one line of help. Its module is imported when the command runs or the shell
    completes its options."""

    def __init__(self, *, panel: str, name: str, target: str, help: str) -> None:
        super().__init__(name=name, help=help, rich_help_panel=panel)
        self.target = target

    def load(self) -> Any:
        found = load(self.target)
        if isinstance(found, typer.Typer):
            command: Any = get_group(found)
        else:
            single = typer.Typer(add_completion=False, rich_markup_mode="rich")
            single.command(name=self.name)(found)
            command = get_command(single)
        command.name = self.name
        return prepare_help(command, str(self.name))

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        return self.load().make_context(info_name, args, parent=parent, **extra)


class LazyGroup(TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {
            name: LazyCommand(panel=panel, name=name, target=target, help=help)
            for panel, name, target, help in COMMANDS
        }
        prepare_parameters(self)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and (meant := MEANT.get(args[0])):
            from orchestrate.errors import UsageError

            raise UsageError(
                f"No such command {args[0]!r}. Did you mean '{meant}'?", fix=f"orchestrate {meant}"
            )
        return super().resolve_command(ctx, args)

    def get_params(self, ctx: Any) -> Any:
        """Return the group's options, including shell completion options, which typer adds later."""
        found = super().get_params(ctx)
        for parameter in found:
            prepare_parameter(parameter)
        return found


_BRITISH = {"accept-licence": "accept-license", "utilisation": "utilization"}
"""British spellings of option names. They are accepted but not shown in help."""


def _spelled(name: str) -> str:
    return _BRITISH.get(name, name)


app = typer.Typer(
    cls=LazyGroup,
    name="orchestrate",
    no_args_is_help=True,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": _spelled,
    },
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Quote, run, track and compare fine-tuning jobs on any backend, from one spec.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from orchestrate import __version__

        typer.echo(f"orchestrate {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="Use this orchestrate.toml.", dir_okay=False)] = None,
    home: Annotated[Path | None, typer.Option(help="Folder for the store, local runs and downloads.")] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Store for runs: sqlite:///FILE or postgresql://..."),
    ] = None,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Log more. -vv also logs requests.")
    ] = 0,
    allow_grader_code: Annotated[
        bool,
        typer.Option("--allow-grader-code", help="Allow a spec's Python grader to run on this machine."),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version
    # An empty path would mean the working folder, and the store would be created there.
    given = home if home is not None and home.parts else None
    context.obj = {
        "config": config,
        "home": given,
        "store": store or None,
        "verbose": verbose,
        "grader_code": allow_grader_code,
    }


@contextmanager
def guarded_streams() -> Generator[None]:
    """Make all text written to stdout and stderr safe, including warnings, tracebacks and the output of other
    libraries. Control sequences are made harmless. Characters that the stream's encoding can't represent (for
    example in redirected output on Windows, or with `LC_ALL=C`) are replaced, so they don't crash a
    command."""
    streams = sys.stdout, sys.stderr
    codecs.register_error(_WRITABLE, escaped if "--json" in sys.argv else lookalike)
    for stream in streams:
        if isinstance(stream, TextIOWrapper) and not codecs.lookup(stream.encoding).name.startswith("utf"):
            stream.reconfigure(errors=_WRITABLE)
    sys.stdout, sys.stderr = cast("TextIO", _Guarded(streams[0])), cast("TextIO", _Guarded(streams[1]))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


class _Guarded:
    """A text stream that makes all written text inert."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream
        """The original stream. Rich's consoles write to it directly. This is safe, because their output
        contains no control sequences other than our own styles and cursor movements."""

    def write(self, text: str) -> int:
        return self.rich_proxied_file.write(inert(text))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def _show(what: str, unit: str) -> AbstractContextManager[ProgressCallback]:
    from orchestrate.commands.terminal.console import task_progress

    return task_progress(what, unit)


def _collect_later() -> None:
    """Delay the first garbage collection. Imported objects are never freed, and scanning them repeatedly
    takes a tenth of a short command's time. After the first collection, the usual thresholds apply."""
    usual = gc.get_threshold()
    if usual[0] >= _LATE:
        return

    def begun(phase: str, info: dict[str, int]) -> None:
        gc.set_threshold(*usual)
        gc.callbacks.remove(begun)

    gc.callbacks.append(begun)
    gc.set_threshold(_LATE, *usual[1:])


def _of_input(error: Exception) -> Exception:
    """Return the error to report. Arguments and environment variables may be any bytes, as file names are,
    but only valid UTF-8 can be stored or sent. The one that contains the text that could not be encoded is
    named."""
    if isinstance(error, UnicodeEncodeError):
        from orchestrate.errors import UsageError

        wrong = error.object[error.start : error.end]
        given = [(f"argument {argument!r}", argument) for argument in sys.argv[1:]]
        given.append(("path of the current folder", str(Path.cwd())))
        given += [(f"environment variable {name}", value) for name, value in os.environ.items()]
        for name, value in given:
            if wrong in value and (value in error.object or error.object in value):
                return UsageError(f"the {name} is not valid UTF-8")
    return error


def main() -> None:
    """Run the command line and exit. Turns errors into a message and an exit code."""
    as_json = "--json" in sys.argv
    _collect_later()
    try:
        # Typer must not print an invalid command line itself, because it may contain a malicious file name.
        with guarded_streams(), nullcontext() if as_json else listening(_show):
            code = app(standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except SystemExit as ended:
        # Rich exits with 1 if the reader closed the pipe while a table or a help page was printed.
        code = 0 if isinstance(ended.__context__, BrokenPipeError) else ended.code
    except BrokenPipeError:
        # The reader closed the pipe, as `| head` does. Discard the remaining output.
        sys.stderr.close()
        os._exit(0)
    except Exception as error:  # noqa: BLE001  the last handler, which reports it
        from orchestrate.commands.terminal.console import report

        code = report(
            _of_input(error),
            as_json=as_json,
            verbose=any(a in sys.argv for a in ("-v", "-vv", "--verbose")),
        )
    # Exiting frees all memory anyway. Without the freeze, Python would scan it several times first.
    gc.freeze()
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
