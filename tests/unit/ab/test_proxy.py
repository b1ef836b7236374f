"""The proxy before two models, judged by the official client."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from msgspec.structs import replace
from openai import AsyncOpenAI, OpenAI
from tests import loopback
from tests.unit.ab.models import Model, model, words

from orchestrate.ab import Experiment
from orchestrate.ab.proxy import BROKEN, NOBODY, Proxy, Upstream, tokens
from orchestrate.http.web import serving
from orchestrate.serving.server.keys import Clients, make
from orchestrate.settings import Secret
from orchestrate.store.store import Store
from orchestrate.types import DecisionRule, ExperimentPlan, PlannedMetric

FAILOVERS = "the base answered in place of the tuned model"
PLAN = ExperimentPlan(
    name="bot",
    base="b",
    tuned="t",
    metrics=(
        PlannedMetric(name="resolved", role="primary"),
        PlannedMetric(name="failed", role="guardrail", better="lower"),
        PlannedMetric(name="latency_s", kind="number", better="lower"),
        PlannedMetric(name="cost_usd", kind="number", better="lower"),
    ),
    rule=DecisionRule(stages=(50, 100)),
    usd_per_mtok={"base": (Decimal(1), Decimal(2)), "tuned": (Decimal(3), Decimal(10))},
)


class Place:
    """An experiment, its two models, its proxy and a client of it."""

    def __init__(self, store: Store, base: Model, tuned: Model, url: str) -> None:
        self.store, self.base, self.tuned, self.url = store, base, tuned, f"{url}/v1"
        self.experiment = Experiment.open("bot", store)
        self.client = OpenAI(base_url=self.url, api_key="a-key-of-tests", max_retries=0)

    def users(self, arm: str, number: int = 3) -> list[str]:
        known = [f"user {n}" for n in range(60)]
        return [u for u in known if self.experiment.assign(u).arm == arm][:number]

    def say(self, asker: str | None, **more: Any) -> Any:
        told = {"extra_headers": {"x-user-id": asker}} if asker is not None else {}
        return self.client.chat.completions.create(
            model="bot", messages=words("hello there friend"), **told, **more
        )

    def values(self, metric: str) -> dict[str, float | None]:
        """Of the report."""
        return next(e.values for e in self.experiment.report().evidence if e.metric == metric)

    def comes_to(self, counts: dict[str, int] | None = None, /, **values: dict[str, Any]) -> bool:
        """Whether the report comes to say so: what is recorded after an answer is there in a moment, and on a
        busy machine in a while."""
        deadline = time.monotonic() + 240
        while not (right := self._says(counts, values)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return right

    def _says(self, counts: dict[str, int] | None, values: dict[str, dict[str, Any]]) -> bool:
        said = counts is None or self.experiment.report().counts == counts
        return said and all(self.values(metric) == wanted for metric, wanted in values.items())


@pytest.fixture(scope="module")
def models() -> Iterator[tuple[Model, Model]]:
    with model("base-model") as base, model("tuned-model") as tuned:
        yield base, tuned


@pytest.fixture
def place(models: tuple[Model, Model], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    for one in models:
        one.fault = None
        one.read.clear()
        one.bodies.clear()
        one.keys.clear()
    base, tuned = models
    with Store.open(f"sqlite:///{tmp_path}/runs.sqlite3") as store:
        experiment = Experiment.begin(PLAN, store)
        at = Upstream(base.url, base.name), Upstream(tuned.url, tuned.name, Secret("key-of-the-tuned-one"))
        proxy = Proxy(
            experiment,
            *at,
            clients=Clients(store, "serve"),
            timeout_s=5.0 if "hang" in request.node.name else 240.0,
        )
        with serving(proxy.app(), lifespan=True) as url:
            made = Place(store, base, tuned, url)
            yield made
            made.client.close()


def test_each_user_is_answered_by_their_own_model(place: Place) -> None:
    for arm in ("base", "tuned"):
        for user in place.users(arm):
            for _ in range(2):
                assert place.say(user).choices[0].message.content == f"{arm}-model says: hello there friend"
    assert set(place.tuned.keys) == {"Bearer key-of-the-tuned-one"} and set(place.base.keys) == {None}
    assert place.comes_to(
        cost_usd={"base": pytest.approx(0.0012), "tuned": pytest.approx(0.004)},
        failed={"base": 0.0, "tuned": 0.0},
    )
    latency = place.values("latency_s")
    assert all((latency[arm] or 0) > 0 for arm in ("base", "tuned"))


def test_a_stream_is_passed_on_as_it_comes(place: Place) -> None:
    [user] = place.users("tuned", 1)
    chunks = list(place.say(user, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "tuned-model says: hello there friend " and chunks[-1].usage.total_tokens == 1100
    assert place.comes_to(cost_usd={"base": None, "tuned": pytest.approx(0.004)})


def test_a_client_that_leaves_after_the_last_event_has_its_answer(place: Place) -> None:
    place.tuned.fault = "lingers"
    [user] = place.users("tuned", 1)
    assert list(place.say(user, stream=True, stream_options={"include_usage": True}))
    assert place.comes_to(
        failed={"base": None, "tuned": 0.0}, cost_usd={"base": None, "tuned": pytest.approx(0.004)}
    )


def test_the_async_client_and_its_stream_helper(place: Place) -> None:
    async def both() -> list[str | None]:
        async with AsyncOpenAI(base_url=place.url, api_key="a-key-of-tests", max_retries=0) as client:
            given: dict[str, Any] = {"model": "bot", "messages": words("x")}
            asked = [client.chat.completions.create(**given, user=u) for u in place.users("tuned", 8)]
            whole = [done.choices[0].message.content for done in await asyncio.gather(*asked)]
            async with client.chat.completions.stream(**given, user=place.users("base", 1)[0]) as stream:
                final = await stream.get_final_completion()
            return [*whole, final.choices[0].message.content]

    *whole, last = asyncio.run(both())
    assert set(whole) == {"tuned-model says: x"} and last == "base-model says: x "


@pytest.mark.slow
@pytest.mark.parametrize("fault", [500, 404, 429, 400, "hang", "drop", "page", "error"])
@pytest.mark.parametrize("streamed", [False, True])
def test_the_base_answers_where_the_tuned_model_does_not(
    place: Place, fault: str | int, streamed: bool
) -> None:
    place.tuned.fault = fault
    [user, *_] = place.users("tuned")
    if streamed or fault == "drop":
        said = "".join(c.choices[0].delta.content or "" for c in place.say(user, stream=True) if c.choices)
    else:
        raw = place.client.chat.completions.with_raw_response.create(
            model="bot", messages=words("hello there friend"), safety_identifier=user
        )
        assert (raw.headers["x-orchestrate-arm"], raw.headers["x-orchestrate-answered-by"]) == (
            "tuned",
            "base",
        )
        said = raw.parse().choices[0].message.content or ""
    assert said.strip() == "base-model says: hello there friend"
    assert place.comes_to({FAILOVERS: 1}, failed={"base": None, "tuned": 1.0}), "it counts as the tuned one's"


@pytest.mark.parametrize("streamed", [False, True])
def test_the_async_client_is_answered_by_the_base_too(place: Place, streamed: bool) -> None:
    place.tuned.fault = 503

    async def asked() -> str:
        async with AsyncOpenAI(base_url=place.url, api_key="a-key-of-tests", max_retries=0) as client:
            given: dict[str, Any] = {
                "model": "bot",
                "messages": words("x"),
                "user": place.users("tuned", 1)[0],
            }
            if not streamed:
                return (await client.chat.completions.create(**given)).choices[0].message.content or ""
            chunks = await client.chat.completions.create(**given, stream=True)
            return "".join([c.choices[0].delta.content or "" async for c in chunks if c.choices])

    assert asyncio.run(asked()).strip() == "base-model says: x"
    assert place.comes_to({FAILOVERS: 1}, failed={"base": None, "tuned": 1.0})


def test_a_model_that_keeps_failing_is_left_alone_for_a_while(place: Place) -> None:
    place.tuned.fault = 500
    [user, *_] = place.users("tuned")
    for _ in range(6):
        place.say(user)
    assert len(place.tuned.bodies) == 3 and place.comes_to({FAILOVERS: 6})
    assert loopback.get(place.url.removesuffix("/v1") + "/health").json()["resting"] == ["tuned"]


def test_what_both_models_refuse_is_the_requests_fault(place: Place) -> None:
    place.tuned.fault = place.base.fault = 400
    [user, *_] = place.users("tuned")
    with pytest.raises(openai.BadRequestError, match="refused with 400"):
        place.say(user)
    assert place.comes_to({}, failed={"base": None, "tuned": 0.0})


@pytest.mark.slow
def test_a_base_that_hangs_is_told(place: Place) -> None:
    place.base.fault = "hang"
    [user, *_] = place.users("base")
    with pytest.raises(openai.InternalServerError, match="no model answered"):
        place.say(user)
    assert place.comes_to(failed={"base": 1.0, "tuned": None}) and not place.tuned.bodies


def test_a_stream_that_breaks_off_says_so_and_counts(place: Place) -> None:
    place.tuned.fault = "cut"
    [user, *_] = place.users("tuned")
    got: list[str] = []
    with pytest.raises(openai.APIError, match="cut off"):
        for chunk in place.say(user, stream=True):
            got.append(chunk.choices[0].delta.content or "")
    assert got == ["tuned-model ", "says: "]
    assert place.comes_to({BROKEN: 1}, failed={"base": None, "tuned": 1.0})


def test_an_error_in_the_midst_of_a_stream_counts_as_one(place: Place) -> None:
    place.tuned.fault = "late error"
    [user, *_] = place.users("tuned")
    with pytest.raises(openai.APIError, match="overloaded"):
        for _ in place.say(user, stream=True):
            place.tuned.read.set()
    assert place.comes_to({BROKEN: 1}, failed={"base": None, "tuned": 1.0})


def test_an_error_that_arrives_with_the_first_words_is_answered_by_the_base(place: Place) -> None:
    """Nothing of the answer was passed on yet."""
    place.tuned.fault = "error at once"
    [user, *_] = place.users("tuned")
    said = "".join(c.choices[0].delta.content or "" for c in place.say(user, stream=True) if c.choices)
    assert said.strip() == "base-model says: hello there friend"
    assert place.comes_to({FAILOVERS: 1}, failed={"base": None, "tuned": 1.0})


def test_a_client_that_leaves_is_no_outcome(place: Place) -> None:
    place.base.fault = place.tuned.fault = None
    [user, *_] = place.users("tuned")
    stream = place.say(user, stream=True)
    next(iter(stream))
    stream.close()
    assert place.say(user).choices


def test_who_says_no_user_gets_the_base_and_is_no_part_of_it(place: Place) -> None:
    assert place.say(None).choices[0].message.content.startswith("base-model")
    assert place.say(None, user="").choices[0].message.content.startswith("base-model")
    assert place.comes_to({NOBODY: 2})
    assert place.experiment.report().users == {"base": 0, "tuned": 0}


@pytest.mark.slow
def test_a_store_that_is_locked_costs_no_user_an_answer(place: Place, tmp_path: Path) -> None:
    """Each still gets their own model, as long as somebody else holds the store."""
    [known, *_] = place.users("tuned")
    place.say(known)
    before = place.experiment.report().users
    guess = place.experiment.guess
    new = [f"new {n}" for n in range(60)]
    new = [user for arm in ("base", "tuned") for user in [u for u in new if guess(u).arm == arm][:3]]
    with closing(sqlite3.connect(tmp_path / "runs.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for user in new:
            raw = place.client.chat.completions.with_raw_response.create(
                model="bot", messages=words("x"), user=user
            )
            assert raw.headers["x-orchestrate-answered-by"] == guess(user).arm
            assert place.say(known).choices[0].message.content.startswith("tuned-model")
        other.execute("ROLLBACK")
    for user in new:
        assert guess(user).arm == place.experiment.assign(user).arm
    assert sum(place.experiment.report().users.values()) == sum(before.values()) + len(new)


@pytest.mark.parametrize("user", ["\ud800", "a\0b", "x" * 100_000, "é", "e\u0301", " ", "\u202e", "0"])
def test_any_text_is_a_user_of_its_own(place: Place, user: str) -> None:
    body = json.dumps({"model": "bot", "messages": words("x"), "user": user}).encode()
    done = loopback.post(f"{place.url}/chat/completions", content=body)
    assert done.status_code == 200 and done.headers["x-orchestrate-arm"] == place.experiment.assign(user).arm
    assert sum(place.experiment.report().users.values()) == 1
    one = json.dumps({"user": user, "metric": "resolved", "value": True, "id": user}).encode()
    assert loopback.post(f"{place.url}/ab/outcomes", content=one).json()["recorded"] == 1


@pytest.mark.parametrize("user", [7, 0, -(10**30)])
def test_a_number_is_the_user_of_its_outcomes(place: Place, user: int) -> None:
    body = json.dumps({"model": "bot", "messages": words("x"), "user": user}).encode()
    done = loopback.post(f"{place.url}/chat/completions", content=body)
    assert done.headers["x-orchestrate-arm"] == place.experiment.assign(str(user)).arm
    assert sum(place.experiment.report().users.values()) == 1
    one = json.dumps({"user": user, "metric": "resolved", "value": True}).encode()
    assert loopback.post(f"{place.url}/ab/outcomes", content=one).json()["recorded"] == 1


@pytest.mark.parametrize("user", [True, 1.5, ["u"], {"id": "u"}])
def test_a_user_that_is_no_text_is_refused(place: Place, user: object) -> None:
    """The base would answer without a word that the user is not part of the experiment."""
    for field in ("user", "safety_identifier"):
        body = json.dumps({"model": "bot", "messages": words("x"), field: user}).encode()
        done = loopback.post(f"{place.url}/chat/completions", content=body)
        assert done.status_code == 400 and done.json()["error"]["param"] == field
    assert not place.base.bodies and not place.tuned.bodies


@pytest.mark.parametrize("user", ["é", "e\u0301", "李雷", "Ã©"])
def test_a_user_of_the_header_is_the_user_of_the_body_and_of_outcomes(place: Place, user: str) -> None:
    body = json.dumps({"model": "bot", "messages": words("x")}).encode()
    done = loopback.post(f"{place.url}/chat/completions", content=body, headers={"x-user-id": user.encode()})
    assert done.headers["x-orchestrate-arm"] == place.experiment.assign(user).arm
    assert sum(place.experiment.report().users.values()) == 1
    assert place.experiment.record(user, "resolved", True).recorded == 1


def test_a_header_that_is_not_utf_8_is_a_user_too(place: Place) -> None:
    body = json.dumps({"model": "bot", "messages": words("x")}).encode()
    done = loopback.post(f"{place.url}/chat/completions", content=body, headers={"x-user-id": b"\xe9"})
    assert done.headers["x-orchestrate-arm"] == place.experiment.assign("é").arm


@pytest.mark.parametrize(
    "body", [b"[1]", b"\xff\xfe", b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"{"]
)
def test_bodies_that_are_no_requests_are_refused(place: Place, body: bytes) -> None:
    for path in ("chat/completions", "ab/outcomes"):
        assert loopback.post(f"{place.url}/{path}", content=body).status_code == 400


def test_a_wrong_model_is_not_answered_by_the_base(place: Place) -> None:
    assert [m.id for m in place.client.models.list()] == ["bot"]
    with pytest.raises(openai.NotFoundError, match="bot"):
        place.client.chat.completions.create(model="base-model", messages=words("x"), user="u")
    assert not place.base.bodies


def test_outcomes_come_by_the_api_and_the_report_goes(place: Place) -> None:
    [user, *_] = place.users("tuned")
    one = {"user": user, "metric": "resolved", "value": True, "id": "t1"}
    post = f"{place.url}/ab/outcomes"
    assert loopback.post(post, json=one).json()["recorded"] == 1
    assert loopback.post(post, json={"outcomes": [one, {**one, "id": "t2"}]}).json() == {
        "recorded": 1, "repeated": 1, "unknown_users": 0, "after_end": 0,
    }  # fmt: skip
    for wrong in ({**one, "metric": "x"}, {**one, "value": 3}, {**one, "value": "yes"}, {"outcomes": 3}, {}):
        assert loopback.post(post, json=wrong).status_code == 400
    shown = loopback.get(f"{place.url}/ab/report").json()
    assert shown["evidence"][0]["users"] == {"base": 0, "tuned": 1} and shown["decision"]["verb"] == "hold"


def test_it_asks_for_keys_where_there_are_any(models: tuple[Model, Model], tmp_path: Path) -> None:
    base, tuned = models
    base.fault = tuned.fault = None
    with Store.open(f"sqlite:///{tmp_path}/runs.sqlite3") as store:
        at = Upstream(base.url, base.name), Upstream(tuned.url, tuned.name)
        right = make(store, "me", by="me")
        proxy = Proxy(Experiment.begin(PLAN, store), *at, clients=Clients(store, "serve"))
        with serving(proxy.app(), lifespan=True) as url:
            assert loopback.get(f"{url}/health").status_code == 200
            assert loopback.get(f"{url}/v1/ab/report").status_code == 401
            assert loopback.post(f"{url}/v1/ab/outcomes", json={}).status_code == 401
            assert (
                loopback.get(f"{url}/v1/models", headers={"authorization": "Bearer orc-wrong"}).status_code
                == 401
            )
            assert (
                loopback.get(f"{url}/v1/models", headers={"authorization": f"Bearer {right}"}).status_code
                == 200
            )


@pytest.mark.slow
def test_many_users_at_once_are_not_mixed_while_the_share_grows(place: Place) -> None:
    """Nobody goes from the tuned model back to the base; each answer is that of the model that is told."""
    last: dict[str, str] = {}
    back: list[str] = []
    grown = threading.Event()

    def ask(number: int) -> None:
        user = f"many {number % 40}"
        raw = place.client.chat.completions.with_raw_response.create(
            model="bot", messages=words("x"), user=user
        )
        arm = raw.headers["x-orchestrate-arm"]
        assert (raw.parse().choices[0].message.content or "").startswith(arm)
        if last.get(user) == "tuned" and arm == "base":
            back.append(user)
        last[user] = arm
        if number == 60 and not grown.is_set():
            grown.set()
            assert place.experiment._enter("ramp", 0.8, "a test")

    def seen() -> list[tuple[str, int]]:
        return [(e.user, e.phase) for e in place.store.experiments.exposures(place.experiment.id)]

    deadline = time.monotonic() + 240
    with ThreadPoolExecutor(8) as pool:
        for part in range(0, 160, 40):  # a user is asked for once at a time
            list(pool.map(ask, range(part, part + 40)))
        while len(seen()) < 80 and time.monotonic() < deadline:  # the proxy's own reading is a second old
            list(pool.map(ask, range(160, 200)))
    assert not back and list(last.values()).count("tuned") > 20
    assert len(set(seen())) == len(seen()) == 80


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"usage": {"prompt_tokens": 3, "completion_tokens": 4}}', (3, 4)),
        (b'{"usage": {"input_tokens": 3, "output_tokens": 4}}', (3, 4)),
        (b'data: {"x": 1}\ndata: {"response": {"usage": {"input_tokens": 1, "output_tokens": 2}}}', (1, 2)),
        (b'a: {"usage"\ndata: {"usage": {"prompt_tokens": 5, "completion_tokens": 6}}\ndata: [DONE]', (5, 6)),
        (b'{"usage": []}', None),
        (b'{"usage": {"prompt_tokens": "x", "completion_tokens": 1}}', None),
        (b'"usage"', None),
        (b'{"response": 3, "usage": null}', None),
        (b"\xff", None),
    ],
)  # fmt: skip
def test_tokens_are_read_from_what_a_model_tells(data: bytes, expected: tuple[int, int] | None) -> None:
    assert tokens(data) == expected


def test_plans_are_kept_as_they_were(place: Place) -> None:
    assert place.experiment.plan == replace(PLAN)
