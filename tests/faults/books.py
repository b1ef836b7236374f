"""The hosts' own books: what jobs there are in truth, never what our clients read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrate.local.run import STATUSES, runs
from orchestrate.store import REF_PATTERN


@dataclass(frozen=True)
class HostJob:
    ref: str
    made_at: float
    id: str
    phase: str


def jobs_on_host(hosts: Any, home: Path, name: str) -> Iterator[HostJob]:
    """Each job that backend `name` has; `hosts` is a running sandbox, `home` that of the local engine."""
    if name == "local":
        for run in runs(home / "local" / "runs"):
            made = run.job().created_at.timestamp()
            yield HostJob(run.ref, made, run.ref, STATUSES[run.state().status].value)
        return
    host = hosts.fronts[name].host
    for job in host.jobs():
        tag = {"openai": job.body.get("metadata"), "together": job.body.get("suffix"), "fireworks": job.id}
        [ref] = REF_PATTERN.findall(str(tag[name]))
        yield HostJob(ref, job.created_at, job.id, job.phase(host.clock.now()).value)
