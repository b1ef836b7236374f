"""A user's home against the sandbox, with its commands typed in this process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.faults.books import HostJob, jobs_on_host
from tests.faults.submitting import MODELS, write_rows
from tests.faults.world import CREATE, HOSTED
from typer.testing import CliRunner, Result

from orchestrate import JobSpec, Orchestrator
from orchestrate.cli import app
from orchestrate.settings import config


class Shop:
    """One user's home against the sandbox."""

    def __init__(self, folder: Path, hosts: Any, **more: Any) -> None:
        self.folder, self.hosts = folder, hosts
        self.env = {"ORCHESTRATE_KEYS": str(folder / "none"), **hosts.env}
        self.impatient = folder / "orchestrate.toml"
        self.impatient.write_text(
            "".join(f"[hosts.{name}.options]\nretry_budget_s = 0.5\n" for name in HOSTED)
        )
        self.settings = config.load(env=self.env, cwd=folder, home=folder / "home", **more)
        self.rows = write_rows(folder / "rows.jsonl")
        self.spec = JobSpec(model=MODELS, train=str(self.rows), epochs=1)
        self.ft = Orchestrator(self.settings)
        self.before = self._creates()
        self._there = {job.id for name in HOSTED for job in self._jobs(name)}

    def _creates(self) -> int:
        sent = [
            (name, entry["path"]) for name in HOSTED for entry in self.hosts.requests(name, method="POST")
        ]
        return sum(re.search(CREATE[name], path) is not None for name, path in sent)

    def sent(self) -> int:
        """Create requests since this shop opened."""
        return self._creates() - self.before

    def _jobs(self, name: str) -> list[HostJob]:
        return list(jobs_on_host(self.hosts, self.settings.home, name))

    def count(self, name: str) -> dict[str, int]:
        """Jobs on the host since this shop opened, by the host's own books, against runs in the store."""
        runs = [run.record for run in self.ft.runs(provider=name)]
        there = [job for job in self._jobs(name) if job.id not in self._there]
        tracked, refs = {run.job_id for run in runs}, {job.ref for job in there}
        return {
            "runs": len(runs),
            "jobs": len(there),
            "lost": sum(job.id not in tracked for job in there),
            "doubled": len(there) - len(refs),
        }

    def command(self, backends: str, *words: str) -> Result:
        models = [f"--model={name}={model}" for name, model in MODELS.items()]
        spec = ["-p", backends, *models, "--train", str(self.rows), "--epochs", "1", "--yes"]
        return self.type("submit", *spec, *words)

    def type(self, *words: str) -> Result:
        env = {**self.env, "ORCHESTRATE_HOME": str(self.settings.home), "COLUMNS": "200"}
        env |= {"ORCHESTRATE_CONFIG": str(self.impatient)}
        return CliRunner().invoke(app, words, env=env)
