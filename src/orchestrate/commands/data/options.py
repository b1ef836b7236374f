"""What the data commands share: how files are named and read."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from orchestrate.commands.terminal.console import note
from orchestrate.errors import UsageError

FileArg = Annotated[str, typer.Argument(metavar="FILE", help="A file, a dataset folder, a URL, or -.")]
MapOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="FIELD=COLUMN", help="Read COLUMN as FIELD; may be repeated or comma-separated."
    ),
]
IgnoreOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore", metavar="COLUMN", help="Do not read COLUMN; may be repeated or comma-separated."
    ),
]
WorkersOpt = Annotated[int | None, typer.Option(min=1, help="Processes; default: one for each core.")]
ModelOpt = Annotated[str | None, typer.Option("--model", help="Count with this model's tokenizer.")]
TokenizerOpt = Annotated[
    str | None, typer.Option(help="o200k, cl100k, harmony, qwen3.5, hf:FOLDER, FAMILY~COUNTER.")
]
EngineOpt = Annotated[
    str, typer.Option("--on", "--engine", help="local, or ray: a running cluster, else one on this machine.")
]
OutputOpt = Annotated[Path | None, typer.Option("-o", "--output", help="Where to write.", show_default=False)]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the files are read."""

    columns: MapOpt = None
    ignored: IgnoreOpt = None
    workers: WorkersOpt = None
    engine: EngineOpt = "local"


def columns_read(given: Sequence[str] | None, ignored: Sequence[str] | None = None) -> dict[str, str]:
    """A field of no column is not read."""
    pairs = [pair.partition("=") for item in given or () for pair in item.split(",")]
    if any(not (wanted and column) for wanted, _, column in pairs):
        raise UsageError("--map takes FIELD=COLUMN, for example --map prompt=question,completion=answer")
    left_out = {name.strip(): "" for item in ignored or () for name in item.split(",") if name.strip()}
    return left_out | {wanted.strip(): column.strip() for wanted, _, column in pairs}


@contextmanager
def engine(name: str, workers: int | None) -> Generator[None]:
    """Where the rows are read. Raises `UsageError` for an unknown engine."""
    if name not in ("local", "ray"):
        raise UsageError(f"--on must be local or ray (got {name})")
    if name == "local":
        yield
        return
    from orchestrate.runs.data import files as data

    with redirect_stdout(sys.stderr), data.on_ray(workers) as cpus:  # Ray prints what befalls its workers
        note(f"on Ray, {cpus} CPUs")
        yield
