"""Shell completion: runs, backends, models, formats. If an error occurs, there are no completions. The
command itself reports the error."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from orchestrate.errors import OrchestrateError


def runs(incomplete: str) -> list[tuple[str, str]]:
    """Complete `last` and the ids of the newest runs, each with a description."""
    found = [("last", "the newest")]
    with suppress(OrchestrateError, OSError):
        from orchestrate.setup import completion_values

        for run in completion_values.runs():
            found.append((run.id, f"{run.provider} {run.model} {run.status.value}"))
    return [(id, description) for id, description in found if id.startswith(incomplete)]


def backend(incomplete: str) -> list[str]:
    """Complete a backend name."""
    return _beginning(incomplete, _backends())


def backends(incomplete: str) -> list[str]:
    """Complete the last name in a comma-separated list of backends, or `all`."""
    before, comma, last = incomplete.rpartition(",")
    named = before.split(",") if comma else []
    names = [name for name in _backends() if name not in named]
    return [f"{before}{comma}{name}" for name in _beginning(last, names if comma else [*names, "all"])]


def models(incomplete: str) -> list[str]:
    """Complete a model name, alone or after `BACKEND=`."""
    from orchestrate.setup import completion_values

    place, equals, name = incomplete.rpartition("=")
    return [f"{place}{equals}{model}" for model in _beginning(name, completion_values.models())]


def formats(incomplete: str) -> list[str]:
    """Complete the names of the formats that `data convert` can write."""
    with suppress(OrchestrateError, OSError):
        from orchestrate.setup import completion_values

        return _beginning(incomplete, completion_values.formats())
    return []


def statuses(incomplete: str) -> list[str]:
    """Complete run statuses, as `runs` shows them."""
    from orchestrate.store.run_lists import STATUSES

    return _beginning(incomplete, STATUSES)


def exports(incomplete: str) -> list[str]:
    """Complete the names of model export formats."""
    from orchestrate.setup import completion_values

    return _beginning(incomplete, completion_values.exports())


def settings(incomplete: str) -> list[str]:
    """Complete NAME=VALUE for a spec. Values are only suggested for settings with a fixed set of values."""
    from orchestrate.setup import completion_values

    return _beginning(incomplete, completion_values.settings())


def _backends() -> list[str]:
    with suppress(OrchestrateError, OSError):
        from orchestrate.setup import completion_values

        return completion_values.backends()
    return []


def _beginning(start: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(start)]
