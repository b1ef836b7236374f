"""Bad rows are found, named by a stable code, and kept out of the examples."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.paths import DATASETS

from orchestrate.data import Dataset
from orchestrate.data.operations.check import CheckOptions, check
from orchestrate.data.passes.scan import ScanTask, scan
from orchestrate.data.rows import CODES
from orchestrate.data.rows.content import PATTERNS, candidates, confirmed, is_damaged, plain_candidates
from orchestrate.data.shapes.row_reader import canonical, reading
from orchestrate.types import Severity

BAD = DATASETS / "formats" / "bad"
ACROSS = {
    # need more than one file, or many rows; tested below
    "leakage",
    "prompt-leakage",
    "near-leakage",
    "near-duplicate",
    "label-imbalance",
    "label-spelling",
    "labels-unbalanced",
    "one-label",
    "few-rows",
    "unreviewed",
    "python-cells",
    "unread-column",  # of the whole file: test_unread
    "held-out",  # of the whole file: test_published
    "hidden-column",  # needs a mapping: test_data_containers
}


def _row(question: str, answer: str) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}) + "\n"


def test_each_code_has_a_fixture() -> None:
    assert {p.stem for p in BAD.iterdir()} == set(CODES) - ACROSS


@pytest.mark.parametrize("file", sorted(BAD.iterdir()), ids=lambda p: p.stem)
def test_bad_row_is_found(file: Path) -> None:
    code = file.stem
    report = check({"train": str(file)}, CheckOptions(hosts=()))
    found = [p for p in report.problems if p.code == code and p.row is not None]
    last = report.files[0].lines
    assert {p.row for p in found} == {last}, report.problems
    assert found[0].severity is CODES[code].severity
    assert found[0].fix and found[0].source == str(file)
    # Rows with an error are in no output; others are.
    data = Dataset.open(file)
    kept = [number for number, _ in data.numbered()]
    broken = CODES[code].severity is Severity.ERROR or code == "blank-line"
    assert (last not in kept) == broken


@pytest.mark.parametrize("weight", [0, 0.0, 0.5, 1, None])
def test_a_row_of_weight_0_trains_nothing(weight: float | None, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [json.loads(_row(f"question {n}?", f"answer {n}")) | {"weight": weight} for n in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = check({"train": str(file)}, CheckOptions(hosts=()))
    found = [(p.row, p.field) for p in report.problems if p.code == "nothing-trained"]
    assert found[:1] == ([(1, "weight")] if weight == 0 else [])
    assert report.files[0].rows == (0 if weight == 0 else 12)


def test_all_problems_of_a_row_are_told_at_once(tmp_path: Path) -> None:
    row = {
        "messages": [
            {"role": "bot", "content": "x"},
            {"role": "user", "content": 5},
            {"role": "user", "content": "y"},
        ]
    }
    file = tmp_path / "a.jsonl"
    file.write_text(_row("Hi", "Hello") + json.dumps(row) + "\n")
    problems = Dataset.open(file).problems
    assert {(p.code, p.field) for p in problems} == {
        ("bad-role", "messages[0].role"),
        ("bad-content", "messages[1].content"),
        ("no-assistant", "messages[0].role"),
    }


@pytest.mark.parametrize(
    ("parameters", "code", "message"),
    [
        ({"type": "object", "properties": []}, "bad-tools", "`properties` is not an object"),
        ({"type": "object", "properties": {"a": "string"}}, "bad-tools", "a property is not a schema"),
        ({"type": "object", "required": "a"}, "bad-tools", "`required` is not a list of names"),
        ({"type": "object", "properties": {"a": {"items": {"type": "decimal"}}}}, "odd-tool", "'decimal'"),
        ({"type": "object", "properties": {}, "required": ["a"]}, "odd-tool", "`required` lists 'a'"),
        ({"type": "object", "properties": {"a": {"type": ["string", "null"]}, "b": True}}, None, ""),
    ],
)  # fmt: skip
def test_tool_schemas(parameters: object, code: str | None, message: str, tmp_path: Path) -> None:
    row = json.loads(_row("Hi", "Hello"))
    row["tools"] = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(row) + "\n")
    found = Dataset.open(file).problems
    assert [p.code for p in found] == ([code] if code else [])
    assert not code or message in found[0].message


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I\u2019m sorry, I can\u2019t assist with that request.", True),
        ("I cannot help you with that.", True),
        ("As an AI assistant, I have no body.", True),
        ("I'm sorry, the shop is closed today.", False),
        ("I can help with that!", False),
    ],
)
def test_refusals_are_looked_for_in_answers_only(text: str, refuses: bool, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    pair = {"prompt": "q", "chosen": "Good", "rejected": text}
    for row, found in ((_row("Hi", text), refuses), (_row(text, "Hello"), False), (json.dumps(pair), False)):
        file.write_text(row.rstrip() + "\n")
        codes = check({"train": str(file)}, CheckOptions(hosts=())).files[0].counts
        assert ("refusal" in codes) == found, row


def test_problems_stay_bounded_but_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(_row("Hi", "Hello") + "{]\n" * 5000)
    data = Dataset.open(file)
    shown = [p for p in data.problems if p.row is not None]
    rest = [p for p in data.problems if p.row is None]
    assert len(shown) == 100 and [p.message for p in rest] == ["4,900 more like this"]


def test_mixed_formats_are_counted(tmp_path: Path) -> None:
    other = '{"prompt": "a", "completion": "b"}\n'
    file = tmp_path / "a.jsonl"
    file.write_text(_row("Hi", "Hello") * 5 + other * 2)
    report = check({"train": str(file)}, CheckOptions(hosts=()))
    whole = [p.message for p in report.problems if p.code == "mixed-format" and p.row is None]
    assert whole == ["the file mixes formats. Rows per format: openai-chat 5, prompt-completion 2"]


def test_leakage_between_splits(tmp_path: Path) -> None:
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_text(_row("a", "1") + _row("b", "2") + _row("c", "3"))
    test.write_text(_row("z", "9") + _row("b", "2") + _row("c", "other"))
    report = check({"train": str(train), "test": str(test)}, CheckOptions(hosts=()))
    leaks = {(p.code, p.row, p.source) for p in report.problems if "leakage" in p.code}
    assert leaks == {("leakage", 2, str(test)), ("prompt-leakage", 3, str(test))}
    assert not report.ok


def test_near_duplicates_within_and_between(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(120)]
    long, other = " ".join(words), " ".join(reversed(words))
    near = long.replace("word60", "changed")
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_text(_row("a", long) + _row("b", other) + _row("a", near))
    test.write_text(_row("b", other.replace("word7 ", "changed ")) + _row("q", "short and different"))
    report = check({"train": str(train), "test": str(test)}, CheckOptions(hosts=(), near=True))
    found = {(p.code, p.row) for p in report.problems if p.code.startswith("near")}
    assert found == {("near-duplicate", 3), ("near-leakage", 1)}


def test_uneven_labels(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(_row(f"text {i}", "yes" if i % 20 else "no") for i in range(400)))
    report = check({"train": str(file)}, CheckOptions(hosts=()))
    (found,) = [p for p in report.problems if p.code == "label-imbalance"]
    assert "'yes' 380 times, 'no' 20 times" in found.message
    even = tmp_path / "b.jsonl"
    even.write_text("".join(_row(f"text {i}", "yes" if i % 2 else "no") for i in range(400)))
    assert "label-imbalance" not in {
        p.code for p in check({"train": str(even)}, CheckOptions(hosts=())).problems
    }


def test_few_rows_is_said(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(_row(f"q {i}", f"answer {i}") for i in range(20)))
    report = check({"train": str(file)})
    assert "few-rows" in {p.code for p in report.problems} and report.ok
    (told,) = [p.message for p in report.problems if p.code == "few-rows"]
    assert "without a common format" not in told, "nobody looked whether the answers have one"


def test_secrets_are_not_repeated_in_messages() -> None:
    report = check({"train": str(BAD / "secret.jsonl")}, CheckOptions(hosts=()))
    assert "abcdefghij" not in report.to_json().decode()


@pytest.mark.parametrize(
    "harmless",
    [
        "order 1234 5678 9012 3456 7",  # no Luhn check digit
        "mail someone@example.com",
        "the year 2024-12-31 and 10.000.000",
        "a mask-sk-learn word",
        "call 212-555-0142 in the film, or 1234-567-8901, or version 212.555.1234.1",
        "postgres://app:${DB_PASSWORD}@db/app and postgres://user:password@localhost/x",
        "@final\n@dataclasses.dataclass",
        "A palavra \u00abIRM\u00c3\u00bb.",
    ],
)
def test_harmless_text_is_left_alone(harmless: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(_row("Hi", harmless))
    codes = {p.code for p in check({"train": str(file)}, CheckOptions(hosts=())).problems}
    assert codes == {"few-rows"}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("call (212) 555-7142 today", "personal-data"),
        ("call 212-456-7890.", "personal-data"),
        ("1.212.456.7890", "personal-data"),
        ("postgres://user:pw@host/db", "secret"),
        ("https://bot:s3cr3t!@git.corp.com/x.git", "secret"),
        ("redis://:hunter2@cache:6379", "secret"),
        ("write to ann:ann@mail.com", "personal-data"),
    ],
)
def test_numbers_and_passwords_without_a_mark_are_found(text: str, code: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(_row("Hi", text))
    found = {p.code for p in check({"train": str(file)}, CheckOptions(hosts=())).problems}
    assert found == {"few-rows", code}


def test_spellings_of_one_label_are_told(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    labels = ["bug"] * 6 + ["BUG "] * 2 + ["N/A", "n/a", "feature", "feature"]
    file.write_text("".join(_row(f"ticket {n}", label) for n, label in enumerate(labels)))
    [bug, none] = [
        p.message
        for p in check({"train": str(file)}, CheckOptions(hosts=())).problems
        if p.code == "label-spelling"
    ]
    assert bug.startswith("'bug' (6) and 'BUG ' (2)") and "'n/a' (1)" in none
    file.write_text("".join(_row(f"ticket {n}", f"{label} {n}") for n, label in enumerate(labels)))
    codes = {p.code for p in check({"train": str(file)}, CheckOptions(hosts=())).problems}
    assert "label-spelling" not in codes, "these are no labels"


@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("caf\u00c3\u00a9", "mojibake"),
        ("so \u00e2\u20ac\u201c so", "mojibake"),
        ("\u00c3\u2030cole", "mojibake"),
        ("a\ufffdb", "replacement-character"),
    ],
)
def test_damage_is_found_however_json_spells_it(text: str, code: str, escaped: bool, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]}
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(row, ensure_ascii=escaped) + "\n")
    assert check({"train": str(file)}, CheckOptions(hosts=())).files[0].counts == {code: 1}


@pytest.mark.parametrize("line", ['{"a": "x}', '{"a": "x\t"}', "{"])
def test_broken_json_is_told_with_its_column_once(line: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(_row("Hi", "Ho") + line + "\n")
    [found] = [p for p in Dataset.open(file).problems if p.code == "invalid-json"]
    assert " at column " in found.message and "at at" not in found.message


def test_secret_behind_an_escaped_newline_is_found(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(_row("Hi", "line\nghp_" + "a1B2" * 9))
    assert "secret" in {p.code for p in check({"train": str(file)}, CheckOptions(hosts=())).problems}


_ALL = """
import sys
sys.modules.update({modules!r})
from orchestrate.data.operations.check import CheckOptions, check
from orchestrate.data.rows.content import candidates
candidates(b"", [0])  # builds the automaton, where it can, which few bytes are not worth
for file in {files!r}:
    for p in check({{"train": file}}, CheckOptions(hosts=())).problems:
        print(p.code, p.row, p.message)
