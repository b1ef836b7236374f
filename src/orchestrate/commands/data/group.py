"""Inspect, check, convert, split, score and generate training data. All commands work offline, except those
that query or train a model on a host: generate, judge, score --judge, curve, and preview for a run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from orchestrate.commands.data.copies import convert, dedupe, split
from orchestrate.commands.data.curve import curve
from orchestrate.commands.data.generation import generate, review
from orchestrate.commands.data.judge import from_review, judge
from orchestrate.commands.data.options import (
    FileArg,
    ModelOpt,
    OutputOpt,
    ReadOptions,
    TokenizerOpt,
    engine,
)
from orchestrate.commands.data.record import from_record
from orchestrate.commands.data.score import score, select
from orchestrate.commands.data.views import show_check, show_inspect, show_preview
from orchestrate.commands.terminal.command import Output, command, shown_already
from orchestrate.commands.terminal.console import note, orchestrator, settings_of
from orchestrate.commands.terminal.options import IgnoreOpt, MapOpt, TokensOpt, columns_read
from orchestrate.core.files import inside
from orchestrate.core.underway import BYTES, work
from orchestrate.errors import UsageError
from orchestrate.types import TokensFrom

if TYPE_CHECKING:
    from orchestrate.data.operations.check import CheckReport
    from orchestrate.data.operations.fix import FixReport
    from orchestrate.data.operations.inspect import InspectReport
    from orchestrate.data.operations.preview import PreviewReport

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=__doc__)


@app.command()
@command
def inspect(
    file: FileArg,
    model: ModelOpt = None,
    tokenizer: TokenizerOpt = None,
    *,
    reading: ReadOptions,
) -> Output[InspectReport]:
    """Show a file's format, tokens, roles, tools and duplicates. Also shows its languages, and whether it has
    enough rows."""
    from orchestrate.runs import data

    name = tokenizer or data.counter(model)
    with engine(reading.engine, reading.workers), work("reading", BYTES) as progress:
        report = data.inspect(
            file,
            tokenizer=name,
            columns=columns_read(reading.columns, reading.ignored),
            workers=reading.workers,
            progress=progress,
        )
    return Output(report, show_inspect)


@dataclass(frozen=True, kw_only=True)
class OtherFiles:
    """Options for the other files of the dataset."""

    validation: Annotated[str | None, typer.Option(help="Validation file to check for leakage.")] = None
    test: Annotated[str | None, typer.Option(help="Test file to check for leakage.")] = None


@dataclass(frozen=True, kw_only=True)
class CheckTarget:
    """Options for the backends, method and number of epochs to check the data against."""

    hosts: Annotated[str, typer.Option("--for", help="Comma-separated backends.")] = "all"
    model: ModelOpt = None
    tokenizer: TokenizerOpt = None
    method: Annotated[str | None, typer.Option(help="sft, dpo, kto or rft.")] = None
    epochs: Annotated[int | None, typer.Option(min=1, help="Number of epochs to count tokens for.")] = None
    near: Annotated[
        bool | None,
        typer.Option(
            "--near/--no-near", help="Also check for near-duplicates. Default: only with several files."
        ),
    ] = None
    strict: Annotated[bool, typer.Option("--strict", help="Treat unused columns and fields as errors.")] = (
        False
    )
    tokens: TokensOpt = TokensFrom.EXACT


class DataChecked(TypedDict):
    report: CheckReport
    fix: FixReport | None


@app.command()
@command
def check(
    context: typer.Context,
    file: FileArg,
    *,
    others: OtherFiles,
    wanted: CheckTarget,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write a repaired copy and a log of each change.")
    ] = False,
    output: OutputOpt = None,
    reading: ReadOptions,
) -> Output[DataChecked]:
    """Check the data against the rules of every backend. Lists all problems. Exit code 1 if there are
    errors."""
    from orchestrate.runs import data

    named = {"train": file, "validation": others.validation, "test": others.test}
    paths = {split: path for split, path in named.items() if path}
    columns = columns_read(reading.columns, reading.ignored)
    options, unchecked = data.check_options(
        settings_of(context), paths, data.FileCheck(**vars(wanted)), columns=columns, workers=reading.workers
    )
    repaired = (output or data.beside(file, "fixed.jsonl")) if fix else None
    if repaired is not None:
        data.require_writable(repaired, *paths.values())
    for line in unchecked:
        note(line)
    with engine(reading.engine, reading.workers), work("checking", BYTES) as progress:
        report = data.check(paths, options, progress=progress)
    fixed = data.fix(file, repaired, hosts=options.hosts, columns=columns) if repaired else None
    checked = DataChecked(report=report, fix=fixed)
    return Output(checked, partial(_show_checked, near=options.near), 0 if report.ok else 1)


def _show_checked(checked: DataChecked, near: bool) -> None:
    show_check(checked["report"], checked["fix"])
    if not near:
        note("skipped the check for near-duplicates. To run it (takes about twice as long): --near")


app.command()(convert)
app.command()(split)
app.command()(dedupe)


@dataclass(frozen=True, kw_only=True)
class PreviewOptions:
    """Options for the rows to show, and for training settings."""

    row: Annotated[int, typer.Option(min=1, help="First row to show.")] = 1
    rows: Annotated[int, typer.Option(min=1, help="Number of rows to show.")] = 1
    max_length: Annotated[
        int | None, typer.Option(min=8, help="Truncate rows to this many tokens, as training would.")
    ] = None
    truncation: Annotated[
        str,
        typer.Option(help="What to do with longer rows: cut the end (right), cut the start (left), or drop."),
    ] = "right"
    train_on_inputs: Annotated[bool, typer.Option("--train-on-inputs", help="Also train on the prompt.")] = (
        False
    )
    train_on: Annotated[
        str,
        typer.Option(
            metavar="all|last|ROLES",
            help="Roles to train on, such as assistant,tool. Same as method.train_on in a spec.",
        ),
    ] = "all"
    ignore_empty_think: Annotated[
        bool, typer.Option("--ignore-empty-think", help="Exclude empty thinking blocks from the loss.")
    ] = False
    chat_template: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Chat template to use instead of the model's own, as in a spec."),
    ] = None
    chat_template_kwargs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Template variable, such as enable_thinking=false; repeatable."
        ),
    ] = None


@app.command()
@command
def preview(
    context: typer.Context,
    file: Annotated[
        str, typer.Argument(metavar="FILE|RUN", help="A file, or a run on a host that can show its rows.")
    ],
    *,
    model: Annotated[
        str | None, typer.Option("--model", help="A model folder, or a model with a cached tokenizer.")
    ] = None,
    shown: PreviewOptions,
    html: Annotated[Path | None, typer.Option(help="Write an HTML page instead.")] = None,
    columns: MapOpt = None,
    ignored: IgnoreOpt = None,
) -> Output[PreviewReport]:
    """Show rows as the model sees them, with trained tokens marked. For a file, the local engine tokenizes
    the rows. For a run, shows the tokens that its host reports."""
    from orchestrate.runs import data
    from orchestrate.spec.specfile import parse_settings

    if model is None and not Path(file).exists():
        with orchestrator(context) as ft:
            report = data.rows_of_run(ft, file, shown.row, shown.rows)
    elif model is None:
        raise UsageError("name the model whose tokenizer should be used", fix="--model MODEL")
    else:
        given = shown.chat_template_kwargs or ()
        settings = parse_settings(given, "--chat-template-kwargs enable_thinking=false")
        report = data.read_preview(
            file,
            model,
            shown.row,
            shown.rows,
            _masking(shown),
            columns_read(columns, ignored),
            {"chat_template": shown.chat_template, "chat_template_kwargs": settings},
        )
    if html is not None:
        inside(html).write_text(data.html(report), encoding="utf-8")
        note(f"written: {html}")
    return Output(report, show_preview if html is None else shown_already)


def _masking(shown: PreviewOptions) -> dict[str, object]:
    """Build the masking options. Raises `SpecError` for values that a spec would reject."""
    from orchestrate.spec import JobSpec

    roles = shown.train_on.split(",")
    train_on = shown.train_on if roles[0] in ("all", "last") and len(roles) == 1 else roles
    given = {"truncation": shown.truncation, "max_seq_length": shown.max_length}
    method = {
        "train_on_inputs": shown.train_on_inputs,
        "train_on": train_on,
        "ignore_empty_think": shown.ignore_empty_think,
    }
    JobSpec.parse({"model": "-", "train": "-", "method": {"type": "sft", **method}, **given})
    return {**given, **method}


app.command()(generate)
app.command()(review)
app.command()(from_record)
app.command()(from_review)
app.command()(judge)
app.command()(curve)
app.command()(score)
app.command()(select)
