"""Render a comparison as one HTML file that starts with the recommendation. The file needs no network and no
scripts, and works in light and dark mode, in print, on phones and without color."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from msgspec.structs import replace

from orchestrate import text
from orchestrate.evaluation.pairs import Flip, Flips, Pairing
from orchestrate.evaluation.regression import Regression
from orchestrate.reports import charts, rows
from orchestrate.reports.records import (
    Compared,
    ComparedRuns,
    CurvePoint,
    RunScore,
    billed,
    price,
    price_basis,
    quoted,
)
from orchestrate.reports.rows import (
    CONTENDER_HEAD,
    SCORE_HEAD,
    contender_rows,
    evaluation_basis,
    interval,
    probability,
    score_rows,
    value,
)
from orchestrate.types import Evaluation, MetricUsed, Verdict

_SHOWN = 12
"""Maximum number of regressed items, and of fixed items, to show on a page."""
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
    rendered = f'<table class="narrow"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{rendered}</div>'


def evaluation(one: Evaluation, flips: Sequence[Flips], *, charted: bool = True) -> str:
    """Render a complete evaluation: verdicts, scores, regressed items, plots, slices and confusion
    matrices."""
    drawn = [_intervals(one, metric) for metric in one.metrics] if charted else []
    parts = [
        f'<p class="when">{escape(evaluation_basis(one))}</p>',
        verdicts(one),
        table(SCORE_HEAD, score_rows(one)),
        *drawn,
        quality([one]) if charted else "",
        "".join(flipped(f) for f in flips),
        "<h3>Models evaluated</h3>" + table(CONTENDER_HEAD, contender_rows(one)),
    ]
    if sliced := score_rows(one, sliced=True):
        note = "P-values are corrected for the number of slices (Holm) to limit false positives."
        parts.append(f"<h3>Slices</h3><p>{note}</p>" + table(SCORE_HEAD, sliced))
    parts += [_confusion(one, i) for i in range(len(one.confusions))]
    if one.all_notes:
        parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in one.all_notes) + "</ul>")
    return "\n".join(part for part in parts if part)


def verdicts(one: Evaluation) -> str:
    return "".join(_boxed_verdict(v) for v in one.verdicts)


def _boxed_verdict(v: Verdict) -> str:
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
            interval(metric, m.score),
            i,
            one.contender(m.contender).kind != "tuned",
        )
        for i, m in enumerate(m for m in one.measures if m.metric == metric.name and not m.slice)
    ]
    chart = charts.intervals(items, title=f"{metric.name} of each contender", x_name=metric.name)
    return figure(
        metric.name, chart, "Filled: tuned models. Hollow: others. Lines: 95% confidence intervals.", 3
    )


def quality(evaluations: Sequence[Evaluation]) -> str:
    """Plot scores against cost per answer and against latency. Includes only evaluations with the same main
    metric and the same items as the first one."""
    first = evaluations[0]
    metric = first.metrics[0]
    alike = [
        e for e in evaluations if e.metrics[0].name == metric.name and e.items_digest == first.items_digest
    ]
    scored = {c.name: (c, s) for e in alike for c in e.contenders if (s := e.score(c.name)) is not None}
    found: list[str] = []
    for what, unit in (("cost", "US dollars per answer"), ("latency", "median seconds per answer")):
        items: list[charts.ChartMark] = []
        for i, (name, (c, s)) in enumerate(scored.items()):
            x = c.seconds if what == "latency" else c.usd_per_answer
            if x is not None:
                items.append(charts.ChartMark(name, float(x), s.value, s.low, s.high, i, c.kind != "tuned"))
        if len(items) > 1 and any(item.x for item in items):
            title = f"{metric.name} against {what}"
            chart = charts.places(items, title=title, x_name=unit, y_name=metric.name)
            rows = f"{first.items:,} items ({(first.items_digest or first.dataset_digest)[:12]})"
            caption = (
                f"Up and to the left is better. Lines are 95% intervals over {rows}. Hollow "
                "markers are untuned models."
            )
            found.append(figure(title, chart, caption, 3))
    return "".join(found)


def flipped(found: Flips) -> str:
    """Render the regressed items, followed by the fixed items in a collapsed section. Each item shows the
    prompt, the expected answer, and both models' answers side by side with their differences highlighted."""
    who, against = escape(found.contender), escape(found.against)
    if not found.broken and not found.fixed:
        return f"<p>No row changed between {against} and {who}.</p>"
    rows = text.count(found.broken_count, "row")
    first = f", the worst {_SHOWN}" if found.broken_count > _SHOWN else ""
    heading = f"<h3>{rows} regressed from {against} to {who}{first}</h3>"
    if not found.broken:
        heading = f"<h3>No row regressed from {against} to {who}</h3>"
    broken = "".join(_flip(found, item) for item in found.broken[:_SHOWN])
    if not found.fixed:
        return heading + broken
    first = f", the first {_SHOWN}" if found.fixed_count > _SHOWN else ""
    fixed = "".join(_flip(found, item) for item in found.fixed[:_SHOWN])
    summary = f"{text.count(found.fixed_count, 'row')} fixed with {who}{first}"
    return f"{heading}{broken}<details><summary>{summary}</summary>{fixed}</details>"


