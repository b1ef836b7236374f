"""The commands `data convert`, `data split` and `data dedupe`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import replace

from orchestrate.commands.data.options import FileArg, OutputOpt, ReadOptions, engine
from orchestrate.commands.data.views import note_rewritten
from orchestrate.commands.terminal import completion
from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import note, out, prints_json, settings_of, table
from orchestrate.commands.terminal.options import columns_read
from orchestrate.core.underway import BYTES, work
from orchestrate.errors import DataError, MissingExtra, OrchestrateError, UsageError
from orchestrate.text import count
from orchestrate.types import Problem, Severity

if TYPE_CHECKING:
    from orchestrate.data.operations.convert import ConvertReport
    from orchestrate.data.operations.dedupe import DedupeReport
    from orchestrate.data.operations.split import SplitReport


@dataclass(frozen=True, kw_only=True)
class ThreadOptions:
    """Options for grouping rows into conversations. Each row holds one message."""

    thread: Annotated[
        str | None,
        typer.Option(
            "--thread", metavar="COLUMN", help="Group one-message rows into conversations by this column."
        ),
    ] = None
    role: Annotated[
        str | None,
        typer.Option("--role", metavar="COLUMN", help="Column with the speaker's role, name or address."),
    ] = None
    assistant: Annotated[
        list[str] | None,
        typer.Option(
            "--assistant", metavar="VALUE", help="Speaker to treat as the assistant. * matches anyone."
        ),
    ] = None
    user: Annotated[
        list[str] | None,
        typer.Option("--user", metavar="VALUE", help="Speaker to treat as the user. * matches anyone."),
    ] = None
    left_out: Annotated[
        list[str] | None,
        typer.Option("--leave-out", metavar="VALUE", help="Speaker to drop. * matches anyone."),
    ] = None
    text: Annotated[str | None, typer.Option("--text", metavar="COLUMN", help="Column with the text.")] = None
    time: Annotated[str | None, typer.Option("--time", metavar="COLUMN", help="Column with the time.")] = None


@command
def convert(
    context: typer.Context,
    file: FileArg,
    *,
    to: Annotated[
        str,
        typer.Option(
            help="Target format: openai, together, fireworks, local, sharegpt, alpaca, trl, gemini, bedrock, "
            "parquet, or unpaired (two rows per preference pair).",
            autocompletion=completion.formats,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Output file, compressed if it ends in .gz or .zst. Use - for standard output.",
            show_default=False,
        ),
    ] = None,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Write what the format supports, and report what is lost.")
    ] = False,
    requests: Annotated[
        str | None,
        typer.Option(
            "--requests", metavar="FILE", help="Input file of the batch, if FILE contains batch results."
        ),
    ] = None,
    messages: ThreadOptions,
    reading: ReadOptions,
) -> Output[ConvertReport]:
    """Convert rows to another format. Fails if something would be lost, unless you pass --allow-loss.
    --thread, --role and --assistant turn tickets and emails with one message per row into conversations."""
    from orchestrate.runs import data

    format = data.format_of(settings_of(context), to)
    ending = "parquet" if to == "parquet" else "jsonl"
    target = output or data.beside(file, f"{to}.{ending}")
    if prints_json() and data.is_stdout(target):
        raise UsageError("--json and the rows cannot both go to standard output", fix="set a file with -o")
    with (
        _with_requests(file, requests) as calls,
        _conversations(calls, messages, reading.ignored or ()) as joined,
        engine(reading.engine, reading.workers),
        work("converting", BYTES) as progress,
    ):
        report = data.convert(
            joined,
            format,
            target,
            allow_loss=allow_loss,
            columns=columns_read(reading.columns, reading.ignored),
            workers=reading.workers,
            progress=progress,
        )
    report = replace(report, path=file, losses=tuple(_of(loss, joined, file) for loss in report.losses))
    return Output(report, partial(_show_converted, write_line=note if data.is_stdout(target) else out.print))


def _show_converted(report: ConvertReport, write_line: Callable[[str], None]) -> None:
    for loss in report.losses:
        note(f"{'lost' if loss.severity is Severity.ERROR else loss.severity}: {loss.message}")
    write_line(f"{report.output}: {count(report.written, 'row')}, {report.left_out:,} left out")


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Options for splitting the rows."""

    seed: Annotated[int, typer.Option(min=0, help="Seed for the split.")] = 0
    stratify: Annotated[
        bool, typer.Option("--stratify", help="Keep the same mix of answers in each split.")
    ] = False
    near: Annotated[
        bool, typer.Option("--near/--no-near", help="Keep near-duplicates in the same split.")
    ] = True
    group_by: Annotated[
        str | None,
        typer.Option(
            "--group-by",
            metavar="COLUMN",
            help="Keep rows with the same value in this column, such as a customer id, in the same split.",
        ),
    ] = None
    exact: Annotated[
        bool,
        typer.Option(
            "--exact/--no-exact",
            help="Match the shares exactly, even in small files. --no-exact assigns each row by its "
            "content alone, so the shares are approximate.",
        ),
    ] = True


