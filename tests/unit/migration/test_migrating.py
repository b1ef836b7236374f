"""A run is moved to other backends: what is proposed, what changes, one job, and the proof."""

from __future__ import annotations

import json
import signal
import sqlite3
from contextlib import closing
from datetime import date
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai import OpenAI
from tests import command
from tests.paths import TINY
from tests.unit.migration.conftest import chat_rows

from orchestrate import JobSpec, Orchestrator, RunHandle, catalog
from orchestrate.costing import parse_flag
from orchestrate.errors import ConfigError, DataError, OverBudget, UsageError
from orchestrate.migration import account, account_import, proposals
from orchestrate.migration.account import PreparedPlan
from orchestrate.migration.migrations import MigrationOrder, PreparedMigration
from orchestrate.migration.parity import PreparedProof, report, results
from orchestrate.migration.proposals import ModelNeeds
from orchestrate.migration.recordings import PreparedRecording, RecordOrder
from orchestrate.migration.report import parity
from orchestrate.profile import profile
from orchestrate.runs.preparing import pricing
from orchestrate.sandbox.server import Sandbox
from orchestrate.settings import config
from orchestrate.types import MIGRATED_FROM, Feature, JobStatus, MetricUsed, Sampling, Score

AUTUMN, WINTER = date(2026, 11, 26), date(2027, 2, 1)
PLAIN = ModelNeeds(method="sft", rows=1000, longest=800)
ALL = frozenset(Feature)


def suited(source: str, kind: str, needs: ModelNeeds = PLAIN, today: date = AUTUMN) -> list[proposals.Suited]:
    return proposals.suited(catalog.find(source), profile(kind), ALL, needs, today)


def test_the_open_models_nearest_to_a_closed_one_are_proposed_in_their_order() -> None:
    found = suited("gpt-4o-mini", "together")
    assert [one.model for one in found] == [
        m.name for m in catalog.alternatives(catalog.find("gpt-4o-mini"), "together")
    ][: proposals.MOST]
    first = found[0]
    host = catalog.find(first.model).on("together")
    assert host is not None and host.context is not None and first.context == host.context[0]
    assert first.license == catalog.find(first.model).license and not first.against


def test_the_same_base_goes_first_where_it_is_still_trained() -> None:
    assert suited("gpt-4o-mini", "azure")[0].model == "gpt-4o-mini"
    # existing customers only until 2027-04-01: the retirement table in azure.yaml.
    [late] = suited("gpt-4o-mini", "azure", today=date(2027, 4, 1))
    assert "currently does not support fine-tuning this model" in late.against[0]


def test_the_same_base_is_moved_to_though_its_price_is_not_known(
    ft: Orchestrator, old: RunHandle, own_env: dict[str, str], tmp_path: Path
) -> None:
    """Azure's price of a training token of gpt-4o-mini is not among the rates; it goes by the user's own."""
    azure = {"AZURE_BASE_URL": "http://127.0.0.1:9/openai/v1", "AZURE_API_KEY": "not-a-key"}
    order = MigrationOrder(to=["azure"], models={"default": "gpt-4o-mini"})
    with Orchestrator(config.load(env=own_env | azure, cwd=tmp_path)) as there:
        [target] = PreparedMigration(there, old.id, order).proposal.targets
        assert (target.model, target.refused) == ("gpt-4o-mini", None)
        assert target.quote is not None and "size" not in (target.quote.unavailable or "")
        changes = {change.what: change.becomes for change in target.changes}
        assert changes["chat template"] == "kept", "it is the same model"
        there.rates = there.rates.over([parse_flag("azure:sft_lora=3.3", date(2026, 11, 1))])
        [target] = PreparedMigration(there, old.id, order).proposal.targets
    assert target.quote is not None and not target.quote.unavailable
    assert {entry.usd_per_unit for entry in target.quote.lines} == {Decimal("3.3")}
    [best] = target.candidates
    assert best.unserved is not None and "1.70" in best.unserved


def test_an_open_model_stays_itself_on_another_backend() -> None:
    assert suited("qwen3.5-9b", "fireworks")[0].model == "qwen3.5-9b"
    assert suited("qwen3-8b", "local")[0].reasons[0] == "the same base model"
    assert suited("qwen3.5-9b", "openai")[0].model == "gpt-4o-mini", "to which it is the nearest open one"


