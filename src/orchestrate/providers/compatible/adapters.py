"""Adapters of elsewhere at a described host: an archive, and the request that names it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from orchestrate.errors import UsageError
from orchestrate.providers import adapters

if TYPE_CHECKING:
    from orchestrate.description import AdapterUpload
    from orchestrate.profile import Profile
    from orchestrate.providers.compatible.deploying import Deploying
    from orchestrate.types import Adapter


class DescribedAdapters(adapters.Adapters):
    def __init__(self, profile: Profile, how: AdapterUpload, deploying: Deploying) -> None:
        self._profile, self._how, self._deploying = profile, how, deploying

    def price(self, adapter: Adapter, options: Mapping[str, Any] | None) -> Decimal | None:
        adapters.base_at(self._profile, adapter)
        most = self._how.max_rank
        if most is not None and adapter.rank > most:
            raise UsageError(f"{self._profile.title} takes adapters up to rank {most}, not {adapter.rank}")
        return self._deploying.price(options)

    def upload(self, adapter: Adapter, progress: Callable[[int, int], None] | None = None) -> None:
        """It answers by the token from then on: there is no other step."""
        if self._deploying.find(adapter.id) is not None:
            return
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for file in adapters.files(adapter):
                archive.write(file, file.name)
        size = packed.tell()
        base = adapters.base_at(self._profile, adapter)
        self._deploying.bring(adapter.id, base, packed.getvalue())
        if progress is not None:
            progress(size, size)
