"""Additional checks for local training jobs: packages, the model's files, the adapter's modules, and
memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrate import catalog, costing
from orchestrate.costing.size import chat_of
from orchestrate.data.rules import METHOD_KINDS
from orchestrate.errors import ConfigError, DataError, MissingExtra, OrchestrateError, UsageError
from orchestrate.local.encoding import Rules, TemplateCheck, check_rows
from orchestrate.local.job import DEFAULT_SAMPLES
from orchestrate.local.model import files
from orchestrate.local.run import launcher
from orchestrate.providers.graders import grader_problems
from orchestrate.providers.local import adapter_settings
from orchestrate.providers.local.translation import max_new_tokens, memory
from orchestrate.spec import RFT, JobSpec, method_word
from orchestrate.text import count, size
from orchestrate.types import MemoryPlan, Problem, Severity, TokensFrom, Translation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from orchestrate.data import Dataset, TrainingData
    from orchestrate.data.facts import TokenCount


def problems(
    name: str, spec: JobSpec, data: TrainingData, translation: Translation, options: Mapping[str, Any]
) -> Iterator[Problem]:
    """Check a job for the local engine and yield the problems found. `name` is the backend's name, as shown
    in the problems."""
    try:
        launcher.require_packages()
    except MissingExtra as error:
        yield _problem(name, "packages-missing", error)
    if any(row.name == "model" for row in translation.refused):
        return
    try:
        files.here(translation.model)
    except (UsageError, ConfigError) as error:
        yield _problem(name, "model-unusable", error, field="model")
        return
    if spec.continue_from is None:
        yield from _names(name, spec, translation)
    yield from warming(name, spec, data)
    yield from untrained(name, spec, data)
    yield from _memory(spec, data, translation, options)


def to_download(name: str, translation: Translation) -> Iterator[Problem]:
    """Report a base model that is not on this machine yet, as a warning if downloads are disabled."""
    if any(row.name == "model" for row in translation.refused):
        return
    try:
        if not files.to_download(translation.model):
            return
    except (UsageError, ConfigError):
        return  # `problems` says so
    offline = files.offline()
    yield Problem(
        code="model-to-download",
        message=f"{translation.model} is not on this machine"
        + (f" and cannot be downloaded{offline}" if offline else ". The run will download it first"),
        severity=Severity.WARNING if offline else Severity.INFO,
        field="model",
        providers=(name,),
        fix=f"hf download {translation.model}",
    )


def joined(found: Iterable[Problem], more: Iterable[Problem]) -> list[Problem]:
    """Merge two lists of problems. If both report the same unknown module names, only the report in `more` is
    kept."""
    more = list(more)
    messages = [p.message for p in more if p.code == "unknown-target"]
    twice = [p for p in found if p.code == "setting-refused" and any(one in p.message for one in messages)]
    return [*(p for p in found if p not in twice), *more]


def _names(name: str, spec: JobSpec, translation: Translation) -> Iterator[Problem]:
    """Report the adapter's names that the model lacks, as errors if the translation rejects the setting."""
    refused = {row.name for row in translation.refused}
    found, unseen = adapter_settings.unmatched_names(spec, translation.model)
    for one in found:
        field = f"adapter.{one.field}"
        yield Problem(
            code="unknown-target",
            message=one.message,
            severity=Severity.ERROR if field in refused else Severity.WARNING,
            field=field,
            providers=(name,),
            fix=one.fix,
        )
    if unseen is not None:
        yield Problem(
            code="names-not-looked-at",
            message="could not check whether the model has the modules named in the adapter settings: "
            f"{unseen}",
            severity=Severity.INFO,
            field="adapter",
            providers=(name,),
        )


def _problem(name: str, code: str, error: OrchestrateError, field: str | None = None) -> Problem:
    return Problem(
        code=code,
        message=error.message,
        severity=Severity.ERROR,
        field=field,
        providers=(name,),
        fix=error.fix,
    )


