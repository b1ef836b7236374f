"""The parts of an HTML page that tell of evaluations. Everything that came from outside is escaped."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from html import escape

from orchestrate import text
from orchestrate.evaluation.flips import Flip, Flips
from orchestrate.evaluation.pairing import Pairing
from orchestrate.evaluation.regression.regress import Regression
from orchestrate.reports import charts, scores
from orchestrate.types import Evaluation, MetricUsed, Verdict

_SHOWN = 12
"""Broken and fixed items on a page, of each."""
_EMPTY = "<em>(empty)</em>"
MARKS = {"ship": "✓", "do not ship": "✗", "not enough evidence": "?"}


def figure(heading: str, chart: str, caption: str, level: int = 2) -> str:
    return (
        f"<h{level}>{escape(heading)}</h{level}><figure>{chart}"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    whole = f'<table class="narrow"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{whole}</div>'


def evaluation(one: Evaluation, flips: Sequence[Flips], *, charted: bool = True) -> str:
    """All of one evaluation: verdicts, scores, broken items, plots, slices, confusions."""
    drawn = [_intervals(one, metric) for metric in one.metrics] if charted else []
    parts = [
        f'<p class="when">{escape(scores.what_was_asked(one))}</p>',
        verdicts(one),
        table(scores.SCORE_HEAD, scores.score_rows(one)),
        *drawn,
        quality([one]) if charted else "",
        "".join(flipped(f) for f in flips),
        "<h3>Who answered</h3>" + table(scores.CONTENDER_HEAD, scores.contender_rows(one)),
    ]
    if sliced := scores.score_rows(one, sliced=True):
        told = "Corrected for their number (Holm): a slice that stands out by chance is not marked."
        parts.append(f"<h3>Slices</h3><p>{told}</p>" + table(scores.SCORE_HEAD, sliced))
    parts += [_confusion(one, i) for i in range(len(one.confusions))]
    if one.notes:
        parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in one.notes) + "</ul>")
    return "\n".join(part for part in parts if part)


def verdicts(one: Evaluation) -> str:
    return "".join(_verdict(v) for v in one.verdicts)


def _verdict(v: Verdict) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in v.reasons)
    kind = v.decision.replace(" ", "-")
    return (
        f'<div class="verdict {kind}" role="note"><strong>{MARKS[v.decision]} {escape(v.decision)}</strong> '
        f"{escape(v.contender)}<ul>{reasons}</ul></div>"
    )


def _intervals(one: Evaluation, metric: MetricUsed) -> str:
    if metric.kind == "amount":
        return ""
    items = [
        charts.Interval(
            m.contender,
            m.score.value,
            m.score.low,
            m.score.high,
            scores.interval(metric, m.score),
            i,
            one.contender(m.contender).kind != "tuned",
        )
        for i, m in enumerate(m for m in one.measures if m.metric == metric.name and not m.slice)
    ]
    chart = charts.intervals(items, title=f"{metric.name} of each contender", x_name=metric.name)
    return figure(metric.name, chart, "Filled: tuned models; hollow: others; lines: 95% intervals.", 3)


def quality(evaluations: Sequence[Evaluation]) -> str:
    """Two plots of the contenders of evaluations that share their first metric and their items: the score
    against the cost of an answer, and against the time it takes."""
    first = evaluations[0]
    metric = first.metrics[0]
    alike = [
        e for e in evaluations if e.metrics[0].name == metric.name and e.items_digest == first.items_digest
    ]
    asked = {c.name: (c, s) for e in alike for c in e.contenders if (s := e.score(c.name)) is not None}
    found: list[str] = []
    for what, unit in (("cost", "US dollars an answer"), ("latency", "seconds an answer, median")):
        items: list[charts.Place] = []
        for i, (name, (c, s)) in enumerate(asked.items()):
            x = c.seconds if what == "latency" else c.usd_per_answer
            if x is not None:
                items.append(charts.Place(name, float(x), s.value, s.low, s.high, i, c.kind != "tuned"))
        if len(items) > 1 and any(item.x for item in items):
            title = f"{metric.name} against {what}"
            chart = charts.places(items, title=title, x_name=unit, y_name=metric.name)
            rows = f"{first.items:,} items ({(first.items_digest or first.dataset_digest)[:12]})"
            caption = (
                f"Up and to the left is better; lines: 95% intervals, over {rows}. Hollow: no tuned model."
            )
            found.append(figure(title, chart, caption, 3))
    return "".join(found)


def flipped(found: Flips) -> str:
    """Broken items, then fixed ones folded away: what was asked and expected, and both answers side by side
    with what differs marked."""
    who, against = escape(found.contender), escape(found.against)
    if not found.broken and not found.fixed:
        return f"<p>No row changed between {against} and {who}.</p>"
    rows = text.count(found.broken_count, "row")
    first = f", the worst {_SHOWN}" if found.broken_count > _SHOWN else ""
    heading = f"<h3>{who} broke {rows} that {against} has right{first}</h3>"
    if not found.broken:
        heading = f"<h3>{who} broke no row that {against} has right</h3>"
    broken = "".join(_flip(found, item) for item in found.broken[:_SHOWN])
    if not found.fixed:
        return heading + broken
    first = f", the first {_SHOWN}" if found.fixed_count > _SHOWN else ""
    fixed = "".join(_flip(found, item) for item in found.fixed[:_SHOWN])
    told = f"{text.count(found.fixed_count, 'row')} fixed by {who}{first}"
    return f"{heading}{broken}<details><summary>{told}</summary>{fixed}</details>"


def _flip(found: Flips, item: Flip) -> str:
    before, after = marked(item.before, item.after)
    sides = (
        ("prompt", escape(item.question)),
        ("expected", escape(item.expected)),
        (escape(found.against), before),
        (escape(found.contender), after),
    )
    cells = "".join(f"<div><b>{name}</b><p>{said or _EMPTY}</p></div>" for name, said in sides)
    note = f'<p class="when">{escape(item.note)}</p>' if item.note else ""
    return f'<div class="flip">{cells}{note}</div>'


def marked(before: str, after: str) -> tuple[str, str]:
    """Both as HTML, with the words marked that only one of them has."""
    old, new = (re.findall(r"\s+|\w+|[^\w\s]", text)[:800] for text in (before, after))
    left: list[str] = []
    right: list[str] = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        was, now = escape("".join(old[a:b])), escape("".join(new[c:d]))
        if tag == "equal":
            left.append(was)
            right.append(now)
        else:
            left += [f"<del>{was}</del>"] if was.strip() else [was]
            right += [f"<ins>{now}</ins>"] if now.strip() else [now]
    return "".join(left), "".join(right)


def _confusion(one: Evaluation, number: int) -> str:
    found = one.confusions[number]
    rows = [
        [label, *(str(n) for n in counts)] for label, counts in zip(found.labels, found.counts, strict=False)
    ]
    return (
        f"<h3>Confusion of {escape(found.contender)}</h3><p>Rows: expected; columns: answered.</p>"
        + table(["", *found.labels], rows)
    )


def regression(found: Regression) -> str:
    """What was kept and what was forgotten."""
    rows: list[list[str]] = []
    for r in found.results:
        base, tuned = (scores.value(r.metric, s.value) for s in (r.base, r.tuned))
        rows.append([r.probe, r.title, base, tuned, r.decision, r.reason, f"{r.difference.score.n:,}"])
    head = ("ability", "measured on", "base", "tuned", "", "why", "n")
    told = "".join(f"<li>{escape(line)}</li>" for line in (*found.advice, *found.notes))
    answered = (
        f"Answered by {found.tuned.answered_by}, and {found.base.answered_by}; {found.created_at:%Y-%m-%d}."
    )
    return (
        table(head, rows) + f'<p class="when">{escape(answered)}</p>' + (f"<ul>{told}</ul>" if told else "")
    )


def changed(pairs: Sequence[tuple[str, Pairing]]) -> str:
    """The same model asked twice: whether its answers and scores moved."""
    rows: list[list[str]] = []
    for label, pairing in pairs:
        share = f"{pairing.same_answers:,} of {pairing.items:,} answers are the same"
        for d in pairing.differences:
            gap = f"{d.score.value:+.3f} ({d.score.low:+.3f} to {d.score.high:+.3f})"
            rows.append([label, pairing.first, pairing.second, share, d.metric, gap, scores.probability(d)])
    head = ("run", "first", "again", "answers", "metric", "difference (95%)", "p")
    return "<h2>Asked again</h2>" + table(head, rows) if rows else ""
