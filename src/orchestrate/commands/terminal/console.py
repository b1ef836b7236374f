"""Code shared by all commands: consoles, errors, confirmations, and opening an Orchestrator."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from decimal import Decimal
from functools import partial
from textwrap import wrap
from types import FrameType
from typing import IO, TYPE_CHECKING, Annotated, Any, cast

import msgspec
import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from orchestrate.commands.terminal import completion
from orchestrate.commands.terminal.progress import Bars
from orchestrate.core import days
from orchestrate.core.files import FULL
from orchestrate.core.progress import stage
from orchestrate.core.tables import TextTable, inert_text
from orchestrate.errors import OrchestrateError, ProviderError, SetupError, UsageError
from orchestrate.paid.consent import require_consent
from orchestrate.settings import hide
from orchestrate.text import inert, inert_json
from orchestrate.types import Record, Run

if TYPE_CHECKING:
    from orchestrate.api.orchestrator import Orchestrator
    from orchestrate.costing import Rate, RateBook
    from orchestrate.settings.config import Settings

_WIDTH = shutil.get_terminal_size((120, 24)).columns
# Model names, messages and errors are external text, so brackets and colons are not parsed as markup.
# Styled text must be a `Text`.


class _Console(Console):
    """A console that makes external text safe for the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(inert(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        if isinstance(renderable, Text):
            renderable = inert_text(renderable)
        for segment in super().render(renderable, options):
            # Control segments move the cursor in live views. Rich never creates them from external text.
            yield segment if segment.control else Segment(inert(segment.text), segment.style)

    @Console.file.getter
    def file(self) -> IO[str]:
        """Return the stream without its proxies. A live view wraps the stream in its own proxy, through which
        cursor movements would be printed as visible characters."""
        stream = super().file
        while inner := getattr(stream, "rich_proxied_file", None):
            stream = inner
        return stream


out = _Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else _WIDTH)
"""Console for results on stdout, which can be piped."""
err = _Console(
    stderr=True, highlight=False, markup=False, emoji=False, width=None if sys.stderr.isatty() else _WIDTH
)
"""Console for progress, notes and errors."""

task_progress = Bars(err)
"""Progress bars of the running command, on stderr."""

RunArg = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run's id, a unique prefix of it, or 'last'.", autocompletion=completion.runs
    ),
]

SANDBOX = Text(" SANDBOX ", style="reverse")


def mark_sandbox(sandbox: bool) -> None:
    """Label what is printed next as a sandbox's, on stderr."""
    if sandbox:
        err.print(SANDBOX)


STATUS_STYLE = {
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "unknown": "magenta",
    "outcome unknown": "magenta",
    "not sent": "yellow",
    "paused": "yellow",
}


def of_flags(flags: list[str] | None) -> list[Rate]:
    """Parse the `--rate` flags. Raises `UsageError` if one is invalid."""
    from orchestrate.costing import parse_flag

    return [parse_flag(flag, days.today()) for flag in flags or ()]


def with_flags(book: RateBook, flags: list[str] | None) -> RateBook:
    """Return the rates of `book`, overridden by the given `--rate` flags. Raises `UsageError` if a flag is
    invalid."""
    return book.over(of_flags(flags))


@contextmanager
def orchestrator(
    context: typer.Context, *, made_by: str | None = None, rates: list[str] | None = None
) -> Generator[Orchestrator]:
    """Open the Orchestrator configured by this command line, with the prices of its `--rate` flags. Closes it
    at the end of the block."""
    from orchestrate.api.orchestrator import Orchestrator

    settings = settings_of(context, made_by=made_by)
    given: dict[str, Any] = context.find_root().obj or {}
    _log(given.get("verbose", 0), settings.log_level)
    with Orchestrator(settings) as ft:
        if rates:
            ft.rates = with_flags(ft.rates, rates)
        yield ft


def settings_of(context: typer.Context, *, made_by: str | None = None) -> Settings:
    """Return the configuration of this command line. Raises `ConfigError` if it is invalid."""
    from orchestrate.settings import config

    given: dict[str, Any] = context.find_root().obj or {}
    return config.load(
        config_file=given.get("config"),
        home=given.get("home"),
        store_url=given.get("store"),
        made_by=made_by,
        allow_grader_code=given.get("grader_code", False),
    )


