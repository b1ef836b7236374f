"""Score a base model without tuning, with and without examples in the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from orchestrate.errors import UsageError
from orchestrate.profile import this_machine
from orchestrate.runs.evaluation.held_out import EvaluationOrder, PreparedEvaluation
from orchestrate.types import Evaluation, Sampling, Score

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """Options for scoring `model` on the rows of `test`, with `shots` examples from other rows."""

    model: str
    test: str
    metric: str = "auto"
    shots: int = 5
    limit: int | None = None
    columns: Mapping[str, str] | None = None
    max_cost_usd: Decimal | None = None
    skip_failed: bool = False


def prepared(ft: Workspace, file: str, wanted: Measuring, *, private: bool = False) -> PreparedEvaluation:
    """Prepare the evaluation of a prompted model without sending anything. Few-shot examples come from
    `file`. Raises `UsageError` if the data is private and the model runs elsewhere."""
    own = f"{this_machine().kind}="
    if private and not wanted.model.startswith(own):
        raise UsageError(
            f"the data must stay on your machines, but {wanted.model} may run elsewhere",
            fix=f"--measure {own}MODEL",
        )
    order = EvaluationOrder(
        test=wanted.test,
        columns=wanted.columns,
        metrics=[wanted.metric],
        models=[wanted.model],
        shots=wanted.shots,
        examples=file,
        limit=wanted.limit,
        sampling=Sampling(max_tokens=512),
        max_cost_usd=wanted.max_cost_usd,
        skip_failed=wanted.skip_failed,
    )
    return PreparedEvaluation(ft, [], order)


def scores(found: Evaluation) -> tuple[Score, Score | None]:
    """Return the model's score without examples and its score with examples. The second is `None` if no
    examples were used. Raises `UsageError` for a metric that is not a fraction from 0 to 1."""
    plain, *more = [found.score(one.name) for one in found.contenders]
    if plain is None or not 0 <= plain.value <= 1:
        raise UsageError(
            "the target is a fraction from 0 to 1, but this metric has a different scale", fix="--metric NAME"
        )
    return plain, more[0] if more else None
