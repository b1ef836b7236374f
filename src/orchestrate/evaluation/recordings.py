"""Recordings: answers that you collect from a model before it is shut down, so that you can still evaluate it
later."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrate.core.files import private_folder, write_whole
from orchestrate.data.passes import compare
from orchestrate.data.passes.compare import numpy
from orchestrate.errors import DataError, UsageError
from orchestrate.evaluation import Answer, Item, ScoredItem
from orchestrate.evaluation.contenders import Candidate
from orchestrate.evaluation.evaluate import read_items
from orchestrate.paid.paid_requests import Question, Respondent
from orchestrate.types import Contender, Record, Sampling, decoding

if TYPE_CHECKING:
    from orchestrate.store.store import Store


# Selects the prompts to record if not all of them can be recorded. Duplicates are dropped first.
#
# Half of the selection are prompts that differ most from each other (farthest first), so no kind of prompt
# is missed. The other half comes from the clusters around these prompts, in proportion to their size, so
# common prompts stay common. Similarity is measured as for near duplicates (`data.passes.compare`).


@dataclass(frozen=True)
class Covering:
    """A selection of prompts. `items` are in file order."""

    items: tuple[Item, ...]
    equal: int
    """Number of prompts left out as exact duplicates."""
    near: int
    """Number of prompts left out as near duplicates."""
    clusters: int
    """Number of clusters of prompts, or 0 if all prompts are included."""


def covering(items: Sequence[Item], most: int | None) -> Covering:
    """Select the distinct prompts. If there are more than `most`, selects a representative sample of `most`
    prompts. The same file always gives the same selection. Raises `MissingExtra` if a sample is needed and
    rensa is not installed."""
    first: dict[tuple[Any, ...], Item] = {}
    for item in items:
        first.setdefault((item.prompt, str(item.tools)), item)
    distinct = list(first.values())
    equal = len(items) - len(distinct)
    if most is None or len(distinct) <= most:
        return Covering(tuple(distinct), equal, 0, 0)
    fresh = compare.SeenTexts().add([_question_text(item) for item in distinct])
    apart = [item for item, seen in zip(distinct, fresh, strict=True) if not seen]
    if len(apart) <= most:  # nearly equal ones fill the places that are left
        fill = [item for item, seen in zip(distinct, fresh, strict=True) if seen][: most - len(apart)]
        chosen = {item.id for item in (*apart, *fill)}
        taken = tuple(item for item in distinct if item.id in chosen)
        return Covering(taken, equal, len(distinct) - len(taken), len(apart))
    _, sketches = compare.digests([_question_text(item) for item in apart])
    places, clusters = _spread(sketches, most)
    taken = tuple(apart[i] for i in sorted(places))
    return Covering(taken, equal, len(distinct) - len(apart), clusters)


def _spread(sketches: Any, most: int) -> tuple[set[int], int]:
    """Return the indices of `most` rows, and the number of clusters."""
    np = numpy()
    centres = [0]
    likeness = (sketches == sketches[0]).mean(axis=1)
    cluster = np.zeros(len(sketches), dtype=np.int64)
    while len(centres) < max(1, most // 2):
        farthest = int(likeness.argmin())
        own = (sketches == sketches[farthest]).mean(axis=1)
        cluster[own > likeness] = len(centres)
        likeness = np.maximum(likeness, own)
        centres.append(farthest)
    chosen = set(centres)
    left = [
        [int(i) for i in np.flatnonzero(cluster == c) if int(i) not in chosen] for c in range(len(centres))
    ]
    room, total = most - len(chosen), sum(map(len, left))
    shares = [room * len(members) / total for members in left] if total else []
    counts = [int(share) for share in shares]
    rest = sorted(range(len(shares)), key=lambda c: counts[c] - shares[c])
    for c in rest[: room - sum(counts)]:
        counts[c] += 1
    for members, wanted in zip(left, counts, strict=False):
        step = len(members) / wanted if wanted else 0
        chosen.update(members[int(k * step)] for k in range(wanted))
    return chosen, len(centres)


def _question_text(item: Item) -> str:
    """Return a prompt's text without the system message, which all prompts of a task share."""
    texts = [m.content for m in item.prompt if m.role not in ("system", "developer")]
    return "\n".join(texts) or item.prompt[-1].content


KIND = "recording"
"""Kind of store record that holds a recording."""
WRITTEN = "record:"
"""Prefix for using a recording's id as a model name."""


class Recording(Record, frozen=True, kw_only=True):
    """One model's recorded answers to many prompts. `folder` contains two files: `answers.jsonl`, in the
    format of an evaluation's items file, and `rows.jsonl`, with the prompts and the expected answers for the
    next model."""

    id: str
    at: datetime
    contender: Contender
    sampling: Sampling
    prompts: int
    answered: int
    refused: int = 0
    """Number of prompts that the host rejected. They are in neither file."""
    expected: int = 0
    """Number of prompts that came with an expected answer. For all others, the recorded answer is the
    expected one."""
    with_logprobs: int = 0
    usd: Decimal | None = None
    silent_on: date | None = None
    source: str
    """The source of the prompts."""
    folder: str
    sandbox: bool = False
    """True if a sandbox answered."""
    notes: tuple[str, ...] = ()
    """Notes on the answers, such as how many were cut off."""

    @property
    def complete(self) -> bool:
        return self.answered + self.refused == self.prompts

    @property
    def answers_file(self) -> Path:
        return Path(self.folder) / "answers.jsonl"

    @property
    def rows_file(self) -> Path:
        return Path(self.folder) / "rows.jsonl"


