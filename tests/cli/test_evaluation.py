"""`orchestrate eval` over models that answer on loopback: verdicts, gates, reports, limits, hostility."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from tests.chat_host import ChatHost, chat_host
from tests.cli.conftest import Cli

from orchestrate.commands.setup.schema import of

HOSTILE = "\x1b[2J\x1b]0;owned\x07<script>alert(1)</script> ]]> &amp; | `x` \u202e" + "A" * 1_000_000


@pytest.fixture(scope="module")
def host() -> Iterator[ChatHost]:
    """Rows ask for `N`. The model `good` says it, `bad` does for two in three, `rude` says something else."""

    def writes(_: int, body: dict[str, Any]) -> str | int | dict[str, Any]:
        said = body["messages"][-1]["content"].removeprefix("say ")
        if body["model"] == "bad":
            return said if int(said) % 3 else "no"
        if body["model"] == "thinker":
            for name, code in (("temperature", "unsupported_value"), ("max_tokens", "unsupported_parameter")):
                if name in body:
                    return {"message": "no", "type": "invalid_request_error", "param": name, "code": code}
        if body["model"] == "moving":
            asked = sum(sent["model"] == "moving" for sent in found.bodies)
            return said if asked <= 120 else "other"
        if body["model"] == "strict":
            return said if int(said) % 2 else 400
        if body["model"] == "shy":
            return 400 if said == "4" else said
        return HOSTILE if body["model"] == "rude" else said

    with chat_host() as found:
        found.writes = writes
        yield found


@pytest.fixture
def rows(tmp_path: Path) -> str:
    lines = [
        {
            "messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"{i}"}],
            "user": f"u{i % 10}",
            "tag": ["even", "odd"][i % 2],
        }
        for i in range(60)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "t.jsonl"


def models(host: ChatHost, *names: str) -> list[str]:
    return [word for name in names for word in ("--model", f"{host.url}={name}")]


@pytest.mark.slow
def test_a_better_model_ships_and_a_worse_one_stops_a_build(
    cli: Cli, host: ChatHost, rows: str, tmp_path: Path
) -> None:
    asked = (
        "eval",
        "--test",
        rows,
        *models(host, "good", "bad"),
        "--metrics",
        "exact_match,length",
        "--gate",
    )
    good = cli(*asked, "--against", f"{host.url}=bad", "--json", "--junit", "j.xml", "-o", "r.md")
    assert good.code == 0, good.err
    jsonschema.validate(good.json, of("eval"))
    [verdict] = good.json["verdicts"]
    assert verdict["decision"] == "ship" and "20 gained and 0 lost" in verdict["reasons"][0]
    assert good.json["items"] == 60 and len(good.json["items_digest"]) == 64
    assert "with 60 rows you can detect differences of 14 points or more" in good.err
    assert "the price per token is unknown" in good.err
    report = (tmp_path / "r.md").read_text()
    assert "good: ship**" in report and "| exact_match |" in report and "| 20 | 0 | &lt;0.0001 |" in report
    assert ElementTree.parse(tmp_path / "j.xml").getroot().attrib["failures"] == "0"

    worse = cli(*asked, "--against", f"{host.url}=good", "--junit", "j.xml")
    assert worse.code == 1 and "DO NOT SHIP" in worse.out and "20 rows regressed with" in worse.out
    root = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert root.attrib["failures"] == "1" and "0 gained and 20 lost" in (root.findtext(".//failure") or "")
    assert len(host.bodies) == 120, "the second command asked nothing"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (("-o", "r.pdf"), "the file extension sets the format:"),
        (("--junit", "no/such/j.xml"), "does not exist"),
        (("--target", "90"), "--target 0.9 for 90%"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_paid_for(
    cli: Cli, host: ChatHost, rows: str, given: tuple[str, ...], why: str
) -> None:
    before = len(host.bodies)
    refused = cli("eval", "--test", rows, *models(host, "good"), *given)
    assert refused.code == 2 and why in " ".join(refused.err.split()) and len(host.bodies) == before


@pytest.mark.slow
def test_too_few_rows_are_said_to_be_too_few(cli: Cli, host: ChatHost, rows: str) -> None:
    asked = (
        "eval",
        "--test",
        rows,
        *models(host, "good", "bad"),
        "--against",
        f"{host.url}=bad",
        "--limit",
        "7",
    )
    told = cli(*asked, "--gate", "--json")
    [verdict] = told.json["verdicts"]
    assert told.code == 1 and verdict["decision"] == "not enough evidence"
    assert 7 < verdict["rows_needed"] < 30
    assert cli(*asked, "--gate", "--margin", "-0.9").code == 0
    aim = cli("eval", "--test", rows, *models(host, "bad"), "--target", "0.9", "--json")
    assert aim.json["verdicts"][0]["decision"] == "do not ship"
    none = cli("eval", "--test", rows, *models(host, "good"), "--gate")
    assert none.code == 1 and "--gate needs a verdict" in none.err


@pytest.mark.slow
def test_nothing_ships_for_the_questions_that_its_rival_was_refused(
    cli: Cli, host: ChatHost, rows: str
) -> None:
    asked = ("eval", "--test", rows, *models(host, "good", "strict"), "--against", f"{host.url}=strict")
    told = cli(*asked, "--limit", "12", "--gate", "--json")
    [verdict] = told.json["verdicts"]
    assert told.code == 1 and verdict["decision"] == "not enough evidence"
    assert told.json["differences"][0]["gained"] == 6


def test_a_model_has_the_name_that_it_is_given(cli: Cli, host: ChatHost, rows: str) -> None:
    asked = (
        "eval",
        "--test",
        rows,
        "--limit",
        "3",
        "--model",
        f"{host.url}=good as new",
        *models(host, "bad"),
    )
    told = cli(*asked, "--against", "bad", "--json")
    assert told.code == 0, told.err
    assert [c["name"] for c in told.json["contenders"]] == ["new", f"{host.url}=bad"]
    assert told.json["verdicts"][0]["contender"] == "new"
    same = cli(*asked, "--against", "new", "--json").json
    assert same["against"] == "new" and same["contenders"][0]["model"] == "good"


@pytest.mark.slow
def test_groups_and_slices(cli: Cli, host: ChatHost, rows: str) -> None:
    told = cli(
        "eval", "--test", rows, *models(host, "good", "bad"), "--cluster", "user", "--slices", "tag", "--json"
    ).json  # fmt: skip
    assert (told["cluster"], told["clusters"]) == ("user", 10)
    assert {m["slice"] for m in told["measures"]} == {"", "tag:even", "tag:odd"}
    assert {m["score"]["n"] for m in told["measures"] if m["slice"]} == {30}
    wrong = cli("eval", "--test", rows, *models(host, "good"), "--cluster", "usr")
    assert wrong.code == 2 and "one of its columns: tag, user" in wrong.err


def test_columns_of_ones_own_are_named(cli: Cli, host: ChatHost, tmp_path: Path) -> None:
    lines = "".join(f"T{i};say {i};{i}\n" for i in range(6))
    (tmp_path / "held.csv").write_text(f"Ticket ID;Message body;Team\n{lines}")
    asked = ("eval", "--test", "held.csv", *models(host, "good"), "--json")
    assert cli(*asked).code == 1, "its columns have names that tell nothing"
    named = ("--map", "question=Message body,answer=Team", "--ignore", "Ticket ID")
    told = cli(*asked, *named)
    assert told.code == 0, told.err
    assert [(m["score"]["value"], m["score"]["n"]) for m in told.json["measures"][:1]] == [(1.0, 6)]


def test_a_refused_question_counts_as_wrong_and_is_told(cli: Cli, host: ChatHost, rows: str) -> None:
    told = cli("eval", "--test", rows, *models(host, "shy"), "--json").json
    assert told["measures"][0]["score"]["value"] == pytest.approx(59 / 60)
    assert told["contenders"][0]["failed"] == 1 and "1 of 60 questions got" in told["notes"][0]


def test_a_model_that_takes_no_temperature_is_asked_without_and_that_is_told_once(
    cli: Cli, host: ChatHost, rows: str
) -> None:
    asked = ("eval", "--test", rows, *models(host, "thinker"), "--json")
    begun = len(host.bodies)
    told = cli(*asked).json
    assert told["measures"][0]["score"]["value"] == 1
    [first, second] = sorted(note for note in told["notes"] if "thinker: 60 of 60 answers: " in note)
    assert "max_completion_tokens was sent instead of max_tokens" in first
    assert "temperature was not sent" in second
    sent = [body for body in host.bodies[begun:] if body["model"] == "thinker"]
    assert len(sent) < 60 + 30, "only the first questions, which were sent at once, found out"
    assert all(body["max_completion_tokens"] == 512 for body in sent[-40:])
    again = cli(*asked).json
    assert again["notes"] == told["notes"] and len(host.bodies) == begun + len(sent)


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def test_answers_are_asked_for_in_a_format_that_is_a_part_of_their_key(
    cli: Cli, host: ChatHost, rows: str, tmp_path: Path
) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "object.json").write_text('{"type": "json_object"}')
    asked = ("eval", "--test", rows, "--limit", "4", *models(host, "good"), "--json")
    sent: list[Any] = []
    for more in ((), ("--response-format", "schema.json"), ("--response-format", "object.json")):
        begun = len(host.bodies)
        told = cli(*asked, *more).json
        assert len(host.bodies) == begun + 4, "each format has answers of its own"
        [format] = {json.dumps(body.get("response_format")) for body in host.bodies[begun:]}
        assert told["sampling"]["response_format"] == json.loads(format)
        sent.append(json.loads(format))
        cli(*asked, *more)
        assert len(host.bodies) == begun + 4
    named = {"name": "answer", "schema": SCHEMA, "strict": True}
    assert sent == [None, {"type": "json_schema", "json_schema": named}, {"type": "json_object"}]
    (tmp_path / "broken.json").write_text('{"type": "json_schema"}')
    assert cli(*asked, "--response-format", "broken.json").code == 2


@pytest.mark.slow
def test_asking_afresh_says_whether_the_host_changed_the_model(cli: Cli, host: ChatHost, rows: str) -> None:
    asked = ("eval", "--test", rows, *models(host, "moving"), "--json")
    first = cli(*asked).json
    same = cli(*asked, "--fresh").json
    assert any(f"gave the same answers to all 60 items as in {first['id']}" in note for note in same["notes"])
    moved = cli(*asked, "--fresh").json
    [told] = [note for note in moved["notes"] if "answered differently than in" in note]
    assert same["id"] in told and "60 of 60 answers differ. The host may have changed" in told
    assert not [note for note in cli(*asked).json["notes"] if "otherwise" in note]


def test_hostile_answers_do_no_harm(cli: Cli, host: ChatHost, rows: str, tmp_path: Path) -> None:
    asked = ("eval", "--test", rows, *models(host, "rude", "good"), "--limit", "5")
    told = cli(*asked, "--against", f"{host.url}=good", "-o", "r.html", "--junit", "j.xml")
    assert told.code == 0 and "\x1b" not in told.out and "\x07" not in told.out and len(told.out) < 20_000
    page = (tmp_path / "r.html").read_text()
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page and len(page) < 200_000
    assert "(1,000,0" in page, "the page says how long the answer was"
    ElementTree.parse(tmp_path / "j.xml")
    assert cli(*asked, "-o", "r.md").code == 0
    assert "\x1b" not in (tmp_path / "r.md").read_text()


def test_half_a_surrogate_pair_is_an_answer_that_is_kept(
    cli: Cli, host: ChatHost, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON can hold what UTF-8 cannot. Such an answer, or a refusal that quotes one, is paid for once."""
    refusal = {"error": {"message": "no: \ud83d", "code": "content_filter"}}
    monkeypatch.setattr(host, "writes", lambda number, body: "a\udc00b" if number % 2 else refusal)
    asked = ("eval", "--test", rows, *models(host, "half"), "--target", "0.5", "--limit", "4", "--json")
    told = cli(*asked)
    assert told.code == 0, told.err
    sent = len(host.bodies)
    text = Path(told.json["items_file"]).read_text(encoding="utf-8")
    assert "a\ufffdb" in text and "no: \ufffd" in text
    assert cli(*asked).code == 0 and len(host.bodies) == sent + told.json["contenders"][0]["failed"]