@pytest.mark.parametrize(
    ("needs", "word"),
    [
        (msgspec.structs.replace(PLAIN, longest=9_000_000), "would be truncated at"),
        (
            msgspec.structs.replace(PLAIN, images=True),
            "the model does not accept images, which the rows contain",
        ),
        (msgspec.structs.replace(PLAIN, method="rft"), "fine-tunes this model with sft"),
    ],
)
def test_what_speaks_against_a_model_is_said(needs: ModelNeeds, word: str) -> None:
    found = [one for one in suited("gpt-4o-mini", "together", needs) if not one.vision or not needs.images]
    assert found and all(any(word in why for why in one.against) for one in found)


def test_a_host_without_tools_is_not_taken_for_rows_with_them() -> None:
    needs = msgspec.structs.replace(PLAIN, tools=True)
    [first, *_] = proposals.suited(
        catalog.find("gpt-4o-mini"), profile("together"), ALL - {Feature.TOOLS}, needs, AUTUMN
    )
    assert "cannot train on tool calls, which the rows contain" in first.against[0]


def test_a_host_that_has_closed_is_no_target() -> None:
    assert all(
        "not accepted new fine-tuning jobs" in one.against[0]
        for one in suited("gpt-4o", "openai", today=WINTER)
    )


@pytest.mark.parametrize(
    ("better", "low", "high", "found"),
    [
        ("higher", -0.04, 0.10, "holds"),
        ("higher", -0.06, 0.10, "not shown"),
        ("higher", -0.30, -0.06, "does not hold"),
        ("lower", -0.30, 0.04, "holds"),
        ("lower", 0.06, 0.30, "does not hold"),
    ],
)
def test_parity_is_where_the_interval_lies(better: Any, low: float, high: float, found: str) -> None:
    score = Score(value=(low + high) / 2, low=low, high=high, n=100)
    assert parity(MetricUsed(name="m", kind="graded", better=better), score, 0.05) == found


# -- one run -----------------------------------------------------------------------------------------------


def order(*to: str, **more: Any) -> MigrationOrder:
    values: dict[str, Any] = {"sampling": Sampling(max_tokens=8), "probes": ["none"]}
    return MigrationOrder(to=to, **(values | more))


@pytest.mark.parametrize("margin", [1, 5])
def test_a_margin_that_every_model_keeps_is_refused_before_training(
    ft: Orchestrator, old: RunHandle, margin: float
) -> None:
    with pytest.raises(UsageError, match="must be below 1") as refused:
        PreparedMigration(ft, old, order("together", margin=margin))
    assert refused.value.fix is not None and "0.05" in refused.value.fix
    PreparedMigration(ft, old, order("together", margin=margin, metrics=["latency"]))  # in seconds


def test_settings_are_translated_with_what_changes(
    ft: Orchestrator, old: RunHandle, sandbox: Sandbox
) -> None:
    sandbox.clear_requests()
    use = pricing.use("20k req/day, 900 in, 150 out")
    wanted = order("together", "fireworks", "local", models={"local": str(TINY)}, use=use)
    found = PreparedMigration(ft, old, wanted)
    assert not any(sandbox.requests(host) for host in ("openai", "together", "fireworks")), "offline"
    by_name = {t.provider: t for t in found.proposal.targets}
    together = {c.what: c for c in by_name["together"].changes}
    # Together's default rate, 1e-5, is the one that a multiplier is of: docs.together.ai.
    assert together["learning_rate_multiplier"].now == f"{1.8 * 1e-5:g} as learning_rate"
    assert together["epochs"].becomes == together["batch_size"].becomes == "kept"
    assert together["chat template"].becomes == together["tokenizer"].becomes == "changed"
    assert together["system prompts"].becomes == "kept"
    left = {c.what: c for c in by_name["fireworks"].changes}["learning_rate_multiplier"]
    assert left.becomes == "left out" and by_name["fireworks"].refused is None
    local = {c.what: c for c in by_name["local"].changes}
    assert local["learning_rate_multiplier"].now == f"{1.8 * 2e-4:g} as learning_rate"
    priced, data = by_name["together"].candidates[0], old.record.spec["train"]
    spec = JobSpec(model=priced.suited.model, train=data)
    [total] = pricing.ownership(ft, spec, [priced.quote], use)
    assert priced.monthly_usd == min(w.monthly_usd for w in total.options if not w.unavailable)
    assert found.ready == ["together", "fireworks", "local"]


