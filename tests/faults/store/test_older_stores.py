"""A store of the schema before accounts were kept, with runs in every phase, is migrated and gone on with."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.faults.paper_host import Paper, PaperHost

from orchestrate.errors import OtherAccount
from orchestrate.tracking import Store, Submitter, Timing, cancel, sync
from orchestrate.types import JobStatus, RemoteDataset, Run, SubmitPhase

FOLDER = Path(__file__).parent / "schemas"
QUICK = Timing(send_limit_s=0.0, requests=0, margin_s=0.0, lease_s=5.0, patience_s=1.0)
DATA: Any = Paper()
PLACE = "file:///HOST"
FILE = "file-dddddddd"


@pytest.fixture(params=["sqlite", "postgres"])
def older(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    host = f"file://{tmp_path}/host"
    if request.param == "sqlite":
        path = tmp_path / "runs.sqlite3"
        with sqlite3.connect(path) as raw:
            raw.executescript((FOLDER / "store-2.sql").read_text().replace(PLACE, host))
        raw.close()
        url = f"sqlite:///{path}"
    else:
        import psycopg

        url = request.getfixturevalue("postgres").database()
        with psycopg.connect(url) as raw:
            raw.execute((FOLDER / "store-2.postgres.sql").read_text().replace(PLACE, host).encode())
    with Store.open(url) as store:
        yield store


@pytest.fixture
def host(older: Store, tmp_path: Path) -> PaperHost:
    """The account that the older code sent to, with what it made there."""
    made = PaperHost(tmp_path / "host", owner="mine", timeout_s=0.1)
    for name in ("ended", "open"):
        run = older.runs.get(name)
        made.add(run.ref, id=run.job_id, state="done" if name == "ended" else "running")
    made.add(older.runs.get("lost").ref)
    made.hold(RemoteDataset(provider="paper", digest=DATA.digest, train_id=FILE))
    return made


def phases(store: Store) -> dict[str, str]:
    return {run.spec["suffix"]: run.phase.value for run in store.runs.matching()}


def test_its_runs_are_as_they_were(older: Store) -> None:
    assert phases(older) == {
        "ended": "submitted",
        "open": "submitted",
        "lost": "outcome_unknown",
        "unmade": "outcome_unknown",
        "refused": "refused",
        "uploaded": "uploaded",
        "intent": "intent",
    }
    assert {run.account for run in older.runs.matching()} == {None}
    assert older.runs.get("ended").status is JobStatus.SUCCEEDED
    assert older.verify() == []


def test_a_sync_goes_on_with_them_and_learns_their_account(older: Store, host: PaperHost) -> None:
    report = sync(older, lambda _: host, timing=QUICK)
    runs = {run.spec["suffix"]: run for run in older.runs.matching()}
    assert report.adopted == [runs["lost"].id]
    assert report.not_made == [runs["unmade"].id], "the file that was uploaded for it is in this account"
    assert set(report.unsent) == {runs["uploaded"].id, runs["intent"].id}
    assert (report.elsewhere, report.failures) == ([], [])
    assert runs["open"].status is JobStatus.RUNNING
    assert {runs[name].account for name in ("open", "lost", "unmade")} == {"mine"}
    for name in ("uploaded", "unmade", "intent"):
        made = Submitter(older, host).resume(older.runs.get(name), DATA)
        assert (made.phase, made.account) == (SubmitPhase.SUBMITTED, "mine")
    assert (host.posts(), host.requests.count("upload")) == (3, 0), "the file is there already"
    assert cancel(older, host, older.runs.get("open")).status is JobStatus.CANCELLING
    assert older.verify() == []


def test_another_account_concludes_nothing_about_them(older: Store, host: PaperHost, tmp_path: Path) -> None:
    other = PaperHost(tmp_path / "host", owner="theirs", timeout_s=0.1)
    report = sync(older, lambda _: other, timing=QUICK)
    assert report.not_made == [] and older.runs.get("lost").phase is SubmitPhase.OUTCOME_UNKNOWN
    for name in ("open", "uploaded"):
        run: Run = older.runs.get(name)
        with pytest.raises(OtherAccount, match="not known"):
            (cancel if name == "open" else resume)(older, other, run)
    assert sync(older, lambda _: host, timing=QUICK).adopted == [older.runs.get("lost").id]


def resume(store: Store, host: PaperHost, run: Run) -> Run:
    return Submitter(store, host).resume(run, DATA)
