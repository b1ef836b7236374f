"""The day after: the host trains and answers no more, and what was imported and recorded is all there is."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from tests.unit.migration.test_migrating import order

from orchestrate import Orchestrator, RunHandle
from orchestrate.errors import UsageError
from orchestrate.migration import account_import, recordings
from orchestrate.migration.migrations import PreparedMigration
from orchestrate.migration.recordings import PreparedRecording, RecordOrder
from orchestrate.sandbox.server import Sandbox
from orchestrate.types import MIGRATED_FROM, Sampling

AFTER = date(2027, 2, 1)
"""The models of the sandboxed OpenAI are silent after 2027-01-14."""


@pytest.fixture(params=["404", "silence"])
def ended(request: pytest.FixtureRequest, ft: Orchestrator, old: RunHandle, sandbox: Sandbox) -> RunHandle:
    """The old run, recorded while it answered; its host has nothing any more, or hangs up."""
    with PreparedRecording(ft, old.id, RecordOrder(sampling=Sampling(max_tokens=8))) as prepared:
        assert prepared.run().complete
    gone: dict[str, Any] = {"kind": "error", "status": 404}
    fault = gone if request.param == "404" else {"kind": "lost_request"}
    sandbox.fault("openai", path=".*", count=0, **fault)
    return old


@pytest.mark.slow
def test_a_silent_model_moves_by_what_was_recorded(
    ft: Orchestrator, ended: RunHandle, sandbox: Sandbox
) -> None:
    sandbox.clear_requests()
    found = PreparedMigration(ft, ended.id, order("openai", "together"), today=AFTER)
    assert found.proposal.old == "recorded" and found.proposal.days_left == -18
    assert found.proposal.held_out is not None and found.proposal.held_out.rows == 30
    assert found.ready == ["together"]
    closed = next(target for target in found.proposal.targets if target.provider == "openai")
    assert closed.refused is not None and "not accepted new fine-tuning jobs" in closed.refused
    assert closed.refused.endswith("Choose another backend with --to"), "no model helps"
    new = found.submit("together")
    assert new.record.tags[MIGRATED_FROM] == ended.id and not sandbox.requests("openai")


def test_what_was_not_recorded_in_time_is_said(ft: Orchestrator, old: RunHandle) -> None:
    with pytest.raises(
        UsageError,
        match="was shut down and its answers were not recorded, so there is nothing to compare with",
    ):
        PreparedMigration(ft, old.id, order("together"), today=AFTER)
    assert PreparedMigration(ft, old.id, order("together", proof=False), today=AFTER).ready == ["together"]


def test_the_calendar_and_the_inventory_of_a_silent_account(ft: Orchestrator, old: RunHandle) -> None:
    [due] = recordings.calendar(ft, AFTER)
    assert (due.run_id, due.days_left, due.command) == (old.id, -18, None)
    [held] = account_import.take(ft, "openai", today=AFTER).inventory.rows
    assert (held.run_id, held.days_left) == (old.id, -18)