"""


@pytest.mark.slow
def test_findings_do_not_depend_on_hyperscan() -> None:
    """The filter is only a filter: with and without the package the same rows are found."""
    files = [str(file) for file in sorted(BAD.iterdir())]

    def told(modules: dict[str, None]) -> str:
        script = _ALL.format(modules=modules, files=files)
        return subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout

    assert find_spec("hyperscan") is not None
    assert told({"hyperscan": None}) == told({}) and "secret 4" in told({})


_SIEVED = [p for p in PATTERNS if p.code in ("secret", "personal-data")]
_MATCHES = st.sampled_from(_SIEVED).flatmap(lambda p: st.from_regex(p.regex, fullmatch=True))
_NUMBERS = st.sampled_from(
    [
        b"4111 1111 1111 1111",
        b"3782-822463-10005",
        b"5555555555554444",
        b"DE89 3704 0044 0532 0130 00",
        b"a.b@c",
    ]
)
_AROUND = st.text(st.sampled_from('\n\t"\\/ \x00aZ09-_.,é@ß日'), max_size=3)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), _AROUND, _AROUND, st.randoms(use_true_random=False))
@pytest.mark.parametrize("number", [i for i, p in enumerate(PATTERNS) if p not in _SIEVED])
def test_what_matches_is_a_candidate(
    number: int,
    data: st.DataObject,
    before: str,
    after: str,
    case: random.Random,
) -> None:
    """In whatever case a text has it, where its pattern ignores case."""
    found = data.draw(st.from_regex(PATTERNS[number].regex.removeprefix(b"(?i)"), fullmatch=True))
    if PATTERNS[number].caseless:
        found = bytes(c ^ 32 if chr(c).isalpha() and c < 128 and case.random() < 0.5 else c for c in found)
    text = before.encode() + found + after.encode()
    if confirmed(text, [number]):
        block = b"first\n" + text + b"\nlast"
        for filtered in (candidates, plain_candidates):  # with hyperscan and without
            assert (1, number) in filtered(block, [0, 6, 7 + len(text)])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@example(parts=[("\x00", b"4111 1111 1111 1111", ""), ("\x1f", b"4111111111111111", "")])
@given(st.lists(st.tuples(_AROUND, st.one_of(_MATCHES, _NUMBERS), _AROUND), min_size=1, max_size=40))
def test_the_filter_lets_no_finding_pass(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[str, bytes, str]]
) -> None:
    """Each pattern, tried on the text itself, finds what the pass over JSON finds."""
    texts = [before + found.decode("latin-1") + after for before, found, after in parts]
    file = tmp_path_factory.mktemp("filter") / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    part = scan(ScanTask(str(file), 0, file.stat().st_size, "text", content=True))
    numbers = [i for i, p in enumerate(PATTERNS) if p in _SIEVED]
    found = {(p.row, p.message) for p in part.problems if p.code in ("secret", "personal-data")}
    assert found == {
        (row, p.message) for row, text in enumerate(texts, 1) for p in confirmed(text.encode(), numbers)
    }


_LATIN = st.text(
    st.sampled_from("\u00c3\u00e2\u00a9\u00bb\u20ac\u201c\u2030\u00f0\u0178eA .\u65e5"), max_size=9
)


@settings(max_examples=300, deadline=None)
@given(_LATIN)
def test_damage_is_found_where_it_could_be_repaired(text: str) -> None:
    number = next(i for i, p in enumerate(PATTERNS) if p.code == "mojibake")
    block = text.encode()
    assert bool(confirmed(block, [number])) == is_damaged(text)
    assert not is_damaged(text) or (0, number) in candidates(block, [0]) & plain_candidates(block, [0])


def test_scans_of_several_threads_do_not_disturb_one_another() -> None:
    """As those of a server are, which looks through the files of several requests at once."""
    block = b"".join(b"mail jane.doe%d@example.com, I'm sorry, as an AI\n" % i for i in range(200))
    found = candidates(block, [0])
    with ThreadPoolExecutor(8) as pool:
        assert all(again == found for again in pool.map(lambda _: candidates(block, [0]), range(400)))


def codes_of(tmp_path: Path, *rows: Mapping[str, object]) -> list[tuple[str, int | None, str | None]]:
    """The problems of rows of a file, but for those of a file so small."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = check({"train": str(file)}, CheckOptions(hosts=()))
    return [(p.code, p.row, p.field) for p in report.problems if p.code != "few-rows"]


