"""A migration rehearsed: a model tuned on the sandboxed OpenAI goes to this machine and to the sandboxed
Together, and the report says where parity holds and where it does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.paths import TINY
from tests.workers import Nursery

from orchestrate import JobSpec, Orchestrator, RunHandle
from orchestrate.migration.migrations import MigrationOrder, PreparedMigration
from orchestrate.migration.parity import Migration, PreparedProof, report
from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations
from orchestrate.settings.config import load
from orchestrate.types import MIGRATED_FROM, JobStatus, Sampling

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_python")]


def rows(path: Path, first: int, last: int) -> str:
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"Item {i}: which colour has the sky?"},
                {"role": "assistant", "content": "blue"},
            ]
        }
        for i in range(first, last)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def ft(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Iterator[Orchestrator]:
    folder = tmp_path_factory.mktemp("leaving")
    with running(home=folder / "hosts", speed=20, waits=Durations(file=0), start=nursery.start) as hosts:
        env = {**hosts.env, "ORCHESTRATE_HOME": str(folder / "home")}
        with Orchestrator(load(env=env, cwd=folder)) as found:
            yield found


@pytest.fixture(scope="module")
def migration(ft: Orchestrator, tmp_path_factory: pytest.TempPathFactory) -> Migration:
    folder = tmp_path_factory.mktemp("rows")
    spec = JobSpec(
        model="gpt-4o-mini",
        train=rows(folder / "train.jsonl", 0, 48),
        test=rows(folder / "test.jsonl", 100, 140),
        epochs=4,
        batch_size=8,
        learning_rate_multiplier=2.0,
    )
    old = ft.submit(spec, "openai")
    old.wait()
    # At this machine's base rate so few steps teach the tiny model nothing; Together's stand-in learns.
    order = MigrationOrder(
        to=["local", "together"],
        models={"local": str(TINY)},
        sampling=Sampling(max_tokens=8),
        margin=0.2,
        probes=["format"],
    )
    prepared = PreparedMigration(ft, old, order)
    handles: list[tuple[str, RunHandle]] = [(name, prepared.submit(name)) for name in prepared.ready]
    for _, handle in handles:
        handle.wait()
    with PreparedProof(ft, prepared, handles) as proof:
        return proof.run()


def test_the_report_says_where_parity_holds_and_where_not(migration: Migration, tmp_path: Path) -> None:
    by_name = {moved.provider: moved for moved in migration.moved}
    local, together = by_name["local"], by_name["together"]
    assert migration.evaluation is not None
    # Counted by hand from the file of answers: how many are "blue".
    lines = [
        json.loads(line) for line in Path(migration.evaluation.items_file or "").read_text().splitlines()
    ]
    right = {
        name: sum(line["answers"][name][0]["text"].strip() == "blue" for line in lines)
        for name in (migration.old, local.run_id, together.run_id)
    }
    assert len(lines) == 40 and right[migration.old] == 40
    for moved in (local, together):
        whole = moved.parts[0]
        assert whole.difference.value == pytest.approx((right[moved.run_id] - 40) / 40)
    assert together.parts[0].parity == "holds" and together.decision == "ship"
    assert local.parts[0].parity == "does not hold" and local.decision == "do not ship"
    assert not migration.parity
    text = report(migration).render("table")
    assert "qwen3.5-9b on together: parity holds on all prompts" in text
    assert "on local: parity does not hold on all prompts" in text
    page = report(migration).save(tmp_path / "report.html").read_text()
    for said in (
        "✓ holds",
        "✗ does not hold",
        "SANDBOX",
        "learning_rate_multiplier",
        "What the new models forgot",
    ):
        assert said in page
    assert {one.run_id for one in migration.forgotten} == {local.run_id, together.run_id}


@pytest.mark.parametrize(
    ("source", "model", "to"), [("fireworks", "qwen3-8b", "local"), ("together", "qwen3.5-9b", "fireworks")]
)
def test_other_hosts_are_left_as_well(
    ft: Orchestrator, tmp_path: Path, source: str, model: str, to: str
) -> None:
    spec = JobSpec(
        model=model,
        train=rows(tmp_path / "train.jsonl", 0, 24),
        test=rows(tmp_path / "test.jsonl", 100, 112),
        epochs=2,
        batch_size=8,
    )
    old = ft.submit(spec, source)
    assert old.wait().status is JobStatus.SUCCEEDED
    order = MigrationOrder(
        to=[to],
        models={"local": str(TINY)},
        sampling=Sampling(max_tokens=8),
        probes=["none"],
    )
    prepared = PreparedMigration(ft, old, order)
    new = prepared.submit(to)
    assert new.wait().status is JobStatus.SUCCEEDED
    with PreparedProof(ft, prepared, [(to, new)]) as proof:
        found = proof.run()
    [moved] = found.moved
    assert (moved.provider, moved.run_id, moved.problem, moved.prompts) == (to, new.id, None, 12)
    assert moved.parts[0].parity in ("holds", "does not hold", "not shown")
    assert found.evaluation is not None
    lines = Path(found.evaluation.items_file or "").read_text().splitlines()
    right = {
        run.id: sum(json.loads(line)["answers"][run.id][0]["text"].strip() == "blue" for line in lines)
        for run in (old, new)
    }
    assert moved.parts[0].difference.value == pytest.approx((right[new.id] - right[old.id]) / 12)
    assert [run.id for run in ft.store.runs.matching(tags={MIGRATED_FROM: old.id})] == [new.id]
    assert found.proposal.provider == source and source in report(found).render("md")
