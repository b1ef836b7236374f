"""Ten thousand runs on one host are brought up to date by `orchestrate sync` in at most 150 requests.

The host with the smallest pages has the ten thousand. The pages in which six hundred come on the others say
what ten thousand cost there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Cli
from tests.sending import upload

from orchestrate.data import TrainingData
from orchestrate.providers import registry
from orchestrate.sandbox import running
from orchestrate.settings import config
from orchestrate.spec import JobSpec
from orchestrate.store import transitions
from orchestrate.store.runs import Intent
from orchestrate.store.store import Store
from orchestrate.types import JobHandle, JobStatus

pytestmark = pytest.mark.slow
RUNS = {"openai": 10_000, "together": 600, "fireworks": 600}
REQUESTS = {"openai": 101, "together": 2, "fireworks": 6}
"""Pages of 100; no pages at all; pages of 200, and one for each of the two other kinds of jobs. One more asks
whose account it is."""
DETAILS = {"openai": 150 - 101, "together": 150 - 2, "fireworks": 150 - 53}
"""The most that may be asked for further of what has ended: what is left beside the pages of ten thousand."""
MODELS = {"openai": "gpt-4o-mini", "together": "qwen3.5-9b", "fireworks": "qwen3-8b"}


@pytest.mark.parametrize("host", REQUESTS)
def test_a_sync_costs_pages_not_runs(cli: Cli, cli_env: dict[str, str], tmp_path: Path, host: str) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row | {"n": n}) + "\n" for n in range(12)))
    spec = JobSpec(model=MODELS[host], train=str(tmp_path / "rows.jsonl"))
    with running(home=tmp_path / "sandbox", train=False, speed=20) as sandbox:
        settings = config.load(env=cli_env | sandbox.env, cwd=tmp_path)
        provider = registry.make(host, settings)
        file = upload(provider, spec, TrainingData.open(spec.train)).train_id
        sandbox.clock.speed = 0.001  # so that nothing ends before it is told to
        runs = RUNS[host]
        jobs = sandbox.create_jobs(host, [body(provider.translate(spec).body, host, file)] * runs)
        with Store.open(settings.store_url) as store:
            track(store, spec, host, provider.host, jobs)
        provider.close()

        def sync() -> tuple[dict[str, Any], int]:
            sandbox.clear_requests()
            done = cli("sync", "--json", **sandbox.env)
            assert done.code == 0, done.err
            return done.json, sandbox.count()

        report, requests = sync()
        assert (report["checked"], len(report["changed"]), report["failures"]) == (runs, runs, [])
        assert requests == REQUESTS[host]
        sandbox.skip(1_000_000)
        report, requests = sync()
        assert (len(report["ended"]), report["failures"]) == (runs, [])
        assert REQUESTS[host] < requests <= REQUESTS[host] + DETAILS[host], "of a few of those that ended"
    with Store.open(settings.store_url) as store:
        ended = store.runs.matching(status=[JobStatus.SUCCEEDED], limit=runs + 1)
        assert len(ended) == runs and all(run.bill is not None for run in ended)
        assert 0 < len(store.runs.matching(closed=True, limit=runs)) <= 40


def body(translated: dict[str, Any], host: str, file: str) -> dict[str, Any]:
    return translated | {"dataset" if host == "fireworks" else "training_file": file}


def track(store: Store, spec: JobSpec, host: str, place: str, jobs: list[str]) -> None:
    """Runs that are on the host already."""
    laying = store.database.engine.raw_connection()
    laying.cursor().execute("PRAGMA synchronous = OFF")  # none has to outlive a power cut
    laying.close()
    for first in range(0, len(jobs), 500):
        changes: list[Any] = []
        for job in jobs[first : first + 500]:
            intent = Intent(spec=spec, provider=host, dataset_digest="d", host=place, sandbox=True)
            run = store.runs.create(intent)
            handle = JobHandle(provider=host, job_id=job, kind="supervised" if host == "fireworks" else None)
            changes.append((run.id, lambda r, h=handle: transitions.submitted(r, h, store.clock.now())))
        store.runs.apply_many(changes)
