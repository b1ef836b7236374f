"""How much planted noise each signal of `orchestrate data score` finds, for labels and for free answers.

Answers are moved to other rows, where they are wrong, and the rows that a signal doubts most are left out: as
many as were planted. What can be chosen (how strongly the label model is regularized, how the short tune
behind `loss-after` trains) is chosen on one set of each kind; the figures are of other sets.

python benchmarks/selection.py [--rows 300] [--json docs/figures/selection.json]
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from orchestrate import Orchestrator
from orchestrate.data.operations import score
from orchestrate.runs.data import scoring
from orchestrate.settings import config

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
CHOSEN_ON = {
    "labels": EXAMPLES / "classification/train.jsonl",
    "free": ROOT / "src/orchestrate/bundled/orders/train.jsonl",
}
REPORTED_ON = {
    "labels": {
        "five stock answers (examples/tone)": EXAMPLES / "tone/train.jsonl",
        "two labels (examples/distillation)": EXAMPLES / "distillation/train.jsonl",
    },
    "free": {
        "invoices as JSON (examples/extraction)": EXAMPLES / "extraction/train.jsonl",
        "rewritten mails (examples/rag-or-tune)": EXAMPLES / "rag-or-tune/manner.jsonl",
    },
}
SHARES = (0.1, 0.3)
SEEDS = {"labels": (0, 1), "free": (0,)}
"""Draws of the noise: a free answer takes a tune."""
STRENGTHS = (0.1, 1.0, 10.0, 100.0)
TUNES = tuple({"epochs": 2, "learning_rate": rate} for rate in (2e-4, 2e-3))
"""What a short tune may be: at this machine's default rate, or at ten times it."""


class Hits(NamedTuple):
    precision: float
    recall: float
    out: int
    """Rows left out."""


def planted(lines: Sequence[str], share: float, seed: int = 0) -> tuple[list[str], set[int]]:
    """The rows with this share of their answers moved to other rows, where they are wrong, and the numbers of
    those rows, from 1."""
    draw = random.Random(seed)
    rows = [json.loads(line) for line in lines]
    moved = draw.sample(range(len(rows)), round(share * len(rows)))
    answers = [row["messages"][-1]["content"] for row in rows]
    for n in moved:
        rows[n]["messages"][-1]["content"] = draw.choice([a for a in answers if a != answers[n]])
    return [json.dumps(row) for row in rows], {n + 1 for n in moved}


def found(scores: scoring.Scores, wrong: set[int]) -> dict[str, Hits]:
    """By signal, with as many rows left out as are wrong; and of the rows that confident learning names."""
    told: dict[str, Hits] = {}
    for name, signal in score.SIGNALS.items():
        doubts = [signal.doubt(one) for one in scores.rows.values()]
        if len(set(doubts)) > 1:
            order = [one.row for one in score.ranked(scores, name)]
            told[name] = hits(set(order[-len(wrong) :]), wrong)
    if issues := {one.row for one in scores.rows.values() if one.likely_label is not None}:
        told["label, as named"] = hits(issues, wrong)
    return told


def hits(out: set[int], wrong: set[int]) -> Hits:
    return Hits(len(out & wrong) / len(out), len(out & wrong) / len(wrong), len(out))


def measured(
    lines: Sequence[str], share: float, seed: int, tune: dict[str, Any] | None = None
) -> dict[str, Hits]:
    """Of the rows alone, or with the losses of the base and of a model that was tuned on the noisy rows."""
    rows, wrong = planted(lines, share, seed)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "train.jsonl")
        file.write_text("\n".join(rows) + "\n", encoding="utf-8")
        settings = config.load(
            env={"ORCHESTRATE_HOME": f"{scratch}/home", "HF_HUB_OFFLINE": "1"}, cwd=Path(scratch)
        )
        with Orchestrator(settings) as ft:
            order = scoring.ScoreOrder()
            if tune is not None:
                spec = {"model": "tiny-chat", "train": str(file), "adapter": "lora", **tune}
                run = ft.submit({**spec, "provider_options": {"local": {"threads": 1}}}, "local")
                run.wait()
                order = scoring.ScoreOrder(model="tiny-chat", after=run.id)
            with scoring.prepared(ft, str(file), order) as prepared:
                prepared.run()
                return found(prepared.scores, wrong)


