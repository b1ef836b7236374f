"""The gateway's functions for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrate.errors import UsageError
from orchestrate.gateway import server, terms
from orchestrate.gateway.server import RunningGateway
from orchestrate.gateway.terms import GatewaySettings as GatewaySettings
from orchestrate.settings import config
from orchestrate.types import AuditEntry, GatewayKey

if TYPE_CHECKING:
    from orchestrate.runs.watching.watcher import Watcher
    from orchestrate.workspace import Workspace


def read(ft: Workspace, **more: Any) -> GatewaySettings:
    """Read the gateway's settings from the configuration. `more` contains fields of `GatewaySettings` set by
    command-line flags. Raises `ConfigError` if the configuration is invalid."""
    settings = ft.settings
    secret = config.secret(config.GATEWAY_SECRET, "ORCHESTRATE_GATEWAY_WEBHOOK_SECRET")
    where = str(settings.config_file or config.CONFIG_NAME)
    return terms.read(settings.gateway, settings.home, where, webhook_secret=secret, **more)


def serve(
    ft: Workspace, settings: GatewaySettings, watcher: Watcher
) -> AbstractContextManager[RunningGateway]:
    """Serve the gateway. See `orchestrate.gateway.server.serve`."""
    return server.serve(ft, settings, watcher)


def add_key(  # noqa: PLR0913  each is a limit of its own
    ft: Workspace,
    name: str,
    *,
    project: str = "default",
    backends: Sequence[str] = (),
    models: Sequence[str] = (),
    map: Sequence[str] = (),
    budget_usd: Decimal | None = None,
    per_minute: int | None = None,
    concurrent: int | None = None,
    expires_at: datetime | None = None,
) -> tuple[str, GatewayKey]:
    """Create a key. Returns the key, which can't be shown again, and its record. Entries of `map` have the
    form `NAME=BACKEND:MODEL`. Raises `UsageError` if the name is taken or an option is invalid, and
    `ConfigError` if an entry is not in this form."""
    own: dict[str, str] = {}
    for entry in map:
        asked, sign, target = entry.partition("=")
        if not sign or not asked:
            raise UsageError(
                f"{entry!r} must have the form NAME=BACKEND:MODEL", fix="orchestrate gateway keys add --help"
            )
        ft.backends(terms.parse_target(target).backend)
        own[asked] = target
    key = GatewayKey(
        name=name,
        created_at=ft.store.clock.now(),
        project=project,
        backends=tuple(ft.backends(backends)) if backends else (),
        models=tuple(models),
        map=own,
        budget_usd=budget_usd,
        per_minute=per_minute,
        concurrent=concurrent,
        expires_at=expires_at,
    )
    return ft.store.gateway_keys.add(key, by=ft.settings.made_by), key


def keys(ft: Workspace) -> list[tuple[GatewayKey, Decimal, int]]:
    """List the keys, each with the cost of its jobs in US dollars and the number of its open jobs."""
    found: list[tuple[GatewayKey, Decimal, int]] = []
    for key in ft.store.gateway_keys.all():
        use = ft.store.gateway_jobs.use(key.name)
        found.append((key, use.usd, use.open))
    return found


def revoke_key(ft: Workspace, name: str) -> GatewayKey:
    """Revoke a key. The next request with it is rejected. Raises `UsageError` for a name without a key."""
    return ft.store.gateway_keys.revoke(name, ft.store.clock.now(), by=ft.settings.made_by)


def entries(ft: Workspace, *, key: str | None = None, limit: int = 100) -> list[AuditEntry]:
    """List the most recent entries of the audit log, oldest first: requests that changed something or
    were rejected, and keys that were created or revoked."""
    return ft.store.gateway_keys.entries(key=key, limit=limit)


def certificate(chain: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    """Return the paths of the certificate and its key, or `None` if neither is given. Raises `UsageError` if
    only one is given."""
    if chain is None and key is None:
        return None
    if chain is None or key is None:
        raise UsageError("a certificate needs its key: set both --tls-certificate and --tls-key")
    return chain, key
