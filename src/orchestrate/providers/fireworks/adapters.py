"""Adapters of elsewhere at Fireworks: a model resource, its files over signed URLs, the host's own
validation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

from orchestrate.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    UnexpectedAnswer,
    UsageError,
)
from orchestrate.providers import adapters
from orchestrate.providers.calls.hosted import Wire
from orchestrate.providers.calls.values import plain, table, text
from orchestrate.providers.fireworks.connection import Connection
from orchestrate.providers.fireworks.datasets import put_signed, require_safe
from orchestrate.providers.fireworks.profile import PROFILE
from orchestrate.providers.fireworks.serving import Serving, Tuned
from orchestrate.providers.hosted import awaited
from orchestrate.types import Adapter

RANKS = (4, 64)
"""Of `PeftDetails.r` in the host's API."""
READY = "READY"
WAIT_S = 900.0


class FireworksAdapters(adapters.Adapters):
    def __init__(
        self, at: Connection, wire: Wire, serving: Serving, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._at, self._wire, self._serving, self._sleep = at, wire, serving, sleep

    def price(self, adapter: Adapter, options: Mapping[str, Any] | None) -> Decimal | None:
        base = self._base(adapter)
        if (self.find(adapter.id) or {}).get("state") == READY:
            return self._serving.price(adapter.id, Tuned(self.name(adapter.id), base), options)
        return self._serving.price(adapter.id, Tuned(base, base), options)

    def upload(self, adapter: Adapter, progress: Callable[[int, int], None] | None = None) -> None:
        there = self.find(adapter.id)
        if there is not None and there.get("state") == READY:
            return
        if there is None:
            self._create(adapter)
        api, account = self._at.client().models, self._at.account()
        files = adapters.files(adapter)
        sizes = {file.name: str(file.stat().st_size) for file in files}
        answer = self._wire.read(
            lambda: api.get_upload_endpoint(adapter.id, account_id=account, filename_to_size=sizes)
        )
        urls = table(plain(answer).get("filenameToSignedUrls"))
        total, done = sum(map(int, sizes.values())), 0
        for file in files:
            self._put(require_safe(urls.get(file.name)), file)
            done += int(sizes[file.name])
            if progress is not None:
                progress(done, total)
        try:
            self._wire.read(lambda: api.validate_upload(adapter.id, account_id=account))
        except InvalidRequest as error:
            error.fix = "orchestrate export RUN DIR --to merged   for a host that takes whole models"
            raise
        self._ready(adapter.id)

    def find(self, id: str) -> dict[str, Any] | None:
        api, account = self._at.client().models, self._at.account()
        with suppress(NotFound):
            return plain(self._wire.read(lambda: api.get(id, account_id=account)))
        return None

    def name(self, id: str) -> str:
        return f"accounts/{self._at.account()}/models/{id}"

    def as_job(self, id: str) -> dict[str, Any]:
        """In the form of the job that would have made it. Raises `NotFound` where it is not there."""
        found = self.find(id)
        if found is None:
            raise NotFound(self._wire.provider, f"there is no adapter {id}", status=404)
        base = table(found.get("peftDetails")).get("baseModel")
        # A job's state; a model that is not ready has no endpoint either.
        state = "JOB_STATE_COMPLETED" if found.get("state") == READY else "JOB_STATE_RUNNING"
        return {"name": self.name(id), "outputModel": self.name(id), "baseModel": base, "state": state}

    # -- steps ---------------------------------------------------------------------------------------------

    def _base(self, adapter: Adapter) -> str:
        """Raises `UsageError` for a base that the host has, and serves no adapters on."""
        base = adapters.base_at(PROFILE, adapter)
        least, most = RANKS
        if not least <= adapter.rank <= most:
            raise UsageError(
                f"Fireworks takes adapters of ranks {least} to {most}; this one has {adapter.rank}",
                fix="orchestrate export RUN DIR --to merged   for a host that takes whole models",
            )
        _, account, _, id = base.split("/")
        api = self._at.client().models
        try:
            found = plain(self._wire.read(lambda: api.get(id, account_id=account)))
        except NotFound as error:
            raise UsageError(f"Fireworks has no model {base} now") from error
        if found.get("supportsLora") is False:
            raise UsageError(f"Fireworks serves no adapters on {base}")
        return base

    def _create(self, adapter: Adapter) -> None:
        api, account = self._at.client().models, self._at.account()
        details: Any = {
            "base_model": self._base(adapter),
            "r": adapter.rank,
            "target_modules": list(adapter.targets),
        }
        with suppress(Conflict):  # made by an earlier try, or by another process with the same weights
            self._wire.read(
                lambda: api.create(
                    account_id=account,
                    model_id=adapter.id,
                    model={"kind": "HF_PEFT_ADDON", "peft_details": details},
                )
            )

    def _put(self, url: str, file: Path) -> None:
        self._wire.read(lambda: put_signed(self._at.plain(), url, file))

    def _ready(self, id: str) -> None:
        def look() -> tuple[object, object]:
            found = self.find(id)
            if found is None:
                raise UnexpectedAnswer(self._wire.provider, f"the adapter {id} is gone after its upload")
            status = table(found.get("status"))
            if text(status.get("code")) not in (None, "OK"):
                raise InvalidRequest(
                    self._wire.provider, f"it refuses the adapter: {status.get('message')}", status=400
                )
            return (found if found.get("state") == READY else None), found.get("state")

        awaited(
            look,
            provider=self._wire.provider,
            what=f"the adapter {id}",
            sleep=self._sleep,
            within_s=WAIT_S,
            fix="deploy again later; what was uploaded is used as it is",
        )
