"""The command `init`."""

from __future__ import annotations

import json as jsonlib
import shlex
from difflib import unified_diff
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import note, orchestrator, print_text, warn
from orchestrate.commands.terminal.options import IgnoreOpt, MapOpt, columns_read
from orchestrate.core.files import inside
from orchestrate.core.underway import BYTES, work
from orchestrate.errors import UsageError
from orchestrate.settings import config

if TYPE_CHECKING:
    from orchestrate.setup.first_spec import NewSpec


def _as_given(backends: str, columns: list[str] | None, ignored: list[str] | None) -> list[str]:
    given = [] if backends == "all" else ["--for", backends]
    given += [word for one in columns or () for word in ("--map", one)]
    return [*given, *(word for one in ignored or () for word in ("--ignore", one))]


def _free_name(folder: Path, stem: str) -> Path:
    """Return the path of a new spec named after its data."""
    names = (f"{stem}{'' if number == 1 else f'-{number}'}.yaml" for number in count(1))
    return next(path for name in names if not (path := folder / name).exists())


@command
def init(
    context: typer.Context,
    place: Annotated[
        Path,
        typer.Argument(metavar="[FILE|FOLDER]", help="Your data, or a folder for a commented template."),
    ] = Path(),
    backends: Annotated[str, typer.Option("--for", help="Comma-separated backends to include.")] = "all",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Output file. Default: finetune.yaml next to the data."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace existing files.")] = False,
    columns: MapOpt = None,
    ignored: IgnoreOpt = None,
) -> Output[list[str]] | Output[NewSpec]:
    """Write a spec for a data file or a folder with data: propose columns, splits and models that pass
    `check`. Without data, write a commented template. Works offline."""
    from orchestrate.setup import first_spec
    from orchestrate.spec import specfile

    folder = place.parent if place.is_file() else place
    usual = folder / specfile.DEFAULT_NAME
    path = output or usual
    fitting = first_spec.holds_data(place)
    settings = path.parent / config.CONFIG_NAME
    present = [file for file in ([path] if fitting else [path, settings]) if file.exists()]
    if present and not force:
        named = str(_free_name(folder, place.stem if place.is_file() else "other"))
        given = _as_given(backends, columns, ignored)
        beside = shlex.join(["orchestrate", "init", str(place), *given, "-o", named])
        raise UsageError(
            f"{present[0]} already exists. Nothing was written",
            fix=f"to replace the file: --force. To write a second file and show the diff: {beside}",
        )
    if fitting:
        before = _text_of(usual)
        with orchestrator(context) as ft, work("reading", BYTES) as progress:
            read = columns_read(columns, ignored)
            started = first_spec.start(ft, place, backends, output=output, columns=read, progress=progress)
        _schema(path.parent)

        def view(started: NewSpec) -> None:
            _show(started)
            if before is not None:
                _show_difference(usual, before, path)

        return Output(started, view)
    _require_folder(place, columns, ignored)
    path.parent.mkdir(parents=True, exist_ok=True)
    inside(path).write_text(specfile.template(specfile.DEFAULT_NAME), encoding="utf-8")
    inside(settings).write_text(specfile.template(config.CONFIG_NAME), encoding="utf-8")
    written = [str(path), _schema(path.parent), str(settings)]

    def view_template(written: list[str]) -> None:
        print_text("\n".join(written))
        note(f"next: set your data and model in {path}, then run  orchestrate check")

    return Output(written, view_template)


def _require_folder(place: Path, columns: list[str] | None, ignored: list[str] | None) -> None:
    if columns or ignored:
        raise UsageError("--map and --ignore need a data file", fix="orchestrate init FILE --map ...")
    if not place.exists() and place.suffix:
        raise UsageError(f"{place} does not exist", fix="orchestrate init FILE, or a FOLDER to write to")


def _schema(folder: Path) -> str:
    from orchestrate.spec import specfile

    path = folder / specfile.SCHEMA_NAME
    inside(path).write_text(jsonlib.dumps(specfile.json_schema(), indent=2) + "\n", encoding="utf-8")
    return str(path)


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _show_difference(usual: Path, before: str, path: Path) -> None:
    """Show a diff between the existing spec and the new one."""
    after = path.read_text(encoding="utf-8")
    was = f"the previous {usual}" if path == usual else str(usual)
    changes = list(unified_diff(before.splitlines(), after.splitlines(), was, str(path), n=0, lineterm=""))
    note("\n".join(changes) if changes else f"identical to {was}")


def _show(started: NewSpec) -> None:
    note(f"{started.rows:,} rows, {started.kind}")
    if started.columns:
        read = ",".join(f"{field}={column}" for field, column in started.columns.items() if column)
        ignored = ", ".join(field for field, column in started.columns.items() if not column)
        note(f"columns: {read}   (to change: --map FIELD=COLUMN)")
        if ignored:
            note(f"columns ignored: {ignored}")
    for split, path in started.files.items():
        note(f"{split}: {path}")
    for text in started.remarks:
        note(text)
    for backend, model in started.models.items():
        note(f"{backend}: {model}")
    for backend, why in started.left_out.items():
        warn(f"{backend} is skipped: {why}")
    print_text(started.spec)
    from orchestrate.spec import specfile

    at = "" if Path(started.spec) == Path(specfile.DEFAULT_NAME) else f" {shlex.quote(started.spec)}"
    print_text(f"next: orchestrate quote{at}")
