"""Utilities shared by all packages: files, optional packages, progress, dates, amounts, processes."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

from orchestrate.errors import MissingExtra, SetupError

# Minimum versions are read from Orchestrate's own package metadata, so only pyproject.toml states them.


_NAME_END = re.compile(r"[^A-Za-z0-9._-]")


@contextmanager
def needed(extra: str, what: str, package: str) -> Generator[None]:
    """Guard the import of an optional package. Raises `MissingExtra` if the package is not installed, and
    `SetupError` if it is too old."""
    require_recent(package)
    try:
        yield
    except ImportError as error:
        raise MissingExtra(extra, what, package) from error


def installed(package: str) -> str:
    """Return the installed version of a package. Raises `PackageNotFoundError` if it is not installed."""
    return next(iter(_header(package, "Version")))


def _header(package: str, field: str) -> list[str]:
    """Return the values of a field in the package's metadata. `importlib.metadata` would parse the entire
    text as an e-mail, which is slow."""
    from importlib.metadata import distribution

    found = distribution(package)
    header = (found.read_text("METADATA") or str(found.metadata)).partition("\n\n")[0]
    return re.findall(rf"^{field}: *(.+?) *$", header, re.MULTILINE)


@cache
def require_recent(package: str) -> None:
    """Raise `SetupError` if an installed package is older than Orchestrate requires. Has no effect if
    Orchestrate itself is not an installed package."""
    from importlib.metadata import PackageNotFoundError

    try:
        found = installed(package)
        lines = _asked().get(_same(package), ())
    except PackageNotFoundError:
        return
    if not lines:
        return
    from packaging.requirements import Requirement

    for one in map(Requirement, lines):
        if not one.specifier.contains(found, prereleases=True):
            wanted = f"{one.name}{one.specifier}"
            raise SetupError(
                f"{package} {found} is installed, but Orchestrate needs {wanted}",
                fix=f"pip install '{wanted}'",
            )


@cache
def _asked() -> dict[str, list[str]]:
    """Return the unparsed requirements, by package name. There are over a hundred, and few are needed."""
    asked: dict[str, list[str]] = {}
    for line in _header("orchestrate-ft", "Requires-Dist"):
        asked.setdefault(_same(_NAME_END.split(line, maxsplit=1)[0]), []).append(line)
    return asked


def _same(name: str) -> str:
    """Normalize the name of a package."""
    return re.sub(r"[-_.]+", "-", name).lower()


# Public names of a package whose modules are imported on first use.


def late(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Build the `__getattr__` function of a package whose modules load on first use. `homes` maps each public
    name to its module."""

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return load
