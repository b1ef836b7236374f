"""Answers are kept, paid once, within a limit; and a kill loses none."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import threading
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests import command
from tests.chat_host import chat_host
from tests.logged import Logged
from tests.unit.data.tokens.templates import PUBLISHED, each
from tests.unit.evaluation.conftest import answering, cents

from orchestrate.core.retries import Retry
from orchestrate.data.tokens.chat_templates import render
from orchestrate.data.tokens.counters import batch_counter
from orchestrate.errors import (
    DataError,
    HostUnavailable,
    InvalidRequest,
    OverBudget,
    ProviderError,
    RateLimited,
    UsageError,
)
from orchestrate.evaluation import Answer
from orchestrate.paid.journal import RequestBudget
from orchestrate.paid.paid_requests import AnswerLog, Asking, Question, Respondent, Sent
from orchestrate.types import Message


def questions(count: int, first: int = 0) -> list[Question]:
    return [Question(messages=(Message(role="user", content=f"q{i}"),)) for i in range(first, first + count)]


def shout(text: str) -> str:
    return text.upper()


WORST = answering(shout, price=cents).worst_usd(questions(1))
"""What a question may cost at most. An answered one costs 3 cents."""


def test_each_question_is_asked_once_ever(tmp_path: Path) -> None:
    seen: list[Question] = []
    model = answering(shout, seen)
    first = Asking(tmp_path).ask(model, questions(5) + questions(2))
    assert [a.text for a in first] == ["Q0", "Q1", "Q2", "Q3", "Q4", "Q0", "Q1"] and len(seen) == 5
    again = Asking(tmp_path).ask(model, questions(7))
    assert [a.text for a in again][5:] == ["Q5", "Q6"] and len(seen) == 7
    assert again[0] == first[0], "with the time at which it was answered"
    other = dataclasses.replace(model, identity={"model": "another"})
    Asking(tmp_path).ask(other, questions(5))
    assert len(seen) == 12


def test_fresh_asks_again_and_keeps_what_was(tmp_path: Path) -> None:
    """Answers to other questions are neither lost nor asked for again."""
    seen: list[Question] = []
    model = answering(shout, seen)
    Asking(tmp_path).ask(model, questions(5))
    fresh = Asking(tmp_path, fresh=True)
    assert fresh.kept(model, questions(3)) == {}
    fresh.ask(model, questions(3))
    fresh.ask(model, questions(3))
    assert len(seen) == 8, "once in one evaluation"
    assert len(fresh.kept(model, questions(5))) == 3
    Asking(tmp_path).ask(model, questions(5))
    assert len(seen) == 8
    [log] = tmp_path.glob("*.jsonl")
    assert log.read_bytes().count(b"Q0") == 2, "what was answered before stays in the file"


def test_a_kill_in_another_evaluation_is_not_charged_to_this_one(tmp_path: Path) -> None:
    model = answering(shout, price=cents)
    mine, other = questions(2)
    AnswerLog(tmp_path / f"{model.key}.jsonl").append(Sent([other.digest], Decimal("0.90")))
    purse = RequestBudget()
    Asking(tmp_path, purse).ask(model, [mine])
    assert purse.spent_usd == Decimal("0.03")


def test_batches_hold_questions_of_like_length(tmp_path: Path) -> None:
    sizes: list[list[int]] = []

    def ask(batch: object) -> list[Answer]:
        sizes.append([len(q.messages[0].content) for q in batch])  # type: ignore[attr-defined]
        return [Answer(text="") for _ in batch]  # type: ignore[attr-defined]

    model = Respondent(name="m", identity={}, ask=ask, batch=3)
    asked = [Question(messages=(Message(role="user", content="x" * n),)) for n in (9, 1, 8, 2, 7, 3, 5)]
    Asking(tmp_path).ask(model, asked)
    assert sizes == [[1, 2, 3], [5, 7, 8], [9]]


def test_the_limit_holds_over_all_tries(tmp_path: Path) -> None:
    model = answering(shout, price=cents)
    purse = RequestBudget(WORST + Decimal("0.08"))
    with pytest.raises(OverBudget, match="3 of 20 answers are saved") as refused:
        Asking(tmp_path, purse).ask(model, questions(20))
    assert purse.spent_usd == Decimal("0.09") and refused.value.exit_code == 6
    more = RequestBudget(WORST + Decimal("0.11"))
    with pytest.raises(OverBudget, match="4 of 20"):
        Asking(tmp_path, more).ask(model, questions(20))
    assert more.spent_usd == Decimal("0.12"), "what was paid for before counts, once"
    with pytest.raises(UsageError, match="cannot be enforced: the price per token is unknown"):
        Asking(tmp_path, RequestBudget(Decimal(1))).ask(answering(shout), questions(1))


def test_what_answers_under_way_may_cost_only_delays_the_next_one(tmp_path: Path) -> None:
    model = answering(shout, price=cents, parallel=4)
    purse = RequestBudget(WORST * Decimal("1.5"))
    assert len(Asking(tmp_path, purse).ask(model, questions(10))) == 10
    assert purse.spent_usd == Decimal("0.30")


def test_what_was_under_way_in_a_kill_counts_at_its_worst(tmp_path: Path) -> None:
    model = answering(shout, price=cents)
    [question] = questions(1)
    log = AnswerLog(tmp_path / f"{model.key}.jsonl")
    log.append(Sent([question.digest], Decimal("0.90")))
    purse = RequestBudget()
    Asking(tmp_path, purse).ask(model, [question])
    assert purse.spent_usd == Decimal("0.93")
    again = RequestBudget()
    Asking(tmp_path, again).ask(model, [question])
    assert again.spent_usd == Decimal("0.93"), "and does so in every command"
    assert (again.lost().requests, again.lost().usd) == (1, Decimal("0.90"))


def test_a_refused_question_is_an_answer_that_failed(tmp_path: Path) -> None:
    def ask(batch: list[Question]) -> list[Answer]:
        if batch[0].messages[0].content == "q1":
            raise InvalidRequest("host", "too long", status=400)
        return [Answer(text="ok")]

    model = Respondent(name="m", identity={}, ask=ask)
    answers = Asking(tmp_path).ask(model, questions(3))
    assert [a.text for a in answers] == ["ok", "", "ok"] and "too long" in (answers[1].error or "")
    assert len(AnswerLog(tmp_path / f"{model.key}.jsonl").answers) == 2, "and is asked again another time"


def test_a_setting_that_is_refused_always_is_no_wrong_answer(tmp_path: Path) -> None:
    asked: list[object] = []

    def ask(batch: list[Question]) -> list[Answer]:
        asked.append(batch)
        raise InvalidRequest("host", "no such parameter", status=400)

    with pytest.raises(InvalidRequest, match="no such parameter"):
        Asking(tmp_path).ask(Respondent(name="m", identity={}, ask=ask), questions(50))
    assert len(asked) == 3
    with pytest.raises(UsageError, match="rejected every question"):
        Asking(tmp_path).ask(Respondent(name="m", identity={}, ask=ask), questions(1))


def test_a_host_that_gives_up_loses_no_answer_under_way(tmp_path: Path) -> None:
    all_asked, refused = threading.Barrier(4), threading.Event()

    def ask(batch: list[Question]) -> list[Answer]:
        asked = batch[0].messages[0].content
        if asked in ("q0", "q1", "q2", "q3"):
            all_asked.wait(240)
        if asked == "q2":
            refused.set()
            raise RateLimited("host", "slow down", status=429)
        assert refused.wait(240)
        return [Answer(text="ok")]

    model = Respondent(name="m", identity={}, ask=ask, parallel=4)
    with pytest.raises(RateLimited):
        Asking(tmp_path).ask(model, questions(20))
    assert len(AnswerLog(tmp_path / f"{model.key}.jsonl").answers) >= 3


def test_two_commands_do_not_ask_the_same_model_at_once(tmp_path: Path) -> None:
    def nested(text: str) -> str:
        with pytest.raises(UsageError, match="another command is already querying"):
            Asking(tmp_path).ask(answering(shout), questions(1))
        return text

    assert Asking(tmp_path).ask(answering(nested), questions(1))[0].text == "q0"


@pytest.mark.slow
def test_a_kill_loses_no_answer_and_pays_for_none_twice(tmp_path: Path) -> None:
    """The command itself, killed twice while a host answers it."""
    rows = [
        {"messages": [{"role": "user", "content": f"row {i}"}, {"role": "assistant", "content": f"{i}"}]}
        for i in range(60)
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = os.environ | {"ORCHESTRATE_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}
    with chat_host() as host:
        words = ["eval", "--model", f"{host.url}=m", "--test", "test.jsonl", "--json"]
        streams = [Path(os.devnull)] * 3
        for stop in (7, 41):
            reached, killed = threading.Event(), threading.Event()

            def writes(number: int, body: Any, *, at: int = stop, when: Any = (reached, killed)) -> str:
                """From then on nothing is answered until the command is dead."""
                if number >= at:
                    when[0].set()
                    when[1].wait(240)
                return body["messages"][-1]["content"].removeprefix("row ")

            host.writes = writes
            process = command.start(command.orchestrate, words, cwd=tmp_path, env=env, streams=streams)
            assert reached.wait(120)
            process.kill()
            assert command.ended(process, 240) == -signal.SIGKILL
            killed.set()
        host.writes = lambda _number, body: body["messages"][-1]["content"].removeprefix("row ")
        done = command.run(words, cwd=tmp_path, env=env)
        asked = [body["messages"][-1]["content"] for body in host.bodies]
    assert done.code == 0, done.err
    [measure] = json.loads(done.out)["measures"]
    assert (measure["score"]["value"], measure["score"]["n"]) == (1.0, 60)
    assert set(asked) == {f"row {i}" for i in range(60)}
    twice = len(asked) - 60
    assert twice <= 2 * 4, "only what was under way, four at a time, may be asked again"


def two_places(seen: list[Question], meeting: threading.Barrier | None = None) -> list[Respondent]:
    """Two models at each of two places."""

    def said(text: str) -> str:
        if meeting is not None:
            meeting.wait(120)
        return text.upper()

    return [
        dataclasses.replace(
            answering(said, seen, price=cents), name=f"{name} at {place}", identity={"m": name}, place=place
        )
        for place, name in (("a", "one"), ("a", "two"), ("b", "three"), ("b", "four"))
    ]


def test_places_are_asked_at_the_same_time(tmp_path: Path) -> None:
    """Each answer waits for one of the other place: one place after the other would never end."""
    seen: list[Question] = []
    told: list[tuple[str, int]] = []
    asking = Asking(tmp_path, progress=lambda name, done, *_: told.append((name, done)))
    asked = [(model, questions(3)) for model in two_places(seen, threading.Barrier(2))]
    answers = asking.ask_each(asked)
    assert [[a.text for a in one] for one in answers] == [["Q0", "Q1", "Q2"]] * 4
    assert len(seen) == 12 and len(told) == 12 and asking.budget.spent_usd == Decimal("0.36")
    assert [done for name, done in told if name == "one at a"] == [1, 2, 3]


def test_with_a_limit_each_knows_what_the_others_cost(tmp_path: Path) -> None:
    seen: list[Question] = []
    asked = [(model, questions(2)) for model in two_places(seen)]
    asking = Asking(tmp_path, RequestBudget(WORST + Decimal("0.10")))
    with pytest.raises(OverBudget, match="three at b"):
        asking.ask_each(asked)
    assert asking.budget.spent_usd == Decimal("0.12") and len(seen) == 4
    assert [[a.text for a in one] for one in Asking(tmp_path).ask_each(asked)] == [["Q0", "Q1"]] * 4
    assert len(seen) == 8


def test_where_one_fails_no_other_is_asked_on(tmp_path: Path) -> None:
    """What is under way is still taken; and the error is that of the one which failed."""
    begun, failed = threading.Event(), threading.Event()
    seen: list[Question] = []

    def dies(_: str) -> str:
        assert begun.wait(120)
        failed.set()
        raise RateLimited("b", "no more today")

    def waits(text: str) -> str:
        begun.set()
        assert failed.wait(120) and asking.stopped.wait(120)
        return text.upper()

    later = dataclasses.replace(answering(shout), name="later", identity={"m": 3}, place="a")
    Asking(tmp_path).ask(later, questions(3))
    asking = Asking(tmp_path, fresh=True)
    good = dataclasses.replace(answering(waits, seen), name="good", identity={"m": 1}, place="a")
    bad = dataclasses.replace(answering(dies), name="bad", identity={"m": 2}, place="b")
    with pytest.raises(RateLimited, match="no more today"):
        asking.ask_each([(good, questions(1)), (later, questions(3)), (bad, questions(3))])
    assert len(seen) == 1
    assert len(Asking(tmp_path).kept(later, questions(3))) == 3, "not asked again, and not forgotten"
    assert len(Asking(tmp_path).kept(good, questions(3))) == 1, "paid for, and kept"
    assert [a.text for a in asking.ask(answering(shout), questions(1))] == ["Q0"], "it can be asked again"


OFTEN = Retry(attempts=6, first_s=0.001, longest_s=0.001)


def losing(times: int, status: int | None, seen: list[Question] | None = None) -> Respondent:
    """Loses each answer so many times."""
    asked: dict[str, int] = {}

    def ask(batch: list[Question]) -> list[Answer]:
        if seen is not None:
            seen.append(batch[0])
        digest = batch[0].digest
        asked[digest] = asked.get(digest, 0) + 1
        if asked[digest] <= times:
            raise HostUnavailable("host", "lost", status=status)
        return [Answer(text="ok", prompt_tokens=10, completion_tokens=2)]

    model = Respondent(name="m", identity={}, ask=ask, retry=OFTEN, price=cents, max_tokens=100)
    return dataclasses.replace(model, parallel=4)


@pytest.mark.parametrize("status", [None, 500, 504, 408])
def test_every_send_that_may_be_billed_counts_in_this_command_and_in_all_later_ones(
    tmp_path: Path, status: int | None
) -> None:
    seen: list[Question] = []
    model = losing(1_000, status, seen)
    limit = 5 * WORST
    for _ in range(3):
        purse = RequestBudget(limit)
        with pytest.raises((OverBudget, HostUnavailable)) as failed:
            Asking(tmp_path, purse).ask(model, questions(8))
        assert purse.spent_usd == len(seen) * WORST <= limit
        assert (failed.value.lost_requests, failed.value.lost_usd) == (len(seen), purse.spent_usd)
        assert f"{len(seen)} requests got no answer and may have been billed" in str(failed.value)
    assert len(seen) == 5, "no sixth one fits"


@pytest.mark.parametrize(("into", "out"), [(10, 10**12), (10**12, 2)])
def test_token_counts_above_what_was_asked_for_count_at_the_maximum_and_are_noted(
    tmp_path: Path, logged: Logged, into: int, out: int
) -> None:
    def ask(batch: list[Question]) -> list[Answer]:
        return [Answer(text="ok", prompt_tokens=into, completion_tokens=out)]

    purse = RequestBudget(2 * WORST)
    model = Respondent(name="m", identity={}, ask=ask, price=cents, max_tokens=100)
    answers = Asking(tmp_path, purse).ask(model, questions(2))
    assert purse.spent_usd == sum(a.usd or 0 for a in answers) == 2 * WORST
    assert all("reported more tokens than the request allowed" in a.notes[0] for a in answers)
    assert logged.text.count("maximum price of the answer counts") == 1


@pytest.mark.parametrize("family", each(PUBLISHED))
def test_the_maximum_holds_for_what_a_chat_template_adds(family: str) -> None:
    """Some templates add a system message, some even to prompts with their own."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    counted = batch_counter("o200k_base")
    user = Message(role="user", content="hi")
    for messages in ((user,), (Message(role="system", content="ok"), user)):
        question = Question(messages=messages)
        with suppress(DataError):  # the template of an early family takes no system message
            shown = [message.to_dict() for message in messages]
            text, _ = render(PUBLISHED[family], shown, names=names, answer_next=True)
            assert sum(counted([text])) <= question.most_tokens