def _log(verbose: int, level: str) -> None:
    import logging

    from rich.logging import RichHandler

    level = {0: level, 1: "INFO"}.get(verbose, "DEBUG")
    logging.basicConfig(
        level=level, format="%(message)s", handlers=[RichHandler(console=err, show_path=False)]
    )


_PRINTS_JSON = ContextVar("_PRINTS_JSON", default=False)


@contextmanager
def printing_json(yes: bool) -> Generator[None]:
    """Record whether the command in this block prints JSON."""
    before = _PRINTS_JSON.set(yes)
    try:
        yield
    finally:
        _PRINTS_JSON.reset(before)


def prints_json() -> bool:
    return _PRINTS_JSON.get()


def print_json(value: Any) -> None:
    """Print one JSON document on stdout. Accepts records, lists of records and plain values."""
    sys.stdout.write(_shown(json.dumps(_plain(value), indent=2, ensure_ascii=False, default=str)))


def json_line(record: Any) -> str:
    """Return a record as one line of JSON."""
    try:
        text = msgspec.json.encode(record).decode()
    except UnicodeEncodeError:
        text = json.dumps(msgspec.to_builtins(record), ensure_ascii=False)
    return _shown(text)


def _shown(text: str) -> str:
    """Return JSON that a terminal shows as it is. Bytes of file names that are not valid UTF-8 are shown as
    `\\udcff`, because many JSON parsers reject their escapes."""
    text = re.sub("[\ud800-\udfff]", lambda found: f"\\\\u{ord(found[0]):04x}", text)
    return inert_json(text) + "\n"


def print_text(text: str) -> None:
    """Print a string, such as a path or a document, on stdout without wrapping or truncating it."""
    sys.stdout.write(inert(text) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value)
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("Iterable[Any]", value)]
    return value


def table(*columns: str, right: Iterable[str] = (), fold: Iterable[str] | None = None) -> TextTable:
    """Create a plain table. If space is short, only the columns in `fold` are wrapped (default: all)."""
    return TextTable(*columns, right=right, fold=fold)


def filled(
    cells: Mapping[str, Sequence[str | Text]], *, right: Sequence[str], fold: Sequence[str]
) -> TextTable:
    """Build a table from `cells`, which maps each column name to the column's cells. Only the columns in
    `fold` are ever wrapped."""
    made = table(*cells, right=right, fold=fold)
    for row in zip(*cells.values(), strict=True):
        made.add_row(*row)
    return made


_COMMAND = re.compile(
    # One or two plain words, then everything that is not one: flags, names, paths.
    r"(?:orchestrate|pip)(?: [a-z-]+(?![^\s;,().:'\"`]|[.:]\S)){1,2}"
    r"(?: (?:-[\w-]+(?: (?:'[^']*'|(?!-)(?:[^\s;,()]|,(?=\S))+))?"
    r"|'[^']*'|[A-Z\d\"'$\[./~]\S*|[a-z]\S*[-=/._:\d]\S*))*"
)
_JOINED = "\0"


def note(text: str) -> None:
    err.print(_fitted(hide(text), 0, "", err.width), style="dim", soft_wrap=True)


def warn(text: str, *, indent: str = "") -> None:
    head = f"{indent}warning: "
    err.print(Text.assemble((head, "yellow"), fitted(hide(text), len(head))), soft_wrap=True)


def fitted(text: str, taken: int, hang: str = "", *, on: Console = err) -> str:
    """Wrap text to the width of a terminal. Output to a pipe is not wrapped, so it can be searched."""
    return _fitted(text, taken, hang, on.width) if on.is_terminal else text


