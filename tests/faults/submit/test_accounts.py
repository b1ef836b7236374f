"""Runs of another account: nothing is asked, changed or concluded there. Jobs lost: 0, jobs doubled: 0."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.faults.paper_host import Paper, PaperHost
from tests.faults.submitting import Killed, dies_at, spec_for, submit
from tests.faults.world import CREATE, HOSTED, SETTLED, UNHURRIED, World

from orchestrate.api.orchestrator import Orchestrator
from orchestrate.api.run import RunHandle
from orchestrate.errors import NotFound, OtherAccount, OutcomeUnknown
from orchestrate.providers import registry
from orchestrate.providers.base import Provider
from orchestrate.runs.submitting import accounts
from orchestrate.runs.submitting.submit import Submitter, cancel, settle
from orchestrate.runs.syncing.sweep import refresh, sync
from orchestrate.settings import config
from orchestrate.spec import JobSpec
from orchestrate.store.store import Store, Timing
from orchestrate.types import JobStatus, Run, SubmitPhase

SPEC = JobSpec(model="m", train="rows.jsonl")
QUICK = Timing(send_limit_s=0.0, requests=0, margin_s=0.0, lease_s=5.0, patience_s=1.0)
DATA: Any = Paper()


Hosts = Callable[..., PaperHost]


@pytest.fixture(params=["the host tells", "by the key"])
def paper(request: pytest.FixtureRequest, tmp_path: Path) -> Hosts:
    """A backend of an account; `key` names another key of it."""

    def make(owner: str, key: str = "1", **faults: Any) -> PaperHost:
        fingerprint = "" if request.param == "the host tells" else f"{owner}{key}"
        return PaperHost(tmp_path / "host", owner=owner, key=fingerprint, timeout_s=0.1, **faults)

    return make


def lost(store: Store, host: PaperHost) -> Run:
    """A run whose job was made, its answer lost, and the process gone."""
    host.faults |= {"lost": True, "down": True}
    with pytest.raises(OutcomeUnknown):
        submit(store, host, SPEC, DATA)
    host.faults.clear()
    return store.runs.get("last")


def test_absence_in_another_account_proves_nothing(store: Store, paper: Hosts) -> None:
    first, second = paper("first"), paper("second")
    run = lost(store, first)
    report = sync(store, lambda _: second, timing=QUICK)
    assert (report.elsewhere, report.not_made, report.failures) == ([run.id], [], [])
    with pytest.raises(OtherAccount, match=r"first") as caught:
        settle(store, second, run, timing=QUICK)
    assert caught.value.exit_code == 3
    assert store.runs.get(run.id).phase is SubmitPhase.OUTCOME_UNKNOWN
    assert sync(store, lambda _: first, timing=QUICK).adopted == [run.id]
    assert first.posts() == 1


def test_a_job_of_another_account_is_left_alone(store: Store, paper: Hosts) -> None:
    first, second = paper("first"), paper("second")
    run = submit(store, first, SPEC, DATA)
    for act in (cancel, refresh, accounts.require):
        with pytest.raises(OtherAccount, match=r"first"):
            act(store, second, run)
    sync(store, lambda _: second, timing=QUICK)
    assert store.runs.get(run.id).status is JobStatus.SUBMITTING
    cancel(store, first, run)
    assert first.jobs()[0]["state"] == "stopped"


def test_an_unsent_run_is_not_sent_from_another_account(store: Store, paper: Hosts) -> None:
    run = stopped(store, paper("first"), "after-uploaded")
    second = paper("second")
    with pytest.raises(OtherAccount) as caught:
        Submitter(store, second, QUICK).resume(run, DATA)
    assert (second.requests.count("create"), f"cancel {run.id}" in str(caught.value.fix)) == (0, True)
    made = Submitter(store, paper("first")).resume(run, DATA)
    assert made.phase is SubmitPhase.SUBMITTED


def stopped(store: Store, host: PaperHost, at: str) -> Run:
    with contextlib.suppress(Killed):
        submit(store, host, SPEC, DATA, reached=dies_at(at))
    return store.runs.get("last")


def test_a_new_key_of_the_same_account_goes_on_once_it_is_shown_something_known(
    store: Store, tmp_path: Path
) -> None:
    def key(word: str) -> PaperHost:
        return PaperHost(tmp_path / "host", owner="one", key=word, timeout_s=0.1)

    run = submit(store, key("old"), SPEC, DATA)
    unmade = stopped(store, key("old"), "after-fence")
    assert cancel(store, key("new"), run).status is JobStatus.CANCELLING, "it was shown the job"
    report = sync(store, lambda _: key("new"), timing=QUICK)
    assert (report.not_made, report.elsewhere) == ([unmade.id], []), "what one job proved holds for all runs"
    assert accounts.account_of(store, key("new")) == accounts.account_of(store, key("old")) == "key old"


def test_an_uploaded_file_proves_the_account_too(store: Store, tmp_path: Path) -> None:
    host = PaperHost(tmp_path / "host", owner="one", key="old", timeout_s=0.1)
    run = stopped(store, host, "after-fence")
    new = PaperHost(tmp_path / "host", owner="one", key="new", timeout_s=0.1)
    assert settle(store, new, run, timing=QUICK).phase is SubmitPhase.UPLOADED
    for file in (tmp_path / "host").glob("upload-*"):
        file.unlink()
    again = stopped(store, new, "after-fence")
    third = PaperHost(tmp_path / "host", owner="one", key="third", timeout_s=0.1)
    with pytest.raises(OtherAccount):
        settle(store, third, again, timing=QUICK)  # it may be another account's: nothing known is there


def test_a_key_without_the_right_to_see_a_run_stops_nothing(store: Store, tmp_path: Path) -> None:
    def key(word: str, **faults: Any) -> PaperHost:
        return PaperHost(tmp_path / "host", owner="one", key=word, timeout_s=0.1, **faults)

    made = submit(store, key("old"), SPEC, DATA)
    unmade = stopped(store, key("old"), "after-fence")
    narrow = key("narrow", forbidden=True)
    narrow.list = lambda **_: iter(())  # type: ignore[method-assign]
    report = sync(store, lambda _: narrow, timing=QUICK)
    assert (sorted(report.elsewhere), report.failures) == (sorted([made.id, unmade.id]), [])
    assert report.gone == [], "what a key may not see was not deleted"
    assert "not visible to this key" in str(report)
    for act in (refresh, cancel, settle):
        run = unmade if act is settle else made
        with pytest.raises(OtherAccount, match="not permitted to see"):
            act(store, narrow, run)
    absent = key("absent")
    absent.holds = lambda _: False  # type: ignore[method-assign]
    absent.list = lambda **_: iter(())  # type: ignore[method-assign]
    absent.get = lambda job: (_ for _ in ()).throw(NotFound("paper", "no job", status=404))  # type: ignore[method-assign]
    assert sync(store, lambda _: absent, timing=QUICK).gone == [], "it may be of another account"


def test_accounts_that_are_told_are_never_taken_for_one(store: Store, tmp_path: Path) -> None:
    def of(owner: str, key: str = "") -> PaperHost:
        return PaperHost(tmp_path / "host", owner=owner, key=key, timeout_s=0.1)

    run = submit(store, of("one", "k"), SPEC, DATA)
    assert refresh(store, of("one"), run).account == "key k"  # the host began to tell: the job is there
    moved = of("two")
    moved.add(run.ref, id=run.job_id)
    with pytest.raises(OtherAccount):
        refresh(store, moved, run)


def test_data_are_uploaded_for_each_account(store: Store, paper: Hosts) -> None:
    first, second = paper("first"), paper("second")
    for host in (first, second, first):
        submit(store, host, SPEC, DATA)
    assert [host.requests.count("upload") for host in (first, second)] == [1, 1]


# -- every backend, against a sandbox ------------------------------------------------------------------------


def provider_of(world: World, name: str, key: str, **more: str) -> Provider:
    """Another key at the same hosts; without an account id, which is then the key's own."""
    env = {k: v for k, v in world.env.items() if not k.endswith(("_ACCOUNT_ID", "_PROJECT_ID"))}
    env |= {f"{name.upper()}_API_KEY": key, "ORCHESTRATE_KEYS": str(world.home / "none"), **more}
    return registry.make(name, config.load(env=env, cwd=world.home, home=world.home))


