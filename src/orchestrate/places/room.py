"""Folders of workers on machines that outlive them. What a killed one left there, a model and checkpoints,
goes when the next comes."""

from __future__ import annotations

import os
import shutil
import socket
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from orchestrate.local.run import process
from orchestrate.places.order import ROOM


def room() -> TemporaryDirectory[str]:
    """One of this process."""
    host = socket.gethostname()
    for left in Path(gettempdir()).glob(f"{ROOM}-{escape(host)}-*-*"):
        pid = left.name.rsplit("-", 2)[1]
        if pid.isdecimal() and process.started(int(pid)) is None:
            shutil.rmtree(left, ignore_errors=True)
    return TemporaryDirectory(prefix=f"{ROOM}-{host}-{os.getpid()}-")
