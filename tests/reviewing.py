"""A review to try things on: answers of three contenders, some of them hostile, in a real store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from orchestrate.core.files import private_folder
from orchestrate.evaluation import Answer, Item, ScoredItem, item_id
from orchestrate.evaluation import review as tasks
from orchestrate.evaluation.review.session import ReviewSession
from orchestrate.store.store import Store
from orchestrate.types import Message, Review, Rubric

MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script><b>bold</b>"
ESCAPES = "plain \x1b]0;owned\x07\x1b[31mred\x1b[0m \u202eesrever\u202c\x00 end"
HUGE = "word " * 200_000
NAMES = ("tuned", "base", "few-shot")


def answered(*rows: tuple[str, ...], names: Sequence[str] = NAMES) -> list[ScoredItem]:
    """Rows of a question and one answer for each contender."""
    found: list[ScoredItem] = []
    for question, *texts in rows:
        prompt = (Message(role="system", content="Be brief."), Message(role="user", content=question))
        item = Item(id=item_id(prompt, [], "", []), prompt=prompt)
        answers = {name: (Answer(text=text),) for name, text in zip(names, texts, strict=False)}
        found.append(ScoredItem(item=item, answers=answers))
    return found


def desk_of(
    store: Store,
    folder: Path,
    rows: Sequence[ScoredItem],
    *,
    kind: Literal["pairs", "single"] = "pairs",
    names: Sequence[str] = NAMES[:2],
    rubric: Rubric | None = None,
    seed: int = 0,
    run_ids: tuple[str, ...] = ("run-1",),
) -> ReviewSession:
    """A new review in the store, with its tasks on the disk."""
    review_id = store.reviews.new_id()
    made = tasks.tasks_of(rows, names, kind=kind, review=review_id, seed=seed)
    place = private_folder(folder / review_id)
    tasks.write(made.tasks, place / "tasks.jsonl")
    review = Review(
        id=review_id,
        created_at=datetime.now(UTC),
        kind=kind,
        contenders=tuple(names),
        run_ids=run_ids,
        rubric=rubric or Rubric(name="plain", guide="Read both to the end."),
        evaluation="eval-1",
        dataset="test.jsonl",
        items_digest="0" * 64,
        items=len(rows),
        tasks=len(made.tasks),
        same=made.same,
        seed=seed,
        folder=str(place),
    )
    store.reviews.add(review)
    return ReviewSession(review, tasks.read(place / "tasks.jsonl"), store.reviews)
