"""Graders: OpenAI's objects, scored here."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessageFunctionToolCall

from orchestrate.data.rows import FunctionCall, ToolCall
from orchestrate.data.tokens.answers import ReadAnswer
from orchestrate.errors import RunFailed
from orchestrate.local.objectives import Isolation, isolation
from orchestrate.local.objectives.graders import Grade, Grader, fields_read, lacks, refusal, sample_of

ITEM = {"answer": "Blue whale", "tags": ["a", "b"], "deep": {"n": 3}}


def check(**more: Any) -> dict[str, Any]:
    return {
        "type": "string_check",
        "name": "x",
        "input": "{{sample.output_text}}",
        "reference": "{{ item.answer }}",
        "operation": "eq",
        **more,
    }


def similar(metric: str, reference: str = "{{item.answer}}") -> dict[str, Any]:
    return {
        "type": "text_similarity",
        "name": "x",
        "input": "{{sample.output_text}}",
        "reference": reference,
        "evaluation_metric": metric,
    }


PATIENCE_S = 240.0
"""For code that answers: a machine that is busy is no code that hangs."""


def code(source: str) -> dict[str, Any]:
    return {"type": "python", "name": "x", "source": source}


def grade(grader: dict[str, Any], answer: str, **options: Any) -> Grade:
    with Grader(grader, **{"seconds": PATIENCE_S, **options}) as made:
        return made.grade([answer], [ITEM])[0]


@pytest.mark.parametrize(
    ("operation", "answer", "score"),
    [
        ("eq", "Blue whale", 1),
        ("eq", "blue whale", 0),
        ("ne", "blue whale", 1),
        ("like", "the Blue whale!", 1),
        ("like", "the blue whale!", 0),
        ("ilike", "the BLUE WHALE!", 1),
        ("ilike", "a shark", 0),
    ],
)
def test_string_checks(operation: str, answer: str, score: float) -> None:
    assert grade(check(operation=operation), answer) == Grade(score)


def test_templates_reach_into_rows_and_json_answers() -> None:
    nested = check(input="{{sample.output_json.n}}/{{ item.tags[1] }}", reference="{{item.deep.n}}/b")
    assert grade(nested, '{"n": 3}') == Grade(1.0)
    assert grade(nested, '{"n": 4}') == Grade(0.0)
    missing = grade(nested, "no JSON")
    assert missing.score == 0 and "sample.output_json.n" in str(missing.error)


@pytest.mark.parametrize(
    ("metric", "answer", "reference", "score"),
    [
        ("fuzzy_match", "kitten", "sitting", 1 - 5 / 13),  # 5 insertions and deletions of 13 letters
        ("rouge_1", "the cat sat", "The cat slept", 2 / 3),
        ("rouge_2", "the cat sat", "the cat slept", 1 / 2),
        ("rouge_l", "a b c d", "a x c d", 3 / 4),
        ("rouge_3", "a b", "a b", 0.0),
    ],
)
def test_similarities(metric: str, answer: str, reference: str, score: float) -> None:
    assert grade(similar(metric, reference), answer).score == pytest.approx(score, abs=1e-3)


def test_a_formula_joins_graders() -> None:
    grader = {
        "type": "multi",
        "name": "x",
        "graders": {"same": check(), "near": similar("fuzzy_match")},
        "calculate_output": "0.25 * same + 0.75 * max(near, 0.5)",
    }
    assert grade(grader, "Blue whale").score == pytest.approx(1.0)
    assert grade(grader, "zzzz").score == pytest.approx(0.375)


def test_code_grades_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sandbox-secret")
    source = (
        "import os\n"
        "def grade(sample, item):\n"
        "    print('noise')\n"
        "    assert 'OPENAI_API_KEY' not in os.environ\n"
        "    return len(sample['output_text']) / len(item['answer'])\n"
    )
    with Grader(code(source), seconds=PATIENCE_S) as grader:
        assert grader.grade(["Blue", "Blue whale"], [ITEM, ITEM]) == [Grade(0.4), Grade(1.0)]


@pytest.mark.slow
def test_code_that_hangs_dies_or_raises_costs_its_answer_only() -> None:
    source = (
        "import os, signal, sys, time\n"
        "def grade(sample, item):\n"
        "    said = sample['output_text']\n"
        "    if said == 'hang':\n"
        "        signal.alarm(0)\n"
        "        while True: pass\n"
        "    if said == 'sleep': time.sleep(1000)\n"
        "    if said == 'die': os._exit(3)\n"
        "    if said == 'leave': sys.exit('gone')\n"
        "    return {'good': 1, 'nan': float('nan'), 'words': 'much'}[said]\n"
    )
    cases = (
        (2.5, ["hang", "good", "sleep", "good"]),
        (PATIENCE_S, ["good", "die", "good", "raise", "nan", "words", "leave", "good"]),
    )
    errors = dict[str, str]()
    for seconds, said in cases:
        with Grader(code(source), seconds=seconds) as grader:
            grades = grader.grade(said, [ITEM] * len(said))
        assert [g.score for g in grades] == [s == "good" for s in said]
        errors |= zip(said, (str(g.error) for g in grades), strict=True)
    assert "2.5 s" in errors["hang"] and "2.5 s" in errors["sleep"]
    assert "code 3" in errors["die"] and "code 1" in errors["leave"]
    assert "KeyError" in errors["raise"] and "nan" in errors["nan"] and "ValueError" in errors["words"]


def test_code_that_forks_answers_once_and_leaves_nothing_behind() -> None:
    mark = f"1000.{os.getpid()}"  # seconds that nobody else sleeps
    source = (
        "import os, subprocess\n"
        "def grade(sample, item):\n"
        "    if os.fork() == 0:\n"
        "        return 7\n"
        f"    subprocess.Popen(['sleep', '{mark}'], start_new_session=True)\n"
        "    print('noise')\n"
        "    return len(sample['output_text']) / 10\n"
    )
    said = ["a", "abc", "abcdef"]
    with Grader(code(source), isolation=confined(), seconds=PATIENCE_S) as grader:
        grades = grader.grade(said, [ITEM] * len(said))
        wait_for(mark, 3)  # a process that has just begun has no command line yet
    assert [g.score for g in grades] == [0.1, 0.3, 0.6]
    wait_for(mark, 0)


def wait_for(mark: str, number: int) -> None:
    deadline = time.monotonic() + 240
    while len(found := asleep(mark)) != number:
        assert time.monotonic() < deadline, found
        time.sleep(0.01)


def confined() -> Isolation:
    """One that keeps processes apart; without one, what calls itself a session of its own is not found."""
    found = isolation()
    if found.way == "limits only":
        pytest.skip("this machine has neither bubblewrap nor namespaces")
    return found


def asleep(mark: str) -> list[str]:
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.joinpath("cmdline").read_bytes() == f"sleep\0{mark}\0".encode():
                found.append(process.name)
    return found


@pytest.mark.parametrize(
    ("source", "said"),
    [("x = 1", "grade(sample, item)"), ("def grade(:", "SyntaxError"), ("1/0", "ZeroDivision")],
)
def test_code_without_a_grade_says_so(source: str, said: str) -> None:
    assert said in str(grade(code(source), "a").error)


@pytest.mark.parametrize(
    ("grader", "reason"),
    [
        (
            {"type": "score_model", "model": "o3"},
            "not supported for training on this machine, because it calls a model API for each answer",
        ),
        (
            {"evaluator": "accounts/a/evaluators/b"},
            "evaluators are only supported on hosted backends. Use a grader",
        ),
        ({"type": "regex"}, "type must be one of"),
        (check(reference=4), "reference must be text"),
        (check(input="{{ output_text }}"), "output_text must be item.FIELD or sample.output_text"),
        (check(input="{{ sample.text }}"), "sample.text must be item.FIELD"),
        (check(input="{{ item }}"), "item must be item.FIELD"),
        (check(input="{{ item['answer'] }}"), "must be a reference such as item.answer or item.answers[0]"),
        (check(input="{{}}"), "must be a reference such as item.answer or item.answers[0]"),
        (check(operation="regex"), "eq, ne, like, ilike"),
        (similar("cosine"), "rouge_l"),
        ({"type": "string_check"}, "input, operation, reference"),
        (code("def grade(sample, item): return 1"), "--allow-grader-code"),
        ({"type": "multi", "graders": {"a": check()}, "calculate_output": "a + b"}, "uses b"),
        (
            {"type": "multi", "graders": {"a": check()}, "calculate_output": "a.__class__"},
            "is not allowed in a formula",
        ),
        (
            {"type": "multi", "graders": {"a": check()}, "calculate_output": "open('x')"},
            "is not allowed in a formula",
        ),
        ({"type": "multi", "graders": {"a": {"type": "multi"}}, "calculate_output": "a"}, "another"),
        ({"type": "multi", "graders": {"a": similar("meteor")}, "calculate_output": "a"}, "graders.a"),
    ],
)
def test_what_cannot_be_graded_here_is_refused_with_the_reason(grader: dict[str, Any], reason: str) -> None:
    assert reason in str(refusal(grader, allow_code=False))


def test_the_fields_that_a_grader_reads() -> None:
    nested = check(input="{{sample.output_json.n}}/{{ item.tags[1] }}", reference="{{item.deep.n}}")
    grader = {"type": "multi", "graders": {"a": nested, "b": similar("rouge_l")}, "calculate_output": "a+b"}
    assert fields_read(grader) == ("answer", "deep.n", "tags[1]")
    assert fields_read(code("def grade(sample, item): return item['x']")) == ()
    assert [lacks(ITEM, field) for field in ("tags[1]", "tags[2]", "deep.n", "deep.m", "n")] == [
        False,
        True,
        False,
        True,
        True,
    ]


def test_a_refused_grader_starts_nothing() -> None:
    with pytest.raises(
        RunFailed,
        match="not supported for training on this machine, because it calls a model API for each answer",
    ):
        Grader({"type": "score_model"})
    assert refusal(code("def grade(sample, item): return 1"), allow_code=True) is None


def test_graders_see_the_answer_without_its_thinking_and_the_calls_beside_it() -> None:
    call = ToolCall(id="c1", function=FunctionCall(name="look", arguments='{"at": "x"}'))
    said = ReadAnswer("blue", "whatever was thought", (call,))
    sample = sample_of(said)
    assert sample["output_text"] == "blue" and "thought" not in str(sample)
    typed = ChatCompletionMessageFunctionToolCall.model_validate(sample["output_tools"][0])
    assert typed.function.name == "look"
    by_name = check(input="{{ sample.output_tools[0].function.name }}", reference="look")
    with Grader(by_name, seconds=PATIENCE_S) as made:
        assert made.grade([said, "blue"], [ITEM, ITEM]) == [
            Grade(1.0),
            Grade(0.0, "sample.output_tools[0].function.name does not exist"),
        ]
