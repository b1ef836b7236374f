"""Asks base and tuned model for the answers to held-out rows and scores them, row by row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrate.data import Dataset
from orchestrate.data.rows.examples import ChatExample, CompletionExample, Example, UnpairedExample
from orchestrate.data.tokens.answers import read_answer
from orchestrate.errors import DataError, UsageError
from orchestrate.evaluation import statistics
from orchestrate.evaluation.metrics import BINARY, METRICS, choose_metric
from orchestrate.files import whole
from orchestrate.keys import masked_url
from orchestrate.types import EvaluationResult, Message, Reply, Score

Generate = Callable[[Sequence[Sequence[Message]]], list[Reply]]
"""Conversations in, one reply each out, in order."""


CUT = "cut at the most tokens of an answer"


@dataclass(frozen=True)
class Answers:
    """The models that are compared."""

    tuned: Generate
    base: Generate | None = None
    by: str = ""
    """Who answers, said with the scores: the same model can answer differently in another precision."""


@dataclass(frozen=True)
class HeldOut:
    """A row to ask about: the conversation up to the last assistant message, and that message."""

    prompt: tuple[Message, ...]
    expected: str


def held_out(dataset: Dataset, limit: int | None = None) -> list[HeldOut]:
    """The rows that can be scored. Raises `DataError` when there is none."""
    rows: list[HeldOut] = []
    for example in dataset.examples():
        if limit is not None and len(rows) >= limit:
            break
        if (row := _held_out(example)) is not None:
            rows.append(row)
    if not rows:
        raise DataError(
            f"{dataset.path}: no row ends with an assistant message or a completion to compare with",
            fix="evaluation needs chat rows with the expected answer last, prompt/completion rows, "
            "or unpaired rows that are desirable",
        )
    return rows


def evaluate(
    dataset: Dataset,
    answers: Answers,
    *,
    run_id: str,
    provider: str,
    metric: str = "auto",
    limit: int | None = None,
    items_file: Path | None = None,
) -> EvaluationResult:
    """Scores the tuned model, and the base on the same rows, and writes each row's answers to `items_file`
    (JSONL).

    Raises `UsageError` for an unknown metric, `DataError` for rows that cannot be scored, and what the
    generators raise.
    """
    rows, base = held_out(dataset, limit), answers.base
    name = choose_metric([row.expected for row in rows]) if metric == "auto" else metric
    if name not in METRICS:
        raise UsageError(f"no metric is called {name!r}; known: auto, {', '.join(METRICS)}")
    tuned, base_replies = _asked(rows, answers.tuned), _asked(rows, base) if base else []
    tuned_answers, tuned_scores = _scored(name, rows, tuned)
    base_answers, base_scores = _scored(name, rows, base_replies) if base else ([], [])
    if items_file:
        _write_items(items_file, rows, tuned_answers, tuned_scores, base_answers, base_scores)
    binary = name in BINARY
    gained = sum(t == 1 and b == 0 for t, b in zip(tuned_scores, base_scores, strict=False)) if binary else 0
    lost = sum(t == 0 and b == 1 for t, b in zip(tuned_scores, base_scores, strict=False)) if binary else 0
    differences = [t - b for t, b in zip(tuned_scores, base_scores, strict=False)]
    return EvaluationResult(
        run_id=run_id,
        provider=provider,
        metric=name,
        dataset=masked_url(dataset.path),
        dataset_digest=dataset.digest,
        base=_score(name, base_scores) if base else None,
        tuned=_score(name, tuned_scores),
        difference=statistics.mean_interval(differences) if base else None,
        gained=gained,
        lost=lost,
        p_value=statistics.mcnemar(gained, lost) if base and binary else None,
        created_at=datetime.now(UTC),
        items_file=str(items_file) if items_file else None,
        served_by=answers.by,
        notes=(*_notes("tuned", tuned), *_notes("base", base_replies)),
    )


def _held_out(example: Example) -> HeldOut | None:
    if isinstance(example, CompletionExample):
        return HeldOut((Message(role="user", content=example.prompt),), example.completion)
    if isinstance(example, ChatExample) and example.messages and example.messages[-1].role == "assistant":
        *prompt, answer = example.messages
    elif isinstance(example, UnpairedExample) and example.label:
        # An answer to avoid says nothing of the one to expect.
        prompt, answer = example.prompt, example.completion[-1]
    else:
        return None
    if not prompt or not answer.text:
        return None
    # A row may hold its thinking in the answer's text, and a model is not judged by how it thinks.
    expected = read_answer(answer.text, calls=False).content or answer.text
    return HeldOut(tuple(Message(role=m.role, content=m.text) for m in prompt), expected)


def _asked(rows: Sequence[HeldOut], generate: Generate) -> list[Reply]:
    return generate([row.prompt for row in rows])


def _notes(whose: str, replies: Sequence[Reply]) -> Iterator[str]:
    """What the replies' reader may not expect, with how many there are of each."""
    found = Counter(note for reply in replies for note in reply.notes)
    found[CUT] += sum(reply.finish_reason == "length" and not reply.notes for reply in replies)
    for note, count in found.items():
        if count:
            yield f"{whose}, {count} of {len(replies)}: {note}"


def _scored(name: str, rows: Sequence[HeldOut], replies: Sequence[Reply]) -> tuple[list[str], list[float]]:
    answers = [reply.content for reply in replies]
    return answers, [METRICS[name](row.expected, answer) for row, answer in zip(rows, answers, strict=True)]


def _score(name: str, scores: Sequence[float]) -> Score:
    if name in BINARY:
        return statistics.wilson(round(sum(scores)), len(scores))
    return statistics.mean_interval(scores)


def _write_items(
    path: Path,
    rows: Sequence[HeldOut],
    tuned: Sequence[str],
    tuned_scores: Sequence[float],
    base: Sequence[str],
    base_scores: Sequence[float],
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as draft, draft.open("w", encoding="utf-8") as out:
        for i, row in enumerate(rows):
            item: dict[str, Any] = {
                "prompt": [{"role": m.role, "content": m.content} for m in row.prompt],
                "expected": row.expected,
                "tuned": tuned[i],
                "tuned_score": tuned_scores[i],
            }
            if base:
                item |= {"base": base[i], "base_score": base_scores[i]}
            out.write(json.dumps(item, ensure_ascii=False) + "\n")
