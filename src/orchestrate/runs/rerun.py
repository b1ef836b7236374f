"""Repeat a run from its stored spec, on its own backend or another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrate.errors import DataError, UsageError
from orchestrate.runs.preparing.prepared import Prepared, prepare
from orchestrate.runs.submit import submit

if TYPE_CHECKING:
    from orchestrate.spec import JobSpec
    from orchestrate.types import Run
    from orchestrate.workspace import Workspace


def spec_of(run: Run, providers: Sequence[str], changes: Mapping[str, Any] | None = None) -> JobSpec:
    """Return the spec of a run. `changes` override its fields, by dotted name. For backends other than the
    run's own, the spec uses the model's common name. Raises `UsageError` if the run is a training session, or
    if its spec contained a secret (secrets are not stored). Raises `SpecError` for invalid changes."""
    from orchestrate import catalog
    from orchestrate.runs.submitting.repeats import stored_spec
    from orchestrate.spec import specfile

    if run.own_loop:
        raise UsageError(f"run {run.id} is a training session, and its training loop is not stored")
    values = stored_spec(run).asked()
    elsewhere = set(providers) != {run.provider}
    if elsewhere and (known := catalog.lookup(str(values["model"]))) is not None:
        values["model"] = known.name
    for name, value in (changes or {}).items():
        specfile.put(values, name, value)
    return specfile.build(values, place=f"the spec of run {run.id}")


def changed_data(run: Run, prepared: Prepared) -> str | None:
    """Describe how the data differs from the run's training data. Return `None` if the digests are equal."""
    if prepared.data.digest == run.dataset_digest:
        return None
    now, then = prepared.data.digest[:12], run.dataset_digest[:12]
    return f"the data differs from that of run {run.id}: its digest is {now} instead of {then}"


def rerun(
    ws: Workspace,
    run: Run,
    provider: str | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    other_data: bool = False,
    **terms: Any,
) -> Run:
    """Repeat a run. See `Orchestrator.rerun`."""
    home, name = ws.home_of(run), provider or run.provider
    prepared = prepare(home, spec_of(run, [name], settings), name)
    if not other_data and (change := changed_data(run, prepared)):
        raise DataError(f"{change}. Nothing was sent", fix="pass other_data=True to train on it")
    given: dict[str, Any] = {"again": run.status.terminal, **terms}
    return submit(home, prepared, name, **given)