def id_of(respondent: Respondent, items: Iterable[Item]) -> str:
    """Return the recording's id. It depends only on the model, questions and settings, so a repeated command
    continues the recording."""
    words = "\n".join([respondent.key, *sorted(item.id for item in items)])
    return f"rec-{hashlib.sha256(words.encode()).hexdigest()[:12]}"


def write(folder: Path, name: str, pairs: Sequence[tuple[Item, tuple[Answer, ...]]]) -> None:
    """Write `answers.jsonl` and `rows.jsonl` to the folder. Each file is replaced atomically."""
    private_folder(folder)
    lines = [ScoredItem(item=item, answers={name: answers}) for item, answers in pairs]
    write_whole(folder / "answers.jsonl", b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    rows = [msgspec.json.encode(row_of(item, answers[0])) + b"\n" for item, answers in pairs]
    write_whole(folder / "rows.jsonl", b"".join(rows))


def written(folder: Path) -> dict[str, tuple[Answer, ...]]:
    """Read the answers stored in the folder. The result is keyed by item id."""
    path = folder / "answers.jsonl"
    lines = read_items(path) if path.exists() else []
    return {line.item.id: next(iter(line.answers.values())) for line in lines}


def row_of(item: Item, answer: Answer, *, own: bool = False) -> dict[str, Any]:
    """Build a chat row from a prompt and its expected answer. Uses the recorded answer instead if `own` is
    true or the prompt has no expected answer."""
    recorded = own or not (item.expected or item.expected_calls)
    reply: dict[str, Any] = {"role": "assistant", "content": answer.text if recorded else item.expected}
    if calls := list(answer.tool_calls if recorded else item.expected_calls):
        reply["tool_calls"] = calls
    row: dict[str, Any] = {"messages": [*(m.to_dict() for m in item.prompt), reply]}
    return row | ({"tools": list(item.tools)} if item.tools else {})


def read(recording: Recording) -> list[tuple[Item, tuple[Answer, ...]]]:
    """Read the recorded answers. Raises `DataError` if the files are missing."""
    try:
        lines = read_items(recording.answers_file)
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(
            f"could not read the answers of {recording.id}: {error}",
            fix=f"restore {recording.folder} from a backup of the home folder",
        ) from error
    return [(line.item, next(iter(line.answers.values()))) for line in lines]


def candidate(recording: Recording) -> Candidate:
    """Return a candidate that replays the recorded answers. A question that is not in `rows_file` has no
    recorded answer, and counts as answered wrong."""
    known: dict[str, Answer] = {}
    for item, answers in read(recording):
        for sample, answer in enumerate(answers):
            known[Question(messages=item.prompt, tools=item.tools, sample=sample).digest] = answer

    def ask(questions: Sequence[Question]) -> list[Answer]:
        missing = Answer(text="", error=f"not recorded in {recording.id}")
        return [known.get(question.digest, missing) for question in questions]

    contender = msgspec.structs.replace(
        recording.contender,
        name=f"{WRITTEN}{recording.id}",
        served_by=f"recorded on {recording.at:%Y-%m-%d} from {recording.contender.served_by}",
    )
    respondent = Respondent(
        name=contender.name,
        identity={"recording": recording.id, "answered": recording.answered},
        ask=ask,
        batch=max(1, len(known)),
        max_tokens=recording.sampling.max_tokens,
        price=lambda prompt, completion: Decimal(0),
    )
    return Candidate(contender, respondent)


def all_of(store: Store, run_ids: Sequence[str] | None = None) -> list[Recording]:
    """List the latest state of each recording, oldest first."""
    found = [decoding.convert(r.data, Recording, strict=False) for r in store.history.records(KIND, run_ids)]
    return list({one.id: one for one in found}.values())


def find(store: Store, written: str) -> Recording:
    """Find a recording by its id or the start of its id, with or without `record:`. Raises `UsageError` if
    none or several match."""
    name = written.removeprefix(WRITTEN)
    fit = [one for one in all_of(store) if one.id == name] or [
        one for one in all_of(store) if name and one.id.startswith(name)
    ]
    if len(fit) != 1:
        raise UsageError(
            f"{name!r} matches several recordings" if fit else f"unknown recording {name!r}",
            fix="orchestrate record --list",
        )
    return fit[0]


def of_run(store: Store, run_id: str) -> Recording | None:
    """Return the run's recording with the most answers, or `None`."""
    found = [one for one in all_of(store, [run_id]) if one.answered]
    return max(found, key=lambda one: one.answered, default=None)


def keep(store: Store, recording: Recording) -> None:
    store.history.add_record(recording.contender.run_id or "", KIND, recording)
