"""A place that another package brings: one module and an entry point, and nothing of ours changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.paths import ROOT

MODULE = """
from orchestrate.places.away import AwayPlace
from orchestrate.places.base import Machine, Placed
from orchestrate.profile import away

PROFILE = away("shed", "The shed", "shed:Shed")


class Shed(AwayPlace):
    started = []

    def machines(self):
        return (Machine(name="bench", gpu="L40S", count=1, memory_bytes=48 * 10**9),)

    def submit(self, order, resources, env):
        self.started.append((order.job.ref, resources.machine, sorted(env)))

    def find(self, ref=None):
        return [Placed(id=ref, ref=ref, state="waiting", raw_state="waiting") for ref, _, _ in self.started]

    def stop(self, ref):
        self.started.clear()

    def price(self, resources):
        return None
"""
USE = """
import json, sys
from pathlib import Path
from tests.sending import create, upload
from orchestrate import Orchestrator
from orchestrate.settings import config
from orchestrate.data import TrainingData
from orchestrate.providers import registry
from orchestrate.setup import backends, doctor
from orchestrate.spec import JobSpec

folder = Path(sys.argv[1])
settings = config.load(env={}, config_file=folder / "orchestrate.toml", home=folder / "home")
assert "shed" in registry.known(settings) and "shed" in registry.names(settings)
found = registry.make("shed", settings)
spec = JobSpec.parse({"model": "qwen3-8b", "train": str(folder / "train.jsonl")})
data = TrainingData.open(spec.train)
handle = create(found, spec, upload(found, spec, data), "orc-0123456789ab")
job = found.get(handle)
with Orchestrator(settings) as ft:
    told = [one.detail for one in doctor.settings(ft) if one.check == "backend shed"]
print(json.dumps([found.profile.title, found.place.started, job.status, handle.provider, found.quote(
    spec, data, found.translate(spec), None).unavailable, backends.plugins()[-1].to_dict(), told]))
"""


@pytest.mark.slow
def test_it_is_a_backend_like_ours(tmp_path: Path) -> None:
    (tmp_path / "shed.py").write_text(MODULE)
    about = tmp_path / "shed-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: shed\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[orchestrate.places]\nshed = shed:PROFILE\n")
    messages = [{"role": "user", "content": "Say red."}, {"role": "assistant", "content": "Red."}]
    (tmp_path / "train.jsonl").write_text(f"{json.dumps({'messages': messages})}\n" * 20)
    (tmp_path / "orchestrate.toml").write_text(
        f'[hosts.shed.options]\ndepot = "file://{tmp_path}/depot"\nwhat_only_it_knows = 1\n'
    )
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "src"), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    title, started, status, provider, unavailable, listed, told = json.loads(done.stdout.splitlines()[-1])
    assert (title, status, provider) == ("The shed", "queued", "shed")
    [(ref, machine, env)] = started
    assert (ref, machine) == ("orc-0123456789ab", "bench") and "ORCHESTRATE_DEPOT" in env
    assert "the hourly price of this machine is unknown" in unavailable
    # It names no options: any are taken, and the list says so.
    assert (listed["kind"], listed["package"], listed["options"], listed["error"]) == (
        "shed",
        "shed",
        None,
        None,
    )
    assert told == ["shed does not declare its options, so misspelled options are not detected"]