def _flip(found: Flips, item: Flip) -> str:
    before, after = marked(item.before, item.after)
    sides = (
        ("prompt", escape(item.question)),
        ("expected", escape(item.expected)),
        (escape(found.against), before),
        (escape(found.contender), after),
    )
    cells = "".join(f"<div><b>{name}</b><p>{value or _EMPTY}</p></div>" for name, value in sides)
    note = f'<p class="when">{escape(item.note)}</p>' if item.note else ""
    return f'<div class="flip">{cells}{note}</div>'


def marked(before: str, after: str) -> tuple[str, str]:
    """Return both texts as HTML, and highlight the words that occur in only one of them."""
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
    """Render which abilities the model retained and which it forgot."""
    rows: list[list[str]] = []
    for r in found.results:
        base, tuned = (value(r.metric, s.value) for s in (r.base, r.tuned))
        rows.append([r.probe, r.title, base, tuned, r.decision, r.reason, f"{r.difference.score.n:,}"])
    head = ("ability", "measured on", "base", "tuned", "", "why", "n")
    notes = "".join(f"<li>{escape(line)}</li>" for line in (*found.advice, *found.notes))
    answered = (
        f"Answered by {found.tuned.answered_by}, and {found.base.answered_by}; {found.created_at:%Y-%m-%d}."
    )
    return (
        table(head, rows) + f'<p class="when">{escape(answered)}</p>' + (f"<ul>{notes}</ul>" if notes else "")
    )


def changed(pairs: Sequence[tuple[str, Pairing]]) -> str:
    """Render how a model's answers and scores changed between two evaluations."""
    rows: list[list[str]] = []
    for label, pairing in pairs:
        share = f"{pairing.same_answers:,} of {pairing.items:,} answers are identical"
        for d in pairing.differences:
            gap = f"{d.score.value:+.3f} ({d.score.low:+.3f} to {d.score.high:+.3f})"
            rows.append([label, pairing.first, pairing.second, share, d.metric, gap, probability(d)])
    head = ("run", "first", "again", "answers", "metric", "difference (95%)", "p")
    return "<h2>Repeated evaluations</h2>" + table(head, rows) if rows else ""


# The top of a comparison page: the recommendation, a card for each run, and a plot of quality and cost. All
# external text is escaped.

CHIP = '<span class="chip">SANDBOX</span>'


def header(comparison: ComparedRuns, title: str, now: datetime) -> str:
    when = f'<p class="when">{escape(title)}, {now:%Y-%m-%d %H:%M} UTC</p>'
    return f"<header>{_sandbox(comparison)}{when}<h1>{escape(comparison.answer.sentence)}</h1></header>"


