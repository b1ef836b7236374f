"""The packages that Orchestrate needs, by its own metadata: each least version is said once, in pyproject."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache

from orchestrate.errors import MissingExtra, SetupError


@contextmanager
def needed(extra: str, what: str, package: str) -> Generator[None]:
    """Around the import of an extra's package. Raises `MissingExtra` without it, `SetupError` for an old
    one."""
    require_recent(package)
    try:
        yield
    except ImportError as error:
        raise MissingExtra(extra, what, package) from error


@cache
def require_recent(package: str) -> None:
    """Raises `SetupError` for an installed distribution that is older than Orchestrate asks for; where
    Orchestrate itself is not installed, nothing is asked for."""
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        requirements = [Requirement(line) for line in requires("orchestrate-ft") or ()]
        found = version(package)
    except PackageNotFoundError:
        return
    for one in requirements:
        same = canonicalize_name(one.name) == canonicalize_name(package)
        if same and not one.specifier.contains(found, prereleases=True):
            wanted = f"{one.name}{one.specifier}"
            raise SetupError(
                f"{package} {found} is installed; Orchestrate needs {wanted}", fix=f"pip install '{wanted}'"
            )
