"""Measure how well a judge agrees with human ratings of the same answers. A judge without calibration, or
with too little agreement, gives scores but can't decide a verdict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

import msgspec

from orchestrate import text
from orchestrate.core.files import whole
from orchestrate.data.dataset_reader import first_lines, sniff
from orchestrate.data.files import log_beside, require_writable, writing
from orchestrate.data.files.sources import source
from orchestrate.data.rows import ChatExample, ChatMessage, CompletionExample, Example
from orchestrate.data.shapes.row_reader import reading
from orchestrate.errors import DataError
from orchestrate.evaluation import Answer, Item, Mark, item_id, statistics
from orchestrate.evaluation.judges import Judge, Kind, PairJudge, ScoreJudge
from orchestrate.evaluation.metrics.base import MOST_UNRATED
from orchestrate.evaluation.review import ReviewTask
from orchestrate.evaluation.review.results import votes_of
from orchestrate.types import Message, MetricUsed, Rating, Record, Review, Rubric, Score, decoding

# Human-rated answers in JSON Lines, with which a judge's ratings are compared.
#
# A line has a `prompt` (a string or messages), or an entire chat row as `messages`, which ends with the
# answer. A single `answer` has `scores` by criterion, or a `rating` if the rubric has one criterion. Two
# `answers` have `preferred`: first, second, tie or both bad. Exported files always use `answers`, even for
# a single answer.

Preferred = Literal["first", "second", "tie", "both bad"]


class RatedAnswer(Record, frozen=True, kw_only=True, omit_defaults=True):
    """An answer or a pair of answers, with human ratings."""

    prompt: tuple[Message, ...]
    expected: str = ""
    answers: tuple[str, ...]
    preferred: Preferred | None = None
    """The raters' overall preference, for pairs."""
    scores: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    """Raters' average score by criterion, for single answers."""
    raters: int = 1
    item: str = ""
    """Id of the rated item. Ratings of the same item form one cluster."""


class _RatedLine(msgspec.Struct):
    """A rated line as users write it. Other fields are ignored."""

    prompt: str | list[Message] | None = None
    messages: list[Message] | None = None
    expected: str = ""
    answer: str | None = None
    answers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=2)] | None = None
    preferred: Preferred | None = None
    scores: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    rating: float | None = None
    raters: int = 1
    item: str = ""


def read(path: Path, rubric: Rubric) -> list[RatedAnswer]:
    """Read rated answers. Raises `DataError` if the file has no rated answers, or if a line is invalid. The
    error names the line."""
    found: list[RatedAnswer] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    found.append(_read(line, f"{path}: line {number}", rubric))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not found:
        raise DataError(f"{path} has no rated answers", fix="orchestrate review RUN --export rated.jsonl")
    if len({len(one.answers) for one in found}) > 1:
        raise DataError(
            f"{path} mixes single answers and pairs", fix="use a file with only single answers or only pairs"
        )
    return found


def _read(text: bytes, place: str, rubric: Rubric) -> RatedAnswer:
    try:
        line = decoding.decode(text, type=_RatedLine)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{place}: {error}") from error
    prompt, answers = _conversation(line, place)
    scores = dict(line.scores)
    if line.rating is not None and not scores and len(rubric.criteria) == 1:
        scores = {rubric.criteria[0].name: line.rating}
    if len(answers) == 2 and line.preferred is None:
        raise DataError(f"{place}: pairs need a preference")
    if len(answers) == 1:
        for c in rubric.criteria:
            if not 1 <= scores.get(c.name, 0) <= c.points:
                raise DataError(
                    f"{place}: {c.name} has no rating from 1 to {c.points}",
                    fix="use the rubric that the raters used",
                )
    item = line.item or item_id(prompt, [], "", [])
    return RatedAnswer(
        prompt=prompt,
        expected=line.expected,
        answers=answers,
        preferred=line.preferred if len(answers) == 2 else None,
        scores={c.name: scores[c.name] for c in rubric.criteria} if len(answers) == 1 else {},
        raters=line.raters,
        item=item,
    )


def _conversation(line: _RatedLine, place: str) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    answers = line.answers if line.answers is not None else (line.answer,)
    if line.messages and line.prompt is None and line.answers is None and line.answer is None:
        *prompt, last = line.messages
        return tuple(prompt), (last.content,)
    if line.prompt is None or None in answers:
        raise DataError(f"{place}: use prompt and answer, prompt and answers, or messages")
    given = [Message(role="user", content=line.prompt)] if isinstance(line.prompt, str) else line.prompt
    return tuple(given), tuple(text or "" for text in answers)


def of_review(review: Review, tasks: Sequence[ReviewTask], held: Iterable[Rating]) -> list[RatedAnswer]:
    """Return the rated tasks of a review, without duplicates."""
    known = {task.id: task for task in tasks}
    by_task: dict[str, list[Rating]] = {}
    for rating in held:
        by_task.setdefault(rating.task, []).append(rating)
    return [_of_task(review, known[key], ratings, known) for key, ratings in by_task.items() if key in known]


