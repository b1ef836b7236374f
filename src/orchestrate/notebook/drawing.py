"""What a notebook shows of each kind of record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrate.notebook import markup
from orchestrate.progress import cost_so_far, seconds_left, seconds_taken, share_done, stage, step_of
from orchestrate.text import duration, money, quoted
from orchestrate.types.listing import cells
from orchestrate.types.record import flat

if TYPE_CHECKING:
    from orchestrate.types import Evaluation, Event, MetricPoint, Problem, Quote, Run, Setting, Translation

SANDBOX = "SANDBOX"
_SHOWN = {
    "Run": "id provider model status step total_steps created_at quote_usd bill_usd tuned_model sandbox",
    "Quote": "provider model expected_usd low_usd high_usd train_seconds why_not",
    "Problem": "severity code row field message providers fix",
    "Event": "at level message step",
    "Setting": "name asked outcome sent rule",
    "Checkpoint": "id step created_at model",
    "Deployment": "id run_id provider model state usd_per_hour created_at ended_at problem",
    "Model": "name params_b context licence reasoning vision",
}
"""Columns of a table, where a record has more than are read there."""
_SCORES = [
    "contender",
    "metric",
    "slice",
    "score",
    "low",
    "high",
    "items",
    "difference",
    "difference_low",
    "difference_high",
]
_EVENTS = 4


def listing(items: Sequence[Any]) -> str:
    """Records of one kind as a table."""
    kind = type(getattr(items[0], "record", items[0])).__name__ if items else ""
    rows = [cells(one) for one in items]
    for row in rows:
        row["sandbox"] = row.get("sandbox") or None
    return markup.table(rows, _SHOWN.get(kind, "").split())


def quote(one: Quote) -> str:
    title = f"{one.provider} {one.model}: "
    title += f"no price: {one.unavailable}" if one.unavailable is not None else quoted(one)
    lines = [
        {
            "component": line.component,
            "quantity": line.quantity,
            "unit": line.unit.removeprefix("usd_per_"),
            "usd per unit": line.usd_per_unit,
            "usd": line.usd,
            "price from": " ".join(filter(None, (line.source, line.as_of))),
        }
        for line in one.lines
    ]
    against = [why for why in (one.refused, one.unlisted) if why]
    told = markup.notes([*against, *one.warnings, *one.assumptions])
    return markup.card(title, markup.table(lines) if lines else "", told)


def quotes_and_problems(quotes: Sequence[Quote], problems: Sequence[Problem]) -> str:
    return markup.card("Quotes", listing(quotes)) + markup.card("Problems", listing(problems))


def translation(one: Translation) -> str:
    title = f"{one.provider} {one.model}: what becomes of each setting"
    return markup.card(title, settings(one.settings))


def settings(rows: Sequence[Setting]) -> str:
    return markup.table([row.cells() for row in rows], _SHOWN["Setting"].split())


def problem(one: Problem) -> str:
    place = "".join(f", {word} {value}" for word, value in (("row", one.row), ("field", one.field)) if value)
    parts = {"backends": one.providers, "fix": one.fix, "in": one.source}
    return markup.card(
        f"{one.severity.value}: {one.message}", markup.facts({"code": one.code + place, **parts})
    )


def spec(asked: Mapping[str, Any]) -> str:
    return markup.card("JobSpec", markup.facts(dict(flat(asked))))


def run(one: Run) -> str:
    known = {
        "status": stage(one),
        "data": one.dataset_digest[:12],
        "quoted": None if one.quote is None else quoted(one.quote),
        "billed": None if one.bill is None else f"{money(one.bill.usd)} ({one.bill.origin})",
        "step": _steps(one, ()),
        "tuned model": one.tuned_model,
        "created": one.created_at,
        "ended": one.finished_at,
        "error": one.error.message if one.error else None,
    }
    return markup.card(_name(one), markup.facts(known), mark=SANDBOX if one.sandbox else "")


def progress(
    one: Run, metrics: Sequence[MetricPoint], events: Sequence[Event], now: datetime | None = None
) -> str:
    """A run on its way: bar, curve of the loss or the reward, the last events."""
    now = now or datetime.now(UTC)
    name = "train_reward" if any("train_reward" in p.values for p in metrics) else "train_loss"
    values = [p.values[name] for p in metrics if name in p.values]
    valid = [
        p.values[name.replace("train", "valid")]
        for p in metrics
        if name.replace("train", "valid") in p.values
    ]
    left = seconds_left(one, now, metrics)
    cost = cost_so_far(one, metrics)
    said = [
        stage(one),
        _steps(one, metrics),
        f"{name.removeprefix('train_')} {values[-1]:.4f}" if values else None,
        f"validation {valid[-1]:.4f}" if valid else None,
        f"{duration(seconds_taken(one, now))} taken",
        f"{duration(left)} left" if left is not None else None,
        f"{money(cost)}{'' if one.bill else ' (estimate)'}" if cost is not None else None,
    ]
    lines = [f"{e.at:%H:%M:%S} {e.message}" for e in events if e.type not in ("metrics", "progress")]
    return markup.card(
        _name(one),
        f"<div>{markup.text(' · '.join(filter(None, said)))}</div>",
        markup.bar(share_done(one, metrics), "share of the training done"),
        markup.curve(values, f"{name.replace('_', ' ')} by step"),
        markup.notes([*lines[-_EVENTS:], *([one.error.message] if one.error else [])]),
        mark=SANDBOX if one.sandbox else "",
    )


def evaluation(one: Evaluation) -> str:
    verdicts = [f"{v.contender}: {v.decision}. {' '.join(v.reasons)}" for v in one.verdicts]
    return markup.card(
        f"Evaluation {one.id}: {one.items:,} items of {one.dataset}",
        markup.notes(verdicts),
        markup.table(scores(one), _SCORES),
        markup.notes(one.notes),
    )


def scores(one: Evaluation) -> list[dict[str, Any]]:
    """A line for each contender, metric and slice, with its difference to what it is compared with."""
    found: list[dict[str, Any]] = []
    for m in one.measures:
        apart = one.difference(m.contender, m.metric, m.slice)
        found.append(
            {
                "contender": m.contender,
                "metric": m.metric,
                "slice": m.slice or None,
                "score": m.score.value,
                "low": m.score.low,
                "high": m.score.high,
                "items": m.score.n,
                "against": apart.against if apart else None,
                "difference": apart.score.value if apart else None,
                "difference_low": apart.score.low if apart else None,
                "difference_high": apart.score.high if apart else None,
                "p_value": apart.p_value if apart else None,
                "p_corrected": apart.p_corrected if apart else None,
            }
        )
    return found


def _name(one: Run) -> str:
    return f"{one.id} {one.provider} {one.model}"


def _steps(one: Run, metrics: Sequence[MetricPoint]) -> str | None:
    step = step_of(one, metrics)
    if one.total_steps:
        return f"step {step:,} of {one.total_steps:,}"
    return f"step {step:,}" if step else None
