"""A comparison as one HTML file: no network, no script; light, dark and printed; readable without colour."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from orchestrate import text
from orchestrate.reports import rows, svg
from orchestrate.reports.records import ComparedRuns, billed, quoted

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(comparison: ComparedRuns, now: datetime | None = None) -> str:
    """The whole document. Everything that came from outside is escaped."""
    style = files("orchestrate.reports").joinpath("report.css").read_text(encoding="utf-8")
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
        _costs(comparison),
        _settings(comparison),
        "<h2>Notes</h2>" + _list(comparison.notes) if comparison.notes else "",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(mark + title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
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
        + "".join(f"<td>{escape(value)}</td>" for value in values)
        + "</tr>"
        for name, values, differs in cells
    )
    return (
        "<div "
        f'class="scroll"><table><thead><tr><td></td>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _figure(heading: str, chart: str, caption: str) -> str:
    return f"<h2>{escape(heading)}</h2><figure>{chart}<figcaption>{escape(caption)}</figcaption></figure>"


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
    return _figure("Loss", chart, " ".join([caption, *(f"Not on one scale: {w}." for w in warned)]))


def _scores(comparison: ComparedRuns) -> str:
    parts: list[str] = []
    for metric in rows.metrics(comparison):
        items: list[svg.Interval] = []
        flips: list[str] = []
        for i, c in enumerate(comparison.runs):
            found = rows.result(c, metric)
            if found is None:
                continue
            for side, score in (("base", found.base), ("tuned", found.tuned)):
                if score is not None:
                    words = f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"
                    items.append(
                        svg.Interval(
                            f"{c.label}, {side}", score.value, score.low, score.high, words, i, side == "base"
                        )
                    )
            flips.append(f"{c.label}: {found.gained} rows gained, {found.lost} lost of {found.tuned.n}")
        chart = svg.intervals(items, title=f"{metric} of base and tuned models", x_name=metric)
        caption = f"Hollow: the base model; filled: the tuned one; lines: 95% intervals. {'; '.join(flips)}."
        parts.append(_figure(f"Held-out {metric}", chart, caption))
    return "".join(parts)


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
    return _figure("Cost of training", chart, "Dashed: quoted, with its low and high end; filled: billed.")


def _settings(comparison: ComparedRuns) -> str:
    found = rows.settings(comparison)
    if not found:
        return ""
    differ = (
        "Those that differ come first and are marked ≠." if any(d for _, _, d in found) else "None differ."
    )
    return f"<h2>Settings</h2><p>{differ}</p>" + _table(comparison, found)
