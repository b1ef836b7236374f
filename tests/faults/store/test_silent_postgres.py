"""A Postgres server that is silent, slow or blocked is an error in time, and Ctrl-C ends the wait."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import text
from tests.postgres_server import Postgres

from orchestrate.errors import StoreError
from orchestrate.store.database import open_engine, translated


@pytest.fixture
def silent() -> Iterator[tuple[str, threading.Event]]:
    """The URL of a server that accepts and never answers, and whether anybody has come."""
    come = threading.Event()
    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            kept.append(server.accept()[0])
            come.set()

        threading.Thread(target=accept, daemon=True).start()
        yield f"postgresql://someone@127.0.0.1:{server.getsockname()[1]}/runs?sslmode=disable", come
    for connection in kept:
        connection.close()


@pytest.mark.slow
def test_a_server_that_never_answers_is_an_error(silent: tuple[str, threading.Event]) -> None:
    with pytest.raises(StoreError, match="failed"):
        open_engine(f"{silent[0]}&connect_timeout=2")


@pytest.mark.slow
def test_ctrl_c_ends_the_wait_for_a_silent_server(
    silent: tuple[str, threading.Event], tmp_path: Path
) -> None:
    url, come = silent
    env = os.environ | {"ORCHESTRATE_HOME": str(tmp_path), "ORCHESTRATE_KEYS": str(tmp_path / "keys.toml")}
    words = [sys.executable, "-m", "orchestrate.cli", "--store", f"{url}&connect_timeout=600", "runs"]
    command = subprocess.Popen(words, env=env, stderr=subprocess.PIPE)
    try:
        assert come.wait(240)
        command.send_signal(signal.SIGINT)
        _, said = command.communicate(timeout=240)
    finally:
        command.kill()
    assert command.returncode == 130 and b"Traceback" not in said


def test_a_statement_that_takes_too_long_is_an_error(postgres: Postgres) -> None:
    url = postgres.database()
    engine = open_engine(url)
    with engine.begin() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "1min"
        assert connection.execute(text("SHOW lock_timeout")).scalar_one() == "1min"
        with pytest.raises(StoreError), translated("here"):
            connection.execute(text("SET LOCAL statement_timeout = 50"))
            connection.execute(text("SELECT pg_sleep(60)"))
    engine.dispose()


@pytest.mark.parametrize(
    ("options", "statement", "lock"),
    [
        ("-c search_path=public", "1min", "1min"),
        ("-c statement_timeout=5s", "5s", "1min"),
        ("-c lock_timeout=7s -c statement_timeout=5s", "5s", "7s"),
    ],
)
def test_a_url_with_options_keeps_our_limits_unless_it_says_others(
    postgres: Postgres, options: str, statement: str, lock: str
) -> None:
    engine = open_engine(f"{postgres.database()}?options={quote(options)}")
    with engine.begin() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == statement
        assert connection.execute(text("SHOW lock_timeout")).scalar_one() == lock
        if "search_path" in options:
            assert connection.execute(text("SHOW search_path")).scalar_one() == "public"
    engine.dispose()


@pytest.mark.slow
def test_ctrl_c_ends_a_command_whose_query_is_blocked(postgres: Postgres, tmp_path: Path) -> None:
    import psycopg

    url = postgres.database()
    open_engine(url).dispose()  # the tables are there: the command only reads
    env = os.environ | {"ORCHESTRATE_HOME": str(tmp_path), "ORCHESTRATE_KEYS": str(tmp_path / "keys.toml")}
    words = [sys.executable, "-m", "orchestrate.cli", "--store", url, "runs"]
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    with psycopg.connect(url) as locking, psycopg.connect(url, autocommit=True) as looking:
        locking.execute("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE")
        command = subprocess.Popen(words, env=env, stderr=subprocess.PIPE)
        try:
            deadline = time.monotonic() + 240
            while looking.execute(waiting).fetchone() == (0,):
                assert time.monotonic() < deadline and command.poll() is None, "it never waited for the lock"
                time.sleep(0.05)
            command.send_signal(signal.SIGINT)
            _, said = command.communicate(timeout=45)  # below the limit of a statement
        finally:
            command.kill()
        assert command.returncode == 130 and b"Traceback" not in said, said
        assert looking.execute(waiting).fetchone() == (0,), "its query is ended at the server too"