def _of_task(
    review: Review, task: ReviewTask, ratings: Sequence[Rating], known: Mapping[str, ReviewTask]
) -> RatedAnswer:
    pair = review.kind == "pairs"
    return RatedAnswer(
        prompt=task.item.prompt,
        expected=task.item.expected,
        answers=tuple(answer.text for answer in task.answers),
        preferred=_preferred(ratings, known) if pair else None,
        scores={}
        if pair
        else {c.name: fmean(r.scores[c.name] for r in ratings) for c in review.rubric.criteria},
        raters=len(ratings),
        item=task.item.id,
    )


def _preferred(ratings: Sequence[Rating], known: Mapping[str, ReviewTask]) -> Preferred:
    mean = fmean(vote.points for vote in votes_of(ratings, known))
    if mean != 0.5:
        return "first" if mean > 0.5 else "second"
    return "both bad" if all(rating.choice == "both bad" for rating in ratings) else "tie"


def write(rated: Iterable[RatedAnswer], path: Path) -> int:
    """Write rated answers to a file and return their number."""
    count = 0
    with whole(path) as draft, draft.open("w", encoding="utf-8") as file:
        for one in rated:
            plain: dict[str, Any] = one.to_dict()
            file.write(json.dumps(plain, ensure_ascii=False) + "\n")
            count += 1
    return count


FEWEST = 30
"""Minimum number of rated answers for measuring the agreement."""
LEAST = 0.4
"""Smallest acceptable lower confidence bound of kappa. For scores, it also applies to the rank correlation.
0.4 means moderate agreement (Landis and Koch 1977)."""


class Calibration(Record, frozen=True, kw_only=True):
    """The agreement of a judge with human raters on the same answers."""

    judge: str
    """Digest of the judge's model, URL, prompt and rubric."""
    kind: Kind
    model: str
    place: str
    prompt: str
    rubric: Rubric
    rated_digest: str
    at: datetime
    n: int
    """Number of human-rated answers (or pairs) that the judge also rated."""
    prompts: int | None = None
    """Number of distinct prompts, or `None` if unknown. If prompts repeat, all confidence intervals treat the
    answers to a prompt as one cluster."""
    unreadable: int
    same: Score
    """Fraction of rated answers (or pairs) on which the judge and the human raters agree exactly: on the
    winner of a pair, or on the points of a single answer for every criterion."""
    kappa: Score | None
    """Cohen's kappa. For scores, it covers all criteria and uses quadratic weights."""
    spearman: Score | None = None
    """Spearman's rank correlation, for scores."""
    moved: int = 0
    """Number of pairs for which the judge's choice changed when the two answers were swapped."""

    @property
    def summary(self) -> str:
        """A one-line summary."""
        ranks = "" if self.spearman is None else f", rank correlation {text.score(self.spearman)}"
        moved = f", {self.moved} changed when the answers were swapped" if self.moved else ""
        same = f"agrees on {self.same.value:.0%} of {self.n} answers"
        return f"kappa {text.score(self.kappa)}{ranks}, {same}{moved}"

    @property
    def unfit(self) -> str | None:
        """The reason why this judge cannot decide a verdict, or `None`."""
        if self.n < FEWEST:
            return f"the judge was compared with human ratings on {self.n} answers, but {FEWEST} are required"
        if self.prompts is None or self.prompts < FEWEST:
            known = "an unknown number of" if self.prompts is None else self.prompts
            return (
                f"the judge was compared with human ratings on {known} different prompts, but {FEWEST} are "
                "required"
            )
        if self.unreadable > MOST_UNRATED * (self.n + self.unreadable):
            return f"{self.unreadable} of the judge's {self.n + self.unreadable} answers could not be parsed"
        for name, found in (("kappa", self.kappa), ("rank correlation", self.spearman)):
            if name == "rank correlation" and self.kind == "pair":
                continue
            if found is None:
                return "the judge or the raters gave every answer the same rating, so agreement is undefined"
            if found.low < LEAST:
                seen = f"{name} {text.score(found)} on {self.n} answers"
                return (
                    f"the judge's agreement with human raters is too low: {seen}. The lower bound of the "
                    f"agreement must be at least {LEAST}"
                )
        return None


