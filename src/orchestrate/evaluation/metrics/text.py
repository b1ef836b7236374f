"""How an answer is scored against the expected one: 1 is right, 0 wrong, in between where there are
grades."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast

Metric = Callable[[str, str], float]
"""(expected, answer) -> score in 0..1"""


def exact_match(expected: str, answer: str) -> float:
    """The same text, white space at the ends aside."""
    return float(expected.strip() == answer.strip())


def json_match(expected: str, answer: str) -> float:
    """The same JSON value: key order, white space and a Markdown fence around it do not matter."""
    try:
        return float(_same(json.loads(unfenced(expected)), json.loads(unfenced(answer))))
    except (json.JSONDecodeError, RecursionError):
        return 0.0


def json_fields(expected: str, answer: str) -> float:
    """The share of all fields, expected and answered, that both objects have with the same value."""
    try:
        want, got = json.loads(unfenced(expected)), json.loads(unfenced(answer))
    except (json.JSONDecodeError, RecursionError):
        return 0.0
    if not isinstance(want, dict) or not isinstance(got, dict):
        return float(_same(want, got))
    want, got = cast("dict[str, Any]", want), cast("dict[str, Any]", got)
    names = want.keys() | got.keys()
    return (
        sum(n in want and n in got and _same(want[n], got[n]) for n in names) / len(names) if names else 1.0
    )


def contains(expected: str, answer: str) -> float:
    """The expected text occurs in the answer, case aside."""
    return float(expected.strip().casefold() in answer.casefold())


def token_f1(expected: str, answer: str) -> float:
    """Harmonic mean of word precision and recall, as in SQuAD: case and punctuation aside."""
    want, got = Counter(_words(expected)), Counter(_words(answer))
    common = sum((want & got).values())
    if not want or not got:
        return float(want == got)
    return 2 * common / (want.total() + got.total())


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "json_match": json_match,
    "json_fields": json_fields,
    "contains": contains,
    "token_f1": token_f1,
}
BINARY = frozenset({"exact_match", "json_match", "contains"})
"""Metrics whose score is 0 or 1, for which flips and McNemar's test have a meaning."""


def choose_metric(expected: Sequence[str]) -> str:
    """The metric that fits the expected answers: JSON objects, short labels, or prose."""
    if expected and all(_is_json_container(text) for text in expected):
        return "json_match"
    if expected and all(len(_words(text)) <= 5 for text in expected):
        return "exact_match"
    return "token_f1"


def unfenced(text: str) -> str:
    """The inside of a ```json fence, when the whole text is one."""
    match = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", text, re.DOTALL)
    return match.group(1) if match else text


def _same(a: Any, b: Any) -> bool:
    # In Python 1 == True; in JSON a number is not a boolean, at any depth.
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def _is_json_container(text: str) -> bool:
    try:
        return isinstance(json.loads(unfenced(text)), dict | list)
    except (json.JSONDecodeError, RecursionError):
        return False


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
