"""Suggestions for shell completion. Works offline and creates no files, not even a home folder."""

from __future__ import annotations

from orchestrate import catalog
from orchestrate.providers import registry
from orchestrate.settings import config
from orchestrate.types import Run
from orchestrate.workspace import Workspace, scope_of


def backends() -> list[str]:
    return registry.usable(config.load())


def models() -> list[str]:
    return [model.name for model in catalog.search("", None)]


def formats() -> list[str]:
    """List the formats of training data for `data convert` and `data inspect`."""
    from orchestrate.data.tools import FORMATS

    return [*registry.known(config.load()), *FORMATS]


def exports() -> list[str]:
    from orchestrate.serving.export.forms import FORMS

    return [*FORMS]


def settings() -> list[str]:
    """List the fields of a spec as `--set` accepts them: NAME=, or NAME=VALUE for each value of an enumerated
    field."""
    from orchestrate.spec.specfile import json_schema

    schema = json_schema()
    found: list[str] = []
    for name, field in schema["properties"].items():
        kinds = [field, *field.get("anyOf", ())]
        values = [value for kind in kinds for value in kind.get("enum", ())]
        plain = any(kind.get("type") == "boolean" for kind in kinds)
        found += [f"{name}={value}" for value in (*values, *(("true", "false") if plain else ()))] or [
            f"{name}="
        ]
    return sorted(found)


def runs(most: int = 50) -> list[Run]:
    """List runs, newest first."""
    settings = config.load()
    if not settings.home.exists():
        return []
    with Workspace(settings) as ws:
        return ws.store.runs.matching(limit=most, sandbox=scope_of(settings))