def test_what_was_lost_before_its_answer_stays_counted(tmp_path: Path) -> None:
    model, purse = losing(2, 504), RequestBudget()
    assert len(Asking(tmp_path, purse).ask(model, questions(3))) == 3
    assert purse.spent_usd == 3 * (2 * WORST + Decimal("0.03"))
    again = RequestBudget()
    Asking(tmp_path, again).ask(model, questions(3))
    assert (again.spent_usd, again.lost().requests) == (purse.spent_usd, 6)


@pytest.mark.parametrize(
    "error",
    [*(RateLimited("host", "wait", status=s) for s in (429,)), HostUnavailable("host", "no connection")],
)
def test_what_the_host_certainly_did_not_do_costs_nothing(tmp_path: Path, error: ProviderError) -> None:
    error.unsent = error.status is None
    tries: list[object] = []

    def ask(batch: list[Question]) -> list[Answer]:
        tries.append(batch)
        if len(tries) < 6:
            raise error
        return [Answer(text="ok", prompt_tokens=10, completion_tokens=2)]

    model = Respondent(name="m", identity={}, ask=ask, retry=OFTEN, price=cents, max_tokens=100)
    purse = RequestBudget(WORST)
    assert Asking(tmp_path, purse).ask(model, questions(1))[0].text == "ok"
    assert (purse.spent_usd, purse.lost().requests, len(tries)) == (Decimal("0.03"), 0, 6)


