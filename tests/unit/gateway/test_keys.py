"""Who may come, and what for."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.unit.gateway.conftest import ASKED, Gateway, ended, gateway_of, rows, until

from orchestrate.errors import UsageError
from orchestrate.gateway import launch as service
from orchestrate.gateway import server, terms
from orchestrate.runs.watching.watcher import Watcher
from orchestrate.sandbox.server import Sandbox
from orchestrate.store import new_run_id, ref_of
from orchestrate.store.gateway import CreateKey
from orchestrate.types import JobStatus, SubmitPhase

OTHER = "gpt-4.1-mini-2025-04-14"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, sandbox: Sandbox) -> Iterator[Gateway]:
    with gateway_of(tmp_path_factory.mktemp("keyed"), sandbox.env) as found:
        yield found


def key(keyed: Gateway, name: str, **scope: Any) -> str:
    return service.add_key(keyed.ft, name, **scope)[0]


def refusal(keyed: Gateway, given: str, **body: Any) -> tuple[int, str]:
    with keyed.http(given) as http:
        upload = {"file": ("t.jsonl", rows(mark=given[-6:]))}
        file = http.post("files", files=upload, data={"purpose": "fine-tune"})
        asked = {"model": ASKED, "training_file": file.json().get("id", "file-x"), **body}
        answer = http.post("fine_tuning/jobs", json=asked)
    return answer.status_code, answer.json()["error"]["code"]


def test_keys_are_asked_for_once_there_is_one(keyed: Gateway) -> None:
    ann = key(keyed, "ann", project="a")
    assert refusal(keyed, ann)[0] == 200
    assert refusal(keyed, "wrong") == (401, "invalid_api_key")
    service.revoke_key(keyed.ft, "ann")
    assert refusal(keyed, ann) == (401, "invalid_api_key")
    past = keyed.ft.store.clock.now() - timedelta(seconds=1)
    assert refusal(keyed, key(keyed, "late", expires_at=past)) == (401, "invalid_api_key")
    with pytest.raises(UsageError, match="already exists"):
        key(keyed, "ann")
    for wrong in ("", "a" * 65, "a\0"):
        with pytest.raises(UsageError, match="project"):
            key(keyed, "whose", project=wrong)
    stored = b"".join(path.read_bytes() for path in keyed.ft.settings.home.glob("runs.sqlite3*"))
    assert ann.encode() not in stored


@pytest.mark.parametrize(
    ("scope", "body", "found"),
    [
        ({"backends": ["together"]}, {"model": OTHER}, (403, "backend_not_allowed")),
        ({"models": [OTHER]}, {}, (404, "model_not_found")),
        ({"budget_usd": Decimal("0.0001")}, {}, (403, "over_budget")),
        ({"map": ["my-model=together:qwen3-8b"]}, {"model": "my-model"}, (200, "")),
        ({"backends": ["together"], "models": [ASKED], "budget_usd": Decimal(1000)}, {}, (200, "")),
    ],
    ids=["backend", "model", "budget", "map", "all"],
)
def test_a_key_does_what_it_may(
    keyed: Gateway, scope: dict[str, Any], body: dict[str, Any], found: tuple[int, str]
) -> None:
    assert refusal(keyed, key(keyed, f"k{hash(str(scope))}", **scope), **body) == found


def test_a_budget_covers_no_price_with_an_open_end(tmp_path: Path, sandbox: Sandbox) -> None:
    """As the store's budget does not: nobody knows what the rest comes to."""
    padded = {"backend": "together", "model": "qwen3.5-2b", "settings": {"packing": False}}
    with gateway_of(tmp_path, sandbox.env, {"models": {ASKED: padded}}) as found:
        assert refusal(found, key(found, "free"))[0] == 200
        assert refusal(found, key(found, "tight", budget_usd=Decimal(1000))) == (403, "over_budget")


def test_simulated_bills_use_up_the_budget_of_a_key(keyed: Gateway) -> None:
    """As deployments of a sandbox do, and the runs of a sweep."""
    jobs = keyed.ft.store.gateway_jobs
    usual = key(keyed, "usual", budget_usd=Decimal(1000))

    def made(given: str, name: str) -> Decimal:
        with keyed.client(given) as client:
            file = client.files.create(file=("t.jsonl", rows(mark=given[-6:])), purpose="fine-tune")
            job = ended(client, client.fine_tuning.jobs.create(model=ASKED, training_file=file.id).id)
        found = jobs.get(job.id)
        assert found is not None and found.run_id is not None and found.quote_usd is not None
        bill = until(lambda: keyed.ft.run(found.run_id or "").record.bill)
        assert jobs.use(name).usd == bill.usd > 0
        return found.quote_usd

    quote = made(usual, "usual")
    tight = key(keyed, "tight", budget_usd=quote)
    made(tight, "tight")
    assert refusal(keyed, tight) == (403, "over_budget")