def test_pairs_that_are_judged_both_ways_contradict_one_another(tmp_path: Path) -> None:
    tea = {"prompt": "A drink?", "chosen": "Tea.", "rejected": "Coffee."}
    coffee = tea | {"chosen": "Coffee.", "rejected": "Tea."}
    water = tea | {"chosen": "Water."}
    assert codes_of(tmp_path, tea, water, coffee) == [("conflict", 3, None)]


def test_rows_with_one_prompt_and_two_references_contradict_one_another(tmp_path: Path) -> None:
    def graded(number: int, reference: str) -> dict[str, object]:
        prompt = [{"role": "user", "content": "2 + 2?"}]
        return {"messages": prompt, "id": number, "source": f"s{number}", "reference": reference}

    assert codes_of(tmp_path, graded(1, "4"), graded(2, "4"), graded(3, "5")) == [("conflict", 3, None)]


FIND = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}


def calling(*said: str) -> dict[str, object]:
    """`a,b` calls, `=a` answers; else a role."""
    messages: list[dict[str, object]] = []
    for one in said:
        if one.startswith("="):
            messages.append({"role": "tool", "tool_call_id": one[1:], "content": "3"})
        elif one in ("user", "assistant"):
            messages.append({"role": one, "content": "Well."})
        else:
            calls = [
                {"id": name, "type": "function", "function": {"name": "find", "arguments": "{}"}}
                for name in one.split(",")
            ]
            messages.append({"role": "assistant", "tool_calls": calls})
    return {"messages": messages, "tools": [FIND]}


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (("user", "a,b", "=b", "=a", "assistant"), []),
        (("user", "a", "user", "=a", "assistant"), [("unanswered-call", 1, "messages[3]")]),
        (("user", "a,b", "=a", "assistant", "=b", "assistant"), [("unanswered-call", 1, "messages[4]")]),
        (("user", "a", "=a", "a", "=a", "assistant"), []),
        (("user", "a,a", "=a", "assistant"), [("bad-tool-call", 1, "messages[1].tool_calls[1].id")]),
    ],
)
def test_answers_follow_their_calls(
    tmp_path: Path, said: tuple[str, ...], found: list[tuple[str, int, str]]
) -> None:
    assert codes_of(tmp_path, calling(*said)) == found


