"""The pages about servers, queue and trackers from a clean machine: each command as it stands there, also
those that go on until they are ended, and what a client of each finds meanwhile."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AuthenticationError, OpenAI
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests import command
from tests.documented import Done, Snippet, environment, run, snippets
from tests.paths import ROOT
from tests.unit.gateway.conftest import rows
from tests.unit.ui.page import Parsed

from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations
from orchestrate.sandbox.server import Sandbox

pytestmark = pytest.mark.slow
PATIENCE_S = 300


@dataclass(frozen=True)
class Machine:
    """A project of somebody who has the package, and a sandbox for its hosts."""

    folder: Path
    env: dict[str, str]

    def run(self, line: str, codes: tuple[int, ...] = (0,)) -> Done:
        return run(line, self.folder, self.env, codes)

    def told(self, line: str) -> Any:
        return json.loads(self.run(f"{line} --json").out)

    @contextmanager
    def served(self, line: str, until: str, *, how: int = signal.SIGINT) -> Generator[str]:
        """What it prints that matches, once it does; in the end it gets a signal."""
        self.folder.joinpath("nothing").touch()
        number = len(list(self.folder.glob("served-*")))
        streams = [self.folder / name for name in ("nothing", f"served-{number}", f"complaint-{number}")]
        words = shlex.split(line)[1:]
        process = command.start(command.orchestrate, words, cwd=self.folder, env=self.env, streams=streams)
        try:
            found: list[str] = []

            def said() -> bool:
                assert process.is_alive(), streams[2].read_text()
                found[:] = re.findall(until, streams[1].read_text()) if streams[1].exists() else []
                return bool(found)

            awaited(said)
            yield found[0]
        finally:
            if process.is_alive() and process.pid:
                os.kill(process.pid, how)
        assert command.ended(process, PATIENCE_S) in ((0, 130) if how == signal.SIGINT else (-how,))


def awaited(look: Callable[[], Any]) -> Any:
    until = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < until
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    home = tmp_path_factory.mktemp("hosts")
    with running(home=home, train=False, speed=1000, waits=Durations(file=0.0)) as sandbox:
        yield sandbox


@pytest.fixture
def machine(tmp_path: Path, hosts: Sandbox) -> Machine:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(rows())
    return Machine(folder, environment(tmp_path) | hosts.env)


def blocks(name: str) -> list[Snippet]:
    """Those of a page that are programs or settings, and are not said to be parsed only."""
    return [one for one in snippets(ROOT / "docs" / name) if not one.unrun]


def test_the_pages_in_the_browser(machine: Machine, tmp_path: Path) -> None:
    """Ended as a power cut ends it, and started again: what the old one gave out is told the way out."""
    [block] = blocks("ui.md")
    plain, opened, reading = block.lines
    browser, seen = tmp_path / "browser", tmp_path / "seen"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {seen}\n')
    browser.chmod(0o755)
    machine.env["BROWSER"] = f"{browser} %s"
    link = r"http://\S+/"
    with httpx.Client(timeout=240) as client:
        with machine.served(plain, link, how=signal.SIGKILL) as old:
            asked = {"provider": "openai", "model": "gpt-4.1-mini-2025-04-14", "max_cost_usd": "5"}
            asked["train"] = str(machine.folder / "train.jsonl")
            form = Parsed(client.get(f"{old}new/confirm", params=asked, timeout=120).text)
            assert form.posts and form.fields["word"]
        with machine.served(opened, link) as url:
            assert awaited(lambda: seen.exists() and seen.read_text()) == url
            root, token = url.rstrip("/").rsplit("/", 1)
            assert token not in old and client.get(url).status_code == 200
            stale = client.get(f"{root}/{old.rstrip('/').rsplit('/', 1)[1]}/")
            assert stale.status_code == 404 and "<pre>orchestrate ui</pre>" in stale.text
            sent = client.post(f"{url}new", data=form.fields)
            assert sent.status_code == 403 and "reload the page" in sent.text
            assert machine.told("orchestrate runs --sandbox") == []
        with machine.served(reading, link) as url:
            assert client.get(url).status_code == 200 and client.get(f"{url}new").status_code == 404


def test_the_gateway(machine: Machine) -> None:
    install, settings, tuned, _deploys, keys = blocks("gateway.md")  # deploys: unit/gateway/test_deploying
    serve, exported = install.lines
    (machine.folder / "orchestrate.toml").write_text(settings.text)
    machine.run("orchestrate keys trust --project")
    path = shlex.split(exported)[1].partition(":8000")[2]
    with machine.served(f"{serve} --port 0", r"http://127\.0\.0\.1:\d+\S*") as url:
        assert url.endswith(path)
        with OpenAI(base_url=url, api_key="sk-before-there-are-keys-7b2f", max_retries=0) as client:
            file = client.files.create(file=("train.jsonl", rows()), purpose="fine-tune")
            job = client.fine_tuning.jobs.create(model="gpt-4o-mini-2024-07-18", training_file=file.id)
            awaited(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "succeeded")
        [made] = machine.told("orchestrate runs --sandbox")
        assert (made["provider"], made["model"]) == ("together", "qwen3-8b")
        ann, bob, listed, revoked, log = keys.lines
        key = machine.told(ann)["key"]
        machine.run(bob)
        assert {"ann", "bob"} <= {*machine.run(listed).out.split()}
        with OpenAI(base_url=url, api_key=key, max_retries=0) as client:
            assert client.models.list().data
            machine.run(revoked)
            with pytest.raises(AuthenticationError):
                client.models.list()
        written = machine.run(log).out
        assert "POST /v1/fine_tuning/jobs" in written and "401" in written
    named = re.sub("run-[0-9a-z]+", made["id"], tuned.text)
    (machine.folder / "orchestrate.toml").write_text(f"{settings.text}\n{named}")
    machine.run("orchestrate keys trust --project")
    bob = machine.told("orchestrate gateway keys add bob-again")["key"]
    with (
        machine.served(f"{serve} --port 0", r"http://127\.0\.0\.1:\d+\S*") as url,
        OpenAI(base_url=url, api_key=bob, max_retries=0) as client,
    ):
        assert {"support", "ft:gpt-4o-mini-2024-07-18:acme-inc:support:AAAA1111"} <= {
            model.id for model in client.models.list()
        }


def test_the_queue(machine: Machine) -> None:
    """With a host of the sandbox for this machine, whose quotes follow how long its last run took: an entry
    may be held for that."""
    added, settings = blocks("queue.md")[:2]
    (machine.folder / "orchestrate.toml").write_text(settings.text)
    for name, seed in (("finetune.yaml", 1), ("second.yaml", 2)):
        spec = {"model": "gpt-4.1-mini-2025-04-14", "train": "train.jsonl", "seed": seed}
        (machine.folder / name).write_text(json.dumps(spec))
    first, second, listed, served = (line.replace("-p local", "-p openai") for line in added.lines)
    machine.run(f"{first} --yes")
    [entry] = machine.told(listed)
    machine.run(f"{second.replace('q-1qwe', entry['id'])} --yes")
    assert [line.split()[0] for line in machine.run(listed).out.splitlines()][:2] == ["entry", entry["id"]]

    def ended() -> bool:
        assert "held" not in (waiting := machine.run(listed).out), waiting
        runs = machine.told("orchestrate runs --sandbox")
        return [one["status"] for one in runs] == ["succeeded", "succeeded"]

    with machine.served(served, ""):
        awaited(ended)


@pytest.mark.filterwarnings("ignore")  # of MLflow's client, about itself
def test_the_trackers(machine: Machine) -> None:
    [block] = blocks("trackers.md")
    words = "--model gpt-4.1-mini-2025-04-14 --train train.jsonl -p openai --yes"
    [made] = machine.told(f"orchestrate submit {words}")
    once, followed, everything = block.lines
    # MLflow's client keeps a file of its own as it keeps what a server has; a server is started elsewhere.
    kept = f"sqlite:///{machine.folder}/mlflow.db"
    machine.env["MLFLOW_TRACKING_URI"] = kept
    machine.run(once.replace("http://127.0.0.1:5000", kept))
    machine.run(followed)
    assert f"{made['id']}" in machine.run(everything).out
    points = machine.told("orchestrate metrics last")
    [drawn] = (machine.folder / "logs").rglob("events.out.*")
    read = EventAccumulator(str(drawn.parent))
    read.Reload()
    assert [e.step for e in read.Scalars("train_loss")] == [p["step"] for p in points] != []
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=kept)
    [experiment] = [one for one in client.search_experiments() if one.name == "tickets"]
    [run_there] = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run_there.info.run_id, "train_loss")
    assert [(m.step, m.value) for m in history] == [(p["step"], p["values"]["train_loss"]) for p in points]


def test_sweeps(machine: Machine) -> None:
    """With a host of the sandbox for this machine, which would train each, and for two of which only one
    answers for what it tuned; and fewer trials of those that are drawn, as each is a run."""
    grid, drawn = (found.lines for found in blocks("queue.md") if "sweep" in found.text)
    held = [
        {"messages": [{"role": r, "content": f"{r} {n}"} for r in ("user", "assistant")]} for n in range(4)
    ]
    for name in ("valid.jsonl", "test.jsonl"):
        (machine.folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in held))
    model = {"default": "qwen3-8b", "openai": "gpt-4o-mini"}
    spec = {"model": model, "train": "train.jsonl", "validation": "valid.jsonl"}
    (machine.folder / "finetune.yaml").write_text(json.dumps(spec))

    def tried(line: str) -> list[dict[str, Any]]:
        line = line.replace("-p local", "-p together").replace("=local,together", "=openai")
        return machine.told(f"{re.sub('trials [0-9]+', 'trials 3', line)} --yes")

    assert len({json.dumps(trial["settings"], sort_keys=True) for trial in tried(*grid)}) == 4
    assert (machine.folder / "best.yaml").exists()
    backends, pruned, shares = map(tried, drawn)
    assert [(one["settings"], one["note"]) for one in backends] == [({"provider": "openai"}, "n = 4")]
    for found in (pruned, shares):
        rates = [trial["settings"]["learning_rate"] for trial in found[:3]]
        assert len({*rates}) == 3 and all(1e-5 <= rate <= 1e-3 for rate in rates)
    assert [trial.get("share", 1.0) for trial in shares] == [0.25, 0.25, 0.25, 1.0]
    assert shares[-1]["settings"] == shares[shares[-1]["parent"]]["settings"]


def test_a_host_that_a_file_describes(machine: Machine, tmp_path: Path) -> None:
    described = next(one for one in blocks("plugins.md") if "--template" in one.text)
    template, _, plan, stand_in = described.lines
    command, file = template.split(" > ")
    there = tmp_path / "hosts" / Path(file).name  # beside the key file
    there.parent.mkdir()
    there.write_text(machine.run(command).out)
    machine.env["MYCLOUD_API_KEY"] = "sandbox-0"
    spec = {"model": "some/model", "train": "train.jsonl"}
    (machine.folder / "finetune.yaml").write_text(json.dumps(spec))
    assert [one["provider"] for one in machine.told(plan)] == ["mycloud"]
    with machine.served(f"{stand_in} --port 0", r"MYCLOUD_BASE_URL=\S+"):
        pass
    machine.folder.joinpath("served-0").unlink()  # it tells its keys
