"""The places away from here, each with a stand-in of its host: what the contract asks of all of them."""

from __future__ import annotations

import json
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from tests.unit.places import hub as hubs
from tests.unit.places.hub import TOKEN
from tests.unit.places.kube import Cluster
from tests.unit.places.rayhead import Head

from orchestrate.places.away import AwayPlace
from orchestrate.places.kinds._skypilot import Bridge
from orchestrate.places.kinds.anyscale import AnyscaleJobs
from orchestrate.places.kinds.hf_jobs import HfJobs
from orchestrate.places.kinds.kuberay import KubeRay
from orchestrate.places.kinds.ray import RayJobs
from orchestrate.places.kinds.sky import Sky
from orchestrate.providers import registry
from orchestrate.providers.local.away import AwayProvider
from orchestrate.settings import Secret, config


@dataclass
class World:
    """`fault`: of the next request that makes a job. `jobs`: refs of the host's own list, with whether each
    still goes on. `end`: the newest job failed after a minute. `forget`: the host knows of nothing any
    more."""

    name: str
    kind: str
    options: str
    place: Callable[[AwayProvider], AwayPlace]
    fault: Callable[[str], None]
    jobs: Callable[[], list[tuple[str, bool]]]
    run: Callable[[], None]
    end: Callable[[str], None]
    forget: Callable[[], None]
    gpu: str
    minute_usd: Decimal | None
    """Of a machine with that GPU, by hand."""
    own: bool = False
    """Its machines are the user's, as its address tells: a private run may go there."""
    spot: bool = False
    """It has machines that are cheaper and may be taken away."""
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    """Where its host is, and a key for it."""
    settles: bool = False
    """A job has the id that it was asked for, so its list tells at once whether a lost answer made it."""

    def provider(self, folder: Path) -> AwayProvider:
        (folder / "home").mkdir(exist_ok=True)
        named = folder / "orchestrate.toml"
        named.write_text(f'[hosts.{self.kind}.options]\ndepot = "file://{folder}/depot"\n{self.options}')
        found = registry.make(self.kind, config.load(env={}, config_file=named, home=folder / "home"))
        assert isinstance(found, AwayProvider)
        found.place = self.place(found)
        return found


@contextmanager
def hugging_face(folder: Path) -> Iterator[World]:
    with hubs.running(folder, run=False) as hub:

        def end(message: str) -> None:
            id = list(hub.jobs)[-1]
            hub.end(id, "ERROR", message, ran_s=60)

        def run() -> None:
            job = list(hub.jobs.values())[-1]
            job |= {"startedAt": hubs.stamp(datetime.now(UTC)), "status": {"stage": "RUNNING"}}

        yield World(
            name="hf-jobs",
            kind="hf-jobs",
            options="",
            place=lambda found: HfJobs(
                "hf-jobs", found.config.options, lambda: HfApi(endpoint=hub.url, token=TOKEN)
            ),
            fault=hub.faults.append,
            jobs=lambda: [
                (job["labels"]["orchestrate-ref"], not job["finishedAt"]) for job in hub.jobs.values()
            ],
            run=run,
            end=end,
            forget=lambda: hub.forgets.update(hub.jobs),
            gpu="A100",
            minute_usd=Decimal("0.041667"),
        )


@contextmanager
def kubernetes(folder: Path) -> Iterator[World]:
    cluster = Cluster()

    def end(message: str) -> None:
        now = datetime.now(UTC)
        times = {"startTime": _iso(now - timedelta(seconds=60)), "endTime": _iso(now)}
        cluster.status(
            list(cluster.jobs)[-1], jobDeploymentStatus="Failed", reason="AppFailed", message=message, **times
        )

    def jobs() -> list[tuple[str, bool]]:
        ended = ("Failed", "Suspending")
        return [
            (
                job["metadata"]["labels"]["orchestrate-ref"],
                job.get("status", {}).get("jobDeploymentStatus") not in ended,
            )
            for job in cluster.jobs.values()
        ]

    try:
        yield World(
            name="kuberay",
            kind="kuberay",
            options='namespace = "teams"\nimage = "rayproject/ray:2.60.0-py311-gpu"\n'
            'gpu = "L40S"\nusd_per_hour = 6\n',
            place=lambda found: KubeRay("kuberay", found.config.options, cluster.api),
            fault=cluster.faults.append,
            jobs=jobs,
            run=lambda: cluster.status(
                list(cluster.jobs)[-1], jobDeploymentStatus="Running", startTime=_iso(datetime.now(UTC))
            ),
            end=end,
            forget=cluster.jobs.clear,
            gpu="L40S",
            minute_usd=Decimal("0.1"),
        )
    finally:
        cluster.close()


