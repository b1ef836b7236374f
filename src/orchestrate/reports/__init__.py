"""Stored rows -> comparison -> terminal, Markdown, HTML, CSV, JSON. Nothing here asks a host or opens a
store.

compare(runs, metrics, evaluations, translations=None) -> Comparison
    `metrics` and `evaluations` by run id. `.table()` for a terminal,
    `.render("md"|"html"|"csv"|"json"|"table")`, `.save(path)` by the file's ending; `.comparable` and
    `.reasons` say whether the runs may be compared.
quote_table(quotes) -> rich renderable; quote_markdown(quotes) -> str; verdict(quotes) -> str
    Quotes side by side; the sentence that names the cheapest and why it is.
ownership_table(totals) -> rich renderable; ownership_markdown(totals) -> str
    What serving a tuned model comes to, over months, against prompting a base model.
"""

from orchestrate.reports.compare import Comparison, compare
from orchestrate.reports.quotes import (
    ownership_markdown,
    ownership_table,
    quote_markdown,
    quote_table,
    verdict,
)
from orchestrate.reports.records import Compared, Reason

__all__ = [
    "Compared",
    "Comparison",
    "Reason",
    "compare",
    "ownership_markdown",
    "ownership_table",
    "quote_markdown",
    "quote_table",
    "verdict",
]