@pytest.mark.slow
def test_tuned_models_are_of_the_names_and_backends_that_a_key_may_use(keyed: Gateway) -> None:
    maker = key(keyed, "maker", project="p3")
    with keyed.client(maker) as client:
        file = client.files.create(file=("t.jsonl", rows(mark="m")), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model=ASKED, training_file=file.id, suffix="x:ckpt-step-3")
        name = ended(client, job.id).fine_tuned_model
        assert client.models.retrieve(name).id == name
        assert client.models.retrieve(f"{name}:ckpt-step-1").id.startswith(name)
    for scope, status in (({"models": [OTHER]}, 404), ({"backends": ["local"]}, 403)):
        with keyed.http(key(keyed, f"narrow{status}", project="p3", **scope)) as http:  # type: ignore[arg-type]
            assert http.get(f"models/{name}").status_code == status
            chat = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
            assert http.post("chat/completions", json=chat).status_code == status
            assert name not in [one["id"] for one in http.get("models").json()["data"]]


@pytest.mark.slow
def test_a_job_that_was_refused_for_now_still_takes_its_quote(keyed: Gateway) -> None:
    maker, jobs = key(keyed, "again"), keyed.ft.store.gateway_jobs
    assert refusal(keyed, maker)[0] == 200
    [job] = [job for job in jobs.listed("default") if job.key == "again"]
    until(lambda: (found := jobs.get(job.id)) and found.ended_at and found.told)
    done = jobs.get(job.id)
    assert done is not None and done.run_id is not None
    run, id = keyed.ft.store.runs.get(done.run_id), new_run_id(keyed.ft.store.clock.now())
    own = {"id": id, "ref": ref_of(id), "job_id": None, "idempotency_key": None, "bill": None}
    keyed.ft.store.runs.restore(replace(run, phase=SubmitPhase.REFUSED, status=JobStatus.FAILED, **own))
    at = keyed.ft.store.clock.now() + timedelta(hours=1)
    more = {"id": f"{job.id}2", "run_id": id, "again_at": at, "ended_at": None, "told": False}
    waiting = replace(done, quote_usd=Decimal(8), **more)  # type: ignore[arg-type]
    before = jobs.use("again")
    jobs.take(waiting, CreateKey("again", "another"), lambda use: None)
    assert (jobs.use("again").usd - before.usd, jobs.use("again").open - before.open) == (Decimal(8), 1)


def test_projects_see_their_own_only(keyed: Gateway) -> None:
    one, two = key(keyed, "one", project="p1"), key(keyed, "two", project="p2")
    with keyed.client(one) as client, keyed.http(two) as http:
        file = client.files.create(file=("t.jsonl", rows(mark="p")), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model=ASKED, training_file=file.id)
        assert http.get(f"files/{file.id}").status_code == 404
        assert http.get(f"fine_tuning/jobs/{job.id}/events").status_code == 404
        assert http.delete(f"files/{file.id}").status_code == 404
        assert http.get("fine_tuning/jobs").json()["data"] == []
        assert http.get("files").json()["data"] == []