@pytest.fixture(params=[True, False], ids=["told", "by the key"])
def tells(request: pytest.FixtureRequest, hosts: Any) -> Iterator[bool]:
    settings = hosts.fronts["openai"].host.settings
    settings.reports_account = request.param
    yield request.param
    settings.reports_account = True


@pytest.mark.parametrize(
    "name", ["openai", *(pytest.param(name, marks=pytest.mark.slow) for name in HOSTED if name != "openai")]
)
def test_a_key_that_was_switched_loses_and_doubles_nothing(
    world: World, hosts: Any, tally: Callable[..., None], name: str, tells: bool
) -> None:
    hosts.fault(name, "lost_answer", method="POST", path=CREATE[name])
    world.provider(name).find = lambda ref: (_ for _ in ()).throw(NotFound(name, "gone"))  # type: ignore[method-assign]
    with pytest.raises(OutcomeUnknown):
        world.submit(name)
    del world.provider(name).find
    run = world.store.runs.get("last")
    other = provider_of(world, name, "sandbox-somebody-else")
    time.sleep(SETTLED.settle_s(other))
    report = sync(world.store, lambda _: other, timing=SETTLED)
    assert (report.elsewhere, report.not_made) == ([run.id], [])
    with pytest.raises(OtherAccount):
        Submitter(world.store, other, SETTLED).settle(run)
    assert world.sync().adopted == [run.id]
    found = world.count(name)
    tally("another account", name, found)
    assert (found["runs"], found["jobs"], found["lost"], found["doubled"]) == (1, 1, 0, 0)
    other.close()


