"""What `deploy` is asked for on every host with GPUs of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Self

import msgspec

from orchestrate.errors import UsageError
from orchestrate.paid.limits import require_within
from orchestrate.types import Record, decoding

TO_BE_ASKED = "orchestrate deploy RUN   (shows the hourly price first), or --on here   (its adapter, here)"
"""What makes a tuned model answer that is on no GPU yet."""


class Replicas(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    min_replicas: int = 1
    max_replicas: int = 1
    max_usd_per_hour: Decimal | None = None

    @classmethod
    def read(cls, provider: str, options: Mapping[str, Any] | None) -> Self:
        """Raises `UsageError` for unknown options and impossible numbers."""
        try:
            wanted = decoding.convert(dict(options or {}), cls, strict=False)
        except msgspec.ValidationError as error:
            known = ", ".join(sorted(cls.__struct_fields__))
            raise UsageError(f"deploy options for {provider}: {error}; known: {known}") from error
        if not 0 <= wanted.min_replicas <= wanted.max_replicas or wanted.max_replicas < 1:
            raise UsageError("max_replicas must be at least 1, and not below min_replicas")
        return wanted

    def require(self, provider: str, per_hour: Decimal | None) -> None:
        """Raises `OverBudget` for a price above `max_usd_per_hour`, and for one that is not known."""
        limit, figure = self.max_usd_per_hour, "the price of an hour"
        require_within(provider, per_hour, limit, what="max_usd_per_hour", figure=figure)
