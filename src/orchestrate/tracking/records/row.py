"""A run as a row of its table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from orchestrate.tracking.clock import Clock, stamp
from orchestrate.types import JobStatus, Run, SubmitPhase

TRANSLATION = "translation"
"""The kind of record that says what the settings of a run became on its backend."""


def columns(run: Run, clock: Clock) -> dict[str, Any]:
    """The row of a run, but for its id and what is no part of the record."""
    from orchestrate.costing import spending

    money = spending(run)
    return {
        "ref": run.ref,
        "name": run.spec.get("suffix"),
        "provider": run.provider,
        "host": run.host,
        "account": run.account,
        "sandbox": run.sandbox,
        "phase": run.phase.value,
        "status": run.status.value,
        "job_id": run.job_id,
        "spec_hash": run.spec_hash,
        "dataset_digest": run.dataset_digest,
        "created_at": stamp(run.created_at),
        "updated_at": stamp(run.updated_at),
        "due_at": stamp(clock.now()),
        "bill_usd": str(money.spent_usd) if money.spent_usd else None,
        "committed_usd": str(money.committed_usd) if money.committed_usd else None,
        "idempotency_key": run.idempotency_key,
        "made_by": run.made_by,
        "record": run.to_json().decode(),
    }


def beside(
    clock: Clock, run_id: str, kind: str, record: msgspec.Struct | Mapping[str, Any]
) -> dict[str, Any]:
    """The row of a JSON record that is kept beside a run."""
    text = msgspec.json.encode(record).decode()
    return {"run_id": run_id, "kind": kind, "at": stamp(clock.now()), "record": text}


def word(run: Run) -> tuple[SubmitPhase, JobStatus, str | None]:
    """Where it stands; a step is written down when that changes."""
    return run.phase, run.status, run.raw_status


def reopened(before: Run, after: Run) -> bool:
    return before.status.terminal and not after.status.terminal