def means(each: Sequence[dict[str, Hits]]) -> dict[str, Hits]:
    """Over repetitions, by signal."""
    names = list(dict.fromkeys(name for one in each for name in one))
    return {
        name: Hits(
            mean(one[name].precision for one in each if name in one),
            mean(one[name].recall for one in each if name in one),
            round(mean(one[name].out for one in each if name in one)),
        )
        for name in names
    }


def chosen_strength(lines: Sequence[str]) -> tuple[float, dict[str, float]]:
    """The inverse regularization with which `label` is most precise, over both shares; the default where it
    is no worse than any other."""
    default, told = score.STRENGTH, dict[str, float]()
    try:
        for strength in STRENGTHS:
            score.STRENGTH = strength
            each = [measured(lines, share, seed)["label"] for share in SHARES for seed in SEEDS["labels"]]
            told[f"{strength:g}"] = mean(one.precision for one in each)
    finally:
        score.STRENGTH = default
    best = max(told.values())
    return (default if told[f"{default:g}"] == best else float(max(told, key=told.__getitem__))), told


def chosen_tune(lines: Sequence[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """The short tune whose `loss-after` is most precise, over both shares."""
    told = {
        json.dumps(tune): mean(measured(lines, share, 0, tune)["loss-after"].precision for share in SHARES)
        for tune in TUNES
    }
    return json.loads(max(told, key=told.__getitem__)), told


def reported(kind: str, lines_of: Callable[[Path], list[str]]) -> dict[str, Any]:
    """What was chosen on one set, and the figures of the others."""
    lines, tune = lines_of(CHOSEN_ON[kind]), None
    if kind == "labels":
        value, tried = chosen_strength(lines)
        score.STRENGTH = value
        chosen: dict[str, Any] = {"strength": value, "tried": tried}
    else:
        tune, tried = chosen_tune(lines)
        chosen = {**tune, "tried": tried}
    rows: list[dict[str, Any]] = []
    for name, path in REPORTED_ON[kind].items():
        for share in SHARES:
            each = [measured(lines_of(path), share, seed, tune) for seed in SEEDS[kind]]
            for signal, one in means(each).items():
                rows.append({"data": name, "share": share, "signal": signal, **one._asdict()})
                print(rows[-1], flush=True)
    return {"chosen": chosen, "found": rows}


def table(figures: dict[str, Any]) -> str:
    """For docs/figures.py."""
    lines = ["{machine}, initial load {load:.1f}; {day}; tiny-chat.".format(**figures)]
    if labels := figures["kinds"].get("labels"):
        chosen = f"chosen on examples/classification: C = {labels['chosen']['strength']:g}"
        lines.append(f"Labels: {labels['rows']} rows at most; {chosen}.")
    if free := figures["kinds"].get("free"):
        chosen = free["chosen"]
        tune = f"{chosen['epochs']} epochs at a rate of {chosen['learning_rate']:g}"
        lines.append(f"Free answers: {free['rows']} rows; chosen on the demo's orders: {tune}.")
    lines += [
        "",
        "| data | moved answers | signal | precision | recall | rows left out |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for one in [row for kind in figures["kinds"].values() for row in kind["found"]]:
        cells = (one["data"], f"{one['share']:.0%}", one["signal"], f"{one['precision']:.2f}")
        lines.append(f"| {' | '.join(cells)} | {one['recall']:.2f} | {one['out']} |")
    return "\n".join(lines)


def main() -> None:
    from measured_on import Meter, about, write

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument(
        "--kind", action="append", choices=list(CHOSEN_ON), help="this alone; added to the JSON"
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures, meter = about("scikit-learn", "torch"), Meter.now()
    kinds: dict[str, Any] = {}
    if given.kind and given.json is not None and given.json.exists():
        kinds = json.loads(given.json.read_text(encoding="utf-8"))["kinds"]
    for kind in given.kind or CHOSEN_ON:
        kinds[kind] = reported(kind, lambda path: path.read_text(encoding="utf-8").splitlines()[: given.rows])
        kinds[kind]["rows"] = given.rows
    figures["others"] = meter.others()
    figures["kinds"] = {kind: kinds[kind] for kind in CHOSEN_ON if kind in kinds}
    if given.json is not None:
        write(given.json, figures)
    print(table(figures))


if __name__ == "__main__":
    main()
