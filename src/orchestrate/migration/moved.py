"""Which runs took the place of which: a migrated run names the old one in a tag."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrate.types import JobStatus, Run

if TYPE_CHECKING:
    from orchestrate.tracking import Store

TAG = "migrated_from"
"""Of the new runs; its value is the old one's id."""
KEY = "migrate-"
"""How the idempotency keys of the new runs begin."""


def successors(store: Store) -> dict[str, Run]:
    """Old run's id -> the newest run that succeeded in its place, in the same kind of place: a rehearsal in
    the sandbox takes the place of no real run."""
    found: dict[str, Run] = {}
    new = [run for run in store.runs.keyed(KEY) if run.status is JobStatus.SUCCEEDED and TAG in run.tags]
    old = {run.id: run for run in store.runs.of_ids(run.tags[TAG] for run in new)}
    for run in sorted(new, key=lambda run: (run.created_at, run.id)):
        before = old.get(run.tags[TAG])
        if before is not None and before.sandbox == run.sandbox and run.abandoned is None:
            found[before.id] = run
    return found


def newest(run: Run, found: dict[str, Run]) -> Run:
    """What answers in a run's place now: a new run may have been migrated again."""
    seen = {run.id}
    while (after := found.get(run.id)) is not None and after.id not in seen:
        seen.add(after.id)
        run = after
    return run
