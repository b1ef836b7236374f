"""The state of a sandbox: one SQLite file of JSON objects, and a folder of uploaded bytes.

The hosts derive all responses from this state and the clock. If a sandbox is killed, the next one on the same
home folder continues where it stopped."""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import string
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrate.core.files import private_folder, whole
from orchestrate.errors import SetupError
from orchestrate.sandbox.accounts import HERE, here

_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  host TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL, tag TEXT, body TEXT NOT NULL,
  account TEXT NOT NULL DEFAULT 'sandbox',
  UNIQUE (host, account, kind, id)
);
CREATE INDEX IF NOT EXISTS by_id ON objects (host, kind, id);
CREATE INDEX IF NOT EXISTS by_kind ON objects (host, kind, seq);
CREATE INDEX IF NOT EXISTS by_tag ON objects (host, kind, tag, seq);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""

DATABASE = "sandbox.sqlite3"

_ALPHABET = string.ascii_letters + string.digits


def token(length: int = 24) -> str:
    """Generate a random id of letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


class SandboxState:
    """Thread-safe store of JSON objects, keyed by host, kind and id, in order of creation."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.files = home / "files"
        self.runs = home / "runs"
        for folder in (home, self.files, self.runs):
            private_folder(folder)
        self._lock = threading.RLock()
        database = home / DATABASE
        os.close(os.open(database, os.O_RDWR | os.O_CREAT, 0o600))  # its logs get the mode of it
        self._db = sqlite3.connect(database, check_same_thread=False, isolation_level=None, timeout=30)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            self._db.close()
            raise SetupError(
                f"could not open the sandbox's database {database}: {error}",
                fix="free up some disk space, or choose another folder with --sandbox-home",
            ) from error

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Run the block as one atomic transaction, which holds the write lock. Transactions can be nested."""
        with self._lock:
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def put(self, host: str, kind: str, id: str, body: dict[str, Any], *, tag: str | None = None) -> None:
        """Create or replace an object. An object that is replaced keeps its account and its position in the
        order."""
        text = json.dumps(body)
        with self._lock:
            clause, values = _chosen(host, kind, id)
            done = self._db.execute(
                f"UPDATE objects SET body = ?, tag = coalesce(?, tag) WHERE {clause}",  # noqa: S608  fixed texts
                (text, tag, *values),
            )
            if not done.rowcount:
                self._db.execute(
                    "INSERT INTO objects (host, account, kind, id, tag, body) VALUES (?, ?, ?, ?, ?, ?)",
                    (host, here(), kind, id, tag, text),
                )

    def get(self, host: str, kind: str, id: str) -> dict[str, Any] | None:
        with self._lock:
            clause, values = _chosen(host, kind, id)
            row = self._db.execute(f"SELECT body FROM objects WHERE {clause}", values).fetchone()  # noqa: S608
        return json.loads(row[0]) if row else None

    def delete(self, host: str, kind: str, id: str) -> bool:
        with self._lock:
            clause, values = _chosen(host, kind, id)
            done = self._db.execute(f"DELETE FROM objects WHERE {clause}", values)  # noqa: S608  fixed texts
            return done.rowcount > 0

    def count(self, host: str, kind: str) -> int:
        with self._lock:
            clause, values = _chosen(host, kind)
            return self._db.execute(f"SELECT count(*) FROM objects WHERE {clause}", values).fetchone()[0]  # noqa: S608

    def all(
        self,
        host: str,
        kind: str,
        *,
        tag: str | None = None,
        newest_first: bool = True,
        after: str | None = None,
        where: tuple[str, str] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield all objects of a kind, page by page, starting after the id `after`.

        `where` is a pair: a JSON path such as `$.metadata.ref`, and the string that its value must equal."""
        order, sign = ("DESC", "<") if newest_first else ("ASC", ">")
        seq = self._seq(host, kind, after) if after is not None else None
        while True:
            chosen, values = _chosen(host, kind)
            clauses = [chosen]
            if tag is not None:
                clauses.append("tag = ?")
                values.append(tag)
            if seq is not None:
                clauses.append(f"seq {sign} {seq}")
            if where is not None:
                clauses.append("CAST(json_extract(body, ?) AS TEXT) = ?")
                values.extend(where)
            with self._lock:
                rows = self._db.execute(
                    f"SELECT seq, body FROM objects WHERE {' AND '.join(clauses)}"  # noqa: S608  fixed texts
                    f" ORDER BY seq {order} LIMIT 500",
                    values,
                ).fetchall()
            yield from (json.loads(body) for _, body in rows)
            if len(rows) < 500:
                return
            seq = rows[-1][0]

    def _seq(self, host: str, kind: str, id: str) -> int:
        with self._lock:
            clause, values = _chosen(host, kind, id)
            row = self._db.execute(f"SELECT seq FROM objects WHERE {clause}", values).fetchone()  # noqa: S608
        return row[0] if row else -1

    def setting(self, name: str, default: str) -> str:
        with self._lock:
            row = self._db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return row[0] if row else default

    def set(self, name: str, value: str) -> None:
        with self._lock:
            self._db.execute(
                "INSERT INTO settings VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (name, value),
            )

    def save_bytes(self, name: str, chunks: Iterable[bytes]) -> int:
        """Write an uploaded file atomically and return its size."""
        with whole(self.files / name) as draft, draft.open("wb") as out:
            return sum(out.write(chunk) for chunk in chunks)


def _chosen(host: str, kind: str, id: str | None = None) -> tuple[str, list[str]]:
    """Return the SQL condition for the objects that the current request may access."""
    wanted = {"host": host, "kind": kind, "id": id, "account": HERE.get()}
    found = {name: value for name, value in wanted.items() if value is not None}
    return " AND ".join(f"{name} = ?" for name in found), [*found.values()]


class SandboxClock:
    """The sandbox's clock: the wall clock plus skipped time, and the factor that shortens waits."""

    def __init__(self, state: SandboxState, speed: float) -> None:
        self._state = state
        self.speed = speed
        self._skipped = float(state.setting("skipped_s", "0"))

    def now(self) -> float:
        """Return the Unix time in seconds."""
        return time.time() + self._skipped

    def skip(self, seconds: float) -> None:
        self._skipped += seconds
        self._state.set("skipped_s", str(self._skipped))

    def wait(self, seconds: float) -> float:
        """Convert a wait at speed 1 to its actual duration in seconds."""
        return seconds / self.speed