def test_any_backend_is_left_for_any_other(ft: Orchestrator, sandbox: Sandbox, tmp_path: Path) -> None:
    files = [{"path": chat_rows(tmp_path / f"{n}.jsonl", 12 * n, 12 * n + 12)} for n in (0, 1)]
    values = {"model": "qwen3.5-9b", "train": files, "test": chat_rows(tmp_path / "e.jsonl", 50, 60)}
    run = ft.submit(
        JobSpec.parse({**values, "learning_rate": 2e-4, "adapter": {"type": "lora", "r": 8}}), "together"
    )
    sandbox.skip(3600)
    run.refresh()
    found = PreparedMigration(ft, run, order("openai", "fireworks", "local"))
    openai, fireworks, local = found.proposal.targets
    changes = {c.what: c for c in openai.changes}
    assert openai.model == "gpt-4o-mini" and openai.refused is None
    assert changes["learning_rate"].becomes == changes["adapter.r"].becomes == "left out"
    assert "publishes no base rate" in changes["learning_rate"].why
    for target in (fireworks, local):
        assert target.model == "qwen3.5-9b" and target.refused is None
        same = {c.what: c.becomes for c in target.changes}
        assert same["learning_rate"] == same["adapter.r"] == "kept"
    assert found.proposal.silent_on is None and found.proposal.old == "live"


def made(sandbox: Sandbox, host: str) -> int:
    """Jobs that were asked for."""
    ends = ("/fine-tunes", "/fine_tuning/jobs")
    return sum(e["method"] == "POST" and e["path"].endswith(ends) for e in sandbox.requests(host))


@pytest.mark.slow
def test_the_same_migration_is_one_job(ft: Orchestrator, old: RunHandle, sandbox: Sandbox) -> None:
    first = PreparedMigration(ft, old, order("together")).submit("together")
    again = PreparedMigration(ft, ft.run(old.id), order("together", "local")).submit("together")
    assert again.id == first.id and first.record.tags[MIGRATED_FROM] == old.id
    assert made(sandbox, "together") == 1
    first.cancel()
    sandbox.skip(3600)
    first.refresh()
    other = PreparedMigration(ft, old, order("together", models={"together": "llama-3.1-8b"}))
    assert other.submit("together").id != first.id
    assert PreparedMigration(ft, old, order("together")).submit("together").status is JobStatus.CANCELLED
    retried = PreparedMigration(ft, old, order("together")).submit("together", again=True)
    assert retried.id not in (first.id, again.id) and retried.record.tags[MIGRATED_FROM] == old.id


def test_the_same_migration_is_one_job_after_its_store_was_restored(
    ft: Orchestrator, old: RunHandle, sandbox: Sandbox, own_env: dict[str, str], tmp_path: Path
) -> None:
    backup = tmp_path / "backup.sqlite3"
    now = sqlite3.connect(tmp_path / "home" / "runs.sqlite3")
    with closing(now), closing(sqlite3.connect(backup)) as target:
        now.backup(target)
    first = PreparedMigration(ft, old, order("together")).submit("together")
    ft.close()
    for file in (tmp_path / "home").glob("runs.sqlite3*"):
        file.unlink()
    backup.rename(tmp_path / "home" / "runs.sqlite3")
    with Orchestrator(config.load(env=own_env, cwd=tmp_path)) as restored:
        again = PreparedMigration(restored, restored.run(old.id), order("together")).submit("together")
        assert (again.id, again.record.job_id) == (first.id, first.record.job_id)
        assert again.record.tags[MIGRATED_FROM] == old.id
    assert made(sandbox, "together") == 1


