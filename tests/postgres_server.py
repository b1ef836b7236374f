"""A Postgres server of the tests' own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from functools import cached_property
from pathlib import Path

from tests.ports import own_port

QUICK = "-F -c full_page_writes=off -c wal_level=minimal -c max_wal_senders=0 -c autovacuum=off -c jit=off"
"""Nothing here has to outlive a crash of the machine; of the server's own it does."""
WAIT = ("-w", "-t", "300")


def postgres_binaries() -> Path | None:
    if found := shutil.which("pg_ctl"):
        return Path(found).resolve().parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


class Postgres:
    """A server on loopback in a temporary folder; as root it runs as `nobody`, since it refuses root."""

    def __init__(self, binaries: Path) -> None:
        self.binaries = binaries
        self.folder = Path(tempfile.mkdtemp(prefix="orchestrate-pg-"))
        self.user = "nobody" if os.geteuid() == 0 else None
        if self.user:
            account = pwd.getpwnam(self.user)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        self.port = own_port()
        self._run("initdb", "-D", f"{self.folder}/data", "-U", "postgres", "--auth=trust", "-E", "UTF8", "-N")
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        # To a file: the server inherits the pipes of pg_ctl and would keep them open.
        with (self.folder / f"{program}.out").open("ab") as out:
            subprocess.run(
                [self.binaries / program, *arguments],
                check=True,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                user=self.user,
                cwd=self.folder,
            )

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 {QUICK}"
        self._run(
            "pg_ctl", "-D", f"{self.folder}/data", *WAIT, "-l", f"{self.folder}/log", "-o", options, "start"
        )

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-D", f"{self.folder}/data", *WAIT, "-m", mode, "stop")

    def database(self, template: str = "template1") -> str:
        """The URL of a new database, an empty one unless `template` names another to copy."""
        import psycopg

        name = f"t{uuid.uuid4().hex}"
        with psycopg.connect(f"{self._url}/postgres", autocommit=True) as server:
            server.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy'.encode())
        return f"{self._url}/{name}"

    @property
    def _url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}"

    def store(self) -> str:
        """The URL of a new, empty store: a copy of one, for less than half of what making it takes."""
        return self.database(self._made_store)

    @cached_property
    def _made_store(self) -> str:
        from orchestrate.store.store import Store

        url = self.database()
        Store.open(url).close()
        return url.rpartition("/")[2]

    def remove(self) -> None:
        """Nobody waits for its end: each store that was made leaves some three hundred files."""
        self.stop("immediate")
        subprocess.run(["sh", "-c", 'rm -rf "$0" &', str(self.folder)], check=True)
