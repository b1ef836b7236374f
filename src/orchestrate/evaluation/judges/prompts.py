"""What a judge is asked, by `NAME.txt` here. A prompt that changes gets a new name: what was measured with
the old one is not what the new one would say."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files

import msgspec

from orchestrate.evaluation.items import NO_ANSWER, Answer, in_words
from orchestrate.types import Criterion, Message, Rubric

SCORE, PAIR = "score-1", "pair-1"


def text(name: str) -> str:
    """The words of a prompt, which are kept with what was measured by it."""
    return files("orchestrate.evaluation.judges").joinpath(f"{name}.txt").read_text(encoding="utf-8").strip()


def to_score(rubric: Rubric, prompt: Sequence[Message], expected: str, answer: Answer) -> tuple[Message, ...]:
    """The question about one answer."""
    scores = ", ".join(f'"{c.name}": 1 to {c.points}' for c in rubric.criteria)
    body = [rubric.guide.strip(), *map(_criterion, rubric.criteria)]
    shown = [("conversation", _conversation(prompt)), ("answer to rate", said(answer))]
    return _question(SCORE, body, shown, expected, scores=scores)


def to_compare(
    rubric: Rubric, prompt: Sequence[Message], expected: str, first: Answer, second: Answer
) -> tuple[Message, ...]:
    """The question about two answers, `first` as A."""
    shown = [("conversation", _conversation(prompt)), ("answer A", said(first)), ("answer B", said(second))]
    return _question(PAIR, [rubric.question, rubric.guide.strip()], shown, expected)


def said(answer: Answer) -> str:
    """An answer as text, its calls of tools too."""
    return in_words(answer.text, answer.tool_calls) or NO_ANSWER


def _question(
    name: str, body: Sequence[str], shown: Sequence[tuple[str, str]], expected: str, **fields: str
) -> tuple[Message, ...]:
    if expected:
        shown = [shown[0], ("answer that is known to be good", expected), *shown[1:]]
    # The author of an answer cannot know the mark, as it depends on all of the text.
    mark = "=" * 5 + hashlib.sha256(msgspec.json.encode([*body, *shown])).hexdigest()[:12]
    parts = [f"{mark} {title}\n{shown_text}" for title, shown_text in shown]
    content = "\n\n".join([*filter(None, body), *parts, mark])
    return (
        Message(role="system", content=text(name).format(mark=mark, **fields)),
        Message(role="user", content=content),
    )


def _criterion(criterion: Criterion) -> str:
    points = ", ".join(f"{n} {label}" for n, label in enumerate(criterion.labels, 1))
    if isinstance(criterion.scale, int):
        points = f"1 (worst) to {criterion.points} (best)"
    return f"{criterion.name}: {criterion.question} {points}".replace(":  ", ": ")


def _conversation(prompt: Sequence[Message]) -> str:
    turns = [f"[{message.role}]\n{in_words(message.content, message.tool_calls)}" for message in prompt]
    return "\n\n".join(turns) or "(none)"