def memory_of_rows(
    spec: JobSpec, data: TrainingData, translation: Translation, options: Mapping[str, Any]
) -> MemoryPlan | None:
    """Plan the memory for the longest row of the data."""
    model = catalog.resolve(spec.model_for("local"), "local")
    counter = costing.tokenizer_for(model, spec)
    return memory(spec, translation, options, data.train.tokens(counter).longest)


def _memory(
    spec: JobSpec, data: TrainingData, translation: Translation, options: Mapping[str, Any]
) -> list[Problem]:
    """Warn if these rows do not fit. The plan may be wrong, so the engine tries anyway."""
    if translation.memory is None or data.train.tokens_from is TokensFrom.NONE:
        return []
    plan = memory_of_rows(spec, data, translation, options)
    if plan is None or plan.fits is not False or plan.available_bytes is None:
        return []
    return [
        Problem(
            code="memory",
            message=f"training needs about {size(plan.total_bytes)} with {count(plan.rows, 'row')} of "
            f"{count(plan.longest, 'token')} at a time, but only {size(plan.available_bytes)} is available "
            "on the " + ("GPU" if plan.device == "cuda" else "CPU"),
            severity=Severity.WARNING,
            providers=(translation.provider,),
            fix="; then ".join(plan.advice) or None,
        )
    ]


MOST_LONG = 2_000
"""Maximum number of overlong rows that are tokenized to check whether truncation removes their answers."""


def untrained(name: str, spec: JobSpec, data: TrainingData) -> Iterator[Problem]:
    """Report data without any tokens to train on, and long rows whose entire answer would be truncated. Needs
    the model's tokenizer on this machine."""
    try:
        model = catalog.resolve(spec.model_for("local"), "local")
    except UsageError:
        return  # the translation's row of the model says so
    counter = costing.tokenizer_for(model, spec)
    kinds = METHOD_KINDS[method_word(spec.method)]
    if spec.method.type == "rft" or not counter.startswith("hf:"):
        return
    limit = spec.max_seq_length or model.context(spec.method.type)
    rules = Rules.of(spec.method.model_dump(), limit, spec.truncation)
    for dataset in (data.train, data.validation):
        if dataset is None or dataset.kind not in kinds or dataset.tokens_from is TokensFrom.NONE:
            continue
        tokens = dataset.tokens(counter)
        long = _over(dataset, tokens, limit)
        if tokens.trained_tokens and not long and rules.train_on == "all":
            continue  # the count says enough: no row is read again
        try:
            found = check_rows(dataset, counter, chat_of(spec), rules, frozenset(long[:MOST_LONG]))
        except DataError:
            continue  # a row that the template refuses is told as such
        yield from _without_tokens(name, spec, dataset, found, long, limit)


