"""An idempotency key after its store was lost, or an older copy of it restored: the job that stands at the
host is the run's, and none is made a second time. What is not that job is not touched."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from tests.faults.paper_host import Paper, PaperHost
from tests.faults.shop import Shop
from tests.faults.submitting import BACKENDS
from tests.faults.world import HOSTED

from orchestrate import Orchestrator
from orchestrate.errors import AlreadySubmitted, HostUnavailable, KeyTaken, OutcomeUnknown
from orchestrate.runs.submitting.repeats import Submission, SubmitRequest
from orchestrate.runs.submitting.submit import Submitter
from orchestrate.spec import JobSpec
from orchestrate.store.store import Store
from orchestrate.types import JobStatus, Run, SubmitPhase

SPEC = JobSpec(model="m", train="rows.jsonl")


class Other(Paper):
    digest = "e" * 64


def backed_up(shop: Shop) -> Callable[[], None]:
    """A backup of the store as it is now; gives what restores it."""
    path, copy = shop.settings.home / "runs.sqlite3", shop.folder / "backup.sqlite3"
    assert shop.ft.runs() == []  # which makes the store
    with sqlite3.connect(path) as source, sqlite3.connect(copy) as target:
        source.backup(target)
    source.close()
    target.close()

    def restore() -> None:
        shop.ft.close()
        for file in path.parent.glob("runs.sqlite3*"):
            file.unlink()
        path.write_bytes(copy.read_bytes())
        shop.ft = Orchestrator(shop.settings)
        assert shop.ft.runs() == []

    return restore


@pytest.mark.parametrize("name", BACKENDS)
def test_a_key_finds_its_job_at_the_host_after_a_backup_was_restored(
    shop: Shop, tally: Callable[..., None], name: str
) -> None:
    restore = backed_up(shop)
    first = shop.ft.submit(shop.spec, name, idempotency_key="nightly-7").record
    restore()
    moved = shop.folder / "elsewhere.jsonl"
    moved.write_bytes(shop.rows.read_bytes())
    again = shop.spec.model_copy(update={"train": str(moved), "tags": {"attempt": "2"}})
    run, same = (shop.ft.submit(again, name, idempotency_key="nightly-7") for _ in range(2))
    assert {(one.id, one.record.job_id) for one in (run, same)} == {(first.id, first.job_id)}
    [told] = [event.message for event in run.events() if event.type == "taken_over"]
    assert first.job_id is not None and first.job_id in told and "nothing was sent" in told
    assert run.record.spec["tags"] == {"attempt": "2"} and run.record.quote is not None
    if name in HOSTED:
        found = shop.count(name)
        tally("restored store: the same key", name, found)
        assert (shop.sent(), found) == (1, {"runs": 1, "jobs": 1, "lost": 0, "doubled": 0})
    else:
        run.cancel()
        assert [job.handle.job_id for job in shop.ft.provider(name).list()] == [first.job_id]


def test_the_command_says_that_the_job_stood_there(shop: Shop) -> None:
    asked, restore = ("together,openai", "--idempotency-key", "ci/42"), backed_up(shop)
    assert shop.command(*asked).exit_code == 0
    restore()
    again = shop.command(*asked)
    told = " ".join(again.output.split())  # its lines are as wide as a terminal
    assert again.exit_code == 0 and told.count("; the run already existed with this key (") == 2
    assert " ".join(shop.command(*asked).output.split()).count("; created earlier with this key (") == 2
    assert (shop.sent(), len(shop.ft.runs())) == (2, 2)


def test_a_run_that_recover_made_is_the_keys(shop: Shop) -> None:
    restore = backed_up(shop)
    shop.spec = shop.spec.model_copy(update={"tags": {"team": "search"}})
    first = shop.ft.submit(shop.spec, "openai", idempotency_key="nightly-8")
    restore()
    assert shop.type("recover", "--all", "-p", "openai").exit_code == 0
    for _ in range(2):
        run = shop.ft.submit(shop.spec, "openai", idempotency_key="nightly-8").record
        assert (run.id, run.idempotency_key, run.spec["epochs"]) == (first.id, "nightly-8", 1)
        assert run.tags["team"] == "search" and "recovered" in run.tags
    assert shop.sent() == 1
    with pytest.raises(KeyTaken, match=f"run {first.id}.*epochs"):
        shop.ft.submit(shop.spec.model_copy(update={"epochs": 2}), "openai", idempotency_key="nightly-8")


@pytest.mark.parametrize("name", HOSTED)
def test_the_same_without_a_key_is_refused_once_its_job_was_recovered(shop: Shop, name: str) -> None:
    """Its host tells neither all its settings nor its rows, so that the two cannot be told apart."""
    restore = backed_up(shop)
    first = shop.ft.submit(shop.spec, name)
    restore()
    assert shop.type("recover", "--all", "-p", name).exit_code == 0
    found = {run.id for run in shop.ft.runs(sandbox=True)}  # jobs of other tests at this host too
    assert first.id in found
    for _ in range(2):
        with pytest.raises(AlreadySubmitted) as raised:
            shop.ft.submit(shop.spec, name)
        assert raised.value.run_id in found
    assert isinstance(shop.command(name).exception, AlreadySubmitted) and shop.sent() == 1
    assert shop.ft.submit(shop.spec, name, idempotency_key="another-one").id != first.id
    assert shop.command(name, "--again").exit_code == 0 and shop.sent() == 3


def test_what_only_carries_the_mark_is_not_taken(shop: Shop) -> None:
    """Whoever can make jobs can write any metadata: a job that was copied by hand, with another model."""
    prepared, provider = shop.ft.prepare(shop.spec, "openai"), shop.ft.provider("openai")
    ref = SubmitRequest(prepared.offer("openai").spec, prepared.data.digest, provider, "nightly-9").ref
    env = shop.hosts.env
    with OpenAI(base_url=env["OPENAI_BASE_URL"], api_key=env["OPENAI_API_KEY"], max_retries=0) as client:
        file = client.files.create(file=("t.jsonl", shop.rows.read_bytes()), purpose="fine-tune")
        given: Any = {"training_file": file.id, "metadata": {"orchestrate_ref": ref}}
        method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}}
        job = client.fine_tuning.jobs.create(model="gpt-4o-mini-2024-07-18", method=method, **given)
        with pytest.raises(KeyTaken, match=rf"already used for job {job.id} .*model .*4o-mini.*epochs \(3"):
            shop.ft.submit(shop.spec, "openai", idempotency_key="nightly-9")
        client.fine_tuning.jobs.cancel(job.id)
    assert (shop.sent(), shop.ft.runs()) == (1, []), "the one that was made by hand"


# -- on one host and many stores ---------------------------------------------------------------------------


def submit(
    store: Store, host: PaperHost, key: str | None, spec: JobSpec = SPEC, data: Any = None, **more: Any
) -> Run:
    translation = host.translate(spec)
    asked = Submission(spec=spec, translation=translation, data=data or Paper(), idempotency_key=key)  # type: ignore[arg-type]
    return Submitter(store, host, **more).submit(asked)


def test_colleagues_with_one_key_for_other_things_have_jobs_of_their_own(
    store: Store, host: PaperHost, tmp_path: Path
) -> None:
    first = submit(store, host, "1")
    with Store.open(f"sqlite:///{tmp_path}/colleague/runs.sqlite3") as theirs:
        second = submit(theirs, host, "1", SPEC.model_copy(update={"epochs": 2}))
        assert len({first.job_id, second.job_id}) == 2
    with Store.open(f"sqlite:///{tmp_path}/third/runs.sqlite3") as theirs:
        third = submit(theirs, host, "1", data=Other())
        assert len({first.job_id, second.job_id, third.job_id}) == 3
    with Store.open(f"sqlite:///{tmp_path}/fourth/runs.sqlite3") as theirs:
        assert submit(theirs, host, "2").job_id not in {first.job_id, second.job_id, third.job_id}
        assert submit(theirs, host, "1").job_id == first.job_id, "the same of all: it cannot be told apart"
    assert len({job["ref"] for job in host.jobs()}) == 4


@pytest.mark.slow
def test_another_account_and_another_host_have_jobs_of_their_own(store: Store, tmp_path: Path) -> None:
    hosts = [
        PaperHost(tmp_path / place, timeout_s=0.1, owner=owner)
        for place, owner in (("host", "a"), ("host", "b"), ("elsewhere", "a"))
    ]
    runs = [submit(store, hosts[0], "1")]
    for number, host in enumerate(hosts[1:]):
        with pytest.raises(KeyTaken):
            submit(store, host, "1")
        with Store.open(f"sqlite:///{tmp_path}/{number}/runs.sqlite3") as theirs:
            runs.append(submit(theirs, host, "1"))
    assert len({run.job_id for run in runs}) == 3 and runs[2].ref != runs[0].ref


def test_a_key_costs_one_look_and_no_key_none(store: Store, host: PaperHost) -> None:
    submit(store, host, "1")
    assert host.requests == ["find", "upload", "create"]
    submit(store, host, "1")
    submit(store, host, None)
    submit(store, host, None)
    assert host.requests == ["find", "upload", "create", "create", "create"]
    assert len({run.ref for run in store.runs.matching()}) == 3


def test_a_host_that_cannot_be_asked_is_not_guessed_about(store: Store, host: PaperHost) -> None:
    host.faults["down"] = True
    with pytest.raises(HostUnavailable, match="key nightly-7 may already exist, so nothing was sent"):
        submit(store, host, "nightly-7")
    assert (host.requests, store.runs.matching()) == (["find"], [])
    host.faults.clear()
    assert submit(store, host, "nightly-7").phase is SubmitPhase.SUBMITTED


def test_a_job_that_has_ended_is_the_keys_run_as_it_ended(
    store: Store, host: PaperHost, tmp_path: Path
) -> None:
    first = submit(store, host, "1")
    host.set(str(first.job_id), state="broken")
    with Store.open(f"sqlite:///{tmp_path}/restored/runs.sqlite3") as restored:
        run = submit(restored, host, "1")
        assert (run.job_id, run.status) == (first.job_id, JobStatus.FAILED)
        assert submit(restored, host, "1-again").job_id != first.job_id


def test_an_answer_that_was_lost_and_its_store_too(store: Store, host: PaperHost, tmp_path: Path) -> None:
    host.faults |= {"lost": True, "down": False, "lag_s": 3600.0}
    with pytest.raises(OutcomeUnknown):
        submit(store, host, "1")
    host.faults.clear()
    host.show()
    with Store.open(f"sqlite:///{tmp_path}/restored/runs.sqlite3") as restored:
        run = submit(restored, host, "1")
    assert [job["id"] for job in host.jobs()] == [run.job_id]


def test_two_jobs_of_one_key_are_an_alarm(store: Store, host: PaperHost, tmp_path: Path) -> None:
    """Two stores that asked in the same moment, at a host that takes any create."""
    first = submit(store, host, "1")
    host.add(first.ref)
    with Store.open(f"sqlite:///{tmp_path}/restored/runs.sqlite3") as restored:
        run = submit(restored, host, "1")
        [alarm] = restored.history.alarms(run.id)
        assert len(alarm.data["others"]) == 1
