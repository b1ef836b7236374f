"""docs/places.md from a machine whose hosts are stand-ins: its commands and settings as they stand there, but
for the depot, which is a folder, and the address of Ray's head."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.documented import Done, Snippet, environment, run, snippets
from tests.paths import ROOT
from tests.unit.places import hub as hubs
from tests.unit.places.kube import Cluster
from tests.unit.places.rayhead import Head
from tests.unit.places.worlds import SkyState

from orchestrate.places.remote import TrainingAttempt
from orchestrate.places.storage import RunStorage

pytestmark = pytest.mark.slow
ENGINE = str(Path(__file__).with_name("engine.py"))
BLOCKS = [one for one in snippets(ROOT / "docs" / "places.md") if not one.unrun]


def settings(kind: str) -> Snippet:
    [found] = (one for one in BLOCKS if one.text.startswith(f"[hosts.{kind}.options]"))
    return found


@dataclass(frozen=True)
class Desk:
    """A project with a spec of a model that is too large for this machine."""

    folder: Path
    env: dict[str, str]

    def configure(self, kind: str, **instead: str) -> None:
        lines = settings(kind).text.splitlines()
        instead = {"depot": f"file://{self.folder}/depot", **instead}
        for name, value in instead.items():
            [at] = (n for n, line in enumerate(lines) if line.startswith(f"{name} = "))
            lines[at] = f'{name} = "{value}"'
        (self.folder / "orchestrate.toml").write_text("\n".join(lines))
        self.run("orchestrate keys trust --project")

    def work(self, ref: str) -> None:
        """What its job would do over there, but for the training."""
        there = self.folder / "there"
        there.mkdir()
        engine = [sys.executable, ENGINE, "0", "0"]
        depot = RunStorage(f"file://{self.folder}/depot")
        away = TrainingAttempt(depot, ref, there, engine=engine, report_s=0.05, end=lambda code: None)
        assert away.work() == 0

    def run(self, line: str) -> Done:
        return run(line, self.folder, self.env)

    def told(self, line: str) -> Any:
        return json.loads(self.run(f"{line} --json").out)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    folder = tmp_path / "project"
    folder.mkdir()
    messages = [{"role": "user", "content": "Say red."}, {"role": "assistant", "content": "Red."}]
    (folder / "train.jsonl").write_text(f"{json.dumps({'messages': messages})}\n" * 24)
    (folder / "spec.yaml").write_text("model: qwen3-8b\ntrain: train.jsonl\nadapter: qlora\nepochs: 1\n")
    env = environment(tmp_path)
    del env["HF_HUB_OFFLINE"]
    yield Desk(folder, env)


def test_one_word_takes_a_run_to_hugging_face(desk: Desk, tmp_path: Path) -> None:
    quote, submit, watch = BLOCKS[0].lines
    desk.configure("hf-jobs")
    with hubs.running(tmp_path, run=False) as hub:
        desk.env.update(HF_ENDPOINT=hub.url, HF_TOKEN=hubs.TOKEN)
        assert [one["provider"] for one in desk.told(quote)] == ["local", "hf-jobs"]
        [made] = desk.told(submit)
        [(id, job)] = hub.jobs.items()
        assert job["labels"]["orchestrate-ref"] == made["ref"]
        desk.work(made["ref"])
        hub.end(id, "COMPLETED")
        desk.run(watch.replace("RUN", made["id"]))
        [run] = desk.told("orchestrate runs")
        assert (run["id"], run["status"]) == (made["id"], "succeeded")


def test_anyscale(desk: Desk, tmp_path: Path) -> None:
    consoles = pytest.importorskip("tests.unit.places.console")
    (tmp_path / "console").mkdir()
    with consoles.running(tmp_path / "console", run=False) as console:
        desk.configure("anyscale", cloud="first", project="ours")
        desk.env.update(ANYSCALE_BASE_URL=console.url, ANYSCALE_CLI_TOKEN=consoles.TOKEN)
        [made] = desk.told("orchestrate submit spec.yaml -p anyscale --yes")
        assert made["account"] == "organization org_ours, user usr_me"
        [priced] = made["quote"]["lines"]
        assert (priced["usd_per_unit"], priced["note"]) == ("2.5", "1 x L40S (g6e.2xlarge)")
        [job] = console.jobs.values()
        assert job["name"] == job["tags"]["orchestrate-ref"] == made["ref"]


def test_a_ray_cluster(desk: Desk) -> None:
    head = Head()
    try:
        desk.configure("ray", address=head.url)
        [made] = desk.told("orchestrate submit spec.yaml -p ray --yes")
        [priced] = made["quote"]["lines"]
        assert (priced["usd_per_unit"], priced["note"]) == ("1.2", "1 x A100 (a worker)")
        [job] = head.jobs.values()
        assert job["metadata"] == {"orchestrate-ref": made["ref"]}
        assert any(pin.startswith("torch==") for pin in job["runtime_env"]["uv"]["packages"])
    finally:
        head.close()


def test_kubernetes(desk: Desk, tmp_path: Path) -> None:
    cluster = Cluster()
    try:
        kubeconfig = {
            "clusters": [{"name": "here", "cluster": {"server": cluster.url}}],
            "users": [{"name": "me", "user": {}}],
            "contexts": [{"name": "gpus", "context": {"cluster": "here", "user": "me"}}],
            "current-context": "",
        }
        (tmp_path / ".kube").mkdir()
        (tmp_path / ".kube" / "config").write_text(yaml.safe_dump(kubeconfig))
        desk.configure("kuberay")
        [made] = desk.told("orchestrate submit spec.yaml -p kuberay --yes")
        assert made["account"] == "namespace teams of gpus"
        [priced] = made["quote"]["lines"]
        assert priced["usd_per_unit"] == "2.0" and "L40S" in priced["note"]
        [job] = cluster.jobs.values()  # of the namespace `teams`: the stand-in has no other
        [container] = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
        assert container["image"] == "rayproject/ray:2.52.0-py311-gpu"
        assert container["envFrom"] == [{"secretRef": {"name": "depot"}}]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    finally:
        cluster.close()


def test_skypilot(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    state = SkyState(tmp_path / "there")
    python = tmp_path / "sky" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(state.python)
    desk.configure("sky")
    [made] = desk.told("orchestrate submit spec.yaml -p sky --max-usd-per-hour 3 --yes")
    assert made["account"] == "SkyPilot at https://sky.example.com"
    [sent] = state.get()["sent"]
    asked = sent["resources"]
    assert sent["name"] == asked["labels"]["orchestrate-ref"] == made["ref"]
    assert (asked["infra"], asked["max_hourly_cost"]) == ("runpod", 3)
    assert asked["image_id"] == "docker:nvcr.io/nvidia/pytorch:25.10-py3"
    assert asked["autostop"]["down"] and asked["job_recovery"] == {"max_restarts_on_errors": 0}
    assert "timeout --kill-after" in sent["run"]
