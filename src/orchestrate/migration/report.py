"""Render a migration report as a terminal table, HTML, Markdown or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from orchestrate import text
from orchestrate.core import days
from orchestrate.errors import UsageError
from orchestrate.evaluation import ScoredItem
from orchestrate.evaluation.pairs import Flips
from orchestrate.evaluation.statistics import wider_difference
from orchestrate.migration.proposals import (
    Migration,
    MigrationTarget,
    MovedModel,
    ParitySlice,
    PricedModel,
    Proposal,
)
from orchestrate.reports import html
from orchestrate.reports.documents import save
from orchestrate.reports.quotes import markdown_table, markdown_text
from orchestrate.reports.rows import CONTENDER_HEAD, contender_rows, interval
from orchestrate.text import inert, inert_json
from orchestrate.types import Evaluation, MetricUsed, Record, Score

if TYPE_CHECKING:
    from rich.console import RenderableType


def parts(evaluation: Evaluation, old: str, new: str, margin: float) -> list[ParitySlice]:
    """Compare the old and new models on all rows, then on each slice, using the first metric. `margin` is the
    largest acceptable drop. Parity on all rows is taken from the evaluation's verdict if there is one.
    Intervals are widened for the number of new models, so that all of them hold simultaneously."""
    metric = evaluation.metrics[0]
    several = len(evaluation.verdicts)
    decision = next((v.decision for v in evaluation.verdicts if v.contender == new), None)
    found: list[ParitySlice] = []
    for difference in evaluation.differences:
        if (difference.contender, difference.against, difference.metric) != (new, old, metric.name):
            continue
        mine, theirs = (evaluation.score(name, metric.name, difference.slice) for name in (new, old))
        if mine is not None and theirs is not None:
            apart = wider_difference(difference, several)
            found.append(
                ParitySlice(
                    slice=difference.slice,
                    old=theirs,
                    new=mine,
                    difference=apart,
                    parity=_DECIDED[decision]
                    if decision is not None and not difference.slice
                    else parity(metric, apart, margin),
                )
            )
    return sorted(found, key=lambda part: part.slice)


Word = Literal["holds", "does not hold", "not shown"]
_DECIDED: dict[str, Word] = {
    "ship": "holds",
    "do not ship": "does not hold",
    "not enough evidence": "not shown",
}


def parity(metric: MetricUsed, difference: Score, margin: float) -> Word:
    """Decide parity from the confidence interval of the difference. Returns `holds` if the entire interval is
    above `-margin`, `does not hold` if all of it is below, and `not shown` otherwise."""
    low, high = difference.low, difference.high
    if metric.better == "lower":
        low, high = -high, -low
    if difference.n == 0 or metric.unfit is not None:
        return "not shown"
    if low > -margin:
        return "holds"
    return "does not hold" if high < -margin else "not shown"


def same_answers(answered: Sequence[ScoredItem], old: str, new: str) -> int:
    """Count the items for which both models gave the same text, ignoring surrounding whitespace, and the same
    tool calls."""
    return sum(_said(one, old) == _said(one, new) for one in answered)


def _said(one: ScoredItem, name: str) -> list[tuple[str, str]]:
    return [(a.text.strip(), str(a.tool_calls)) for a in one.answers.get(name, ())]


_ENDINGS = {".html": "html", ".htm": "html", ".md": "md", ".json": "json", ".txt": "table"}
CANDIDATE_HEAD = ("backend", "model", "train", "a month", "served", "why")
CHANGE_HEAD = ("what", "", "was", "becomes", "why")
PARITY_HEAD = ("parity", "on", "backend", "model", "difference (95%)", "prompts", "metric", "old", "new")
"""Column titles of the parity table. The decisive columns come first, because a narrow screen cuts off the
end of a row."""
_MARKS = {"holds": "✓ holds", "does not hold": "✗ does not hold", "not shown": "? not shown"}


class MigrationReport(Record, frozen=True, kw_only=True):
    migration: Migration
    flips: tuple[Flips, ...] = ()

    def table(self) -> RenderableType:
        """Build a table for a terminal. The verdict comes last, right above the next shell prompt."""
        return terminal(self.migration)

    def render(self, format: str) -> str:
        """Render the report as table, md, html or json. Removes terminal control sequences. Raises
        `UsageError` for any other format."""
        if format == "json":
            return inert_json(json.dumps(self.migration.to_dict(), indent=2, ensure_ascii=False) + "\n")
        if format == "html":
            return inert(page(self.migration, self.flips))
        if format == "md":
            return inert(markdown(self.migration))
        if format == "table":
            from orchestrate.reports.documents import plain_text

            return inert(plain_text(self.table()))
        raise UsageError(f"format must be table, md, html or json, got {format!r}")

    def save(self, path: str | Path) -> Path:
        """Save the report. The file's extension selects the format: .html, .md, .json or .txt. Raises
        `UsageError` for any other extension."""
        return save(path, _ENDINGS, self.render)


# -- summary in sentences ----------------------------------------------------------------------------------


def headline(proposal: Proposal) -> str:
    end = f", {days.shutdown(proposal.silent_on, proposal.days_left)}" if proposal.silent_on else ""
    return f"{proposal.tuned_model or proposal.run_id}: {proposal.model} on {proposal.provider}{end}"


def findings(migration: Migration) -> list[str]:
    """Summarize the result in sentences: on which rows parity holds, does not hold, or can't be shown, and
    which abilities were lost."""
    found: list[str] = []
    for moved in migration.moved:
        who = f"{moved.model} on {moved.provider}"
        if moved.problem is not None:
            found.append(f"{who}: {moved.problem}.")
            continue
        if moved.decision:
            found.append(f"{who}: {moved.decision}. {'. '.join(moved.reasons)}.")
        for word in ("holds", "does not hold", "not shown"):
            where = [_where(part) for part in moved.parts if part.parity == word]
            if where:
                found.append(f"{who}: parity {word} {text.joined(where)}.")
        share = f"{moved.same_answers:,} of {moved.prompts:,}"
        found.append(f"{who} gives the same answer as the old model for {share} prompts.")
    for one in migration.forgotten:
        if one.forgotten:
            names = text.joined([r.probe for r in one.forgotten])
            found.append(f"run {one.run_id} lost abilities of its base model: {names}.")
    return found


def _where(part: ParitySlice) -> str:
    return f"on {part.slice}" if part.slice else "on all prompts"


def candidate_rows(proposal: Proposal) -> list[tuple[str, ...]]:
    """Build the table rows under `CANDIDATE_HEAD`."""
    rows: list[tuple[str, ...]] = []
    for target in proposal.targets:
        for one in target.candidates:
            rows.append(_candidate(target, one))
        if not target.candidates:
            rows.append((target.provider, "-", "-", "-", "-", target.refused or ""))
    return rows


def _candidate(target: MigrationTarget, one: PricedModel) -> tuple[str, ...]:
    named = one.quote.price
    price = "no price"
    if named is not None:
        low = named.low_usd if named.expected_usd is None else named.expected_usd
        price = text.span(low, named.counted_usd)
    chosen = " (selected)" if one.suited.model == target.model else ""
    why = "; ".join(one.suited.reasons)
    if one.against:
        why += "; AGAINST: " + "; ".join(one.against)
    monthly = text.money(one.monthly_usd) if one.monthly_usd is not None else "-"
    served = one.serving or one.unserved or ""
    backend = target.provider + text.SANDBOX_MARK * one.quote.sandbox
    return (backend, one.suited.model + chosen, price, monthly, served, why)


def change_rows(target: MigrationTarget) -> list[tuple[str, ...]]:
    """Build the table rows under `CHANGE_HEAD`. Settings that neither spec sets are left out."""
    return [(c.what, c.becomes, c.was, c.now, c.why) for c in target.changes if c.becomes != "new"]


def parity_rows(migration: Migration) -> list[tuple[str, ...]]:
    """Build the table rows under `PARITY_HEAD`."""
    evaluation = migration.evaluation
    if evaluation is None:
        return []
    metric = evaluation.metrics[0]
    return [_parity(moved, part, metric) for moved in migration.moved for part in moved.parts]


def _parity(moved: MovedModel, part: ParitySlice, metric: MetricUsed) -> tuple[str, ...]:
    return (
        _MARKS[part.parity],
        part.slice or "all",
        moved.provider,
        moved.model,
        interval(metric, part.difference, signed=True),
        f"{part.difference.n:,}",
        metric.name,
        f"{part.old.value:.3f}",
        f"{part.new.value:.3f}",
    )


def margin_text(proposal: Proposal) -> str:
    held = proposal.held_out
    by = f"{text.count(held.rows, 'row')} of {held.path} ({held.origin})" if held else "nothing"
    return (
        f"Parity holds if the entire 95% interval of the difference is above -{100 * proposal.margin:g} "
        f"percentage points. Judged on {by}. Old model's answers: {proposal.old}."
    )


# -- forms -------------------------------------------------------------------------------------------------


def proposal_table(proposal: Proposal) -> RenderableType:
    """Build a terminal table of the proposal."""
    from rich.console import Group
    from rich.text import Text

    from orchestrate.reports.documents import listed

    parts: list[RenderableType] = [
        Text(headline(proposal), style="bold"),
        listed(CANDIDATE_HEAD, candidate_rows(proposal)),
        Text(f"served at {proposal.traffic}", style="dim"),
        *(Text(note, style="yellow") for note in proposal.notes),
    ]
    for target in proposal.targets:
        if target.model is not None:
            parts += [Text(f"\n{target.provider}: {target.model}", style="bold")]
            parts += [listed(CHANGE_HEAD, change_rows(target))]
        if target.refused:
            parts += [Text(f"{target.provider} would reject the run: {target.refused}", style="red")]
    if proposal.held_out is not None:
        parts.append(Text(f"\n{margin_text(proposal)}", style="dim"))
    return Group(*parts)


def terminal(migration: Migration) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from orchestrate.reports.documents import listed

    parts: list[RenderableType] = [Text(headline(migration.proposal), style="bold")]
    if migration.evaluation is not None:
        parts += [
            listed(PARITY_HEAD, parity_rows(migration)),
            Text(),
            listed(CONTENDER_HEAD, contender_rows(migration.evaluation)),
            Text(f"\n{margin_text(migration.proposal)}", style="dim"),
            *(Text(note, style="dim") for note in migration.evaluation.all_notes),
        ]
    parts += [Text(note, style="dim") for note in migration.notes]
    parts += [Text(line) for line in findings(migration)]
    return Group(*parts)


def markdown(migration: Migration) -> str:
    parts = [f"# {markdown_text(headline(migration.proposal))}"]
    parts.append("\n".join(f"- {markdown_text(line)}" for line in findings(migration)))
    if migration.evaluation is not None:
        parts.append(margin_text(migration.proposal))
        parts.append(markdown_table(PARITY_HEAD, parity_rows(migration)))
        parts.append(markdown_table(CONTENDER_HEAD, contender_rows(migration.evaluation)))
        parts.append("\n".join(f"- {markdown_text(note)}" for note in migration.evaluation.all_notes))
    parts.append("## What changes")
    for target in migration.proposal.targets:
        parts.append(f"### {target.provider}: {target.model or 'nowhere'}")
        parts.append(markdown_table(CHANGE_HEAD, change_rows(target)))
    return "\n\n".join(filter(None, parts)) + "\n"


def page(migration: Migration, flips: Sequence[Flips]) -> str:
    """Render the report as one HTML file without scripts or network access. External text is escaped."""
    proposal = migration.proposal
    sandbox = (
        any("sandbox" in c.served_by for c in migration.evaluation.contenders)
        if (migration.evaluation is not None)
        else False
    )
    body = [
        f"<h1>{escape(headline(proposal))}</h1>",
        f'<p class="when">orchestrate, {migration.at:%Y-%m-%d %H:%M} UTC</p>',
        _SANDBOX if sandbox else "",
        "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in findings(migration)) + "</ul>",
        f"<p>{escape(margin_text(proposal))}</p>",
    ]
    if migration.evaluation is not None:
        body += [
            "<h2>Where parity holds</h2>",
            html.table(PARITY_HEAD, parity_rows(migration)),
            "<h2>Answers side by side</h2>",
            html.evaluation(migration.evaluation, flips),
        ]
    if migration.forgotten:
        body.append("<h2>What the new models forgot</h2>")
        body += [f"<h3>{escape(one.run_id)}</h3>{html.regression(one)}" for one in migration.forgotten]
    body.append("<h2>What changes</h2>")
    for target in proposal.targets:
        body.append(f"<h3>{escape(target.provider)}: {escape(target.model or 'nowhere')}</h3>")
        body.append(html.table(CHANGE_HEAD, change_rows(target)))
        if target.refused:
            body.append(f"<p>Refused: {escape(target.refused)}</p>")
    body.append("<h2>Candidates</h2>")
    body.append(html.table(CANDIDATE_HEAD, candidate_rows(proposal)))
    body.append(f"<p>Served at {escape(proposal.traffic)}.</p>")
    notes = [*proposal.notes, *migration.notes]
    body.append("<ul>" + "".join(f"<li>{escape(n)}</li>" for n in notes) + "</ul>")
    return html.document(f"Migration of {proposal.run_id}", "\n".join(part for part in body if part))


_SANDBOX = (
    '<div class="sandbox" role="note"><strong>SANDBOX</strong> Some of these models were trained '
    "in a local sandbox with a tiny model, not on the named host. Nothing was billed.</div>"
)
