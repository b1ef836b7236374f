"""What the fault tests share: stores of both kinds, with a real Postgres, a sandbox, and the count."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.faults.paper_host import PaperHost
from tests.faults.shop import Shop
from tests.faults.world import Counted, World

from orchestrate import sandbox
from orchestrate.sandbox.jobs import Durations
from orchestrate.store.store import Store

AT_ONCE = Durations(file=0.0)
"""An upload can be used: a client looks again after half a second only."""
STILL = 0.01
"""The speed at which only `hosts.skip` moves the jobs, on a busy machine too: after 250 s one is running,
after 1,100 s it has ended; a cancel takes 100 s."""


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/home/runs.sqlite3"
    return request.getfixturevalue("postgres").store()


@pytest.fixture(params=["sqlite", "postgres"])
def unmade_store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where there is no store yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/home/runs.sqlite3"
    return request.getfixturevalue("postgres").database()


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store.open(store_url) as opened:
        yield opened


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def host(tmp_path: Path) -> PaperHost:
    return PaperHost(tmp_path / "host", timeout_s=0.1)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    home = tmp_path_factory.mktemp("sandbox")
    with sandbox.running(home=home, train=False, speed=STILL, waits=AT_ONCE) as running:
        yield running


@pytest.fixture
def world(tmp_path: Path, hosts: Any) -> Iterator[World]:
    made = World(tmp_path, hosts)
    hosts.clear_faults()
    yield made
    hosts.clear_faults()
    made.close()


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Tells the suite's table what a case came to: `tally(fault, backend, counts)`."""

    def add(fault: str, where: str, found: dict[str, int]) -> None:
        request.node.user_properties.append(("jobs", {"fault": fault, "where": where, **found}))

    return add


@pytest.fixture
def counted(world: World, tally: Callable[..., None]) -> Counted:
    """Counts, tells the suite's table, and requires that nothing is lost or doubled."""

    def count(fault: str, name: str, *, by_proxy: int = 0) -> dict[str, int]:
        found = world.count(name, by_proxy=by_proxy)
        tally(fault, name, found)
        assert (found["lost"], found["doubled"]) == (0, 0), found
        return found

    return count


@pytest.fixture
def shop(tmp_path: Path, hosts: Any) -> Iterator[Shop]:
    hosts.clear_faults()
    made = Shop(tmp_path, hosts)
    yield made
    made.ft.close()
    hosts.clear_faults()
