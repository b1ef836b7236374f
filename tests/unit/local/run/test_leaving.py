"""A worker's last act loses nothing that Python itself would have waited for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import atexit, sys, threading, time
from orchestrate.local.run import leave

def writes():
    while threading.main_thread().is_alive() and not ending.is_set():
        ending.wait(0.01)
    open(sys.argv[1], "w").write("whole")

ending = threading.Event()
threading._register_atexit(ending.set)
threading.Thread(target=writes).start()
atexit.register(lambda: open(sys.argv[1], "a").write(" and told"))
print("said")
leave(3)
"""


def test_threads_and_what_is_registered_end_first(tmp_path: Path) -> None:
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "file")]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "said\n")
    assert (tmp_path / "file").read_text() == "whole and told"


def test_nobody_to_read_is_no_failure(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-c", PROGRAM, str(tmp_path / "file")]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=env)
    assert (done.returncode, done.stderr) == (3, "")
