"""Base models: the catalog's, and what the hosts say of them now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrate import catalog
from orchestrate.catalog import Change as Change
from orchestrate.catalog import HostModel as HostModel
from orchestrate.catalog import Model as Model
from orchestrate.catalog import find as find
from orchestrate.catalog import search as search
from orchestrate.catalog import shutdown_warning as shutdown_warning
from orchestrate.errors import OrchestrateError
from orchestrate.providers.base import ListsModels, capability
from orchestrate.types import Record

if TYPE_CHECKING:
    from orchestrate.workspace import Backends, Workspace


class ModelChanges(Record, frozen=True, kw_only=True):
    """Where the hosts differ from the catalog."""

    changes: tuple[Change, ...]
    skipped: dict[str, str]
    """Backend -> why it could not be asked."""


def changes(ft: Workspace, provider: Backends = "all") -> ModelChanges:
    """Asks the hosts which models they tune; those of which the catalog knows nothing are not asked."""
    found: list[Change] = []
    skipped: dict[str, str] = {}
    for name in ft.backends(provider):
        if name not in catalog.known_hosts():
            continue
        try:
            found += catalog.differences(name, capability(ft.provider(name), ListsModels).base_models())
        except OrchestrateError as error:
            skipped[name] = error.message
    return ModelChanges(changes=tuple(found), skipped=skipped)
