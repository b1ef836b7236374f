"""`orchestrate data check`: find all problems in the files of a training run, in one pass over each file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from msgspec import structs

from orchestrate.data import goals, rules
from orchestrate.data.dataset_reader import OpenedFile, count_tokens, open_counted
from orchestrate.data.facts import TokenCount
from orchestrate.data.goals import Volume
from orchestrate.data.operations import review
from orchestrate.data.passes import compare
from orchestrate.data.passes.scan import DESIRABLE, MOST_LABELS, UNDESIRABLE, ScanTask
from orchestrate.data.rows import KEPT_PER_CODE, Kind, more_of, problem
from orchestrate.data.rules import RowTarget
from orchestrate.data.shapes import unread
from orchestrate.text import count
from orchestrate.types import Problem, Record, Severity, TokensFrom

MOST_UNBALANCED = 4
"""Ratio between the row counts of the two labels at and above which `check` reports an imbalance."""
SPLITS = ("train", "validation", "test")


class FileFacts(Record, frozen=True, kw_only=True):
    """Results for one checked file. `counts` is the number of problems by code, including those not shown."""

    split: str
    path: str
    container: str
    format: str
    kind: str
    rows: int
    lines: int
    bytes: int
    digest: str
    tokens: int | None = None
    trained_tokens: int | None = None
    tokenizer: str | None = None
    tokens_exact: bool | None = None
    tokens_from: TokensFrom = TokensFrom.EXACT
    tokens_low: int | None = None
    tokens_high: int | None = None
    """Upper bound of the token count, allowing for the tokenizer's error band and the sampling error. If the
    tokens were sampled, the true count is within the bounds with 99% confidence."""
    counts: dict[str, int]


class HostFacts(Record, frozen=True, kw_only=True):
    """Results of checking the training rows for one host. `rows` counts all rows, including those with
    errors, and `accepted` counts the rows that the host accepts."""

    host: str
    rows: int
    accepted: int
    errors: int
    warnings: int


class CheckReport(Record, frozen=True, kw_only=True):
    """The result of `data check`. `ok` is false if any problem is an error."""

    ok: bool
    files: tuple[FileFacts, ...]
    hosts: tuple[HostFacts, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class CheckOptions:
    """Options of `check`. `tokenizer` names the token counter. `contexts` maps each host to the model's
    maximum row length in tokens. With `near`, the check also searches for near duplicates, which takes about
    twice as long."""

    hosts: tuple[RowTarget, ...] = ()
    method: str | None = None
    tokenizer: str | None = None
    contexts: Mapping[str, int] = field(default_factory=dict[str, int])
    epochs: int | None = None
    near: bool = False
    strict: bool = False
    """True to treat every unused column and field as an error."""
    columns: Mapping[str, str] | None = None
    workers: int | None = None
    memory: Path | None = None
    """Cache folder for token counts."""
    tokens_from: TokensFrom = TokensFrom.EXACT
    """Token counting method."""


def check(
    paths: Mapping[str, str],
    options: CheckOptions | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Check the files in `paths`, a mapping from split (`train`, and optionally `validation` and `test`) to
    file.

    Raises `DataError` when a file cannot be read and `UsageError` for an unknown host.
    """
    options = options or CheckOptions()
    exact = options.tokens_from is TokensFrom.EXACT
    opened = {
        split: open_counted(
            path,
            columns=options.columns,
            tokenizers=(options.tokenizer,) if options.tokenizer and exact else (),
            memory=options.memory,
            compare=True,
            content=True,
            workers=options.workers,
            progress=progress,
        )
        for split, path in paths.items()
    }
    found = problems_of_files(opened)
    if options.strict:
        found = [unread.strict(p) for p in found]
    if options.near:
        found += _near(opened, options)
    hosts: list[HostFacts] = []
    first = next(iter(opened.values()))
    for host in options.hosts:
        wrong = [p for split, one in opened.items() for p in _for_host(one, host, split, options)]
        found += wrong
        hosts.append(
            HostFacts(
                host=host.name,
                rows=first.total.written,
                accepted=rules.accepted(first.facts, host),
                errors=_count(wrong, Severity.ERROR),
                warnings=_count(wrong, Severity.WARNING),
            )
        )
    return CheckReport(
        ok=not _count(found, Severity.ERROR),
        files=tuple(_facts(split, one, options) for split, one in opened.items()),
        hosts=tuple(hosts),
        problems=tuple(found),
    )


def problems_of_files(opened: Mapping[str, OpenedFile]) -> list[Problem]:
    """Find the problems that don't depend on a backend: damaged rows, duplicates, and rows that appear in
    several splits. `opened` maps each split to its file, which must have been opened with `compare` and
    `content` set."""
    found: list[Problem] = []
    for split, one in opened.items():
        found += one.facts.problems
        found += _within(one, split)
    return [*found, *_between(opened)]


