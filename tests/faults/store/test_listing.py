"""Lists of runs as the database makes them: the same on both, page after page, from an index."""

from __future__ import annotations

from decimal import Decimal

import msgspec
import pytest
from sqlalchemy import text
from tests.cells import first

from orchestrate.errors import UsageError
from orchestrate.spec import JobSpec
from orchestrate.store.run_lists import RunQuery
from orchestrate.store.runs import Intent
from orchestrate.store.store import Store
from orchestrate.types import Bill, JobStatus, MetricPoint, Run, SubmitPhase

SORTS = (
    "created",
    "name",
    "backend",
    "model",
    "status",
    "cost",
    "updated",
    "loss",
    "spec.epochs",
    "tag.team",
)
GROUPS = ("", "backend", "status", "tag.team", "tag.nothing", "spec.epochs", "spec.nothing")


@pytest.fixture
def seven(store: Store) -> list[Run]:
    """Runs with gaps: of some the cost is unknown, some have no tag, some no points."""
    made: list[Run] = []
    for n in range(7):
        tags = {"team": f"team {n % 2}"} if n % 3 else {}
        tags |= {"long": "é" * 3000} if n == 3 else {}
        spec = JobSpec(model=f"m{n % 4}", train="rows.jsonl", suffix=f"s{n}", tags=tags, epochs=9 + n % 3)
        intent = Intent(spec=spec, provider=("x", "y")[n % 2], dataset_digest="d" * 64, host="here")
        run = store.runs.create(intent)
        if n % 2:
            points = [
                MetricPoint(step=1, values={"train_loss": 9.5 + n}),
                MetricPoint(step=2, values={"valid_loss": 0.0}),
            ]
            store.history.add_metrics(run.id, points)
            bill = Bill(usd=Decimal(8 + n), origin="told")
            changes = {"phase": SubmitPhase.SUBMITTED, "status": JobStatus.SUCCEEDED, "bill": bill}
            run = store.runs.apply(run.id, lambda r, c=changes: msgspec.structs.replace(r, **c))
        made.append(run)
    return made


@pytest.mark.parametrize("sort", first(SORTS[::-1], 4))
def test_pages_in_any_order_have_each_run_once(store: Store, seven: list[Run], sort: str) -> None:
    for group in GROUPS:
        for query in (RunQuery(sort=sort, group=group), RunQuery(sort=f"-{sort}", group=group)):
            paged: list[str] = []
            while page := store.listing.page(query, limit=2, after=paged[-1] if paged else ""):
                paged += [run.id for run in page]
            assert sorted(paged) == sorted(run.id for run in seven), query
            assert paged == [run.id for run in store.listing.page(query, limit=100)], query
            if group:
                assert sum(number for _, number in store.listing.groups(query)) == 7


def names(store: Store, **query: object) -> list[str]:
    return [run.spec["suffix"] for run in store.listing.page(RunQuery(**query), limit=100)]  # type: ignore[arg-type]


@pytest.mark.usefixtures("seven")
def test_orders_are_those_of_the_values_and_gaps_come_last(store: Store) -> None:
    assert names(store) == ["s6", "s5", "s4", "s3", "s2", "s1", "s0"]
    assert names(store, sort="-cost")[:3] == names(store, sort="-loss")[:3] == ["s5", "s3", "s1"]
    assert names(store, sort="cost")[:3] == names(store, sort="loss")[:3] == ["s1", "s3", "s5"]
    assert names(store, sort="spec.epochs") == ["s0", "s3", "s6", "s1", "s4", "s2", "s5"], "10 is above 9"
    assert set(names(store, sort="tag.team")[-3:]) == {"s0", "s3", "s6"}
    assert names(store, group="backend", sort="name") == ["s0", "s2", "s4", "s6", "s1", "s3", "s5"]


def test_filters_find_what_they_say(store: Store, seven: list[Run]) -> None:
    named = [f"s{n}" for n in reversed(range(7)) if n == 3 or "s3" in seven[n].id]  # ids are searched too
    assert names(store, words="S3") == named and names(store, words=seven[3].id[-6:]) == ["s3"]
    assert names(store, words="%") == names(store, words="s_") == []
    assert names(store, status="not sent") == names(store, status="submitting") == ["s6", "s4", "s2", "s0"]
    assert names(store, status="succeeded", model="M3") == ["s3"]
    assert names(store, tag="team", provider="y") == ["s5", "s1"]
    assert names(store, tag="team=team 0") == ["s4", "s2"]
    assert names(store, sandbox=True) == []
    run = store.runs.apply(
        seven[4].id, lambda r: msgspec.structs.replace(r, archived=True, note="Kept FOR Eve")
    )
    assert names(store, archived=True) == names(store, words="eve kept") == ["s4"]
    assert len(names(store, archived=False)) == 6
    store.runs.apply(run.id, lambda r: msgspec.structs.replace(r, tags={"team": "other"}))
    assert names(store, tag="team=other") == ["s4"] and names(store, tag="team=team 0") == ["s2"]


@pytest.mark.parametrize("wrong", [{"sort": "record"}, {"group": "spec.a') --"}, {"status": "done"}])
def test_what_cannot_be_listed_by_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        RunQuery(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "query",
    [
        RunQuery(),
        RunQuery(words="nobody", archived=False, sandbox=False),
        RunQuery(provider="x", status="failed"),
        RunQuery(tag="team=team 1"),
        RunQuery(sort="-cost", group="backend"),
        RunQuery(sort="name", group="tag.team"),
    ],
)
def test_a_list_reads_the_index_alone(store: Store, seven: list[Run], query: RunQuery) -> None:
    if store.database.file is None:
        pytest.skip("how Postgres reads seven rows says nothing of a hundred thousand")
    statement = store.listing.statement(query, limit=100, after=seven[0].id)
    sql = str(statement.compile(store.database.engine, compile_kwargs={"literal_binds": True}))
    with store.database.reading() as connection:
        plan = [
            str(row[3])
            for row in connection.execute(text(f"EXPLAIN QUERY PLAN {sql.replace(':', chr(92) + ':')}"))
        ]
    read = [step for step in plan if step.startswith(("SCAN runs", "SEARCH runs"))]
    assert [step for step in read if "INDEX runs_listed" in step], plan
    assert not [step for step in read if "INDEX" not in step], plan
    if query == RunQuery():
        assert plan[0].startswith("SEARCH runs USING COVERING INDEX runs_listed"), plan


def test_what_changed_is_found_by_its_time(store: Store, seven: list[Run]) -> None:
    assert store.watching.changed(seven[5].updated_at)[-1:] == [seven[6]]
    if store.database.file is not None:
        with store.database.reading() as connection:
            plan = connection.execute(
                text("EXPLAIN QUERY PLAN SELECT record FROM runs WHERE updated_at > 'x' ORDER BY updated_at")
            ).all()
        assert "runs_by_change" in str(plan)


@pytest.mark.parametrize("wrong", ["\0", "a\0b", "\ud800", "a" * 60_000])
@pytest.mark.parametrize("name", ["words", "provider", "model", "tag"])
def test_a_filter_that_no_run_can_have_is_an_error(name: str, wrong: str) -> None:
    with pytest.raises(UsageError, match="a filter can't have null characters"):
        RunQuery(**{name: wrong})
