"""Options shared by the data commands, for naming and reading files."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from orchestrate.commands.terminal.console import note
from orchestrate.commands.terminal.options import IgnoreOpt, MapOpt
from orchestrate.errors import UsageError

FileArg = Annotated[
    str, typer.Argument(metavar="FILE", help="A file, a dataset folder, a URL, or - for stdin.")
]
WorkersOpt = Annotated[int | None, typer.Option(min=1, help="Number of processes. Default: one per core.")]
ModelOpt = Annotated[str | None, typer.Option("--model", help="Count with this model's tokenizer.")]
TokenizerOpt = Annotated[
    str | None, typer.Option(help="Tokenizer: o200k, cl100k, harmony, qwen3.5, hf:FOLDER, FAMILY~COUNTER.")
]
EngineOpt = Annotated[
    str,
    typer.Option(
        "--on",
        "--engine",
        help="Execution engine: local or ray. ray uses a running cluster, or starts one on this machine.",
    ),
]
OutputOpt = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", help="Output file. Default: next to FILE, named after it.", show_default=False
    ),
]


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Options for reading the files."""

    columns: MapOpt = None
    ignored: IgnoreOpt = None
    workers: WorkersOpt = None
    engine: EngineOpt = "local"


@contextmanager
def engine(name: str, workers: int | None) -> Generator[None]:
    """Select the engine that reads rows: local processes or Ray. Raises `UsageError` for an unknown
    engine."""
    if name not in ("local", "ray"):
        raise UsageError(f"--on must be local or ray (got {name})")
    if name == "local":
        yield
        return
    from orchestrate.runs import data

    with redirect_stdout(sys.stderr), data.on_ray(workers) as cpus:  # Ray prints its workers' events
        note(f"on Ray, {cpus} CPUs")
        yield
