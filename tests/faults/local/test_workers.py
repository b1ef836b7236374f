"""Real workers, killed and cheated. Each process of one starts the training libraries: they are few."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from tests.paths import TINY
from tests.sending import create, upload
from tests.unit.local.families import make
from tests.workers import Nursery

from orchestrate.costing import built_in
from orchestrate.data import TrainingData
from orchestrate.local import Hyper, LocalJob, RunDir, launch, resume
from orchestrate.local.job import AdapterSettings, Supervised
from orchestrate.local.plan import throughput
from orchestrate.local.run import STARTING_S, now, worker
from orchestrate.providers.local.provider import LocalProvider
from orchestrate.settings.config import HostConfig
from orchestrate.spec import JobSpec
from orchestrate.types import JobHandle, JobStatus, Message

LIMIT_S = 240
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    chance = random.Random(0)
    for name, count in (("train", 40), ("valid", 10)):
        with (tmp_path / f"{name}.jsonl").open("w", encoding="utf-8") as out:
            for _ in range(count):
                said = " ".join(
                    chance.choices(["red", "green", "blue", "round", "square"], k=chance.randint(1, 12))
                )
                messages = [
                    {"role": "user", "content": f"Say it backwards: {said}"},
                    {"role": "assistant", "content": " ".join(said.split()[::-1])},
                ]
                out.write(json.dumps({"messages": messages}) + "\n")
    return tmp_path / "train.jsonl", tmp_path / "valid.jsonl"


@pytest.fixture
def job(files: tuple[Path, Path]) -> LocalJob:
    """20 steps with dropout, evaluations between them, and a checkpoint to go on from after each."""
    return LocalJob(
        ref="orc-a",
        model=str(TINY),
        model_name="tiny-chat",
        train=str(files[0]),
        validation=str(files[1]),
        method=Supervised(),
        adapter=AdapterSettings(type="qlora", r=8, alpha=16.0, dropout=0.1),
        hyper=Hyper(epochs=4, batch_size=8, learning_rate=2e-3, evals=7, recovery_seconds=0.0),
        seed=3,
        threads=1,
        created_at=now(),
    )


@pytest.fixture
def small(job: LocalJob, tmp_path: Path) -> LocalJob:
    """With a random model of two layers, for which a step is a third of the work."""
    return msgspec.structs.replace(job, model=str(make("llama", tmp_path / "small")))


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "runs"
    for run in (tmp_path / "runs").glob("*"):
        kill(RunDir(run))


def kill(run: RunDir) -> None:
    """What a power cut does to the worker."""
    try:
        worker = json.loads((run.path / "worker.json").read_bytes())
        os.kill(worker["pid"], signal.SIGKILL)
    except (OSError, ValueError):
        return
    wait(lambda: not run.alive())


def wait(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not ready():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def finish(run: RunDir) -> str:
    wait(lambda: run.state().terminal or run.state().status in ("paused", "interrupted"))
    return run.state().status


def work(run: RunDir) -> int:
    """The worker from its beginning to its end, in this process."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        return worker.main(str(run.path))
    finally:
        signal.signal(signal.SIGTERM, before)
        (run.path / "worker.json").unlink()  # or the end of the test would kill this process


def curve(run: RunDir) -> list[tuple[float, ...]]:
    names = ("train_loss", "grad_norm", "valid_loss", "train_reward", "valid_reward")
    return [(p.step, *(p.values.get(name, 0.0) for name in names)) for p in run.metrics()]


GRADER = {
    "type": "multi",
    "graders": {
        "e": {"type": "python", "source": "def grade(sample, item): return 'e' in sample['output_text']"},
        "near": {
            "type": "text_similarity",
            "input": "{{sample.output_text}}",
            "reference": "{{item.answer}}",
            "evaluation_metric": "fuzzy_match",
        },
    },
    "calculate_output": "e / 2 + near / 2",
}


