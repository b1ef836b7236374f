"""Sessions on the tiny model, for the tests of the local engine."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from tests.paths import TINY

from orchestrate.local.job import AdapterSettings, Hyper, LocalJob, Method
from orchestrate.local.run import RunDir, now
from orchestrate.local.run.session import Session


def pairs(path: Path, count: int) -> Path:
    """`count` preference pairs, canonical."""
    chance = random.Random(1)
    with path.open("w", encoding="utf-8") as out:
        for _ in range(count):
            n = chance.randint(1, 99)
            row = {
                "prompt": [{"role": "user", "content": f"Is {n} even?"}],
                "preferred": [{"role": "assistant", "content": "yes" if n % 2 == 0 else "no"}],
                "rejected": [{"role": "assistant", "content": "I would rather not say"}],
            }
            out.write(json.dumps(row) + "\n")
    return path


def answers(path: Path, count: int, above: int = 0) -> Path:
    """`count` unpaired answers, one in three of them bad, as `orchestrate.data` writes them, about numbers
    `above` one."""
    chance = random.Random(1)
    with path.open("w", encoding="utf-8") as out:
        for i in range(count):
            n = above + chance.randint(1, 99)
            good = i % 3 > 0
            said = ("yes" if n % 2 == 0 else "no") if good else "I would rather not say"
            row = {
                "prompt": [{"role": "user", "content": f"Is {n} even?"}],
                "completion": [{"role": "assistant", "content": said}],
                "label": good,
            }
            out.write(json.dumps(row) + "\n")
    return path


def prompts(path: Path, numbers: Iterable[int]) -> Path:
    """A prompt for each number, with the field of a grader."""
    with path.open("w", encoding="utf-8") as out:
        for n in numbers:
            row = {"messages": [{"role": "user", "content": f"Is {n} even?"}], "answer": "even"}
            out.write(json.dumps(row) + "\n")
    return path


EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
"""A grader for `prompts`. The tiny model says the word itself now and then, and learns to say only that."""


def make_session(
    home: Path,
    train: Path,
    *,
    method: dict[str, Any],
    adapter: dict[str, Any] | None = None,
    ref: str = "a",
    asked: Callable[[], str | None] = lambda: None,
    **job: Any,
) -> Session:
    """`job`: further fields of the job; `hyper` a table over the tests' usual settings."""
    hyper = {"epochs": 2, "batch_size": 8, "learning_rate": 2e-3, **job.pop("hyper", {})}
    made = LocalJob(
        ref=ref,
        model=job.pop("model", str(TINY)),
        model_name="tiny-chat",
        train=str(train),
        method=msgspec.convert(method, Method),
        adapter=AdapterSettings.from_dict({"type": "qlora", "r": 8, "alpha": 16.0, **(adapter or {})}),
        hyper=Hyper(**hyper),
        threads=1,
        created_at=now(),
        **job,
    )
    run, _ = RunDir.make(home / "runs", made)
    return Session(run, made, asked, lambda _: None)
