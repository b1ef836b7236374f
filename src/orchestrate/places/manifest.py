"""The manifest of a run and the environment of its remote worker. The manifest contains the job, its limits,
and the hashes of its data, its model and Orchestrate's own code."""

from __future__ import annotations

import base64
import io
import re
import zipfile
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import orchestrate
from orchestrate.core.files import scratch_folder
from orchestrate.errors import HostUnavailable, MissingExtra, RunFailed, UsageError
from orchestrate.local.job import LocalJob
from orchestrate.places.base import Resources, WorkerLimits
from orchestrate.places.storage import RunStorage, StoredRun, safe
from orchestrate.types import ArtifactFile, Record, decoding

PACKAGE = "orchestrate-ft"


class RunManifest(Record, frozen=True, kw_only=True):
    """Contents of `order.json`, the manifest of a run. Paths in the job are those of the machine that
    submitted it. The worker replaces the paths of uploaded files and folders with its own."""

    job: LocalJob
    files: dict[str, ArtifactFile]
    """Uploaded files, under the keys `train` and `validation`."""
    folders: dict[str, tuple[ArtifactFile, ...]]
    """Uploaded folders, under the keys `model` and `continue_from`. Other models are downloaded from their
    hub."""
    code: str
    """Hash of the blob that contains this exact version of Orchestrate."""
    limits: WorkerLimits
    place: str = ""
    """Id of the place that runs the job (`AwayPlace.mark`). It tells the runs of several places apart that
    share one storage folder."""


def write_manifest(
    run_storage: RunStorage, job: LocalJob, limits: WorkerLimits, place: str = ""
) -> RunManifest:
    """Upload the files of a job that are not stored yet, then its manifest, and return the manifest.

    If the run already has a manifest, its job stays unchanged, because its checkpoints belong to that job.
    The limits and Orchestrate's code are updated. Raises `RunFailed` if a file of the job no longer exists.
    """
    stored = run_storage.run(job.ref)
    if stored.read("order.json") is not None:
        manifest = read_manifest(stored)
        manifest = msgspec.structs.replace(
            manifest, limits=limits, code=run_storage.keep_bytes(code()), place=place or manifest.place
        )
    else:
        try:
            manifest = msgspec.structs.replace(_new_manifest(run_storage, job, limits), place=place)
        except FileNotFoundError as error:
            raise RunFailed(f"{error.filename} no longer exists", fix="submit the run again") from error
    stored.write("order.json", manifest.to_json())
    return manifest


def _new_manifest(run_storage: RunStorage, job: LocalJob, limits: WorkerLimits) -> RunManifest:
    files = {"train": run_storage.keep(Path(job.train))}
    if job.validation is not None:
        files["validation"] = run_storage.keep(Path(job.validation))
    folders: dict[str, tuple[ArtifactFile, ...]] = {}
    for name, given in (("model", job.model), ("continue_from", job.continue_from)):
        path = None if given is None else Path(given).expanduser()
        if path is not None and path.is_dir():
            folders[name] = run_storage.keep_folder(path)
    return RunManifest(
        job=msgspec.structs.replace(job, paces=None),
        files=files,
        folders=folders,
        code=run_storage.keep_bytes(code()),
        limits=limits,
    )


def read_manifest(stored: StoredRun) -> RunManifest:
    """Read a run's manifest. Raises `HostUnavailable` if there is none or this version cannot read it."""
    if (manifest := stored.record("order.json", RunManifest)) is None:
        raise HostUnavailable(
            stored.run_storage.url, f"{stored.run_storage.url} has no manifest for {stored.ref}"
        )
    return manifest


def allow(stored: StoredRun, max_hours: float | None, max_usd: Decimal | None) -> None:
    """Set new limits for workers that start from now on. Only the manifest changes, because `job.json` in a
    run directory is a copy that differs between machines. Raises `HostUnavailable` if the storage can't be
    read or written."""
    manifest = read_manifest(stored)
    given = decoding.convert(manifest.job.resources, Resources)
    own = msgspec.structs.replace(given.limits, max_hours=max_hours, max_usd=max_usd)
    given = msgspec.structs.replace(given, limits=own)
    job = msgspec.structs.replace(manifest.job, resources=given.to_dict())
    limits = msgspec.structs.replace(manifest.limits, max_hours=max_hours, max_usd=max_usd)
    after = msgspec.structs.replace(manifest, job=job, limits=limits)
    if after != manifest:
        stored.write("order.json", after.to_json())


def allowed(stored: StoredRun, resources: Resources) -> Resources:
    """Return a copy of `resources` with the time and cost limits from the run's manifest. Returns `resources`
    unchanged if there is no manifest."""
    if stored.read("order.json") is None or not (given := read_manifest(stored).job.resources):
        return resources
    had = decoding.convert(given, Resources).limits
    limits = msgspec.structs.replace(resources.limits, max_hours=had.max_hours, max_usd=had.max_usd)
    return msgspec.structs.replace(resources, limits=limits)


def unpack(manifest: RunManifest, run_storage: RunStorage, folder: Path) -> LocalJob:
    """Download the job's files to the folder, and return the job with their paths."""
    paths: dict[str, str] = {}
    for name, file in manifest.files.items():
        run_storage.fetch(file, folder / name / safe(file.path))
        paths[name] = str(folder / name / file.path)
    for name, files in manifest.folders.items():
        run_storage.fetch_folder(files, folder / name)
        paths[name] = str(folder / name)
    return msgspec.structs.replace(manifest.job, **paths)


