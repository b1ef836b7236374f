"""A comparison as one HTML file: no network, no script; light, dark and printed; readable without colour."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from orchestrate import text
from orchestrate.reports import rows, sections, svg
from orchestrate.reports.records import ComparedRuns, billed, quoted
from orchestrate.types import Evaluation

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(comparison: ComparedRuns, now: datetime | None = None) -> str:
    """The whole document. Everything that came from outside is escaped."""
    title = "Comparison of " + text.joined([c.label for c in comparison.runs])
    mark = "SANDBOX: " if comparison.sandbox else ""
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="when">orchestrate, {(now or datetime.now(UTC)):%Y-%m-%d %H:%M} UTC</p>',
        _banner(comparison),
        _reasons(comparison),
        _list(comparison.findings),
        "<h2>Side by side</h2>",
        _table(comparison, [(name, values, False) for name, values in rows.facts(comparison)]),
        _losses(comparison),
        _scores(comparison),
        _evaluations(comparison),
        _costs(comparison),
        _settings(comparison),
        "<h2>Notes</h2>" + _list(comparison.notes) if comparison.notes else "",
    ]
    return document(mark + title, "\n".join(part for part in body if part))


def document(title: str, body: str) -> str:
    """A page around a body whose parts are escaped already."""
    style = files("orchestrate.reports").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _banner(comparison: ComparedRuns) -> str:
    if not comparison.sandbox:
        return ""
    labels = [c.label for c in comparison.runs if c.run.sandbox]
    who = "All runs" if len(labels) == len(comparison.runs) else text.joined(labels)
    return (
        f'<div class="sandbox" role="note"><strong>SANDBOX</strong> {escape(who)}: trained by a local '
        "stand-in on a "
        "tiny model, not by the host named. Nothing was billed.</div>"
    )


def _reasons(comparison: ComparedRuns) -> str:
    if comparison.comparable:
        return ""
    items = "".join(f"<li><b>{escape(r.aspect)}</b>: {escape(r.text)}</li>" for r in comparison.reasons)
    return f'<div class="not" role="note"><h2>{rows.NOT_COMPARABLE}</h2><ul>{items}</ul></div>'


def _list(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(s)}</li>" for s in sentences) + "</ul>" if sentences else ""


def _table(comparison: ComparedRuns, cells: Sequence[tuple[str, Sequence[str], bool]]) -> str:
    heads = "".join(
        f'<th scope="col"{" class=tag" if c.run.sandbox else ""}>{escape(c.label)}</th>'
        for c in comparison.runs
    )
    body = "".join(
        f'<tr{" class=differs" if differs else ""}><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{_badge(value) if name == rows.PROOF else escape(value)}</td>" for value in values)
        + "</tr>"
        for name, values, differs in cells
    )
    return (
        "<div "
        f'class="scroll"><table><thead><tr><td></td>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _badge(value: str) -> str:
    """A proof of each place, the newest first."""
    shown: list[str] = []
    for said in value.split("; "):
        kind = "proved" if said.startswith("proved") else "failed" if said.startswith("failed") else "open"
        shown.append(f'<span class="badge {kind}">{escape(said)}</span>')
    return " ".join(shown)


def _losses(comparison: ComparedRuns) -> str:
    """Validation loss where a run has it, its training loss faint behind; training loss otherwise."""
    series: list[svg.Series] = []
    for i, c in enumerate(comparison.runs):
        train = tuple((p.tokens, p.value) for p in c.train_curve)
        valid = tuple((p.tokens, p.value) for p in c.valid_curve)
        if len(valid) >= 2:
            series.append(svg.Series(f"{c.label}, valid", valid, i))
            series += [svg.Series(f"{c.label}, train", train, i, faint=True)] if train else []
        elif train:
            series.append(svg.Series(f"{c.label}, train", train, i))
    if not series:
        return ""
    known = any(c.tokens for c in comparison.runs)
    axis = "tokens trained" if known else "steps"
    chart = svg.lines(series, title=f"Loss over {axis}", x_name=axis, y_name="loss per token")
    warned = [r.text for r in comparison.reasons if r.aspect == "loss"]
    caption = f"Loss over one axis of {axis}. Thin lines: training loss of runs that have a validation loss."
    return sections.figure("Loss", chart, " ".join([caption, *(f"Not on one scale: {w}." for w in warned)]))


def _scores(comparison: ComparedRuns) -> str:
    parts: list[str] = []
    for metric in rows.metrics(comparison):
        items: list[svg.Interval] = []
        told: list[str] = []
        for i, c in enumerate(comparison.runs):
            found = rows.result(c, metric)
            if found is None or found.metric.kind == "amount":
                continue
            for side, score in (("base", found.rival_score), ("tuned", found.score)):
                if score is not None:
                    words = f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"
                    name = f"{c.label}, {side}"
                    items.append(
                        svg.Interval(name, score.value, score.low, score.high, words, i, side == "base")
                    )
            apart = found.difference
            flips = f"{apart.gained} rows gained, {apart.lost} lost of " if apart else ""
            digest, count = found.rows
            told.append(
                f"{c.label}: {flips}{count} ({digest[:12]}), answered by {found.contender.answered_by}"
            )
        if items:
            chart = svg.intervals(items, title=f"{metric} of base and tuned models", x_name=metric)
            caption = (
                f"Hollow: the base model; filled: the tuned one; lines: 95% intervals. {'; '.join(told)}."
            )
            parts.append(sections.figure(f"Held-out {metric}", chart, caption))
    return "".join(parts)


def _evaluations(comparison: ComparedRuns) -> str:
    """The newest evaluation of each run in full, and what changed since an earlier one."""
    shown: dict[str, str] = {}
    newest_of: list[Evaluation] = []
    for c in comparison.runs:
        newest = max(c.scores, key=lambda e: e.evaluation.created_at, default=None)
        if newest is not None and newest.evaluation.id not in shown:
            one = newest.evaluation
            newest_of.append(one)
            shown[one.id] = f"<h2>{escape(one.id)}</h2>" + sections.evaluation(one, c.flips, charts=False)
    again = [(c.label, pairing) for c in comparison.runs for pairing in c.asked_again]
    kept = "".join(
        f"<h2>Did {escape(c.label)} forget anything</h2>{sections.regression(c.regression)}"
        for c in comparison.runs
        if c.regression is not None
    )
    plots = sections.quality(newest_of) if newest_of else ""
    return plots + "".join(shown.values()) + kept + sections.changed(again)


def _costs(comparison: ComparedRuns) -> str:
    items: list[svg.Bar] = []
    for i, c in enumerate(comparison.runs):
        quote = c.run.quote
        price, bill = quoted(c), billed(c)
        if quote is not None and price is not None:
            low, high = float(quote.low_usd), float(quote.high_usd)
            items.append(
                svg.Bar(f"{c.label}, quoted", float(price), text.money(price), i, low, high, hollow=True)
            )
        if bill is not None:
            items.append(svg.Bar(f"{c.label}, billed", float(bill), text.money(bill), i))
    if not items:
        return ""
    chart = svg.bars(items, title="Training cost, quoted and billed", x_name="US dollars")
    return sections.figure(
        "Cost of training", chart, "Dashed: quoted, with its low and high end; filled: billed."
    )


def _settings(comparison: ComparedRuns) -> str:
    found = rows.settings(comparison)
    if not found:
        return ""
    differ = (
        "Those that differ come first and are marked ≠." if any(d for _, _, d in found) else "None differ."
    )
    return f"<h2>Settings</h2><p>{differ}</p>" + _table(comparison, found)
