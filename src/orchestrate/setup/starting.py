"""A spec to begin with, by what lies in the user's files: columns, splits, method and models are proposed,
and only what passes the check is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrate import catalog
from orchestrate.core.files import write_whole
from orchestrate.data.files.outputs import splits_of
from orchestrate.data.opening import columns_of, open_dataset
from orchestrate.data.operations.split import NAMES, Division, TooFew, split
from orchestrate.errors import DataError, OrchestrateError
from orchestrate.local import machine
from orchestrate.local.plan.memory import Setup
from orchestrate.profile import this_machine
from orchestrate.runs.preparing.prepared import prepare
from orchestrate.setup.machine import memory_plan
from orchestrate.spec import JobSpec, specfile
from orchestrate.text import count
from orchestrate.types import Record, Severity

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace

_SHARES = (0.8, 0.1, 0.1)
_METHODS: dict[str, Any] = {
    "chat": "sft",
    "completion": "sft",
    "text": "sft",
    "preference": "dpo",
    "unpaired": {"type": "dpo", "loss": "kto"},
}
_CPU_BILLIONS = 1.0
"""Parameters that a CPU trains in hours, not in days."""

Progress = Callable[[int, int], None]


class Started(Record, frozen=True, kw_only=True):
    """The answer of `init` for data. `left_out` says of each backend that the spec does not name why."""

    spec: str
    files: dict[str, str]
    """Split -> file, as the spec names it."""
    rows: int
    kind: str
    columns: dict[str, str]
    """Field -> column, where the names of the columns had to be guessed."""
    method: Any
    models: dict[str, str]
    left_out: dict[str, str]
    remarks: tuple[str, ...]


def holds_data(place: Path) -> bool:
    """Whether it is a file, or a folder with rows of its own."""
    return place.is_file() or (place.is_dir() and bool(splits_of(place)))


def start(
    ft: Workspace,
    place: Path,
    backends: str = "all",
    *,
    output: Path | None = None,
    progress: Progress | None = None,
) -> Started:
    """Writes a spec, by default finetune.yaml beside the data, and, where the rows are not split, the splits
    into a folder beside them. Raises `DataError` for files that cannot be read, or when no backend takes
    them."""
    folder = place.parent if place.is_file() else place
    path = output or folder / specfile.DEFAULT_NAME
    given = {"train": place} if place.is_file() else splits_of(place)
    train = given.get("train") or next(iter(given.values()))
    columns = columns_of(str(train))
    opened = open_dataset(str(train), columns=columns, progress=progress)
    facts, broken = opened.facts, opened.total.written - opened.facts.rows
    if facts.kind not in _METHODS:
        raise DataError(
            f"{train} holds {facts.kind} rows, which need a grader: no spec can be proposed",
            fix="orchestrate init FOLDER writes a commented one",
        )
    placed, remarks = _splits(folder, given, columns)
    if broken:
        remarks.insert(0, f"{count(broken, 'row')} with errors not counted: orchestrate data check {train}")
    files = {split: Path(os.path.relpath(file, path.parent)).as_posix() for split, file in placed.items()}
    spec: dict[str, Any] = {**files, "method": _METHODS[facts.kind], "adapter": "lora", "epochs": 3}
    path.parent.mkdir(parents=True, exist_ok=True)
    models, left_out = _models(ft, path.parent, spec, ft.backends(backends))
    if not models:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise DataError(f"no backend takes {place}: {reasons}", fix=f"orchestrate data check {train}")
    write_whole(path, _text(models, spec).encode())
    return Started(
        spec=str(path),
        files=files,
        rows=facts.rows,
        kind=f"{facts.kind} ({facts.format})",
        columns=columns,
        method=spec["method"],
        models=models,
        left_out=left_out,
        remarks=tuple(remarks),
    )


def _splits(
    folder: Path, given: Mapping[str, Path], columns: Mapping[str, str]
) -> tuple[dict[str, Path], list[str]]:
    """Split -> file: those that are there, or the shares of the one that is."""
    if len(given) > 1 and not columns:
        return {n: given[n] for n in NAMES if n in given}, []
    if len(given) > 1:
        raise DataError(
            f"the columns of {', '.join(str(path) for path in given.values())} are of no known format",
            fix="write each with  orchestrate data convert FILE --map FIELD=COLUMN -o NEW,  then init again",
        )
    [source] = given.values()
    near = find_spec("rensa") is not None
    target = folder / f"{source.name.partition('.')[0]}.split"
    division = Division(_SHARES, near_duplicates=near, fill=True)
    try:
        report = split(str(source), division, target, columns=columns)
    except TooFew:
        if columns:
            raise
        return {"train": source}, [
            "too few rows to hold some back: all are trained on, and eval needs --test FILE"
        ]
    files = {one.split: Path(one.path) for one in report.files if one.rows}
    told = ", ".join(f"{one.rows:,} {one.split}" for one in report.files)
    few = f" (seed {report.seed}, which leaves rows to each)" if report.seed else ""
    remarks = [f"split 80/10/10 by content: {told}{few}"]
    if not near:
        remarks.append("nearly equal rows may be on both sides: pip install 'orchestrate-ft[data]'")
    return files, remarks


def _models(
    ft: Workspace, folder: Path, spec: Mapping[str, Any], backends: list[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The first starter with which a backend takes the files, and why there is none for the others."""
    models: dict[str, str] = {}
    left_out: dict[str, str] = {}
    placed = {n: str(folder / v) if n in ("train", "validation", "test") else v for n, v in spec.items()}
    for name in backends:
        for model in _starters(ft.settings.host(name).kind):
            tried = JobSpec.parse({**placed, "model": {name: model}})
            try:
                problems = prepare(ft, tried, name).problems
            except OrchestrateError as error:
                left_out.setdefault(name, error.message)
                continue
            errors = [p.message for p in problems if p.severity is Severity.ERROR]
            if not errors:
                models[name] = model
                left_out.pop(name, None)
                break
            left_out.setdefault(name, errors[0])
        else:
            left_out.setdefault(name, "none of the usual models can be tuned there")
    return models, left_out


def _starters(kind: str) -> Iterator[str]:
    here = kind == this_machine().kind
    for model in catalog.starters():
        host = model.on(kind)
        if host is not None and host.tunable == "yes" and (not here or _fits_here(model)):
            yield model.name


def _fits_here(model: catalog.Model) -> bool:
    if not machine.gpus():
        return (model.params_b or 0) <= _CPU_BILLIONS
    return memory_plan(model.name, Setup(adapter="lora")).fits is True


def _text(models: Mapping[str, str], spec: Mapping[str, Any]) -> str:
    """The spec as YAML, with what a reader wants to know of it."""
    body = specfile.yaml_text({"model": dict(models), **spec}, sort_keys=False)
    return (
        f"# yaml-language-server: $schema=./{specfile.SCHEMA_NAME}\n"
        "# Proposed by `orchestrate init`. `orchestrate plan` shows what each setting becomes on each\n"
        "# backend; `orchestrate init FOLDER` writes a spec with all settings and what they mean.\n" + body
    )
