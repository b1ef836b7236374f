"""What a process of its own does in the tests of downloads that are killed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.faults.submitting import backend

from orchestrate.types import JobHandle

MOMENTS = {"os.rename", "os.mkdir", "os.link", "shutil.move"}


def download_once(arguments: list[str]) -> None:
    """`BACKEND HOME JOB_ID KIND DEST N`: kills itself at the Nth file that it opens for
    writing, renames or makes. With N = 0 it lives, and prints how many such moments there were."""
    name, home, job_id, kind, dest, wanted = arguments
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        # The paths below the destination's folder, where all parts and drafts lie.
        if (writes or event in MOMENTS) and str(Path(dest).parent) in str(arguments[0]):
            seen += 1
            if seen == int(wanted):
                os.kill(os.getpid(), signal.SIGKILL)

    provider = backend(name, Path(home), os.environ)
    sys.addaudithook(watch)
    provider.download(JobHandle(provider=name, job_id=job_id, kind=kind or None), Path(dest))
    print(seen)
