"""The log of who did what is no way to fill the disk."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.unit.gateway.conftest import gateway_of

from orchestrate.gateway import launch as service
from orchestrate.gateway.server import Audit
from orchestrate.sandbox.server import Sandbox
from orchestrate.store import Clock, Uptime
from orchestrate.store.store import Store
from orchestrate.types import AuditEntry, GatewayKey


class Moved(Clock):
    by = 0.0

    def uptime(self) -> Uptime:
        up = super().uptime()
        return Uptime(up.boot, up.seconds + self.by)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/runs.sqlite3", clock=Moved()) as found:
        yield found


def scope(path: str = "/v1/models", method: str = "GET", address: str = "10.0.0.1") -> dict[str, Any]:
    return {"method": method, "path": path, "client": (address, 5)}


def test_refusals_that_are_alike_are_written_once_a_minute_with_their_number(store: Store) -> None:
    audit, keys = Audit(store), store.gateway_keys
    for n in range(50):
        audit.write(scope(f"/{n}"), None, 401, "invalid_api_key")
    assert [entry.times for entry in keys.entries()] == [1]
    store.clock.by = 61.0  # type: ignore[attr-defined]
    audit.write(scope("/last"), None, 401, "invalid_api_key")
    assert [entry.times for entry in keys.entries()] == [1, 50]
    audit.write(scope(address="10.0.0.2"), None, 401, "invalid_api_key")
    ann = GatewayKey(name="ann", created_at=store.clock.now())
    for path in ("/a", "/a", "/b"):
        audit.write(scope(path, "POST"), ann, 403, "over_budget")
    assert [entry.path for entry in keys.entries(key="ann")] == ["/a", "/b"]
    for _ in range(3):  # what was done is each written down
        audit.write(scope("/c", "POST"), ann, 200, None)
    assert len(keys.entries(key="ann")) == 5


@pytest.mark.slow
def test_many_addresses_fill_neither_memory_nor_the_disk(store: Store) -> None:
    audit, keys = Audit(store), store.gateway_keys
    for n in range(1100):
        audit.write(scope(address=f"10.0.{n // 256}.{n % 256}"), None, 401, None)
    assert len(keys.entries(limit=2000)) == 1000
    own = AuditEntry(at=store.clock.now() - timedelta(days=1), key="ann", method="POST", path="/", status=200)
    keys.log(own)
    keys.sweep(10)
    left = keys.entries(limit=2000)
    assert len(left) == 11 and left[-1].key == "ann"
    assert left[0].address == f"10.0.{990 // 256}.{990 % 256}"


def test_a_flood_without_a_key_is_a_line(sandbox: Sandbox, tmp_path: Path) -> None:
    with gateway_of(tmp_path, sandbox.env) as gateway:
        given, _ = service.add_key(gateway.ft, "ann")
        with gateway.http("wrong") as http:
            for n in range(20):
                assert http.get(f"files/{n}").status_code == 401
        with gateway.http(given) as http:
            assert http.delete("files/none").status_code == 404

        def entries() -> list[AuditEntry]:
            return service.entries(gateway.ft)

        assert [(e.key, e.status) for e in entries()] == [("ann", 0), ("", 401), ("ann", 404)], (
            "before they were answered"
        )
