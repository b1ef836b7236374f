"""Stored rows -> comparison -> terminal, Markdown, HTML, CSV, JSON. Nothing here asks a host or opens a
store."""

from orchestrate.reports.compare import Comparison, compare, with_proofs
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
    "compare",
    "with_proofs",
    "ownership_markdown",
    "ownership_table",
    "quote_markdown",
    "quote_table",
    "verdict",
]