def test_without_held_out_rows_nothing_is_sent(ft: Orchestrator, sandbox: Sandbox, tmp_path: Path) -> None:
    spec = JobSpec(model="gpt-4o-mini", train=chat_rows(tmp_path / "t.jsonl", 0, 12))
    run = ft.submit(spec, "openai")
    with pytest.raises(UsageError, match="no old model"):
        PreparedMigration(ft, run, order("together"))
    sandbox.skip(3600)
    run.refresh()
    with pytest.raises(UsageError, match="no held-out rows"):
        PreparedMigration(ft, run, order("together"))
    assert PreparedMigration(ft, run, order("together", proof=False)).ready == ["together"]


def test_held_out_rows_are_those_that_are_compared(
    ft: Orchestrator, sandbox: Sandbox, tmp_path: Path
) -> None:
    """Read with the run's columns, without the rows that no model can be asked, and before training."""

    def rows(name: str, count: int, *more: dict[str, Any]) -> str:
        answer = {"role": "assistant", "content": "red"}
        made = [{"chat": [{"role": "user", "content": f"{name} {i}?"}, answer]} for i in range(count)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in (*made, *more)))
        return str(tmp_path / name)

    columns = {"messages": "chat"}
    run = ft.submit(JobSpec(model="gpt-4o-mini", train=rows("t", 12), columns=columns), "openai")
    sandbox.skip(3600)
    run.refresh()

    def prepared(test: str, **more: Any) -> PreparedMigration:
        return PreparedMigration(
            ft, run, order("openai", models={"openai": "gpt-4.1-mini"}, test=test, **more)
        )

    unanswered = {"chat": [{"role": "user", "content": "unanswered"}]}
    asked = rows("asked", 15, unanswered, unanswered)
    held = prepared(asked, limit=9).proposal.held_out
    assert held is not None and held.rows == 9, "as many as are compared"
    migration = prepared(asked)
    held = migration.proposal.held_out
    assert held is not None and held.rows == 15
    assert [note[:15] for note in migration.proposal.notes] == ["2 rows left out"]
    handle = migration.submit("openai")
    sandbox.skip(3600)
    handle.wait(poll_s=0.01)
    with PreparedProof(ft, migration, [("openai", handle)]) as proof:
        plan = proof.plan()
    assert plan is not None and {one.questions for one in plan.asked} == {15}
    with pytest.raises(DataError, match="no row ends with"):
        prepared(rows("none", 0, unanswered))


def test_rows_that_are_gone_are_named_anew(ft: Orchestrator, old: RunHandle, tmp_path: Path) -> None:
    gone = msgspec.structs.replace(old.record, spec={**old.record.spec, "train": "unknown"})
    ft.store.runs.apply(old.id, lambda run: msgspec.structs.replace(run, spec=gone.spec), note="lost")
    with pytest.raises(UsageError, match="are not on this machine"):
        PreparedMigration(ft, old.id, order("together"))
    rows = chat_rows(tmp_path / "found.jsonl", 200, 214)
    found = PreparedMigration(ft, old.id, order("together", train=rows))
    assert found.proposal.needs.rows == 14 and found.ready == ["together"]


def proved(ft: Orchestrator, sandbox: Sandbox, migration: PreparedMigration, name: str) -> Any:
    handle = migration.submit(name)
    sandbox.skip(3600)
    handle.wait(poll_s=0.01)
    with PreparedProof(ft, migration, [(name, handle)]) as proof:
        return proof.run()


@pytest.mark.slow
def test_old_and_new_answer_the_same_prompts(
    ft: Orchestrator, old: RunHandle, sandbox: Sandbox, tmp_path: Path
) -> None:
    migration = PreparedMigration(ft, old, order("openai", models={"openai": "gpt-4.1-mini"}, margin=0.2))
    found = proved(ft, sandbox, migration, "openai")
    [moved] = found.moved
    # Models of a sandbox that does not train answer all with one text: no difference, in 30 prompts.
    assert (moved.same_answers, moved.prompts, moved.parts[0].parity) == (30, 30, "holds")
    assert {p.slice.partition(":")[0] for p in moved.parts} == {"", "length", "label"}
    assert moved.decision == "ship" and found.parity
    assert {c.name for c in found.evaluation.contenders} == {old.id, moved.run_id}
    assert [m.at for m in results(ft, old.id)] == [found.at]
    page = report(found).save(tmp_path / "r.html").read_text()
    assert "✓ holds" in page and "SANDBOX" in page and "learning_rate_multiplier" in page
    assert "for 30 of 30 prompts" in report(found).render("md")
    assert json.loads(report(found).render("json"))["proposal"]["run_id"] == old.id