def calibrate(judge: Judge, rated: Sequence[RatedAnswer]) -> Calibration:
    """Return the judge's agreement with human raters. The judge rates the same answers as the raters did, and
    the ratings are compared. Request errors propagate."""
    kind: Kind = "pair" if len(rated[0].answers) == 2 else "score"
    if kind == "pair":
        metric = PairJudge(judge)
        sides = [(_item(one), _answer(one.answers[0]), _answer(one.answers[1])) for one in rated]
        marks = metric.marks(sides)
        same, both = _pairs(rated, marks)
        values, groups = [(a, b) for a, b, _ in both], [group for _, _, group in both]
        kappa = statistics.kappa(values, groups=groups)
        spearman, moved = None, metric.moved
    else:
        scored = ScoreJudge(judge).scored([judge_input(one) for one in rated])
        marks, moved = [mark for mark, _ in scored], 0
        same, both = _scores(rated, scored, judge.rubric)
        values, groups = [(a, b) for a, b, _ in both], [group for _, _, group in both]
        kappa = statistics.kappa(values, squared=True, groups=groups)
        spearman = statistics.spearman(values, groups=groups)
    if not both:
        note = next((mark.note for mark in marks if mark.note), "empty answer")
        raise DataError(f"none of the judge's {len(rated)} answers could be parsed: {note[:200]}")
    return Calibration(
        judge=judge.digest(kind),
        kind=kind,
        model=judge.model,
        place=judge.place,
        prompt=judge.detail(kind)["prompt"],
        rubric=judge.rubric,
        rated_digest=hashlib.sha256(msgspec.json.encode(rated)).hexdigest(),
        at=datetime.now(UTC),
        n=len(both),
        prompts=len(set(groups)),
        unreadable=len(rated) - len(both),
        same=statistics.wilson(sum(same), len(same))
        if len(set(groups)) == len(groups)
        else statistics.mean([float(one) for one in same], groups, (0.0, 1.0)),
        kappa=kappa,
        spearman=spearman,
        moved=moved,
    )


def _pairs(
    rated: Sequence[RatedAnswer], marks: Sequence[Mark]
) -> tuple[list[bool], list[tuple[float, float, str]]]:
    """Return whether raters and judge agree, and (raters, judge, item), for each pair that the judge could
    rate."""
    points = {"first": 1.0, "second": 0.0}
    both = [
        (points.get(one.preferred or "", 0.5), mark.value, one.item)
        for one, mark in zip(rated, marks, strict=True)
        if mark.value is not None
    ]
    return [rater == judge for rater, judge, _ in both], both


def _scores(
    rated: Sequence[RatedAnswer], scored: Sequence[tuple[Mark, dict[str, int]]], rubric: Rubric
) -> tuple[list[bool], list[tuple[float, float, str]]]:
    same: list[bool] = []
    both: list[tuple[float, float, str]] = []
    for one, (mark, points) in zip(rated, scored, strict=True):
        if mark.value is None:
            continue
        same.append(all(abs(one.scores[name] - point) <= 0.5 for name, point in points.items()))
        both.append((rubric.score(one.scores), mark.value, one.item))
    return same, both


def judge_input(one: RatedAnswer) -> tuple[Item, Answer]:
    """Convert a single rated answer to an item and an answer for a judge."""
    return _item(one), _answer(one.answers[0])


def _answer(text: str) -> Answer:
    return Answer(text=text)


def _item(one: RatedAnswer) -> Item:
    return Item(id=item_id(one.prompt, [], one.expected, []), prompt=one.prompt, expected=one.expected)


# `orchestrate data judge` splits training rows by a judge's ratings. Every row is written unchanged to one of
# three files: kept, rejected or not judged. The ratings are written to a separate log.


KINDS = ("chat", "completion")


class JudgedRow(Record, frozen=True, kw_only=True):
    """The judge's rating of one row, stored as one line of the log."""

    row: int
    """Row number in the input file, starting at 1. Empty lines are not counted."""
    verdict: str
    """`kept`, `rejected` or `not judged`."""
    score: float | None = None
    """Score over all criteria, from 0 to 1."""
    scores: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    reason: str = ""


class JudgeReport(Record, frozen=True, kw_only=True):
    """The result of `data judge`."""

    path: str
    output: str
    """Path of the file with the accepted rows."""
    rejected_file: str
    not_judged_file: str | None
    log: str
    """Path of the file with each row's score, points and reason."""
    rows: int
    kept: int
    rejected: int
    not_judged: int
    keep: float
    mean: float | None
    judge: MetricUsed
    calibration: Calibration | None
    usd: Decimal | None
    """Cost of all answers in US dollars, including earlier attempts and `lost_usd`. `None` if no price is
    known."""
    lost_requests: int = 0
    """Number of unanswered requests that may have been billed."""
    lost_usd: Decimal | None = Decimal(0)
    """Maximum cost of the unanswered requests, in US dollars."""


@dataclass(frozen=True)
class CalibrationRow:
    """A row of the input file. `asked` is the item and the answer that the judge rates. For a row that cannot
    be judged, `asked` is `None` and `problem` gives the reason."""

    line: bytes
    asked: tuple[Item, Answer] | None = None
    problem: str = ""


