"""Recommended number of rows for each goal, used by `advise`, `init` and `check`.

The numbers for format, domain and capability come from widely cited guides: 300-500, 1,000-5,000 and
5,000-50,000 rows. Yandex recommends 1,000 rows for a classifier, with 100 per class (yandex.cloud, tuning
classification models). No guide gives a number for tool calls or style, so both use the recommendation for
format.
"""

from __future__ import annotations

from enum import StrEnum

from orchestrate.text import count
from orchestrate.types import Record

FEW_SHOT_ROWS = 100
"""Number of rows below which few-shot prompting works better than tuning. OpenAI's fine-tuning guide reports
clear improvements with 50 to 100 examples, depending on the task."""
_ROWS_OF_A_LABEL = 100
_GUIDE = "guides to fine-tuning"


class Goal(StrEnum):
    """Goal of the fine-tuning."""

    FORMAT = "format"
    STYLE = "style"
    DOMAIN = "domain"
    CAPABILITY = "capability"
    CLASSIFICATION = "classification"
    TOOL_USE = "tool-use"


_VOLUMES: dict[Goal, tuple[int, int, str]] = {
    Goal.FORMAT: (300, 500, _GUIDE),
    Goal.STYLE: (
        300,
        500,
        f"{_GUIDE} (no provider publishes a number for style, so this is the number for a format)",
    ),
    Goal.DOMAIN: (1_000, 5_000, _GUIDE),
    Goal.CAPABILITY: (5_000, 50_000, _GUIDE),
    Goal.CLASSIFICATION: (1_000, 1_000, "Yandex, tuning classification models"),
    Goal.TOOL_USE: (
        300,
        500,
        f"{_GUIDE} (same as for a format, because no provider publishes a number for tool calls)",
    ),
}


class Volume(Record, frozen=True, kw_only=True):
    """A file's number of rows, compared with the recommended number for its goal."""

    goal: Goal
    why: str | None = None
    """Evidence from which the goal was inferred. `None` if the user chose the goal."""
    rows: int
    least: int
    """Minimum recommended number of rows."""
    most: int
    """Maximum recommended number of rows. Equal to `least` if no maximum is published."""
    source: str

    @property
    def enough(self) -> bool:
        return self.rows >= self.least

    @property
    def span(self) -> str:
        return f"{self.least:,}-{self.most:,}" if self.most > self.least else f"{self.least:,}"

    @property
    def wanted(self) -> str:
        """Recommended number of rows, for example `300-500 rows`."""
        return f"{self.span} rows" if self.most > self.least else f"{self.span} or more rows"

    def __str__(self) -> str:
        if self.rows < FEW_SHOT_ROWS:
            stands = f"with fewer than {FEW_SHOT_ROWS} rows, few-shot examples in the prompt work better"
        elif not self.enough:
            stands = f"add at least {self.least - self.rows:,} more"
        elif self.rows > self.most > self.least:
            stands = "more than recommended, so the best half of the rows may be enough"
        else:
            stands = "enough"
        inferred = f" (inferred: {self.why})" if self.why else ""
        here = count(self.rows, "row")
        return f"goal {self.goal.value}{inferred}: {self.wanted} are typical. You have {here}: {stands}"


def volume(goal: Goal, rows: int, *, labels: int = 0, why: str | None = None) -> Volume:
    """Compare the number of rows with the recommended number for a goal. `labels` is the number of distinct
    labels in a classification task."""
    least, most, source = _VOLUMES[goal]
    if goal is Goal.CLASSIFICATION:
        least = most = max(least, _ROWS_OF_A_LABEL * labels)
    return Volume(goal=goal, why=why, rows=rows, least=least, most=most, source=source)


def inferred(
    rows: int,
    *,
    labels: int = 0,
    tools: bool = False,
    keyed: bool = False,
    knowing: bool = False,
    bare: bool = False,
    closely: bool = True,
) -> Volume:
    """Infer the goal from the rows, and compare the number of rows with the number recommended for that goal.

    The goal is inferred from these properties of the rows:

    - `labels`: the number of distinct short answers, or 0 if answers don't repeat.
    - `tools`: rows contain tool calls.
    - `keyed`: answers are JSON objects with the same keys.
    - `knowing`: answers contain facts that are not in their prompts.
    - `bare`: rows are text without prompts.

    `closely` is False if the answers were not inspected for `keyed` and `knowing`. A new capability can't be
    inferred from rows, so the user must choose that goal."""
    if labels:
        return volume(Goal.CLASSIFICATION, rows, labels=labels, why=f"{labels} different answers")
    if tools:
        return volume(Goal.TOOL_USE, rows, why="the rows contain tool calls")
    if keyed:
        return volume(Goal.FORMAT, rows, why="the answers are JSON with the same keys")
    if bare:
        return volume(Goal.DOMAIN, rows, why="text without prompts")
    if knowing:
        return volume(Goal.DOMAIN, rows, why="the answers contain facts that are not in the prompts")
    why = (
        "free-form answers without a common format"
        if closely
        else "the rows have no labels or tools, but `orchestrate advise` also inspects the answers"
    )
    return volume(Goal.STYLE, rows, why=why)


def volume_summary() -> str:
    """Summarize the recommended data volumes in one line."""
    return ", ".join(
        f"{volume(goal, 0).span} {what}"
        for goal, what in (
            (Goal.FORMAT, "rows for a format"),
            (Goal.DOMAIN, "for a domain"),
            (Goal.CAPABILITY, "for a capability"),
            (Goal.CLASSIFICATION, "(at least 100 per label) for classification"),
        )
    )