@pytest.mark.parametrize("name", HOSTED)
def test_a_rotated_key_may_cancel_and_settle(world: World, hosts: Any, name: str, tells: bool) -> None:
    old = provider_of(world, name, f"sandbox-team-{name}.1")
    new = provider_of(world, name, f"sandbox-team-{name}.2")
    run = submit(world.store, old, spec_for(world.rows), world.data(), timing=UNHURRIED)
    assert cancel(world.store, new, run).status is JobStatus.CANCELLING
    assert accounts.is_here(world.store, new, run.account) is True
    old.close()
    new.close()


@pytest.mark.parametrize("name", HOSTED)
def test_what_is_done_with_a_run_names_the_account_that_it_needs(world: World, name: str) -> None:
    run = world.submit(name)
    env = {k: v for k, v in world.env.items() if not k.endswith(("_ACCOUNT_ID", "_PROJECT_ID"))}
    env |= {"ORCHESTRATE_KEYS": str(world.home / "none"), "ORCHESTRATE_STORE": world.url}
    env[f"{name.upper()}_API_KEY"] = "sandbox-somebody-else"
    settings = config.load(env=env, cwd=world.home, home=world.home)
    with Orchestrator(settings) as ft:
        handle: RunHandle = ft.run(run.id)
        acts: list[Callable[[], object]] = [handle.refresh, handle.cancel, lambda: handle.chat([])]
        if name == "openai":
            acts += [handle.pause, handle.resume]
        else:
            acts += [handle.deploy, handle.undeploy, handle.deployment_price, handle.download]
        for act in acts:
            with pytest.raises(OtherAccount) as caught:
                act()
            assert str(run.account) in str(caught.value)
        world.hosts.skip(100_000)
        world.sync()
        handle = ft.run(run.id)
        assert handle.status is JobStatus.SUCCEEDED
        if name != "openai":
            with pytest.raises(OtherAccount):
                handle.download()
            assert not (settings.home / "models" / run.id).exists()
    assert world.jobs(name)[0].phase == "succeeded"
