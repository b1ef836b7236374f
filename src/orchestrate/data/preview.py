"""Tokens of rows as a model sees them, the trained ones marked, as one page of HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from orchestrate.types import Record

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.9 ui-monospace, monospace; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  background: #fff; color: #222 }}
h1 {{ font-size: 1.1rem }} h2 {{ font-size: 1rem; margin-top: 2rem }}
section {{ white-space: pre-wrap; overflow-wrap: anywhere }}
span {{ border-right: 1px solid #ddd }} span.t {{ background: #c9efcf }}
@media (prefers-color-scheme: dark) {{ body {{ background: #161616; color: #ddd }}
  span {{ border-color: #333 }} span.t {{ background: #1d4d2a }} }}
</style></head><body><h1>{title}</h1>
<p>Marked tokens carry loss; the model sees the others as context. Hold the pointer over a token for its
id.</p> {rows}</body></html>
"""


class Token(Record, frozen=True, kw_only=True):
    """`weight` is the token's share in the loss; 0 is context only."""

    id: int
    text: str
    weight: float


class RowTokens(Record, frozen=True, kw_only=True):
    """One sequence; `side` is preferred or rejected for a preference pair."""

    row: int
    tokens: tuple[Token, ...]
    trained: int
    truncated: int
    """Tokens cut at the longest length."""
    side: str | None = None
    notes: tuple[str, ...] = ()


class PreviewReport(Record, frozen=True, kw_only=True):
    """The answer of `data preview`."""

    path: str
    model: str
    rows: tuple[RowTokens, ...]


def heading(row: RowTokens) -> str:
    side = f", {row.side}" if row.side else ""
    cut = f", {row.truncated:,} cut" if row.truncated else ""
    return f"row {row.row}{side}: {len(row.tokens):,} tokens, {row.trained:,} trained{cut}"


def html(report: PreviewReport) -> str:
    """One page that needs nothing else."""
    parts: list[str] = []
    for row in report.rows:
        parts.append(f"<h2>{escape(heading(row))}</h2><section>")
        parts += [_span(token) for token in row.tokens]
        parts.append("</section>")
        parts += [f"<p>{escape(text)}</p>" for text in row.notes]
    title = escape(f"{report.path} as {report.model} sees it")
    return _PAGE.format(title=title, rows="\n".join(parts))


def _span(token: Token) -> str:
    trained = ' class="t"' if token.weight else ""
    shown = escape(token.text).replace("\n", "⏎\n")
    return f'<span{trained} title="{token.id}, weight {token.weight:g}">{shown}</span>'


def texts(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[str]:
    """The text of each id, such that their concatenation is the text of all: a character of several tokens
    is shown at its last one. `decode` maps a list of ids to text."""
    shown: list[str] = []
    start = 0
    for end in range(1, len(ids) + 1):
        piece = decode(list(ids[start:end]))
        if piece.endswith("\ufffd") and end - start < 8 and end < len(ids):
            shown.append("")
            continue
        shown.append(piece)
        start = end
    return shown
