"""Items, answers and models that answer from a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from orchestrate.evaluation import Answer, Item, item_id
from orchestrate.evaluation.metrics import Context
from orchestrate.paid.paid_requests import Asking, Question, Respondent
from orchestrate.types import Message


@pytest.fixture(scope="module", autouse=True)
def forked(quick_python: None) -> None:
    """Models answer and train in processes that are up at once."""


def make_item(expected: str = "yes", question: str = "q", **more: Any) -> Item:
    prompt = (Message(role="user", content=question),)
    return Item(id=item_id(prompt, (), expected, ()), prompt=prompt, expected=expected, **more)


def make_items(expected: Sequence[str], **more: Any) -> list[Item]:
    return [make_item(text, f"question {i}", **more) for i, text in enumerate(expected)]


def answering(
    answers: Callable[[str], str] | dict[str, str], seen: list[Question] | None = None, **more: Any
) -> Respondent:
    """A model that answers the last message by a table, or a function of its text."""

    def one(question: Question) -> Answer:
        if seen is not None:
            seen.append(question)
        said = question.messages[-1].content
        text = answers[said] if isinstance(answers, dict) else answers(said)
        return Answer(text=text, prompt_tokens=10, completion_tokens=2)

    values: dict[str, Any] = {"name": "model", "identity": {"model": "m"}, "max_tokens": 100}
    values["ask"] = lambda questions: [one(q) for q in questions]
    return Respondent(**(values | more))


def cents(prompt: int, completion: int) -> Decimal:
    return Decimal(prompt) / 1000 + Decimal(completion) / 100


@pytest.fixture
def asking(tmp_path: Path) -> Asking:
    return Asking(tmp_path / "answers")


@pytest.fixture
def context(asking: Asking) -> Callable[..., Context]:
    def make(items: Sequence[Item], **more: Any) -> Context:
        def nobody(*_: Any) -> Any:
            raise AssertionError("no model is to be asked")

        values: dict[str, Any] = {"respondent": nobody, "embed": nobody}
        return Context(items=items, asking=asking, **(values | more))

    return make