def test_rate_and_jobs_at_once_are_limited(keyed: Gateway) -> None:
    slow = key(keyed, "slow", per_minute=2)
    with keyed.http(slow) as http:
        answers = [http.get("models") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert int(answers[-1].headers["retry-after"]) >= 1
    few = key(keyed, "few", concurrent=1)
    assert refusal(keyed, few)[0] == 200
    assert refusal(keyed, few, suffix="b") == (429, "too_many_jobs")
    with keyed.http(few) as http:
        file = http.get("files").json()["data"][0]["id"]
        later = http.post("fine_tuning/jobs", json={"model": ASKED, "training_file": file, "suffix": "c"})
    assert (later.status_code, later.headers["x-should-retry"]) == (429, "true")
    assert 1 <= int(later.headers["retry-after"]) <= 60, "longer waits are ignored by the official clients"


def test_the_log_tells_who_did_what(keyed: Gateway) -> None:
    who = key(keyed, "logged", backends=["together"])
    refusal(keyed, who, model=OTHER)
    # Each is written down after its answer.
    service.revoke_key(keyed.ft, "logged")
    service.revoke_key(keyed.ft, "logged")  # was revoked already
    assert len(service.entries(keyed.ft, key="logged")) == 4, "before they were answered"
    first, *entries, last = sorted(service.entries(keyed.ft, key="logged"), key=lambda e: (e.at, e.status))
    entries.sort(key=lambda entry: entry.status)
    assert [(e.method, e.path, e.status) for e in entries] == [
        ("POST", "/v1/files", 200),
        ("POST", "/v1/fine_tuning/jobs", 403),
    ]
    assert [(e.method, e.path, e.by) for e in (first, last)] == [
        ("COMMAND", f"gateway keys {verb}", keyed.ft.settings.made_by) for verb in ("add", "revoke")
    ]
    assert keyed.ft.settings.made_by and who not in str(service.entries(keyed.ft))
    assert str(entries[0].subject).startswith("file-") and entries[0].address == "127.0.0.1"


def test_others_come_with_keys_over_tls_only(keyed: Gateway, tmp_path: Path) -> None:
    ft = keyed.ft

    def refused(**more: Any) -> str:
        told = terms.read({}, tmp_path, "here", port=0, **more)
        with pytest.raises(UsageError) as caught, server.serve(ft, told, Watcher(ft.store, ft.ready)):
            pass
        return f"{caught.value} {caught.value.fix}"

    assert "--behind-proxy" in refused(host="0.0.0.0")


@pytest.mark.slow
def test_a_project_may_use_the_model_that_it_was_permitted(keyed: Gateway) -> None:
    maker, guest = key(keyed, "permits", project="p4"), key(keyed, "guest", project="p5")
    with keyed.client(maker) as client, keyed.http(guest) as http:
        file = client.files.create(file=("t.jsonl", rows(mark="permit")), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model=ASKED, training_file=file.id, suffix="shared")
        name = ended(client, job.id).fine_tuned_model
        chat = {"model": name, "messages": [{"role": "user", "content": "hi"}]}

        def asked() -> tuple[int, str]:
            answer = http.post("chat/completions", json=chat)
            return answer.status_code, answer.json()["error"]["code"]

        def continued() -> tuple[int, str]:
            upload = {"file": ("t.jsonl", rows(mark="own"))}
            own = http.post("files", files=upload, data={"purpose": "fine-tune"})
            body = {"model": name, "training_file": own.json()["id"]}
            answer = http.post("fine_tuning/jobs", json=body)
            return answer.status_code, answer.json()["error"]["code"]

        permissions = client.fine_tuning.checkpoints.permissions
        assert asked() == (404, "model_not_found")
        permission = permissions.create(name, project_ids=["p5", "p6"]).data[0]
        assert permission.project_id == "p5"
        assert asked() == (422, "model_not_deployed"), "found, and its host would have to serve it"
        assert http.get(f"models/{name}").json()["id"] == name
        # To use it is all: neither to see its job and its files, nor to give it on or away.
        assert http.get(f"fine_tuning/jobs/{job.id}").status_code == 404
        assert http.get(f"files/{file.id}/content").status_code == 404
        for method, path in (("DELETE", ""), ("POST", "/permissions"), ("GET", "/permissions")):
            url = f"fine_tuning/checkpoints/{name}{path}" if path else f"models/{name}"
            body = {"project_ids": ["p7"]} if method == "POST" else None
            assert http.request(method, url, json=body).status_code == 403, url
        assert continued() == (404, "model_not_found")
        permissions.delete(permission.id, fine_tuned_model_checkpoint=name)
        assert asked() == (404, "model_not_found")
        assert [one.project_id for one in permissions.list(name).data] == ["p6"]


@pytest.mark.slow
def test_a_name_may_have_colons(keyed: Gateway) -> None:
    narrow = key(keyed, "colons", project="p8", map=["qwen3:8b=together:qwen3-8b"], models=["qwen3:8b"])
    with keyed.client(narrow) as client:
        file = client.files.create(file=("t.jsonl", rows(mark="colons")), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model="qwen3:8b", training_file=file.id, suffix="a:b")
        name = ended(client, job.id).fine_tuned_model
        assert name == f"ft:qwen3:8b:orchestrate:a:b:{job.id[-8:]}"
        assert client.models.retrieve(name).id == name
        assert name in [model.id for model in client.models.list()]
        again = client.fine_tuning.jobs.create(model=name, training_file=file.id, suffix="again")
        assert ended(client, again.id).fine_tuned_model.startswith("ft:qwen3:8b:orchestrate:again:")
