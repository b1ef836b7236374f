"""Write the README of an exported model: origin, cost, scores, and how to run it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from orchestrate.serving.tuned import TunedModel, table_of
from orchestrate.text import SANDBOX_MARK, inert, money
from orchestrate.types import Score


def card(tuned: TunedModel, form: str, commands: Sequence[str], notes: Sequence[str]) -> str:
    parts = [
        _front(tuned, form),
        f"# {title(tuned)}",
        _about(tuned),
        _evaluations(tuned),
        "## Run it\n\n" + "\n\n".join(map(_fenced, commands)),
        "## To know\n\n" + "\n".join(f"- {_plain(note)}" for note in notes) if notes else "",
        _license(tuned),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def title(tuned: TunedModel) -> str:
    """Return the model's title. Some licenses require the title to start with a given name."""
    begins = tuned.license.name_begins if tuned.license else None
    name = _plain(tuned.name)
    return name if begins is None or name.lower().startswith(begins.lower()) else f"{begins} {name}"


def _plain(value: Any) -> str:
    """Return external text on one line, with Markdown and HTML escaped."""
    line = inert(" ".join(str(value).split()))
    return re.sub(r"[\\`|\[\]*]", r"\\\g<0>", line).replace("<", "&lt;")


def _fenced(command: str) -> str:
    longest = max(map(len, re.findall("`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{command}\n{fence}"


def _front(tuned: TunedModel, form: str) -> str:
    """Return the front matter that the Hub reads."""
    lines = ["---"]
    lines.append(f"base_model: {json.dumps(tuned.base_name)}")
    lines.append(f"library_name: {'peft' if form in ('peft', 'vllm', 'gguf-lora') else 'transformers'}")
    if tuned.license is not None:
        lines.append(f"license: {tuned.license.id}")
    lines += ["pipeline_tag: text-generation", "tags:", "- orchestrate", f"- {tuned.kind}", "---"]
    return "\n".join(lines)


def _about(tuned: TunedModel) -> str:
    run, provenance = tuned.run, tuned.provenance
    rows: list[tuple[str, Any]] = [("base", tuned.base_name)]
    spec = table_of(provenance, "spec")
    rows.append(("method", table_of(spec, "method").get("type")))
    adapter = table_of(spec, "adapter")
    if adapter:
        rows.append(("adapter", ", ".join(f"{k} {v}" for k, v in adapter.items() if v is not None)))
    for name in ("epochs", "learning_rate", "batch_size", "seed"):
        rows.append((name.replace("_", " "), spec.get(name)))
    rows.append(("data (sha256 of the rows)", provenance.get("dataset_digest")))
    if run is not None:
        rows += [
            ("run", run.id),
            ("trained on", run.provider + SANDBOX_MARK * run.sandbox),
            ("finished", f"{run.finished_at:%Y-%m-%d}" if run.finished_at else None),
            ("trained tokens", f"{run.trained_tokens:,}" if run.trained_tokens else None),
            ("cost", money(run.bill.usd) if run.bill is not None else None),
            ("spec", run.spec_hash),
        ]
    table = "\n".join(f"| {name} | {_plain(value)} |" for name, value in rows if value not in (None, ""))
    return f"| | |\n|---|---|\n{table}"


def _evaluations(tuned: TunedModel) -> str:
    """Return the scores of the run's model, and what it was compared with."""
    lines: list[str] = []
    for found in tuned.evaluations:
        mine = [c.name for c in found.contenders if tuned.run and c.run_id == tuned.run.id]
        for contender in (name for name in mine if name != found.against):
            for metric in found.metrics:
                other = found.score(found.against, metric.name) if found.against else None
                score = _score(found.score(contender, metric.name))
                data = found.dataset_digest[:12]
                lines.append(
                    f"| {_plain(metric.name)} | {found.items} | {_score(other)} | {score} | {data} |"
                )
    head = "## Evaluation\n\n| metric | rows | compared with | this model | data |\n|---|---|---|---|---|\n"
    return head + "\n".join(lines) if lines else ""


def _score(score: Score | None) -> str:
    return "" if score is None else f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"


def _license(tuned: TunedModel) -> str:
    license = tuned.license
    if license is None:
        return "## License\n\nThe base model's license is not in Orchestrate's catalog."
    lines = [
        f"## License\n\nThe base model's license: {license.title}"
        + (f", {license.url}" if license.url else "")
    ]
    lines += [f"- {ask}" for ask in license.asks]
    if license.notice:
        lines.append(f"\n{license.notice}")
    return "\n".join(lines)
