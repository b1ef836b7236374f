"""A store of an older schema: upgraded by the steps since then, with a backup, or refused as it was."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from tests import command
from tests.faults.submitting import leave, make_at_once, make_runs

from orchestrate.costing import Spending
from orchestrate.errors import StoreError
from orchestrate.paid.journal import Send
from orchestrate.spec import JobSpec
from orchestrate.store import migrations, schema
from orchestrate.store.database import sqlite_tables
from orchestrate.store.ledger import AnswerAccount
from orchestrate.store.run_lists import RunQuery
from orchestrate.store.runs import Intent
from orchestrate.store.store import Store
from orchestrate.types import Quote

NOW, NEXT = schema.VERSION, schema.VERSION + 1
SPEC = JobSpec(model="m", train="rows.jsonl")
PINNED = {11: "e8f6cc525a20c17b952583570458592912ca12a0910817e3b0c4486155f7eb01"}
"""The hash of the tables by schema."""


def test_tables_that_change_have_a_new_version() -> None:
    """Else the stores of others would be left behind: a release needs the step to them too."""
    made = sha256("\n".join(sorted(sqlite_tables())).encode()).hexdigest()
    assert {schema.VERSION: made} == PINNED


def test_a_store_from_before_answers_were_counted_counts_them(older: str) -> None:
    with Store.open(older) as store, store.database.writing() as connection:
        for table in (schema.answer_holds, schema.answer_sums, schema.answers_ended):
            table.drop(connection)
        connection.execute(schema.meta.update().values(value="5"))
    with Store.open(older) as store:
        assert len(store.runs.matching()) == 3
        account = AnswerAccount(store.database, "evaluation", None)
        account.settle(account.hold("openai", Decimal(2), Path("log.jsonl")), Decimal(1))
        assert store.ledger.spending().spent_usd == 1


def test_a_store_from_before_silences_were_noted_notes_them(older: str) -> None:
    with Store.open(older) as store, store.database.writing() as connection:
        schema.silences.drop(connection)
        connection.execute(schema.meta.update().values(value="9"))
    with Store.open(older) as store:
        marks = {run.id: "mark" for run in store.runs.matching()}
        assert len(marks) == 3
        assert [one.seconds for one in store.watching.silences(marks).values()] == [0, 0, 0]


@pytest.mark.slow
def test_answers_counted_before_it_was_kept_which_are_not_counted_again(older: str) -> None:
    with Store.open(older) as store, store.database.writing() as connection:
        schema.answers_ended.drop(connection)
        connection.execute(schema.meta.update().values(value="6"))
    with Store.open(older) as store:
        account, log = AnswerAccount(store.database, "evaluation", None), Path("log.jsonl")
        account.catch_up("openai", log, {"0123456789abcdef": Send(Decimal(5), None)})
        assert store.ledger.answers() == []
        account.catch_up("openai", log, {f"send-{n}": Send(Decimal(1), None) for n in range(1200)})
        account.catch_up("openai", log, {f"send-{n}": Send(Decimal(1), None) for n in range(1201)})
        assert store.ledger.spending().spent_usd == 1201


def test_runs_from_before_the_database_listed_them_are_found(store_url: str) -> None:
    with Store.open(store_url) as store:
        for n in range(3):
            # No id has these letters, so that no id is found for them.
            spec = SPEC.model_copy(update={"suffix": f"lo{n}", "tags": {"team": f"t{n}"}})
            store.runs.create(Intent(spec=spec, provider="paper", dataset_digest="d" * 64, host="here"))
        with store.database.writing() as connection:
            schema.run_tags.drop(connection)
            for index in ("runs_listed", "runs_by_change"):
                connection.execute(text(f"DROP INDEX {index}"))
            for column in ("title", "model", "cost", "archived", "words"):
                connection.execute(text(f"ALTER TABLE runs DROP COLUMN {column}"))
            connection.execute(text("CREATE INDEX runs_by_age ON runs (created_at)"))
            connection.execute(schema.meta.update().values(value="7"))
    for _ in range(2):
        with Store.open(store_url) as store:
            for query in (RunQuery(tag="team=t1"), RunQuery(words="lo1"), RunQuery(words="team=t1 paper")):
                assert [run.spec["suffix"] for run in store.listing.page(query, limit=5)] == ["lo1"]
            assert store.listing.count(RunQuery(archived=False)) == 3 and store.verify() == []


def test_a_store_from_before_sums_were_kept_adds_them_up(older: str) -> None:
    quote = Quote(provider="openai", model="m", high_usd=Decimal("0.1"))
    with Store.open(older) as store:
        for _ in range(3):
            store.runs.create(
                Intent(spec=SPEC, provider="openai", dataset_digest="d", host="here", quote=quote)
            )
        known = store.ledger.spending()
        with store.database.writing() as connection:
            schema.kept_sums.drop(connection)
            connection.execute(text("ALTER TABLE answer_holds DROP COLUMN log_bytes"))
            connection.execute(schema.meta.update().values(value="8"))
    with Store.open(older) as store:
        assert store.ledger.spending() == known == Spending(committed_usd=Decimal("0.3"))
        assert not store.ledger.recount()
        account = AnswerAccount(store.database, "evaluation", None)
        account.release(account.hold("openai", Decimal(2), Path("log.jsonl")))


# -- an upgrade to a schema that is to come ----------------------------------------------------------------


def step(connection: Connection) -> None:
    """A new column, filled in for each run, and a new table."""
    connection.execute(text("ALTER TABLE runs ADD COLUMN later TEXT"))
    connection.execute(text("UPDATE runs SET later = 'was ' || id"))
    connection.execute(text("CREATE TABLE newer (id INTEGER PRIMARY KEY, note TEXT)"))
    connection.execute(text(f"INSERT INTO newer VALUES (1, '{'x' * 60_000}')"))


def killed_step(connection: Connection) -> None:
    step(connection)
    os.kill(os.getpid(), signal.SIGKILL)


def know_the_next(by: Callable[[Connection], None] = step) -> None:
    schema.VERSION, migrations.STEPS[NOW] = NEXT, by  # pyright: ignore[reportConstantRedefinition]


def open_by_the_next(arguments: list[str]) -> None:
    know_the_next()
    Store.open(arguments[0]).close()


def open_and_be_killed(arguments: list[str]) -> None:
    know_the_next(killed_step)
    Store.open(arguments[0]).close()


def make_runs_by_the_next(arguments: list[str]) -> None:
    know_the_next()
    make_runs(arguments)


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on this process has the next schema."""

    def begin() -> None:
        monkeypatch.setattr(schema, "VERSION", NEXT)
        monkeypatch.setitem(migrations.STEPS, NOW, step)

    return begin