def by_reward(job: LocalJob) -> LocalJob:
    """The same rows as prompts, their answers for a grader."""
    for path in (job.train, str(job.validation)):
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        with Path(path).open("w", encoding="utf-8") as out:
            for row in rows:
                prompt, answer = row["messages"]
                out.write(json.dumps({"messages": [prompt], "answer": answer["content"]}) + "\n")
    hyper = msgspec.structs.replace(job.hyper, max_new_tokens=12, run_grader_code=True)
    method = {"type": "rft", "grader": GRADER, "samples_per_prompt": 2, "kl_beta": 0.01}
    return msgspec.structs.replace(job, method=method, hyper=hyper)


@pytest.mark.slow
def test_killed_at_any_step_it_ends_as_if_it_had_not_been(
    small: LocalJob, home: Path, nursery: Nursery
) -> None:
    """By rewards, and twice; the other kinds of training are killed in test_resume.py."""
    job = by_reward(small)
    whole = launch(job, home, nursery.start)
    assert finish(whole) == "succeeded", whole.log.read_text()
    assert any(grad_norm for _, _, grad_norm, *_ in curve(whole)), "no answer was better than another"
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    ends = [nursery.mortal(chance.randint(1, 9)), nursery.mortal(chance.randint(10, 15), again=True)]
    killed = launch(msgspec.structs.replace(job, ref="orc-b"), home, ends[0])
    for go_on in (ends[1], nursery.start):
        assert finish(killed) == "interrupted", f"seed {seed}"
        with (killed.path / "metrics.jsonl").open("ab") as torn:
            torn.write(b'{"step": 99, "va')
        assert resume(killed, go_on)
    assert finish(killed) == "succeeded", killed.log.read_text()
    assert curve(killed) == curve(whole), f"seed {seed}"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (killed.path / "adapter" / name).read_bytes() == (
            whole.path / "adapter" / name
        ).read_bytes(), f"seed {seed}"
    assert killed.state().attempt == 3
    assert killed.state().trained_tokens == whole.state().trained_tokens
    assert [e.type for e in killed.events()].count("interrupted") == 2


@pytest.mark.slow
def test_a_pause_that_is_taken_back_while_it_is_done_is_none(job: LocalJob, home: Path) -> None:
    """As `resume` does it: what it finds is a job that still runs, and that goes on."""
    short = msgspec.structs.replace(job.hyper, epochs=2, evals=1)
    run, _ = RunDir.make(home, msgspec.structs.replace(job, hyper=short))

    def take_back() -> None:
        wait(lambda: len(run.metrics()) >= 2)
        with run.steering():
            run.ask("pause")
            seen = 0
            while seen != len(run.metrics()):  # until the worker has stopped for it
                seen = len(run.metrics())
                time.sleep(0.3)
            run.ask(None)
            assert run.state().status == "running"

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(take_back)
        work(run)
        done.result()
    assert run.state().status == "succeeded"
    assert [p.step for p in run.metrics()] == list(range(1, 11))
    assert not [e for e in run.events() if e.type == "paused"]


@pytest.mark.slow
def test_a_run_is_resumed_in_the_moment_in_which_it_says_paused(
    job: LocalJob, home: Path, nursery: Nursery
) -> None:
    run = launch(job, home, nursery.start)
    for steps, go_on in ((2, nursery.again), (6, nursery.start)):
        wait(lambda steps=steps: len(run.metrics()) >= steps)
        run.ask("pause")
        wait(lambda: run.state().status == "paused")
        assert run.alive() and resume(run, go_on)
        assert run.state().status == "queued"
    assert finish(run) == "succeeded"
    assert [p.step for p in run.metrics()] == list(range(1, 21))


