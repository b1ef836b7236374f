"""What reinforcement fine-tuning needs beside the settings: rows with what the grader reads, and a price."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrate import catalog, costing
from orchestrate.data.rows.examples import RLExample
from orchestrate.errors import UsageError
from orchestrate.local.job import DEFAULT_SAMPLES
from orchestrate.local.objectives import grading
from orchestrate.providers.local.translation import max_new_tokens
from orchestrate.spec import RFT
from orchestrate.types import Problem, Severity, TokensFrom

if TYPE_CHECKING:
    from orchestrate.data import Dataset, TrainingData
    from orchestrate.spec import JobSpec


def problems(provider: str, spec: JobSpec, data: TrainingData) -> list[Problem]:
    """Fields that the grader reads and rows lack, and prompts that leave no room for an answer."""
    if not isinstance(spec.method, RFT):
        return []
    sets = [d for d in (data.train, data.validation) if d is not None and d.kind == "rl"]
    found = [problem for dataset in sets for problem in _long(provider, spec, dataset)]
    if grading.refusal(spec.method.grader, allow_code=True) is None:
        fields = grading.fields_read(spec.method.grader)
        found += [problem for dataset in sets for problem in _lacking(provider, dataset, fields)]
    return found


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
            message=f"{long:,} of {dataset.rows:,} prompts have more than {room:,} tokens and would be left "
            f"out: {context:,} hold the prompt and an answer of {max_new_tokens(spec):,}",
            severity=Severity.WARNING,
            providers=(provider,),
            fix="shorten them, or lower provider_options.local.max_new_tokens",
            source=dataset.path,
        )
    ]


def _lacking(provider: str, dataset: Dataset, fields: tuple[str, ...]) -> list[Problem]:
    found: dict[str, list[int]] = {}
    for number, example in dataset.numbered() if fields else ():
        if isinstance(example, RLExample):
            item = {"messages": True, **example.fields}
            for field in fields:
                if not field.startswith("messages") and grading.lacks(item, field):
                    found.setdefault(field, []).append(number)
    return [
        Problem(
            code="grader-field-missing",
            message=f"the grader reads item.{field}, which {len(numbers):,} of {dataset.rows:,} rows lack",
            severity=Severity.ERROR,
            row=numbers[0],
            field=field,
            providers=(provider,),
            fix="add the field to the rows, or change method.grader: such answers would all get 0",
            source=dataset.path,
        )
        for field, numbers in found.items()
    ]


def answers(spec: JobSpec) -> costing.Answers | None:
    """How many answers a job draws, for its quote."""
    if not isinstance(spec.method, RFT):
        return None
    return costing.Answers(
        samples=spec.method.samples_per_prompt or DEFAULT_SAMPLES, most_tokens=max_new_tokens(spec)
    )
