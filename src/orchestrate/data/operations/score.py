"""`orchestrate data score` and `data select`: score each row by several signals, and select the best rows by
one of them.

Four signals need only the rows. The others are added by options that run a model (its losses) or a judge (its
scores). All scores are stored next to the file (`FILE.scores.jsonl`) and tied to its rows by their digest.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, cast

import msgspec
import regex  # pyright: ignore[reportMissingTypeStubs]
from msgspec.structs import replace

from orchestrate.core import needed
from orchestrate.data.dataset_reader import OpenedFile, open_dataset, require_rows
from orchestrate.data.facts import Facts, changed
from orchestrate.data.files import beside, log_beside, require_writable, writing
from orchestrate.data.passes import compare
from orchestrate.data.passes.scan import LONGEST_LABEL, MOST_LABELS, ScanTask, pieces
from orchestrate.data.rows import ChatExample, CompletionExample, Example, TextExample, messages_of
from orchestrate.data.shapes.row_reader import last_answer, parse
from orchestrate.errors import DataError, MissingExtra, UsageError
from orchestrate.types import Record, decoding

OUTLIER = 3.5
"""Number of robust standard deviations from the median above which a length counts as an outlier (Iglewicz
and Hoaglin, 1993)."""
SAME_ANSWER = 0.5
"""Minimum fraction of shared words for two answers to count as the same."""
FOLDS = 5
STRENGTH = 1.0
"""Inverse regularization strength (scikit-learn's `C`) of the model that finds label errors, chosen with
benchmarks/selection.py."""
_FEWEST = 2
"""Minimum number of rows per label, so that one remains for training when another is held out."""
_WORD: Any = cast("Any", regex).compile(
    r"(?<![\w\p{M})\]])[-\u2212]\p{Sc}?\.?\d\w*"  # a number with its sign
    r"|[\w\p{M}]+"
    r"|(?<=[\w)]\s?)[+*/^=<>\u00d7\u00f7](?=\s?[\d(.])|(?<=[\d)]\s?)[-\u2212](?=\s?[\d(.])"
    r"|(?<=\w)(?:\+\+|[#%])|\p{Sc}"
)
"""Matches words, and signs that change what a text means: 3 + 5 is not 3 - 5, and C is not C#."""
_PAIRS_KEPT = 100
_COMPARED = 100
"""Maximum number of different answers to one question that each answer is compared with."""


class RowScore(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a scores file, with the known signals of one row. Unknown signals are left out."""

    row: int
    tokens: int | None = None
    """Number of tokens that contribute to the loss."""
    loss: float | None = None
    """The base model's loss, in nats per token."""
    spread: float | None = None
    """Standard deviation of the token losses."""
    prompt: float | None = None
    """Ratio of the loss with the prompt to the loss without it (Li et al. 2023, Instruction-Following
    Difficulty). At 1 or above, the prompt doesn't help to predict the answer."""
    loss_after: float | None = None
    """The tuned model's loss, in nats per token."""
    duplicate_of: int | None = None
    """Row number of the earlier row that this row duplicates or nearly duplicates."""
    length: float | None = None
    """Distance of the answer's length from the median, in robust standard deviations on a log scale."""
    contradicts: tuple[int, ...] = ()
    """Row numbers of the first few rows that have a near-identical question but a different answer."""
    contradiction: float | None = None
    """Fraction of the other rows with a near-identical question whose answer is different. If the question
    has more than 100 different answers, it is estimated from 100 of them."""
    label: float | None = None
    """Probability of the most likely other label minus the probability of the row's own label, from -1 to 1.
    Both probabilities come from a model that was not trained on the row."""
    likely_label: str | None = None
    """Label that confident learning suggests instead."""
    judge: float | None = None
    """The judge's score, 0 to 1."""
    reason: str = ""
    """The judge's reason."""


@dataclass(frozen=True)
class Signal:
    """A signal for ranking rows. `doubt` is higher for rows that are more likely to be wrong."""

    about: str
    doubt: Callable[[RowScore], float | None]
    needs: str = ""
    """Option of `data score` that computes the signal, or the command that installs its package."""


SIGNALS: dict[str, Signal] = {
    "duplicate": Signal("near-duplicate of an earlier row", lambda s: float(s.duplicate_of is not None)),
    "length": Signal("answer much longer or shorter than the others", lambda s: s.length and abs(s.length)),
    "contradiction": Signal("different answers to the same question", lambda s: s.contradiction),
    "label": Signal("another label is more likely", lambda s: s.label, "pip install 'orchestrate-ft[score]'"),
    "loss": Signal("the base model's loss", lambda s: s.loss, "--model MODEL"),
    "spread": Signal("spread of the base model's token losses", lambda s: s.spread, "--model MODEL"),
    "prompt": Signal("the prompt does not help to predict the answer", lambda s: s.prompt, "--model MODEL"),
    "loss-after": Signal("the tuned model's loss", lambda s: s.loss_after, "--after RUN"),
    "judge": Signal("the judge's score", lambda s: None if s.judge is None else 1 - s.judge, "--judge MODEL"),
}


class ScoredFile(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The first line of a scores file."""

    scores_of: str
    digest: str
    """The digest of the rows."""
    model: str | None = None
    after: str | None = None
    judge: str | None = None


class ContradictingPair(Record, frozen=True, kw_only=True):
    """Two rows with near-identical questions and different answers."""

    row: int
    other: int
    question: str
    answer: str
    other_answer: str


class ScoreReport(Record, frozen=True, kw_only=True):
    """The result of `data score`."""

    path: str
    output: str
    """The scores file, with one line per row."""
    rows: int
    left_out: int
    """Number of rows with errors, which have no scores."""
    signals: dict[str, int]
    """Number of rows that have a value, keyed by signal."""
    duplicates: int
    long_or_short: int
    """Number of rows with an unusually long or short answer."""
    contradictions: tuple[ContradictingPair, ...]
    contradicting_rows: int
    labels: int = 0
    """Number of distinct labels, or 0 if the answers are not labels."""
    label_issues: int = 0
    """Number of rows whose label is probably wrong according to confident learning."""
    missing: tuple[str, ...] = ()
    """Messages about signals that could not be computed."""
    usd: Decimal | None = None
    """Cost of the judge's requests in US dollars."""


@dataclass
class Scores:
    """The scores of a file's rows, by row number."""

    head: ScoredFile
    rows: dict[int, RowScore]

    def put(self, row: int, **found: Any) -> None:
        self.rows[row] = replace(self.rows[row], **found)


@dataclass(frozen=True)
class _Rows:
    """Row numbers, questions and answers to compare."""

    numbers: list[int]
    questions: list[str]
    answers: list[str]


def place(path: str) -> Path:
    """Return the path of the scores for a data file."""
    return beside(path, "scores.jsonl")


def opened(path: str, columns: Mapping[str, str] | None, workers: int | None) -> OpenedFile:
    """Open the file to score. Raises `DataError` if it cannot be read or its rows have no answers."""
    found = open_dataset(path, columns=columns, compare=True, workers=workers)
    require_rows(found.facts)
    if found.facts.kind == "rl":
        raise DataError(f"{path} has prompts without answers, so there is nothing to score")
    return found


def of_rows(read: OpenedFile, scores: Scores, workers: int | None = None) -> list[str]:
    """Compute the signals that need only the rows. Returns a message for each signal that could not be
    computed."""
    data = read.facts
    rows = _Rows([], [], [])
    for number, example in data.numbered():
        rows.numbers.append(number)
        rows.questions.append(question_of(example))
        rows.answers.append(last_answer(example).strip())
        scores.rows.setdefault(number, RowScore(row=number))
    missing: list[str] = []
    for number, score in zip(rows.numbers, _lengths(rows.answers), strict=True):
        scores.put(number, length=score)
    for number, first in _copies(read, workers, missing).items():
        scores.put(number, duplicate_of=first)
    if data.kind not in ("preference", "unpaired", "text"):
        _put_contradictions(rows, scores, missing)
    if is_labelled(rows.answers):
        try:
            for number, (doubt, other) in _label_doubts(rows).items():
                scores.put(number, label=doubt, likely_label=other)
        except MissingExtra as error:
            missing.append(f"label: {error.message}: {error.fix}")
    return missing


def question_of(example: Example) -> str:
    """Return all text before the last answer."""
    match example:
        case CompletionExample():
            return example.prompt
        case TextExample():
            return ""
        case ChatExample():
            return "\n\n".join(m.text for m in example.messages[:-1])
        case _:
            return "\n\n".join(m.text for m in messages_of(example))


def is_labelled(answers: Sequence[str]) -> bool:
    """Return whether the answers look like labels: few distinct answers, all short and repeated."""
    distinct = len(set(answers))
    return (
        2 <= distinct <= MOST_LABELS
        and distinct <= len(answers) / FOLDS
        and max(map(len, answers)) <= LONGEST_LABEL
    )


def _lengths(answers: Sequence[str]) -> list[float]:
    """Return robust z-scores of the answer lengths, from the median and the median absolute deviation."""
    logs = [math.log1p(len(answer)) for answer in answers]
    middle = median(logs)
    distance = median(abs(value - middle) for value in logs) / 0.6745
    # If most answers have the same length, a deviation of 10% counts as normal.
    return [(value - middle) / max(distance, 0.1) for value in logs]


def _copies(read: OpenedFile, workers: int | None, missing: list[str]) -> dict[int, int]:
    numbers = read.total.numbers
    again, first = compare.repeats(read.total.hashes)
    leaders = list(range(len(numbers)))
    for i, j in zip(again, first, strict=True):
        leaders[int(i)] = int(j)
    task = ScanTask(read.source.lines, 0, 0, read.facts.format, read.facts.columns)
    try:
        for i, leader in enumerate(
            compare.clusters(compare.signatures(task, read.source.line_bytes, workers))
        ):
            compare.join(leaders, i, leader)
    except MissingExtra as error:
        missing.append(f"did not search for near-duplicates: {error.fix}")
    roots = [compare.root(leaders, i) for i in range(len(leaders))]
    return {numbers[i]: numbers[leader] for i, leader in enumerate(roots) if leader != i}


def _put_contradictions(rows: _Rows, scores: Scores, missing: list[str]) -> None:
    groups: dict[int, list[int]] = defaultdict(list)
    for i, leader in enumerate(_alike(rows.questions, missing)):
        groups[leader].append(i)
    for group in groups.values():
        same: dict[str, list[int]] = defaultdict(list)
        for i in group:
            same[rows.answers[i]].append(i)
        answers, members = [_AnswerWords.of(text) for text in same], list(same.values())
        sample = range(0, len(answers), -(-len(answers) // _COMPARED))
        for n, answer in enumerate(answers):
            compared = {*sample, n}
            others = sum(len(members[m]) for m in compared) - 1
            apart = sorted(i for m in compared if not answer.same_as(answers[m]) for i in members[m])
            for i in members[n]:
                scores.put(
                    rows.numbers[i],
                    contradiction=len(apart) / others if others else 0.0,
                    contradicts=tuple(rows.numbers[j] for j in apart[:5]),
                )


def _alike(questions: Sequence[str], missing: list[str]) -> list[int]:
    """Return, for each question, the index of the first equivalent question. Questions are equivalent if
    they differ only in case, spaces and punctuation, or if they are near duplicates with the same numbers."""
    plain = [" ".join(_words(question)) for question in questions]
    seen: dict[str, int] = {}
    leaders = [seen.setdefault(text, i) for i, text in enumerate(plain)]
    firsts = list(seen.values())
    try:
        keys, sketches = compare.digests([plain[i] for i in firsts])
    except MissingExtra as error:
        missing.append(
            f"contradiction: only identical questions were compared. To compare similar ones: {error.fix}"
        )
        return leaders
    signed = compare.Signatures(bands=bytearray(keys.tobytes()), sketches=bytearray(sketches.tobytes()))
    signed.numbers.extend(firsts)
    for n, leader in enumerate(compare.clusters(signed)):
        i, j = firsts[n], firsts[leader]
        if i != j and _figures(plain[i].split(), signs=True) == _figures(plain[j].split(), signs=True):
            compare.join(leaders, i, j)
    return [compare.root(leaders, i) for i in range(len(leaders))]


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFC", text.casefold()))


def _figures(words: Sequence[str], *, signs: bool = False) -> Counter[str]:
    """Count the numbers among the words, and with `signs` also what is no word."""
    return Counter(
        word
        for word in words
        if any(c.isdigit() for c in word) or (signs and not any(c.isalnum() for c in word))
    )


@dataclass(frozen=True)
class _AnswerWords:
    text: str
    words: list[str]
    counts: Counter[str]
    figures: Counter[str]

    @classmethod
    def of(cls, text: str) -> _AnswerWords:
        words = _words(text)
        return cls(text, words, Counter(words), _figures(words))

    def same_as(self, other: _AnswerWords) -> bool:
        """Return whether two answers count as the same. Short answers are compared as labels, longer answers
        by the words and numbers they share."""
        if self.words == other.words:
            return self.text == other.text or bool(self.words)
        if max(len(self.text), len(other.text)) <= LONGEST_LABEL or self.figures != other.figures:
            return False
        shared = (self.counts & other.counts).total()
        return 2 * shared >= SAME_ANSWER * (len(self.words) + len(other.words))


def _label_doubts(rows: _Rows) -> dict[int, tuple[float, str | None]]:
    """Estimate out-of-sample label probabilities with logistic regression over words, and apply confident
    learning. Rows with labels too rare for cross-validation are skipped. Raises `MissingExtra`."""
    counts = Counter(rows.answers)
    names = sorted(name for name, times in counts.items() if times >= _FEWEST)
    at = {name: n for n, name in enumerate(names)}
    kept = [i for i, answer in enumerate(rows.answers) if answer in at]
    if len(names) < 2:
        return {}
    labels = [at[rows.answers[i]] for i in kept]
    folds = min(FOLDS, *(counts[name] for name in names))
    probabilities = _out_of_sample([rows.questions[i] for i in kept], labels, folds)
    found = confident_learning(labels, probabilities)
    return {
        rows.numbers[i]: (doubt, None if other is None else names[other])
        for i, (doubt, other) in zip(kept, found, strict=True)
    }


def _out_of_sample(texts: Sequence[str], labels: Sequence[int], folds: int) -> Any:
    with needed("score", "finding label errors", "scikit-learn"):
        text, linear, selection, pipeline = (
            cast("Any", import_module(f"sklearn.{name}"))
            for name in ("feature_extraction.text", "linear_model", "model_selection", "pipeline")
        )
    words = text.TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"\w+")  # noqa: S106
    model = pipeline.make_pipeline(words, linear.LogisticRegression(C=STRENGTH, max_iter=1000))
    # The prefix ensures that every text has at least one word.
    return selection.cross_val_predict(
        model,
        [f"row {one}" for one in texts],
        list(labels),
        cv=selection.StratifiedKFold(folds, shuffle=True, random_state=0),
        method="predict_proba",
    )


def confident_learning(labels: Sequence[int], probabilities: Any) -> list[tuple[float, int | None]]:
    """Find likely label errors with confident learning (Northcutt, Jiang and Chuang, Confident Learning,
    2021).

    Returns a (margin, suggested label) pair for each row. The margin is the probability of the most likely
    other label minus the probability of the row's own label. The suggested label is the most likely label
    whose probability is at least its average over the rows with that label. It is `None` if no label
    qualifies, or if it would be the row's own label."""
    np = compare.numpy()
    values, given = np.asarray(probabilities, dtype=float), np.asarray(labels)
    bars = np.array([values[given == k, k].mean() for k in range(values.shape[1])])
    own = values[np.arange(len(given)), given]
    others = values.copy()
    others[np.arange(len(given)), given] = -1.0
    confident = np.where(values >= bars - 1e-6, values, -1.0)
    best = confident.argmax(axis=1)
    off = (confident.max(axis=1) >= 0) & (best != given)
    return [
        (float(doubt), int(label) if issue else None)
        for doubt, label, issue in zip(others.max(axis=1) - own, best, off, strict=True)
    ]


# -- the scores file -----------------------------------------------------------------------------------------


def kept(path: str, data: Facts, file: Path | None = None) -> Scores | None:
    """Load the stored scores. Returns `None` if there are none or if the rows have changed since. Raises
    `UsageError` if the file is not a scores file."""
    where = file or place(path)
    if not where.exists():
        return None
    try:
        head, *lines = where.read_bytes().splitlines()
        stored = decoding.decode(head, type=ScoredFile)
        rows = [decoding.decode(line, type=RowScore) for line in lines]
    except (ValueError, msgspec.MsgspecError, IsADirectoryError) as error:
        raise UsageError(
            f"{where} is not a scores file", fix="move it, or choose another name with -o"
        ) from error
    return Scores(stored, {one.row: one for one in rows}) if stored.digest == data.digest else None


def write(scores: Scores, output: Path) -> None:
    with writing(output) as file:
        file.write(scores.head.to_json() + b"\n")
        file.writelines(scores.rows[row].to_json() + b"\n" for row in sorted(scores.rows))


def report(read: OpenedFile, scores: Scores, output: Path, missing: Sequence[str]) -> ScoreReport:
    """Compute summary statistics of the scores."""
    data, each = read.facts, list(scores.rows.values())
    texts = {number: (question_of(e), last_answer(e)) for number, e in data.numbered()}
    pairs = [(one.row, other) for one in each for other in one.contradicts if one.row < other]
    answers = [answer.strip() for _, answer in texts.values()]
    return ScoreReport(
        path=data.path,
        output=str(output),
        rows=data.rows,
        left_out=read.total.written - data.rows,
        signals={
            name: n for name, s in SIGNALS.items() if (n := sum(s.doubt(one) is not None for one in each))
        },
        duplicates=sum(one.duplicate_of is not None for one in each),
        long_or_short=sum(abs(one.length or 0.0) > OUTLIER for one in each),
        contradictions=tuple(
            ContradictingPair(
                row=a, other=b, question=texts[a][0], answer=texts[a][1], other_answer=texts[b][1]
            )
            for a, b in pairs[:_PAIRS_KEPT]
        ),
        contradicting_rows=sum(bool(one.contradicts) for one in each),
        labels=len(set(answers)) if is_labelled(answers) else 0,
        label_issues=sum(one.likely_label is not None for one in each),
        missing=tuple(missing),
    )


# -- selection -----------------------------------------------------------------------------------------------


class LeftOut(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A line in the log of `data select`: a row that was left out, with the reason."""

    row: int
    why: str
    doubt: float | None = None
    left_out: msgspec.Raw | str
    """The unchanged row as JSON, or the text of the line if it isn't valid JSON."""


class SelectReport(Record, frozen=True, kw_only=True):
    """The result of `data select`."""

    path: str
    output: str
    left_out_file: str
    by: str
    rows: int
    kept: int
    left_out: int
    errors: int
    """Number of rows with errors. `left_out` includes them."""
    cut: float | None
    """Score of the last selected row. Every row with a higher (worse) score was left out."""
    tied: int
    """Number of rows that were left out even though their score equals `cut`. Of rows with equal scores,
    earlier ones are selected first."""


def ranked(scores: Scores, by: str) -> list[RowScore]:
    """Sort the rows by a signal, best first. Rows without a value for the signal come last. Raises
    `UsageError` if the signal is unknown or no row has a value for it."""
    if by not in SIGNALS:
        raise UsageError(f"--by takes {', '.join(SIGNALS)}; got {by!r}")
    signal = SIGNALS[by]
    known = {row: signal.doubt(one) for row, one in scores.rows.items()}
    if all(doubt is None for doubt in known.values()):
        why = f" {signal.needs}" if signal.needs.startswith("--") else ""
        raise UsageError(
            f"no row has a score for {by} ({signal.about})",
            fix=f"orchestrate data score {scores.head.scores_of}{why}",
        )
    order = sorted(scores.rows, key=lambda row: (known[row] is None, known[row] or 0.0, row))
    return [scores.rows[row] for row in order]


def select(
    path: str,
    output: Path,
    *,
    keep: float,
    by: str,
    scores: Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> SelectReport:
    """Write the best rows, unchanged and in file order. A log next to the output lists the other rows with
    reasons. Raises `UsageError` if either output file exists or the rows have not been scored."""
    if not 0 < keep < 1:
        raise UsageError(f"--keep must be a fraction between 0 and 1 (got {keep:g})")
    require_writable(output, path)
    rest = log_beside(output, "left-out", path)
    for file in (output, rest):
        if file.exists():
            raise UsageError(f"{file} already exists", fix="move it, or choose another name with -o")
    read = open_dataset(path, columns=columns)
    data, lines = read.facts, read.source
    order = ranked(require_scores(path, data, scores), by)
    most = max(1, round(keep * len(order)))
    doubt = SIGNALS[by].doubt
    cut, wanted = doubt(order[most - 1]), {one.row for one in order[:most]}
    places = {one.row: (n, doubt(one)) for n, one in enumerate(order, start=1)}
    errors = 0
    with writing(output) as file, writing(rest) as log:
        parts = pieces(lines.lines, 0, lines.line_bytes)
        each = (line.removesuffix(b"\n") for part in parts for line in part)
        for line, (number, row) in zip(each, data.read(), strict=True):
            if (row.example is None) == (number in places):
                raise changed(data)
            if number in wanted:
                file.write(line + b"\n")
                continue
            if row.example is None:
                errors += 1
                problems = "; ".join(problem.message for problem in row.problems) or "could not read the row"
                log.write(_left_out(number, f"row has errors: {problems}", None, line))
                continue
            at, found = places[number]
            known = "is not known" if found is None else f"is {found:.4g}"
            rank = f"rank {at:,} of {len(order):,} (the best {most:,} are selected)"
            why = f"{by} {known} ({SIGNALS[by].about}): {rank}"
            log.write(_left_out(number, why, found, line))
    return SelectReport(
        path=path,
        output=str(output),
        left_out_file=str(rest),
        by=by,
        rows=len(order) + errors,
        kept=most,
        left_out=len(order) - most + errors,
        errors=errors,
        cut=cut,
        tied=sum(doubt(one) == cut for one in order[most:]),
    )


def _left_out(row: int, why: str, doubt: float | None, line: bytes) -> bytes:
    _, wrong = parse(line)
    kept = line.decode(errors="replace") if wrong else msgspec.Raw(line.strip())
    return LeftOut(row=row, why=why, doubt=doubt, left_out=kept).to_json() + b"\n"


def require_scores(path: str, data: Facts, file: Path | None = None) -> Scores:
    """Load the scores of a file. Raises `UsageError` if the rows have not been scored and `DataError` if they
    have changed since."""
    where = file or place(path)
    if not where.exists():
        raise UsageError(f"{path} has not been scored yet", fix=f"orchestrate data score {path}")
    found = kept(path, data, where)
    if found is None:
        error = changed(data)
        error.message, error.fix = f"{path} has changed since it was scored", f"orchestrate data score {path}"
        raise error
    return found
