"""What stands at a host and bills, or could."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from orchestrate.types.record import Record


class Standing(Record, frozen=True, kw_only=True):
    """One thing at a host that bills or could, whoever made it."""

    provider: str
    kind: Literal["job", "deployment", "endpoint", "worker", "storage"]
    """An endpoint is a name without a deployment behind it; a worker runs on a machine of the user's."""
    id: str
    """The host's own."""
    name: str | None = None
    """What people call it there."""
    state: str
    """The host's own word, in lower case and without its prefix."""
    bills: bool | None
    """Whether it bills now; `None` when that cannot be told."""
    usd_per_hour: Decimal | None = None
    """While it bills; of a deployment with all of its replicas up. `None` when no price is known."""
    job_id: str | None = None
    """The job that it is, or that it would be of by its name: whose it is only the store can tell."""
    created_at: datetime | None = None
    note: str | None = None
    payload: dict[str, Any] = {}


class Billing(Record, frozen=True, kw_only=True):
    """What of one account bills or could, and what of it could not be seen."""

    items: tuple[Standing, ...] = ()
    unseen: tuple[str, ...] = ()
    """What the host has no list of, or what could not be asked, a sentence each."""
