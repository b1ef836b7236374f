"""The list of models costs the same however many jobs there are, and is never out of date."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import event
from tests.unit.gateway.conftest import ASKED, Gateway, ended, gateway_of, rows
from tests.waiting import until

from orchestrate.sandbox.server import Sandbox
from orchestrate.store.gateway import CreateKey, hashed
from orchestrate.types import GatewayJob, GatewayKey

JOBS = 300


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, sandbox: Sandbox) -> Iterator[Gateway]:
    with gateway_of(tmp_path_factory.mktemp("home"), sandbox.env) as found:
        yield found


@pytest.fixture(scope="module")
def many(gateway: Gateway) -> GatewayJob:
    """A job that succeeded, and as many more like it."""
    with gateway.client() as openai:
        file = openai.files.create(file=("t.jsonl", rows(mark="many")), purpose="fine-tune").id
        done = ended(openai, openai.fine_tuning.jobs.create(model=ASKED, training_file=file).id)
    assert done.status == "succeeded"
    jobs = gateway.ft.store.gateway_jobs
    # Until the gateway is through with a job it still reads and writes it beside the requests.
    first = until(lambda: (found := jobs.get(done.id)) and found.told and found, patience_s=240)
    assert isinstance(first, GatewayJob)
    for n in range(JOBS):
        one = replace(first, id=f"ftjob-{n:024}", tuned=f"{first.tuned}-{n}")
        jobs.take(one, CreateKey(first.key, hashed(str(n)), 0, None), lambda use: None)
    jobs.change(first.id, lambda job: replace(job, tries=job.tries + 1))
    return first


@pytest.mark.slow
def test_a_list_that_is_asked_for_again_reads_no_job(gateway: Gateway, many: GatewayJob) -> None:
    executed: list[str] = []

    @event.listens_for(gateway.ft.store.database.engine, "before_cursor_execute")
    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        executed.append(statement)

    with gateway.client() as openai:
        first = [model.id for model in openai.models.list()]
        assert sum(name.startswith(many.tuned) for name in first) == JOBS + 1
        executed.clear()
        assert [model.id for model in openai.models.list()] == first
    asked = [one for one in executed if "FROM gateway_jobs" in one]
    assert not [one for one in asked if "gateway_jobs.open" not in one], "only those that go on are looked at"


@pytest.mark.parametrize("given", [{'a"b': "é%_\\"}, {"team": "A", "more": "x"}])
def test_jobs_are_found_by_their_metadata_whatever_it_holds(
    gateway: Gateway, many: GatewayJob, given: dict[str, str]
) -> None:
    jobs, id = gateway.ft.store.gateway_jobs, f"ftjob-m{hashed(str(given))[:22]}"
    made = replace(
        many, id=id, tuned=f"{many.tuned}-{id}", asked={**many.asked, "metadata": {**given, "other": "a"}}
    )
    jobs.take(made, CreateKey(many.key, hashed(id), 0, None), lambda use: None)
    with gateway.client() as openai:
        assert [job.id for job in openai.fine_tuning.jobs.list(metadata=given)] == [id]
        [key, value] = next(iter(given.items()))
        assert not list(openai.fine_tuning.jobs.list(metadata={key: value.swapcase() + "-"}))
        assert not list(
            openai.fine_tuning.jobs.list(metadata={key: value.replace("A", "a") or value, "x": "y"})
        )


READS = (
    "models",
    "models/{tuned}",
    "fine_tuning/jobs?limit=20",
    "fine_tuning/jobs/{id}",
    "fine_tuning/jobs/{id}/events",
    "fine_tuning/jobs/{id}/checkpoints",
    "files?limit=20",
)


@pytest.mark.slow
def test_a_read_takes_as_much_of_the_database_however_many_jobs_there_are(
    gateway: Gateway, many: GatewayJob
) -> None:
    """Counted are steps of SQLite's own machine: rows that are read and thrown away take some too."""
    steps = 0

    def tick() -> int:
        nonlocal steps
        steps += 1
        return 0

    @event.listens_for(gateway.ft.store.database.engine, "before_cursor_execute")
    def count(connection: Any, *_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.connection.dbapi_connection.set_progress_handler(tick, 10)

    def taken() -> dict[str, int]:
        """The least of some: what the gateway does beside the requests counts as well."""
        nonlocal steps
        found: dict[str, int] = {}
        with gateway.http() as http:
            for path in READS:
                asked, each = path.format(id=many.id, tuned=many.tuned), list[int]()
                for _ in range(6):  # the first may have to make a list that is then kept
                    steps = 0
                    assert http.get(asked).status_code == 200, asked
                    each.append(steps)
                found[path] = min(each)
        return found

    def add(numbers: range) -> None:
        for n in numbers:
            made = many.created_at + timedelta(seconds=n)
            one = replace(many, id=f"ftjob-x{n:023}", tuned=f"{many.tuned}-x{n}", created_at=made)
            gateway.ft.store.gateway_jobs.take(
                one, CreateKey(many.key, hashed(f"x{n}"), 0, None), lambda use: None
            )

    add(range(1, 40))
    few = taken()
    add(range(40, 3 * JOBS))
    lots = taken()
    # Four times as many jobs: a tree of an index may be one deeper.
    assert {path: lots[path] <= 1.3 * few[path] + 20 for path in READS} == dict.fromkeys(READS, True), (
        few,
        lots,
    )


def test_what_is_deleted_or_of_another_key_is_not_in_a_list_that_was_kept(
    gateway: Gateway, many: GatewayJob
) -> None:
    gone = f"{many.tuned}-7"
    with gateway.client() as openai:
        assert gone in [model.id for model in openai.models.list()]
        openai.models.delete(gone)
        left = [model.id for model in openai.models.list()]
        assert gone not in left and f"{many.tuned}-8" in left
    limited = gateway.ft.store.gateway_keys.add(
        GatewayKey(name="one", models=(many.tuned,), created_at=gateway.ft.store.clock.now()), by="test"
    )
    with gateway.client(limited) as openai:
        assert [model.id for model in openai.models.list()] == [many.tuned]
