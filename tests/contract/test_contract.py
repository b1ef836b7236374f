"""One suite over all backends: what the contract promises, and what each request said."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.contract.backends import (
    ABSENT,
    METHODS,
    TRAINED,
    Backend,
    at,
    every_setting,
    methods,
    named,
    new_ref,
    submit,
    wait_for,
)
from tests.sending import create, upload

from orchestrate import costing
from orchestrate.data import TrainingData
from orchestrate.errors import AuthenticationFailed, NotFound, OutcomeUnknown, ProviderError, Unsupported
from orchestrate.profile import built_in, described, places
from orchestrate.providers import registry
from orchestrate.providers.base import (
    FEATURES,
    Cancels,
    HandsOutFiles,
    ListsBilled,
    ListsModels,
    Pauses,
    Provider,
    ShowsRows,
    TakesAdapters,
    capability,
    require,
)
from orchestrate.sandbox.server import Sandbox
from orchestrate.spec import JobSpec, QLoRA
from orchestrate.types import Feature, JobHandle, JobStatus, Message, Outcome, RemoteDataset, Severity

# -- offline --------------------------------------------------------------------------------------------


def test_each_feature_is_there_or_has_its_reason(backend: Backend, make: Any) -> None:
    provider = make(backend)
    assert provider.features | provider.missing.keys() == set(Feature)
    assert not provider.features & provider.missing.keys()
    assert all(len(reason) > 15 for reason in provider.missing.values())
    for feature in provider.missing:
        with pytest.raises(Unsupported) as caught:
            require(provider, feature)
        assert caught.value.reason == provider.missing[feature]


@pytest.mark.parametrize("kind", [*built_in(), *described(), *places()])
def test_features_are_those_that_are_implemented(kind: str) -> None:
    found = registry.provider_class(kind)
    implemented = {feature for feature, part in FEATURES.items() if issubclass(found, part)}
    assert implemented == found.features & FEATURES.keys()


def test_a_backend_that_says_more_or_less_than_it_implements_cannot_be_defined() -> None:
    own = registry.provider_class("together")
    pauses = {"features": own.features | {Feature.PAUSE}, "profile": own.profile}
    with pytest.raises(TypeError, match="Pauses"):
        type("Says", (own,), pauses)
    with pytest.raises(TypeError, match="Pauses"):
        type("Does", (Pauses, own), {"profile": own.profile})
    assert issubclass(type("Both", (Pauses, own), pauses), Pauses)
    billing: dict[str, Any] = {"profile": own.profile, "features": frozenset(), "billing": lambda self: None}
    with pytest.raises(TypeError, match="ListsBilled"):  # nobody would ask it what is billed
        type("Unasked", (Provider,), billing)
    base = type("Base", (Provider,), {"profile": own.profile, "features": frozenset[Feature]()})
    with pytest.raises(TypeError, match="NamesAccount"):
        type("Real", (base,), {"account": lambda self: None})
    with pytest.raises(
        TypeError, match="own_rates, which belongs in its Profile"
    ):  # a quote would not find them
        type("Before", (base,), {"own_rates": ("lora",)})
    assert issubclass(type("Asked", (ListsBilled,), billing), ListsBilled)


@pytest.mark.parametrize("method", ["sft", "dpo", "rft"])
def test_every_setting_that_was_asked_for_has_a_row(
    backend: Backend, make: Any, sandbox: Sandbox, method: str
) -> None:
    provider = make(backend)
    before = sandbox.count()
    spec = JobSpec(model=backend.model, train="t", validation="v", **every_setting(method))
    translation = provider.translate(spec)
    assert sandbox.count() == before
    names = {row.name for row in translation.settings}
    for asked in _flat(spec.asked()):
        assert any(asked == n or asked.startswith(f"{n}.") for n in names), f"{asked} has no row"
    for row in translation.settings:
        if row.outcome in (Outcome.REFUSED, Outcome.MAPPED):
            assert row.rule, f"{row.name} is {row.outcome} without a word"
        if row.outcome in (Outcome.KEPT, Outcome.MAPPED) and row.wire and row.sent is not None:
            assert at(translation.body, row.wire) == row.sent, row.name
    if method not in methods(provider):
        assert any(row.name.startswith("method") for row in translation.refused)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and f"{prefix}{key}" != "method.grader":
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}"


def test_what_was_not_asked_is_never_refused(backend: Backend, make: Any, files: dict[str, str]) -> None:
    provider = make(backend)
    for method in methods(provider):
        translation = provider.translate(backend.spec(files, method))
        assert [row.name for row in translation.refused] == []
    translation = provider.translate(JobSpec(model=backend.model, train="t", adapter=QLoRA()))
    adapter = next(row for row in translation.settings if row.name == "adapter.type")
    assert backend.name == "local" or adapter.outcome is Outcome.REFUSED or not adapter.exact


def test_option_of_this_backend_goes_into_the_body(hosted: Backend, make: Any, files: dict[str, str]) -> None:
    provider = make(hosted)
    spec = hosted.spec(files, provider_options={hosted.name: {"future": {"x": 1}}, "another": {"y": 2}})
    body = provider.translate(spec).body
    assert body["future"] == {"x": 1}
    assert "y" not in body
    told = provider.translate(
        hosted.spec(files, provider_options={hosted.name: {"model": "other", "baseModel": "o"}})
    )
    assert told.refused or told.body.get("model") != "other"


def test_quote_has_sources_or_says_why_there_is_none(
    backend: Backend, make: Any, files: dict[str, str]
) -> None:
    provider = make(backend)
    for method in methods(provider):
        spec = backend.spec(files, method)
        data = TrainingData.open(spec.train, spec.validation)
        quote = provider.quote(spec, data, provider.translate(spec), costing.built_in())
        assert quote.provider == provider.name
        prices = quote.low_usd, quote.expected_usd, quote.high_usd
        if quote.unavailable:
            assert prices == (None, None, None)
        else:
            known = [price for price in prices if price is not None]
            assert len(known) == 3 and known == sorted(known)
            assert all(line.source for line in quote.lines)


def test_good_data_passes_and_rows_of_another_kind_do_not(
    backend: Backend, make: Any, files: dict[str, str]
) -> None:
    provider = make(backend)

    def errors(spec: JobSpec) -> list[str]:
        data = TrainingData.open(spec.train, spec.validation)
        found = provider.check(spec, data, provider.translate(spec))
        assert all(provider.name in p.providers or not p.providers for p in found)
        return [p.code for p in found if p.severity is Severity.ERROR]

    assert errors(backend.spec(files)) == []
    assert errors(backend.spec(files, train=files["dpo"]))
    if Feature.TOOLS in provider.features:
        assert errors(backend.spec(files, train=files["tools"], validation=files["tools-validation"])) == []


# -- one job from upload to end -------------------------------------------------------------------------


def test_one_remote_file_for_each_digest(
    hosted: Backend, make: Any, files: dict[str, str], sandbox: Sandbox
) -> None:
    spec = hosted.spec(files)
    data = TrainingData.open(spec.train, spec.validation)
    first = upload(make(hosted), spec, data)
    before = _uploads(sandbox, hosted)
    second = upload(make(hosted), spec, data)
    assert (first.train_id, first.validation_id) == (second.train_id, second.validation_id)
    assert first.train_id != first.validation_id
    assert first.digest == data.digest
    assert _uploads(sandbox, hosted) == before


def _uploads(sandbox: Sandbox, hosted: Backend) -> int:
    return sandbox.count(hosted.name, method="PUT") + sandbox.count(hosted.name, method="POST")


def test_the_methods_of_each_backend_are_tested(hosted: Backend, make: Any) -> None:
    assert methods(make(hosted)) == [method for method in METHODS if method in hosted.create_path]


@pytest.mark.parametrize(**named(ABSENT))
def test_a_method_that_is_not_trained_is_unsupported(hosted: Backend, make: Any, method: str) -> None:
    with pytest.raises(Unsupported):
        require(make(hosted), Feature(method))


@pytest.mark.parametrize(**named(TRAINED))
def test_create_is_one_post_that_can_be_found(
    hosted: Backend, make: Any, files: dict[str, str], sandbox: Sandbox, method: str
) -> None:
    provider = make(hosted)
    spec = hosted.spec(files, method, epochs=2)
    remote = _remote(provider, spec, method)
    ref = new_ref()
    before = sandbox.count(hosted.name)
    handle = create(provider, spec, remote, ref)
    sent = sandbox.requests(hosted.name)[-1]
    assert sandbox.count(hosted.name) == before + 1
    assert (sent["method"], sent["path"]) == ("POST", hosted.create_path[method])
    assert ref in f"{sent['body']}{sent['query']}"
    assert (handle.provider, handle.ref) == (hosted.name, ref)
    assert [(h.job_id, h.ref) for h in provider.find(ref)] == [(handle.job_id, ref)]
    assert provider.find(new_ref()) == []
    job = provider.get(handle)
    assert (job.handle.job_id, job.handle.ref, job.handle.kind) == (handle.job_id, ref, handle.kind)
    capability(provider, Cancels).cancel(handle)


def _remote(provider: Provider, spec: JobSpec, method: str) -> RemoteDataset:
    return upload(provider, spec, TrainingData.open(spec.train, spec.validation))


@pytest.fixture
def finished(
    request: pytest.FixtureRequest, backend: Backend, make: Any, files: dict[str, str]
) -> tuple[Provider, JobHandle]:
    if backend.driven:
        # Its tokenizer is not the quoted model's, so the high end of the quote is no limit to go by.
        driving, spec = request.getfixturevalue("driving"), backend.spec(files, epochs=1)
        run = driving.submit(spec, backend.name, max_cost_usd=1)
        run.wait(timeout_s=240)
        return run.provider, run.record.handle
    provider = make(backend)
    handle = submit(provider, backend.spec(files, epochs=1), new_ref())
    wait_for(provider, handle, lambda job: job.status.terminal)
    return provider, handle


@pytest.mark.slow
def test_life_of_a_job(backend: Backend, finished: tuple[Provider, JobHandle], tmp_path: Path) -> None:
    provider, handle = finished
    job = provider.get(handle)
    assert job.status is JobStatus.SUCCEEDED, job.error
    if statuses := provider.profile.statuses:  # where our own engine writes them there are none
        assert statuses[str(job.raw_status)] is JobStatus.SUCCEEDED
    assert job.created_at is not None
    assert datetime.now(UTC) - job.created_at < timedelta(hours=1)
    listed = [found.handle.job_id for found in provider.list()]
    assert handle.job_id in listed
    assert list(provider.list(since=datetime.now(UTC) + timedelta(hours=1))) == []

    events = list(provider.events(handle))
    assert events
    assert [e.at for e in events] == sorted(e.at for e in events)
    assert len({e.id for e in events}) == len(events)
    middle = len(events) // 2
    rest = list(provider.events(handle, after=events[middle].id))
    assert [e.id for e in rest] == [e.id for e in events[middle + 1 :]]
    assert list(provider.events(handle, after=events[-1].id)) == []

    if Feature.METRICS in provider.features:
        points = provider.metrics(handle)
        assert points
        assert [p.step for p in points] == sorted({p.step for p in points})
        assert any("train_loss" in p.values for p in points)
    if Feature.CHECKPOINTS in provider.features:
        checkpoints = provider.checkpoints(handle)
        assert checkpoints
        assert len({c.id for c in checkpoints}) == len(checkpoints)
    capability(provider, Cancels).cancel(handle)  # of an ended job: nothing happens
    assert provider.get(handle).status is JobStatus.SUCCEEDED
    if Feature.CHAT in provider.features and Feature.DEPLOY not in provider.features:
        asked = [[Message(role="user", content=f"What is {n}?")] for n in range(2)]
        assert len(provider.generate(handle, asked, max_tokens=4)) == 2
        assert len(provider.generate(handle, asked[:1], base=True, max_tokens=4)) == 1
    if Feature.DOWNLOAD in provider.features:
        _download(provider, handle, tmp_path / "model")
    if Feature.DELETE in provider.features:
        provider.delete(handle)
        provider.delete(handle)


def _download(provider: Provider, handle: JobHandle, folder: Path) -> None:
    artifact = provider.download(handle, folder)
    assert artifact.files
    assert any(f.path.endswith(".safetensors") for f in artifact.files)
    for file in artifact.files:
        path = Path(artifact.folder) / file.path
        assert path.stat().st_size == file.bytes
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256


@pytest.mark.usefixtures("standing")
def test_cancel_twice(hosted: Backend, make: Any, files: dict[str, str], sandbox: Sandbox) -> None:
    provider = make(hosted)
    handle = submit(provider, hosted.spec(files), new_ref())
    capability(provider, Cancels).cancel(handle)
    capability(provider, Cancels).cancel(handle)
    sandbox.skip(100_000)
    job = wait_for(provider, handle, lambda job: job.status.terminal)
    assert job.status is JobStatus.CANCELLED
    capability(provider, Cancels).cancel(handle)


@pytest.mark.usefixtures("standing")
def test_pause_and_resume(hosted: Backend, make: Any, files: dict[str, str], sandbox: Sandbox) -> None:
    provider = make(hosted)
    handle = submit(provider, hosted.spec(files), new_ref())
    if Feature.PAUSE in provider.features:
        sandbox.skip(3_000)  # validated after 1,000, begun after 2,000
        wait_for(provider, handle, lambda job: job.status is JobStatus.RUNNING)
        provider.pause(handle)
        provider.pause(handle)
        assert provider.get(handle).status is JobStatus.PAUSED
        provider.resume(handle)
        provider.resume(handle)
        sandbox.skip(100_000)
        wait_for(provider, handle, lambda job: job.status is JobStatus.SUCCEEDED)
    else:
        with pytest.raises(Unsupported) as caught:
            capability(provider, Pauses)
        assert caught.value.reason == provider.missing[Feature.PAUSE]


# -- what is missing, refused or lost -------------------------------------------------------------------


@pytest.mark.parametrize("part", [*FEATURES.values(), TakesAdapters, ShowsRows, ListsModels, HandsOutFiles])
def test_what_is_missing_gives_its_reason(backend: Backend, make: Any, part: type[Provider]) -> None:
    provider = make(backend)
    if isinstance(provider, part):
        assert capability(provider, part) is provider
        return
    with pytest.raises(Unsupported) as caught:
        capability(provider, part)
    feature = next((one for one, its in FEATURES.items() if its is part), None)
    assert caught.value.reason
    assert feature is None or caught.value.reason == provider.missing[feature]


LOST = {
    "lost_answer": 1,
    "half_body": 1,
    "html_after": 1,
    "timeout": 1,
    "lost_request": 0,
    "html": 0,
}
"""Faults of a create request, and how many jobs there are afterwards."""


@pytest.mark.parametrize("kind", LOST)
def test_lost_answer_is_settled_by_find(
    hosted: Backend, make: Any, files: dict[str, str], sandbox: Sandbox, kind: str
) -> None:
    provider = make(hosted)
    spec = hosted.spec(files)
    remote = _remote(provider, spec, "sft")
    path, ref = hosted.create_path["sft"], new_ref()
    before = sandbox.count(hosted.name, method="POST", path=path)
    sandbox.fault(hosted.name, kind, method="POST", path=path)
    with pytest.raises(OutcomeUnknown):
        create(provider, spec, remote, ref)
    assert sandbox.count(hosted.name, method="POST", path=path) == before + 1
    assert len(provider.find(ref)) == LOST[kind]


@pytest.mark.parametrize(("kind", "fields"), [("error", {"status": 400}), ("rate_limit", {"retry_after": 3})])
def test_refused_create_made_nothing(
    hosted: Backend, make: Any, files: dict[str, str], sandbox: Sandbox, kind: str, fields: dict[str, Any]
) -> None:
    provider = make(hosted)
    spec = hosted.spec(files)
    remote = _remote(provider, spec, "sft")
    ref = new_ref()
    sandbox.fault(hosted.name, kind, method="POST", path=hosted.create_path["sft"], **fields)
    with pytest.raises(ProviderError) as caught:
        create(provider, spec, remote, ref)
    assert caught.value.status == fields.get("status", 429)
    if kind == "rate_limit":
        assert caught.value.retry_after_s == 3
    assert provider.find(ref) == []


def test_double_is_seen(hosted: Backend, make: Any, files: dict[str, str], sandbox: Sandbox) -> None:
    provider = make(hosted)
    spec = hosted.spec(files)
    remote = _remote(provider, spec, "sft")
    ref = new_ref()
    sandbox.fault(hosted.name, "duplicate", method="POST", path=hosted.create_path["sft"])
    # Where the caller chooses the id, the second of two equal requests is refused as a conflict.
    try:
        create(provider, spec, remote, ref)
        expected = 2
    except OutcomeUnknown:
        expected = 1
    assert len(provider.find(ref)) == expected


def test_unknown_status_word_is_not_an_end(
    hosted: Backend, make: Any, files: dict[str, str], sandbox: Sandbox
) -> None:
    provider = make(hosted)
    handle = submit(provider, hosted.spec(files), new_ref())
    sandbox.fault(hosted.name, "unknown_status", method="GET", word="reticulating", count=0)
    job = provider.get(handle)
    assert (job.status, job.raw_status) == (JobStatus.UNKNOWN, "reticulating")
    sandbox.clear_faults()
    capability(provider, Cancels).cancel(handle)


@pytest.mark.slow
def test_reads_outlast_short_faults(
    hosted: Backend, make: Any, files: dict[str, str], sandbox: Sandbox
) -> None:
    provider = make(hosted)
    handle = submit(provider, hosted.spec(files), new_ref())
    for kind in ("error", "html", "half_body"):
        sandbox.fault(hosted.name, kind, method="GET")
        assert provider.get(handle).handle.job_id == handle.job_id
    capability(provider, Cancels).cancel(handle)


def test_job_that_is_not_there(backend: Backend, make: Any) -> None:
    with pytest.raises(NotFound):
        make(backend).get(JobHandle(provider=backend.name, job_id="ft-none", kind=None))


def test_wrong_key(hosted: Backend, sandbox: Sandbox, tmp_path: Path) -> None:
    env = {k: ("wrong-key-of-nobody" if k.endswith("API_KEY") else v) for k, v in sandbox.env.items()}
    provider = hosted.make(env, tmp_path)
    with pytest.raises(AuthenticationFailed) as caught:
        list(provider.list())
    assert "wrong-key-of-nobody" not in str(caught.value)
    assert str(caught.value.fix).startswith(f"orchestrate keys set {hosted.name} ")
    provider.close()


def test_sandbox_is_never_taken_for_the_host(hosted: Backend, make: Any, sandbox: Sandbox) -> None:
    provider = make(hosted)
    assert provider.config.sandbox
    assert "127.0.0.1" in provider.host
    assert sandbox.env[f"{hosted.name.upper()}_API_KEY"] not in repr(provider.config)
