"""Check rows against the rules in a host's profile. A table decides which row traits the host accepts, and
`check` also applies the limits for an entire file."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from orchestrate.data.rows import KINDS, Example, Kind
from orchestrate.data.rows.traits import Trait
from orchestrate.profile import this_machine
from orchestrate.text import count, size
from orchestrate.types import Problem, Severity

if TYPE_CHECKING:  # every command reads profiles, which contain rules
    from orchestrate.data.facts import Facts, TokenCount

GIB = 1 << 30


@dataclass(frozen=True)
class Rule:
    """A host's rule for rows with one trait. With severity `error`, the row is rejected. If `lossy` is set
    and the user allows loss, the trait is dropped instead."""

    code: str
    severity: Severity
    message: str
    fix: str
    lossy: bool = False


def refused(code: str, message: str, fix: str) -> Rule:
    return Rule(code, Severity.ERROR, message, fix)


NO_FUNCTION_ROLE = refused(
    "role-refused", "the role function is not supported", "use tool messages with tool_call_id"
)
SYSTEM_LATER = refused(
    "system-not-first",
    "a system message comes after the first message",
    "move the system message to the start",
)
ONE_ANSWER = refused(
    "several-answers",
    "each side of a pair must have exactly one message",
    "keep one assistant message on each side",
)
INLINE_IMAGES = refused("remote-image", "images must be inline base64", "embed the image as a data: URL")
AS_SYSTEM = Rule(
    "developer-as-system",
    Severity.INFO,
    "developer messages are sent as system messages",
    "nothing to do",
    lossy=True,
)
NO_NAMES = Rule(
    "names-dropped",
    Severity.WARNING,
    "message names are dropped",
    "put the names into the text",
    lossy=True,
)
NO_PARALLEL = Rule(
    "parallel-dropped",
    Severity.INFO,
    "parallel_tool_calls is dropped",
    "set parallel_tool_calls when you call the model",
    lossy=True,
)
NO_ROW_WEIGHT = Rule(
    "row-weight-lost",
    Severity.ERROR,
    "row weights are not supported",
    "repeat rows with a high weight and remove rows with a low weight, or convert with --allow-loss",
    lossy=True,
)


NO_SPANS = Rule(
    "loss-spans-lost",
    Severity.ERROR,
    "some rows select part of an answer for training, but this backend trains on entire answers",
    "split these answers into turns with weight 0 and 1, or convert with --allow-loss",
    lossy=True,
)
NO_LOCAL_IMAGES = refused(
    "local-image", "an image is a local file", "embed the image as a data: URL, or use its URL"
)
NO_KTO = "KTO is not supported. Train on this machine, or use preference pairs (DPO)"


EVERY_KIND: Mapping[Kind, str | None] = dict.fromkeys(KINDS.values())
"""Value of `HostRules.kinds` for hosts that accept every kind of row."""


@dataclass(frozen=True)
class HostRules:
    kinds: Mapping[Kind, str | None]
    """Maps each kind of row to the reason why the host rejects it, or to `None` if the host accepts it."""
    traits: Mapping[Trait, Rule]
    least_rows: int = 1
    most_rows: int | None = None
    most_bytes: int | None = None
    most_tokens: int | None = None
    """Maximum length of a row in tokens. The host truncates longer rows."""
    preference_traits: Mapping[Trait, Rule] = field(default_factory=dict[Trait, Rule])
    row_weights_on_all: bool = False
    """True if a file must set weights on all rows or on none."""

    def rule(self, trait: Trait, kind: Kind) -> Rule | None:
        if kind == "preference" and trait in self.preference_traits:
            return self.preference_traits[trait]
        return self.traits.get(trait)

    def refused(self, kind: Kind, *, allow_loss: bool = False) -> int:
        """Return the trait bits that make the host reject a row of this kind. With `allow_loss`, traits that
        can be dropped are excluded."""
        mask = 0
        for trait in Trait:
            rule = self.rule(trait, kind)
            if rule is not None and rule.severity is Severity.ERROR and not (rule.lossy and allow_loss):
                mask |= trait
        return mask


METHOD_KINDS: dict[str, tuple[Kind, ...]] = {
    "sft": ("chat", "completion", "text"),
    "dpo": ("preference",),
    "kto": ("unpaired",),
    "rft": ("rl",),
}


@dataclass(frozen=True)
class RowTarget:
    """Target for written rows: the format of a backend or of another tool."""

    name: str
    rules: HostRules
    encode: Callable[[Example], Any]
    """Picklable function that encodes an example as a row in the target's format."""
    backend: bool = True