@pytest.mark.slow
def test_two_launches_of_one_ref_are_one_run_and_pause_resume_cancel_act(
    job: LocalJob, home: Path, nursery: Nursery
) -> None:
    job = msgspec.structs.replace(job, hyper=msgspec.structs.replace(job.hyper, epochs=100, evals=1))
    with ThreadPoolExecutor(4) as pool:
        started = list(pool.map(lambda _: launch(job, home, nursery.start), range(4)))
    run = started[0]
    assert {r.path for r in started} == {home / "orc-a"}
    wait(lambda: len(run.metrics()) >= 2)
    assert [e.type for e in run.events()].count("started") == 1
    launch(job, home, nursery.start)
    run.ask("pause")
    wait(lambda: not run.alive())
    assert run.state().status == "paused"
    steps = [p.step for p in run.metrics()]
    assert steps == list(range(1, len(steps) + 1)) and run.state().step == len(steps)
    assert resume(run, nursery.again)
    wait(lambda: len(run.metrics()) > len(steps))
    run.ask("cancel")
    wait(lambda: not run.alive())
    assert run.state().status == "cancelled" and run.state().step == len(run.metrics())
    assert not resume(run)
    assert [p.step for p in run.metrics()] == list(range(1, len(run.metrics()) + 1))


MAKE_AND_DIE = """
import os, sys
from pathlib import Path
from orchestrate.local import LocalJob, RunDir
RunDir.make(Path(sys.argv[1]), LocalJob.from_json(sys.argv[2]))
os.kill(os.getpid(), 9)
"""


def test_a_submit_killed_before_its_worker_began_is_picked_up(job: LocalJob, tmp_path: Path) -> None:
    provider = LocalProvider(HostConfig(name="local", options={"home": str(tmp_path / "home"), "threads": 1}))
    runs = provider.home / "runs"
    died = subprocess.run(
        [sys.executable, "-c", MAKE_AND_DIE, str(runs), job.to_json().decode()], check=False
    )
    assert died.returncode == -signal.SIGKILL
    [handle] = provider.find(job.ref)
    # A worker may be on its way.
    assert provider.get(handle).status is JobStatus.QUEUED and not provider.recover(handle)

    run = RunDir(runs / job.ref)
    long_ago = run.written_state().updated_at - timedelta(seconds=STARTING_S)
    run.write_state(msgspec.structs.replace(run.written_state(), updated_at=long_ago))
    lost = provider.get(handle)
    assert lost.status is JobStatus.PAUSED and lost.error is not None and "before" in lost.error.message
    try:
        assert provider.recover(handle) and not provider.recover(handle)
        wait(lambda: run.written_state().status != "queued")
        assert provider.get(handle).raw_status == "preparing"
    finally:
        kill(run)


@pytest.mark.slow
def test_the_worker_outlives_the_command_and_its_terminal(job: LocalJob, home: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from orchestrate.local import LocalJob, launch\n"
        "launch(LocalJob.from_json(sys.argv[1]), Path(sys.argv[2])); import os, signal\n"
        "os.killpg(0, signal.SIGKILL)"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", code, job.to_json().decode(), str(home)], start_new_session=True
    )
    assert command.wait() == -signal.SIGKILL
    run = RunDir(home / job.ref)
    wait(lambda: len(run.metrics()) >= 1)
    assert run.alive()
    kill(run)


def test_garbage_in_the_run_directory_ends_in_a_clear_failure(job: LocalJob, home: Path) -> None:
    nowhere = msgspec.structs.replace(job, ref="no-model", model=str(home / "nowhere"))
    missing, _ = RunDir.make(home, nowhere)
    gone, _ = RunDir.make(home, msgspec.structs.replace(job, ref="no-data", train=str(home / "gone.jsonl")))
    run, _ = RunDir.make(home, msgspec.structs.replace(job, ref="garbage"))
    (run.path / "job.json").write_text("{}")
    assert work(run) == work(missing) == work(gone) == 0
    for failed, reason in (
        (run, "job.json"),
        (missing, "no model folder"),
        (gone, "gone.jsonl no longer exists"),
    ):
        assert finish(failed) == "failed"
        error = failed.state().error
        assert error is not None and reason in error.message, error
        assert failed.events()[-1].level == "error"