def read_rows(path: str) -> list[CalibrationRow]:
    """Read all rows in file order. Raises `DataError` if the file can't be read, or if a row is neither a
    chat nor a completion."""
    lines = source(path)
    shape = sniff(path, first_lines(lines.lines), ())
    if shape.kind not in KINDS:
        raise DataError(
            f"{path} has {shape.kind} rows, but judges only rate chat and completion rows",
            fix="have raters rate the pairs: orchestrate review",
        )
    found: list[CalibrationRow] = []
    reader = reading(shape.name)
    with Path(lines.lines).open("rb") as file:
        for line in file:
            if text := line.strip().removeprefix(b"\xef\xbb\xbf"):
                read_row = reader.read(text)
                if read_row.example is None:
                    found.append(
                        CalibrationRow(text, problem="; ".join(p.message for p in read_row.problems))
                    )
                else:
                    asked = _asked_rows(read_row.example)
                    found.append(
                        CalibrationRow(text, asked, "" if asked else "the row does not end with an answer")
                    )
    if not any(row.asked for row in found):
        raise DataError(f"{path} has no rows to judge")
    return found


def part(
    path: str,
    rows: Sequence[CalibrationRow],
    metric: ScoreJudge,
    output: Path,
    *,
    keep: float,
    calibration: Calibration | None,
) -> JudgeReport:
    """Judge all rows, then write each row to one of three files: kept, rejected or unjudged rows. If a
    request fails, its error propagates and nothing is written."""
    names = outputs(path, output)
    judged = judged_rows(rows, metric, keep)
    places = {"kept": output, "rejected": names["rejected"], "not judged": names["not-judged"]}
    counts = dict.fromkeys(places, 0)
    for verdict, place in places.items():
        mine = [row.line for row, one in zip(rows, judged, strict=True) if one.verdict == verdict]
        counts[verdict] = len(mine)
        if verdict == "not judged" and not mine:
            place.unlink(missing_ok=True)
            continue
        with writing(place) as file:
            file.writelines(line + b"\n" for line in mine)
    with writing(names["scores"]) as log:
        log.writelines(one.to_json() + b"\n" for one in judged)
    values = [one.score for one in judged if one.score is not None]
    return JudgeReport(
        path=path,
        output=str(output),
        rejected_file=str(names["rejected"]),
        not_judged_file=str(names["not-judged"]) if counts["not judged"] else None,
        log=str(names["scores"]),
        rows=len(rows),
        kept=counts["kept"],
        rejected=counts["rejected"],
        not_judged=counts["not judged"],
        keep=keep,
        mean=fmean(values) if values else None,
        judge=metric.used,
        calibration=calibration,
        usd=None,
    )


def judged_rows(rows: Sequence[CalibrationRow], metric: ScoreJudge, keep: float) -> list[JudgedRow]:
    """Judge all rows. Request errors propagate."""
    scored = iter(metric.scored([row.asked for row in rows if row.asked is not None]))
    return [_judged(number, row, scored, keep) for number, row in enumerate(rows, start=1)]


def outputs(path: str, output: Path) -> dict[str, Path]:
    """Return the paths of the additional files: rejected rows, rows that were not judged, and scores. Raises
    `UsageError` if a file can't be written."""
    require_writable(output, path)
    return {name: log_beside(output, name, path) for name in ("rejected", "not-judged", "scores")}


def _judged(number: int, row: CalibrationRow, scored: Any, keep: float) -> JudgedRow:
    if row.asked is None:
        return JudgedRow(row=number, verdict="not judged", reason=row.problem)
    mark, points = next(scored)
    if mark.value is None:
        return JudgedRow(row=number, verdict="not judged", reason=mark.note)
    # The tolerance allows for rounding: a mean of thirds may fall just below a threshold of 2/3.
    verdict = "kept" if mark.value >= keep - 1e-9 else "rejected"
    return JudgedRow(row=number, verdict=verdict, score=mark.value, scores=points, reason=mark.note)


def _asked_rows(example: Example) -> tuple[Item, Answer] | None:
    """Return the conversation and its last answer."""
    if isinstance(example, CompletionExample):
        prompt, answer = (Message(role="user", content=example.prompt),), Answer(text=example.completion)
    elif isinstance(example, ChatExample) and example.messages[-1].role == "assistant":
        *before, last = example.messages
        prompt = tuple(map(_message, before))
        answer = Answer(text=last.text, tool_calls=_calls(last))
    else:
        return None
    return Item(id=item_id(prompt, [], answer.text, []), prompt=prompt), answer


def _message(message: ChatMessage) -> Message:
    return Message(role=message.role, content=message.text, tool_calls=_calls(message))


def _calls(message: ChatMessage) -> tuple[dict[str, Any], ...]:
    return tuple(msgspec.to_builtins(call) for call in message.tool_calls or ())
