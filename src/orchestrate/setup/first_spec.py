"""Propose a first spec for the user's files: columns, splits, method and models. The spec is written only if
it passes `check`."""

from __future__ import annotations

import filecmp
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from orchestrate import catalog
from orchestrate.core.files import write_whole
from orchestrate.data.dataset_reader import columns_of, open_dataset
from orchestrate.data.files import splits_of
from orchestrate.data.operations.check import volume_of
from orchestrate.data.operations.split import NAMES, Division, SplitReport, TooFew, split
from orchestrate.data.rows import CODES, rows_of
from orchestrate.errors import DataError, OrchestrateError, UsageError
from orchestrate.local import machine
from orchestrate.local import model as engines
from orchestrate.local.plan import ModelShape, memory, memory_fit
from orchestrate.local.plan.memory import Setup as Setup
from orchestrate.local.plan.throughput import bench_file as bench_file
from orchestrate.local.speed import measure as measure
from orchestrate.profile import this_machine
from orchestrate.runs.preparing.prepared import prepare
from orchestrate.spec import JobSpec, specfile
from orchestrate.text import count
from orchestrate.types import MemoryPlan, Problem, Record, Severity

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace

# This machine as a backend: training speed and memory.


def memory_plan(
    model: str, setup: Setup, *, device: str | None = None, available_bytes: int | None = None
) -> MemoryPlan:
    """Estimate the peak memory needed to train a model. Works offline. `model` is a catalog name, a model
    folder, or a size such as `8B`. The precision in `setup` may be `auto`. `available_bytes` is the device's
    memory (default: this machine's). Raises `UsageError` if the model's size is unknown."""
    device = engines.expected_device(device)
    products = engines.precision(setup.precision, device, full=setup.adapter == "full")
    shape, remark = _shape(model)
    setup = replace(setup, precision=products.name)
    plan = memory.plan(shape, setup, device=device, available_bytes=available_bytes)
    return replace(plan, notes=(*plan.notes, remark)) if remark else plan


def _shape(model: str) -> tuple[ModelShape, str | None]:
    """Return the model's shape, and a note if the shape is assumed from the size."""
    if size := re.fullmatch(r"(\d+(?:\.\d+)?)[bB]", model):
        return ModelShape.like(float(size.group(1)) * 1e9), "assuming a typical architecture of this size"
    resolved = catalog.resolve(model, this_machine().kind)
    found = memory_fit.shape_of(resolved.id, resolved.params_b)
    if found is None:
        raise UsageError(f"the size of {model} is unknown", fix="use a model folder, or a size such as 8B")
    return found


_SHARES = (0.8, 0.1, 0.1)
_METHODS: dict[str, Any] = {
    "chat": "sft",
    "completion": "sft",
    "text": "sft",
    "preference": "dpo",
    "unpaired": {"type": "dpo", "loss": "kto"},
}
_CPU_BILLIONS = 1.0
"""Largest model, in billions of parameters, that a CPU can train in hours rather than days."""

Progress = Callable[[int, int], None]


class NewSpec(Record, frozen=True, kw_only=True):
    """The spec that `init` proposed for the data. `left_out` lists the backends that the spec excludes, as
    {backend: reason}."""

    spec: str
    files: dict[str, str]
    """Maps each split to its file, as written in the spec."""
    rows: int
    kind: str
    columns: dict[str, str]
    """Column mapping of the spec, as {field: column}. Empty unless columns were passed or guessed from their
    names."""
    method: Any
    models: dict[str, str]
    left_out: dict[str, str]
    remarks: tuple[str, ...]


def holds_data(place: Path) -> bool:
    """Return whether a path is a file or a folder with training data."""
    return place.is_file() or (place.is_dir() and bool(splits_of(place)))


