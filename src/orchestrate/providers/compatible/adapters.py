"""Adapters of elsewhere at a described host: an archive, and the request that names it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Collection, Mapping
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
    def __init__(
        self, profile: Profile, how: AdapterUpload, deploying: Deploying, bases: Collection[str]
    ) -> None:
        """`bases`: the host's names of those on which it serves adapters."""
        self._profile, self._how, self._deploying, self._bases = profile, how, deploying, bases

    def price(self, adapter: Adapter, options: Mapping[str, Any] | None) -> Decimal | None:
        self._base(adapter)
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
        self._deploying.bring(adapter.id, self._base(adapter), packed.getvalue())
        if progress is not None:
            progress(size, size)

    def _base(self, adapter: Adapter) -> str:
        """A host that takes any name of the hub for training serves adapters on its own models only."""
        base = adapters.base_at(self._profile, adapter)
        if base not in self._bases:
            raise UsageError(
                f"{self._profile.title} does not serve {adapter.base}, on which this was trained; it serves "
                f"adapters on {', '.join(sorted(self._bases))}"
            )
        return base