def _sandbox(comparison: ComparedRuns) -> str:
    labels = [c.name for c in comparison.runs if c.run.sandbox]
    if not labels:
        return ""
    who = "all runs were" if len(labels) == len(comparison.runs) else f"{text.joined(labels)}:"
    message = (
        f"{who} trained in a local sandbox with a tiny model, not on the named host. Nothing was billed."
    )
    return f'<p class="sandbox" role="note"><strong>SANDBOX</strong> {escape(message)}</p>'


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
    mark = '<span class="pick">✓ recommended</span>' if taken else ""
    chip = CHIP if c.run.sandbox else ""
    subtitle = f"{c.run.model}, {rows.status(c)}"
    return (
        f'<section class="card{kind}"><h2>{escape(c.name)} {chip}</h2>{mark}'
        f'<p class="when">{escape(subtitle)}</p>'
        f"<dl>{shown}</dl>{_verdict(c)}"
        f'<p class="id">{escape(c.run.id)}</p></section>'
    )


def _score(c: Compared) -> list[tuple[str, str, str]]:
    found = rows.newest_score(c)
    if found is None:
        return [("score", text.NOTHING, "not evaluated")]
    score, metric = found.score, found.metric
    value = rows.value(metric, score.value)
    within = f"{rows.value(metric, score.low)} to {rows.value(metric, score.high)}, n = {score.n:,}"
    values = [(metric.name, value, within)]
    if found.difference is not None:
        gap = rows.interval(metric, found.difference.score, signed=True)
        first, _, rest = gap.partition(" ")
        values.append((f"against {found.difference.against}", first, rest.strip("()")))
    return values


def _cost(c: Compared) -> list[tuple[str, str, str]]:
    cost = price(c)
    if cost is None:
        return [("cost", text.NOTHING, "price unknown")]
    word = price_basis(c)
    quote_note = f", {text.money(quoted(c))} quoted" if word != "quoted" and quoted(c) is not None else ""
    return [("cost of training", text.money(cost), f"{word}{quote_note}")]


def _verdict(c: Compared) -> str:
    found: RunScore | None = rows.newest_score(c)
    decision = rows.verdict(found)
    if decision == text.NOTHING:
        return ""
    return (
        f'<p class="verdict {decision.replace(" ", "-")}"><strong>{MARKS[decision]} {decision}</strong></p>'
    )


def quality_and_cost(comparison: ComparedRuns) -> str:
    """Plot scores against training cost. Returns an empty string unless at least two runs have scores for the
    same metric on the same rows."""
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
        charts.ChartMark(c.label, float(p), s.score.value, s.score.low, s.score.high, i)
        for i, c, s, p in alike
    ]
    title = f"{metric} by training cost"
    chart = charts.places(items, title=title, x_name="training cost in USD", y_name=metric)
    caption = (
        "Up and to the left is better. Lines are 95% intervals over "
        f"{text.count(alike[0][2].score.n, 'row')}."
    )
    return figure("Quality against cost", chart, caption)


_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_SHORT = 34
"""Maximum length of a table cell that never wraps, in characters."""