def test_a_question_that_is_never_answered_may_be_left(tmp_path: Path) -> None:
    """Only when the user says so, and not when it is the host that is down."""

    def ask(batch: list[Question]) -> list[Answer]:
        if batch[0].messages[0].content in stuck:
            raise HostUnavailable("host", "always", status=500)
        return [Answer(text="ok", prompt_tokens=10, completion_tokens=2)]

    stuck = {"q2"}
    model = Respondent(name="m", identity={}, ask=ask, retry=OFTEN, price=cents)
    with pytest.raises(HostUnavailable) as failed:
        Asking(tmp_path).ask(model, questions(5))
    assert "--skip-failed" in (failed.value.fix or "")
    asking = Asking(tmp_path, skip_failed=True)
    answers = asking.ask(model, questions(5))
    assert [a.error is None for a in answers] == [True, True, False, True, True]
    assert asking.lost(model, questions(5)).requests == 12, "of both commands"
    stuck |= {f"q{i}" for i in range(5, 50)}
    before = len(AnswerLog(tmp_path / f"{model.key}.jsonl").entries)
    with pytest.raises(HostUnavailable):
        Asking(tmp_path, skip_failed=True).ask(model, questions(40, 10))
    sends = AnswerLog(tmp_path / f"{model.key}.jsonl").entries[before:]
    assert sum(isinstance(entry, Sent) for entry in sends) == 3 * 6, "a host that is down is not asked on"