@pytest.mark.slow
def test_a_silent_model_is_compared_by_its_recording(
    ft: Orchestrator, old: RunHandle, sandbox: Sandbox
) -> None:
    wanted = order("openai", models={"openai": "gpt-4.1-mini"}, old="recorded", margin=0.2)
    with pytest.raises(
        UsageError,
        match="was shut down and its answers were not recorded, so there is nothing to compare with",
    ):
        PreparedMigration(ft, old, wanted)
    with PreparedRecording(ft, old.id, RecordOrder(sampling=Sampling(max_tokens=8))) as prepared:
        kept = prepared.run()
    assert old.record.tuned_model is not None
    migration = PreparedMigration(ft, old, wanted)
    sandbox.clear_requests()
    found = proved(ft, sandbox, migration, "openai")
    asked = [e for e in sandbox.requests("openai") if e["path"].endswith("/chat/completions")]
    assert len(asked) == 30, "the new model alone is asked"
    assert found.old == f"record:{kept.id}" and found.moved[0].same_answers == 30
    assert "recorded on" in found.evaluation.contender(found.old).served_by


# -- a whole account ---------------------------------------------------------------------------------------


@pytest.fixture
def runs(ft: Orchestrator, old: RunHandle, sandbox: Sandbox, tmp_path: Path) -> list[RunHandle]:
    """Three that are at stake, one of them without held-out rows."""
    made = [old]
    for n, test in ((1, True), (2, False)):
        values: dict[str, Any] = {"test": chat_rows(tmp_path / f"test{n}.jsonl", 300, 320)} if test else {}
        train = chat_rows(tmp_path / f"train{n}.jsonl", 20 * n, 20 * n + 12)
        made.append(ft.submit(JobSpec(model="gpt-4o-mini", train=train, epochs=n, **values), "openai"))
    sandbox.skip(3600)
    for run in made:
        run.refresh()
    return made


def quiet(words: str) -> None:
    del words


def written(ft: Orchestrator, path: Path) -> account.Plan:
    wanted = order("openai", models={"openai": "gpt-4.1-mini"})
    account.write_plan(ft, path, account.proposed(ft, wanted, quiet), 0.2)
    return account.read(path)


def test_a_backend_that_is_not_set_up_ends_a_plan_before_any_run_is_skipped(
    ft: Orchestrator, old: RunHandle
) -> None:
    with pytest.raises(ConfigError, match="azure"):
        account.proposed(ft, order("azure", "together"), quiet)


def test_a_plan_goes_where_training_and_serving_together_cost_least(
    ft: Orchestrator, old: RunHandle, tmp_path: Path
) -> None:
    """Fireworks trains these rows for less than a cent and Together for $4, its minimum; at this price of
    answers that is made up for by a month of serving."""
    cheap = [f"together:inference_tuned_{side}=0.01" for side in ("input", "output")]
    ft.rates = ft.rates.over([parse_flag(flag, date(2026, 11, 1)) for flag in cheap])
    use = pricing.use("100 req/day, 900 in, 150 out", months=1)
    wanted = order("together", "fireworks", "local", models={"local": str(TINY)}, use=use)
    [planned] = account.proposed(ft, wanted, quiet)
    assert planned.proposal is not None
    targets = {target.provider: target for target in planned.proposal.targets}
    trained = {name: target.quote.high_usd for name, target in targets.items() if target.quote}
    monthly = {name: target.monthly_usd for name, target in targets.items()}
    assert monthly["together"] == Decimal("0.031937")
    assert max(trained, key=lambda name: trained[name] or 0) == "together"
    account.write_plan(ft, tmp_path / "plan.yaml", [planned], 0.05)
    [entry] = account.read(tmp_path / "plan.yaml").runs
    assert entry.to == "together" and planned.high_usd == trained["together"]
    told = (tmp_path / "plan.yaml").read_text()
    assert "fireworks drops: learning_rate_multiplier 1.8" in told and "; seed 7 (" in told
    assert "100 requests per day, 900 tokens in, 150 out" in told and "a month" in told