@command
def split(
    file: FileArg,
    shares: Annotated[
        str,
        typer.Argument(
            metavar="[SHARES]",
            help="Percentages of train, validation and test rows, such as 80/20 or 80/10/10.",
        ),
    ] = "80/10/10",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Output folder. Default: next to FILE, named after it."),
    ] = None,
    *,
    options: SplitOptions,
    reading: ReadOptions,
) -> Output[SplitReport]:
    """Split a file by content. Each row stays in its split when you add rows to the file and split it into
    the same folder again. Conversations are never divided."""
    from orchestrate.runs import data

    with (
        engine(reading.engine, reading.workers),
        work("splitting", BYTES) as progress,
        _or("use --no-near. Near-duplicates can then end up in different splits"),
    ):
        report = data.split(
            file,
            data.Division(
                data.parse_shares(shares),
                options.seed,
                options.near,
                options.stratify,
                fill=options.exact,
                group_by=options.group_by,
            ),
            output or data.beside(file, "split"),
            columns=columns_read(reading.columns, reading.ignored),
            workers=reading.workers,
            progress=progress,
        )
    return Output(
        report,
        partial(_show_split, shares=data.parse_shares(shares), exact=options.exact or options.stratify),
    )


_OFF = 0.02
"""Tolerance for a split's share of the rows (0.02 is 2 percentage points). Beyond it, the split is reported
as approximate."""


def _show_split(report: SplitReport, shares: tuple[float, ...], *, exact: bool) -> None:
    shown = table("split", "rows", "share", "file", right=("rows", "share"))
    for part in report.files:
        shown.add_row(part.split, f"{part.rows:,}", f"{part.share:.1%}", part.path)
    out.print(shown)
    note(f"kept {count(report.groups, 'group')} intact, dropped {count(report.left_out, 'row')} with errors")
    note_rewritten(report)
    if report.pooled:
        note(
            f"pooled {count(report.pooled, 'group')} before splitting, because some answers are too rare "
            "to appear in every split"
        )
    if report.ungrouped:
        note(
            f"{count(report.ungrouped, 'row')} without a value in the --group-by column were "
            "split individually"
        )
    if report.seed:
        note(f"seed {report.seed}")
    if any(abs(part.share - share) > _OFF for part, share in zip(report.files, shares, strict=True)):
        why = (
            "a group is never split across files" if exact else "each row's split depends only on its content"
        )
        note(f"the shares are approximate because {why}" + "; --exact gets closer" * (not exact))


@command
def dedupe(
    file: FileArg,
    output: OutputOpt = None,
    near: Annotated[bool, typer.Option("--near", help="Also remove near-duplicates (MinHash).")] = False,
    threshold: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="Minimum similarity of near-duplicates.")
    ] = 0.8,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    *,
    reading: ReadOptions,
) -> Output[DedupeReport]:
    """Remove duplicates. Keeps the first of each set and logs the others."""
    from orchestrate.runs import data

    with engine(reading.engine, reading.workers), work("comparing", BYTES) as progress:
        report = data.dedupe(
            file,
            None if dry_run else output or data.beside(file, "deduped.jsonl"),
            near_duplicates=near,
            threshold=threshold,
            columns=columns_read(reading.columns, reading.ignored),
            workers=reading.workers,
            progress=progress,
        )
    return Output(report, partial(_show_deduped, file=file))


def _show_deduped(report: DedupeReport, file: str) -> None:
    counts = f"{report.exact:,} identical, {report.near:,} near-duplicates"
    out.print(f"{count(report.rows, 'row')}, {report.kept:,} kept: {counts}")
    if report.left_out:
        note(
            f"dropped {count(report.left_out, 'row')} with errors. To list them: "
            f"orchestrate data check {file}"
        )
    if report.output:
        note(f"written to {report.output}; removed rows are listed in {report.log}")
        note(f"to train on these rows, set train to {report.output} in the spec")
        note_rewritten(report)


