"""A run once more, from what was kept of it: on its backend or on another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from orchestrate.errors import DataError

if TYPE_CHECKING:
    from orchestrate.handles.run import RunHandle
    from orchestrate.preparing.prepared import Prepared
    from orchestrate.service.orchestrator import Orchestrator
    from orchestrate.spec import JobSpec
    from orchestrate.types import Run


def spec_of(run: Run, providers: Sequence[str], changes: Mapping[str, Any] | None = None) -> JobSpec:
    """The spec that the run was made from, with `changes` by dotted name. Other backends than the run's get
    the model by the name that all have for it. Raises `UsageError` where a part of the spec was
    a secret, `SpecError` for wrong changes."""
    from orchestrate import catalog
    from orchestrate.spec import specfile
    from orchestrate.tracking import stored_spec

    values = stored_spec(run).asked()
    elsewhere = set(providers) != {run.provider}
    if elsewhere and (known := catalog.lookup(str(values["model"]))) is not None:
        values["model"] = known.name
    for name, value in (changes or {}).items():
        specfile.put(values, name, value)
    return specfile.build(values, place=f"the spec of run {run.id}")


def changed_data(run: Run, prepared: Prepared) -> str | None:
    """How the data are other ones than those that the run was trained on; `None` where they are proven, by
    their digest, to be the same."""
    if prepared.data.digest == run.dataset_digest:
        return None
    now, then = prepared.data.digest[:12], run.dataset_digest[:12]
    return f"the data are not those of run {run.id}: their digest is {now}, and was {then}"


class Rerunning:
    """A part of `Orchestrator`, which alone inherits it."""

    def rerun(
        self,
        run: RunHandle | str,
        provider: str | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        other_data: bool = False,
        **terms: Any,
    ) -> RunHandle:
        """A run that has ended once more, from its kept spec: on its backend or another one, with `settings`
        by dotted name in place of its own. One of a sandbox stays in it. Data that are not proven by their
        digest to be those of the run are refused with `DataError`, unless `other_data`. `terms`, and what is
        raised, are those of `submit`."""
        ft = cast("Orchestrator", self)
        record = (ft.run(run) if isinstance(run, str) else run).record
        home, name = ft.home_of(record), provider or record.provider
        prepared = home.prepare(spec_of(record, [name], settings), name)
        if not other_data and (told := changed_data(record, prepared)):
            raise DataError(f"{told}; nothing was sent", fix="other_data=True, to train on them")
        given: dict[str, Any] = {"again": record.status.terminal, **terms}
        return home.submit(prepared, name, **given)
