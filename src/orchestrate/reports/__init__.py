"""Rendering of comparisons, evaluations, quotes and experiments for the terminal, Markdown, HTML, CSV and
JSON. These modules never contact a host or open a store, and are loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrate.core import late

if TYPE_CHECKING:
    from orchestrate.reports.compare import Comparison
    from orchestrate.reports.evaluations import EvaluationReport
    from orchestrate.reports.quotes import (
        ownership_markdown,
        ownership_table,
        quote_markdown,
        quote_table,
        verdict,
    )
    from orchestrate.reports.records import Compared, Reason, RunDifference

__all__ = [
    "Compared",
    "Comparison",
    "EvaluationReport",
    "Reason",
    "RunDifference",
    "ownership_markdown",
    "ownership_table",
    "quote_markdown",
    "quote_table",
    "verdict",
]

_QUOTES = ("ownership_markdown", "ownership_table", "quote_markdown", "quote_table", "verdict")

__getattr__ = late(
    __name__,
    {
        "Comparison": "compare",
        "EvaluationReport": "evaluations",
        **dict.fromkeys(_QUOTES, "quotes"),
        **dict.fromkeys(("Compared", "Reason", "RunDifference"), "records"),
    },
)
