"""The head of a comparison's page: the answer, a card for each run, and quality against cost. Everything that
came from outside is escaped."""

from __future__ import annotations

from datetime import datetime
from html import escape

from orchestrate import text
from orchestrate.reports import charts, rows, scores, sections
from orchestrate.reports.records import (
    Compared,
    ComparedRuns,
    RunScore,
    bill_word,
    price,
    quoted,
)

CHIP = '<span class="chip">SANDBOX</span>'


def header(comparison: ComparedRuns, title: str, now: datetime) -> str:
    when = f'<p class="when">{escape(title)}, {now:%Y-%m-%d %H:%M} UTC</p>'
    return f"<header>{_sandbox(comparison)}{when}<h1>{escape(comparison.answer.sentence)}</h1></header>"


def _sandbox(comparison: ComparedRuns) -> str:
    labels = [c.name for c in comparison.runs if c.run.sandbox]
    if not labels:
        return ""
    who = "all runs were" if len(labels) == len(comparison.runs) else f"{text.joined(labels)}:"
    told = f"{who} trained by a local stand-in on a tiny model, not by the host named. Nothing was billed."
    return f'<p class="sandbox" role="note"><strong>SANDBOX</strong> {escape(told)}</p>'


def cards(comparison: ComparedRuns) -> str:
    return f'<div class="cards">{"".join(_card(comparison, c) for c in comparison.runs)}</div>'


def _card(comparison: ComparedRuns, c: Compared) -> str:
    taken = comparison.answer.run == c.run.id
    facts = [*_score(c), *_cost(c), ("time", text.duration(c.seconds), "created to finished")]
    shown = "".join(
        f"<div><dt>{escape(name)}</dt><dd><b>{escape(value)}</b> <span>{escape(more)}</span></dd></div>"
        for name, value, more in facts
    )
    kind = " taken" if taken else ""
    mark = '<span class="pick">✓ take this one</span>' if taken else ""
    chip = CHIP if c.run.sandbox else ""
    told = f"{c.run.model}, {rows.status(c)}"
    return (
        f'<section class="card{kind}"><h2>{escape(c.name)} {chip}</h2>{mark}'
        f'<p class="when">{escape(told)}</p>'
        f"<dl>{shown}</dl>{_verdict(c)}"
        f'<p class="id">{escape(c.run.id)}</p></section>'
    )


def _score(c: Compared) -> list[tuple[str, str, str]]:
    found = rows.newest_score(c)
    if found is None:
        return [("score", text.NOTHING, "not evaluated")]
    score, metric = found.score, found.metric
    value = scores.value(metric, score.value)
    within = f"{scores.value(metric, score.low)} to {scores.value(metric, score.high)}, n = {score.n:,}"
    told = [(metric.name, value, within)]
    if found.difference is not None:
        gap = scores.interval(metric, found.difference.score, signed=True)
        first, _, rest = gap.partition(" ")
        told.append((f"against {found.difference.against}", first, rest.strip("()")))
    return told


def _cost(c: Compared) -> list[tuple[str, str, str]]:
    cost = price(c)
    if cost is None:
        return [("cost", text.NOTHING, "no price is known")]
    word = bill_word(c)
    asked = f", {text.money(quoted(c))} quoted" if word != "quoted" and quoted(c) is not None else ""
    return [("cost of training", text.money(cost), f"{word}{asked}")]


def _verdict(c: Compared) -> str:
    found: RunScore | None = rows.newest_score(c)
    said = rows.verdict(found)
    if said == text.NOTHING:
        return ""
    return f'<p class="verdict {said.replace(" ", "-")}"><strong>{sections.MARKS[said]} {said}</strong></p>'


def quality_and_cost(comparison: ComparedRuns) -> str:
    """The scores of the metric that decides against what training cost, where there are two of one kind."""
    found = [
        (i, c, s, p)
        for i, c in enumerate(comparison.runs)
        if (s := rows.newest_score(c)) and (p := price(c)) is not None
    ]
    if not found:
        return ""
    metric = found[0][2].metric.name
    alike = [(i, c, s, p) for i, c, s, p in found if s.metric.name == metric and s.rows == found[0][2].rows]
    if len(alike) < 2:
        return ""
    items = [
        charts.Place(c.label, float(p), s.score.value, s.score.low, s.score.high, i) for i, c, s, p in alike
    ]
    title = f"{metric} against cost of training"
    chart = charts.places(items, title=title, x_name="US dollars to train", y_name=metric)
    told = (
        f"Up and to the left is better; lines: 95% intervals, over {text.count(alike[0][2].score.n, 'row')}."
    )
    return sections.figure("Quality against cost", chart, told)