def start(
    ft: Workspace,
    place: Path,
    backends: str = "all",
    *,
    output: Path | None = None,
    columns: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> NewSpec:
    """Write a spec, by default finetune.yaml next to the data. A single file is split into a folder next to
    it. `columns` maps fields to the file's columns (default: guessed from the column names). Raises
    `DataError` if the files are unreadable or no backend accepts them."""
    folder = place.parent if place.is_file() else place
    path = output or folder / specfile.DEFAULT_NAME
    given = _with_siblings(place) if place.is_file() else splits_of(place)
    train = given.get("train") or next(iter(given.values()))
    columns = dict(columns) if columns else columns_of(str(train))
    opened = open_dataset(str(train), columns=columns, compare=True, progress=progress)
    facts, broken = opened.facts, opened.total.written - opened.facts.rows
    if facts.kind not in _METHODS:
        raise DataError(
            f"init cannot propose a spec for {train}: its {facts.kind} rows need a grader",
            fix="create a commented template instead: orchestrate init FOLDER",
        )
    placed, remarks = _splits(path, folder, given, columns)
    if place.is_file() and len(given) > 1:
        others = " and ".join(file.name for name, file in given.items() if name != "train")
        remarks.append(f"also using {others} from the same folder")
    shown = f"orchestrate data check {shlex.quote(str(train))}{_as_options(columns)}"
    if broken:
        remarks.insert(0, f"left out {count(broken, 'row')} with errors. To list them: {shown}")
    if not (volume := volume_of(opened)).enough:
        remarks.append(str(volume))
    files = {split: Path(os.path.relpath(file, path.parent)).as_posix() for split, file in placed.items()}
    mapped = {field: column or None for field, column in columns.items()}
    own = {"columns": mapped} if mapped and placed.get("train") == train else {}
    spec: dict[str, Any] = {**files, **own, "method": _METHODS[facts.kind], "adapter": "lora", "epochs": 3}
    path.parent.mkdir(parents=True, exist_ok=True)
    images = bool(facts.content.images)
    models, left_out, found = _models(ft, path.parent, spec, ft.backends(backends), images=images)
    remarks += _problem_notes(found)
    if not models:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise DataError(f"no backend can train on {place}: {reasons}", fix=shown)
    write_whole(path, _text(models, spec).encode())
    return NewSpec(
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


def _as_options(columns: Mapping[str, str]) -> str:
    """Format the columns as command-line options. Fields without a column are ignored."""
    read = [
        ("--map", f"{field}={column}") if column else ("--ignore", field) for field, column in columns.items()
    ]
    return "".join(f" {option} {shlex.quote(value)}" for option, value in read)


def _splits(
    spec: Path, folder: Path, given: Mapping[str, Path], columns: Mapping[str, str]
) -> tuple[dict[str, Path], list[str]]:
    """Map splits to files: the given files, or the parts of a single file."""
    if len(given) > 1:
        return {n: given[n] for n in NAMES if n in given}, []
    [source] = given.values()
    near = find_spec("rensa") is not None
    division = Division(_SHARES, near_duplicates=near, fill=True)
    write = partial(split, str(source), division, columns=columns)
    stem, number, target = source.name.partition(".")[0], 1, folder
    try:
        while True:  # keep the rows that another spec trains on
            target = folder / (f"{stem}.split" if number == 1 else f"{stem}-{number}.split")
            if not _named_by_another(spec, target) or _would_stay(target, write):
                break
            number += 1
        report = write(target)
    except TooFew:
        return {"train": source}, [
            "too few rows for a test split, so all are used for training. To evaluate, pass --test FILE"
        ]
    files = {one.split: Path(one.path) for one in report.files if one.rows}
    parts = ", ".join(f"{one.rows:,} {one.split}" for one in report.files)
    few = f" (seed {report.seed}, chosen so that no split is empty)" if report.seed else ""
    remarks = [f"split 80/10/10 by content: {parts}{few}"]
    if number > 1:
        remarks.append(
            f"written to {target.name}, because another spec uses {stem}.split, which contains different rows"
        )
    if not near:
        remarks.append(
            "splits may share near-duplicates. To prevent that: pip install 'orchestrate-ft[data]'"
        )
    return files, remarks


def _named_by_another(spec: Path, target: Path) -> bool:
    """Return whether a spec other than `spec`, next to it or to the data, uses files in the folder."""
    near = {*target.parent.glob("*.y*ml"), *spec.parent.glob("*.y*ml")} if target.is_dir() else set[Path]()
    return any(
        f"{target.name}/" in other.read_text(encoding="utf-8", errors="replace")
        for other in near
        if other.resolve() != spec.resolve()
    )


def _would_stay(target: Path, write: Callable[[Path], SplitReport]) -> bool:
    """Return whether a split into the folder would leave its files unchanged."""
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        copy = shutil.copytree(target, Path(scratch, target.name))
        files = [Path(one.path) for one in write(copy).files]
        return filecmp.cmpfiles(target, copy, [file.name for file in files], shallow=False)[1:] == ([], [])


def _models(
    ft: Workspace, folder: Path, spec: Mapping[str, Any], backends: list[str], *, images: bool
) -> tuple[dict[str, str], dict[str, str], Sequence[Problem]]:
    """Return the first starter model on each backend that accepts the files, the reasons for backends without
    one, and other problems in the files."""
    models: dict[str, str] = {}
    of_files: Sequence[Problem] = ()
    left_out: dict[str, str] = {}
    placed = {n: str(folder / v) if n in ("train", "validation", "test") else v for n, v in spec.items()}
    for name in backends:
        for model in _starters(ft.settings.host(name).kind, images=images):
            tried = JobSpec.parse({**placed, "model": {name: model}})
            try:
                prepared = prepare(ft, tried, name)
            except OrchestrateError as error:
                left_out.setdefault(name, error.message)
                continue
            problems, of_files = prepared.problems, prepared.of_files
            errors = [p.message for p in problems if p.severity is Severity.ERROR]
            if not errors:
                models[name] = model
                left_out.pop(name, None)
                break
            left_out.setdefault(name, errors[0])
        else:
            left_out.setdefault(name, "this backend offers none of the models that init can propose")
    return models, left_out, of_files


_REPORTED = ("duplicate", "conflict", "near-duplicate", "prompt-leakage", "secret", "personal-data")
_CURES = {"duplicate": "orchestrate data dedupe {}", "near-duplicate": "orchestrate data dedupe {} --near"}


def _problem_notes(found: Sequence[Problem]) -> list[str]:
    """Return a sentence for each kind of problem in the rows."""
    counts: dict[tuple[str, str], int] = {}
    for p in found:
        if p.code in _REPORTED and p.source:
            key = (p.code, p.source)
            counts[key] = counts.get(key, 0) + rows_of(p)
    return [
        f"{count(n, 'row')} of {Path(file).name}: {CODES[code].title}"
        + (f": {_CURES[code].format(shlex.quote(file))}" if code in _CURES else "")
        for (code, file), n in counts.items()
    ]


def _with_siblings(file: Path) -> dict[str, Path]:
    """Return the file and, if it is the training split, the other splits next to it."""
    beside = splits_of(file.parent)
    is_one = beside.get("train") == file and len(beside) > 1
    return {name: beside[name] for name in NAMES if name in beside} if is_one else {"train": file}


def _starters(kind: str, *, images: bool) -> Iterator[str]:
    here = kind == this_machine().kind
    seeing = catalog.search("vision", kind) if images and not here else []
    for model in seeing or catalog.starters():
        host = model.on(kind)
        if host is not None and host.tunable == "yes" and (not here or _fits_here(model)):
            yield model.name


def _fits_here(model: catalog.Model) -> bool:
    if not machine.gpus():
        return (model.params_b or 0) <= _CPU_BILLIONS
    return memory_plan(model.name, Setup(adapter="lora")).fits is True


def _text(models: Mapping[str, str], spec: Mapping[str, Any]) -> str:
    """Write the spec as YAML, with explanatory comments."""
    body = specfile.yaml_text({"model": dict(models), **spec}, sort_keys=False)
    return (
        f"# yaml-language-server: $schema=./{specfile.SCHEMA_NAME}\n"
        "# Proposed by `orchestrate init`. `orchestrate plan` shows what each setting becomes on each\n"
        "# backend. `orchestrate init FOLDER` writes a spec that explains all settings.\n" + body
    )