def test_one_multiplier_that_becomes_other_learning_rates_is_told(ft: Orchestrator, old: RunHandle) -> None:
    both = PreparedMigration(ft, old, order("together", "local", models={"local": str(TINY)})).proposal
    [told] = both.notes
    assert "1.8e-05 on together and 0.00036 on local (factor 20)" in told
    assert PreparedMigration(ft, old, order("together")).proposal.notes == ()


@pytest.mark.slow
def test_a_plan_is_written_edited_and_carried_out(
    ft: Orchestrator, runs: list[RunHandle], sandbox: Sandbox, tmp_path: Path
) -> None:
    path = tmp_path / "plan.yaml"
    plan = written(ft, path)
    assert {e.run for e in plan.runs} == {r.id for r in runs}
    assert [e.proof for e in plan.runs if e.run == runs[2].id] == [False]
    with pytest.raises(UsageError, match="already exists"):
        written(ft, path)
    text = path.read_text()
    path.write_text(text.replace(f"budget_usd: {plan.budget_usd}", "budget_usd: 0.001"))
    sandbox.clear_requests()
    with pytest.raises(OverBudget):
        PreparedPlan(ft, path, order()).run(tmp_path / "reports", quiet)
    assert not sandbox.requests("openai")
    path.write_text(
        text.replace(f"- run: {runs[1].id}\n    to: openai", f"- run: {runs[1].id}\n    to: skip")
    )
    prepared = PreparedPlan(ft, path, order())
    assert len(prepared.new) == 2
    done = carried(prepared, sandbox, tmp_path)
    by_run = {one.run_id: one for one in done}
    assert set(by_run) == {runs[0].id, runs[2].id}
    assert by_run[runs[0].id].parity == "holds" and by_run[runs[2].id].parity == ""
    assert all(Path(one.report or "").is_file() and not one.problem for one in done)
    sandbox.clear_requests()
    again = PreparedPlan(ft, path, order())
    assert not again.new and carried(again, sandbox, tmp_path) == done
    assert {e["method"] for e in sandbox.requests("openai")} <= {"GET"}, "nothing is submitted or asked twice"


@pytest.mark.slow
def test_imported_models_are_the_same_by_their_settings_alone(ft: Orchestrator, sandbox: Sandbox) -> None:
    with OpenAI(base_url=sandbox.env["OPENAI_BASE_URL"], api_key=sandbox.env["OPENAI_API_KEY"]) as client:
        rows = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        lines = "".join(
            json.dumps({"messages": [*rows, {"role": "user", "content": str(n)}, rows[1]]}) + "\n"
            for n in range(10)
        )
        file = client.files.create(file=("t.jsonl", lines.encode()), purpose="fine-tune").id
        ids = [
            client.fine_tuning.jobs.create(model=model, training_file=file, seed=1, suffix=suffix).id
            for model, suffix in (
                ("gpt-4o-mini-2024-07-18", "a"),
                ("gpt-4.1-2025-04-14", "a"),
                ("gpt-4o-mini-2024-07-18", "b"),
            )
        ]
    sandbox.skip(3600)
    account_import.take(ft, "openai")
    planned = {one.run_id: one.skipped for one in account.proposed(ft, order("together"), quiet)}
    first, other, last = (planned[ft.run(id).id] for id in ids)
    assert other is None, "another base on the same rows is another model"
    assert sorted([first is None, last is None]) == [False, True]


