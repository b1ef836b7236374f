"""Render the tokens that a model sees as one HTML page, with trained tokens highlighted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from string import Template

from orchestrate.types import Record


class Token(Record, frozen=True, kw_only=True):
    """A token and its `weight` in the loss (0 for context only). `special` marks control tokens, such as the
    end of a turn."""

    id: int
    text: str
    weight: float
    special: bool = False


class RowTokens(Record, frozen=True, kw_only=True):
    """The tokens of one sequence. `side` is preferred or rejected for a preference pair, desirable or
    undesirable for an unpaired answer."""

    row: int
    tokens: tuple[Token, ...]
    trained: int
    truncated: int
    """Number of tokens removed by truncation."""
    side: str | None = None
    notes: tuple[str, ...] = ()


class PreviewReport(Record, frozen=True, kw_only=True):
    """The result of `data preview`."""

    path: str
    model: str
    rows: tuple[RowTokens, ...]


def heading(row: RowTokens) -> str:
    side = f", {row.side}" if row.side else ""
    cut = f", {row.truncated:,} cut" if row.truncated else ""
    share = f" ({row.trained / len(row.tokens):.0%})" if row.tokens else ""
    return f"row {row.row}{side}: {len(row.tokens):,} tokens, {row.trained:,} trained{share}{cut}"


def html(report: PreviewReport) -> str:
    """Render the preview as one self-contained HTML page."""
    name = escape(
        f"{report.path.rsplit('/', 1)[-1]} as {report.model.rstrip('/').rsplit('/', 1)[-1]} sees it"
    )
    path = escape(f"{report.path}, {report.model}")
    page = Template(files("orchestrate.data.operations").joinpath("preview.html").read_text(encoding="utf-8"))
    return page.substitute(title=name, heading=name, path=path, rows="\n".join(map(_article, report.rows)))


def _article(row: RowTokens) -> str:
    share = f'<meter max="{len(row.tokens)}" value="{row.trained}"></meter>'
    notes = "".join(f"<p>{escape(text)}</p>" for text in row.notes)
    tokens = "".join(map(_span, row.tokens))  # whitespace between elements would be visible
    return f"<article><h2>{escape(heading(row))}{share}</h2><pre>{tokens}</pre>{notes}</article>"


def _span(token: Token) -> str:
    tag = "b" if token.weight else "i"
    special = ' class="s"' if token.special else ""
    # A token that ends in the middle of a multi-byte character has no text.
    shown = escape(token.text).replace("\n", "⏎\n") or "·"
    return f'<{tag}{special} title="{token.id}, weight {token.weight:g}">{shown}</{tag}>'


def texts(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[str]:
    """Return the text of each token id. Concatenating them yields the full text. A character that spans
    several tokens appears at its last token. `decode` maps a list of ids to text."""
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