def test_a_journal_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    model = answering(shout, price=cents)
    answered, lost, refused = (q.digest for q in questions(3))
    lines = [
        {"type": "sent", "questions": [answered], "worst_usd": "1.018"},
        {"type": "got", "question": answered, "answer": {"text": "kept", "usd": "0.02"}},
        {"type": "sent", "questions": [lost], "worst_usd": "1.018"},
        {"type": "sent", "questions": [refused], "worst_usd": "1.018"},
        {"type": "unanswered", "questions": [refused]},
    ]
    (tmp_path / f"{model.key}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    purse = RequestBudget()
    answers = Asking(tmp_path, purse).ask(model, questions(3))
    assert [a.text for a in answers] == ["kept", "Q1", "Q2"]
    assert purse.spent_usd == Decimal("0.02") + Decimal("1.018") + 2 * Decimal("0.03")


def test_a_full_disk_leaves_a_journal_that_can_be_read(tmp_path: Path) -> None:
    """A line that does not fit is cut off by the next one, in the same process too; nothing is sent that
    could not be written down before."""
    seen: list[Question] = []
    model = answering(shout, seen, price=cents)
    path = tmp_path / f"{model.key}.jsonl"
    Asking(tmp_path).ask(model, questions(2))
    size = path.stat().st_size
    purse = RequestBudget()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
        with pytest.raises(OSError):
            Asking(tmp_path, purse).ask(model, questions(4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert len(seen) == 2 and path.stat().st_size == size + 20
    assert (purse.spent_usd, purse.held_usd) == (Decimal("0.06"), 0)
    assert [a.text for a in Asking(tmp_path).ask(model, questions(4))] == ["Q0", "Q1", "Q2", "Q3"]
    assert len(AnswerLog(path).answers) == 4


def test_the_limit_of_a_repeated_command_knows_what_all_its_models_cost_before(tmp_path: Path) -> None:
    """The first model's refused question is asked again only if what the second one cost leaves room."""
    sent: list[object] = []

    def refuses(batch: list[Question]) -> list[Answer]:
        sent.append(batch)
        if batch[0].messages[0].content == "q1":
            raise InvalidRequest("host", "no", status=400)
        return [Answer(text="ok", prompt_tokens=10, completion_tokens=2)]

    first = Respondent(name="first", identity={"m": 1}, ask=refuses, price=cents, max_tokens=100)
    second = dataclasses.replace(losing(1, 504), identity={"m": 2}, parallel=1)
    limit = 2 * WORST + Decimal("0.04")
    asking = Asking(tmp_path, RequestBudget(limit, scope="both"))
    asking.ask(first, questions(2))
    asking.ask(second, questions(1))
    spent = Decimal("0.03") + WORST + Decimal("0.03")
    assert asking.budget.spent_usd == spent and len(sent) == 2
    again = Asking(tmp_path, RequestBudget(2 * WORST, scope="both"))
    with pytest.raises(OverBudget):
        again.ask(first, questions(2))
    assert again.budget.spent_usd == spent and len(sent) == 2
    other = Asking(tmp_path, RequestBudget(2 * WORST, scope="another"))
    other.ask(first, questions(2))
    assert other.budget.spent_usd == Decimal("0.03") and len(sent) == 3
