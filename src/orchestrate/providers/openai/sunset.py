"""The end of fine-tuning at OpenAI, told to the user with the way out.

Dates: OpenAI's deprecations page, announced 2026-05-07; the shutdown of each base model is in the catalog.
"""

from __future__ import annotations

from datetime import date

from orchestrate import catalog
from orchestrate.catalog import Model, ModelOnHost
from orchestrate.errors import TrainingClosed

LAST_DAY_OF_NEW_JOBS = date(2027, 1, 6)


def closed(error: TrainingClosed, model: ModelOnHost) -> TrainingClosed:
    """The host's 403 `training_not_available` with what happened, the dates, and the nearest open model."""
    text = (
        "OpenAI is winding down fine-tuning and takes no new job from this organization; "
        f"nothing was created. From {LAST_DAY_OF_NEW_JOBS} on it takes none from anyone"
    )
    if model.host is not None and model.host.shutdown is not None:
        text += f"; {model.name} and every tune made on it stop answering on {model.host.shutdown}"
    return TrainingClosed(
        error.provider,
        text,
        status=error.status,
        code=error.code,
        request_id=error.request_id,
        fix=way_out(model.model),
    )


def way_out(model: Model | None) -> str:
    """The command that trains the nearest open model elsewhere with the same data and spec."""
    others = catalog.alternatives(model) if model is not None else []
    if not others:
        return "orchestrate quote --provider all   (the same spec on the other backends)"
    nearest = others[0]
    places = [name for name, host in nearest.hosts.items() if name != "openai" and host.tunable == "yes"]
    place = places[0] if places else "local"
    rest = ", ".join([*places[1:], "local"] if places else [])
    also = f"   ({nearest.name} is also on: {rest})" if rest else ""
    return f"orchestrate submit --provider {place} --model {nearest.name}{also}"
