"""Open, check and create the store's database, and manage leases."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from msgspec import Struct
from sqlalchemy import (
    URL,
    ClauseElement,
    Connection,
    Engine,
    Table,
    create_engine,
    create_mock_engine,
    event,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from orchestrate.core import needed
from orchestrate.core.files import sync, whole
from orchestrate.errors import OrchestrateError, StoreError
from orchestrate.settings.config import sqlite_path
from orchestrate.store import Clock, schema, stamp
from orchestrate.text import duration

# Opening a store: check that it is Orchestrate's, undamaged and of this version, or say what to do.


_HEADER = b"SQLite format 3\x00"
_CHECKED_BYTES = 8_000_000
"""Maximum size in bytes of a file that each process verifies before it first writes to it. Verifying a file
of this size takes a few milliseconds. Larger files are only checked by `verify`."""
_LEAST_FREE = 65_536
"""Minimum free disk space in bytes. The index of the write-ahead log alone needs half of this."""
_BUSY_S = 60.0
_STATEMENT_S = 60
RECOVER = "rebuild the store from the hosts' job lists: orchestrate recover"
_RESTORE = f"restore a backup of the store, or move it away and {RECOVER}"
_ELSEWHERE = "choose another folder with --home, or another store with --store"


def open_engine(url: str) -> Engine:
    """Open a store and return its engine. Upgrades a store of an older version. Raises `StoreError` if the
    store is unreadable, too new, too old or not Orchestrate's, and `MissingExtra` if the Postgres driver is
    not installed."""
    if (path := sqlite_path(url)) is not None:
        if path.name in ("", ":memory:"):
            raise StoreError(
                "an in-memory store would lose your runs when the process ends. Use a file, such as "
                "sqlite:///runs.sqlite3"
            )
        return _open_sqlite(path.expanduser())
    return _open_postgres(_postgres_url(url))


def _postgres_url(text: str) -> URL:
    # Errors include neither the URL nor the parser's message, because both may contain a password.
    try:
        url = make_url(text)
    except (SQLAlchemyError, ValueError):
        url = None
    if url is None or "@" in (url.host or "") or url.get_backend_name() not in ("postgresql", "postgres"):
        raise StoreError(
            "the run store must be a SQLite or Postgres URL",
            fix="sqlite:///path/to/runs.sqlite3  or  postgresql://user@host/database. Write @ or / in a "
            "password as %40 or %2F",
        ) from None
    return url.set(drivername="postgresql+psycopg")


def place_of(engine: Engine) -> str:
    """Return the location of a store in readable form, without any password."""
    url = engine.url
    if engine.dialect.name == "sqlite":
        return str(url.database)
    return url.set(query={}).render_as_string(hide_password=True)


@contextmanager
def translated(place: str) -> Generator[None]:
    """Convert database errors to `StoreError`. Errors are identified by their code, not by their message."""
    try:
        yield
    except DBAPIError as error:
        raise _store_error(place, error.orig or error) from error
    except sqlite3.Error as error:
        raise _store_error(place, error) from error
    except SQLAlchemyError as error:
        raise StoreError(f"the run store {place} failed: {error}") from error


def _store_error(place: str, error: BaseException) -> StoreError:
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if isinstance(code, int) else None
    # On a full disk, SQLite may instead report that it can't write the log or other files next to the store.
    beside = primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and _is_full(place)
    if primary == sqlite3.SQLITE_FULL or beside:
        return StoreError(
            f"no disk space to write the run store {place}", fix="free up some disk space and try again"
        )
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreError(f"the run store {place} is damaged: {error}", fix=_RESTORE)
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return StoreError(
            f"could not write the run store {place}: {error}",
            fix="check the owner and permissions of the file and its folder, or choose another file with "
            "--store",
        )
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        failure = StoreError(
            f"the run store {place} is locked by another process", fix="try again in a moment"
        )
        failure.retryable = True
        return failure
    failure = StoreError(f"the run store {place} failed: {str(error).strip()}", fix="orchestrate doctor")
    failure.retryable = primary in (None, sqlite3.SQLITE_IOERR)
    return failure


def _is_full(place: str) -> bool:
    try:
        return shutil.disk_usage(Path(place).parent).free < _LEAST_FREE
    except OSError:
        return False


# -- SQLite ------------------------------------------------------------------------------------------------


def _open_sqlite(path: Path) -> Engine:
    with translated(str(path)):
        _make_room(path)
        if not path.exists():
            _create_sqlite(path)
        _require_header(path)
        engine = _sqlite_engine(path)
        try:
            _require_ours(engine, path)
        except BaseException:
            engine.dispose()
            raise
        return engine


def _make_room(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"could not create the folder of the run store: {error}", fix=_ELSEWHERE) from error


def _sqlite_engine(path: Path) -> Engine:
    url = URL.create("sqlite+pysqlite", database=str(path))
    engine = create_engine(url, connect_args={"timeout": _BUSY_S}, pool_size=4)

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: object) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.isolation_level = None  # transactions are begun below, never by the driver
        # The journal mode is stored in the file. It is only set at creation: this file may not be ours.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _create_sqlite(path: Path) -> None:
    """Create the complete store beside its path, then link it there. Nobody ever sees a partial store, and if
    several processes do this at once, one wins."""
    log = path.with_name(path.name + "-wal")
    if log.exists() and not path.exists():  # another process may have made both just now
        raise StoreError(
            f"{path} is missing but its log {log.name} exists: the store was removed or moved without "
            "its log",
            fix=f"put the store back, or delete the log and {RECOVER}",
        )
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with translated(str(path)):  # while the draft still takes the room
            _fill(draft)
            _require_made(draft, path)
        with suppress(FileExistsError):
            os.link(draft, path)
        sync(path.parent)
    except OSError as error:
        raise StoreError(f"could not create the run store {path}: {error}", fix=_ELSEWHERE) from error
    finally:
        for leftover in (draft, *(draft.with_name(draft.name + end) for end in ("-journal", "-wal", "-shm"))):
            leftover.unlink(missing_ok=True)


def _fill(draft: Path) -> None:
    with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute("BEGIN IMMEDIATE")
        for statement in sqlite_tables():
            connection.execute(statement)
        connection.execute("COMMIT")
        # Only after the commit. In WAL mode, a commit only writes to the log, and if the disk is too full to
        # move the tables into the file, closing it would hide that error.
        connection.execute("PRAGMA journal_mode = WAL")


def _require_made(draft: Path, path: Path) -> None:
    """Read a new store back before it gets its name. Raises `StoreError`."""
    with closing(sqlite3.connect(draft)) as connection:
        found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(5)")]
        [mode] = connection.execute("PRAGMA journal_mode").fetchone()
    if found != ["ok"] or mode != "wal":
        raise StoreError(
            f"could not create the run store {path}: data written to it cannot be read back "
            f"({found[0]}, {mode})",
            fix=_ELSEWHERE,
        )


@cache
def sqlite_tables() -> list[str]:
    """Return the statements that create all tables. Cached, because SQLAlchemy takes longer to generate them
    than SQLite to execute them."""
    made: list[str] = []

    def say(part: ClauseElement, *_: Any, **__: Any) -> None:
        made.append(str(part.compile(dialect=nowhere.dialect, compile_kwargs={"literal_binds": True})))

    nowhere = create_mock_engine("sqlite://", say)
    schema.metadata.create_all(nowhere, checkfirst=False)
    say(schema.meta.insert().values(key="schema", value=str(schema.VERSION)))
    return made


def _require_header(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise StoreError(
            f"could not read the run store {path}: {error}", fix="check the owner and permissions of the file"
        ) from error
    if not head:
        raise StoreError(
            f"{path} is empty. It is not a run store, or its contents were deleted", fix=_RESTORE
        )
    if head != _HEADER:
        raise StoreError(
            f"{path} is not a SQLite database",
            fix=f"{_ELSEWHERE}, or move it away and {RECOVER}",
        )


def _require_ours(engine: Engine, path: Path) -> None:
    with engine.connect() as connection:
        if connection.exec_driver_sql("PRAGMA application_id").scalar_one() != schema.APPLICATION_ID:
            raise StoreError(f"{path} belongs to another program", fix=_ELSEWHERE)
        version = _version(connection, str(path))
    if version < schema.VERSION:
        _upgrade(engine, path)


def _require_intact(connection: Connection, place: str) -> None:
    found = [row[0] for row in connection.exec_driver_sql("PRAGMA quick_check(5)")]
    if found != ["ok"]:
        raise StoreError(f"the run store {place} is damaged: {'; '.join(found)}", fix=_RESTORE)


def _upgrade(engine: Engine, path: Path) -> None:
    """Upgrade the store, holding the write lock from the check of the version to the new version, so the
    backup has the old schema even if several processes open the store at once."""
    with engine.execution_options(writes=True).begin() as connection:
        version = _version(connection, str(path))
        if version < schema.VERSION:
            from orchestrate.store import migrations

            _require_intact(connection, str(path))
            _back_up(engine, path, version)
            migrations.migrate(connection, version)
            _set_version(connection)


def _back_up(engine: Engine, path: Path, version: int) -> Path:
    """Copy the store as last committed to a file beside it."""
    target = path.with_name(f"{path.name}.schema-{version}.backup")
    with (
        whole(target, private=True) as draft,
        closing(sqlite3.connect(draft)) as copy,
        engine.connect() as connection,
    ):
        source: Any = connection.connection.dbapi_connection
        source.backup(copy)
    return target


# -- Postgres ----------------------------------------------------------------------------------------------


def _open_postgres(url: URL) -> Engine:
    with needed("postgres", "a store on Postgres", "psycopg"):
        import psycopg  # noqa: F401  # pyright: ignore[reportUnusedImport]
    # A pre-ping replaces connections that were closed when the server restarted.
    engine = create_engine(url, pool_pre_ping=True, pool_size=4, connect_args=_patience(url))
    place = place_of(engine)
    try:
        with translated(place):
            _prepare_postgres(engine, place)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _patience(url: URL) -> dict[str, Any]:
    """Return connection options that limit how long a server may be silent, unless the URL sets them. A lost
    server is then an error within seconds instead of a command that hangs."""
    limits = f"-c statement_timeout={_STATEMENT_S}s -c lock_timeout={_STATEMENT_S}s"
    own = url.query.get("options", ())
    given = {
        "connect_timeout": 10,
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 1000 * _STATEMENT_S,
    }
    unsaid = {name: value for name, value in given.items() if name not in url.query}
    # Later options override earlier ones, so the URL's own options come last.
    return unsaid | {"options": " ".join([limits, *([own] if isinstance(own, str) else own)])}


def _prepare_postgres(engine: Engine, place: str) -> None:
    with engine.begin() as connection:
        # Migrating many rows may take longer than the usual statement timeout allows.
        connection.execute(text("SET LOCAL statement_timeout = '10min'"))
        connection.execute(text("SET LOCAL lock_timeout = '10min'"))
        # Many workers may start at once. One creates the tables while the others wait here.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": schema.APPLICATION_ID})
        present = set(inspect(connection).get_table_names())
        if schema.meta.name not in present:
            if present & set(schema.metadata.tables):
                raise StoreError(
                    f"{place} contains another program's tables, and their names conflict with the run "
                    "store's tables",
                    fix="use a separate database for the run store",
                )
            schema.metadata.create_all(connection)
            connection.execute(schema.meta.insert(), {"key": "schema", "value": str(schema.VERSION)})
        elif _version(connection, place) < schema.VERSION:
            from orchestrate.store import migrations

            # Older processes that are writing hold this row. Wait for them before any other lock is taken.
            connection.execute(_WRITTEN.with_for_update())
            migrations.migrate(connection, _version(connection, place))
            _set_version(connection)


# -- both --------------------------------------------------------------------------------------------------


_WRITTEN = select(schema.meta.c.value).where(schema.meta.c.key == "schema")


def _require_known(version: str | None, place: str) -> None:
    if version is not None and version.isdecimal() and int(version) > schema.VERSION:
        raise StoreError(
            f"the run store {place} was written by a newer version of Orchestrate (schema {version}, this "
            f"version supports up to {schema.VERSION})",
            fix="pip install -U orchestrate-ft, then restart everything that runs the older version",
        )


def _version(connection: Connection, place: str) -> int:
    if schema.meta.name not in inspect(connection).get_table_names():
        raise StoreError(f"the run store {place} has no tables", fix=_RESTORE)
    value = connection.execute(_WRITTEN).scalar()
    if value is None or not value.isdecimal():
        raise StoreError(
            f"the run store {place} has no schema version", fix=f"restore a backup, or {RECOVER}"
        )
    _require_known(value, place)
    if int(value) < schema.VERSION:
        _require_upgradable(int(value), place)
    return int(value)


def _require_upgradable(value: int, place: str) -> None:
    from orchestrate.store import migrations  # late: few stores are older

    if any(step not in migrations.STEPS for step in range(value, schema.VERSION)):
        raise StoreError(
            f"an older version wrote the run store {place}, and this version cannot upgrade it "
            f"(schema {value}; this version needs {schema.VERSION})",
            fix=f"open it with the version that wrote it, or move it away and {RECOVER}",
        )


def _set_version(connection: Connection) -> None:
    connection.execute(
        schema.meta.update().where(schema.meta.c.key == "schema").values(value=str(schema.VERSION))
    )


def identity(place: str) -> tuple[int, int] | None:
    """Return the file's device and inode numbers, or `None` if it does not exist. If the numbers change, the
    file was replaced."""
    try:
        found = Path(place).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def verify(engine: Engine) -> list[str]:
    """Check the entire store and return the problems found. On SQLite, this reads every page."""
    if engine.dialect.name != "sqlite":
        return []
    with engine.connect() as connection:
        rows = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check(20)")]
    return [] if rows == ["ok"] else rows


class Database:
    """A connection to the store's database. Safe to use from several threads."""

    def __init__(self, engine: Engine, clock: Clock | None = None) -> None:
        self.engine = engine
        self.clock = clock or Clock()
        self.place = place_of(engine)
        self.file = identity(self.place) if engine.dialect.name == "sqlite" else None
        self.actor = f"{platform.node() or 'host'}:{os.getpid()}:{secrets.token_hex(3)}"
        self._writer = engine.execution_options(writes=True)
        self._checked = self.file is None

    @contextmanager
    def reading(self) -> Generator[Connection]:
        with translated(self.place), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Generator[Connection]:
        """Open a transaction that commits at the end of the block, or rolls back on an error.

        Raises `StoreError` if a file is damaged, because a write could make it worse (SQLite itself reports
        a damaged page that is read), or if a newer version has upgraded the store, because that version reads
        fields that this one does not write. On Postgres, a lock prevents an upgrade while the transaction is
        open. On SQLite, no lock is needed, because there is only one writer.
        """
        if not self._checked:
            with self.reading() as connection:
                if Path(self.place).stat().st_size <= _CHECKED_BYTES:
                    _require_intact(connection, self.place)
            self._checked = True
        with translated(self.place), self._writer.begin() as connection:
            _require_known(connection.execute(_WRITTEN.with_for_update(read=True)).scalar(), self.place)
            yield connection

    def waited(self, table: Table, id: str) -> float:
        """Return the seconds since the current attempt to send a run or deployment, measured with the uptime
        clock.

        If the attempt was made on another machine or before this machine's last reboot, the time counts from
        the first call of this method for that attempt.
        """
        stamps, up = schema.stamps, self.clock.uptime()
        with self.writing() as connection:
            attempt = connection.execute(select(table.c.attempt).where(table.c.id == id)).scalar_one()
            key = {"run_id": id, "attempt": attempt, "boot": up.boot}
            connection.execute(self.insert(stamps).values(**key, uptime=up.seconds).on_conflict_do_nothing())
            first = connection.execute(select(stamps.c.uptime).filter_by(**key)).scalar_one()
        return up.seconds - first

    def insert(self, table: Table) -> Any:
        """Return an insert that supports `on_conflict_do_nothing` and `on_conflict_do_update`."""
        if self.engine.dialect.name == "postgresql":
            from sqlalchemy.dialects import (
                postgresql as dialect,
            )  # a tenth of the start-up time; rarely needed
        else:
            from sqlalchemy.dialects import sqlite as dialect
        return dialect.insert(table)

    def verify(self) -> list[str]:
        """Check the database file and return the problems found."""
        with translated(self.place):
            return verify(self.engine)

    def close(self) -> None:
        self.engine.dispose()


