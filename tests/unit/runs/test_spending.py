"""`Orchestrator.spending` against a sandbox with two accounts: what bills, whose it is, what is not known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.sending import upload

from orchestrate import AsyncOrchestrator, Orchestrator
from orchestrate.providers.base import Provider
from orchestrate.providers.together.sessions import SteppedTogether
from orchestrate.runs.spending import AccountStatus, SpendingReport
from orchestrate.runs.spending.orphans import OrphanReport
from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations
from orchestrate.sandbox.server import Sandbox
from orchestrate.settings import config
from orchestrate.types import Account, Billing
from orchestrate.workspace import OpenedParts

THEIRS = "sandbox-another-team"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with running(
        home=tmp_path_factory.mktemp("sandbox"), train=False, speed=1000, waits=Durations(file=0.0)
    ) as found:
        yield found


@pytest.fixture(autouse=True)
def _no_faults_left(sandbox: Sandbox) -> Iterator[None]:
    yield
    sandbox.clear_faults()


Open = Callable[..., Orchestrator]


@pytest.fixture
def open_at(sandbox: Sandbox, tmp_path: Path) -> Iterator[Open]:
    """An Orchestrator with an account on each host and a second one, `fireworks-two`, on Fireworks."""
    opened: list[Orchestrator] = []
    (tmp_path / "orchestrate.toml").write_text(
        f"""
        [hosts.fireworks-two]
        type = "fireworks"
        base_url = "{sandbox.urls["fireworks"]}"
        key_variable = "SECOND_KEY"

        [hosts.openai.options]
        retry_budget_s = 0.5

        [hosts.together.options]
        retry_budget_s = 0.5
        """
    )

    def make(**changes: str | None) -> Orchestrator:
        env = {
            **sandbox.env,
            "SECOND_KEY": THEIRS,
            "ORCHESTRATE_KEYS": str(tmp_path / "keys.toml"),
            **changes,
        }
        given = {name: value for name, value in env.items() if value is not None}
        ft = Orchestrator(
            config.load(env=given, config_file=tmp_path / "orchestrate.toml", home=tmp_path / "home")
        )
        for name in ft.backends():
            wire: Any = getattr(ft.provider(name), "_wire", None)
            if wire is not None:
                wire._sleep = lambda _: None
        opened.append(ft)
        return ft

    yield make
    for ft in opened:
        ft.close()


def forget(provider: Provider, name: str) -> None:
    at: Any = getattr(provider, "_at")  # noqa: B009
    at.client().deployments.create(
        account_id=at.account(),
        base_model="accounts/fireworks/models/qwen3-8b",
        deployment_id=name,
        deployment_shape="default",
    )


def of(report: SpendingReport, backend: str) -> AccountStatus:
    [one] = [one for one in report.accounts if one.backend == backend]
    return one


def spec_of(tmp_path: Path) -> Any:
    from orchestrate import JobSpec

    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]}
        for i in range(20)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JobSpec(model="qwen3-8b", train=str(tmp_path / "train.jsonl"), epochs=1, tags={"team": "support"})


def submitted_again(ft: Orchestrator, tmp_path: Path) -> Any:
    return ft.submit(spec_of(tmp_path), "fireworks", again=True)


def submitted(ft: Orchestrator, tmp_path: Path) -> Any:
    return ft.submit(spec_of(tmp_path), "fireworks")


def test_two_accounts_a_forgotten_deployment_and_a_foreign_one(
    open_at: Open, tmp_path: Path, sandbox: Sandbox
) -> None:
    ft = open_at()
    before = {found.item.id for found in ft.spending(sandbox=True).standing}
    run = submitted(ft, tmp_path)
    run.wait(poll_s=0.01)
    run.provider.deploy(run.record.handle)  # by a script that told the store nothing
    forget(ft.provider("fireworks-two"), "foreign")
    report = ft.spending(["backend", "tag:team"], sandbox=True)
    new = [found for found in report.standing if found.item.id not in before and found.item.bills]
    assert sorted((f.item.provider, f.foreign, f.run) for f in new) == [
        ("fireworks", False, run.id),
        ("fireworks-two", True, None),
    ]
    assert all(found.idle and found.item.usd_per_hour for found in new)
    assert report.usd_per_hour == sum(f.item.usd_per_hour or 0 for f in report.standing if f.item.bills)
    accounts = {of(report, name).account for name in ("fireworks", "fireworks-two")}
    assert len(accounts) == 2 and None not in accounts
    assert not report.gaps and not any(found.item.payload for found in report.standing)
    [_, by_team] = report.breakdown
    assert "support" in {group.key for group in by_team.groups}
    assert report.total.runs == 1 and report.budget_usd is report.left_usd is None
    ignored = ft.spending(sandbox=True, ignore=[new[0].item.id, new[1].item.id])
    assert not {f.item.id for f in new} & {f.item.id for f in ignored.idle}
    plain = ft.spending()
    assert plain.total.runs == 0 and not any(one.asked for one in plain.accounts if one.backend != "local")
    assert "sandbox" in (of(plain, "fireworks").reason or "")


def test_a_deployment_under_our_mark_that_no_record_keeps_up_is_ended(open_at: Open, tmp_path: Path) -> None:
    """Not one that somebody made under a name of his own, and not one of this store that is up."""
    ft = open_at()
    kept, lost = submitted(ft, tmp_path), submitted_again(ft, tmp_path)
    for run in (kept, lost):
        run.wait(poll_s=0.01)
    kept.deploy(max_hours=2)
    lost.provider.deploy(lost.record.handle)  # by a script that told the store nothing
    forget(ft.provider("fireworks-two"), "theirs")
    report = ft.orphans(sandbox=True)
    of_others = [one for one in report.orphans if one.run is None]  # of the other stores of these tests
    [mine] = [one for one in report.orphans if one not in of_others]
    assert (mine.run, mine.item.bills, mine.reason) == (
        lost.id,
        True,
        "no deployment in this store matches the resource",
    )
    assert "theirs" not in {one.item.job_id for one in report.orphans}
    report = OrphanReport(at=report.at, orphans=(mine,))
    told: list[str] = []
    ended = ft.end_orphans(report, lambda one: told.append(one.outcome))
    assert told == ["asked to end"] == [one.outcome for one in ended.orphans]
    assert not lost.provider.deployed(lost.record.handle) and kept.provider.deployed(kept.record.handle)
    left = ft.orphans(sandbox=True).orphans
    assert {one.item.id for one in left} == {one.item.id for one in of_others} and not ft.orphans().orphans
    assert ft.end_orphans(report).orphans[0].outcome in ("asked to end", "kept")
    kept.undeploy()


def test_a_deployment_of_the_store_is_counted_and_is_idle_when_nobody_asks_it(
    open_at: Open, tmp_path: Path
) -> None:
    ft = open_at()
    run = submitted(ft, tmp_path)
    run.wait(poll_s=0.01)
    deployed = run.deploy(max_hours=2, made_by="ana").record
    report = ft.spending("person", sandbox=True)
    [found] = [found for found in report.standing if found.deployment == deployed.id]
    assert (found.run, found.person, found.foreign, found.idle) == (run.id, "ana", False, False)
    [by_person] = report.breakdown
    [hers] = [group for group in by_person.groups if group.key == "ana"]
    assert hers.deployments == 1 and hers.committed_usd > 0 and not hers.unknown
    assert report.total.deployments == 1 and report.total.committed_usd >= hers.committed_usd

    def older(one: Any, _at: Any) -> Any:
        import msgspec

        return msgspec.structs.replace(one, created_at=one.created_at - timedelta(hours=2))

    ft.store.deployments.apply(deployed.id, older)
    assert deployed.id in [found.deployment for found in ft.spending(sandbox=True).idle]
    assert ft.spending().total.deployments == 0  # play money is in no real sum
    run.undeploy()


def test_two_keys_of_one_account_show_each_thing_once(open_at: Open) -> None:
    ft = open_at(SECOND_KEY="sandbox-own.1", FIREWORKS_API_KEY="sandbox-own.2", FIREWORKS_ACCOUNT_ID=None)
    forget(ft.provider("fireworks"), "shared")
    report = ft.spending(sandbox=True)
    assert of(report, "fireworks").account == of(report, "fireworks-two").account
    assert [f.item.id for f in report.standing if f.item.kind == "deployment"] == [
        f.item.id for f in report.standing if "shared" in f.item.id
    ]
    assert len([f for f in report.standing if "shared" in f.item.id]) == 1


def test_one_account_down_and_one_that_answers_no_list_are_told_and_hide_nothing(
    open_at: Open, sandbox: Sandbox
) -> None:
    ft = open_at()
    forget(ft.provider("fireworks-two"), "still-seen")
    sandbox.fault("openai", "error", count=0)
    sandbox.fault("together", "no_list", count=0, path="fine-tunes")
    report = ft.spending(sandbox=True)
    assert {one.backend for one in report.gaps} == {"openai", "together"}
    assert not of(report, "openai").asked and of(report, "openai").reason
    assert of(report, "together").asked and of(report, "together").partial
    assert any("could not look up jobs" in line for line in of(report, "together").unseen)
    assert report.at_least and any("still-seen" in f.item.id for f in report.standing)
    sandbox.fault("together", "no_list", count=0)
    sandbox.fault("fireworks", "no_list", count=0, content={"error": {"message": "no"}})
    blind = ft.spending(sandbox=True)
    assert blind.usd_per_hour is None and blind.standing == ()
    assert {one.backend for one in blind.gaps} == {"openai", "together", "fireworks", "fireworks-two"}


def test_a_missing_key_is_a_gap_only_where_there_are_runs(open_at: Open, tmp_path: Path) -> None:
    ft = open_at()
    submitted(ft, tmp_path)
    later = open_at(FIREWORKS_API_KEY=None, OPENAI_API_KEY=None)
    report = later.spending(sandbox=True)
    assert [one.backend for one in report.gaps] == ["fireworks"]
    assert not of(report, "openai").asked and "sandbox run" in (of(report, "openai").reason or "")


def test_runs_of_another_account_are_named(open_at: Open, tmp_path: Path, sandbox: Sandbox) -> None:
    ft = open_at()
    spec = spec_of(tmp_path)
    # The host takes its time for a file too: it has to be there before the clock nearly stands.
    upload(ft.provider("fireworks"), spec, ft.data(spec, "fireworks"))
    before, sandbox.clock.speed = sandbox.clock.speed, 0.0001
    try:
        run = submitted(ft, tmp_path)
        assert of(ft.spending(sandbox=True), "fireworks").elsewhere == ()
        other = open_at(FIREWORKS_API_KEY=THEIRS, FIREWORKS_ACCOUNT_ID=None)
        report = other.spending(sandbox=True)
        assert of(report, "fireworks").elsewhere == (run.id,) and of(report, "fireworks") in report.gaps
    finally:
        sandbox.clock.speed = before


def test_a_backend_that_is_configured_no_more_is_named(open_at: Open, tmp_path: Path) -> None:
    ft = open_at()
    run = submitted(ft, tmp_path)
    ft.store.runs.apply(run.id, lambda record: _moved(record, "gone"))
    report = ft.spending(sandbox=True)
    assert of(report, "gone").reason and of(report, "gone") in report.gaps


def _moved(record: Any, provider: str) -> Any:
    import msgspec

    return msgspec.structs.replace(record, provider=provider)


def test_a_defect_of_one_backend_hides_no_other(open_at: Open) -> None:
    class NoBilling(SteppedTogether):
        def billing(self) -> Billing:
            raise ZeroDivisionError

    class NoAccount(SteppedTogether):
        def account(self) -> Account:
            raise ZeroDivisionError

    class Half(OpenedParts):
        broken: type[SteppedTogether] = NoBilling

        def provider(self, name: str) -> Provider:
            there = super().provider("together")
            return self.broken(there.config) if name == "openai" else super().provider(name)

    ft = Orchestrator(Half(open_at().settings))
    report = ft.spending(sandbox=True)
    assert "ZeroDivisionError" in (of(report, "openai").reason or "") and of(report, "together").asked

    Half.broken = NoAccount
    assert any("ZeroDivisionError" in line for line in of(ft.spending(sandbox=True), "openai").unseen)


def test_offline_asks_nobody(open_at: Open, sandbox: Sandbox) -> None:
    ft = open_at()
    sandbox.clear_requests()
    report = ft.spending(offline=True, sandbox=True)
    assert report.offline and report.usd_per_hour is None and report.accounts == ()
    assert sandbox.count() == 0


def test_asking_is_for_asyncio_too(open_at: Open) -> None:
    async def main() -> SpendingReport:
        async with AsyncOrchestrator(open_at().settings) as ft:
            return await ft.spending(offline=True)

    assert asyncio.run(main()).offline
