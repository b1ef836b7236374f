"""The same submit again: by a user, by a CI job that is retried, by two processes at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.faults.shop import Shop
from tests.faults.submitting import BACKENDS, write_rows
from tests.faults.world import CREATE, HOSTED

from orchestrate import Orchestrator
from orchestrate.api.run import RunHandle
from orchestrate.errors import AlreadySubmitted, KeyTaken, OutcomeUnknown, RateLimited, UsageError
from orchestrate.providers.base import host_account
from orchestrate.runs.submitting.repeats import RECENT
from orchestrate.settings import config
from orchestrate.store.runs import Intent
from orchestrate.types import JobStatus, Run, SubmitPhase


def changed(run: RunHandle, **values: Any) -> Run:
    """The run as the store could have it."""
    store = run._ws.store
    return store.runs.apply(run.id, lambda now: msgspec.structs.replace(now, **values))


Once = Callable[[Shop, str, str], None]


@pytest.fixture
def once(tally: Callable[..., None]) -> Once:
    """Requires that one run has one job, by the host's books, and tells the suite's table."""

    def count(shop: Shop, name: str, what: str) -> None:
        found = shop.count(name)
        tally(what, name, found)
        assert found == {"runs": 1, "jobs": 1, "lost": 0, "doubled": 0}

    return count


@pytest.mark.parametrize("name", HOSTED)
def test_the_same_run_is_refused_by_name_until_again_is_said(shop: Shop, name: str, once: Once) -> None:
    first = shop.ft.submit(shop.spec, name)
    moved = shop.folder / "elsewhere.jsonl"
    moved.write_bytes(shop.rows.read_bytes())
    again = shop.spec.model_copy(update={"train": str(moved), "tags": {"attempt": "2"}})
    with pytest.raises(AlreadySubmitted, match=first.id) as caught:
        shop.ft.submit(again, name, max_cost_usd=50)
    assert f"orchestrate watch {first.id}" in str(caught.value.fix)
    assert "--again" in str(caught.value.fix)
    assert (shop.sent(), len(shop.ft.runs())) == (1, 1)
    once(shop, name, "repeated command: refused")
    assert shop.ft.submit(again, name, again=True).id != first.id
    assert shop.sent() == 2


@pytest.mark.parametrize("name", HOSTED)
def test_after_a_lost_answer_the_run_that_may_be_billed_is_named(shop: Shop, name: str) -> None:
    shop.hosts.fault(name, "lost_request", method="POST", path=CREATE[name])
    with pytest.raises(OutcomeUnknown):
        shop.ft.submit(shop.spec, name)
    [run] = shop.ft.runs()
    with pytest.raises(AlreadySubmitted, match=run.id) as caught:
        shop.ft.submit(shop.spec, name)
    assert "orchestrate sync" in str(caught.value.fix)


@pytest.mark.parametrize("name", BACKENDS)
def test_what_was_interrupted_before_the_send_is_gone_on_with(shop: Shop, name: str) -> None:
    backend, prepared = shop.ft.provider(name), shop.ft.prepare(shop.spec, name)
    run = shop.ft.store.runs.create(
        Intent(
            spec=prepared.offer(name).spec,
            provider=name,
            dataset_digest=prepared.data.digest,
            host=backend.host,
            account=host_account(backend).id,
        )
    )
    with pytest.raises(AlreadySubmitted, match=run.id) as caught:
        shop.ft.submit(shop.spec, name)
    assert f"orchestrate resume {run.id}" in str(caught.value.fix)
    assert len(shop.ft.runs()) == 1


@pytest.mark.parametrize(
    ("values", "stands_in_the_way"),
    [
        ({"status": JobStatus.PAUSED}, True),
        ({"status": JobStatus.SUCCEEDED}, True),
        ({"status": JobStatus.SUCCEEDED, "age": RECENT + timedelta(minutes=1)}, False),
        ({"status": JobStatus.RUNNING, "age": RECENT + timedelta(minutes=1)}, True),
        ({"status": JobStatus.FAILED}, False),
        ({"status": JobStatus.CANCELLED}, False),
        ({"status": JobStatus.RUNNING, "account": "organization other"}, False),
        ({"status": JobStatus.RUNNING, "account": None}, True),
    ],
    ids=str,
)
def test_which_runs_stand_in_the_way(shop: Shop, values: dict[str, Any], stands_in_the_way: bool) -> None:
    first = shop.ft.submit(shop.spec, "fireworks")
    age = values.pop("age", timedelta())
    changed(first, created_at=first.record.created_at - age, **values)
    if stands_in_the_way:
        with pytest.raises(AlreadySubmitted, match=first.id):
            shop.ft.submit(shop.spec, "fireworks")
    else:
        shop.ft.submit(shop.spec, "fireworks")


@pytest.mark.parametrize("other", [{"epochs": 2}, {"seed": 7}, {"suffix": "b"}, {"train": "more"}], ids=str)
def test_another_run_is_no_repetition(shop: Shop, other: dict[str, Any]) -> None:
    shop.ft.submit(shop.spec, "together")
    if "train" in other:
        other = {"train": str(write_rows(shop.folder / "more.jsonl", 13))}
    shop.ft.submit(shop.spec.model_copy(update=other), "together")
    assert shop.sent() == 2


# -- keys of the caller ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTED)
def test_the_same_key_is_the_same_run_for_ever(shop: Shop, name: str, once: Once) -> None:
    first = shop.ft.submit(shop.spec, name, idempotency_key="nightly-7")
    for status in (JobStatus.RUNNING, JobStatus.FAILED, JobStatus.SUCCEEDED):
        changed(first, status=status, created_at=first.record.created_at - timedelta(days=400))
        assert shop.ft.submit(shop.spec, name, idempotency_key="nightly-7").id == first.id
    assert shop.sent() == 1
    assert first.record.idempotency_key == "nightly-7"
    once(shop, name, "repeated command: the same key")


def test_the_run_of_a_key_is_found_over_budget_and_goes_on_where_it_stopped(shop: Shop) -> None:
    shop.hosts.fault("together", "rate_limit", method="POST", path=CREATE["together"], retry_after=9999)
    with pytest.raises(RateLimited):
        shop.ft.submit(shop.spec, "together", idempotency_key="k")
    [failed] = shop.ft.runs()
    assert shop.ft.submit(shop.spec, "together", idempotency_key="k").id == failed.id
    changed(failed, phase=SubmitPhase.UPLOADED, status=JobStatus.SUBMITTING, error=None, finished_at=None)
    assert shop.ft.submit(shop.spec, "together", idempotency_key="k").record.job_id is not None
    assert len(shop.ft.runs()) == 1


def test_a_key_of_another_run_is_refused_with_the_difference(shop: Shop) -> None:
    first = shop.ft.submit(shop.spec, "together", idempotency_key="taken")
    more = str(write_rows(shop.folder / "more.jsonl", 13))
    for change, backend, word in (
        ({"epochs": 2}, "together", r"epochs \(1, not 2\)"),
        ({"train": more}, "together", "data"),
        ({}, "openai", "backend"),
    ):
        with pytest.raises(KeyTaken, match=f"{first.id}.*{word}"):
            shop.ft.submit(shop.spec.model_copy(update=change), backend, idempotency_key="taken")
    with pytest.raises(KeyTaken, match="set of backends"):
        shop.ft.earlier(shop.ft.prepare(shop.spec, HOSTED), HOSTED, idempotency_key="taken")
    assert shop.sent() == 1


@pytest.mark.parametrize("key", ["", "two words", "a\nb", "x" * 181])
def test_what_is_no_key(shop: Shop, key: str) -> None:
    with pytest.raises(UsageError, match="no spaces"):
        shop.ft.submit(shop.spec, "together", idempotency_key=key)


@pytest.mark.parametrize("key", ["one", None])
def test_of_many_that_ask_at_once_one_makes_the_run(
    tmp_path: Path, hosts: Any, store_url: str, key: str | None, once: Once
) -> None:
    hosts.clear_faults()
    shop = Shop(tmp_path, hosts, store_url=store_url)
    key = key and f"{key}-{tmp_path.name}"  # another one's job on this host is found by the same key
    together, at_once = threading.Barrier(4), 4
    shop.ft.store.close()

    def ask(_: int) -> str:
        with Orchestrator(shop.settings) as ft:
            prepared = ft.prepare(shop.spec, "fireworks")
            assert ft.runs() == []
            together.wait(240)
            try:
                return ft.submit(prepared, "fireworks", idempotency_key=key).id
            except AlreadySubmitted as error:
                assert key is None
                return error.run_id

    with ThreadPoolExecutor(at_once) as pool:
        found = set(pool.map(ask, range(at_once)))
    assert (len(found), shop.sent()) == (1, 1)
    once(shop, "fireworks", "repeated command: four at once")
    shop.ft.close()


# -- the command -------------------------------------------------------------------------------------------


def test_the_command_refuses_without_a_terminal_and_yes_does_not_mean_again(shop: Shop) -> None:
    first = shop.command("together,openai")
    assert first.exit_code == 0, first.output
    second = shop.command("openai")
    assert isinstance(second.exception, AlreadySubmitted)
    assert second.exception.exit_code == 2
    assert shop.sent() == 2
    assert shop.command("openai", "--again").exit_code == 0
    assert shop.sent() == 3


def test_one_key_of_a_command_to_several_backends_is_one_run_on_each(shop: Shop) -> None:
    asked = ("together,openai,fireworks", "--idempotency-key", "ci/42")
    shop.hosts.fault("openai", "error", method="POST", path=CREATE["openai"], status=400)
    assert shop.command(*asked).exit_code != 0
    first = shop.ft.runs()
    assert shop.command(*asked).exit_code == 0
    again = shop.ft.runs()
    assert [run.id for run in again] == [run.id for run in first]
    assert {run.record.idempotency_key for run in again} == {f"ci/42 {name}" for name in HOSTED}
    assert isinstance(shop.command("together", "--idempotency-key", "ci/42").exception, KeyTaken)


def test_a_run_keeps_who_made_it(shop: Shop) -> None:
    assert "@" in str(shop.ft.submit(shop.spec, "together").record.made_by)
    assert shop.command("openai", "--by", "ada").exit_code == 0
    assert shop.ft.run("last").record.made_by == "ada"
    named = config.load(env={**shop.env, "ORCHESTRATE_BY": "ci"}, cwd=shop.folder, home=shop.folder / "home")
    with Orchestrator(named) as ft:
        assert ft.submit(shop.spec, "fireworks").record.made_by == "ci"