def test_a_job_that_continued_moves_without_its_earlier_training_and_says_so(
    ft: Orchestrator, sandbox: Sandbox
) -> None:
    with OpenAI(base_url=sandbox.env["OPENAI_BASE_URL"], api_key=sandbox.env["OPENAI_API_KEY"]) as client:
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        lines = "".join(json.dumps({"messages": turns}) + "\n" for _ in range(10))
        file = client.files.create(file=("t.jsonl", lines.encode()), purpose="fine-tune").id
        first = client.fine_tuning.jobs.create(model="gpt-4o-mini-2024-07-18", training_file=file)
        sandbox.skip(3600)
        tuned = client.fine_tuning.jobs.retrieve(first.id).fine_tuned_model or ""
        second = client.fine_tuning.jobs.create(model=tuned, training_file=file)
        sandbox.skip(3600)
    account_import.take(ft, "openai")
    run = ft.run(second.id).record
    assert (run.spec["model"], run.spec["continue_from"]) == ("gpt-4o-mini-2024-07-18", tuned)
    [planned] = [one for one in account.proposed(ft, order("together"), quiet) if one.run_id == run.id]
    assert planned.proposal is not None
    [target] = planned.proposal.targets
    assert target.refused is None
    [change] = [change for change in target.left_out if change.what == "continue_from"]
    assert tuned in change.was and "last job" in change.why


@pytest.mark.parametrize("name", ["a\x07b", "a\x1b[31mb", "a\x00b", "a\x85runs: []", "a\u2028b", "a\nb: c"])
def test_a_plan_can_be_read_whatever_a_model_is_called(name: str, tmp_path: Path) -> None:
    planned = account.PlannedMove(run_id="run-1", told=f"ft:base:team:{name}:1", skipped=f"no {name}")
    account.write(tmp_path / "plan.yaml", [planned], 0.05)
    assert [entry.run for entry in account.read(tmp_path / "plan.yaml").runs] == ["run-1"]


def test_a_plan_names_what_it_cannot_decide(ft: Orchestrator, old: RunHandle, tmp_path: Path) -> None:
    """A job that still runs, and a model whose last day is not in the catalog."""
    file = chat_rows(tmp_path / "more.jsonl", 0, 12)
    going = ft.submit(JobSpec(model="gpt-4o-mini", train=file, epochs=1), "openai")
    unknown = "ft:gpt-3.5-turbo-0613:team::a"
    ft.store.runs.apply(old.id, lambda run: msgspec.structs.replace(run, model=unknown), note="test")
    planned = account.proposed(ft, order("together"), quiet)
    reasons = {one.run_id: one.skipped or "" for one in planned}
    assert "has ended" in reasons[going.id] and "is unknown" in reasons[old.id]
    account.write(tmp_path / "plan.yaml", planned, 0.05)
    assert {entry.to for entry in account.read(tmp_path / "plan.yaml").runs} == {account.SKIP}


def carried(prepared: PreparedPlan, sandbox: Sandbox, tmp_path: Path) -> list[account.Carried]:
    def tell(words: str) -> None:
        if ": run " in words:
            sandbox.skip(3600)

    return prepared.run(tmp_path / "reports", tell)


@pytest.mark.parametrize(
    "text",
    [
        "runs: 3",
        "budget_usd: x\nruns: []",
        "budget_usd: 1\nruns: [{run: a, to: b, modell: c}]",
        "budget_usd: 1\nruns: [{run: a, to: b}, {run: a, to: c}]",
        "[",
        "budget_usd: .nan\nruns: []",
        "budget_usd: .inf\nruns: []",
        "budget_usd: -1\nruns: []",
        "budget_usd: 1e400\nruns: []",
        "budget_usd: 1\nbudget_usd: 1000\nruns: []",
        "budget_usd: 1\nruns: [{run: a, to: b, to: skip}]",
        "budget_usd: 1\nmargin: .nan\nruns: []",
        "",
        "budget_usd: 1\nruns: " + "[" * 5000,
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{n}: &{n} [*{m}, *{m}, *{m}, *{m}, *{m}, *{m}]\n" for m, n in pairwise("abcdefghij")),
        "budget_usd: 1\nruns: [{run: \udce9, to: skip}]",
    ],
)
def test_what_is_no_plan_is_refused_with_the_place(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text, errors="surrogateescape")  # the last one is of an editor that writes Latin-1
    with pytest.raises(UsageError, match=r"plan\.yaml"):
        account.read(path)


@pytest.mark.slow
def test_the_budget_is_that_of_all_quotes(ft: Orchestrator, runs: list[RunHandle], tmp_path: Path) -> None:
    plan = written(ft, tmp_path / "plan.yaml")
    prepared = PreparedPlan(ft, tmp_path / "plan.yaml", order())
    highs = [s.migration.proposal.targets[0].quote.high_usd for s in prepared.steps]  # type: ignore[union-attr]
    assert prepared.high_usd == sum(highs, Decimal(0)) and plan.budget_usd >= prepared.high_usd
    assert plan.budget_usd - prepared.high_usd < Decimal("0.01")