def _fitted(text: str, taken: int, hang: str, width: int) -> str:
    """Wrap between words, but not inside commands, to make them easy to copy. The terminal wraps commands
    that are longer than a line. `taken` is the used width of the first line. `hang` is the prefix of the
    other lines."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("  "):  # a command, or a list
            lines.append(line)
            continue
        joined = _COMMAND.sub(lambda found: found[0].replace(" ", _JOINED), line)
        begun = hang if lines else _JOINED * taken
        parts = wrap(
            joined,
            width,
            initial_indent=begun,
            subsequent_indent=hang,
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += [part.lstrip(_JOINED).replace(_JOINED, " ") for part in parts]
    return "\n".join(lines)


def status_text(status: str, *, sandbox: bool = False) -> Text:
    text = Text(status, style=STATUS_STYLE.get(status, "white"))
    return Text.assemble(text, " ", SANDBOX) if sandbox else text


def stage_text(run: Run, *, chip: bool = True) -> Text:
    """Return the name of a run's stage, in color. If `chip` is set, sandbox runs are marked."""
    return status_text(stage(run), sandbox=run.sandbox and chip)


class ErrorLine(Record, frozen=True, kw_only=True):
    """The JSON object that describes an error on stderr."""

    error: str
    message: str
    fix: str | None = None
    retryable: bool = False
    exit_code: int
    lost_requests: int = 0
    """Number of requests that got no response but may have been billed."""
    lost_usd: Decimal | None = Decimal(0)
    """Maximum cost of the lost requests, in US dollars. `None` if no price is known."""

    def write(self) -> None:
        sys.stderr.write(json_line(self))


def report(error: Exception, *, as_json: bool, verbose: bool = False) -> int:
    """Report any error that ended the command, and return the exit code."""
    if isinstance(error, OrchestrateError):
        report_error(error, as_json=as_json)
        return error.exit_code
    # Typer's errors about the command line. No import path of their classes works in all Typer versions.
    if (format_message := getattr(error, "format_message", None)) and hasattr(error, "exit_code"):
        if type(error).__name__ == "NoArgsIsHelpError":
            # Help in boxes is already printed. Plain help, for narrow terminals, is in the message.
            if page := str(format_message()).strip():
                print_text(page)
            return UsageError.exit_code
        command: Any = getattr(error, "ctx", None)
        fix = f"{command.command_path} --help" if command is not None else None
        # Typer passes on pydantic's messages about a value, which begin with the name of their class.
        message = str(format_message()).replace("Value error, ", "", 1)
        report_error(UsageError(message, fix=fix), as_json=as_json)
        return UsageError.exit_code
    if isinstance(error, OSError) and error.errno in FULL:
        full = SetupError(
            f"the disk is full: {error.strerror}",
            fix="free up some disk space, then run the same command again",
        )
        report_error(full, as_json=as_json)
        return full.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        wrong = SetupError(
            f"{error.filename}: {error.strerror or error}",
            fix="check the path, and its owner and permissions",
        )
        report_error(wrong, as_json=as_json)
        return wrong.exit_code
    report_defect(error, as_json=as_json, verbose=verbose)
    return 1


def report_error(error: OrchestrateError, *, as_json: bool) -> None:
    """Print what failed, whether retrying helps, and what to do. With `--json`, print one JSON line on
    stderr."""
    if as_json:
        ErrorLine(
            error=type(error).__name__,
            message=hide(error.message),
            fix=error.fix and hide(error.fix),
            retryable=error.retryable,
            exit_code=error.exit_code,
            lost_requests=error.lost_requests,
            lost_usd=error.lost_usd,
        ).write()
        return
    err.print("error:", style="bold red", end=" ")
    err.print(fitted(hide(error.message), len("error: ")), soft_wrap=True)
    if isinstance(error, ProviderError):
        wait = f" after {error.retry_after_s:.0f} s" if error.retry_after_s else ""
        again = f"you can retry{wait}" if error.retryable else "retrying will not help"
        err.print(f"  {again}" + (f"; request {error.request_id}" if error.request_id else ""))
    if error.fix:
        err.print(f"  {fitted(hide(error.fix), 2, '  ')}", style="cyan", soft_wrap=True)