def _count(found: Sequence[Problem], severity: Severity) -> int:
    return sum(1 for p in found if p.severity is severity)


def _tokens(one: OpenedFile, options: CheckOptions) -> TokenCount | None:
    if options.tokenizer is None or options.tokens_from is TokensFrom.NONE:
        return None
    return count_tokens(replace(one.facts, tokens_from=options.tokens_from), options.tokenizer)


def _facts(split: str, one: OpenedFile, options: CheckOptions) -> FileFacts:
    data, count = one.facts, _tokens(one, options)
    return FileFacts(
        split=split,
        path=data.path,
        container=data.container,
        format=data.format,
        kind=data.kind,
        rows=data.rows,
        lines=one.total.lines,
        bytes=data.bytes,
        digest=data.digest,
        tokens=count.tokens if count else None,
        trained_tokens=count.trained_tokens if count else None,
        tokenizer=count.tokenizer if count else None,
        tokens_exact=count.exact if count else None,
        tokens_from=count.tokens_from if count else TokensFrom.NONE,
        tokens_low=count.low if count else None,
        tokens_high=count.high if count else None,
        counts=dict(one.total.counts),
    )


def _for_host(one: OpenedFile, host: RowTarget, split: str, options: CheckOptions) -> list[Problem]:
    return rules.check(
        one.facts,
        host,
        method=options.method,
        tokens=_tokens(one, options),
        context=options.contexts.get(host.name),
        epochs=options.epochs,
        validation=split != "train",
    )


_CONFLICTS: dict[Kind, str] = {
    "chat": "same prompt as row {} but a different answer",
    "completion": "same prompt as row {} but a different completion",
    "preference": "same prompt and answers as row {}, but the other answer is preferred",
    "unpaired": "same prompt and answer as row {} with the opposite label",
    "rl": "same prompt as row {} but a different reference",
}


def _within(one: OpenedFile, split: str) -> list[Problem]:
    path, trained = one.facts.path, one.mix or one
    found = _listed("duplicate", "identical to row {}", compare.duplicates(one.total), one, one)
    if (conflict := _CONFLICTS.get(one.facts.kind)) is not None:
        found += _listed("conflict", conflict, compare.conflicts(one.total, one.facts.kind), one, one)
    if split == "train":
        found += _held_out(trained)
    if one.facts.kind == "unpaired":
        found += _balance(trained, split)
    if one.total.formats:
        counts = {one.facts.format: one.facts.rows} | dict(one.total.formats)
        shown = ", ".join(f"{name} {rows:,}" for name, rows in counts.items())
        found.append(_file_problem("mixed-format", f"the file mixes formats. Rows per format: {shown}", path))
    if (balance := _labels(trained)) is not None:
        found.append(_file_problem("label-imbalance", balance, path))
    found += [_file_problem("label-spelling", described, path) for described in _spellings(trained)]
    for file in [name for _, name in one.begins] or [path]:
        if waiting := review.unreviewed(file):
            found.append(
                _file_problem("unreviewed", f"{count(waiting, 'generated row')} not reviewed yet", file)
            )
    if split == "train" and trained.facts.rows and not (volume := volume_of(trained)).enough:
        found.append(_file_problem("few-rows", str(volume), path))
    return found


def volume_of(one: OpenedFile) -> Volume:
    """Compare the number of rows in a file with the number recommended for the goal that its rows
    suggest."""
    rows, kind = one.facts.rows, one.facts.kind
    labels = len(one.total.labels) if kind != "unpaired" and _are_labels(one) else 0
    repeated = labels if rows >= 2 * labels else 0
    tools = one.facts.content.tools
    return goals.inferred(rows, labels=repeated, tools=tools, bare=kind == "text", closely=False)


def _held_out(one: OpenedFile) -> list[Problem]:
    """Report a training file with only held-out rows."""
    column, counts = unread.held_out_rows(one.total.unread) or ("", None)
    if counts is None or counts.total() < one.total.written:
        return []
    kept = " and ".join(f"{n:,} for {split}" for split, n in counts.most_common())
    return [
        _file_problem("held-out", f"the column {column} marks all rows as held out: {kept}", one.facts.path)
    ]


def _balance(one: OpenedFile, split: str) -> list[Problem]:
    """Report unbalanced labels in unpaired training rows. The KTO paper (eq. 8) recommends weights for
    which the weighted numbers of desirable and undesirable rows have a ratio between 1 and 4/3."""
    good, bad = one.total.labels[DESIRABLE], one.total.labels[UNDESIRABLE]
    if split != "train" or not good + bad:
        return []
    if not good or not bad:
        which = DESIRABLE if good else UNDESIRABLE
        return [_file_problem("one-label", f"all {good + bad:,} answers are {which}", one.facts.path)]
    more, fewer = max(good, bad), min(good, bad)
    if more < MOST_UNBALANCED * fewer:
        return []
    name = "undesirable_weight" if bad < good else "desirable_weight"
    message = (
        f"{good:,} {DESIRABLE} and {bad:,} {UNDESIRABLE} answers. To balance them, set "
        f"{name}: {more / fewer:.3g}"
    )
    return [_file_problem("labels-unbalanced", message, one.facts.path)]


