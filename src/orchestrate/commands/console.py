"""What all commands share: where output goes, how errors look, how an Orchestrator is opened."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from orchestrate.errors import OrchestrateError, ProviderError

if TYPE_CHECKING:
    from orchestrate.service import Orchestrator
    from orchestrate.spec import JobSpec

_WIDTH = shutil.get_terminal_size((120, 24)).columns
out = Console(highlight=False, width=_WIDTH)
"""Data; what a pipe gets."""
err = Console(stderr=True, highlight=False, width=_WIDTH)
"""Progress, notes and errors."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to stdout.")]
RunArg = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, its beginning, or 'last'.")]

STATUS_STYLE = {
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "unknown": "magenta",
    "paused": "yellow",
}


@contextmanager
def orchestrator(context: typer.Context) -> Generator[Orchestrator]:
    """The Orchestrator of this command line, closed at the end."""
    from orchestrate import config
    from orchestrate.service import Orchestrator

    given: dict[str, Any] = context.find_root().obj or {}
    settings = config.load(config_file=given.get("config"), home=given.get("home"))
    _log(given.get("verbose", 0), settings.log_level)
    with Orchestrator(settings) as ft:
        yield ft


def _log(verbose: int, level: str) -> None:
    import logging

    from rich.logging import RichHandler

    level = {0: level, 1: "INFO"}.get(verbose, "DEBUG")
    logging.basicConfig(
        level=level, format="%(message)s", handlers=[RichHandler(console=err, show_path=False)]
    )


def print_json(value: Any) -> None:
    """One JSON document on stdout. Records, lists of records and plain values are taken."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, ensure_ascii=False, default=str) + "\n")


def _plain(value: Any) -> Any:
    from orchestrate.types import Record

    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("Iterable[Any]", value)]
    return value


def table(*columns: str, right: Iterable[str] = (), fold: Iterable[str] | None = None) -> Table:
    """A plain table. Only the columns of `fold` (by default all) are wrapped when the width is short; the
    others are cut."""
    made = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        wraps = fold is None or column in fold
        made.add_column(
            column,
            justify="right" if column in right else "left",
            overflow="fold" if wraps else "ellipsis",
            no_wrap=not wraps,
            max_width=None if wraps else 44,
        )
    return made


def note(text: str) -> None:
    err.print(text, style="dim")


def warn(text: str) -> None:
    err.print(f"[yellow]warning:[/] {text}", markup=True)


def status_text(status: str, *, sandbox: bool = False) -> str:
    style = STATUS_STYLE.get(status, "white")
    return f"[{style}]{status}[/]" + (" [reverse] SANDBOX [/]" if sandbox else "")


def report_error(error: OrchestrateError, *, as_json: bool) -> None:
    """What failed, whether trying again helps, what to do; with `--json` the same as one JSON line on
    stderr."""
    if as_json:
        value = {
            "error": type(error).__name__,
            "message": error.message,
            "fix": error.fix,
            "retryable": error.retryable,
            "exit_code": error.exit_code,
        }
        sys.stderr.write(json.dumps(value, ensure_ascii=False) + "\n")
        return
    err.print("error:", style="bold red", end=" ")
    err.print(error.message, markup=False, soft_wrap=True)
    if isinstance(error, ProviderError):
        wait = f" after {error.retry_after_s:.0f} s" if error.retry_after_s else ""
        again = f"trying again{wait} may help" if error.retryable else "trying again will not help"
        err.print(f"  {again}" + (f"; request {error.request_id}" if error.request_id else ""), markup=False)
    if error.fix:
        err.print(f"  {error.fix}", style="cyan", markup=False, soft_wrap=True)


def report_defect(error: Exception, *, verbose: bool) -> None:
    """An error that nobody foresaw is a defect of ours: the trace goes to a file, or with `-v` to stderr."""
    import tempfile
    import traceback

    trace = "".join(traceback.format_exception(error))
    err.print("defect:", style="bold red", end=" ")
    err.print(f"{type(error).__name__}: {error}", markup=False, soft_wrap=True)
    if verbose:
        sys.stderr.write(trace)
        return
    with tempfile.NamedTemporaryFile("w", prefix="orchestrate-", suffix=".txt", delete=False) as kept:
        kept.write(trace)
    err.print(
        f"  this is a defect of Orchestrate, not of your input; please report {kept.name}", markup=False
    )


def confirm(question: str, *, yes: bool) -> bool:
    """Asks on a terminal; without one the answer is no, unless `--yes` was given."""
    if yes:
        return True
    if not sys.stdin.isatty():
        return False
    return typer.confirm(question, err=True)


# -- options that make a spec --------------------------------------------------------------------------------

SpecArg = Annotated[Path | None, typer.Argument(metavar="[SPEC.yaml]", help="Default: ./finetune.yaml")]
ModelOpt = Annotated[
    list[str] | None, typer.Option("--model", help="A model, or BACKEND=MODEL; may be repeated.")
]
TrainOpt = Annotated[str | None, typer.Option("--train", help="Training data.")]
ValidationOpt = Annotated[str | None, typer.Option("--validation", help="Validation data.")]
MethodOpt = Annotated[str | None, typer.Option("--method", help="sft, dpo or rft.")]
EpochsOpt = Annotated[int | None, typer.Option("--epochs", help="Passes over the training data.")]
SetOpt = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any field of the spec.")
]
ProviderOpt = Annotated[str, typer.Option("--provider", "-p", help="Backends, comma-separated; or all.")]


def read_spec(
    path: Path | None,
    *,
    model: list[str] | None = None,
    train: str | None = None,
    validation: str | None = None,
    method: str | None = None,
    epochs: int | None = None,
    settings: list[str] | None = None,
    max_cost: str | None = None,
) -> JobSpec:
    """The spec of a command line: the file with the flags over it, or flags that name model and data."""
    from orchestrate import specfile

    flags: dict[str, Any] = {
        "model": _model(model),
        "train": train,
        "validation": validation,
        "method": method,
        "epochs": epochs,
        "max_cost_usd": max_cost,
    }
    overrides = {k: v for k, v in flags.items() if v is not None} | specfile.parse_settings(settings or [])
    if path is None and not Path(specfile.DEFAULT_NAME).exists() and {"model", "train"} <= overrides.keys():
        values: dict[str, Any] = {}
        for name, value in overrides.items():
            specfile.put(values, name, value)
        return specfile.build(values, place="the command line")
    return specfile.load(path or Path(specfile.DEFAULT_NAME), overrides)


def _model(given: list[str] | None) -> str | dict[str, str] | None:
    """`--model M`, or `--model openai=M --model local=N`."""
    if not given:
        return None
    pairs = [item.partition("=") for item in given]
    if len(given) == 1 and not pairs[0][1]:
        return given[0]
    return {(name if equals else "default"): (model if equals else name) for name, equals, model in pairs}