def check(
    data: Facts,
    host: RowTarget,
    *,
    method: str | None = None,
    tokens: TokenCount | None = None,
    context: int | None = None,
    truncation: str | None = None,
    epochs: int | None = None,
    validation: bool = False,
) -> list[Problem]:
    """Return a problem for each reason why `host` would reject or change the dataset, with the first affected
    rows.

    `method` is sft, dpo, kto or rft. `tokens` is a token count of the same data, needed to check lengths.
    `context` is the maximum number of tokens that the model trains on, and `truncation` says how longer rows
    are shortened. `validation` marks the validation file, which has no minimum number of rows. Problems that
    apply to every host are found while reading the rows (`data.rows.problems`), not here."""
    found = [_problem(host, data, rule, rows) for rule, rows in _judged(data, host.rules)]
    found += _kinds(data, host, method)
    found += _sizes(data, host, epochs, validation)
    if tokens is not None:
        found += _lengths(data, host, tokens, context, _LOSE.get(truncation or "right", "cut"))
    return found


def accepted(data: Facts, host: RowTarget) -> int:
    """Count the rows that the host would accept unchanged."""
    if host.rules.kinds[data.kind] is not None:
        return 0
    wrong = host.rules.refused(data.kind)
    return sum(n for mask, n in data.masks.items() if not mask & wrong)


def losses(data: Facts, host: RowTarget) -> list[Problem]:
    """List what would be lost in the target's format: one problem for each feature of the rows that it can't
    represent. If the target doesn't accept this kind of row, a problem says so."""
    found = [_problem(host, data, rule, rows) for rule, rows in _judged(data, host.rules)]
    return found + _kinds(data, host, None)


def _judged(data: Facts, rules: HostRules) -> list[tuple[Rule, Trait]]:
    present = 0
    for mask in data.masks:
        present |= mask
    judged = [(rules.rule(trait, data.kind), trait) for trait in Trait if trait & present]
    return [(rule, trait) for rule, trait in judged if rule is not None]


def _problem(host: RowTarget, data: Facts, rule: Rule, trait: Trait) -> Problem:
    number = sum(n for mask, n in data.masks.items() if mask & trait)
    first = data.first_rows.get(trait, ())
    shown = ", ".join(f"{row}" for row in first[:5])
    rows = f"row {shown}" if number == 1 else f"{number:,} rows: {shown}{' ...' if number > 5 else ''}"
    return Problem(
        code=rule.code,
        severity=rule.severity,
        message=f"{rule.message} ({rows})",
        row=first[0] if first else None,
        providers=(host.name,),
        fix=rule.fix,
        source=data.path,
    )


def _file_problem(
    host: RowTarget, data: Facts, code: str, message: str, fix: str, severity: Severity = Severity.ERROR
) -> Problem:
    return Problem(
        code=code, severity=severity, message=message, providers=(host.name,), fix=fix, source=data.path
    )