def _over(dataset: Dataset, count: TokenCount, limit: int | None) -> list[int]:
    """Return the numbers of the rows over the limit. Empty if only a sample was counted."""
    if limit is None or count.weights:
        return []
    sides = 2 if dataset.kind == "preference" else 1
    places = {i // sides for i, length in enumerate(count.lengths) if length > limit}
    return [dataset.number(place) for place in sorted(places) if place < dataset.rows]


def _without_tokens(
    name: str, spec: JobSpec, dataset: Dataset, found: TemplateCheck, long: list[int], limit: int | None
) -> Iterator[Problem]:
    shorter = "raise max_seq_length, shorten the prompts, or set truncation: left to keep the answers"
    if not found.trains:
        chosen = "set a weight on an answer, or choose other messages with method.train_on"
        yield Problem(
            code="nothing-to-train",
            message=f"no row of {dataset.path} contains tokens to train on: "
            + (
                "no part of an answer remains after truncation to " + count(limit or 0, "token")
                if long
                else "none of the messages is selected for training"
            ),
            severity=Severity.ERROR,
            field="max_seq_length" if long else "method",
            providers=(name,),
            fix=shorter if long else chosen,
            source=dataset.path,
        )
    elif found.lost and spec.truncation != "drop":
        or_part = ", or the part in which both answers differ" if dataset.kind == "preference" else ""
        of = f" of the first {MOST_LONG:,} that are longer" if len(long) > MOST_LONG else ""
        yield Problem(
            code="answer-lost",
            message=f"{count(len(found.lost), 'row')}{of} would be dropped, because truncation at "
            f"{limit:,} tokens removes the entire answer{or_part}",
            severity=Severity.WARNING,
            row=found.lost[0],
            providers=(name,),
            fix=shorter,
            source=dataset.path,
        )


def warming(name: str, spec: JobSpec, data: TrainingData) -> Iterator[Problem]:
    """Report a warm-up that lasts until the end of the run or longer."""
    if spec.warmup_steps is None or spec.packing or spec.method.type == "rft":
        return
    batch = spec.batch_size if isinstance(spec.batch_size, int) else 16
    per_epoch = max(1, -(-data.train.rows // batch))
    most = spec.max_steps
    if most is None or spec.epochs is not None:
        most = min(per_epoch * (spec.epochs or 3), most or per_epoch * (spec.epochs or 3))
    if spec.warmup_steps >= most:
        yield Problem(
            code="rate-never-peaks",
            message=f"the warm-up takes {count(spec.warmup_steps, 'step')}, but the run has only about "
            f"{count(most, 'step')}, so the learning rate never reaches its peak",
            severity=Severity.WARNING,
            field="warmup_steps",
            providers=(name,),
            fix=f"use fewer than {most:,} warm-up steps, or set warmup_ratio (a fraction of the steps)",
        )


# -- reinforcement -----------------------------------------------------------------------------------------
# Checks for RFT jobs that go beyond their settings: prompt lengths, and the row fields that the grader uses.
# Also the number of sampled answers, which the price depends on.


def reinforcement_problems(provider: str, spec: JobSpec, data: TrainingData) -> list[Problem]:
    """Report fields that the grader uses but some rows lack, and prompts that leave no room for an answer."""
    if not isinstance(spec.method, RFT):
        return []
    sets = [d for d in (data.train, data.validation) if d is not None and d.kind == "rl"]
    found = [problem for dataset in sets for problem in _long(provider, spec, dataset)]
    return [*found, *grader_problems(provider, spec, data)]


def _long(provider: str, spec: JobSpec, dataset: Dataset) -> list[Problem]:
    try:
        model = catalog.resolve(spec.model_for(provider), "local")
    except UsageError:
        return []  # the translation's row of the model says so
    if dataset.tokens_from is TokensFrom.NONE:
        return []
    context = spec.max_seq_length or model.context("rft")
    count = dataset.tokens(costing.tokenizer_for(model, spec))
    if context is None or count.longest <= (room := context - max_new_tokens(spec)):
        return []
    each = count.weights or [1.0] * len(count.lengths)
    long = round(sum(weight for length, weight in zip(count.lengths, each, strict=True) if length > room))
    return [
        Problem(
            code="prompts-left-out",
            message=f"{long:,} of {dataset.rows:,} prompts have more than {room:,} tokens and would be "
            f"dropped, because the {context:,}-token context must hold the prompt and an answer of up to "
            f"{max_new_tokens(spec):,} tokens",
            severity=Severity.WARNING,
            providers=(provider,),
            fix="shorten the prompts, or lower provider_options.local.max_new_tokens",
            source=dataset.path,
        )
    ]


def answers(spec: JobSpec) -> costing.SampledAnswers | None:
    """Return what an RFT job's quote needs: the number of answers sampled per prompt and their maximum length
    in tokens. Returns `None` for other methods."""
    if not isinstance(spec.method, RFT):
        return None
    return costing.SampledAnswers(
        samples=spec.method.samples_per_prompt or DEFAULT_SAMPLES, most_tokens=max_new_tokens(spec)
    )
