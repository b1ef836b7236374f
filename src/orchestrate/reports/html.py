"""A comparison as one HTML file, the answer first: no network, no script; light, dark and printed; on a
phone; readable without colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from msgspec.structs import replace

from orchestrate import text
from orchestrate.evaluation.flips import Flips
from orchestrate.reports import cards, charts, rows, sections
from orchestrate.reports.records import Compared, ComparedRuns, Point, bill_word, billed, quoted
from orchestrate.types import Evaluation

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_SHORT = 34
"""Characters of a cell that is never wrapped."""


def page(comparison: ComparedRuns, now: datetime | None = None) -> str:
    """The whole document. Everything that came from outside is escaped."""
    title = "Comparison of " + text.joined([c.label for c in comparison.runs])
    mark = "SANDBOX: " if comparison.sandbox else ""
    body = [
        cards.header(comparison, title, now or datetime.now(UTC)),
        _reasons(comparison),
        cards.cards(comparison),
        cards.quality_and_cost(comparison),
        _headed("What the numbers say", _list(comparison.findings)),
        _broken(comparison),
        _headed("Money", _money(comparison)),
        _curves(comparison),
        _settings(comparison),
        _headed("Scores", _scores(comparison) + _evaluations(comparison)),
        _headed("Side by side", _facts(comparison, rows.facts(comparison))),
        _headed("Notes", _list(comparison.notes)),
    ]
    return document(mark + title, "\n".join(part for part in body if part))


def _headed(heading: str, body: str) -> str:
    return f"<h2>{heading}</h2>{body}" if body else ""


def document(title: str, body: str) -> str:
    """A page around a body whose parts are escaped already."""
    style = files("orchestrate.reports").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _reasons(comparison: ComparedRuns) -> str:
    if comparison.comparable:
        return ""
    items = "".join(f"<li><b>{escape(r.aspect)}</b>: {escape(r.text)}</li>" for r in comparison.reasons)
    return f'<div class="not" role="note"><h2>{rows.NOT_COMPARABLE}</h2><ul>{items}</ul></div>'


def _list(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(s)}</li>" for s in sentences) + "</ul>" if sentences else ""


def _facts(comparison: ComparedRuns, facts: rows.Facts) -> str:
    return _table(comparison, [(name, values, False) for name, values in facts])


def _table(comparison: ComparedRuns, cells: Sequence[tuple[str, Sequence[str], bool]]) -> str:
    heads = "".join(f'<th scope="col">{escape(c.label)}</th>' for c in comparison.runs)
    body = "".join(
        f'<tr{" class=differs" if differs else ""}><th scope="row">{escape(name)}</th>'
        + "".join(_cell(name, value) for value in values)
        + "</tr>"
        for name, values, differs in cells
    )
    head = f"<thead><tr><td></td>{heads}</tr></thead>"
    return f'<div class="scroll" tabindex="0"><table>{head}<tbody>{body}</tbody></table></div>'


def _cell(name: str, value: str) -> str:
    if name == rows.PROOF:
        return f"<td>{_badge(value)}</td>"
    return f"<td{'' if len(value) <= _SHORT else ' class=long'}>{escape(value)}</td>"


def _badge(value: str) -> str:
    """A proof of each place, the newest first."""
    shown: list[str] = []
    for said in value.split("; "):
        kind = "proved" if said.startswith("proved") else "failed" if said.startswith("failed") else "open"
        shown.append(f'<span class="badge {kind}">{escape(said)}</span>')
    return " ".join(shown)


def _curves(comparison: ComparedRuns) -> str:
    """Validation with validation and training with training, each over one axis."""
    known = any(c.trained_tokens for c in comparison.runs)
    axis = "tokens trained" if known else "steps"
    warned = [f"Not on one scale: {r.text}." for r in comparison.reasons if r.aspect == "loss"]
    found: list[str] = []
    kinds: tuple[tuple[str, Callable[[Compared], Sequence[Point]]], ...] = (
        ("Validation", lambda c: c.valid_curve if len(c.valid_curve) > 1 else ()),
        ("Training", lambda c: c.train_curve),
    )
    for kind, curve in kinds:
        series = [
            charts.Series(c.label, tuple((p.tokens, p.value) for p in points), i)
            for i, c in enumerate(comparison.runs)
            if (points := curve(c))
        ]
        if not series:
            continue
        rewarded = all(c.reward is not None for c in comparison.runs if curve(c))
        what = "reward" if rewarded else "loss"
        unit = "reward" if rewarded else "loss per token"
        title = f"{kind} {what} over {axis}"
        chart = charts.lines(series, title=title, x_name=axis, y_name=unit, log=not rewarded)
        without = [c.label for c in comparison.runs if not curve(c)]
        missing = [f"{text.joined(without)}: none was told."] if without else []
        found.append(sections.figure(f"{kind} {what}", chart, " ".join([*missing, *warned]), 3))
    return _headed("Curves", "".join(found))


def _scores(comparison: ComparedRuns) -> str:
    parts: list[str] = []
    for metric in rows.metrics(comparison):
        items: list[charts.Interval] = []
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
                        charts.Interval(name, score.value, score.low, score.high, words, i, side == "base")
                    )
            apart = found.difference
            flips = f"{apart.gained} rows gained, {apart.lost} lost of " if apart else ""
            digest, count = found.rows
            told.append(
                f"{c.label}: {flips}{count} ({digest[:12]}), answered by {found.contender.answered_by}"
            )
        if items:
            chart = charts.intervals(items, title=f"{metric} of base and tuned models", x_name=metric)
            caption = (
                f"Hollow: the base model; filled: the tuned one; lines: 95% intervals. {'; '.join(told)}."
            )
            parts.append(sections.figure(f"Held-out {metric}", chart, caption, 3))
    return "".join(parts)


def _broken(comparison: ComparedRuns) -> str:
    """What each run broke and fixed, the rows with their answers side by side."""
    told = [sections.flipped(_of(c, found)) for c in comparison.runs for found in c.flips]
    return _headed("Broken rows", "".join(told))


def _of(c: Compared, found: Flips) -> Flips:
    """With the run as the rest of the page calls it."""
    return replace(found, contender=c.label) if found.contender == c.run.id else found


def _evaluations(comparison: ComparedRuns) -> str:
    """The newest evaluation of each run in full, and what changed since an earlier one."""
    newest = [one.evaluation for c in comparison.runs if (one := rows.newest_score(c)) is not None]
    unique = list({one.id: one for one in newest}.values())
    again = [(c.label, pairing) for c in comparison.runs for pairing in c.asked_again]
    kept = "".join(
        f"<h3>Did {escape(c.label)} forget anything</h3>{sections.regression(c.regression)}"
        for c in comparison.runs
        if c.regression is not None
    )
    plots = sections.quality(unique) if unique else ""
    return plots + "".join(_in_full(one) for one in unique) + kept + sections.changed(again)


def _in_full(one: Evaluation) -> str:
    whole = sections.evaluation(one, (), charted=False)
    return f"<details><summary>{escape(one.id)} in full</summary>{whole}</details>"


def _money(comparison: ComparedRuns) -> str:
    items: list[charts.Bar] = []
    for i, c in enumerate(comparison.runs):
        quote, price, bill = c.run.quote, quoted(c), billed(c)
        if quote is not None and price is not None:
            ends = float(quote.low_usd), float(quote.high_usd)
            name = f"{c.label}, quoted"
            items.append(charts.Bar(name, float(price), text.money(price), i, *ends, hollow=True))
        if bill is not None:
            items.append(charts.Bar(f"{c.label}, {bill_word(c)}", float(bill), text.money(bill), i))
    chart = ""
    if items:
        drawn = charts.bars(items, title="Cost of training", x_name="US dollars")
        told = "Dashed: quoted, with its low and high end; filled: what came of it."
        chart = sections.figure("Cost of training", drawn, told, 3)
    facts = rows.money(comparison)
    return chart + (_facts(comparison, facts) if facts else "")


def _settings(comparison: ComparedRuns) -> str:
    found = rows.settings(comparison)
    if not found:
        return ""
    differing = [row for row in found if row[2]]
    told = "" if differing else "<p>None differs because somebody chose so.</p>"
    shown = _table(comparison, differing) if differing else told
    whole = f"<details><summary>All {len(found)} settings</summary>{_table(comparison, found)}</details>"
    return f"<h2>Settings that differ</h2>{shown}{whole}"
