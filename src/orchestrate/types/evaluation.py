"""What a model is asked, what it answers, and how good that is."""

from __future__ import annotations

from datetime import datetime

from orchestrate.types.calls import ToolCall
from orchestrate.types.record import Record


class Message(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One chat message for `Provider.chat`."""

    role: str
    content: str


class Reply(Record, frozen=True, kw_only=True):
    """A model's answer with the token counts that the host reported, when it did."""

    content: str
    """The answer itself: thinking and calls of tools are apart from it."""
    model: str
    reasoning: str | None = None
    """The thinking before the answer, where the model showed some."""
    tool_calls: tuple[ToolCall, ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    """`length`: cut at the most tokens allowed, perhaps within its thinking, with nothing answered yet."""


class Score(Record, frozen=True, kw_only=True):
    """A mean over `n` rows with its 95% interval."""

    value: float
    low: float
    high: float
    n: int


class EvaluationResult(Record, frozen=True, kw_only=True):
    """Base model against tuned model on the same held-out rows."""

    run_id: str
    provider: str
    metric: str
    """exact_match, json_match, token_f1 ... (`orchestrate.evaluation.metrics`); higher is better."""
    dataset: str
    dataset_digest: str
    base: Score | None = None
    tuned: Score
    difference: Score | None = None
    """Tuned minus base, paired by row."""
    gained: int = 0
    """Rows that the base got wrong and the tuned model right."""
    lost: int = 0
    p_value: float | None = None
    """Exact McNemar test on the flips, for metrics that are right or wrong."""
    created_at: datetime
    items_file: str | None = None
    """JSONL with one line per row: prompt, expected, base answer, tuned answer, scores."""
    served_by: str = ""
    """What answered: the host's endpoint, or the downloaded adapter on this machine."""