def test_notes_on_a_conversation_make_no_prompt_of_it(tmp_path: Path) -> None:
    said = [("user", "Hi"), ("assistant", "Hello"), ("user", "Thanks")]
    row = {"messages": [{"role": role, "content": text} for role, text in said], "id": "7", "source": "web"}
    assert codes_of(tmp_path, row) == [
        ("last-not-assistant", 1, "messages[2].role"),
        ("unread-column", None, "id,source"),
    ]
    assert codes_of(tmp_path, row | {"reference": "You are welcome"}) == []


def test_the_digits_after_a_decimal_point_are_no_card() -> None:
    [card] = [i for i, p in enumerate(PATTERNS) if p.what == "a payment card number"]
    assert confirmed(b"card no.4111111111111111", [card]) and confirmed(b"4111 1111 1111 1111", [card])
    assert not confirmed(b"a score of 0.4111111111111111 or 0,4111111111111111", [card])


def test_content_is_found_wherever_its_text_is(tmp_path: Path) -> None:
    """At the start of a text of any length, which precedes it in the canonical form and may be a digit; in
    several parts; and in a row with a number that only JSON holds, which escapes its texts."""
    card, parameters = "4111111111111111", {"type": "object", "maximum": 10**30}
    answer = {"role": "assistant", "content": "a"}
    asked: list[Any] = [card + " " * n for n in range(600)]
    asked.append([{"type": "text", "text": part} for part in (card[:9], card[9:])])
    rows: list[dict[str, Any]] = [{"messages": [{"role": "user", "content": said}, answer]} for said in asked]
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    rows.append({"messages": [{"role": "user", "content": "a\0b"}, answer], "tools": [tool]})
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    candidates(b"", [0])  # loads the automaton, so that small files are searched with it too
    counts = check({"train": str(file)}).files[0].counts
    assert (counts["personal-data"], counts["control-character"]) == (601, 1)
    forms = [canonical(reading("openai-chat").read(json.dumps(row).encode()).example) for row in rows[:600]]
    assert all(candidates(form, [0]) and plain_candidates(form, [0]) for form in forms)
