"""How fast runs are tracked: transitions a second, a sweep of 10,000 runs, the memory of a day's watching.

    python benchmarks/tracking.py [--runs 10000] [--json FILE]

The store is a real SQLite file in a temporary folder (WAL, synchronous=FULL), the host an OpenAI sandbox on
loopback, in a process of its own, with the official SDK in front. The day's watching is in simulated time:
the clock moves, nothing sleeps.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import tempfile
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from measured_on import Meter, about, write

from orchestrate import sandbox
from orchestrate.providers import registry
from orchestrate.runs.syncing.sweep import sync
from orchestrate.runs.watching.watcher import Watcher
from orchestrate.settings import config
from orchestrate.spec import JobSpec
from orchestrate.store import Clock, Uptime, transitions
from orchestrate.store.runs import Intent
from orchestrate.store.store import Store
from orchestrate.types import Event, Job, JobHandle, JobStatus, MetricPoint

SPEC = JobSpec(model="gpt-4.1-mini-2025-04-14", train="rows.jsonl")


def track(store: Store, provider: str, host: str, job_ids: Iterator[str] | list[str]) -> list[str]:
    """Runs that are already on the host, one for each job."""
    made: list[str] = []
    for job_id in job_ids:
        intent = Intent(spec=SPEC, provider=provider, model="m", dataset_digest="d", host=host, sandbox=True)
        run = store.runs.create(intent)
        handle = JobHandle(provider=provider, job_id=job_id)
        store.runs.apply(run.id, lambda r, h=handle: transitions.submitted(r, h, store.clock.now()))
        made.append(run.id)
    return made


def transitions_per_second(folder: Path, seconds: float = 5.0) -> dict[str, float]:
    """One durable commit for each change, and 500 changes in one commit as a sweep writes them."""
    words = [JobStatus.RUNNING, JobStatus.QUEUED]
    with Store.open(f"sqlite:///{folder}/transitions.sqlite3") as store:
        ids = track(store, "paper", "here", [f"job-{n}" for n in range(500)])
        jobs = [JobHandle(provider="paper", job_id=f"job-{n}") for n in range(500)]

        def change(n: int, word: JobStatus) -> Any:
            job = Job(handle=jobs[n], status=word, raw_status=word.value)
            return lambda run: transitions.observed(run, job, store.clock.now())

        count, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            store.runs.apply(ids[count % 500], change(count % 500, words[(count // 500) % 2]))
            count += 1
        single = count / (time.perf_counter() - begun)
        count, turn, begun, used = 0, 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - begun < seconds:
            turn += 1
            word = words[turn % 2]
            count += len(store.runs.apply_many([(run_id, change(n, word)) for n, run_id in enumerate(ids)]))
        batched = count / (time.perf_counter() - begun)
        by_cpu = count / (time.process_time() - used)
    return {
        "transitions_per_s": round(single),
        "batched_transitions_per_s": round(batched),
        "batched_transitions_per_cpu_s": round(by_cpu),
    }


def host(folder: Path, runs: int, line: Connection) -> None:
    """A sandbox of OpenAI with `runs` jobs, in a process of its own as a host is. Its clock almost stands
    still, so that no job ends meanwhile."""
    with sandbox.running(home=folder / "sandbox", train=False, speed=20) as hosts:
        provider = openai(folder, hosts.env)
        upload = provider.upload(SPEC, rows(folder), provider.translate(SPEC))
        provider.close()
        hosts.clock.speed = 0.001
        body = {"model": SPEC.model, "training_file": upload.train_id}
        job_ids = hosts.create_jobs("openai", [body] * runs)
        hosts.clear_requests()
        line.send((hosts.env, job_ids))
        line.recv()
        line.send(hosts.count("openai"))


def openai(folder: Path, env: Mapping[str, str]) -> Any:
    env = {"ORCHESTRATE_KEYS": str(folder / "none"), **env}
    return registry.make("openai", config.load(env=env, cwd=folder, home=folder))


def sweep(folder: Path, runs: int) -> dict[str, float]:
    """A sync of many active runs over the official SDK: requests, and seconds when all changed and when none
    did."""
    processes = multiprocessing.get_context("spawn")
    line, far = processes.Pipe()
    child = processes.Process(target=host, args=(folder, runs, far))
    child.start()
    env, job_ids = line.recv()
    provider = openai(folder, env)
    with Store.open(f"sqlite:///{folder}/sweep.sqlite3") as store:
        with_jobs = track(store, "openai", provider.host, job_ids)
        begun, used = time.perf_counter(), time.process_time()
        report = sync(store, lambda _: provider)
        first, first_cpu = time.perf_counter() - begun, time.process_time() - used
        line.send("count")
        requests = line.recv()
        child.join()
        assert report.checked == len(with_jobs) == runs
        assert len(report.changed) == runs, len(report.changed)
        begun = time.perf_counter()
        listed = len(store.runs.matching(limit=50))
        newest = time.perf_counter() - begun
        assert listed == min(50, runs)
    provider.close()
    return {
        "sweep_runs": runs,
        "sweep_requests": requests,
        "sweep_all_changed_s": round(first, 2),
        "sweep_all_changed_cpu_s": round(first_cpu, 2),
        "list_50_newest_ms": round(newest * 1000, 1),
    }


def rows(folder: Path) -> Any:
    from orchestrate.data import TrainingData

    line = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(line | {"n": n}) + "\n" for n in range(12)))
    return TrainingData.open(str(path))


class Simulated(Clock):
    """A clock that moves when it is told to sleep."""

    def __init__(self) -> None:
        self.start = super().now()
        self.seconds = 0.0

    def now(self) -> Any:
        return self.start + timedelta(seconds=self.seconds)

    def uptime(self) -> Uptime:
        return Uptime("simulated", self.seconds)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def day(folder: Path, runs: int = 10) -> dict[str, float]:
    """A day of watching active runs whose metrics grow: memory at its end against that after the first
    hour."""
    clock = Simulated()

    class Host(sandbox_free_host()):
        def list(self, *, since: Any = None) -> Iterator[Job]:
            self.lists += 1
            for n in range(runs):
                yield self.job(n, int(clock.seconds // 600))

        def metrics(self, job: JobHandle) -> list[MetricPoint]:
            step = int(clock.seconds // 600)
            return [MetricPoint(step=s, values={"train_loss": 1.0}) for s in range(max(0, step - 5), step)]

        def events(self, job: JobHandle, *, after: str | None = None) -> Iterator[Event]:
            minute = int(clock.seconds // 600)
            yield Event(id=f"e{minute}", at=clock.now(), level="info", message="step")

    host = Host()
    with Store.open(f"sqlite:///{folder}/day.sqlite3", clock=clock) as store:
        track(store, "openai", host.host, [f"job-{n}" for n in range(runs)])
        watcher = Watcher(store, lambda _: host, per_minute=600)
        tracemalloc.start()
        turns, hour, begun = 0, 0, time.perf_counter()
        while clock.seconds < 86_400:
            watcher.turn()
            turns += 1
            clock.sleep(max(watcher.wait_s(), 0.1))
            if hour == 0 and clock.seconds > 3600:
                gc.collect()
                hour = tracemalloc.get_traced_memory()[0]
        gc.collect()
        end, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return {
        "day_runs": runs,
        "day_turns": turns,
        "day_lists": host.lists,
        "day_took_s": round(time.perf_counter() - begun, 1),
        "day_memory_growth_kib": round((end - hour) / 1024, 1),
        "day_memory_peak_mib": round(peak / 2**20, 1),
    }


def sandbox_free_host() -> type:
    """A backend in this process, so that only the watcher's own memory is measured."""
    from orchestrate.providers.base import Measures
    from orchestrate.providers.openai import PROFILE
    from orchestrate.settings.config import HostConfig
    from orchestrate.types import Feature

    class Base(Measures):
        name, profile = "openai", PROFILE
        features = frozenset({Feature.EVENTS, Feature.METRICS})
        missing: dict[Feature, str] = {}  # noqa: RUF012
        translate = check = quote = upload = create = find = None  # type: ignore[assignment]

        def __init__(self) -> None:
            super().__init__(HostConfig(name="openai", base_url="https://example.invalid"))
            self.lists = 0

        def job(self, n: int, step: int) -> Job:
            handle = JobHandle(provider="openai", job_id=f"job-{n}")
            return Job(handle=handle, status=JobStatus.RUNNING, raw_status="running", step=step)

        def get(self, job: JobHandle) -> Job:
            return self.job(int(job.job_id.removeprefix("job-")), 0)

    return Base


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures, begun = about(), Meter.now()
    print(f"{figures['machine']}, load {figures['load']:.1f}, Python {figures['python']}")
    for part in (transitions_per_second, lambda f: sweep(f, arguments.runs), day):
        with tempfile.TemporaryDirectory() as folder:
            found = part(Path(folder))
        figures |= found
        for name, value in found.items():
            print(f"{name:<28}{value}", flush=True)
    figures["others"] = begun.others()
    if arguments.json:
        write(arguments.json, figures)


if __name__ == "__main__":
    main()