def report_defect(error: Exception, *, as_json: bool, verbose: bool) -> None:
    """Report an unexpected error as a bug in Orchestrate. The traceback goes to a file, or to stderr with
    `-v`."""
    import traceback

    from orchestrate.settings import redact_text

    trace = inert(redact_text("".join(traceback.format_exception(error))))
    message = redact_text(f"{type(error).__name__}: {error}")
    if as_json and not verbose:
        ErrorLine(error="Defect", message=message, fix=f"please report {_saved(trace)}", exit_code=1).write()
        return
    err.print("bug:", style="bold red", end=" ")
    err.print(message, soft_wrap=True)
    if verbose:
        sys.stderr.write(trace)
        return
    package = _package_of(error)
    whose = "Orchestrate, not in your input. Please report it with this traceback:"
    if package is not None:
        whose = f"the package {package}, a backend plug-in. Please send this traceback to its authors:"
    err.print(f"  this is a bug in {whose} {_saved(trace)}", soft_wrap=True)


def _package_of(error: Exception) -> str | None:
    """Return the plug-in package that raised the error."""
    from orchestrate.profile import place_plug_ins, plug_ins

    packages = {
        point.module.partition(".")[0]: point.dist.name if point.dist else point.module
        for point in (*plug_ins().values(), *place_plug_ins().values())
    }
    found, frame = None, error.__traceback__
    while frame is not None:
        name = str(frame.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        # Blame an error raised inside a library on the code that called it: the plug-in's or ours.
        found = packages.get(name, None if name == "orchestrate" else found)
        frame = frame.tb_next
    return found


def _saved(trace: str) -> str:
    import tempfile

    with tempfile.NamedTemporaryFile("w", prefix="orchestrate-", suffix=".txt", delete=False) as kept:
        kept.write(trace)
    return kept.name


@contextmanager
def ended_by_signal() -> Generator[threading.Event]:
    """Yield an event that is set by Ctrl-C or SIGTERM, the usual signals to stop a server. A second signal
    stops the server immediately."""
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before[number])
        ended.set()

    before: dict[int, Any] = {
        number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def resumable(how: str) -> Generator[None]:
    """Print how to continue from the saved progress if a long command is interrupted. Of nested blocks, only
    the inner one prints."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if not getattr(interrupt, "__notes__", None):
            note(f"interrupted: {how}")
            interrupt.add_note(how)
        raise


def require_agreed(
    question: str, *, high_usd: Decimal | None, unpriced: bool, limited: bool, yes: bool
) -> None:
    """Require confirmation before querying models that may cost money. Set `unpriced` if the answers may be
    billed at an unknown price. Raises `UsageError` if the user does not confirm."""
    fix = {} if high_usd else {"fix": "add --yes"}
    unpriced, agreed = high_usd is None and unpriced, partial(confirm, question, yes=yes)
    require_consent(high_usd, agreed, otherwise="nothing was sent", unpriced=unpriced, limited=limited, **fix)


def require_unpriced(names: Sequence[str], *, yes: bool) -> None:
    """Require confirmation before querying models with an unknown price. Raises `UsageError` if the user does
    not confirm."""
    question = f"The price of {', '.join(names)} is unknown. Continue anyway?"
    require_agreed(question, high_usd=None, unpriced=bool(names), limited=False, yes=yes)


def warn_lost(requests: int, usd: Decimal | None) -> None:
    """Warn about requests that got no response, and show what they may have cost."""
    from orchestrate.paid.journal import Unaccounted

    if lost := Unaccounted(requests, usd):
        warn(str(lost))


def require_go_ahead(question: str, *, yes: bool) -> None:
    """Ask for confirmation on a terminal, and proceed without asking elsewhere. Raises `UsageError` if the
    user declines."""
    if sys.stdin.isatty() and not confirm(question, yes=yes):
        raise UsageError("nothing was done because you did not confirm")


def confirm(question: str, *, yes: bool) -> bool:
    """Ask for confirmation on a terminal and return the answer. Without a terminal, return whether `--yes`
    was given."""
    if yes:
        return True
    if not sys.stdin.isatty():
        return False
    with prompting():
        return typer.confirm(inert(hide(question)), err=True)


@contextmanager
def prompting() -> Generator[None]:
    """Give Ctrl-C at a prompt the effect it has elsewhere: it interrupts the command. Raises `UsageError` if
    the input ends before it is answered, as with Ctrl-D."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "Abort":  # no import path of this class works in all Typer versions
            raise
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise UsageError("the prompt was not answered, so nothing was done") from None