# Leases: only one process at a time may do a task. Fences reject writes of earlier lease holders.


class LeaseLost(OrchestrateError):
    """Raised if another process has taken over the work. This process's pending writes were discarded."""

    retryable = True


class LeaseHeld(OrchestrateError):
    """Raised if another process is already doing the work."""

    retryable = True


class Lease(Struct, frozen=True):
    """The exclusive right to a task, until the lease expires.

    Each acquisition increments `fence`, and writes with an older fence are rejected. Therefore, a process
    that was suspended until its lease expired cannot corrupt the store.
    """

    name: str
    owner: str
    fence: int


class Leases:
    """Named leases. At most one process holds a lease."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._file = db.file

    def acquire(self, name: str, ttl_s: float) -> Lease | None:
        """Take the lease if it is free or has expired. Returns `None` if another process holds it."""
        now, up = self._db.clock.now(), self._db.clock.uptime()
        values: dict[str, Any] = {
            "owner": f"{self._db.actor}:{secrets.token_hex(3)}",
            "expires_at": stamp(now + timedelta(seconds=ttl_s)),
            "boot": up.boot,
            "expires_uptime": up.seconds + ttl_s,
        }
        row_of = select(schema.leases).where(schema.leases.c.name == name).with_for_update()
        with self._db.writing() as connection:
            connection.execute(
                self._db.insert(schema.leases)
                .values(name=name, owner=None, fence=0, expires_at="", boot="", expires_uptime=0.0)
                .on_conflict_do_nothing()
            )
            row = connection.execute(row_of).one()
            if row.owner is not None and not self._expired(row):
                return None
            values["fence"] = row.fence + 1
            connection.execute(schema.leases.update().where(schema.leases.c.name == name).values(values))
        return Lease(name, values["owner"], values["fence"])

    def renew(self, lease: Lease, ttl_s: float) -> bool:
        """Extend the lease by `ttl_s` seconds and return whether this process still holds it."""
        now, up = self._db.clock.now(), self._db.clock.uptime()
        with self._db.writing() as connection:
            done = connection.execute(
                schema.leases.update()
                .where(schema.leases.c.name == lease.name, schema.leases.c.fence == lease.fence)
                .where(schema.leases.c.owner == lease.owner)
                .values(
                    expires_at=stamp(now + timedelta(seconds=ttl_s)),
                    boot=up.boot,
                    expires_uptime=up.seconds + ttl_s,
                )
            )
        return done.rowcount == 1

    def held(self, name: str) -> bool:
        """Return whether any process holds the lease at the moment."""
        with self._db.reading() as connection:
            row = connection.execute(select(schema.leases).where(schema.leases.c.name == name)).one_or_none()
        return row is not None and row.owner is not None and not self._expired(row)

    def _expired(self, row: Any) -> bool:
        # A lease acquired since this machine's last boot is measured by uptime, not by the wall clock.
        up = self._db.clock.uptime()
        if row.boot == up.boot:
            return up.seconds >= row.expires_uptime
        return stamp(self._db.clock.now()) >= row.expires_at

    def release(self, lease: Lease) -> None:
        with self._db.writing() as connection:
            connection.execute(
                schema.leases.update()
                .where(schema.leases.c.name == lease.name, schema.leases.c.fence == lease.fence)
                .where(schema.leases.c.owner == lease.owner)
                .values(owner=None)
            )

    def require(self, connection: Connection, lease: Lease) -> None:
        """Raise `LeaseLost` unless `lease` is the latest lease with its name. Call this in the transaction
        that the lease protects."""
        row = connection.execute(
            select(schema.leases.c.fence, schema.leases.c.owner)
            .where(schema.leases.c.name == lease.name)
            .with_for_update()
        ).one_or_none()
        if row is None or row.fence != lease.fence or row.owner != lease.owner:
            raise _lease_lost(lease)

    def check(self, lease: Lease, ttl_s: float) -> None:
        """Raise `LeaseLost` if another process has taken over the work, and `StoreError` if the store's file
        was removed or replaced. Also renews the lease, which proves that the store is writable."""
        if not self.renew(lease, ttl_s):
            raise _lease_lost(lease)
        if self._file is not None and identity(self._db.place) != self._file:
            # Writes to a deleted file still succeed, but nobody can read them afterwards.
            raise StoreError(
                f"the run store {self._db.place} was removed or replaced while it was in use",
                fix=f"nothing was sent. Put the store back and try again, or {RECOVER}",
            )

    @contextmanager
    def hold(
        self, name: str, ttl_s: float = 30.0, *, wait: Callable[[], object] | None = None
    ) -> Generator[Lease]:
        """Hold the lease during the block, while a thread keeps renewing it. If the process dies, the lease
        expires soon after.

        If another process holds the lease, raises `LeaseHeld` immediately. If `wait` is given, waits for the
        lease instead, and calls `wait` between checks.
        """
        lease = self.acquire(name, ttl_s)
        while lease is None:
            if wait is None:
                raise LeaseHeld(
                    f"{name}: another process is working on it",
                    fix=f"wait up to {duration(ttl_s)} and try again",
                )
            wait()
            if not self.held(name):
                lease = self.acquire(name, ttl_s)
        done = threading.Event()

        def keep() -> None:
            while not done.wait(ttl_s / 3):
                try:
                    if not self.renew(lease, ttl_s):
                        return
                except OrchestrateError:
                    continue  # the store may be back at the next turn; the fence guards what matters

        keeper = threading.Thread(target=keep, name=f"lease {name}", daemon=True)
        keeper.start()
        try:
            yield lease
        finally:
            done.set()
            keeper.join()
            with suppress(OrchestrateError):
                self.release(lease)  # else it expires; an error that is under way must not be hidden


def _lease_lost(lease: Lease) -> LeaseLost:
    return LeaseLost(f"{lease.name}: another process has taken over", fix="orchestrate sync")
