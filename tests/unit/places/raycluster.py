"""A real Ray cluster on this machine, and jobs of ours on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from tests.paths import TINY
from tests.ports import own_port

from orchestrate.providers import registry
from orchestrate.providers.local.away import AwayProvider
from orchestrate.settings import config
from orchestrate.spec import JobSpec

RAY = str(Path(sys.executable).with_name("ray"))


class Head:
    """A cluster of one machine, in a process group of its own."""

    def __init__(self, folder: Path, cpus: int = 2) -> None:
        self.folder, self.cpus = folder, cpus
        self.ports = [own_port() for _ in range(3)]
        self.address = f"http://127.0.0.1:{self.ports[0]}"
        self.nodes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        dashboard, gcs, client = map(str, self.ports)
        command = ["--head", f"--num-cpus={self.cpus}", f"--port={gcs}", f"--ray-client-server-port={client}"]
        command += ["--include-dashboard=true", f"--dashboard-port={dashboard}"]
        agent = own_port()
        self.process = self._started("head", command, agent)
        # No job is accepted before a node's agent is there, which starts after the dashboard.
        wait(lambda: self._answers(f"{self.address}/api/jobs/"))
        wait(lambda: self._answers(f"http://127.0.0.1:{agent}/api/local_raylet_healthz"))

    def add_node(self, cpus: int = 1) -> subprocess.Popen[bytes]:
        """One more, as another machine would be."""
        gcs = f"--address=127.0.0.1:{self.ports[1]}"
        self.nodes.append(self._started("node", [gcs, f"--num-cpus={cpus}"], own_port()))
        return self.nodes[-1]

    def _started(self, name: str, more: list[str], agent: int) -> subprocess.Popen[bytes]:
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        env |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(self.folder), "OMP_NUM_THREADS": "1"}
        # A node that is gone is one after a few seconds.
        env |= {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "20"}
        # Ray's own choice of ports for workers would be among those of `own_port`.
        ports = ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={agent}"]
        # Nothing scales this cluster, and what its processes print is in their own files.
        ports += ["--no-monitor", "--include-log-monitor=false"]
        command = [RAY, "start", "--block", "--object-store-memory=100000000", "--disable-usage-stats"]
        command += [*ports, *more]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=env
            )

    def _answers(self, url: str) -> bool:
        try:
            return httpx.get(url, timeout=5).status_code == 200
        except httpx.TransportError:
            assert self.process.poll() is None, (self.folder / "head.log").read_text()[-2000:]
            return False

    def kill(self) -> None:
        for node in [*self.nodes, self.process]:
            kill_tree(node)
        self.nodes.clear()


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """With all that it started, which has the same session or an ancestor in it."""
    for pid in [process.pid, *_below(process.pid)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def _below(parent: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = list[int](), [parent]
    while waiting:
        mine = children.get(waiting.pop(), [])
        found += mine
        waiting += mine
    return found


@contextmanager
def running(cpus: int = 2) -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets allow no long path
    found = Head(folder, cpus)
    try:
        found.start()
        yield found
    finally:
        found.kill()
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def provider(address: str, tmp_path: Path, more: str = "") -> AwayProvider:
    (tmp_path / "orchestrate.toml").write_text(
        f'[hosts.ray.options]\naddress = "{address}"\ndepot = "file://{tmp_path}/depot"\n'
        'packages = "image"\nusd_per_hour = 0.5\n'
        f"pass_env = {json.dumps([*ENV, 'ORCHESTRATE_START_S'])}\n" + more
    )
    found = registry.make(
        "ray", config.load(env={}, config_file=tmp_path / "orchestrate.toml", home=tmp_path / "home")
    )
    assert isinstance(found, AwayProvider)
    return found


ENV = {
    "ORCHESTRATE_REPORT_S": "0.3",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    # On two nodes there is room at once, or none.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3",
}


def spec(tmp_path: Path, epochs: int = 4, **options: Any) -> JobSpec:
    """12 steps in an epoch; a checkpoint to go on from after each."""
    messages = [{"role": "user", "content": "Say red."}, {"role": "assistant", "content": "Red."}]
    (tmp_path / "train.jsonl").write_text(f"{json.dumps({'messages': messages})}\n" * 24)
    given = {"ray": {"recovery_seconds": 0, "threads": 1, **options}}
    values = {"model": str(TINY), "train": str(tmp_path / "train.jsonl"), "adapter": "lora", "seed": 1}
    return JobSpec.parse({**values, "epochs": epochs, "batch_size": 2, "provider_options": given})


def processes(ref: str, *words: bytes) -> list[int]:
    """Of the run, with one of these words in the command."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command, env = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            except OSError:
                continue
            mine = b"ORCHESTRATE_REF=" + ref.encode() in env and not command.startswith(b"/bin/sh")
            if mine and any(word in command for word in words):
                found.append(int(entry.name))
    return found


def kill(pids: list[int]) -> None:
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def wait(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not ready():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.5)