@pytest.mark.slow
def test_a_plan_calls_each_run_by_its_id_and_once(
    ft: Orchestrator, runs: list[RunHandle], tmp_path: Path
) -> None:
    """`last` would be the moved run when the plan is carried out again."""
    path, first = tmp_path / "plan.yaml", runs[0]
    written(ft, path)
    text = path.read_text()
    path.write_text(text.replace(f"run: {runs[2].id}", "run: last"))
    with pytest.raises(UsageError, match=rf"last to openai: use the run's id {runs[2].id} in a plan"):
        PreparedPlan(ft, path, order())
    path.write_text(text.replace(f"run: {runs[2].id}", f"run: {first.record.job_id}"))
    with pytest.raises(UsageError, match=f"names {first.id} twice"):
        PreparedPlan(ft, path, order())


@pytest.mark.slow
@pytest.mark.parametrize("edit", ["model", "skip", "deleted"])
def test_what_was_paid_before_an_edit_counts(
    ft: Orchestrator, runs: list[RunHandle], sandbox: Sandbox, tmp_path: Path, edit: str
) -> None:
    path = tmp_path / "plan.yaml"
    entry = f"  - run: {runs[2].id}\n    to: openai\n    model: gpt-4.1-mini\n    proof: false\n"
    path.write_text(f"budget_usd: 1\nruns:\n{entry}")
    [done] = carried(PreparedPlan(ft, path, order()), sandbox, tmp_path)
    paid = ft.run(done.new_run or "").record.bill
    assert paid is not None and paid.usd > 0
    edited = {
        "model": entry.replace("4.1-mini", "4o-mini"),
        "skip": entry.replace("to: openai", "to: skip"),
        "deleted": f"  - run: {runs[1].id}\n    to: openai\n    model: gpt-4.1-mini\n    proof: false\n",
    }[edit]
    path.write_text(f"budget_usd: 1\nruns:\n{edited}")
    prepared = PreparedPlan(ft, path, order())
    quotes = [s.migration.proposal.targets[0].quote for s in prepared.steps]
    assert prepared.high_usd == paid.usd + sum((q.high_usd for q in quotes if q), Decimal(0))
    tight = prepared.high_usd - paid.usd / 2
    path.write_text(f"budget_usd: {tight}\nruns:\n{edited}")
    sandbox.clear_requests()
    with pytest.raises(OverBudget):
        PreparedPlan(ft, path, order()).run(tmp_path / "reports", quiet)
    assert not made(sandbox, "openai")


class Killed:
    """Carries a plan out in a process of its own, which ends itself at the first or second job."""

    def __call__(self, arguments: list[str]) -> None:
        import os

        home, path, at = arguments
        with Orchestrator(config.load(env=dict(os.environ), cwd=Path(home))) as ft:
            seen = 0

            def tell(words: str) -> None:
                nonlocal seen
                seen += ": run " in words
                if seen == int(at):
                    os.kill(os.getpid(), signal.SIGKILL)

            PreparedPlan(ft, Path(path), order()).run(Path(home) / "reports", tell)


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_plan_goes_on_after_a_kill(
    ft: Orchestrator,
    runs: list[RunHandle],
    own_env: dict[str, str],
    sandbox: Sandbox,
    tmp_path: Path,
    at: int,
) -> None:
    written(ft, tmp_path / "plan.yaml")
    sandbox.clear_requests()
    arguments = [str(tmp_path), str(tmp_path / "plan.yaml"), str(at)]
    ended = command.run(arguments, cwd=tmp_path, env=own_env, program=Killed())
    assert ended.code == -signal.SIGKILL, ended.err.decode()
    done = carried(PreparedPlan(ft, tmp_path / "plan.yaml", order()), sandbox, tmp_path)
    assert len(done) == 3 and not any(one.problem for one in done)
    assert made(sandbox, "openai") == 3
    assert len(ft.store.runs.matching(tags={MIGRATED_FROM: runs[0].id})) == 1
