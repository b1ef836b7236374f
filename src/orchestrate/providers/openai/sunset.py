"""The end of fine-tuning at OpenAI, told to the user with the way out.

The last day of new jobs is in the profile; the shutdown of each base model is in the catalog.
"""

from __future__ import annotations

from orchestrate import catalog
from orchestrate.catalog import Model, ModelOnHost
from orchestrate.errors import TrainingClosed
from orchestrate.profile import this_machine
from orchestrate.providers.openai.profile import PROFILE


def closed(error: TrainingClosed, model: ModelOnHost) -> TrainingClosed:
    """The host's 403 `training_not_available` with what happened, the dates, and the nearest open model."""
    text = (
        "OpenAI is winding down fine-tuning and takes no new job from this organization; "
        f"nothing was created. From {PROFILE.no_new_jobs_after} on it takes none from anyone"
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
    nearest, here = others[0], this_machine().kind
    places = [name for name, host in nearest.hosts.items() if name != PROFILE.kind and host.tunable == "yes"]
    place = places[0] if places else here
    rest = ", ".join([*places[1:], here] if places else [])
    also = f"   ({nearest.name} is also on: {rest})" if rest else ""
    return f"orchestrate submit --provider {place} --model {nearest.name}{also}"
