"""Tasks of lm-evaluation-harness, when the package `lm-eval` is installed.

Generation tasks run with any contender; a question goes to it as one user message. Tasks by likelihood need
log-probabilities, which only a model on this machine gives. `lm_eval` brings its own datasets from a hub,
unless a task's YAML names local files; it imports torch into this process.
"""

# lm_eval describes its types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from orchestrate.errors import SetupError, UsageError
from orchestrate.evaluation.contenders import Candidate
from orchestrate.paid.asking import Asking, Question
from orchestrate.types import Message

Sample = tuple[str, dict[str, float]]
"""(the document's id, its scores by metric)"""


def run(
    candidate: Candidate, tasks: Sequence[str], folder: Path | None, limit: int | None, asking: Asking
) -> dict[str, list[Sample]]:
    """For each task the samples with their scores. `folder` has task files of the user. Raises `SetupError`
    without lm-eval, and `UsageError` for a task that is not there, whose data cannot be read, or that this
    contender cannot answer."""
    try:
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise SetupError(
            "--tasks needs the package lm-eval, which is not installed", fix="pip install lm-eval"
        ) from error
    # Those of lm-eval are some ten thousand files to read. A group of one's own may name some of them.
    manager = TaskManager(include_path=str(folder), include_defaults=False) if folder else None
    if manager is None or not {*tasks} <= {*manager.all_subtasks}:
        manager = TaskManager(include_path=str(folder) if folder else None)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise UsageError(f"lm-eval has no task {unknown[0]!r}", fix="--tasks-folder DIR with the task's YAML")
    try:
        found: Any = simple_evaluate(
            model=_asked(candidate, asking),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
        )
    except OSError as error:  # of the package `datasets`: no network, no such data set or file
        raise UsageError(
            f"lm-eval cannot read the data of {', '.join(tasks)}: {str(error)[:400]}",
            fix="a network for the hub, or --tasks-folder DIR with a task's YAML that names local files",
        ) from error
    return {task: [_sample(one) for one in found["samples"][task]] for task in tasks}


def _sample(one: dict[str, Any]) -> Sample:
    names = cast("list[str]", one.get("metrics") or [])
    scores = {name: float(one[name]) for name in names if isinstance(one.get(name), int | float | bool)}
    return f"{one['doc_id']} {one.get('filter', '')}", scores


def _asked(candidate: Candidate, asking: Asking) -> Any:
    from lm_eval.api.model import LM

    class Contender(LM):
        """Answers lm_eval's requests through `Asking`, so that answers are kept and the limit holds."""

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            del disable_tqdm
            questions = [Question(messages=(Message(role="user", content=r.args[0]),)) for r in requests]
            answers = asking.ask(candidate.respondent, questions)
            return [_until(a.text, r.args[1].get("until")) for a, r in zip(answers, requests, strict=True)]

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            del disable_tqdm
            told = self._likelihoods([{"context": r.args[0], "text": r.args[1]} for r in requests])
            return [(-nats, greedy) for nats, _, greedy in told]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            del disable_tqdm
            return [-nats for nats, _, _ in self._likelihoods([{"text": r.args[0]} for r in requests])]

        def _likelihoods(self, rows: list[dict[str, Any]]) -> list[tuple[float, int, bool]]:
            if candidate.likelihood is None:
                raise UsageError(
                    f"{candidate.contender.name} gives no log-probabilities, which this task needs",
                    fix="a task of the kind generate_until, or --on here",
                )
            return candidate.likelihood(rows)

    return Contender()


def _until(text: str, stops: Any) -> str:
    for stop in [stops] if isinstance(stops, str) else stops or []:
        text = text.split(stop, 1)[0]
    return text
