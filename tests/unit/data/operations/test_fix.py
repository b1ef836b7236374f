"""fix: what can be repaired is, and the rest is left out and logged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.paths import BUNDLED, DATASETS
from tests.targets import hosts
from tests.unit.data.operations.chat_files import chat, write

from orchestrate.data import Dataset
from orchestrate.data.operations.fix import fix

BAD = DATASETS / "formats" / "bad"
ORDERS = BUNDLED / "orders" / "train.jsonl"
REPAIRED = {
    "bad-role",
    "bad-content",
    "last-not-assistant",
    "weight-on-input",
    "lone-surrogate",
    "encoding",
    "mojibake",
    "control-character",
    "mixed-format",
    "duplicate-key",
}
LEFT_OUT = {
    "invalid-json": "invalid-json",
    "not-an-object": "not-an-object",
    "too-deep": "too-deep",
    "blank-line": "blank-line",
    "unknown-format": "unknown-format",
    "no-messages": "no-messages",
    "no-assistant": "no-assistant",
    "empty-content": "empty-content",
    "bad-weight": "bad-weight",
    "nothing-trained": "nothing-trained",
    "bad-tool-call": "bad-tool-call",
    "bad-arguments": "bad-arguments",
    "unanswered-call": "unanswered-call",
    "orphan-answer": "orphan-answer",
    "bad-tools": "bad-tools",
    "duplicate": "duplicate",
    "same-answers": "same-answers",
    "empty-completion": "empty-completion",
}


@pytest.mark.parametrize("code", sorted(REPAIRED))
def test_row_is_repaired(code: str, tmp_path: Path) -> None:
    report = fix(str(BAD / f"{code}.jsonl"), tmp_path / "out.jsonl")
    assert report.repaired == {code: 1}
    assert report.left_out == {}
    assert Dataset.open(report.output).problems == ()
    assert report.written == report.lines


@pytest.mark.parametrize("code", LEFT_OUT)
def test_row_beyond_repair_is_left_out_and_logged(code: str, tmp_path: Path) -> None:
    report = fix(str(BAD / f"{code}.jsonl"), tmp_path / "out.jsonl")
    assert report.left_out == {LEFT_OUT[code]: 1} and report.written == report.lines - 1
    (change,) = [json.loads(line) for line in Path(report.log).read_text().splitlines()]
    assert (change["row"], change["code"], change["action"]) == (report.lines, LEFT_OUT[code], "left out")
    assert Dataset.open(report.output).rows == report.written


def test_repairs_say_the_right_thing(tmp_path: Path) -> None:
    def last(code: str) -> list[dict[str, str]]:
        report = fix(str(BAD / f"{code}.jsonl"), tmp_path / f"{code}.jsonl")
        return json.loads(Path(report.output).read_text().splitlines()[-1])["messages"]

    assert last("bad-role")[0]["role"] == "user"
    assert last("bad-content")[0]["content"] == "5"
    assert [m["role"] for m in last("last-not-assistant")] == ["user", "assistant"]
    assert last("mojibake")[0]["content"] == "Café?"
    assert last("control-character")[0]["content"] == "ab"
    assert last("duplicate-key")[0]["content"] == "Good morning"
    assert last("lone-surrogate")[0]["content"] == "\ufffd"


def test_parts_under_other_names_are_repaired(tmp_path: Path) -> None:
    parts = [
        {"type": "input_text", "text": "What?"},
        {"type": "image_url", "image_url": "https://a.example/b.png"},
    ]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "A cat."}]}
    report = fix(write([json.dumps(row)], tmp_path / "a.jsonl"), tmp_path / "out.jsonl")
    assert report.repaired == {"bad-content": 2} and Dataset.open(report.output).problems == ()
    fixed = json.loads((tmp_path / "out.jsonl").read_text())["messages"][0]["content"]
    assert fixed == [
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}},
    ]


def test_neighbours_are_joined_for_together_only(tmp_path: Path) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "c"},
        ]
    }
    file = write([json.dumps(row)], tmp_path / "a.jsonl")
    assert fix(file, tmp_path / "plain.jsonl").repaired == {}
    assert fix(file, tmp_path / "together.jsonl", hosts=hosts("together")).repaired == {"not-alternating": 1}
    messages = json.loads((tmp_path / "together.jsonl").read_text())["messages"]
    assert [m["content"] for m in messages] == ["a\n\nb", "c"]


def test_clean_file_stays_as_it_is(tmp_path: Path) -> None:
    report = fix(str(ORDERS), tmp_path / "out.jsonl")
    assert report.repaired == report.left_out == {}
    assert Dataset.open(report.output).digest == Dataset.open(ORDERS).digest


def wrongly_read(text: str, encoding: str) -> str:
    """As Windows does, which has no character for five bytes and takes them as they are."""
    return "".join(bytes([byte]).decode(encoding, "ignore") or chr(byte) for byte in text.encode())


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
@pytest.mark.parametrize("text", ["Café", "a “quoted” naïve text", "it’s 5 €", "Привет", "日本語", "Zażółć"])
def test_damage_is_repaired_beside_what_is_whole(tmp_path: Path, text: str, encoding: str) -> None:
    damaged = "is damaged: é " + text
    whole = ("", "😀 for 5 €, “so” ")
    lines = [chat(before + wrongly_read(damaged, encoding), "ok") for before in whole]
    report = fix(write(lines, tmp_path / "a.jsonl"), tmp_path / "out.jsonl")
    assert report.repaired == {"mojibake": 2} and report.not_repaired == {}
    fixed = [
        json.loads(line)["messages"][0]["content"] for line in Path(report.output).read_text().splitlines()
    ]
    assert fixed == [before + damaged for before in whole]


@pytest.mark.parametrize("text", ["NÃO … “MINHA IRMÃ” CAFÉ” disse", "le château — «âge»"])
def test_whole_text_is_not_repaired(tmp_path: Path, text: str) -> None:
    file = write([chat(text, "ok")], tmp_path / "a.jsonl")
    report = fix(file, tmp_path / "out.jsonl")
    assert report.repaired == report.not_repaired == {}
    assert Dataset.open(report.output).digest == Dataset.open(file).digest


def test_a_row_about_encodings_is_not_repaired(tmp_path: Path) -> None:
    about = "Why do I see Ã© on my page? It is UTF-8 that was read as Latin-1."
    file = write([chat(about, "ok"), chat("CafÃ©", "ok")], tmp_path / "a.jsonl")
    report = fix(file, tmp_path / "out.jsonl")
    assert report.repaired == report.not_repaired == {"mojibake": 1}
    written = (tmp_path / "out.jsonl").read_text()
    assert about in written and "Café" in written


def test_a_row_that_holds_the_right_form_too_is_not_repaired(tmp_path: Path) -> None:
    both = chat("Why do I see Ã© instead of é in MySQL?", "ok")
    report = fix(
        write([both, chat("What is cafÃ©?", "It is café."), chat("CafÃ©", "é")], tmp_path / "a.jsonl"),
        tmp_path / "o.jsonl",
    )
    assert report.repaired == {"mojibake": 1} and report.not_repaired == {"mojibake": 2}


def test_a_weight_on_a_question_of_sharegpt_is_removed(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "a?", "weight": 1}, {"from": "gpt", "value": "b", "weight": 1}]
    report = fix(write([json.dumps({"conversations": turns})], tmp_path / "a.jsonl"), tmp_path / "o.jsonl")
    assert report.written == 1 and report.repaired == {"weight-on-input": 1}


def test_damage_beyond_repair_is_logged(tmp_path: Path) -> None:
    """The last byte of a closing quotation mark was thrown away."""
    report = fix(write([chat("â€œSoâ€ he said", "ok")], tmp_path / "a.jsonl"), tmp_path / "out.jsonl")
    assert report.repaired == report.not_repaired == {"mojibake": 1}
    logged = [json.loads(line)["action"] for line in Path(report.log).read_text().splitlines()]
    assert logged == ["repaired", "not repaired"]
    assert "“Soâ€ he said" in (tmp_path / "out.jsonl").read_text()


def test_fields_that_the_copy_has_not_are_logged(tmp_path: Path) -> None:
    row = json.loads(chat("Hi", "Hello")) | {"id": 7, "source": "web", **{f"x{i}": 1 for i in range(12)}}
    row["messages"][1]["mood"] = "glad"
    report = fix(write([json.dumps(row)], tmp_path / "a.jsonl"), tmp_path / "out.jsonl")
    assert (
        report.dropped == {"extra-fields": 1, "unread-column": 1}
        and report.repaired == {}
        and report.written == 1
    )
    details = [json.loads(line)["detail"] for line in Path(report.log).read_text().splitlines()]
    assert details[0] == "messages[1]: unused: mood"
    assert all(name in details[1] for name in row.keys() - {"messages"})


def test_only_messages_of_one_speaker_are_joined(tmp_path: Path) -> None:
    def said(role: str, text: str, **beside: str) -> dict[str, str]:
        return {"role": role, "content": text, **beside}

    def joined(*messages: dict[str, str]) -> list[dict[str, str]]:
        file = write([json.dumps({"messages": messages})], tmp_path / "a.jsonl")
        fix(file, tmp_path / "out.jsonl", hosts=hosts("together"))
        return json.loads((tmp_path / "out.jsonl").read_text())["messages"]

    ann, bob = said("user", "a", name="Ann"), said("user", "b", name="Bob")
    thought = said("assistant", "d", reasoning="Hm")
    apart = [ann, bob, said("assistant", "c"), thought]
    assert joined(*apart) == apart
    together = joined(ann, ann, said("assistant", "c"), said("assistant", "d"))
    assert together == [said("user", "a\n\na", name="Ann"), said("assistant", "c\n\nd")]
