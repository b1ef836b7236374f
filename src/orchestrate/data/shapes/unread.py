"""Report columns that a row's format does not use, so nothing is lost silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from shlex import quote
from typing import Any, cast

from msgspec.structs import replace
from xxhash import xxh3_64_intdigest

from orchestrate.data.rows import problem
from orchestrate.data.shapes import COLUMNS as IMAGES
from orchestrate.types import Problem, Severity

_ASKED = frozenset({"prompt", "question", "instruction"})
_PARTS = frozenset(
    {
        "system", "system_prompt", "context", "contexts", "input", "instruction", "article", "passage",
        "document", "documents", "paragraph", "background", "story", "history", "choices", "options",
    }
)  # fmt: skip
"""Common names of columns that contain part of the prompt."""
MEANING = {
    **dict.fromkeys(IMAGES, "the images"),
    **dict.fromkeys(("audio", "audios"), "the audio"),
    **dict.fromkeys(("video", "videos"), "the video"),
    "attachments": "attachments",
    **dict.fromkeys(
        (
            "train",
            "trainable",
            "train_detail",
            "loss",
            "loss_weight",
            "loss_mask",
            "loss_spans",
            "weight",
            "weights",
            "sample_weight",
            "sample_weights",
        ),
        "what to train on",
    ),
    **dict.fromkeys(
        ("kto_tag", "feedback", "feedback_rating", "user_feedback", "thumbs", "thumbs_up", "thumbs_down"),
        "whether the answer is good",
    ),
    **dict.fromkeys(("tools", "functions"), "the tools"),
    **dict.fromkeys(("role", "parent_id"), "the speaker (use --thread to group such rows)"),
    **dict.fromkeys(("reasoning", "reasoning_content", "thinking"), "the reasoning"),
}
"""Columns that change what a row teaches, in any format."""
_JUDGES = frozenset(
    {
        "label", "rating", "vote", "score", "reward", "quality", "grade", "verdict", "judgement", "judgment",
        "preference", "is_good", "good", "is_correct", "correct", "accepted", "approved", "desirable",
        "preferred", "chosen", "rejected", "liked", "upvoted", "downvoted",
    }
)  # fmt: skip
"""Columns that rate an answer if they contain a verdict. With other values, they mean something else."""
_GRADES = frozenset({"rating", "score", "reward", "quality", "grade"})
"""Rating columns with points on a scale."""
_VERDICTS = {
    **dict.fromkeys(
        (
            "true", "1", "1.0", "+1", "good", "chosen", "preferred", "accepted", "desirable", "thumbsup",
            "like", "liked", "upvote", "upvoted", "\U0001f44d",
        ),
        True,
    ),
    **dict.fromkeys(
        (
            "false", "0", "0.0", "-1", "-1.0", "bad", "rejected", "dispreferred", "undesirable", "thumbsdown",
            "dislike", "disliked", "downvote", "downvoted", "\U0001f44e",
        ),
        False,
    ),
}  # fmt: skip
_PERHAPS = frozenset(
    {
        "up", "down", "positive", "negative", "correct", "incorrect", "right", "wrong", "pass", "passed",
        "fail", "failed", "yes", "no", "helpful", "unhelpful",
    }
)  # fmt: skip
"""Ambiguous values, which can be either a verdict on an answer or a class label for the text."""
_TEXT = frozenset({"text", "loss_spans"})
_CLASSES = frozenset({"label", "labels", "label_text", "target", "category", "sentiment"})
"""Columns that contain the answer if a row has only a text."""


def verdict_of(value: Any) -> bool | None:
    """Return whether a label marks its answer as good, or `None` if it has another meaning."""
    return _VERDICTS.get(_plain(value)) if isinstance(value, str | int | float) else None


def _plain(value: Any) -> str:
    text = str(value).strip().lower()
    return "".join(c for c in text if c not in "_- :") if any(map(str.isalpha, text)) else text


_LOSS = "which tokens contribute to the loss"
_SIGNS: dict[str, tuple[bool, str]] = {
    **dict.fromkeys(("masked", "mask", "ignore", "skip", "no_loss"), (True, _LOSS)),
    **dict.fromkeys(
        ("trained", "is_trained", "train_on", "calculate_loss", "supervised", "learn", "loss_scale"),
        (False, _LOSS),
    ),
    **dict.fromkeys(("flagged", "deleted", "toxic", "hallucination"), (True, "whether the answer is good")),
}
"""Boolean fields that only matter if they have a certain value, as `{field: (value, what training would
lose)}`."""
_POINTS = frozenset({"reward", "upvotes"})
"""Columns in which a negative number marks a bad answer."""


def _sign_of(name: str, value: Any) -> str | None:
    if name in _POINTS and isinstance(value, int | float) and value < 0:
        return "whether the answer is good"
    if name == "status" and _plain(value) in ("accepted", "rejected"):
        return "whether the answer is good"
    if name in _SIGNS and isinstance(value, str | int | float):
        says, meaning = _SIGNS[name]
        true = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
        return meaning if true.get(_plain(value)) is says else None
    return None


def meaning_of(name: str, value: Any) -> str | None:
    """Describe the information that training would lose without a column or field, such as `whether the
    answer is good`. Returns `None` if training does not need the column or field."""
    name = name.rpartition(".")[2].lower()
    if (sign := _sign_of(name, value)) is not None:
        return sign
    if name in _JUDGES:
        is_scale = name in _GRADES and not isinstance(value, str | bool)
        is_verdict = verdict_of(value) is not None or (isinstance(value, str) and _plain(value) in _PERHAPS)
        return "whether the answer is good" if is_verdict and not is_scale else None
    return MEANING.get(name)


def problems_of(row: Mapping[str, Any], unread: Mapping[str, Any], used: frozenset[str]) -> list[Problem]:
    """Return problems for the columns in `unread` that change what the model learns. If the prompt is a
    single text, a column with part of the prompt is an error unless the text contains it."""
    found: list[Problem] = []
    prompt = "\n".join(row[n] for n in sorted(_ASKED & used & row.keys()) if isinstance(row[n], str))
    for name, value in sorted(unread.items()):
        if value in (None, "", [], {}):
            continue
        if (
            prompt
            and name in _PARTS
            and not all(text.strip() in prompt for text in texts_in(value) or [prompt])
        ):
            found.append(problem("unused-prompt", f"{name} is not used", field=name))
        elif used == _TEXT and name in _CLASSES:
            found.append(_unanswered(name, value))
        elif (meaning := meaning_of(name, value)) is not None and not _is_answer(value, row):
            message = f"{name} is not used in rows of this format, so training would ignore {meaning}"
            fix = f"to train without it: --ignore {quote(name)}"
            if verdict_of(value) is not None:
                fix = f"to use it as KTO's label: --map {quote(f'label={name}')}, or {fix}"
            elif name.startswith("sample_weight"):
                fix = f"to use it in conversations: --map weight={name}, or {fix}"
            found.append(replace(problem("lost-meaning", message, field=name), fix=fix))
    return found


def _unanswered(name: str, value: Any) -> Problem:
    message = (
        f"{name} is ignored in rows with a text column, so training would use the text without its answer"
    )
    read = f"to use it as the answer: --map question=text,answer={name}"
    if not isinstance(value, str):
        read = f"first replace each class number with its name. Then, {read}"
    fix = f"{read}. To train on the text alone: --ignore {name}"
    return replace(problem("lost-meaning", message, field=name), fix=fix)


def _is_answer(value: Any, row: Mapping[str, Any]) -> bool:
    """Return whether a label only repeats the answer."""
    answers = [row.get(name) for name in ("completion", "output", "response", "answer")]
    if isinstance(messages := row.get("messages"), list) and messages and isinstance(messages[-1], dict):
        answers.append(cast("dict[str, Any]", messages[-1]).get("content"))
    return isinstance(value, str) and any(
        isinstance(answer, str) and answer.strip().lower() == value.strip().lower() for answer in answers
    )


def texts_in(value: Any) -> list[str]:
    """List all strings in a value, at any depth. The value must not contain itself."""
    found: list[str] = []
    left: list[Any] = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, dict):
            left += reversed([*cast("dict[str, Any]", one).values()])
        elif isinstance(one, list):
            left += reversed(cast("list[Any]", one))
    return found


def _is_prose(text: str) -> bool:
    """Return whether a text has several words, unlike an id, a label, a date or an address."""
    return len(text.split()) >= 3 or (len(text) >= 8 and not text.isascii())


def holds_prose(value: Any) -> bool:
    return any(map(_is_prose, texts_in(value)))


SPLITS = frozenset({"split", "dataset_split", "data_split", "subset", "fold"})
"""Columns that assign a row to a split."""
_HELD_OUT = {
    **dict.fromkeys(("test", "testing", "heldout", "holdout", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
}


def held_out(value: Any) -> str | None:
    """Return the split that a column's value names: `test` or `validation`. Returns `None` for any other
    value."""
    return _HELD_OUT.get(_plain(value)) if isinstance(value, str) else None


_KEPT = {"is_test": "test", "is_eval": "test", "is_validation": "validation"}
"""Boolean columns that mark a row as held out, as `{column: split}`."""


def kept_for(name: str, value: Any) -> str | None:
    """Return the split (`test` or `validation`) that a row belongs to if column `name` has this value.
    Returns `None` for a training row."""
    if name == "metadata" and isinstance(value, dict):
        held = cast("dict[str, Any]", value)
        return next((split for n in sorted(held) if (split := kept_for(n, held[n]))), None)
    if name in _KEPT:
        return _KEPT[name] if value is True or value == 1 or _plain(value) == "true" else None
    return held_out(value) if name in SPLITS else None


MOST_VALUES = 8
MOST_COLUMNS = 200
"""Number of unused columns reported separately per file. The others are reported under one name."""


@dataclass
class UnreadColumn:
    """Statistics of an unused column in a file."""

    rows: int = 0
    """Number of rows with a value."""
    own: int = 0
    """Number of rows with text that no used column contains."""
    values: set[int] = field(default_factory=set[int])
    """Hashes of some of the values. If there is only one hash, every row has the same value."""

    held_out: Counter[str] = field(default_factory=Counter[str])
    """Number of rows that the column assigns to each held-out split (`test` or `validation`)."""

    def note(self, name: str, value: Any, seen: str) -> None:
        """Record a value of the column. `seen` is all text of the row that training uses."""
        if (split := kept_for(name, value)) is not None:
            self.held_out[split] += 1
        texts = [text.strip() for text in texts_in(value)]
        self.rows += 1
        self.own += any(_is_prose(text) and text not in seen for text in texts)
        if len(self.values) < MOST_VALUES:
            self.values.add(xxh3_64_intdigest(str(value)[:1000].encode("utf-8", "replace")))

    def add(self, other: UnreadColumn) -> None:
        self.rows += other.rows
        self.own += other.own
        self.held_out.update(other.held_out)
        self.values |= set(list(other.values)[: MOST_VALUES - len(self.values)])


def note(columns: dict[str, UnreadColumn], unread: Mapping[str, Any], seen: str) -> None:
    """Record the unused columns of one row. `seen` is all text of the row that training uses."""
    for name, value in unread.items():
        known = name if name in columns or len(columns) < MOST_COLUMNS else "(others)"
        columns.setdefault(known, UnreadColumn()).note(name, value, seen)


def with_own_text(columns: dict[str, UnreadColumn], rows: int) -> dict[str, UnreadColumn]:
    """Return the unused columns that, in most rows, contain text that appears in no used column. Columns with
    the same value in every row are left out."""
    own = {name: c for name, c in columns.items() if 2 * c.own > rows and (len(c.values) > 1 or rows == 1)}
    return dict(sorted(own.items()))


def unused_column_warnings(columns: dict[str, UnreadColumn], rows: int) -> Iterator[Problem]:
    """Yield a warning for each column that `with_own_text` returns, and a single warning for all other unused
    columns."""
    own = with_own_text(columns, rows)
    for name, column in own.items():
        message = (
            f"column {name} is not used, but in {column.own:,} of {rows:,} rows it contains text that "
            "does not appear in any used column, so the model would never see it"
        )
        fix = (
            f"to use it (as system, context, input ...): --map {quote(f'FIELD={name}')}. To leave it out: "
            f"--ignore {quote(name)}"
        )
        yield replace(problem("unread-column", message, field=name), fix=fix)
    if rest := sorted(columns.keys() - own.keys()):
        shown = f"{', '.join(rest[:12])}{' ...' if len(rest) > 12 else ''}"
        message = f"not used for training: {shown}"
        found = problem("unread-column", message, field=",".join(rest[:12]))
        yield replace(found, fix=f"to hide this warning: --ignore {quote(','.join(rest[:12]))}")


def held_out_rows(columns: Mapping[str, UnreadColumn]) -> tuple[str, Counter[str]] | None:
    """Return the first column that assigns rows to test or validation, with the number of rows in each split.
    Returns `None` if no column does that."""
    return next(((name, c.held_out) for name, c in columns.items() if c.held_out), None)


def strict(found: Problem) -> Problem:
    """Return the problem with the severity that `data check --strict` gives it."""
    unread = found.code in ("unread-column", "extra-fields", "hidden-column")
    return replace(found, severity=Severity.ERROR) if unread else found
