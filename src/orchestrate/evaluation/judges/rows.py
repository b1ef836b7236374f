"""`orchestrate data judge`: training rows rated by a judge, and parted by it. Nothing is lost: a row is
kept, rejected or not judged, and lies in the file of its kind, as it was; what was said of each is beside
them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from orchestrate.data.files.outputs import log_beside, require_writable, writing
from orchestrate.data.files.sources import source
from orchestrate.data.opening import first_lines, sniff
from orchestrate.data.rows.examples import ChatExample, ChatMessage, CompletionExample, Example
from orchestrate.data.shapes.reading import reading
from orchestrate.errors import DataError
from orchestrate.evaluation.items import Answer, Item, item_id
from orchestrate.evaluation.judges.calibration import Calibration
from orchestrate.evaluation.judges.judge import ScoreJudge
from orchestrate.types import Message, MetricUsed, Record

KINDS = ("chat", "completion")


class JudgedRow(Record, frozen=True, kw_only=True):
    """A line of the log: what was said of one row."""

    row: int
    """From 1, empty lines not counted."""
    verdict: str
    """kept, rejected or not judged."""
    score: float | None = None
    """0 to 1, over all criteria."""
    scores: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    reason: str = ""


class JudgeReport(Record, frozen=True, kw_only=True):
    """The answer of `data judge`."""

    path: str
    output: str
    """The rows to keep."""
    rejected_file: str
    not_judged_file: str | None
    log: str
    """One line for each row: score, points, reason."""
    rows: int
    kept: int
    rejected: int
    not_judged: int
    keep: float
    mean: float | None
    judge: MetricUsed
    calibration: Calibration | None
    usd: Decimal | None
    """Of all answers that this took, those of earlier tries too, with `lost_usd`; `None` where no price is
    known."""
    lost_requests: int = 0
    """Requests that got no answer and may have been billed."""
    lost_usd: Decimal | None = Decimal(0)
    """The most that they cost."""


@dataclass(frozen=True)
class Row:
    """A line of the file; without `asked` it cannot be judged, because of `problem`."""

    line: bytes
    asked: tuple[Item, Answer] | None = None
    problem: str = ""


def read(path: str) -> list[Row]:
    """All rows in order, as lines of JSON. Raises `DataError` for a file that is none or has other rows
    than chats and completions."""
    lines = source(path)
    shape = sniff(path, first_lines(lines.lines), ())
    if shape.kind not in KINDS:
        raise DataError(
            f"{path} has {shape.kind} rows; a judge rates chat and completion rows",
            fix="orchestrate review   rates pairs, by people",
        )
    found: list[Row] = []
    reader = reading(shape.name)
    with Path(lines.lines).open("rb") as file:
        for line in file:
            if text := line.strip().removeprefix(b"\xef\xbb\xbf"):
                read_row = reader.read(text)
                if read_row.example is None:
                    found.append(Row(text, problem="; ".join(p.message for p in read_row.problems)))
                else:
                    asked = _asked(read_row.example)
                    found.append(Row(text, asked, "" if asked else "it does not end with an answer"))
    if not any(row.asked for row in found):
        raise DataError(f"{path} has no row that can be judged")
    return found


def part(
    path: str,
    rows: Sequence[Row],
    metric: ScoreJudge,
    output: Path,
    *,
    keep: float,
    calibration: Calibration | None,
) -> JudgeReport:
    """Asks about all rows, then writes the files. Raises what asking raises, and then writes none."""
    names = outputs(path, output)
    scored = iter(metric.scored([row.asked for row in rows if row.asked is not None]))
    judged = [_judged(number, row, scored, keep) for number, row in enumerate(rows, start=1)]
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


def outputs(path: str, output: Path) -> dict[str, Path]:
    """The files beside the output. Raises `UsageError` where one cannot be written."""
    require_writable(output, path)
    return {name: log_beside(output, name, path) for name in ("rejected", "not-judged", "scores")}


def _judged(number: int, row: Row, scored: Any, keep: float) -> JudgedRow:
    if row.asked is None:
        return JudgedRow(row=number, verdict="not judged", reason=row.problem)
    mark, points = next(scored)
    if mark.value is None:
        return JudgedRow(row=number, verdict="not judged", reason=mark.note)
    # A mean of thirds must not miss 2/3 by the last digit.
    verdict = "kept" if mark.value >= keep - 1e-9 else "rejected"
    return JudgedRow(row=number, verdict=verdict, score=mark.value, scores=points, reason=mark.note)


def _asked(example: Example) -> tuple[Item, Answer] | None:
    """The conversation, and its last answer."""
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
