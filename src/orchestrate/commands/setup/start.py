"""init: a spec to begin with."""

from __future__ import annotations

import json as jsonlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrate import config
from orchestrate.commands.data.options import progress_bar
from orchestrate.commands.terminal.console import (
    Json,
    note,
    orchestrator,
    print_json,
    print_text,
    warn,
)
from orchestrate.errors import UsageError

if TYPE_CHECKING:
    from orchestrate.service.setup.starting import Started


def init(
    context: typer.Context,
    place: Annotated[
        Path, typer.Argument(metavar="[FILE|FOLDER]", help="Your data; or a folder, for a commented spec.")
    ] = Path(),
    backends: Annotated[
        str, typer.Option("--for", help="Backends that the spec is to name, comma-separated.")
    ] = "all",
    force: Annotated[bool, typer.Option(help="Replace files that exist.")] = False,
    json: Json = False,
) -> None:
    """Write a spec. With FILE, or a FOLDER that holds data: one that fits it, with columns, splits and models
    proposed, which passes its first check. With another folder: a commented one. Sends nothing.

    Example: orchestrate init tickets.csv --for openai,local
    """
    from orchestrate import specfile
    from orchestrate.service.setup import starting

    folder = place.parent if place.is_file() else place
    names = [specfile.DEFAULT_NAME, *([] if starting.holds_data(place) else [config.CONFIG_NAME])]
    present = [name for name in names if (folder / name).exists()]
    if present and not force:
        raise UsageError(
            f"{folder / present[0]} exists already; nothing was written",
            fix=f"orchestrate init {shlex.quote(str(place))} --force",
        )
    if starting.holds_data(place):
        with orchestrator(context) as ft, progress_bar("reading") as progress:
            started = starting.start(ft, place, backends, progress)
        _schema(folder)
        _show(started, json=json)
        return
    if not place.exists() and place.suffix:
        raise UsageError(f"{place} is not there", fix="orchestrate init FILE, or a FOLDER to write to")
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(specfile.template(name), encoding="utf-8")
    written = [str(folder / names[0]), _schema(folder), str(folder / names[1])]
    if json:
        print_json(written)
    else:
        print_text("\n".join(written))


def _schema(folder: Path) -> str:
    from orchestrate import specfile

    path = folder / specfile.SCHEMA_NAME
    path.write_text(jsonlib.dumps(specfile.json_schema(), indent=2) + "\n", encoding="utf-8")
    return str(path)


def _show(started: Started, *, json: bool) -> None:
    if json:
        print_json(started)
        return
    note(f"{started.rows:,} rows, {started.kind}")
    if started.columns:
        told = ",".join(f"{field}={column}" for field, column in started.columns.items())
        note(f"columns, by their names: {told}   (other ones: orchestrate data convert --map ...)")
    for split, path in started.files.items():
        note(f"{split}: {path}")
    for text in started.remarks:
        note(text)
    for backend, model in started.models.items():
        note(f"{backend}: {model}")
    for backend, why in started.left_out.items():
        warn(f"{backend} is left out: {why}")
    print_text(started.spec)
    at = "" if Path(started.spec).parent == Path() else f" {shlex.quote(started.spec)}"
    print_text(f"next: orchestrate quote{at}")