def _iso(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


class SkyState:
    """The stand-in's file, and the Python whose SkyPilot it is."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "state.json"
        (folder / "lib").mkdir()
        shutil.copy(Path(__file__).with_name("skypilot.py"), folder / "lib" / "sky.py")
        self.python = folder / "python"
        self.python.write_text(
            f'#!/bin/sh\nSKY_STATE="{self.file}" PYTHONPATH="{folder}/lib" exec "{sys.executable}" "$@"\n'
        )
        self.python.chmod(self.python.stat().st_mode | stat.S_IXUSR)
        self.put(jobs=[], requests=[], faults=[], clouds=["RunPod", "Vast"], sent=[])

    def get(self) -> dict[str, Any]:
        return json.loads(self.file.read_text())

    def put(self, **values: Any) -> None:
        state = self.get() if self.file.is_file() else {}
        draft = self.file.with_suffix(".draft")
        draft.write_text(json.dumps(state | values))
        draft.replace(self.file)

    def newest(self, **values: Any) -> None:
        jobs = self.get()["jobs"]
        jobs[-1] |= values
        self.put(jobs=jobs)


RUNPOD = {"cloud": "RunPod", "region": "US", "accelerators": {"H100": 1}, "cluster_name_on_cloud": "orc-x-1"}


@contextmanager
def skypilot(folder: Path) -> Iterator[World]:
    state = SkyState(folder)
    bridge = Bridge(str(state.python), answer_s=120)

    def end(message: str) -> None:
        now = time.time()
        state.newest(
            status="FAILED", failure_reason=message, start_at=now - 60, end_at=now, job_duration=60.0
        )

    live = ("STARTING", "RUNNING", "RECOVERING")
    try:
        yield World(
            name="sky",
            kind="sky",
            options=f'python = "{state.python}"\ninfra = "runpod"\n',
            place=lambda found: Sky("sky", found.config.options, bridge, settle_s=0),
            fault=lambda fault: state.put(faults=[*state.get()["faults"], fault]),
            jobs=lambda: [(job["job_name"][:16], job["status"] in live) for job in state.get()["jobs"]],
            run=lambda: state.newest(status="RUNNING", start_at=time.time(), **RUNPOD),
            end=end,
            forget=lambda: state.put(jobs=[], requests=[]),
            gpu="H100",
            minute_usd=Decimal("2.69") / 60,
            spot=True,
        )
    finally:
        bridge.close()


@contextmanager
def ray_cluster(folder: Path) -> Iterator[World]:
    del folder
    head = Head()
    try:
        yield World(
            name="ray",
            kind="ray",
            options=f'address = "{head.url}"\ngpu = "L40S"\nusd_per_hour = 6\n',
            place=lambda found: RayJobs("ray", found.config.options),
            fault=head.faults.append,
            jobs=lambda: [
                (job["metadata"]["orchestrate-ref"], job["status"] in ("PENDING", "RUNNING"))
                for job in head.jobs.values()
            ],
            run=lambda: head.newest("RUNNING"),
            end=lambda message: head.end(message, ran_s=60),
            forget=head.jobs.clear,
            gpu="L40S",
            minute_usd=Decimal("0.1"),
            own=True,
            settles=True,
        )
    finally:
        head.close()


@contextmanager
def anyscale(folder: Path) -> Iterator[World]:
    from tests.unit.places import console as consoles  # skipped where its client is not installed

    with consoles.running(folder, run=False) as console:

        def place(found: AwayProvider) -> AwayPlace:
            config = found.config.changed(base_url=console.url, api_key=Secret(consoles.TOKEN), pins=None)
            return AnyscaleJobs("anyscale", config.options, config)

        yield World(
            name="anyscale",
            kind="anyscale",
            env={
                "ANYSCALE_BASE_URL": console.url,
                "ANYSCALE_CLI_TOKEN": consoles.TOKEN,
                "ORCHESTRATE_KEYS": str(folder / "keys.toml"),
            },
            options='instance = "g6e.2xlarge"\ngpu = "L40S"\nusd_per_hour = 6\n',
            place=place,
            fault=console.faults.append,
            jobs=lambda: [
                (job["name"], job["state"]["current_state"] not in consoles.DONE)
                for job in console.jobs.values()
            ],
            run=lambda: console.running(list(console.jobs)[-1]),
            end=lambda message: console.end(list(console.jobs)[-1], "OUT_OF_RETRIES", message, ran_s=60),
            forget=lambda: console.forgets.update(console.jobs),
            gpu="L40S",
            minute_usd=Decimal("0.1"),
        )


WORLDS = {
    "anyscale": anyscale,
    "hf-jobs": hugging_face,
    "kuberay": kubernetes,
    "ray": ray_cluster,
    "sky": skypilot,
}