@pytest.mark.slow
def test_a_limit_on_cost(cli: Cli, rows: str, host: ChatHost) -> None:
    unknown = cli("eval", "--test", rows, *models(host, "good"), "--max-cost", "1", "--fresh")
    assert unknown.code == 6 and "price" in unknown.err and "--max-cost" in unknown.err
    priced = {"OPENAI_BASE_URL": host.url, "OPENAI_API_KEY": "a-key-of-tests"}
    before = len(host.bodies)
    dear = cli("eval", "--test", rows, "--model", "gpt-4o-mini", "--max-cost", "0.00001", **priced)
    assert dear.code == 6 and "the expected price" in dear.err and len(host.bodies) == before
    enough = cli("eval", "--test", rows, "--model", "gpt-4o-mini", "--max-cost", "1", "--json", **priced)
    assert enough.code == 0 and 0 < float(enough.json["contenders"][0]["usd"]) < 0.01
    assert "gpt-4o-mini: 60 requests; about $0.0" in enough.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "choose a run or a --model"),
        (("--metrics", "zz"), "known: auto"),
        (
            ("--metrics", "length", "--target", "3"),
            "cannot decide the verdict, because neither higher nor lower values are better",
        ),
        (("--samples", "3"), "are identical"),
        (("--against", "zz"), "matches none of the contenders"),
        (("--slices", "nothing"), "no row has a column named"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_asked(
    cli: Cli, host: ChatHost, rows: str, words: tuple[str, ...], why: str
) -> None:
    before = len(host.bodies)
    who = models(host, "good") if words else []
    told = cli("eval", "--test", rows, *who, *words)
    assert told.code == 2 and why in told.err and len(host.bodies) == before


def test_the_metrics_are_listed(cli: Cli) -> None:
    told = cli("eval", "--list").out.splitlines()
    assert {"exact_match", "bleu", "rouge_l", "f1_macro", "grader:FILE", "FILE.py:FUNCTION"} <= set(told)


def test_a_price_that_is_unknown_is_told_before_anything_is_paid(cli: Cli, host: ChatHost, rows: str) -> None:
    """Also that of a judge or an embedding model, which are asked last."""
    priced, before = ("--model", f"{host.url}=gpt-4.1-mini", "--max-cost", "1"), len(host.bodies)
    for metric in ("judge", "embedding"):
        done = cli("eval", "--test", rows, *priced, "--metrics", f"{metric}:{host.url}=unheard-of")
        assert (done.code, len(host.bodies), host.embedded) == (6, before, [])
        assert "unheard-of" in done.err and "--max-cost" in done.err


def test_vectors_are_asked_for_once(cli: Cli, host: ChatHost, rows: str) -> None:
    words = ("eval", "--test", rows, *models(host, "good"), "--metrics", f"embedding:{host.url}=e", "--json")
    first, again = cli(*words), cli(*words)
    assert first.code == again.code == 0 and first.json["measures"] == again.json["measures"]
    texts = [text for batch in host.embedded for text in batch]
    assert texts and len(texts) == len(set(texts))
