"""`orchestrate serve`, started as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import command


@contextmanager
def served(run: str, folder: Path, env: dict[str, str], *options: str) -> Generator[dict[str, Any]]:
    """What it tells once it serves; in the end it is interrupted."""
    streams = [folder / name for name in ("in", "out.json", "err")]
    streams[0].touch()
    streams[1].unlink(missing_ok=True)  # of an earlier one
    given = ["serve", run, "--port", "0", "--threads", "1", "--json", *options]
    process = command.start(command.orchestrate, given, cwd=folder, env=env, streams=streams)
    out = streams[1]
    try:
        deadline = time.monotonic() + 240
        while not out.exists() or not out.read_text().strip().endswith("}"):
            assert process.is_alive() and time.monotonic() < deadline, streams[2].read_text()
            time.sleep(0.1)
        yield json.loads(out.read_text())
    finally:
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)
    assert command.ended(process, 240) in (0, 130)
