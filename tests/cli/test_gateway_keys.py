"""The table of keys: those of the gateway, and those of servers of models beside them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from tests.cli.conftest import Cli

from orchestrate.store.store import Store
from orchestrate.types import GatewayKey


def test_a_key_of_servers_of_models_is_told_from_one_of_the_gateway(cli: Cli, tmp_path: Path) -> None:
    assert cli("gateway", "keys", "add", "ann", "--project", "search").code == 0
    now = datetime.now(UTC)
    with Store.open(f"sqlite:///{tmp_path}/home/runs.sqlite3") as store:
        store.gateway_keys.add(GatewayKey(name="app", created_at=now, opens="serve"), by="me")
    told = {one["name"]: one for one in json.loads(cli("gateway", "keys", "ls", "--json").out)}
    assert {name: one.get("opens", "gateway") for name, one in told.items()} == {
        "ann": "gateway",
        "app": "serve",
    }
    rows = {line.split()[0]: line.split() for line in cli("gateway", "keys", "ls").out.splitlines() if line}
    assert rows["name"][1] == "server" and rows["ann"][1] == "gateway" and rows["app"][1] == "serve"
    assert rows["ann"][-1] == "all" != rows["app"][-1]
    ann, app = (cli("gateway", "keys", "revoke", name).err for name in ("ann", "app"))
    assert "jobs" in ann and "app" in app and "jobs" not in app