@pytest.mark.slow
def test_a_full_disk_costs_checkpoints_and_not_the_run(job: LocalJob, home: Path) -> None:
    """Files above 600 kB cannot be written: the state of a checkpoint, but not the adapter."""
    run, _ = RunDir.make(
        home, msgspec.structs.replace(job, hyper=msgspec.structs.replace(job.hyper, epochs=1))
    )

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, before[1]))
    try:
        assert work(run) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert run.state().status == "succeeded", run.state().error
    assert not list(run.checkpoints.iterdir())
    warnings = [e for e in run.events() if e.level == "warning"]
    assert warnings and all("disk is full" in e.message for e in warnings)
    assert (run.path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_the_backend_from_submit_to_answer(files: tuple[Path, Path], tmp_path: Path) -> None:
    config = HostConfig(name="local", options={"home": str(tmp_path / "home"), "threads": 1})
    provider = LocalProvider(config)
    spec = JobSpec.parse(
        {
            "model": str(TINY),
            "train": str(files[0]),
            "validation": str(files[1]),
            "epochs": 2,
            "batch_size": 8,
            "learning_rate": 2e-3,
            "adapter": "qlora",
            "provider_options": {"local": {"recovery_seconds": 0}},
        }
    )
    data = TrainingData.open(spec.train, spec.validation)
    assert provider.check(spec, data, provider.translate(spec)) == []
    quote = provider.quote(spec, data, provider.translate(spec), built_in())
    assert quote.unavailable is None and quote.low_usd <= quote.expected_usd <= quote.high_usd
    remote = upload(provider, spec, data)
    handle = create(provider, spec, remote, "orc-1")
    assert create(provider, spec, remote, "orc-1") == handle
    assert provider.find("orc-1") == [handle] and provider.find("orc-2") == []
    run = RunDir(provider.home / "runs" / "orc-1")
    assert run.job().paces == str(throughput.file_of(provider.home)), "what later quotes are fitted to"
    wait(lambda: len(run.metrics()) >= 3)
    kill(run)
    dead = provider.get(handle)
    assert dead.status is JobStatus.PAUSED and dead.raw_status == "interrupted" and dead.error is not None
    assert provider.recover(handle)
    wait(lambda: provider.get(handle).status.terminal)
    done = provider.get(handle)
    assert done.status is JobStatus.SUCCEEDED, done.error
    assert (done.step, done.total_steps, done.percent) == (10, 10, 100)
    assert not provider.recover(handle)
    assert [j.handle for j in provider.list()] == [handle]
    events = list(provider.events(handle))
    assert list(provider.events(handle, after=events[2].id)) == events[3:]
    assert [c.step for c in provider.checkpoints(handle)] == [5, 10]
    artifact = provider.download(handle, tmp_path / "out")
    half = provider.download(handle, tmp_path / "half", checkpoint="step-00000005")
    assert {f.path for f in artifact.files} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "passport.json",
    }
    assert half.kind == artifact.kind == "adapter"
    assert artifact.base_model == str(TINY)
    question = [[Message(role="user", content="Say it backwards: red green")]] * 3
    tuned = provider.generate(handle, question, max_tokens=20)
    base = provider.generate(handle, question, base=True, max_tokens=20)
    assert len({r.content for r in tuned}) == len({r.content for r in base}) == 1
    assert tuned[0].prompt_tokens == base[0].prompt_tokens
    assert provider.generate(handle, question[:1], max_tokens=20) == tuned[:1]
    provider.close()
    provider.cancel(handle)
    assert provider.get(handle).status is JobStatus.SUCCEEDED
    provider.delete(handle)
    provider.delete(JobHandle(provider="local", job_id="orc-1"))
    assert provider.find("orc-1") == []
