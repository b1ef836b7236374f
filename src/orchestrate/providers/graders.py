"""Checks of a job's grader against its rows, for backends that grade on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrate.data.rows import RLExample
from orchestrate.local.objectives import graders
from orchestrate.spec import RFT, JobSpec
from orchestrate.types import Problem, Severity

if TYPE_CHECKING:
    from orchestrate.data import Dataset, TrainingData


def grader_problems(provider: str, spec: JobSpec, data: TrainingData) -> list[Problem]:
    """Report fields that the grader's templates use but some rows lack."""
    if not isinstance(spec.method, RFT) or graders.refusal(spec.method.grader, allow_code=True):
        return []
    sets = [d for d in (data.train, data.validation) if d is not None and d.kind == "rl"]
    fields = graders.fields_read(spec.method.grader)
    return [problem for dataset in sets for problem in _lacking(provider, dataset, fields)]


def _lacking(provider: str, dataset: Dataset, fields: tuple[str, ...]) -> list[Problem]:
    found: dict[str, list[int]] = {}
    for number, example in dataset.numbered() if fields else ():
        if isinstance(example, RLExample):
            item = {"messages": True, **example.fields}
            for field in fields:
                if not field.startswith("messages") and graders.lacks(item, field):
                    found.setdefault(field, []).append(number)
    return [
        Problem(
            code="grader-field-missing",
            message=f"the grader uses item.{field}, which {len(numbers):,} of {dataset.rows:,} rows lack",
            severity=Severity.ERROR,
            row=numbers[0],
            field=field,
            providers=(provider,),
            fix="add the field to these rows, or change method.grader. Otherwise, every answer to these rows "
            "scores 0",
            source=dataset.path,
        )
        for field, numbers in found.items()
    ]