def _are_labels(one: OpenedFile) -> bool:
    """Return whether the answers are labels: few distinct short answers, each used several times."""
    labels, rows = one.total.labels, one.facts.rows
    named = sum(labels.values())
    return 2 <= len(labels) <= MOST_LABELS and named >= 0.95 * rows


def _spellings(one: OpenedFile) -> list[str]:
    """Describe labels that differ only in spelling, because a model treats them as different labels."""
    if one.facts.kind == "unpaired" or not _are_labels(one):
        return []
    alike: dict[str, list[tuple[str, int]]] = {}
    for label, rows in one.total.labels.most_common():
        alike.setdefault(" ".join(label.casefold().split()).rstrip(" .!"), []).append((label, rows))
    if one.facts.rows < 2 * len(alike):
        return []
    return [
        " and ".join(f"{label!r} ({rows:,})" for label, rows in spelled) + " count as different answers"
        for spelled in alike.values()
        if len(spelled) > 1
    ]


def _labels(one: OpenedFile) -> str | None:
    """Describe the imbalance between labels. Returns `None` if the answers aren't labels or are balanced."""
    if one.facts.kind == "unpaired":
        return None
    labels = one.total.labels
    if not _are_labels(one) or len(labels) > 20 or sum(labels.values()) < 10 * len(labels):
        return None
    most, least = labels.most_common(1)[0], labels.most_common()[-1]
    if most[1] < 10 * least[1]:
        return None
    return f"{len(labels)} distinct answers: {most[0]!r} {most[1]:,} times, {least[0]!r} {least[1]:,} times"


def _between(opened: Mapping[str, OpenedFile]) -> list[Problem]:
    """Find rows and prompts of later splits that also appear in earlier splits."""
    found: list[Problem] = []
    splits = list(opened)
    for i, split in enumerate(splits):
        for earlier in splits[:i]:
            rows, of = opened[split], opened[earlier]
            text = "also in " + earlier + ", row {}"
            found += _listed("leakage", text, compare.shared(rows.total, of.total), rows, of)
            prompts = compare.shared(rows.total, of.total, prompts=True)
            found += _listed(
                "prompt-leakage", "the prompt also appears in " + earlier + ", row {}", prompts, rows, of
            )
    return found


def _near(opened: Mapping[str, OpenedFile], options: CheckOptions) -> list[Problem]:
    """Find near duplicates. All files are clustered together, so a row that is similar to a row of an
    earlier split counts as leakage."""
    signed = compare.Signatures()
    owners: list[tuple[str, int]] = []
    tasks = {
        split: ScanTask(one.source.lines, 0, 0, one.facts.format, one.facts.columns)
        for split, one in opened.items()
    }
    form = compare.shared_form([(task, opened[split].source.line_bytes) for split, task in tasks.items()])
    for split, one in opened.items():
        mine = compare.signatures(tasks[split], one.source.line_bytes, options.workers, form)
        owners += [(split, number) for number in mine.numbers]
        signed.add(mine)
    hashes = [h for one in opened.values() for h in one.total.hashes]
    rows: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for i, leader in enumerate(compare.clusters(signed)):
        if leader == i or hashes[leader] == hashes[i]:
            continue
        (split, number), (other, first) = owners[i], owners[leader]
        rows.setdefault((split, other), []).append((number, first))
    found: list[Problem] = []
    for (split, other), pairs in rows.items():
        code = "near-duplicate" if split == other else "near-leakage"
        where = "row {}" if split == other else other + ", row {}"
        matches = compare.Matches(tuple(pairs[:KEPT_PER_CODE]), len(pairs))
        found += _listed(code, "nearly equal to " + where, matches, opened[split], opened[other])
    return found


def _listed(
    code: str, text: str, matches: compare.Matches, rows: OpenedFile, of: OpenedFile
) -> list[Problem]:
    found: list[Problem] = []
    for number, other in matches.pairs[:KEPT_PER_CODE]:
        path, row = rows.place(number)
        found.append(_placed(problem(code, text.format(of.named(other)), row=row), path))
    if matches.count > len(found):
        found.append(_placed(more_of(code, matches.count - len(found)), rows.facts.path))
    return found


def _file_problem(code: str, message: str, path: str) -> Problem:
    return _placed(problem(code, message), path)


def _placed(found: Problem, path: str) -> Problem:
    return structs.replace(found, source=path)
