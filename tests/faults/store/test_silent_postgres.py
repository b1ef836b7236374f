"""A Postgres server that is silent, slow or blocked is an error in time, and Ctrl-C ends the wait."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from tests.postgres_server import Postgres, postgres_binaries

from orchestrate.errors import StoreError
from orchestrate.tracking.engines import open_engine, translated


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


def test_a_server_that_never_answers_is_an_error(silent: tuple[str, threading.Event]) -> None:
    with pytest.raises(StoreError, match="failed"):
        open_engine(f"{silent[0]}&connect_timeout=2")


def test_ctrl_c_ends_the_wait_for_a_silent_server(
    silent: tuple[str, threading.Event], tmp_path: Path
) -> None:
    url, come = silent
    env = os.environ | {"ORCHESTRATE_HOME": str(tmp_path), "ORCHESTRATE_KEYS": str(tmp_path / "keys.toml")}
    words = [sys.executable, "-m", "orchestrate.cli", "--store", f"{url}&connect_timeout=600", "runs"]
    command = subprocess.Popen(words, env=env, stderr=subprocess.PIPE)
    try:
        assert come.wait(60)
        command.send_signal(signal.SIGINT)
        _, said = command.communicate(timeout=30)
    finally:
        command.kill()
    assert command.returncode == 130 and b"Traceback" not in said


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("no Postgres server is installed")
    server = Postgres(binaries)
    yield server
    server.stop("immediate")


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
