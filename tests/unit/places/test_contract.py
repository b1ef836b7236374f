"""What every place away from here keeps, over stand-ins of their hosts that their own clients speak to. The
worker is our own, with an engine that treats its run directory as the real one does and trains nothing.

`local`, the processes of this machine, is not among them: it has no request that could be lost, no list of a
host, no price, and no depot, as the run directory is the worker's own."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.sending import create, upload
from tests.unit.places.engine import SPEED
from tests.unit.places.worlds import WORLDS, World

from orchestrate.costing import built_in
from orchestrate.data import TrainingData
from orchestrate.errors import HostUnavailable, InvalidRequest, OutcomeUnknown, OverBudget
from orchestrate.local.plan import throughput
from orchestrate.local.run import RunDir
from orchestrate.places.base import PRICE, Hourly, Resources
from orchestrate.places.manifest import read_manifest
from orchestrate.places.remote import TrainingAttempt
from orchestrate.places.storage import RunStorage
from orchestrate.providers.local.away import AwayProvider
from orchestrate.runs.preparing.prepared import _kept_private
from orchestrate.runs.spending import Spender
from orchestrate.runs.spending.orphans import OrphanReport, Orphans
from orchestrate.runs.submitting.repeats import Submission
from orchestrate.runs.submitting.submit import Submitter
from orchestrate.spec import Full, JobSpec
from orchestrate.store.store import Store
from orchestrate.types import BilledResource, JobHandle, JobStatus, Run, SubmitPhase, TokensFrom

REF = "orc-0123456789ab"
ENGINE = str(Path(__file__).parent / "engine.py")
FAULTS = ["lost", "500 after", "lost before", "500 before"]


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    (tmp_path / "there").mkdir()
    with WORLDS[request.param](tmp_path / "there") as found:
        yield found


@pytest.fixture
def found(world: World, tmp_path: Path) -> Iterator[AwayProvider]:
    provider = world.provider(tmp_path)
    yield provider
    provider.place.close()


@pytest.fixture
def spec(rows: Path) -> JobSpec:
    return JobSpec.parse({"model": "qwen3-8b", "train": str(rows), "epochs": 1})


def on(world: World, spec: JobSpec, **options: Any) -> JobSpec:
    given = {world.kind: {"gpu": world.gpu, **options}}
    return JobSpec.parse({**spec.model_dump(exclude_unset=True), "provider_options": given})


def submit(found: AwayProvider, asked: JobSpec, ref: str = REF) -> Any:
    data = TrainingData.open(asked.train)  # type: ignore[arg-type]
    return create(found, asked, upload(found, asked, data), ref)


def work(tmp_path: Path, name: str, *, die_at: int = 0, hold_at: int = 0) -> int:
    """What the job would do over there; its exit code."""
    folder = tmp_path / name
    folder.mkdir()
    engine = [sys.executable, ENGINE, str(die_at), str(hold_at)]
    errand = TrainingAttempt(
        RunStorage(f"file://{tmp_path}/depot"),
        REF,
        folder,
        engine=engine,
        report_s=0.05,
        end=lambda code: None,
    )
    return errand.work()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_lost_answer_makes_no_second_job(
    fault: str,
    world: World,
    found: AwayProvider,
    spec: JobSpec,
    record_property: Callable[[str, Any], None],
) -> None:
    """The job is found by its ref, or, where none was made, sent again."""
    asked = on(world, spec)
    world.fault(fault)
    settled = world.settles and not fault.endswith("before")
    with nullcontext() if settled else pytest.raises(OutcomeUnknown):
        submit(found, asked)
    assert len(found.find(REF)) == (0 if fault.endswith("before") else 1)
    for _ in range(3):
        assert submit(found, asked).job_id == REF
    jobs = len(world.jobs())
    counted = {"runs": 1, "jobs": jobs, "alarms": 0, "lost": int(not jobs), "doubled": max(0, jobs - 1)}
    record_property("jobs", {"fault": f"a place: {fault}", "where": world.name, **counted})
    assert world.jobs() == [(REF, True)]


def test_a_key_finds_its_job_after_the_store_and_the_home_were_lost(
    world: World, found: AwayProvider, spec: JobSpec, tmp_path: Path
) -> None:
    asked = on(world, spec)
    submission = Submission(
        spec=asked,
        translation=found.translate(asked),
        data=TrainingData.open(asked.train),  # type: ignore[arg-type]
        idempotency_key="nightly-7",
    )
    runs: list[Run] = []
    for name in ("first", "second"):
        with Store.open(f"sqlite:///{tmp_path}/{name}/runs.sqlite3") as store:
            runs.append(Submitter(store, found).submit(submission))
        shutil.rmtree(found.home)
    assert runs[0].job_id == runs[1].job_id == runs[0].ref
    assert world.jobs() == [(runs[0].ref, True)]


def test_a_second_try_is_the_same_job_in_a_store_that_was_restored_since(
    world: World, found: AwayProvider, spec: JobSpec, tmp_path: Path
) -> None:
    """The first one found no depot, and left its run directory here."""
    asked = on(world, spec)
    submission = Submission(
        spec=asked,
        translation=found.translate(asked),
        data=TrainingData.open(asked.train),  # type: ignore[arg-type]
        idempotency_key="queue-q-1",
        patient=True,
    )
    (tmp_path / "depot").write_text("no folder")
    runs: list[Run] = []
    with Store.open(f"sqlite:///{tmp_path}/first/runs.sqlite3") as store:
        with pytest.raises(HostUnavailable):
            Submitter(store, found).submit(submission)
        assert [run.phase for run in store.runs.matching()] == [SubmitPhase.UPLOADED] and not world.jobs()
        (tmp_path / "depot").unlink()
        runs.append(Submitter(store, found).submit(submission))
    with Store.open(f"sqlite:///{tmp_path}/second/runs.sqlite3") as store:
        runs.append(Submitter(store, found).submit(submission))
    assert runs[0].job_id == runs[1].job_id == runs[0].ref
    assert world.jobs() == [(runs[0].ref, True)]


@pytest.mark.slow
def test_the_way_of_a_run(world: World, found: AwayProvider, spec: JobSpec, tmp_path: Path) -> None:
    """It waits, runs, dies, goes on as another job, ends; each step is told once, and both jobs are paid."""
    handle = submit(found, on(world, spec))
    assert found.get(handle).status is JobStatus.QUEUED and not found.recover(handle)
    world.run()
    assert work(tmp_path, "first", die_at=5) == 1
    world.end("the machine died")
    job = found.get(handle)
    assert job.status is JobStatus.PAUSED and job.step == 5
    assert found.recover(handle) and not found.recover(handle)
    assert world.jobs() == [(REF, False), (REF, True)]
    world.run()
    assert work(tmp_path, "second") == 0
    world.end("it has ended")
    job = found.get(handle)
    assert job.status is JobStatus.SUCCEEDED and job.step == 10
    assert [point.step for point in found.metrics(handle)] == list(range(1, 11))
    told = [event.message for event in found.events(handle)]
    assert "attempt 2 begins after step 4" in told
    found.download(handle, tmp_path / "tuned")
    assert (tmp_path / "tuned" / "adapter_model.safetensors").read_bytes() == b"the weights of the end"
    assert job.payload["used_seconds"] == pytest.approx(120, abs=1)
    assert world.minute_usd is not None and job.cost_usd is not None
    assert float(job.cost_usd) == pytest.approx(float(2 * world.minute_usd), rel=0.02) and job.cost_origin


def test_a_run_whose_tokens_are_not_counted_is_checked_without_its_time(
    world: World, found: AwayProvider, spec: JobSpec
) -> None:
    short = on(world, spec, max_hours=0.0001)
    counted = TrainingData.open(short.train)  # type: ignore[arg-type]
    data = TrainingData(replace(counted.train, tokens_from=TokensFrom.NONE))
    codes = {one.code for one in found.check(short, counted, found.translate(short))}
    told = {one.code for one in found.check(short, data, found.translate(short))}
    assert codes - told == {"longer-than-its-limits"}


@pytest.mark.slow
def test_what_a_run_measured_there_is_what_the_next_quote_is_made_of(
    world: World, found: AwayProvider, spec: JobSpec, tmp_path: Path
) -> None:
    """Of the machine that was asked for, and once, however many look."""
    asked, rates = on(world, spec), built_in()
    data = TrainingData.open(asked.train)  # type: ignore[arg-type]

    def quoted() -> tuple[str, float]:
        quote = found.quote(asked, data, found.translate(asked), rates)
        [told] = [line for line in quote.assumptions if "tokens per second" in line]
        speed = re.search(r"at ([\d,]+) tokens per second", told)
        assert speed is not None, told
        return told, float(speed[1].replace(",", ""))

    def checked() -> str:
        short = on(world, spec, max_hours=0.0001)
        problems = found.check(short, data, found.translate(short))
        [told] = [one.message for one in problems if one.code == "longer-than-its-limits"]
        return told

    assert not [one for one in found.check(asked, data, found.translate(asked)) if "limit" in one.message]
    assert "estimated for" in checked() and "paused after 0.2s because of its time or cost limit" in checked()
    modelled, before = quoted()
    assert f"estimated for {world.gpu} (to measure the speed: train once on {world.name}" in modelled
    handle = submit(found, asked)
    world.run()
    assert work(tmp_path, "worker") == 0
    world.end("it has ended")
    for _ in range(2):
        assert found.get(handle).status is JobStatus.SUCCEEDED
        assert [job.handle for job in found.list()] == [handle]
    [pace] = throughput.read_pace(throughput.file_of(found.home))
    assert (pace.kind.device, pace.tokens / pace.seconds) == (world.gpu, SPEED)
    measured, after = quoted()
    fitted = f"fitted to 1 finished run on {world.name} ({world.gpu}) (most recent: {pace.at.date()})"
    assert fitted in measured
    assert "fitted to 1 finished run" in checked()
    assert SPEED < after < 1.5 * SPEED < before, "it is slower than such a GPU is expected to be"


@pytest.mark.slow
def test_why_a_worker_never_reported_is_told_and_it_is_not_paid_for_without_end(
    world: World, found: AwayProvider, spec: JobSpec
) -> None:
    handle = submit(found, on(world, spec))
    for _ in range(20):
        if world.jobs()[-1][1]:
            world.end("no such image")
        found.get(handle)
        found.recover(handle)
    assert len(world.jobs()) == 5
    assert found.get(handle).status is JobStatus.FAILED
    assert any("no such image" in event.message for event in found.events(handle))


def test_cancelled_before_it_began_it_is_ended_there_too(
    world: World, found: AwayProvider, spec: JobSpec
) -> None:
    handle = submit(found, on(world, spec))
    found.cancel(handle)
    assert world.jobs() == [(REF, False)]
    assert found.get(handle).status is JobStatus.CANCELLED and not found.recover(handle)


@pytest.mark.parametrize(("word", "status"), [("cancel", JobStatus.CANCELLED), ("pause", JobStatus.PAUSED)])
def test_a_worker_that_never_reported_is_ended_by_its_host(
    word: str, status: JobStatus, world: World, found: AwayProvider, spec: JobSpec
) -> None:
    """It hangs in its image, and reads no word. However often it was looked for: that is no sign of life."""
    handle = submit(found, on(world, spec))
    world.run()
    for _ in range(3):
        assert found.get(handle).status is JobStatus.QUEUED
    getattr(found, word)(handle)
    assert world.jobs() == [(REF, False)]
    for _ in range(2):
        assert found.get(handle).status is status and not found.recover(handle)
        getattr(found, word)(handle)
    assert world.jobs() == [(REF, False)]
    found.resume(handle)
    assert world.jobs()[1:] == ([(REF, True)] if word == "pause" else [])


def test_a_worker_that_reports_is_ended_by_its_host_too_and_left_to_pause_by_itself(
    world: World, found: AwayProvider, spec: JobSpec, tmp_path: Path
) -> None:
    handle = submit(found, on(world, spec))
    world.run()
    with ThreadPoolExecutor(1) as threads:
        working = threads.submit(work, tmp_path, "first", hold_at=5)
        while (found.get(handle).step or 0) < 4:
            time.sleep(0.05)
        found.pause(handle)
        assert world.jobs() == [(REF, True)], "it saves a checkpoint first"
        assert working.result() == 0
        world.end("it has paused")
        assert found.get(handle).status is JobStatus.PAUSED
        found.resume(handle)
        world.run()
        working = threads.submit(work, tmp_path, "second", hold_at=9)
        while (found.get(handle).step or 0) < 8:
            time.sleep(0.05)
        found.cancel(handle)
        assert [live for _, live in world.jobs()] == [False, False]
        assert working.result() == 0
    job = found.get(handle)
    assert (job.status, job.step) == (JobStatus.CANCELLED, 8) and found.metrics(handle)[-1].step == 8


def test_a_worker_that_somebody_ended_over_there_is_not_started_again(
    world: World, found: AwayProvider, spec: JobSpec
) -> None:
    """Who does that, as in the console of the host, wants no further bill."""
    handle = submit(found, on(world, spec))
    world.run()
    found.place.stop(REF)
    if not found.place.by_hand:  # of which the host does not tell
        return
    for _ in range(2):
        job = found.get(handle)
        assert job.status is JobStatus.PAUSED and "stopped its worker" in str(job.error)
        assert not found.recover(handle) and world.jobs() == [(REF, False)]
    assert len([event for event in found.events(handle) if event.type == "paused"]) == 1
    found.resume(handle)
    assert world.jobs() == [(REF, False), (REF, True)] and not found.recover(handle)
    assert found.get(handle).status is JobStatus.QUEUED and found.get(handle).error is None


def test_a_depot_that_is_closed_keeps_no_job_from_being_cancelled(
    world: World, found: AwayProvider, spec: JobSpec, tmp_path: Path
) -> None:
    """The word cannot reach its worker, which would go on, and bill."""
    handle = submit(found, on(world, spec))
    world.run()
    (tmp_path / "depot").rename(tmp_path / "away")
    (tmp_path / "depot").write_text("no folder")
    with pytest.raises(HostUnavailable, match=r"The worker at .* was stopped"):
        found.cancel(handle)
    assert world.jobs() == [(REF, False)]
    (tmp_path / "depot").unlink()
    (tmp_path / "away").rename(tmp_path / "depot")
    assert found.get(handle).status is JobStatus.CANCELLED and not found.recover(handle)
    assert len(world.jobs()) == 1


def test_the_worker_knows_the_limit_that_its_run_came_to_have(
    world: World, found: AwayProvider, spec: JobSpec, tmp_path: Path
) -> None:
    """A share of what the spec was planned with, as of one of several backends or of a trial."""
    asked = on(world, spec).model_copy(update={"max_cost_usd": Decimal(50)})
    data = TrainingData.open(asked.train)  # type: ignore[arg-type]
    share = asked.model_copy(update={"max_cost_usd": Decimal(3)})
    found.create(share, upload(found, asked, data), found.translate(asked), REF)
    assert read_manifest(RunStorage(f"file://{tmp_path}/depot").run(REF)).limits.max_usd == 3
    world.end("no such image")
    assert found.get(JobHandle(provider=found.name, job_id=REF)).status is JobStatus.PAUSED
    assert found.recover(JobHandle(provider=found.name, job_id=REF))
    assert read_manifest(RunStorage(f"file://{tmp_path}/depot").run(REF)).limits.max_usd == 3


def test_a_host_that_forgot_is_waited_for_until_no_worker_can_be_left(
    world: World, found: AwayProvider, spec: JobSpec
) -> None:
    handle = submit(found, on(world, spec))
    world.forget()
    run, before = RunDir(found.home / "runs" / REF), len(world.jobs())
    assert not found.place.lost(run) and not found.recover(handle)
    long_ago = time.time() - found.place.silence_s - 120
    os.utime(run.path / "worker.json", (long_ago, long_ago))
    assert found.get(handle).status is JobStatus.PAUSED
    assert found.recover(handle) and not found.recover(handle)
    assert len(world.jobs()) == before + 1


def test_all_that_is_at_work_is_listed_and_can_be_ended(
    world: World, found: AwayProvider, spec: JobSpec
) -> None:
    """Also what another store started, of which nothing is known here."""
    refs = [f"orc-00000000000{n}" for n in range(5)]
    for ref in refs:
        submit(found, on(world, spec), ref)
    assert {item.job_id for item in found.billing().items} == set(refs)
    assert [found.find(ref)[0].ref for ref in refs] == refs
    found.place.stop(refs[0])
    assert [ref for ref, live in world.jobs() if live] == refs[1:]
    found.place.stop(refs[0])
    assert {item.job_id for item in found.billing().items} == set(refs[1:])


def test_what_no_run_accounts_for_is_ended(
    world: World, found: AwayProvider, spec: JobSpec, tmp_path: Path
) -> None:
    """By two at once, and once more; not while a run here accounts for it, and whatever another host does."""
    submit(found, on(world, spec))
    world.run()
    at = datetime(2020, 1, 1, tzinfo=UTC)
    run = Run(
        id="run-1", ref=REF, provider=found.name, model="m", spec={}, spec_hash="0" * 64, host=found.host,
        dataset_digest="0" * 64, phase=SubmitPhase.SUBMITTED, status=JobStatus.RUNNING, job_id=REF,
        created_at=at, updated_at=at,
    )  # fmt: skip

    def provider(name: str) -> AwayProvider:
        if name == "unreachable":
            raise HostUnavailable(name, "it does not answer")
        return found

    def opened(name: str) -> Store:
        return Store.open(f"sqlite:///{tmp_path}/{name}.db")

    with opened("empty") as empty, opened("running") as running, opened("over") as over:
        running.runs.restore(run)
        over.runs.restore(msgspec.structs.replace(run, status=JobStatus.FAILED, finished_at=at))
        listed = [
            Orphans(store, provider).among(Spender(store, [found.name], provider, provider).report())
            for store in (empty, running, over)
        ]
        told = [[(one.item.job_id, one.reason) for one in report.orphans] for report in listed]
        assert told == [[(REF, "no run in this store has this ref")], [], [(REF, "its run has failed")]]
        [mine], [again] = listed[0].orphans, listed[2].orphans
        assert [one.outcome for one in Orphans(running, provider).end(listed[0]).orphans] == ["kept"]
        assert [ref for ref, live in world.jobs() if live] == [REF]
        dead = BilledResource(
            provider="unreachable", kind="deployment", id="orc-x", state="up", bills=True, job_id="orc-x"
        )
        foreign = [msgspec.structs.replace(mine.item, job_id="theirs"), dead]
        others = [msgspec.structs.replace(mine, item=item) for item in foreign]
        report = OrphanReport(at=at, orphans=(*others, again))
        with ThreadPoolExecutor(2) as threads:
            both = list(threads.map(lambda store: Orphans(store, provider).end(report), (empty, over)))
        for ended in (*both, Orphans(empty, provider).end(report)):
            assert [one.outcome for one in ended.orphans] == ["kept", "failed", "asked to end"]
        assert not [ref for ref, live in world.jobs() if live]


def test_a_cap_holds_before_the_start_and_after_it(
    world: World, found: AwayProvider, spec: JobSpec, tmp_path: Path
) -> None:
    """What an hour costs is read again once the machine is there: above the cap the worker ends itself."""
    assert world.minute_usd is not None
    price = world.minute_usd * 60
    cap = float(price) - 0.01
    with pytest.raises(OverBudget):
        submit(found, on(world, spec, max_usd_per_hour=cap), "orc-000000000000")
    assert not world.jobs()
    handle = submit(found, on(world, spec, max_usd_per_hour=float(price) + 0.01))
    world.run()
    dear = Hourly(usd_per_hour=price + 1, machine="m", source="s", as_of=found.get(handle).created_at)  # type: ignore[arg-type]
    RunStorage(f"file://{tmp_path}/depot").run(REF).write(PRICE, dear.to_json())
    assert work(tmp_path, "dear", hold_at=3) == 0
    world.end("exit 0")
    job = found.get(handle)
    assert (
        job.status is JobStatus.PAUSED
        and job.error is not None
        and "more than the limit" in job.error.message
    )
    assert not found.recover(handle) and len(world.jobs()) == 1


def test_a_limit_of_no_time_starts_no_machine(world: World, found: AwayProvider, spec: JobSpec) -> None:
    """In whole seconds it is 0, which `timeout` takes for no limit."""
    with pytest.raises(InvalidRequest, match="before a machine can train"):
        submit(found, on(world, spec, max_hours=0.0001))
    assert not world.jobs()


def test_a_private_run_and_a_spot_machine_are_refused_where_they_cannot_be(
    world: World, found: AwayProvider, spec: JobSpec
) -> None:
    own = spec.model_copy(update={"private": True})
    refused = _kept_private(found, own, found.translate(own)).refused
    if world.own:
        assert not refused
    else:
        [one] = refused
        assert one.name == "private" and f"ORCHESTRATE_OWN_HOSTS={world.name}" in str(one.rule)
    asked = found.translate(on(world, spec, spot=True))
    assert (not asked.refused) is world.spot


def test_a_refusal_is_certain(world: World, found: AwayProvider, spec: JobSpec) -> None:
    world.fault("refused")
    with pytest.raises(InvalidRequest):
        submit(found, on(world, spec))
    assert not world.jobs()


def test_several_gpus_of_one_machine(
    world: World, found: AwayProvider, spec: JobSpec, tmp_path: Path
) -> None:
    """A process for each: with the model on each where it fits, else with shares of it, and refused with both
    sums where it does not fit so either."""
    world.options = world.options.replace('"L40S"', '"H100:2"')
    found = world.provider(tmp_path)
    found.place.price(Resources(gpu=world.gpu, machine="a100-large"))
    two = {"hf-jobs": "H200:8"}.get(world.name, "H100:2")
    plan = found.translate(on(world, spec, gpu=two))
    assert not plan.refused, plan.refused
    count = int(two.partition(":")[2])
    assert plan.body["hyper"]["processes"] == count == plan.body["resources"]["count"]
    assert plan.body["hyper"]["sharded"] is False
    full = spec.model_copy(update={"adapter": Full(type="full"), "batch_size": 2, "max_seq_length": 512})
    medium = full.model_copy(update={"model": "qwen3-8b"})
    spread = found.translate(on(world, medium, gpu=two, gradient_checkpointing=True))
    # All weights of 8.2B take 131 GB: one H200 has them, an H100 does not. Without checkpointing, their
    # 16-bit copies of 15 GB are kept too: too much for one H200, and beside half of the weights for an H100.
    assert not spread.refused and spread.body["hyper"]["sharded"] is (world.name != "hf-jobs")
    kept = found.translate(on(world, medium, gpu=two))
    assert kept.body["hyper"]["sharded"] is True if world.name == "hf-jobs" else kept.refused
    assert spread.memory is not None and spread.memory.fits
    least = full.model_copy(update={"model": "llama-3.2-1b"})
    alone = found.translate(on(world, least, gpu=two, gradient_checkpointing=True))
    assert not alone.refused and alone.body["hyper"]["sharded"] is False
    assert alone.memory is not None and alone.memory.fits
    large = on(world, full.model_copy(update={"model": "llama-3.3-70b"}), gpu=two)
    [refused] = found.translate(large).refused
    assert "for a full copy" in str(refused.rule) and "for a shard" in str(refused.rule)
    found.place.close()