def page(comparison: ComparedRuns, now: datetime | None = None) -> str:
    """Render the comparison as a complete HTML document. All external content is escaped."""
    title = "Comparison of " + text.joined([c.label for c in comparison.runs])
    mark = "SANDBOX: " if comparison.sandbox else ""
    body = [
        header(comparison, title, now or datetime.now(UTC)),
        _reasons(comparison),
        cards(comparison),
        quality_and_cost(comparison),
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
    """Build a page from a title and an HTML body that is already escaped."""
    style = files("orchestrate.reports").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
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
    """Render the proof of each place, newest first."""
    shown: list[str] = []
    for proof in value.split("; "):
        kind = "proved" if proof.startswith("proved") else "failed" if proof.startswith("failed") else "open"
        shown.append(f'<span class="badge {kind}">{escape(proof)}</span>')
    return " ".join(shown)


def _curves(comparison: ComparedRuns) -> str:
    """Plot validation and training losses separately, each on one axis."""
    known = any(c.trained_tokens for c in comparison.runs)
    axis = "tokens trained" if known else "steps"
    warned = [f"Not on the same scale: {r.text}." for r in comparison.reasons if r.aspect == "loss"]
    found: list[str] = []
    kinds: tuple[tuple[str, Callable[[Compared], Sequence[CurvePoint]]], ...] = (
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
        missing = [f"{text.joined(without)}: not reported."] if without else []
        found.append(figure(f"{kind} {what}", chart, " ".join([*missing, *warned]), 3))
    return _headed("Curves", "".join(found))


def _scores(comparison: ComparedRuns) -> str:
    parts: list[str] = []
    for metric in rows.metrics(comparison):
        items: list[charts.Interval] = []
        captions: list[str] = []
        for i, c in enumerate(comparison.runs):
            found = rows.result(c, metric)
            if found is None or found.metric.kind == "amount":
                continue
            for side, score in (("base", found.rival_score), ("tuned", found.score)):
                if score is not None:
                    label = f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"
                    name = f"{c.label}, {side}"
                    items.append(
                        charts.Interval(name, score.value, score.low, score.high, label, i, side == "base")
                    )
            apart = found.difference
            flips = f"{apart.gained} rows improved and {apart.lost} got worse out of " if apart else ""
            digest, count = found.rows
            captions.append(
                f"{c.label}: {flips}{count} ({digest[:12]}), answered by {found.contender.answered_by}"
            )
        if items:
            chart = charts.intervals(items, title=f"{metric} of base and tuned models", x_name=metric)
            legend = "Hollow: base model. Filled: tuned model. Lines: 95% confidence intervals."
            caption = f"{legend} {'; '.join(captions)}."
            parts.append(figure(f"Held-out {metric}", chart, caption, 3))
    return "".join(parts)


def _broken(comparison: ComparedRuns) -> str:
    """Render the rows that regressed or were fixed by each run, with the answers side by side."""
    sections = [flipped(_of(c, found)) for c in comparison.runs for found in c.flips]
    return _headed("Regressed rows", "".join(sections))


def _of(c: Compared, found: Flips) -> Flips:
    """Replace the contender's name with the run's label on this page."""
    return replace(found, contender=c.label) if found.contender == c.run.id else found


def _evaluations(comparison: ComparedRuns) -> str:
    """Render each run's newest evaluation, and changes since an earlier one."""
    newest = [one.evaluation for c in comparison.runs if (one := rows.newest_score(c)) is not None]
    unique = list({one.id: one for one in newest}.values())
    again = [(c.label, pairing) for c in comparison.runs for pairing in c.asked_again]
    kept = "".join(
        f"<h3>What {escape(c.label)} forgot</h3>{regression(c.regression)}"
        for c in comparison.runs
        if c.regression is not None
    )
    plots = quality(unique) if unique else ""
    return plots + "".join(_in_full(one) for one in unique) + kept + changed(again)


def _in_full(one: Evaluation) -> str:
    body = evaluation(one, (), charted=False)
    return f"<details><summary>{escape(one.id)} in full</summary>{body}</details>"


def _money(comparison: ComparedRuns) -> str:
    items: list[charts.Bar] = []
    for i, c in enumerate(comparison.runs):
        quote, price, bill = c.run.quote, quoted(c), billed(c)
        named = quote.price if quote is not None else None
        if named is not None and price is not None:
            ends = float(named.low_usd), float(named.high_usd)
            name = f"{c.label}, quoted"
            items.append(charts.Bar(name, float(price), text.money(price), i, *ends, hollow=True))
        if bill is not None:
            items.append(charts.Bar(f"{c.label}, {price_basis(c)}", float(bill), text.money(bill), i))
    chart = ""
    if items:
        drawn = charts.bars(items, title="Cost of training", x_name="US dollars")
        caption = "Dashed: low and high end of the quote. Filled: actual cost."
        chart = figure("Cost of training", drawn, caption, 3)
    facts = rows.money(comparison)
    return chart + (_facts(comparison, facts) if facts else "")


def _settings(comparison: ComparedRuns) -> str:
    found = rows.settings(comparison)
    if not found:
        return ""
    differing = [row for row in found if row[2]]
    empty = "" if differing else "<p>You did not set any settings differently.</p>"
    shown = _table(comparison, differing) if differing else empty
    everything = f"<details><summary>All {len(found)} settings</summary>{_table(comparison, found)}</details>"
    return f"<h2>Settings that differ</h2>{shown}{everything}"