# -- the environment ----------------------------------------------------------------------------------------


@cache
def code() -> bytes:
    """Pack this package into a zip file that Python can import from after unpacking. The same code gives the
    same bytes."""
    root = Path(orchestrate.__file__).parent
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                _add(archive, f"{root.name}/{path.relative_to(root).as_posix()}", path.read_bytes())
        about = f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {version(PACKAGE)}\n"
        _add(archive, f"{PACKAGE.replace('-', '_')}-{version(PACKAGE)}.dist-info/METADATA", about.encode())
    return out.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)


def pins(*extras: str, more: Iterable[str] = ()) -> list[str]:
    """List `name==version` for all installed packages that this installation's `extras` need, and for the
    packages in `more`. Raises `MissingExtra` if a package is not installed."""
    found: dict[str, str] = {}
    waiting = [(PACKAGE, frozenset(extras)), *((name, frozenset[str]()) for name in more)]
    looked: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in looked:
            continue
        looked.add((name, wanted))
        try:
            if name != PACKAGE:
                found[name] = f"{name}=={_version(name)}"
            waiting += _needed(name, wanted)
        except PackageNotFoundError as error:
            raise MissingExtra(
                "local", "pinning the worker's packages to the versions installed here", name
            ) from error
    return sorted(found.values())


@cache
def _needed(name: str, extras: frozenset[str]) -> list[tuple[str, frozenset[str]]]:
    found: list[tuple[str, frozenset[str]]] = []
    for line in requires(name) or ():
        one = Requirement(line)
        environments = [{"extra": extra} for extra in extras or {""}]
        if one.marker is None or any(one.marker.evaluate(each) for each in environments):
            found.append((canonicalize_name(one.name), frozenset(one.extras)))
    return found


@cache
def _version(name: str) -> str:
    """Return the version without a local build label, so `2.13.0+cpu` becomes `2.13.0`."""
    return version(name).partition("+")[0]


ROOM = "orchestrate-at"
"""Prefix of a worker's temporary folder. The machine's name and a process id follow it."""
HIDDEN = "ORCHESTRATE_HIDDEN"
FETCH = f"""
import base64, hashlib, io, json, os, runpy, socket, sys, tempfile, zipfile
os.environ.update(json.loads(base64.b64decode(os.environ.get("{HIDDEN}", "e30="))))
import fsspec
digest = os.environ["ORCHESTRATE_CODE"]
with fsspec.open(os.environ["ORCHESTRATE_DEPOT"] + "/blobs/" + digest) as file:
    data = file.read()
assert hashlib.sha256(data).hexdigest() == digest, "the code in the depot is not what was sent"
folder = tempfile.mkdtemp(prefix=f"{ROOM}-{{socket.gethostname()}}-{{os.getpid()}}-")
zipfile.ZipFile(io.BytesIO(data)).extractall(folder)
sys.path.insert(0, folder)
os.environ["PYTHONPATH"] = folder + os.pathsep + os.environ.get("PYTHONPATH", "")
"""
"""Code that a remote worker runs first. It downloads Orchestrate's code from the storage, so this version
need not be published."""
MODULE = "ORCHESTRATE_MODULE"
"""Environment variable that names the module to run, if not `orchestrate.places.remote`."""
BOOT = f"""{FETCH}
runpy.run_module(os.environ.get("{MODULE}", "orchestrate.places.remote"), run_name="__main__")
"""
RUN_BOOT = "import os;exec(os.environ['ORCHESTRATE_BOOT'])"


def environment(run_storage: RunStorage, manifest: RunManifest) -> dict[str, str]:
    """Build the environment of the worker's process, without secrets."""
    return {
        "ORCHESTRATE_BOOT": BOOT,
        "ORCHESTRATE_CODE": manifest.code,
        "ORCHESTRATE_DEPOT": run_storage.url,
        "ORCHESTRATE_REF": manifest.job.ref,
    }


def unexpanded(env: Mapping[str, str]) -> dict[str, str]:
    """Encode environment variables whose values Ray would change. Ray replaces text after a `$` in a value,
    for example in a password, and has no way to escape it. `FETCH` decodes them."""
    odd = {name: value for name, value in env.items() if "$" in value}
    if not odd:
        return dict(env)
    hidden = base64.b64encode(msgspec.json.encode(odd)).decode()
    return {HIDDEN: hidden, **{name: value for name, value in env.items() if name not in odd}}


_GPU = re.compile(r"(?P<count>\d+)x(?P<left>.+)|(?P<gpu>[^:]+)(:(?P<many>\d+))?")


def parse_gpu(text: str) -> tuple[str, int]:
    """Parse a GPU and its count from `H100`, `H100:2` or `2xH100`. Raises `UsageError` for any other form and
    for a count of 0."""
    found = _GPU.fullmatch(text.strip())
    count = int(found["count"] or found["many"] or 1) if found else 0
    if found is None or count < 1:
        raise UsageError(
            f"{text!r} is not a valid GPU",
            fix="use a GPU type such as H100, a type with a count such as H100:2, or auto",
        )
    return (found["left"] or found["gpu"]).strip(), count


# Temporary folders of workers, on machines that continue to exist after them. If a worker is killed, the next
# one deletes the model and the checkpoints that it left behind.


def room() -> TemporaryDirectory[str]:
    """Create a temporary folder for this process."""
    return scratch_folder(ROOM)