@pytest.fixture
def older(store_url: str) -> str:
    """A store of the present schema, with three runs."""
    fill(store_url)
    return store_url


def fill(url: str) -> None:
    with Store.open(url) as store:
        for n in range(3):
            spec = SPEC.model_copy(update={"suffix": f"s{n}"})
            store.runs.create(Intent(spec=spec, provider="paper", dataset_digest="d" * 64, host="here"))


def inside(url: str) -> tuple[str, int, bool]:
    """Schema, number of runs and whether the step was taken, without opening it as a store."""
    raw: Any
    if url.startswith("sqlite"):
        raw = sqlite3.connect(path_of(url))
    else:
        import psycopg

        raw = psycopg.connect(url)
    with closing(raw):
        [version] = raw.execute("SELECT value FROM orchestrate_meta WHERE key = 'schema'").fetchone()
        [count] = raw.execute("SELECT count(*) FROM runs").fetchone()
        if url.startswith("sqlite"):
            columns = [row[1] for row in raw.execute("PRAGMA table_info(runs)")]
        else:
            columns = [c.name for c in raw.execute("SELECT * FROM runs LIMIT 0").description]
    return version, count, "later" in columns


def path_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


def backups(url: str) -> list[Path]:
    return list(path_of(url).parent.glob("*.backup")) if url.startswith("sqlite") else []


def test_an_older_store_is_upgraded_once_with_a_backup(older: str, next_version: Callable[[], None]) -> None:
    with Store.open(older) as store:
        before = store.runs.matching()
    next_version()
    Store.open(older).close()
    with Store.open(older) as store, store.database.reading() as connection:
        assert store.runs.matching() == before and store.verify() == []
        later = connection.execute(text("SELECT id, later FROM runs")).all()
    assert {(run.id, f"was {run.id}") for run in before} == set(map(tuple, later))
    assert inside(older) == (str(NEXT), 3, True)
    for backup in backups(older):
        assert stat.S_IMODE(backup.stat().st_mode) == 0o600
        assert inside(f"sqlite:///{backup}") == (str(NOW), 3, False)
    assert len(backups(older)) == older.startswith("sqlite")


def test_an_upgrade_that_is_killed_leaves_the_older_store(older: str, tmp_path: Path) -> None:
    ended = command.run([older], cwd=tmp_path, env=os.environ, program=open_and_be_killed)
    assert ended.code == -signal.SIGKILL
    assert inside(older) == (str(NOW), 3, False)
    with Store.open(older) as store:
        assert len(store.runs.matching()) == 3 and store.verify() == []
    ended = command.run([older], cwd=tmp_path, env=os.environ, program=open_by_the_next)
    assert (ended.code, inside(older)) == (0, (str(NEXT), 3, True)), ended.err
    assert [inside(f"sqlite:///{backup}") for backup in backups(older)] in ([], [(str(NOW), 3, False)])
    with pytest.raises(StoreError, match="newer version"):
        Store.open(older)


