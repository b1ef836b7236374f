"""What a host says of its models now, against the catalog."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrate.catalog.models import HostModel, all_models
from orchestrate.types import Record

_COMPARED = ("tunable", "context", "max_rank", "shutdown")


class Change(Record, frozen=True, kw_only=True):
    provider: str
    model: str
    """The host's id."""
    field: str
    """`model` when one side does not have it at all."""
    ours: str | None = None
    theirs: str | None = None


def differences(provider: str, seen: Iterable[HostModel]) -> list[Change]:
    """New models, missing ones and changed limits. A field that the host does not tell (`None`) is no
    difference."""
    theirs = {host.id: host for host in seen}
    ours = {m.hosts[provider].id: m.hosts[provider] for m in all_models() if provider in m.hosts}
    found: list[Change] = []
    for id, host in theirs.items():
        if id not in ours:
            if host.tunable == "yes":
                found.append(Change(provider=provider, model=id, field="model", theirs="tunable"))
            continue
        for field in _COMPARED:
            known, said = getattr(ours[id], field), getattr(host, field)
            if said is not None and said != "unconfirmed" and said != known:
                found.append(
                    Change(provider=provider, model=id, field=field, ours=_text(known), theirs=_text(said))
                )
    for id, host in ours.items():
        if id not in theirs and host.tunable == "yes":
            found.append(Change(provider=provider, model=id, field="model", ours="tunable"))
    return found


def _text(value: object) -> str | None:
    if value is None:
        return None
    return "/".join(str(part) for part in value) if isinstance(value, tuple) else str(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]  # a pair of ints