def _kinds(data: Facts, host: RowTarget, method: str | None) -> list[Problem]:
    reason = host.rules.kinds[data.kind]
    if reason is not None:
        fix = f"pick a backend that accepts {data.kind} rows: orchestrate data check {data.path}"
        if data.kind == "completion":
            new = f"{Path(data.path).name.partition('.')[0]}.{host.name}.jsonl"
            fix = f"orchestrate data convert {shlex.quote(data.path)} --to {host.name} -o {shlex.quote(new)}"
        if data.kind == "unpaired":
            here = this_machine().kind
            fix = f"use method dpo to train on pairs, or train on this machine (--provider {here})"
        return [_file_problem(host, data, "kind-refused", reason, fix)]
    if method is not None and data.kind not in METHOD_KINDS[method]:
        message = (
            f"{method} trains on {' or '.join(METHOD_KINDS[method])} rows, but these are {data.kind} rows"
        )
        return [_file_problem(host, data, "wrong-kind", message, _other(method, data))]
    if host.rules.row_weights_on_all:
        weighted = sum(n for mask, n in data.masks.items() if mask & Trait.ROW_WEIGHT)
        if 0 < weighted < data.rows:
            message = (
                f"{weighted:,} of {data.rows:,} rows have a weight, but either all rows or none must have one"
            )
            return [
                _file_problem(
                    host, data, "row-weight-mixed", message, "set a weight in every row, or in none"
                )
            ]
    return []


def _other(method: str, data: Facts) -> str:
    """Suggest a method for the rows, or rows for the method."""
    if method == "kto" and data.kind == "preference":
        return f"orchestrate data convert {data.path} --to unpaired -o OUT, or use method dpo"
    if data.kind == "unpaired":
        return "train with method: {type: dpo, loss: kto}, or use sft on only the good rows, without labels"
    return "change the method or the data"


def _sizes(data: Facts, host: RowTarget, epochs: int | None, validation: bool) -> list[Problem]:
    rules = host.rules
    found: list[Problem] = []
    if data.rows < rules.least_rows and not validation:
        message = (
            f"the file has {count(data.rows, 'valid row')}, but at least {rules.least_rows} are required"
        )
        found.append(
            _file_problem(host, data, "too-few-rows", message, "add rows, or fix the rows with errors")
        )
    if rules.most_rows is not None and data.rows * (epochs or 1) > rules.most_rows:
        message = f"{data.rows:,} rows x {epochs or 1} epochs exceed the limit of {rules.most_rows:,}"
        found.append(
            _file_problem(host, data, "too-many-rows", message, "train on fewer rows or for fewer epochs")
        )
    if rules.most_bytes is not None and data.canonical_bytes > rules.most_bytes:
        message = f"the file has {size(data.canonical_bytes)}, but the limit is {size(rules.most_bytes)}"
        found.append(_file_problem(host, data, "file-too-large", message, "train on fewer rows"))
    return found


_LOSE = {"left": "truncated at the start", "drop": "left out"}


def _lengths(
    data: Facts, host: RowTarget, tokens: TokenCount, context: int | None, lose: str
) -> list[Problem]:
    limits = [limit for limit in (host.rules.most_tokens, context) if limit is not None]
    if not limits or tokens.longest <= min(limits):
        return []
    limit = min(limits)
    if tokens.weights:
        long = round(sum(w for n, w in zip(tokens.lengths, tokens.weights, strict=True) if n > limit))
        message = (
            f"about {count(long, 'row')} (estimated from a sample) are longer than {limit:,} tokens "
            f"and would be {lose}"
        )
        fix = "to list them: --tokens exact. Shorten the rows, or raise max_seq_length if the model allows it"
        return [_file_problem(host, data, "too-long", message, fix, Severity.WARNING)]
    of_a_row = 2 if data.kind == "preference" else 1  # a pair has two sequences
    places = {i // of_a_row for i, length in enumerate(tokens.lengths) if length > limit}
    # The other sequences are parts of split rows, and never longer than the complete rows.
    long = sorted(place for place in places if place < data.rows)
    rows = [data.number(place) for place in long[:5]]
    counted = "" if tokens.exact else f", counted with {tokens.tokenizer}"
    longest = f"longest {tokens.longest:,}{counted}"
    which = f"{', '.join(map(str, rows))}{' ...' if len(long) > len(rows) else ''}"
    are = "are" if len(long) > 1 else "is"
    summary = f"{count(len(long), 'row')} {are} longer than {limit:,} tokens and would be {lose}"
    message = f"{summary} ({longest}): {which}"
    fix = "shorten the rows, or raise max_seq_length if the model allows it"
    found = _file_problem(host, data, "too-long", message, fix, Severity.WARNING)
    return [replace(found, row=rows[0])]