def test_a_process_that_an_upgrade_overtakes_writes_nothing_more(older: str, tmp_path: Path) -> None:
    with Store.open(older) as store:
        [kept, *_] = store.runs.matching()
        ended = command.run([older], cwd=tmp_path, env=os.environ, program=open_by_the_next)
        assert ended.code == 0, ended.err
        for write in (
            lambda: store.runs.create(Intent(spec=SPEC, provider="p", dataset_digest="d", host="here")),
            lambda: store.runs.request_cancel(kept.id),
            lambda: AnswerAccount(store.database, "record", None).hold("p", Decimal(2), Path("log")),
        ):
            with pytest.raises(StoreError, match="newer version") as refused:
                write()
            assert refused.value.fix and "restart everything" in refused.value.fix
        assert len(store.runs.matching()) == 3, "what is there can still be read"
    assert inside(older) == (str(NEXT), 3, True)


def test_an_upgrade_waits_for_what_an_older_process_is_writing(older: str, tmp_path: Path) -> None:
    """And takes nothing that this needs before."""
    with Store.open(older) as store:
        with store.database.writing() as connection:
            streams = [Path(os.devnull), *[tmp_path / "upgrade.log"] * 2]
            upgrade = command.start(open_by_the_next, [older], cwd=tmp_path, env=os.environ, streams=streams)
            upgrade.join(1.5)
            assert upgrade.is_alive(), "it waits"
            connection.execute(schema.runs.update().values(archived=True))
        assert command.ended(upgrade, 60) == 0
        assert all(inside(older)) and inside(older)[0] == str(NEXT)
        with store.database.reading() as connection:
            assert connection.execute(text("SELECT count(*) FROM runs WHERE archived")).scalar() == 3


def test_many_processes_that_upgrade_at_once_do_it_once(older: str, tmp_path: Path) -> None:
    made = make_at_once(tmp_path, older, processes=4, each=1, maker=make_runs_by_the_next)
    assert made == [0] * 4, (tmp_path / "makers.log").read_text()
    assert inside(older) == (str(NEXT), 7, True)
    for backup in backups(older):
        assert inside(f"sqlite:///{backup}") == (str(NOW), 3, False), "the backup is of the older store"


@pytest.mark.parametrize("free", range(20_000, 700_000, 40_000))
def test_an_upgrade_on_a_nearly_full_disk_loses_nothing(
    small_disk: Path, next_version: Callable[[], None], free: int
) -> None:
    url = f"sqlite:///{small_disk}/runs.sqlite3"
    fill(url)
    next_version()
    ballast = leave(free, small_disk)
    try:
        Store.open(url).close()
    except StoreError as error:
        assert "no disk space" in error.message
    ballast.unlink()
    with Store.open(url) as store:
        assert len(store.runs.matching()) == 3 and store.verify() == []
    assert inside(url) == (str(NEXT), 3, True)
    for backup in backups(url):
        assert inside(f"sqlite:///{backup}") == (str(NOW), 3, False)
    assert not [file for file in small_disk.iterdir() if file.name.startswith(".")]


# -- one that no step leads from ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0", "1", str(min(migrations.STEPS) - 1)])
def test_a_store_that_no_step_leads_from_is_refused_as_it_was(older: str, version: str) -> None:
    with Store.open(older) as store, store.database.writing() as connection:
        connection.execute(schema.meta.update().values(value=version))
    before = path_of(older).read_bytes() if older.startswith("sqlite") else b""
    with pytest.raises(StoreError, match=f"older version.*schema {version};") as caught:
        Store.open(older)
    assert "orchestrate recover" in str(caught.value.fix) and not caught.value.retryable
    assert inside(older) == (version, 3, False) and backups(older) == []
    assert not older.startswith("sqlite") or path_of(older).read_bytes() == before


def test_steps_without_the_first_one_take_none(older: str, next_version: Callable[[], None]) -> None:
    """A later step never runs on a store that an earlier one was for."""
    with Store.open(older) as store, store.database.writing() as connection:
        connection.execute(schema.meta.update().values(value=str(min(migrations.STEPS) - 1)))
    next_version()
    with pytest.raises(StoreError, match="older version"):
        Store.open(older)
    assert inside(older) == (str(min(migrations.STEPS) - 1), 3, False)
