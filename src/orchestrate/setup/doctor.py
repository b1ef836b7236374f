"""Diagnose problems with this machine, the keys or the store. Contacts hosts only on request."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from orchestrate import __version__
from orchestrate.core import require_recent
from orchestrate.core.underway import work
from orchestrate.costing import spending
from orchestrate.errors import OrchestrateError, SetupError
from orchestrate.local import machine as hardware
from orchestrate.profile import built_in
from orchestrate.providers import registry
from orchestrate.runs.hosting.deployment import hourly
from orchestrate.runs.syncing import leftovers
from orchestrate.setup import backends
from orchestrate.text import SANDBOX_MARK, count, money, size
from orchestrate.types import Record
from orchestrate.workspace import Workspace, scope_of

_EXTRAS: dict[str, tuple[str, ...]] = {
    "local": ("torch", "transformers", "peft", "bitsandbytes"),
    "sandbox": ("starlette", "uvicorn", "python_multipart"),
    "data": ("pyarrow", "fsspec", "numpy"),
    "postgres": ("psycopg",),
    "ray": ("ray",),
    "keyring": ("keyring",),
}


_MIN_FREE = 1 << 30
"""Minimum free disk space in bytes, enough for a checkpoint of a small model."""


class Check(Record, frozen=True, kw_only=True):
    """The result of one check."""

    check: str
    ok: bool | None
    """False if something is wrong. `None` if something optional is missing."""
    detail: str
    fix: str | None = None


def machine() -> Iterator[Check]:
    """Check the versions of Orchestrate and Python, the hardware, and the packages."""
    yield Check(check="orchestrate", ok=True, detail=__version__)
    yield Check(
        check="python",
        ok=sys.version_info >= (3, 11),
        detail=f"{platform.python_version()} on {platform.platform()}",
    )
    yield Check(
        check="processor", ok=True, detail=f"{hardware.cpu_name()}, {count(hardware.cores(), 'core')}"
    )
    yield Check(check="memory", ok=True, detail=size(hardware.memory_bytes()))
    gpus = [
        f"{gpu.name} with {size(gpu.memory_bytes)}" + " shared with the system" * gpu.unified
        for gpu in hardware.gpus()
    ]
    hangs = hardware.driver_hangs()
    missing = f"nvidia-smi did not answer within {hardware.ANSWER_S:g} seconds" if hangs else "none"
    yield Check(
        check="GPU",
        ok=bool(gpus) or (False if hangs else None),
        detail=", ".join(gpus) or missing,
        fix="try nvidia-smi yourself, and reboot the machine if it does not answer" if hangs else None,
    )
    for one in built_in().values():
        if one.sdk is not None:
            yield _installed(one.sdk)
    for extra, modules in _EXTRAS.items():
        absent = [m for m in modules if find_spec(m) is None]
        yield Check(
            check=f"extra [{extra}]",
            ok=None if absent else True,
            detail=f"no {', '.join(absent)}" if absent else ", ".join(map(_versioned, modules)),
            fix=f"pip install 'orchestrate-ft[{extra}]'" if absent else None,
        )


def settings(ft: Workspace, *, online: bool = False) -> Iterator[Check]:
    """Check the keys, backends, home folder, disk, store and deployments. With `online`, also check that each
    host accepts its key, by listing the first page of jobs. Raises `StoreError` if the store cannot be
    used."""
    for name, host in registry.with_keys(ft.settings).items():
        where = f" for {host.base_url}" if host.base_url else ""
        yield Check(
            check=f"key {name}",
            ok=True if host.api_key else None,
            detail=f"{host.api_key or 'none'}{where}{SANDBOX_MARK * host.sandbox}",
            fix=None if host.api_key else f"orchestrate keys set {name}",
        )
        if online and host.api_key:
            yield _key_check(ft, name)
    for name, error in registry.broken(ft.settings).items():
        yield Check(check=f"backend {name}", ok=False, detail=error.message, fix=error.fix)
    for plugin in backends.plugins():
        if plugin.options is None and plugin.error is None:
            detail = f"{plugin.package} does not declare its options, so misspelled options are not detected"
            yield Check(check=f"backend {plugin.kind}", ok=True, detail=detail)
    yield _home(ft.settings.home)
    yield from _disk(ft.settings.home)
    runs = count(len(ft.store.runs.matching(limit=1000, sandbox=scope_of(ft.settings))), "run")
    yield Check(check="store", ok=True, detail=f"{ft.store.place}, {runs}")
    yield from _left(ft)
    if deployed := ft.store.deployments.matching(over=False):
        unproven = [one for one in deployed if one.state.unproven]
        doubt = f", {len(unproven)} of them not confirmed by the host" if unproven else ""
        yield Check(
            check="deployments",
            ok=not unproven,
            detail=hourly(deployed) + doubt,
            fix="orchestrate sync" if unproven else "orchestrate deployments",
        )


def _left(ft: Workspace) -> Iterator[Check]:
    """Yield a check for money that ended processes left reserved."""
    runs, answers = leftovers.unsent(ft.store), leftovers.answers(ft.store)
    held = [spending(run).total_usd for run in runs] + answers
    if not held:
        return
    what = [count(len(runs), "run") + " that were never submitted"] if runs else []
    what += [count(len(answers), "answer") + " requested by commands that have ended"] if answers else []
    yield Check(
        check="held",
        ok=False,
        detail=f"{money(sum(held, Decimal(0)))} of the budget is reserved for {' and '.join(what)}",
        fix="orchestrate sync   (releases the reservations of unsent requests and counts the rest as spent)",
    )


def _key_check(ft: Workspace, name: str) -> Check:
    """Check whether the host accepts the key, with a free read-only request."""
    try:
        with work(f"contacting {name}"):
            next(iter(ft.ready(name).list()), None)
    except OrchestrateError as error:
        return Check(check=f"host {name}", ok=False, detail=error.message, fix=error.fix)
    return Check(check=f"host {name}", ok=True, detail="accepts the key")


def _disk(home: Path) -> Iterator[Check]:
    try:
        free = shutil.disk_usage(home).free
    except OSError:
        return  # no home folder, which `_home` reports
    few = free < _MIN_FREE
    fix = "free up some disk space, or choose another folder with --home" if few else None
    yield Check(check="disk", ok=not few, detail=f"{size(free)} free on the disk of the home folder", fix=fix)


def _home(home: Path) -> Check:
    if not home.is_dir():
        fix = "check the folder's permissions, or choose another folder with --home"
        return Check(check="home", ok=False, detail=f"{home} cannot be created", fix=fix)
    if os.name == "posix" and home.stat().st_mode & 0o077:
        fix = f"chmod 700 {shlex.quote(str(home))}"
        return Check(
            check="home", ok=True, detail=(f"{home}, accessible to other users of this machine"), fix=fix
        )
    return Check(check="home", ok=True, detail=str(home))


def _versioned(module: str) -> str:
    with suppress(PackageNotFoundError):  # its distribution may have another name
        return f"{module} {version(module)}"
    return module


def _installed(package: str) -> Check:
    try:
        require_recent(package)
        return Check(check=package, ok=True, detail=version(package))
    except PackageNotFoundError:
        return Check(check=package, ok=False, detail="not installed", fix=f"pip install {package}")
    except SetupError as old:
        return Check(check=package, ok=False, detail=old.message, fix=old.fix)
