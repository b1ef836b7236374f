"""A comparison as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from orchestrate.reports import rows
from orchestrate.reports.quotes import markdown_table, markdown_text
from orchestrate.reports.records import Compared, ComparedRuns, billed, quoted


def markdown(comparison: ComparedRuns) -> str:
    """A heading, the sandbox banner and the reasons before any number, then the tables."""
    parts = ["# Comparison of runs"]
    if comparison.sandbox:
        parts.append("> **SANDBOX**: trained by a local stand-in on a tiny model, not by the hosts named.")
    parts.append(f"**{markdown_text(comparison.answer.sentence)}**")
    if comparison.reasons:
        parts.append(f"**{rows.NOT_COMPARABLE}:**\n")
        parts[-1] += "\n".join(
            f"- {reason.aspect}: {markdown_text(reason.text)}" for reason in comparison.reasons
        )
    if comparison.findings:
        parts.append("\n".join(f"- {markdown_text(finding)}" for finding in comparison.findings))
    labels = [c.label for c in comparison.runs]
    parts.append(markdown_table(["", *labels], [[name, *values] for name, values in rows.facts(comparison)]))
    if settings := rows.settings(comparison):
        parts.append("## Settings")
        marked = [[f"**{name}**" if differ else name, *values] for name, values, differ in settings]
        parts.append(markdown_table(["", *labels], marked))
        if any(differ for _, _, differ in settings):
            parts.append("Settings in bold differ.")
    if comparison.notes:
        parts.append("\n".join(f"- {markdown_text(note)}" for note in comparison.notes))
    return "\n\n".join(parts) + "\n"


def csv_text(comparison: ComparedRuns) -> str:
    """One row for each run; numbers bare, money in US dollars, times in seconds. Setting columns begin with
    `setting.`, scores with the metric's name."""
    records = [_flat(c, comparison) for c in comparison.runs]
    names = list(dict.fromkeys(name for record in records for name in record))
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _safe(value) for name, value in record.items()} for record in records)
    return out.getvalue()


def _flat(c: Compared, comparison: ComparedRuns) -> dict[str, Any]:
    record: dict[str, Any] = {
        "run": c.run.id,
        "label": c.label,
        "provider": c.run.provider,
        "sandbox": str(c.run.sandbox).lower(),
        "model": c.run.model,
        "status": c.run.status.value,
        "dataset_digest": c.run.dataset_digest,
        "comparable": str(comparison.comparable).lower(),
        "quoted_usd": quoted(c),
        "billed_usd": billed(c),
        "bill_origin": c.run.bill.origin if c.run.bill else None,
        "quote_error": c.reconciliation.total.relative if c.reconciliation else None,
        "seconds": c.seconds,
        "trained_tokens": c.trained_tokens,
        "billed_tokens": c.billed_tokens,
        "tokens_per_second": c.tokens_per_second,
        "train_loss": c.train_loss,
        "valid_loss": c.valid_loss,
        "reward": c.reward,
    }
    for e in c.scores:
        apart = e.difference.score if e.difference else None
        for side, score in (("base", e.rival_score), ("tuned", e.score), ("difference", apart)):
            if score is not None:
                name = f"{e.metric.name}.{side}"
                record |= {name: score.value, f"{name}.low": score.low, f"{name}.high": score.high}
        record |= {f"{e.metric.name}.n": e.score.n, f"{e.metric.name}.rows": e.rows[0]}
        if e.difference is not None:
            d = e.difference
            record |= {f"{e.metric.name}.gained": d.gained, f"{e.metric.name}.lost": d.lost}
            record |= {f"{e.metric.name}.p": d.p_corrected if d.p_corrected is not None else d.p_value}
        record["usd_per_answer"] = e.contender.usd_per_answer
        record["answered_by"] = e.contender.served_by
        record["answered_in"] = e.contender.precision
        record["answers_proved"] = e.contender.proof
    record |= {f"setting.{name}": value for name, value in sorted(c.settings.items())}
    return record


def _safe(value: Any) -> Any:
    """A spreadsheet takes a text that begins with one of these for a formula; an apostrophe keeps it a
    text."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


def json_text(comparison: ComparedRuns) -> str:
    value = comparison.to_dict() | {"comparable": comparison.comparable, "sandbox": comparison.sandbox}
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
