"""`private: true`: nothing of a run leaves the user's own machines."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

from orchestrate import Orchestrator
from orchestrate.errors import ConfigError, OrchestrateError, SpecError, TranslationRefused, UsageError
from orchestrate.paid.paid_requests import Asking
from orchestrate.runs.evaluation.contenders import Contenders
from orchestrate.runs.log import log
from orchestrate.runs.privacy import require_own
from orchestrate.runs.serving import require_upload
from orchestrate.settings.config import load
from orchestrate.spec import JobSpec
from orchestrate.types import JobStatus, Run, Sampling, Severity, SubmitPhase


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    messages = [{"role": "user", "content": "Say red."}, {"role": "assistant", "content": "Red."}]
    (tmp_path / "train.jsonl").write_text(f"{json.dumps({'messages': messages})}\n" * 20)
    return JobSpec.parse({"model": "qwen3-8b", "train": str(tmp_path / "train.jsonl"), "private": True})


def service(tmp_path: Path, toml: str = "", **env: str) -> Orchestrator:
    named = tmp_path / "orchestrate.toml"
    named.write_text(toml)
    return Orchestrator(settings=load(env=env, config_file=named, home=tmp_path / "home"))


def test_every_host_and_place_elsewhere_is_refused_in_plan_check_and_submit(
    spec: JobSpec, tmp_path: Path
) -> None:
    with service(tmp_path, TOGETHER_API_KEY="a-key-of-nobody", FIREWORKS_API_KEY="a-key-of-nobody") as ft:
        names = ["together", "fireworks", "hf-jobs", "local"]
        prepared = ft.prepare(spec, names)
        for name in names:
            offer = prepared.offer(name)
            refused = [row for row in offer.translation.refused if row.name == "private"]
            assert bool(refused) is (name != "local"), name
            errors = [p for p in offer.problems if p.severity is Severity.ERROR and p.field == "private"]
            assert bool(errors) is (name != "local"), name
            assert offer.translation.overrides is None or "private" not in offer.translation.overrides
        with pytest.raises(TranslationRefused, match="own machines"):
            ft.submit(spec, provider="together", max_cost_usd=100)


def test_a_host_is_ones_own_at_a_loopback_address_or_where_the_user_says_so(
    spec: JobSpec, tmp_path: Path
) -> None:
    near = '[hosts.together]\nbase_url = "http://127.0.0.1:9/v1"\n'
    with service(tmp_path, near, TOGETHER_API_KEY="a-key-of-nobody") as ft:
        assert not ft.prepare(spec, ["together"]).offer("together").translation.refused
    with service(tmp_path, ORCHESTRATE_OWN_HOSTS="fireworks", FIREWORKS_API_KEY="a-key-of-nobody") as ft:
        rows = ft.prepare(spec, ["fireworks"]).offer("fireworks").translation.refused
        assert "private" not in [row.name for row in rows]


def test_no_file_of_a_project_can_take_it_back(spec: JobSpec, tmp_path: Path) -> None:
    said = "[hosts.together]\nown = true\n"
    with (
        pytest.raises(ConfigError, match=r"unknown field hosts\.together\.own"),
        service(tmp_path, said, TOGETHER_API_KEY="a-key-of-nobody") as ft,
    ):
        ft.prepare(spec, ["together"])
    with pytest.raises(SpecError, match="cannot change private"):
        JobSpec.parse({**spec.asked(), "overrides": {"together": {"private": False}}})


def test_a_spec_without_it_is_the_spec_that_it_was(spec: JobSpec) -> None:
    plain = JobSpec.parse({name: value for name, value in spec.asked().items() if name != "private"})
    assert "private" not in plain.canonical() and plain.hash() != spec.hash()


def kept(ft: Orchestrator, *, private: bool) -> Any:
    at = datetime(2026, 10, 9, tzinfo=UTC)
    spec = {"model": "qwen3-8b", **({"private": True} if private else {})}
    run = Run(
        id=f"run-{private}", ref=f"orc-{private}", provider="local", model="m", spec=spec, spec_hash="0" * 64,
        dataset_digest="0" * 64, host="local", phase=SubmitPhase.SUBMITTED, status=JobStatus.SUCCEEDED,
        job_id=f"orc-{private}", created_at=at, updated_at=at, finished_at=at,
    )  # fmt: skip
    ft.store.runs.restore(run)
    return ft.run(run.id)


JUDGE_HOST = "judge.example"
JUDGE = f"https://{JUDGE_HOST}/v1=a-judge"


@pytest.mark.parametrize(
    ("private", "theirs_is_mine", "refused"),
    [(True, False, True), (True, True, False), (False, False, False)],
)
def test_what_comes_after_training_stays_too(
    private: bool, theirs_is_mine: bool, refused: bool, tmp_path: Path
) -> None:
    """Judges, embeddings and other models, trackers' servers, uploads; what is at a loopback address may."""

    def is_refused(ask: Callable[[], Any]) -> bool:
        try:
            ask()
        except UsageError as error:
            assert "is private" in error.message and "ORCHESTRATE_OWN_HOSTS=" in str(error.fix)
            return True
        return False

    own = (
        ",".join((JUDGE_HOST, str(urlsplit(constants.ENDPOINT).hostname), "together"))
        if theirs_is_mine
        else ""
    )
    told: list[str] = []
    with service(tmp_path, ORCHESTRATE_OWN_HOSTS=own) as ft:
        contenders = Contenders(ft, Sampling(), "auto")
        run = kept(ft, private=private)
        with pytest.raises(OrchestrateError):  # its adapter is not here; what it is counts from now on
            contenders.of_run(run, None, base=False)
        asks = [lambda: contenders.respondent(JUDGE, 8, 0.0), lambda: contenders.of_model(JUDGE)]
        asks += [lambda: contenders.embed(JUDGE, Asking(tmp_path)), lambda: require_upload(ft, run, "us/m")]
        for address in ("https://judge.example/board", None, "http://127.0.0.1:5000"):
            tracker: Any = SimpleNamespace(address=address, write=lambda story: told.append(story.run.id))
            asks.append(lambda tracker=tracker: log(ft, [run], tracker))
        asks.append(lambda: require_own(run.record, ft.provider("together")))
        near = [lambda: contenders.respondent("http://127.0.0.1:9/v1=m", 8, 0.0)]
        together = private and not theirs_is_mine
        assert [is_refused(ask) for ask in [*asks, *near]] == [refused] * 5 + [False] * 2 + [together] + [
            False
        ]
    assert told == [run.id] * (2 if refused else 3)
