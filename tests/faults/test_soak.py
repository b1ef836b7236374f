"""Some seconds of everything at once; `benchmarks/soak.py` does the same for hours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults.soaking import WAITS, Soak

from orchestrate import sandbox

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_a_soak_loses_and_doubles_nothing(
    tmp_path: Path, request: pytest.FixtureRequest, tally: Callable[..., None], store: str
) -> None:
    postgres = request.getfixturevalue("postgres") if store == "postgres" else None
    url = postgres.database() if postgres else f"sqlite:///{tmp_path}/store/runs.sqlite3"
    with sandbox.running(home=tmp_path / "sandbox", train=False, waits=WAITS) as hosts:
        soak = Soak(tmp_path / "soak", url, hosts, seed=7, slots=6, postgres=postgres)
        soak.run(6.0)
        while not (soak.done["killed"] and soak.done["submit"] and soak.faults.total()):
            soak.run(5.0)  # a busy machine did too little in the time
        soak.settle()
        books = soak.audit()
    for name, row in books.items():
        tally("everything at once (soak)", name, row | {"alarms": row["by_proxy"]})
    assert soak.crashes() == ""
    assert sum(row["runs"] for row in books.values()) > 0
    assert {name: (row["lost"], row["doubled"], row["wrong_end"]) for name, row in books.items()} == {
        name: (0, 0, 0) for name in books
    }
