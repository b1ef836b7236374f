"""Stores of runs: in memory, on this disk, and S3 by a server that speaks it (moto, in its own process)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
from tests import loopback
from tests.ports import own_port

from orchestrate.local.run import checkpoints
from orchestrate.local.run.checkpoints import Progress
from orchestrate.places.storage import StoredRun


class S3:
    """`env`: of whoever asks it."""

    def __init__(self, folder: Path) -> None:
        self.port = own_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.log = (folder / "s3.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self.env = {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "an-id",
            "AWS_SECRET_ACCESS_KEY": "a-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        deadline = time.monotonic() + 240
        while True:
            try:
                loopback.put(f"{self.address}/runs", headers=_signed())
                return
            except httpx.TransportError:
                assert time.monotonic() < deadline and self.process.poll() is None, "moto does not start"
                time.sleep(0.05)

    def freeze(self) -> None:
        """Takes connections and answers nothing."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


def _signed() -> dict[str, str]:
    """moto reads the region and checks nothing."""
    return {"authorization": "AWS4-HMAC-SHA256 Credential=an-id/20260101/us-east-1/s3/aws4_request"}


def keep_checkpoint(stored: StoredRun, folder: Path, step: int) -> None:
    """One to go on from, as a worker reports it."""

    def fill(draft: Path) -> None:
        (draft / "state.safetensors").write_bytes(b"the state")

    path = checkpoints.save(folder / "kept", Progress(step=step, total_steps=96), fill)
    stored.keep_folder(path.name, path)