@contextmanager
def _with_requests(file: str, requests: str | None) -> Generator[str]:
    """Yield the file, or a batch's results joined with their requests."""
    from orchestrate.runs import data

    if requests is None:
        yield file
        return
    with TemporaryDirectory() as folder:
        rows = Path(folder) / "batch.jsonl"
        report = data.join_batch(file, requests, rows)
        note(f"{count(report.joined, 'result')} matched with their requests")
        if report.unasked:
            note(f"{count(report.unasked, 'result')} without a request in {requests}")
        if report.unanswered:
            note(f"{count(report.unanswered, 'request')} without a result")
        with _named(rows, file):
            yield str(rows)


@contextmanager
def _conversations(file: str, given: ThreadOptions, ignored: Iterable[str]) -> Generator[str]:
    """Yield the file, or the conversations built from its messages. Reports what they omit."""
    from orchestrate.runs import data

    columns = data.columns_of(
        file,
        thread=given.thread,
        role=given.role,
        assistant=given.assistant or (),
        text=given.text,
        time=given.time,
        ignored=ignored,
        user=given.user or (),
        left_out=given.left_out or (),
    )
    if columns is None:
        yield file
        return
    with TemporaryDirectory() as folder:
        rows = Path(folder) / "conversations.jsonl"
        report = data.join(file, columns, rows)
        counts = (report.messages, "message"), (report.threads, "thread"), (report.written, "conversation")
        note(", ".join(count(number, one) for number, one in counts))
        for part, senders in report.speakers.items():
            note(f"{part}: {', '.join(senders)}{' ...' if len(senders) == _SPEAKERS_SHOWN else ''}")
        for what, text in _THREADS.items():
            if number := getattr(report, what):
                shown = ", ".join(report.shown.get(what, ()))
                counted = count(number, "message" if what in _OF_MESSAGES else "thread")
                note(f"{counted} {text}{f': {shown}' if shown else ''}")
        if report.time is None:
            note("no time column found, so messages stay in file order. To set the column: --time COLUMN")
        if report.unread:
            note(
                f"unused columns: {', '.join(report.unread)}. If one of these columns marks internal "
                "messages, remove the internal messages first, or the model will be trained on them"
            )
        if report.internal:
            plural = "s" if len(report.internal_by) > 1 else ""
            by = f"column{plural} {', '.join(report.internal_by)}"
            note(
                f"dropped {count(report.internal, 'message')} marked as internal in {by}. To keep them: "
                f"--ignore {quote(','.join(report.internal_by))}"
            )
        with _named(rows, file):
            yield str(rows)


_THREADS = {
    "open": "dropped: nobody answered",
    "unanswered_ends": "written without the messages after the last answer",
    "unasked": "written without the answers that came before the first user message",
    "several_agents": "with answers from several agents, so styles are mixed",
    "empty": "dropped: only quotes or a signature",
    "unthreaded": "dropped: no thread id",
    "other_speakers": "dropped by --leave-out",
    "aside": "dropped: not on the best branch of the conversation tree",
}
_OF_MESSAGES = ("empty", "unthreaded", "aside", "other_speakers")
_SPEAKERS_SHOWN = 5


@contextmanager
def _named(rows: Path, file: str) -> Generator[None]:
    """Name the original file in errors about rows that were derived from it."""
    try:
        yield
    except OrchestrateError as error:
        error.message = error.message.replace(str(rows), file)
        error.fix = error.fix and error.fix.replace(str(rows), file)
        if isinstance(error, DataError):
            error.problems = tuple(_of(problem, str(rows), file) for problem in error.problems)
        raise


def _of(problem: Problem, rows: str, file: str) -> Problem:
    return replace(
        problem,
        message=problem.message.replace(rows, file),
        fix=problem.fix and problem.fix.replace(rows, file),
        source=problem.source and problem.source.replace(rows, file),
    )


@contextmanager
def _or(option: str) -> Generator[None]:
    """Add an option that avoids a missing package to the error about it."""
    try:
        yield
    except MissingExtra as error:
        error.fix = f"{error.fix}, or {option}"
        raise
