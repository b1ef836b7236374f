"""What is refused as a store, with the way out, and what survives."""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import stat
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.faults.submitting import leave, make_at_once

from orchestrate.errors import OrchestrateError, SetupError, StoreError
from orchestrate.settings import config
from orchestrate.spec import JobSpec
from orchestrate.store import schema, transitions
from orchestrate.store.run_lists import RunQuery
from orchestrate.store.runs import Intent
from orchestrate.store.store import Store
from orchestrate.types import Event

SPEC = JobSpec(model="m", train="rows.jsonl")


def url(path: Path) -> str:
    return f"sqlite:///{path}"


def make(store: Store) -> Any:
    return store.runs.create(Intent(spec=SPEC, provider="paper", dataset_digest="d" * 64, host="here"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "runs.sqlite3"


def refused(path: Path) -> str:
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(StoreError) as caught, Store.open(url(path)) as store:
        make(store)
    after = path.read_bytes() if path.exists() else None
    assert after == before, "a refused file is left as it was"
    assert caught.value.fix, "a refusal names the way out"
    return f"{caught.value.message} // {caught.value.fix}"


def test_the_folder_and_the_files_are_the_users_alone(path: Path) -> None:
    with Store.open(url(path)) as store:
        make(store)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in path.parent.iterdir()}
        assert modes == {name: 0o600 for name in ("runs.sqlite3", "runs.sqlite3-wal", "runs.sqlite3-shm")}


def test_writes_are_durable_and_readers_do_not_block(path: Path) -> None:
    with Store.open(url(path)) as store, store.database.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        make(store)  # while the reading transaction is open


def test_an_empty_file_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    assert "orchestrate recover" in refused(path)


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("my notes, sixteen bytes and more\n")
    assert "not a SQLite database" in refused(path)


def test_another_programs_database_is_refused(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as foreign:
        foreign.execute("CREATE TABLE runs (id)")
    foreign.close()
    assert "another program" in refused(path)


def test_a_newer_store_is_refused(path: Path) -> None:
    Store.open(url(path)).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE orchestrate_meta SET value = '999'")
    raw.close()
    assert "pip install -U" in refused(path)


def test_a_store_without_its_tables_is_refused(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as raw:
        raw.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        raw.execute("CREATE TABLE t (x)")
    raw.close()
    assert "has no tables" in refused(path)


@pytest.mark.parametrize("damage", ["overwritten", "cut"])
def test_a_damaged_store_is_refused(path: Path, damage: str) -> None:
    with Store.open(url(path)) as store:
        runs = [make(store) for _ in range(30)]
        store.history.add_events(
            runs[0].id,
            [Event(id=str(n), at=datetime.now(UTC), level="info", message="x" * 300) for n in range(200)],
        )
    size = path.stat().st_size
    with path.open("r+b") as file:
        if damage == "cut":
            file.truncate(size // 2)
        else:
            file.seek(4096 * 3)
            file.write(os.urandom(4096 * 12))
    assert "damaged" in refused(path)


def test_a_damaged_page_never_makes_a_list_of_runs_wrong(path: Path) -> None:
    """Reading does not verify the whole file first, as writing does."""
    with Store.open(url(path)) as store:
        for _ in range(60):
            make(store)
        listed = store.listing.page(RunQuery(), limit=100)
    whole = path.read_bytes()
    seen = set[str]()
    for page in range(1, len(whole) // 4096):
        for content in (bytes(4096), os.urandom(4096)):
            path.write_bytes(whole[: page * 4096] + content + whole[(page + 1) * 4096 :])
            try:
                with Store.open(url(path)) as store:
                    assert store.listing.page(RunQuery(), limit=100) == listed
                seen.add("in a page that the list does not need")
            except StoreError as error:
                assert "damaged" in error.message
                seen.add("reported")
    assert len(seen) == 2


def test_a_store_whose_log_was_left_behind_is_refused(path: Path) -> None:
    store = Store.open(url(path))
    make(store)
    path.unlink()
    with pytest.raises(StoreError, match="exists: the store was removed or moved without its log"):
        Store.open(url(path))
    assert not path.exists()
    store.close()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError) as caught:
        Store.open(url(tmp_path / "file" / "runs.sqlite3"))
    assert "--store" in str(caught.value.fix)


@pytest.mark.parametrize("given", ["sqlite://", "sqlite:///:memory:", "mysql://x/y", "not a url"])
def test_a_url_that_cannot_keep_runs_is_refused(given: str) -> None:
    with pytest.raises(StoreError):
        Store.open(given)


SECRET = "SuperSecretPw99"


@pytest.mark.parametrize(
    "given",
    [
        f"postgresql://localhost:1/db?password={SECRET}",
        f"postgresql://bob:{SECRET}@localhost:1/db",
        f"postgresql://bob:p@{SECRET}@localhost:1/db",
        f"postgresql://bob:{SECRET}@h:abc/db",
        f"postgresql://bob:{SECRET}@[::1/db",
        f"bob:{SECRET}@h/db",
        f"mysql://bob:{SECRET}@h/db",
        f"sqlite:///runs.sqlite3?key={SECRET}",
    ],
)
def test_a_password_in_a_stores_url_is_never_told(given: str) -> None:
    with pytest.raises(SetupError) as caught:
        Store.open(given)
    assert SECRET not in f"{caught.value.message} {caught.value.fix}"


@pytest.mark.parametrize("name", ["p?one", "p%41z é", "p%3F", "a#b", "a@b:c", "~"])
def test_a_store_lies_in_its_home_whatever_the_name_of_the_folder(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    settings = config.load(env={"ORCHESTRATE_KEYS": str(tmp_path / "none")}, cwd=tmp_path, home=home)
    with Store.open(settings.store_url) as store:
        run = make(store)
    assert [file.name for file in tmp_path.iterdir()] == [name] and (home / "runs.sqlite3").is_file()
    with Store.open(settings.store_url) as again:
        assert again.runs.get(run.id) == run and again.place == str(home / "runs.sqlite3")


@pytest.mark.slow
def test_eight_processes_make_one_store_and_lose_no_run(unmade_store_url: str, tmp_path: Path) -> None:
    assert make_at_once(tmp_path, unmade_store_url, processes=8, each=10) == [0] * 8
    with Store.open(unmade_store_url) as store:
        assert len(store.runs.matching()) == 80
        assert store.verify() == []
    if unmade_store_url.startswith("sqlite"):
        left = sorted(f.name for f in Path(unmade_store_url.removeprefix("sqlite:///")).parent.iterdir())
        assert left == ["runs.sqlite3"]


def test_threads_share_a_store(store_url: str) -> None:
    with Store.open(store_url) as store:
        run = make(store)
        failures: list[BaseException] = []

        def work(name: int) -> None:
            try:
                for n in range(10):
                    event = Event(id=f"{name}-{n}", at=datetime.now(UTC), level="info", message="m")
                    store.history.add_events(run.id, [event])
            except OrchestrateError as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert len(store.history.events(run.id)) == 60


def test_no_room_leaves_the_store_as_it_was(path: Path) -> None:
    with Store.open(url(path)) as store:
        run = make(store)
        log = path.with_name(path.name + "-wal")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size, hard))
        try:
            with pytest.raises(StoreError):
                make(store)
            with pytest.raises(StoreError):
                store.runs.apply(run.id, lambda r: transitions.uploaded(r, store.clock.now()))
            assert store.runs.get(run.id) == run
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        store.runs.apply(run.id, lambda r: transitions.uploaded(r, store.clock.now()))
        assert len(store.runs.matching()) == 1
        assert store.verify() == []


def fill(ballast: Path) -> None:
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


@pytest.mark.parametrize("free", range(20_000, 900_000, 40_000))
def test_a_new_store_on_a_nearly_full_disk_is_there_whole_or_not_at_all(small_disk: Path, free: int) -> None:
    path, ballast = small_disk / "runs.sqlite3", leave(free, small_disk)
    try:
        with Store.open(url(path)) as store:
            assert store.verify() == []
    except StoreError as error:
        assert "no disk space" in error.message and "free up some disk space" in str(error.fix)
        assert list(small_disk.iterdir()) == [ballast]
    ballast.unlink()
    with Store.open(url(path)) as store:
        make(store)
        assert store.verify() == []


def test_a_full_disk_is_told_and_ends_when_there_is_room(small_disk: Path) -> None:
    with Store.open(url(small_disk / "runs.sqlite3")) as store:
        make(store)
        ballast = small_disk / "ballast"
        fill(ballast)
        with pytest.raises(StoreError, match="no disk space") as caught:
            for _ in range(20):
                make(store)
        assert "free up some disk space" in str(caught.value.fix)
    fill(ballast)  # what its log had taken
    with pytest.raises(StoreError, match="no disk space") as caught:
        Store.open(url(small_disk / "runs.sqlite3")).runs.matching()
    assert "free up some disk space" in str(caught.value.fix)
    ballast.unlink()
    with Store.open(url(small_disk / "runs.sqlite3")) as store:
        kept = len(store.runs.matching())
        make(store)
        assert len(store.runs.matching()) == kept + 1
        assert store.verify() == []


def test_postgres_with_tables_of_another_program_is_refused(postgres: Any) -> None:
    import psycopg

    database = postgres.database()
    with psycopg.connect(database) as raw:
        raw.execute("CREATE TABLE runs (id int)")
    with pytest.raises(StoreError, match="another program") as caught:
        Store.open(database)
    assert caught.value.fix


def test_a_newer_postgres_store_is_refused(postgres: Any) -> None:
    import psycopg

    database = postgres.database()
    Store.open(database).close()
    with psycopg.connect(database) as raw:
        raw.execute("UPDATE orchestrate_meta SET value = '999'")
    with pytest.raises(StoreError, match="newer version"):
        Store.open(database)


def test_the_password_of_a_postgres_url_is_never_shown() -> None:
    with pytest.raises(StoreError) as caught:
        Store.open("postgresql://me:sEcReT-word@127.0.0.1:9/none")
    assert "sEcReT-word" not in f"{caught.value}{caught.value.fix}{caught.value.__cause__}"
    assert caught.value.retryable


def test_a_store_goes_on_after_its_postgres_was_restarted(postgres: Any) -> None:
    with Store.open(postgres.store()) as store:
        run = make(store)
        postgres.stop("immediate")
        with pytest.raises(StoreError) as caught:
            store.runs.matching()
        assert caught.value.retryable
        postgres.start()
        assert store.runs.get(run.id) == run
        make(store)
        assert len(store.runs.matching()) == 2
