"""How much planted noise each signal of `orchestrate data score` finds. Answers are moved to other rows, and
the rows that a signal doubts most are left out: as many as were planted.

python benchmarks/selection.py [--rows 300]
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from orchestrate import Orchestrator
from orchestrate.runs.data import scoring
from orchestrate.settings import config

ROOT = Path(__file__).resolve().parents[1]
SETS = {
    "labels (examples/classification)": ROOT / "examples/classification/train.jsonl",
    "free answers (the demo's orders)": ROOT / "src/orchestrate/bundled/orders/train.jsonl",
}
SHARES = (0.1, 0.3)


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


def found(scores: scoring.Scores, wrong: set[int]) -> dict[str, tuple[float, float, int]]:
    """Precision and recall of each signal, and how many rows it left out: as many as are wrong, or all that
    confident learning names."""
    told: dict[str, tuple[float, float, int]] = {}
    for name, signal in scoring.SIGNALS.items():
        doubts = [signal.doubt(one) for one in scores.rows.values()]
        if len(set(doubts)) > 1:
            order = [one.row for one in scoring.ranked(scores, name)]
            told[name] = _hits(set(order[-len(wrong) :]), wrong)
    if issues := {one.row for one in scores.rows.values() if one.likely_label is not None}:
        told["label, as named"] = _hits(issues, wrong)
    return told


def _hits(out: set[int], wrong: set[int]) -> tuple[float, float, int]:
    return len(out & wrong) / len(out), len(out & wrong) / len(wrong), len(out)


def measured(lines: Sequence[str], share: float, folder: Path) -> dict[str, tuple[float, float, int]]:
    """After a short tune on the noisy rows themselves."""
    rows, wrong = planted(lines, share)
    file = folder / "train.jsonl"
    file.write_text("\n".join(rows) + "\n")
    settings = config.load(env={"ORCHESTRATE_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}, cwd=folder)
    with Orchestrator(settings) as ft:
        run = ft.submit({"model": "tiny-chat", "train": str(file), "epochs": 2}, "local")
        run.wait()
        order = scoring.ScoreOrder(model="tiny-chat", after=run.id)
        with scoring.prepared(ft, str(file), order) as prepared:
            prepared.run()
            return found(prepared.scores, wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300)
    most: int = parser.parse_args().rows
    print("| data | planted | signal | precision | recall | left out |\n|---|---|---|---|---|---|")
    for name, path in SETS.items():
        lines = path.read_text().splitlines()[:most]
        for share in SHARES:
            with tempfile.TemporaryDirectory() as folder:
                told = measured(lines, share, Path(folder))
            for signal, (precision, recall, out) in told.items():
                row = f"| {name} | {share:.0%} | {signal} | {precision:.2f} | {recall:.2f} | {out} |"
                print(row, flush=True)


if __name__ == "__main__":
    main()
