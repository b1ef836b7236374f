"""Metrics against scikit-learn, sacrebleu and rouge-score, and by hand."""

from __future__ import annotations

import json
import random
import re
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.evaluation.conftest import answering, make_item, make_items

from orchestrate.errors import UsageError
from orchestrate.evaluation import Answer
from orchestrate.evaluation.metrics import Context, registry, text
from orchestrate.evaluation.metrics.labels import LabelSet
from orchestrate.evaluation.scoring import Side, score

Make = Callable[..., Context]

DECLINED = [
    "I am unable to help with that.",
    "I'm unable to assist.",
    "I am not able to assist with this.",
    "I won't be able to help.",
    "I’m not comfortable with this.",
    "I must decline.",
    "I'm going to have to decline this request.",
    "I cannot and will not help with that.",
    "I'd rather not answer.",
    "I would prefer not to discuss that.",
    "It would not be appropriate for me to help with that.",
    "It isn’t appropriate for me to answer.",
    "My guidelines prevent me from helping.",
    "My guidelines don't allow me to do that.",
    "I am declining this request.",
    "Helping with that isn't something I can do.",
    "I cannot in good conscience help.",
]
ANSWERED = [
    "I can't create your invoice until I have the amount.",
    "I'm sorry, but I can't create the invoice before you send the amount.",
    "I can't give you an exact date yet.",
    "Sales decline in winter; I think they will decline again.",
    "I can't help but admire it.",
    "I'd rather not wait: the parcel leaves at noon.",
    "It would not be appropriate for the guest to help.",
    "Traffic rules prevent accidents.",
    "Helping with that is something I can do.",
    "I'd rather answer by mail.",
    "I am declining in health.",
]
SAME_NUMBER = [
    ("1,000", "1000"),
    (".5", "0.5"),
    ("−5", "-5"),
    ("+5", "5"),
    ("１２", "12"),
    ("1,234.5", "1234.5"),
]
OTHER_NUMBER = [
    ("-5", "5"), ("−5", "5"), ("1.5", "1 5"), ("1.5", "15"), ("3,5", "35"), ("1e-3", "1e3"), ("10²", "102"),
    ("1/2", "1 2"), ("-$5", "$5"), ("x = -5", "x = 5"), ("between 3-5", "between 35"), ("2½", "21/2"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "expected", "answer", "value"),
    [
        ("exact_match", "yes", " yes\n", 1),
        ("exact_match", "yes", "Yes", 0),
        ("exact_match", "Café", "Cafe\u0301", 1),
        ("exact_match", "10²", "102", 0),
        ("contains", "Cafe\u0301", "im CAFÉ", 1),
        ("contains", "Cafe", "im Cafe\u0301", 0),
        ("json_match", '{"é": ["é"]}', '{"e\u0301": ["e\\u0301"]}', 1),
        ("json_match", '{"a": "b "}', '{"a": "b"}', 0),
        ("json_fields", '{"é": "é"}', '{"e\u0301": "e\u0301"}', 1),
        ("json_valid", "", '\ufeff{"a": 1}', 1),
        ("json_valid", "", '\ufeff```JSON\r\n{"a": 1}\r\n```\n', 1),
        ("json_valid", "", '~~~ Json\n{"a": 1}\n~~~', 1),
        ("json_valid", "", '```python\n{"a": 1}\n```', 0),
        ("json_match", '\ufeff{"a": 1}', '````JSON\n{"a": 1}\n````', 1),
        ("normalized_match", "The Café!", "the  café", 1),
        ("normalized_match", "ﬁne", "fine.", 1),
        ("normalized_match", "no", "not", 0),
        ("json_valid", "", '```json\n{"a": 1}\n```', 1),
        ("json_valid", "", '{"a": 1', 0),
        ("json_match", '{"a": 1, "b": [2]}', '```json\n{"b":[2],"a":1}\n```', 1),
        ("json_match", '{"a": 1}', '{"a": true}', 0),
        ("json_match", '{"a": [1]}', '{"a": [true]}', 0),
        ("json_match", '{"a": 5}', '{"a": 5.0}', 1),
        ("json_match", '[100, {"a": 0.10}]', '[1e2, {"a": 1e-1}]', 1),
        ("json_match", "[9007199254740993]", "[9007199254740992]", 0),
        ("json_match", "[9007199254740993]", "[9007199254740992.0]", 0),
        ("json_match", '["bool", 1]', "true", 0),
        ("json_match", "[]", "{}", 0),
        ("json_match", "[0]", "[false]", 0),
        ("json_match", "[1]", '["1"]', 0),
        ("json_match", "[1]", "[1e99999999999999999999]", 0),
        ("json_fields", '{"a": 20, "b": 1}', '{"a": 20.0, "b": true}', 0.5),
        ("json_match", '{"a": 1}', "not json", 0),
        ("json_match", '{"a": 1}', "[" * 100_000, 0),
        ("json_match", '{"a": 1}', "1" * 5000, 0),
        ("json_valid", "", '{"a": NaN}', 0),
        ("json_fields", '{"a": 1, "b": 2}', '{"a": 1, "b": 3}', 0.5),
        ("json_fields", '{"a": 1}', '{"a": 1, "extra": 0}', 0.5),
        ("contains", "Paris", "It is paris.", 1),
        ("token_f1", "the cat sat", "The cat!", 2 / 3),
        ("token_f1", "", "", 1),
        ("token_f1", "a", "", 0),
        (r"regex:\b\d{4}\b", "", "in 1998, perhaps", 1),
        (r"regex:answer is (?P<answer>\w+)", "four", "The answer is four.", 1),
        (r"regex:answer is (?P<answer>\w+)", "four", "The answer is Four.", 0),
        (r"regex:answer is (?P<answer>\w+)", "four", "The answer is five.", 0),
        ("regex:a,b", "", "a,b", 1),
        ("refusal", "", "I'm sorry, but I can't help with that.", 1),
        ("refusal", "", "I cannot provide that.", 1),
        *[("refusal", "", declined, 1) for declined in DECLINED],
        *[("refusal", "", answered, 0) for answered in ANSWERED],
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


@pytest.mark.parametrize("pattern", ["(a|a)*$", "^(a|aa)+$", r"^(\d|\d\d)+$", "(x|x)*$"])
def test_a_pattern_that_takes_for_ever_is_refused_before_anything_is_asked(
    context: Make, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.setattr(text, "LONGEST_SEARCH", 0.05)
    with pytest.raises(UsageError, match="takes more than"):
        registry.make([f"regex:{pattern}"], context([make_item("x")]))


@pytest.mark.parametrize("pattern", ["^(a+)+$", r"^(\w+\s?)*$"])
def test_nested_repetition_ends(context: Make, pattern: str) -> None:
    [made] = registry.make([f"regex:{pattern}"], context([make_item("x")]))
    [mark] = made.marks([(make_item("x"), Answer(text="a" * 2000 + "!"))])
    assert mark.value == 0


def test_a_pattern_that_is_slow_for_one_answer_ends(context: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LONGEST_SEARCH", 0.05)
    [made] = registry.make([r"regex:(\u00e9|\u00e9)*$"], context([make_item("x")]))
    with pytest.raises(UsageError, match="takes more than"):
        made.marks([(make_item("x"), Answer(text="é" * 2000 + "!"))])


def compared(name: str) -> Callable[[str, str], float | None]:
    """The metric as a function of (expected, answer)."""
    metric = registry.METRICS[name].make(registry.METRICS[name].used(name), cast("Any", None))
    return lambda expected, answer: metric.marks([(make_item(expected), Answer(text=answer))])[0].value


COMPARISONS = (
    *("exact_match", "normalized_match", "contains", "json_match", "json_fields"),
    *("token_f1", "rouge_1", "rouge_2", "rouge_l"),
)


@pytest.mark.slow
@given(st.text(), st.text())
def test_every_comparison_stays_in_its_range(a: str, b: str) -> None:
    for name in COMPARISONS:
        found = compared(name)(a, b)
        assert found is not None and 0 <= found <= 1
        assert registry.METRICS[name].kind == "graded" or found in (0, 1)
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
        assert compared(name)(expected, answer) == pytest.approx(
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
    side = Side("m", [(Answer(text=f" {a.upper()}\n"),) for a in answers])
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


LABELS = [
    ("-1", "0", "1"),
    ("C", "C#", "C++"),
    ("A", "A-"),
    ("*", "**"),
    ("1-0", "1:0"),
    ("=", "!="),
    ("3.5", "3,5"),
]


@pytest.mark.parametrize("seed", range(5))
def test_labels_that_differ_in_punctuation_are_those_of_scikit_learn(context: Make, seed: int) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    draw = random.Random(seed)
    labels = [label for alike in draw.sample(LABELS, k=2) for label in alike]
    expected = [*labels, *draw.choices(labels, k=60)]
    answers = draw.choices([*labels, "none"], k=len(expected))
    items = make_items(expected)
    found = score(
        items,
        [Side("m", [(Answer(text=a),) for a in answers])],
        registry.make(["accuracy", "f1_macro"], context(items)),
        {},
    )
    assert [measure.score.value for measure in found.measures] == pytest.approx(
        [
            accuracy_score(expected, answers),
            f1_score(expected, answers, labels=labels, average="macro", zero_division=0),
        ]
    )
    assert sorted(found.confusions[0].labels[: len(labels)]) == sorted(labels)


def test_case_matters_where_two_labels_differ_by_it_alone() -> None:
    folds = LabelSet.of(make_items(["Yes", "no", "caf\u00e9"]))
    assert [folds.index(t) for t in ("yes", " NO\n", "CAFE\u0301", "yes.")] == [2, 1, 0, 3]
    kept = LabelSet.of(make_items(["a", "A", "b"]))
    assert [kept.names[kept.index(t)] for t in ("a", "A", "b")] == ["a", "A", "b"]
    assert kept.index("B") == 3


@pytest.mark.parametrize("metric", ["normalized_match", "token_f1"])
def test_numbers_keep_their_sign_and_point(metric: str) -> None:
    compare = compared(metric)
    assert [compare(a, b) for a, b in SAME_NUMBER] == [1.0] * len(SAME_NUMBER)
    assert [pair for pair in OTHER_NUMBER if compare(*pair) == 1.0 or compare(*reversed(pair)) == 1.0] == []


@pytest.mark.parametrize(
    ("expected", "answer", "value"),
    [
        ("-5", "#### -5", 1),
        ("-5", "#### 5", 0),
        ("5", "#### -5", 0),
        ("1000", "#### 1,000.", 1),
        ("1000", "#### 1000.00", 1),
        ("1.5", "#### 15", 0),
        ("1.5", "#### 1,5", 0),
    ],
)
def test_a_captured_number_is_compared_by_value(expected: str, answer: str, value: float) -> None:
    assert text.matcher(r"#### (?P<answer>-?[\d.,]+)")(expected, answer) == value


def squad_f1(expected: str, answer: str) -> float:
    """F1 as in SQuAD's published evaluation script (v2.0)."""

    def tokens(given: str) -> list[str]:
        plain = "".join(c for c in given.lower() if c not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", plain).split()

    gold, said = tokens(expected), tokens(answer)
    same = sum((Counter(gold) & Counter(said)).values())
    if not gold or not said:
        return float(gold == said)
    if same == 0:
        return 0.0
    precision, recall = same / len(said), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def test_token_f1_is_squads() -> None:
    draw = random.Random(7)
    units = [
        "the",
        "An",
        "a",
        "don't",
        "well-known",
        "1,000",
        "42",
        "$5",
        "cat",
        "Sat",
        "(on)",
        '"mat"',
        "U.S.",
        "x;",
    ]

    def sentence() -> str:
        return " ".join(["cat", *draw.choices(units, k=draw.randint(1, 12))])

    for _ in range(500):
        expected, answer = sentence(), sentence()
        assert text.token_f1(expected, answer) == pytest.approx(squad_f1(expected, answer)), (
            expected,
            answer,
        )


def test_scripts_without_spaces_and_combining_marks(context: Make) -> None:
    chinese = [f"今天天气很好，我们一起去公园散步第{n}次吧。" for n in "一二三四五"]
    assert registry.choose(chinese) == "token_f1"
    assert registry.choose(["非常满意", "不满意"]) == "exact_match"
    for metric in ("token_f1", "rouge_1", "rouge_l"):
        compare = compared(metric)
        assert compare("我喜欢红茶", "我喜欢绿茶") == pytest.approx(0.8), metric
        assert compare("कि", "की") == 0, metric
        assert compare("caf\u00e9", "cafe\u0301") == 1, metric


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
        ([call("find", q="a", n=1.0), call("send", to="b")], 1, 1, 1),
        ([call("find", q="a", n=True), call("send", to="b")], 0, 1, 1 / 3),
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
    with pytest.raises(UsageError, match="not a valid JSON Schema"):
        registry.make([f"json_schema:{bad}"], context(items))


@pytest.mark.parametrize(
    ("schema", "leads"),
    [
        ({"properties": {"a": {"$ref": "#/definitions/none"}}}, False),
        ({"$ref": "other.json"}, False),
        ({"components": {"x": {"$ref": "#/none"}}, "$ref": "#/components/x"}, False),
        ({"$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}, True),
        ({"$ref": "http://json-schema.org/draft-07/schema#"}, True),
        ({"properties": {"$ref": {"type": "string"}}}, True),
    ],
)
def test_a_reference_that_leads_nowhere_is_found_before_anything_is_asked(
    context: Make, tmp_path: Path, schema: dict[str, Any], leads: bool
) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    if leads:
        [metric] = registry.make([f"json_schema:{file}"], context([make_item()]))
        assert metric.marks([(make_item(), Answer(text='{"a": 1}'))])[0].value == 1
        return
    with pytest.raises(UsageError, match="does not exist in this file"):
        registry.make([f"json_schema:{file}"], context([make_item()]))


def test_the_metric_is_chosen_by_the_answers(context: Make) -> None:
    for expected, name in (
        (['{"a": 1}', "[]"], "json_match"),
        (["yes", "no way"], "exact_match"),
        (["a long sentence with many words in it", "no"], "token_f1"),
    ):
        assert registry.auto(context(make_items(expected))) == name
    mixed = [*make_items(["yes", "no"]), make_item("", expected_calls=(call("find", q="a"),))]
    assert registry.auto(context(mixed)) == "tool_calls"
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
    with pytest.raises(UsageError, match="uses item"):
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
    assert [m.value for m in marks] == [1, 0.5, None, None]
    assert metric.used.unfit == "the grading model did not rate 2 of a contender's 4 answers"
    assert "not a number from 1 to 5" in marks[2].note
    assert "could not parse the grading model's answer" in marks[3].note
    assert len(seen) == 4
    metric.marks(pairs)
    assert len(seen) == 4, "answers of a model that grades are kept as those of a contender are"


def test_a_failed_request_to_a_grading_model_is_no_score(context: Make, tmp_path: Path) -> None:
    """The answers would count as wrong for what a host did. What an answer lacks still counts 0."""
    prompt = [{"role": "user", "content": "Rate {{ sample.output_json.total }}."}]
    rated = {"type": "score_model", "model": "m", "input": prompt}
    parts: dict[str, Any] = {
        "model": rated,
        "same": {
            "type": "string_check",
            "operation": "like",
            "input": "{{ sample.output_text }}",
            "reference": "1",
        },
    }
    model = replace(
        answering(str),
        ask=lambda qs: [
            Answer(text="", error="HTTP 500") if "13" in q.messages[0].content else Answer(text='"result": 1')
            for q in qs
        ],
    )
    items = make_items(["x"] * 12)
    texts = ['{"total": 13}', "no JSON", *['{"total": 1}'] * 10]
    pairs = [(i, Answer(text=t)) for i, t in zip(items, texts, strict=True)]
    for made in (rated, {"type": "multi", "graders": parts, "calculate_output": "(model + same) / 2"}):
        (tmp_path / "g.json").write_text(json.dumps(made))
        [metric] = registry.make([f"grader:{tmp_path}/g.json"], context(items, respondent=lambda *_: model))
        marks = metric.marks(pairs)
        assert [m.value for m in marks] == [None, 0, *[1.0] * 10]
        assert "HTTP 500" in marks[0].note and metric.used.unfit is None, "one of twelve may be missing"


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
    with pytest.raises(UsageError, match="returned 2 for item"):
        half.marks([(item, Answer(text="abcd"))])
    [broken] = registry.make([f"{path}:broken"], context([item]))
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        broken.marks([(item, Answer(text=""))])
    for wrong, why in (
        (f"{path}:nothing", "has no nothing"),
        (f"{tmp_path}/no.py:x", "the Python file .* does not exist"),
    ):
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
    with pytest.raises(UsageError, match="could not load the metric gone"):
        registry.make(["gone"], context([item]))
