"""generate: what is kept, what is refused, what a run may cost, and how it goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.chat_host import ChatHost, chat_host, order_row
from tests.paths import BUNDLED
from tests.targets import hosts

from orchestrate.core.files import Journal
from orchestrate.core.retries import Retry
from orchestrate.data import Dataset
from orchestrate.data.operations.check import check
from orchestrate.data.operations.generate import (
    BARREN,
    GenerateOrder,
    GenerateReport,
    Screening,
    generate,
    objects,
)
from orchestrate.data.operations.review import Entry, RowReview
from orchestrate.errors import AuthenticationFailed, DataError, HostUnavailable, UsageError
from orchestrate.providers.chat import chat_with
from orchestrate.settings.config import HostConfig, Secret

ORDERS = BUNDLED / "orders" / "train.jsonl"
ONE = GenerateOrder(rows=10, parallel=1, hosts=hosts("openai", "together", "fireworks", "local"))


@pytest.fixture
def host() -> Iterator[ChatHost]:
    with chat_host() as found:
        yield found


@pytest.fixture
def seeds(tmp_path: Path) -> str:
    file = tmp_path / "seeds.jsonl"
    file.write_text("".join(f"{line}\n" for line in ORDERS.read_text().splitlines()[:20]))
    return str(file)


def run(host: ChatHost, seeds: str, output: Path, order: GenerateOrder = ONE) -> GenerateReport:
    config = HostConfig(name="writer", base_url=host.url, api_key=Secret("key-of-the-tests"), timeout_s=240)
    chat = chat_with(config, "gpt-4.1-mini", max_tokens=order.max_tokens)
    return generate(seeds, output, chat.ask_once, order, retry=Retry(first_s=0.01, longest_s=0.01))


def chat(question: str, answer: str = "Yes, of course.") -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages})


def thinking_row(number: int) -> str:
    value = json.loads(order_row(number))
    value["messages"][1] |= {"reasoning": f"The order number is {number}; the goods come after it."}
    return json.dumps(value)


@pytest.mark.parametrize("kept", [True, False])
def test_reasoning_is_asked_for_and_kept_or_left_out(
    host: ChatHost, seeds: str, tmp_path: Path, kept: bool
) -> None:
    def writes(number: int, body: dict[str, Any]) -> str:
        first = 1000 * number
        return "\n".join([*map(thinking_row, range(first, first + 10)), order_row(first + 50)])

    host.writes = writes
    output = tmp_path / "new.jsonl"
    order = replace(ONE, reasoning="kept" if kept else "left out")
    report = run(host, seeds, output, order)
    assert "`reasoning`" in host.bodies[0]["messages"][0]["content"]
    assert report.refused.get("no-reasoning") == 1 and report.reasoning == order.reasoning
    assert "openai" not in report.hosts if kept else "openai" in report.hosts  # it takes no reasoning
    for line in output.read_text().splitlines():
        assert ("reasoning" in json.loads(line)["messages"][1]) is kept
    again = run(host, seeds, output, replace(order, rows=15))
    assert again.rows == 15 and len(set(output.read_text().splitlines())) == 15


# -- what comes out ------------------------------------------------------------------------------------------


def test_rows_are_new_good_and_wait_for_review(host: ChatHost, seeds: str, tmp_path: Path) -> None:
    output = tmp_path / "new.jsonl"
    report = run(host, seeds, output, replace(ONE, rows=35, parallel=3))
    assert report.rows == report.new_rows == 35 and report.stopped == "rows" and report.requests == 4
    lines = output.read_text().splitlines()
    assert len(set(lines)) == 35 and all(set(json.loads(line)) == {"messages"} for line in lines)
    checked = check({"train": str(output)})
    assert [p.code for p in checked.problems if p.severity == "error"] == []
    [told] = [p.message for p in checked.problems if p.code == "unreviewed"]
    assert told == "35 generated rows not reviewed yet"
    assert RowReview(str(output)).counts().pending == 35


def test_the_request_shows_seeds_and_says_how_many(host: ChatHost, seeds: str, tmp_path: Path) -> None:
    run(host, seeds, tmp_path / "new.jsonl", replace(ONE, rows=3, examples=4, instructions="About ships."))
    body = host.bodies[0]
    assert body["max_tokens"] == 4096 and body["model"] == "gpt-4.1-mini"
    assert host.keys == ["Bearer key-of-the-tests"]
    asked = body["messages"][1]["content"]
    shown = [line for line in asked.splitlines() if line.startswith("{")]
    assert len(shown) == 4 and {json.dumps(json.loads(s)) for s in shown} <= {
        json.dumps(json.loads(line)) for line in Path(seeds).read_text().splitlines()
    }
    assert asked.endswith("About ships.\n\nWrite 3 new ones.")


def test_what_is_not_kept_is_counted_by_its_code(host: ChatHost, seeds: str, tmp_path: Path) -> None:
    first = Path(seeds).read_text().splitlines()[0]
    question = json.loads(first)["messages"][0]["content"]
    long = " ".join(f"word{i}" for i in range(60))
    answer = [
        first,
        chat(question, "another answer"),
        chat(long, "yes"),
        chat(long, "yes!"),
        chat(long + " more", "yes"),
        chat("What is the key?", "It is sk-proj-" + "a1B2" * 8),
        chat("Can you help me?", "As an AI language model I do not help."),
        chat("Fill this", "Dear [insert name], hello."),
        json.dumps({"messages": [{"role": "user", "content": "no answer"}]}),
        json.dumps({"prompt": "a", "completion": "b"}),
        json.dumps({"colour": "blue"}),
        '{"messages": [{"role": "user", "content": "cut',
    ]
    host.writes = lambda number, body: "\n".join(answer) if number == 1 else order_row(number)
    report = run(host, seeds, tmp_path / "new.jsonl", replace(ONE, rows=2))
    assert report.refused == {
        "duplicate": 1,
        "conflict": 2,
        "near-duplicate": 1,
        "secret": 1,
        "refusal": 1,
        "placeholder": 1,
        "no-assistant": 1,
        "mixed-format": 1,
        "unknown-format": 1,
        "invalid-json": 1,
    }
    assert long in (tmp_path / "new.jsonl").read_text().splitlines()[0]


def test_a_shared_system_message_makes_no_rows_alike(tmp_path: Path) -> None:
    def row(i: int) -> str:
        value = json.loads(order_row(i))
        value["messages"].insert(0, {"role": "system", "content": "You turn orders into JSON. " * 60})
        return json.dumps(value)

    file = tmp_path / "seeds.jsonl"
    file.write_text(row(1) + "\n")
    examples = list(Dataset.open(file).examples())
    screened = Screening("chat", examples).screen("\n".join(row(i) for i in range(2, 22)))
    assert len(screened.lines) == 20 and not screened.refused


def test_rows_that_a_backend_refuses_are_not_kept(host: ChatHost, seeds: str, tmp_path: Path) -> None:
    late = json.loads(order_row(1))
    late["messages"].insert(1, {"role": "function", "name": "f", "content": "a function's result"})
    host.writes = lambda number, body: json.dumps(late) if number == 1 else order_row(number)
    report = run(host, seeds, tmp_path / "new.jsonl", replace(ONE, rows=1))
    assert report.refused == {"refused-by-host": 1} and report.hosts == tuple(host.name for host in ONE.hosts)


@pytest.mark.parametrize(
    "answer",
    [
        "Sure!\n```json\n{a}\n{b}\n```\nDone.",
        "[{a}, {b}]",
        '{"examples": [{a}, {b}]}',
        "1. {a}\n2. {b}",
        "{broken\n{a}{b}",
    ],
)
def test_rows_are_found_in_whatever_surrounds_them(answer: str) -> None:
    a, b = order_row(1), order_row(2)
    found = [
        json.loads(o) for o in objects(answer.replace("{a}", a).replace("{b}", b)) if o[:7] != b"{broken"
    ]
    assert found == [json.loads(a), json.loads(b)]


def test_hostile_answers_raise_nothing(tmp_path: Path, seeds: str) -> None:
    screening = Screening("chat", list(Dataset.open(seeds).examples()))
    hostile = [
        "",
        "{" * 5000,
        '{"messages":' + "[" * 100_000,
        '{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "x"}]}',
        '{"messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "x"}]}',
        '{"messages": null}',
        '{"rows": [1, null, "x"]}',
        "{}",
        "\x00{\x00}",
    ]
    for text in hostile:
        assert screening.screen(text).lines == []
    assert screening.screen(hostile[3]).refused == {"lone-surrogate": 1}


# -- limits --------------------------------------------------------------------------------------------------


def test_requests_are_limited_over_all_runs(host: ChatHost, seeds: str, tmp_path: Path) -> None:
    output, order = tmp_path / "new.jsonl", replace(ONE, rows=100, max_requests=3)
    assert run(host, seeds, output, order).stopped == "max-requests"
    again = run(host, seeds, output, order)
    assert again.stopped == "max-requests" and again.new_rows == 0 and len(host.bodies) == 3


def test_cost_never_goes_over_its_limit(host: ChatHost, seeds: str, tmp_path: Path) -> None:
    def price(prompt: int, completion: int) -> Decimal:
        return Decimal(prompt + 4 * completion) / 1_000_000

    limit = Decimal("0.02")
    order = replace(ONE, rows=500, parallel=4, price=price, max_cost_usd=limit, max_tokens=1000)
    report = run(host, seeds, tmp_path / "new.jsonl", order)
    assert report.stopped == "max-cost" and report.usd is not None
    worst = price(12_000, 1000)
    assert limit - worst < report.usd <= limit
    assert report.usd == price(report.prompt_tokens, report.completion_tokens)
    with pytest.raises(UsageError, match="price"):
        run(host, seeds, tmp_path / "other.jsonl", replace(order, price=None))


def test_a_model_that_repeats_itself_is_left(host: ChatHost, seeds: str, tmp_path: Path) -> None:
    host.writes = lambda number, body: order_row(1)
    report = run(host, seeds, tmp_path / "new.jsonl", replace(ONE, max_requests=50))
    assert report.stopped == "repeating" and report.rows == 1 and report.requests == 1 + BARREN


def test_seeds_must_be_good(host: ChatHost, tmp_path: Path) -> None:
    file = tmp_path / "seeds.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    with pytest.raises(DataError, match="no valid seed rows"):
        run(host, str(file), tmp_path / "new.jsonl")
    assert host.bodies == []


# -- failures ------------------------------------------------------------------------------------------------


def test_a_busy_host_is_asked_again_and_each_request_counts(
    host: ChatHost, seeds: str, tmp_path: Path
) -> None:
    host.writes = lambda number, body: (429, 503)[number - 1] if number <= 2 else order_row(number)
    report = run(host, seeds, tmp_path / "new.jsonl", replace(ONE, rows=1))
    assert (report.requests, report.failed_requests, report.rows) == (3, 2, 1)
    assert report.lost_requests == 1, "a 503 may have been billed, a 429 was not"


def test_a_refusal_ends_the_run_and_what_was_written_stays(
    host: ChatHost, seeds: str, tmp_path: Path
) -> None:
    output, order = tmp_path / "new.jsonl", replace(ONE, rows=30)
    host.writes = lambda number, body: "\n".join(map(order_row, range(10))) if number == 1 else 401
    with pytest.raises(AuthenticationFailed):
        run(host, seeds, output, order)
    assert len(output.read_text().splitlines()) == 10
    host.writes = lambda number, body: 503
    with pytest.raises(HostUnavailable):
        run(host, seeds, output, order)
    host.writes = lambda number, body: "\n".join(order_row(100 + number * 20 + i) for i in range(10))
    report = run(host, seeds, output, order)
    assert report.rows == 30 and report.new_rows == 20 and report.requests == len(host.bodies)


# -- going on ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_any_moment_of_death_can_be_gone_on_from(host: ChatHost, seeds: str, tmp_path: Path) -> None:
    """Whatever prefix of its two files a killed run leaves, the next one ends with the same kind of file."""
    output = tmp_path / "new.jsonl"
    log = tmp_path / "new.jsonl.generation"
    run(host, seeds, output, replace(ONE, rows=20))
    whole, rows = log.read_bytes(), output.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    # started, asked, answered, asked, answered: a torn entry is as good as none
    for cut in {0, *ends, *(end - 7 for end in ends), *(end + 5 for end in ends[:-1])}:
        known = [json.loads(line) for line in whole[:cut].decode().rpartition("\n")[0].splitlines()]
        kept = [json.dumps(r) for entry in known for r in entry.get("rows", [])]
        for torn in (0, 3):  # the output is behind the log, by whole rows or by half a row
            log.write_bytes(whole[:cut])
            output.write_bytes(rows[: max(0, _size(rows, len(kept)) - torn)])
            report = run(host, seeds, output, replace(ONE, rows=20))
            lines = output.read_text().splitlines()
            assert [json.dumps(json.loads(line)) for line in lines[: len(kept)]] == kept
            assert len(lines) == len(set(lines)) == report.rows == 20
            assert report.requests >= sum(entry["type"] == "asked" for entry in known)


def _size(rows: bytes, count: int) -> int:
    return sum(len(line) for line in rows.splitlines(keepends=True)[:count])


@pytest.mark.parametrize("name", ["-", "rows.jsonl.gz"])
def test_rows_are_added_to_a_plain_file_only(host: ChatHost, seeds: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        run(host, seeds, Path(name) if name == "-" else tmp_path / name)
    assert not (tmp_path / name).exists() and not Path("-.generation").exists()


def test_files_of_others_are_not_touched(host: ChatHost, seeds: str, tmp_path: Path) -> None:
    output = tmp_path / "mine.jsonl"
    output.write_text("my work\n")
    with pytest.raises(UsageError, match="was not written by this command"):
        run(host, seeds, output)
    assert output.read_text() == "my work\n"
    made = tmp_path / "new.jsonl"
    run(host, seeds, made)
    other = tmp_path / "other.jsonl"
    other.write_text(order_row(77) + "\n")
    with pytest.raises(UsageError, match="different seeds"):
        run(host, str(other), made, replace(ONE, rows=20))
    made.write_text(made.read_text().replace("please", "thanks"))
    with pytest.raises(UsageError, match="was changed"):
        run(host, seeds, made, replace(ONE, rows=20))


def test_a_journal_with_a_foreign_line_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.review"
    file.write_text('{"type": "required", "at": "2026-01-01T00:00:00Z"}\nnot json\n')
    with pytest.raises(DataError, match="line 2"):
        Journal[Entry](file, Entry)


def test_a_log_of_an_earlier_version_is_gone_on_from(host: ChatHost, seeds: str, tmp_path: Path) -> None:
    """Its rows are kept and its requests count, also the one whose answer is not known."""
    output, log = tmp_path / "new.jsonl", tmp_path / "new.jsonl.generation"
    run(host, seeds, output)
    started, *_ = log.read_text().splitlines()
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    entries: list[dict[str, Any]] = [
        {"type": "asked", "number": 1, "worst_usd": "0.5"},
        {"type": "answered", "number": 1, "usd": "0.2", "rows": rows, "model": "m", "refused": {"secret": 2}},
        {"type": "asked", "number": 2, "worst_usd": "0.25"},
        {"type": "asked", "number": 3, "worst_usd": "0.5"},
        {"type": "failed", "number": 3, "usd": "0.125", "error": "cut"},
    ]
    log.write_bytes(b"\n".join([started.encode(), *map(msgspec.json.encode, entries)]) + b"\n")
    order = replace(ONE, rows=20, price=lambda prompt, completion: Decimal(0))
    report = run(host, seeds, output, order)
    assert (report.rows, report.new_rows, report.requests) == (20, 10, 4)
    assert (report.usd, report.refused) == (Decimal("0.575"), {"secret": 2})
    assert [json.loads(line) for line in output.read_text().splitlines()][:10] == rows
