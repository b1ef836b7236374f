"""Metrics against scikit-learn, sacrebleu and rouge-score, and by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.evaluation.conftest import answering, make_item, make_items

from orchestrate.errors import UsageError
from orchestrate.evaluation.items import Answer
from orchestrate.evaluation.metrics import Context, registry, text
from orchestrate.evaluation.scoring import Side, score

Make = Callable[..., Context]


@pytest.mark.parametrize(
    ("metric", "expected", "answer", "value"),
    [
        ("exact_match", "yes", " yes\n", 1),
        ("exact_match", "yes", "Yes", 0),
        ("normalized_match", "The Café!", "the  café", 1),
        ("normalized_match", "ﬁne", "fine.", 1),
        ("normalized_match", "no", "not", 0),
        ("json_valid", "", '```json\n{"a": 1}\n```', 1),
        ("json_valid", "", '{"a": 1', 0),
        ("json_match", '{"a": 1, "b": [2]}', '```json\n{"b":[2],"a":1}\n```', 1),
        ("json_match", '{"a": 1}', '{"a": true}', 0),
        ("json_match", '{"a": [1]}', '{"a": [true]}', 0),
        ("json_match", '{"a": 1}', "not json", 0),
        ("json_match", '{"a": 1}', "[" * 100_000, 0),
        ("json_match", '{"a": 1}', "1" * 5000, 0),
        ("json_valid", "", '{"a": NaN}', 0),
        ("json_fields", '{"a": 1, "b": 2}', '{"a": 1, "b": 3}', 0.5),
        ("json_fields", '{"a": 1}', '{"a": 1, "extra": 0}', 0.5),
        ("contains", "Paris", "It is paris.", 1),
        ("token_f1", "the cat sat", "The cat!", 0.8),
        ("token_f1", "", "", 1),
        ("token_f1", "a", "", 0),
        (r"regex:\b\d{4}\b", "", "in 1998, perhaps", 1),
        (r"regex:answer is (?P<answer>\w+)", "four", "The answer is Four.", 1),
        (r"regex:answer is (?P<answer>\w+)", "four", "The answer is five.", 0),
        ("regex:a,b", "", "a,b", 1),
        ("refusal", "", "I'm sorry, but I can't help with that.", 1),
        ("refusal", "", "I cannot provide that.", 1),
        ("refusal", "", "Sorry for the delay! Your order left today.", 0),
        ("length", "", "four", 4),
        ("length_ratio", "ab", "abcd", 2),
    ],
)  # fmt: skip
def test_what_one_answer_gets(context: Make, metric: str, expected: str, answer: str, value: float) -> None:
    items = [make_item(expected or "x")]
    [made] = registry.make([metric], context(items))
    [mark] = made.marks([(make_item(expected), Answer(text=answer))])
    assert mark.value == pytest.approx(value)


@pytest.mark.slow
@given(st.text(), st.text())
def test_every_comparison_stays_in_its_range(a: str, b: str) -> None:
    for kind, compare in registry.COMPARISONS.values():
        found = compare(a, b)
        assert 0 <= found <= 1 and (kind == "graded" or found in (0, 1))
    assert text.exact_match(a, a) == text.token_f1(a, a) == text.contains(a, a) == 1


WORDS = ("the", "cat", "sat", "on", "a", "mat", "Dog", "ran", "home", "today")


def sentences(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 14))) for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "theirs"), [("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")]
)
def test_rouge_is_that_of_rouge_score(name: str, theirs: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([theirs])
    for expected, answer in zip(sentences(300, 1), sentences(300, 2), strict=True):
        assert registry.COMPARISONS[name][1](expected, answer) == pytest.approx(
            scorer.score(expected, answer)[theirs].fmeasure
        )


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_bleu_and_chrf_are_those_of_sacrebleu(context: Make, name: str) -> None:
    import sacrebleu

    theirs = {"bleu": sacrebleu.corpus_bleu, "chrf": sacrebleu.corpus_chrf}[name]
    expected, answers = sentences(40, 3), sentences(40, 3)[::-1]
    answers[:20] = expected[:20]
    items = make_items(expected)
    found = score(
        items, [Side("m", [(Answer(text=a),) for a in answers])], registry.make([name], context(items)), {}
    )
    assert found.measures[0].score.value == pytest.approx(theirs(answers, [expected]).score / 100)
    assert found.measures[0].score.low < found.measures[0].score.value < found.measures[0].score.high


def test_f1_accuracy_and_confusion_are_those_of_scikit_learn(context: Make) -> None:
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

    draw = random.Random(4)
    labels = ["refund", "Shipping", "other"]
    expected = draw.choices(labels, weights=(6, 3, 1), k=120)
    answers = [e if draw.random() < 0.6 else draw.choice([*labels, "no idea"]) for e in expected]
    items = make_items(expected)
    names = ["f1_macro", "f1_micro", "f1_weighted", "accuracy"]
    side = Side("m", [(Answer(text=f" {a.upper()}."),) for a in answers])
    found = score(items, [side], registry.make(names, context(items)), {})
    for measure, average in zip(found.measures[:3], ("macro", "micro", "weighted"), strict=True):
        theirs = f1_score(expected, answers, labels=labels, average=average, zero_division=0)
        assert measure.score.value == pytest.approx(theirs), average
    assert found.measures[3].score.value == pytest.approx(accuracy_score(expected, answers))
    [confusion] = found.confusions
    order = [*confusion.labels[:-1], "no idea"]
    assert confusion.labels[-1] == "(no label)"
    assert [list(row) for row in confusion.counts] == confusion_matrix(expected, answers, labels=order)[
        :3
    ].tolist()


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


@pytest.mark.parametrize(
    ("made", "calls", "names", "arguments"),
    [
        ([call("find", q="a", n=1), call("send", to="b")], 1, 1, 1),
        ([call("find", n=1, q="a"), call("send", to="b")], 1, 1, 1),
        ([call("send", to="b"), call("find", q="a", n=1)], 0, 0, 1),
        ([call("find", q="x", n=1), call("send", to="b")], 0, 1, 1 / 3),
        ([call("find", q="a", n=1)], 0, 0, 1 / 2),
        ([], 0, 0, 0),
    ],
)
def test_tool_calls_by_name_arguments_and_order(
    context: Make, made: list[dict[str, Any]], calls: float, names: float, arguments: float
) -> None:
    item = make_item("", expected_calls=(call("find", q="a", n=1), call("send", to="b")))
    metrics = registry.make(["tool_calls", "tool_names", "tool_arguments"], context([item]))
    answer = Answer(text="", tool_calls=tuple(made))
    assert [m.marks([(item, answer)])[0].value for m in metrics] == pytest.approx([calls, names, arguments])
    assert registry.auto(context([item])) == "tool_calls"


def test_a_schema_judges_and_is_judged_first(context: Make, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text('{"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}}')
    bad.write_text('{"type": "nothing"}')
    items = [make_item()]
    [metric] = registry.make([f"json_schema:{good}"], context(items))
    values = [metric.marks([(items[0], Answer(text=t))])[0].value for t in ('{"id": 1}', '{"id": "1"}', "x")]
    assert values == [1, 0, 0]
    with pytest.raises(UsageError, match="not a JSON schema"):
        registry.make([f"json_schema:{bad}"], context(items))


def test_the_metric_is_chosen_by_the_answers(context: Make) -> None:
    for expected, name in (
        (['{"a": 1}', "[]"], "json_match"),
        (["yes", "no way"], "exact_match"),
        (["a long sentence with many words in it", "no"], "token_f1"),
    ):
        assert registry.auto(context(make_items(expected))) == name
    with pytest.raises(UsageError, match="no expected answer"):
        registry.auto(context(make_items([""])))


def test_names_are_split_at_commas_and_arguments_are_not() -> None:
    assert registry.split(["a, b", "c,regex:x,y", "a"]) == ["a", "b", "c", "regex:x,y"]
    with pytest.raises(UsageError, match="known: auto, exact_match"):
        registry.check(["bleurt"])


# -- graders, models, own metrics --------------------------------------------------------------------------


def test_a_grader_of_training_grades(context: Make, tmp_path: Path) -> None:
    grader = tmp_path / "g.json"
    grader.write_text(
        json.dumps(
            {
                "type": "multi",
                "graders": {
                    "same": {
                        "type": "string_check", "operation": "eq",
                        "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}",
                    },
                    "near": {
                        "type": "text_similarity", "evaluation_metric": "rouge_l",
                        "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}",
                    },
                },
                "calculate_output": "0.5 * same + 0.5 * near",
            }
        )
    )  # fmt: skip
    items = [make_item("", fields={"answer": "a b"})]
    [metric] = registry.make([f"grader:{grader}"], context(items))
    assert [m.value for m in metric.marks([(items[0], Answer(text=t)) for t in ("a b", "a c", "x")])] == [
        1,
        0.25,
        0,
    ]
    with pytest.raises(UsageError, match="reads item"):
        registry.make([f"grader:{grader}"], context([make_item()]))
    code = tmp_path / "code.json"
    code.write_text('{"type": "python", "source": "def grade(sample, item): return 1"}')
    with pytest.raises(UsageError, match="would run on this machine"):
        registry.make([f"grader:{code}"], context(items))


def test_a_model_that_grades_is_asked_once_for_each_answer(context: Make, tmp_path: Path) -> None:
    grader = tmp_path / "g.json"
    prompt = [{"role": "user", "content": "Rate {{ sample.output_text }} against {{ item.expected }}."}]
    grader.write_text(json.dumps({"type": "score_model", "model": "m", "input": prompt, "range": [1, 5]}))
    seen: list[Any] = []
    said = {"good": "5", "fair": "3", "odd": "9", "mute": "none"}

    def rates(question: str) -> str:
        return "{}"

    def judge(question: Any) -> str:
        word = question.messages[0].content.split()[1]
        return json.dumps({"steps": ["..."], "result": int(said[word])}) if said[word].isdigit() else "well"

    model = answering(rates)
    model = type(model)(
        name="judge",
        identity={"judge": 1},
        ask=lambda qs: [seen.append(q) or Answer(text=judge(q)) for q in qs],
        max_tokens=100,
    )
    items = make_items(["x"] * 4)
    [metric] = registry.make([f"grader:{grader}"], context(items, respondent=lambda *_: model))
    pairs = [(i, Answer(text=t)) for i, t in zip(items, said, strict=True)]
    marks = metric.marks(pairs)
    assert [m.value for m in marks] == [1, 0.5, 0, 0]
    assert "outside 1 to 5" in marks[2].note and "gave no result" in marks[3].note
    assert len(seen) == 4
    metric.marks(pairs)
    assert len(seen) == 4, "answers of a model that grades are kept as those of a contender are"


def test_an_embedding_model_tells_likeness(context: Make) -> None:
    vectors = {"a": [1.0, 0.0], "b": [0.6, 0.8], "c": [-1.0, 0.0]}
    items = make_items(["a"] * 4)
    made = context(items, embed=lambda _: lambda texts: [vectors[t] for t in texts])
    [metric] = registry.make(["embedding:any"], made)
    marks = metric.marks([(i, Answer(text=t)) for i, t in zip(items, ("a", "b", "c", " "), strict=True)])
    assert [m.value for m in marks] == pytest.approx([1, 0.6, 0, 0])


def test_a_metric_of_the_users_own(context: Make, tmp_path: Path) -> None:
    path = tmp_path / "checks.py"
    path.write_text(
        "def cites(expected: str, answer: str) -> bool:\n    return '[1]' in answer\n"
        "def half(item, answer):\n    return len(answer.text) / 2\n"
        "def broken(expected, answer):\n    return 1 / 0\n"
    )
    item = make_item()
    cites, half = registry.make([f"{path}:cites", f"{path}:half"], context([item]))
    assert (cites.used.name, cites.used.kind, half.used.kind) == (
        "checks.py:cites",
        "right-or-wrong",
        "graded",
    )
    assert cites.marks([(item, Answer(text="see [1]"))])[0].value == 1
    assert half.marks([(item, Answer(text="a"))])[0].value == 0.5
    with pytest.raises(UsageError, match="gave 2 on item"):
        half.marks([(item, Answer(text="abcd"))])
    [broken] = registry.make([f"{path}:broken"], context([item]))
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        broken.marks([(item, Answer(text=""))])
    for wrong, why in ((f"{path}:nothing", "has no nothing"), (f"{tmp_path}/no.py:x", "no Python file")):
        with pytest.raises(UsageError, match=why):
            registry.make([wrong], context([item]))


def test_a_metric_of_another_package(context: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = tmp_path / "tone-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tone\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[orchestrate.metrics]\npolite = tone_metric:polite\ngone = tone_metric:gone\n"
    )
    (tmp_path / "tone_metric.py").write_text(
        "def polite(expected: str, answer: str) -> bool:\n    return 'please' in answer\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    item = make_item()
    [polite] = registry.make(["polite"], context([item]))
    marks = polite.marks([(item, Answer(text="please wait")), (item, Answer(text="wait"))])
    assert [m.value for m in marks] == [1, 0] and polite.used.kind == "right-or-wrong"
    assert {"polite", "gone"} <= set(registry.names())
    with pytest.raises(UsageError, match="gone cannot be loaded"):
        registry.make(["gone"], context([item]))
