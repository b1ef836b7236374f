"""Hosts that implement OpenAI's fine-tuning API. A YAML file describes each host."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

from orchestrate import description
from orchestrate.data.dialects import Dialect
from orchestrate.data.rows import KINDS, Kind
from orchestrate.data.rows.traits import Trait
from orchestrate.data.rules import (
    AS_SYSTEM,
    INLINE_IMAGES,
    NO_FUNCTION_ROLE,
    NO_KTO,
    NO_LOCAL_IMAGES,
    NO_NAMES,
    NO_PARALLEL,
    NO_ROW_WEIGHT,
    NO_SPANS,
    ONE_ANSWER,
    SYSTEM_LATER,
    HostRules,
    Rule,
    refused,
)
from orchestrate.description import Described
from orchestrate.errors import ConfigError
from orchestrate.profile import BY_SDK, HUB_ID, TUNING_STATUSES, Gate, Profile, Readable, file_refused
from orchestrate.types import Job, JobStatus, Severity

if TYPE_CHECKING:
    from orchestrate.costing.rate import Rate
    from orchestrate.costing.size import JobSize, Lines

# The profile of a host, built from its description.


_LOSSY = partial(Rule, severity=Severity.ERROR, lossy=True)
TRAITS: dict[str, tuple[Trait, Rule]] = {
    "tools": (
        Trait.TOOLS,
        refused("tools-refused", "tools and tool calls are not supported", "train on rows without tools"),
    ),
    "message_weights": (
        Trait.MESSAGE_WEIGHTS,
        _LOSSY(
            code="weights-lost",
            message="message weights are not supported",
            fix="split these rows, or convert with --allow-loss",
        ),
    ),
    "row_weight": (Trait.ROW_WEIGHT, NO_ROW_WEIGHT),
    "reasoning": (
        Trait.REASONING,
        _LOSSY(
            code="reasoning-lost",
            message="reasoning is not supported",
            fix="remove it, or convert with --allow-loss",
        ),
    ),
    "images": (Trait.IMAGES, refused("images-refused", "images are not supported", "remove the images")),
    "remote_images": (Trait.REMOTE_IMAGES, INLINE_IMAGES),
    "local_images": (Trait.LOCAL_IMAGES, NO_LOCAL_IMAGES),
    "several_answers": (Trait.SEVERAL_ANSWERS, ONE_ANSWER),
    "loss_spans": (Trait.LOSS_SPANS, NO_SPANS),
    "function_role": (Trait.FUNCTION_ROLE, NO_FUNCTION_ROLE),
    "system_later": (Trait.SYSTEM_LATER, SYSTEM_LATER),
    "developer": (Trait.DEVELOPER, AS_SYSTEM),
    "names": (Trait.NAMES, NO_NAMES),
    "parallel_calls": (Trait.PARALLEL_TOOL_CALLS, NO_PARALLEL),
}
"""Row traits that a host's YAML file may list in `rows.refuses`, as `{name: (trait, rule that rejects
it)}`."""


def profile_of(kind: str, file: Readable, name: str) -> Profile:
    """Build the profile of a host from its YAML description. If the description is invalid, raises a
    `ConfigError` that names the file and the field."""
    described = description.read(file, name)
    try:
        tuned = re.compile(described.tuned_name) if described.tuned_name else None
    except re.error as error:
        raise ConfigError(f"{name}: tuned_name is not a valid regular expression: {error}") from error
    if tuned is not None and "base" not in tuned.groupindex:
        raise ConfigError(f"{name}: tuned_name has no group (?P<base>...)")
    return Profile(
        kind=kind,
        title=described.title,
        provider=f"orchestrate.providers.compatible.backends:{kind}",
        rank=50,
        url=described.url,
        chat_limit=described.chat_limit,
        statuses=_statuses(described, name),
        sends_wandb_key=described.wandb_in_request,
        rules=_rules(described, name),
        dialect=Dialect(developer=described.rows.developer, names=described.rows.names, row_weight=False),
        ids=HUB_ID if described.hub else None,
        tuned_base=(lambda text: _base(tuned, text)) if tuned else None,
        no_new_jobs_after=described.closing.no_new_jobs_after,
        closing_source=described.closing.source,
        gates=tuple(Gate(since, accounts) for since, accounts in described.closing.gates),
        bills=bills if described.rates else None,
        default_epochs=described.default_epochs,
        auto_epochs=_auto_epochs,
        unbilled_failure=_never_began,
        cap_gap=described.cap_gap,
        serving_note=described.serving_note,
        options=BY_SDK.union(
            ["base_deployment"], described.deployment.options if described.deployment else ()
        ),
        management_login=described.deployment.login if described.deployment else "",
    )


def _statuses(described: Described, name: str) -> dict[str, JobStatus]:
    try:
        own = {word: JobStatus(ours) for word, ours in described.statuses.items()}
    except ValueError as error:
        allowed = ", ".join(status.value for status in JobStatus)
        raise ConfigError(f"{name}: statuses: {error}. Allowed: {allowed}") from error
    return {**TUNING_STATUSES, **own}


def _base(pattern: re.Pattern[str], name: str) -> str | None:
    found = pattern.match(name)
    return found["base"] if found else None


def _rules(described: Described, name: str) -> HostRules:
    if unknown := sorted(set(described.rows.refuses) - set(TRAITS)):
        raise ConfigError(f"{name}: rows.refuses: {unknown[0]}; allowed: {', '.join(TRAITS)}")
    known: list[Kind] = [*KINDS.values()]
    if unknown := sorted(set(described.rows.kinds) - set(known)):
        raise ConfigError(f"{name}: rows.kinds: {unknown[0]}; allowed: {', '.join(known)}")
    kinds = described.rows.kinds
    words = " and ".join(kinds)
    reasons = dict.fromkeys(known, f"{described.title} trains on {words} rows")
    if "preference" in kinds:
        reasons["unpaired"] = f"{described.title} {NO_KTO}"
    taken: dict[Kind, str | None] = {kind: None if kind in kinds else reasons[kind] for kind in known}
    return HostRules(
        kinds=taken,
        traits=dict(TRAITS[word] for word in described.rows.refuses),
        least_rows=described.rows.least,
        most_rows=described.rows.most,
        most_bytes=described.rows.most_bytes,
        most_tokens=described.rows.most_tokens,
    )


def bills(size: JobSize, rate: Rate) -> Lines:
    """Bill the tokens of the training file once per epoch. The validation file is not billed."""
    from orchestrate import text
    from orchestrate.costing.lines import MTOK, line
    from orchestrate.costing.size import Lines

    training = line(
        "training",
        Decimal(size.train_tokens * size.epochs) / MTOK,
        rate,
        low=size.train_least * size.epochs_low / MTOK,
        high=size.train_most * size.epochs_high / MTOK,
    )
    notes = [f"{text.count(size.epochs, 'epoch')}. The validation file is not billed"]
    return Lines(lines=(training,), notes=tuple(notes), open_end=size.uncounted)


def _auto_epochs(rows: int) -> int:
    """Return the epochs of `auto`, which none of these hosts documents. Most jobs of few rows have three."""
    return 3 if rows * 3 <= 25_000 else 1


def _never_began(job: Job) -> bool:
    """Say whether the host reports that nothing was trained. Silence is no such report: not every host of
    this kind counts steps, and a failed job may have no count of tokens."""
    return file_refused(job) or (job.step == 0 and not job.trained_tokens)
