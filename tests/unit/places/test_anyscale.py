"""Anyscale by its own client, unmodified, against a stand-in that speaks its HTTP. What all places have is in
`test_contract`."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier
from typing import Any

import msgspec
import pytest
import trustme
from tests import leases
from tests.paths import ROOT
from tests.unit.places.depots import S3
from tests.unit.places.sent import REF, killed_and_brought_home, spec, submit

from orchestrate.data import TrainingData
from orchestrate.errors import (
    AuthenticationFailed,
    ConfigError,
    HostUnavailable,
    InvalidRequest,
    KeyElsewhere,
    MissingKey,
    OutcomeUnknown,
    PermissionRefused,
    ProviderError,
    RateLimited,
    SetupError,
    UnexpectedAnswer,
)
from orchestrate.places.base import Resources
from orchestrate.places.kinds._anyscale import Client
from orchestrate.places.kinds.anyscale import STATES, TAG, AnyscaleJobs
from orchestrate.places.lease import Attempt
from orchestrate.places.manifest import pins
from orchestrate.places.storage import RunStorage
from orchestrate.providers import registry
from orchestrate.providers.local.away import AwayProvider
from orchestrate.runs.spending import Spender
from orchestrate.runs.spending.orphans import Orphans
from orchestrate.runs.submitting.submit import Submitter
from orchestrate.runs.watching.watcher import Watcher
from orchestrate.settings import Secret, config
from orchestrate.store.store import Store
from orchestrate.types import ArtifactFile, JobStatus, Run, SubmitPhase

consoles = pytest.importorskip("tests.unit.places.console")
pytestmark = pytest.mark.slow  # a place's own client; what all places have in common is in the fast half
TOKEN = consoles.TOKEN


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Any]:
    """Jobs are made, and nothing is run."""
    (tmp_path / "console").mkdir()
    with consoles.running(tmp_path / "console", run=False) as found:
        yield found


def provider(
    console: Any, tmp_path: Path, home: str = "home", token: str = TOKEN, **options: Any
) -> AwayProvider:
    (tmp_path / home).mkdir(exist_ok=True)
    given = {"depot": f"file://{tmp_path}/depot", "instance": "g6.2xlarge", "gpu": "L4", **options}
    lines = [f"{name} = {json.dumps(value)}" for name, value in given.items() if value is not None]
    (tmp_path / "orchestrate.toml").write_text("[hosts.anyscale.options]\n" + "\n".join(lines))
    found = registry.make(
        "anyscale", config.load(env={}, config_file=tmp_path / "orchestrate.toml", home=tmp_path / home)
    )
    assert isinstance(found, AwayProvider)
    reached = found.config.changed(base_url=console.url, api_key=Secret(token), pins=None)
    found.place = AnyscaleJobs("anyscale", reached.options, reached)
    return found


def test_what_is_sent(console: Any, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One machine, no second try of Anyscale's own, an end, and the project, cloud and image that were asked
    for. The token is in none of it."""
    monkeypatch.setenv("DEPOT_WORD", "only among the variables")
    more = {"cloud": "first", "project": "ours", "image": "docker.io/me/image:1", "pass_env": ["DEPOT_WORD"]}
    found = provider(console, tmp_path, **more)
    submit(found, spec(rows, provider_options={"anyscale": {"max_hours": 2}}))
    [sent], [machine] = console.sent, console.machines
    asked = sent["config"]
    assert sent["name"] == REF and sent["tags"] == {TAG: REF, "orchestrate": "run"}
    assert sent["project_id"] == "prj_ours" and asked["build_id"] == "bld_of_image"
    assert asked["max_retries"] == 0 and asked["timeout_s"] == 2 * 3600
    assert asked["runtime_env"]["env_vars"]["DEPOT_WORD"] == "only among the variables"
    assert set(asked["runtime_env"]) == {"env_vars"}, "no folder of this machine goes along"
    assert "only among" not in asked["entrypoint"] and TOKEN not in json.dumps(sent)
    words = asked["entrypoint"].split()
    with_ = [words[i + 1] for i, word in enumerate(words) if word == "--with"]
    assert with_ == pins("local", more=("fsspec",)) and any(pin.startswith("torch==") for pin in with_)
    assert machine["config"]["cloud_id"] == "cld_first" and machine["anonymous"]
    assert machine["config"]["head_node_type"]["instance_type"] == "g6.2xlarge"
    assert machine["config"]["worker_node_types"] == [] and not machine["config"]["auto_select_worker_config"]


def test_our_words_are_the_clients() -> None:
    """Of each it tells as we do whether it goes on."""
    from anyscale.client.openapi_client.models.ha_job_states import HaJobStates
    from anyscale.job._private.job_sdk import HA_JOB_STATE_TO_JOB_STATE
    from anyscale.job.models import JobState

    assert set(STATES) == set(HaJobStates.allowable_values) == set(HA_JOB_STATE_TO_JOB_STATE)
    words = {JobState.STARTING: "waiting", JobState.RUNNING: "running"}
    assert {raw: words.get(word, "ended") for raw, word in HA_JOB_STATE_TO_JOB_STATE.items()} == STATES


@pytest.mark.parametrize("fault", ["garbled", "moved", "408 after", "502 after", "599 after"])
def test_an_answer_that_says_nothing_is_no_refusal(
    fault: str, console: Any, rows: Path, tmp_path: Path
) -> None:
    """An error page with a 200, another address, and what a proxy says for a host that has taken the job."""
    found, asked = provider(console, tmp_path), spec(rows)
    console.faults = [fault]
    with pytest.raises(OutcomeUnknown):
        submit(found, asked)
    assert submit(found, asked).job_id == REF and len(console.jobs) == 1


@pytest.mark.slow
def test_a_host_that_does_not_answer_is_not_waited_for_without_end(
    console: Any, rows: Path, tmp_path: Path
) -> None:
    found, asked = provider(console, tmp_path), spec(rows)
    reached = found.place.config.changed(timeout_s=10.0)  # type: ignore[attr-defined]
    found.place = AnyscaleJobs("anyscale", reached.options, reached)
    console.faults = ["slow"]
    with pytest.raises(OutcomeUnknown, match="ReadTimeout"):
        submit(found, asked)
    assert submit(found, asked).job_id == REF and len(console.jobs) == 1


def test_a_job_is_not_asked_for_later_than_a_lost_one_is_waited_for(console: Any, tmp_path: Path) -> None:
    """Else its request could still be on its way when its absence counts as proof."""
    place = provider(console, tmp_path).place
    asked = place.job(REF, Resources(), {})  # type: ignore[attr-defined]
    for took, sent in [(121.0, 0), (119.0, 1)]:
        client = Client(console.url, TOKEN, 60.0, clock=iter([0.0, took]).__next__)
        with nullcontext() if sent else pytest.raises(TimeoutError, match="did not submit"):
            client.submit(asked)
        assert (len(console.sent), client.creating) == (sent, bool(sent))


@pytest.mark.parametrize(
    ("fault", "raised"), [("401", AuthenticationFailed), ("403", PermissionRefused), ("429", RateLimited)]
)
def test_a_refusal_is_certain(
    fault: str, raised: type[ProviderError], console: Any, rows: Path, tmp_path: Path
) -> None:
    found, asked = provider(console, tmp_path), spec(rows)
    console.faults = [fault]
    with pytest.raises(raised, match="before anything was made"):
        submit(found, asked)
    assert not console.jobs and len(console.sent) == 1
    submit(found, asked)
    assert len(console.jobs) == 1


def test_a_list_that_is_none_is_no_absence(console: Any, rows: Path, tmp_path: Path) -> None:
    """No job is made where it cannot be told whether there is one."""
    found, asked = provider(console, tmp_path), spec(rows)
    for reading, raised in [("page", UnexpectedAnswer), ("500", HostUnavailable)]:
        console.reading = reading
        with pytest.raises(raised):
            submit(found, asked)
    console.reading = ""
    with pytest.raises(AuthenticationFailed):
        submit(provider(console, tmp_path, token="sss_another"), asked)
    assert not console.sent


@pytest.mark.parametrize(
    ("options", "told"),
    [({"project": "theirs"}, "'theirs' was not found"), ({"cloud": "theirs"}, "theirs not found")],
)
def test_a_project_or_cloud_that_does_not_exist(
    options: dict[str, str], told: str, console: Any, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(ProviderError, match=told):
        submit(provider(console, tmp_path, **options), spec(rows))
    assert not console.sent


def test_of_two_jobs_with_one_ref_the_younger_is_ended_and_told(
    console: Any, rows: Path, tmp_path: Path
) -> None:
    """Two stores submit at once: neither finds a job, and each makes one."""
    both = Barrier(2, timeout=240)
    console.made = lambda id: (console.lock.release(), both.wait(), console.lock.acquire())
    ours = [provider(console, tmp_path, home) for home in ("here", "there")]
    looked = Barrier(2, timeout=240)
    for one in ours:
        one.place.account()
        make = one.place.submit
        one.place.submit = lambda *order, make=make: (looked.wait(), make(*order))
    with ThreadPoolExecutor(2) as threads:
        handles = list(threads.map(lambda one: submit(one, spec(rows)), ours))
    assert [handle.job_id for handle in handles] == [REF, REF]
    first, second = sorted(console.jobs)
    states = {id: job["state"]["current_state"] for id, job in console.jobs.items()}
    assert states == {first: "PENDING", second: "TERMINATED"}
    told = [event.message for one in ours for event in one.events(handles[0]) if event.type == "doubled"]
    assert told and all(
        f"stopped {second}, a second job of this run. {first} continues" in message for message in told
    )
    for one in ours:
        assert one.get(handles[0]).status is JobStatus.QUEUED and not one.recover(handles[0])
    assert len(console.jobs) == 2


def test_the_job_of_a_stranger_with_our_name_is_left_alone(console: Any, rows: Path, tmp_path: Path) -> None:
    """Also by what ends the jobs that no run accounts for."""
    found, asked = provider(console, tmp_path), spec(rows)
    submit(found, asked)
    [mine] = console.jobs.values()
    stranger = {**mine, "id": "prodjob_theirs", "tags": {"team": "theirs"}}
    renamed = {**mine, "id": "prodjob_renamed", "name": "theirs"}
    console.jobs |= {"prodjob_theirs": stranger, "prodjob_renamed": renamed}
    assert [one.id for one in found.place.find(REF)] == [mine["id"]]
    with Store.open(f"sqlite:///{tmp_path}/empty.db") as store:
        by = lambda name: found  # noqa: E731
        orphans = Orphans(store, by)
        report = orphans.among(Spender(store, [found.name], by, by).report())
        assert [one.item.id for one in report.orphans] == [mine["id"]]
        assert [one.outcome for one in orphans.end(report).orphans] == ["asked to end"]
    assert mine["state"]["current_state"] == "TERMINATED"
    assert {stranger["state"]["current_state"], renamed["state"]["current_state"]} == {"PENDING"}


def test_a_job_that_somebody_else_ended(console: Any, rows: Path, tmp_path: Path) -> None:
    """It is found as ended, ending it again is no error, and the run goes on when it is told to."""
    found = provider(console, tmp_path)
    handle = submit(found, spec(rows))
    [id] = console.jobs
    [seen] = found.place.find(REF)
    console.terminate(id)
    found.place._end(seen)  # type: ignore[attr-defined]  as after a list from before
    found.place.stop(REF)
    assert found.get(handle).status is JobStatus.PAUSED and not found.recover(handle)
    found.resume(handle)
    assert len(console.jobs) == 2


def test_a_name_is_no_command(console: Any, rows: Path, tmp_path: Path) -> None:
    """Nothing of a spec or of the configuration is a word of the shell that starts the worker."""
    nasty = "x\"; $(touch /tmp/no) `id` '; exit 1\n"
    found = provider(console, tmp_path, instance=nasty)
    submit(found, spec(rows, tags={"team": nasty}))
    [sent], [machine] = console.sent, console.machines
    assert machine["config"]["head_node_type"]["instance_type"] == nasty
    assert "touch" not in json.dumps(sent["config"]["entrypoint"]) + sent["name"] + json.dumps(sent["tags"])


def test_without_a_price_there_is_no_quote_and_still_an_end(console: Any, rows: Path, tmp_path: Path) -> None:
    found, asked = provider(console, tmp_path), spec(rows)
    data = TrainingData.open(asked.train)  # type: ignore[arg-type]
    quote = found.quote(asked, data, found.translate(asked), None)  # type: ignore[arg-type]
    assert "the hourly price of this machine is unknown" in str(quote.unavailable)
    handle = submit(found, asked)
    assert console.sent[0]["config"]["timeout_s"] == 24 * 3600
    console.end(next(iter(console.jobs)), "OUT_OF_RETRIES", "the machine died", ran_s=90)
    job = found.get(handle)
    assert job.cost_usd is None and job.payload["used_seconds"] == pytest.approx(90, abs=1)


def test_a_log_that_cannot_be_had_holds_nothing_up(console: Any, rows: Path, tmp_path: Path) -> None:
    found = provider(console, tmp_path)
    handle = submit(found, spec(rows))
    [id] = console.jobs
    (console.folder / f"{id}.log").write_text("one\nno such image\n")
    console.running(id)
    assert found.place.output(REF) == "one\nno such image\n"
    console.end(id, "OUT_OF_RETRIES")
    console.closed = True
    assert "could not read the log:" in found.place.output(REF)
    assert found.get(handle).status is JobStatus.PAUSED


def test_what_would_lead_elsewhere_is_refused(
    console: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client would follow the one variable, and send a folder along by the other."""
    found = provider(console, tmp_path).place
    found.require()
    monkeypatch.setenv("ANYSCALE_HOST", "https://console.example.com")
    with pytest.raises(ConfigError, match=r"ANYSCALE_HOST is https://console\.example\.com"):
        found.find(REF)
    monkeypatch.setenv("ANYSCALE_HOST", f"{console.url}/")
    assert found.find(REF) == []
    monkeypatch.setenv("ANYSCALE_EXPERIMENTAL_WORKSPACE_ID", "expwrk_1")
    with pytest.raises(ConfigError, match="send the current folder"):
        found.require()
    monkeypatch.delenv("ANYSCALE_EXPERIMENTAL_WORKSPACE_ID")
    with pytest.raises(ConfigError, match=r"options\.instance .* is not set"):
        provider(console, tmp_path, instance="").place.require()


def test_the_token_goes_to_one_host(tmp_path: Path) -> None:
    """As each key: a project's file that names another address does not get it."""
    (tmp_path / "home").mkdir()
    file = tmp_path / "orchestrate.toml"
    options = f'[hosts.anyscale.options]\ndepot = "file://{tmp_path}/depot"\ninstance = "g6.2xlarge"\n'
    env = {"ORCHESTRATE_KEYS": str(tmp_path / "keys.toml")}
    elsewhere = '[hosts.anyscale]\nbase_url = "https://console.example.com"\n'
    for table, given, raised in [
        ("", {}, MissingKey),
        (elsewhere, {"ANYSCALE_CLI_TOKEN": TOKEN}, KeyElsewhere),
    ]:
        file.write_text(table + options)
        found = registry.make(
            "anyscale", config.load(env=env | given, config_file=file, home=tmp_path / "home")
        )
        with pytest.raises(raised):
            found.place.find(REF)  # type: ignore[attr-defined]


def test_tls_that_breaks_on_the_way_of_an_answer_sends_no_job_twice(
    console: Any, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP libraries take it for a connection that never came to be, and send again."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    console.server.wrapped(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("ANYSCALE_SSL_CA_CERT", str(tmp_path / "ca.pem"))
    found, asked = provider(console, tmp_path), spec(rows)
    reached = found.place.config.changed(base_url=console.url.replace("http", "https"))  # type: ignore[attr-defined]
    found.place = AnyscaleJobs("anyscale", reached.options, reached)
    console.faults = ["not TLS"]
    with pytest.raises(OutcomeUnknown, match="SSL"):
        submit(found, asked)
    assert submit(found, asked).job_id == REF and len(console.jobs) == len(console.sent) == 1


def test_nothing_that_is_told_holds_a_key(
    console: Any, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal that says what was sent, the address of a log, a token that no header takes."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "only among the variables")
    found, asked = provider(console, tmp_path), spec(rows)
    console.faults = ["echo"]
    with pytest.raises(InvalidRequest, match="AWS_SECRET_ACCESS_KEY") as refused:
        submit(found, asked)
    assert "only among" not in str(refused.value)
    submit(found, asked)
    console.running(next(iter(console.jobs)))
    console.closed = True
    told = found.place.output(REF)
    assert "403" in told and consoles.SIGNATURE not in told
    for token in ("sss_first\n", "sss_first second", "sss_\u00e9"):
        with pytest.raises(
            ConfigError,
            match="contains an invalid character, such as a space or a line break",
        ) as unseen:
            provider(console, tmp_path, token=token).place.find(REF)
        assert token.strip() not in str(unseen.value)


def test_a_client_that_is_another_than_is_known_is_named(
    console: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import anyscale

    monkeypatch.delattr(anyscale, "JobSDK")
    with pytest.raises(SetupError, match=r"does not support the installed version of anyscale: .*JobSDK"):
        provider(console, tmp_path).place.find(REF)


def test_a_request_that_is_not_known_may_be_the_one_that_makes_a_job(console: Any) -> None:
    """As in a later version of the client, which may ask for a job elsewhere."""
    client = Client(console.url, TOKEN, 60.0)
    for path, may in [("/api/v2/compute_templates", False), ("/api/v3/jobs/submit?dry=1", True)]:
        with suppress(Exception):
            client._client._internal_api_client.api_client.rest_client.POST(f"{console.url}{path}", body={})
        assert client.creating is may


def test_a_list_with_a_job_twice_or_without_an_end(console: Any, rows: Path, tmp_path: Path) -> None:
    found = provider(console, tmp_path)
    for n in range(3):
        submit(found, spec(rows), f"orc-00000000000{n}")
    assert len(found.billing().items) == len(console.jobs) == 3
    console.endless = True
    with pytest.raises(UnexpectedAnswer, match="repeats the same pages"):
        found.place.find()


def test_a_list_from_before_the_newest_start_ends_nothing(console: Any, rows: Path, tmp_path: Path) -> None:
    """It shows the job of the first attempt alone, which has ended: the second one may be at work."""
    found = provider(console, tmp_path)
    handle = submit(found, spec(rows))
    [first] = console.jobs
    console.end(first, "OUT_OF_RETRIES", "the machine died", ran_s=60)
    assert found.get(handle).status is JobStatus.PAUSED and found.recover(handle)
    second = list(console.jobs)[-1]
    console.forgets.add(second)
    assert found.get(handle).status is JobStatus.QUEUED and not found.recover(handle)
    console.forgets.clear()
    console.end(second, "OUT_OF_RETRIES", "the machine died")
    assert found.get(handle).status is JobStatus.PAUSED and found.recover(handle)
    assert len(console.jobs) == 3


def test_a_further_job_has_what_is_left_of_the_hours(console: Any, rows: Path, tmp_path: Path) -> None:
    """Also by Anyscale's own end, and none is started for nothing."""
    found = provider(console, tmp_path)
    handle, stored = submit(found, spec(rows)), found.place.run_storage.run(REF)
    for used_h, left in [(1, True), (24, False)]:
        stored.write("attempts/00000001.json", Attempt(token="t", used_s=used_h * 3600).to_json())
        console.end(list(console.jobs)[-1], "OUT_OF_RETRIES", "the machine died")
        assert found.get(handle).status is JobStatus.PAUSED
        assert found.recover(handle) is left
    with pytest.raises(InvalidRequest, match="the run has used"):
        found.resume(handle)
    assert [sent["config"]["timeout_s"] for sent in console.sent] == [86400, 86400 - 3600]


def test_what_was_made_while_the_data_were_sent_is_found(console: Any, rows: Path, tmp_path: Path) -> None:
    """That may take longer than a lost answer is waited for."""
    found, other, asked = provider(console, tmp_path), provider(console, tmp_path, "there"), spec(rows)

    class Slow(RunStorage):
        def keep(self, path: Path, under: str = "blobs") -> ArtifactFile:
            if not console.jobs:
                submit(other, asked)
            return super().keep(path, under)

    found.place._run_storage = Slow(found.place.storage_url)
    assert submit(found, asked).job_id == REF and len(console.sent) == 1


def test_a_run_of_another_account_is_not_gone_on_with_in_this_one(
    console: Any, rows: Path, tmp_path: Path
) -> None:
    """A watcher whose key was switched sees no job of it, which is no death."""
    found = provider(console, tmp_path)
    submit(found, spec(rows))
    [id] = console.jobs
    console.end(id, "OUT_OF_RETRIES", "the machine died", ran_s=60)
    at = datetime.now(UTC)
    run = Run(
        id="run-1", ref=REF, provider=found.name, model="m", spec={}, spec_hash="0" * 64, host=found.host,
        dataset_digest="0" * 64, phase=SubmitPhase.SUBMITTED, status=JobStatus.PAUSED, job_id=REF,
        created_at=at, updated_at=at, account="organization org_theirs, user usr_other",
    )  # fmt: skip
    for account, jobs in [(run.account, 1), (found.account().id, 2)]:
        with Store.open(f"sqlite:///{tmp_path}/{jobs}.db") as store:
            store.runs.restore(msgspec.structs.replace(run, account=account))
            Watcher(store, lambda name: found).turn()
            assert len(console.jobs) == jobs


def test_a_job_that_may_not_be_ended_keeps_no_other(console: Any, rows: Path, tmp_path: Path) -> None:
    found = provider(console, tmp_path)
    submit(found, spec(rows))
    [first] = console.jobs
    console.make(console.sent[0])
    console.keeps = {list(console.jobs)[-1]}
    with pytest.raises(PermissionRefused, match="is not yours"):
        found.place.stop(REF)
    assert console.jobs[first]["state"]["current_state"] == "TERMINATED"


def test_what_another_user_made_is_shown_and_left_alone(console: Any, rows: Path, tmp_path: Path) -> None:
    """Also its absence proves nothing to one who may not see it: the account is the user's."""
    found = provider(console, tmp_path)
    submit(found, spec(rows))
    [job] = console.jobs.values()
    with Store.open(f"sqlite:///{tmp_path}/empty.db") as store:
        for owner, person, count in [("usr_me", None, 1), ("usr_other", "me@example.com", 0)]:
            job["creator_id"] = owner
            spending = Spender(store, [found.name], lambda name: found, lambda name: found).report()
            assert [one.person for one in spending.standing] == [person]
            assert len(Orphans(store, lambda name: found).among(spending).orphans) == count
    assert found.account().id == "organization org_ours, user usr_me"


@pytest.mark.slow
def test_by_the_commands_alone(console: Any, rows: Path, tmp_path: Path) -> None:
    """The process is killed when its job was made and before it knows that: it is found."""
    (tmp_path / "o.toml").write_text(
        f'[hosts.anyscale.options]\ndepot = "file://{tmp_path}/depot"\n'
        'instance = "g6.2xlarge"\ngpu = "L4"\nusd_per_hour = 1.5\n'
    )
    (tmp_path / "spec.yaml").write_text(f"model: qwen3-8b\ntrain: {rows}\nadapter: qlora\n")
    env = {name: os.environ[name] for name in ("PATH", "ORCHESTRATE_TODAY") if name in os.environ}
    env |= {"HOME": str(tmp_path), "PYTHONPATH": f"{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}"}
    env |= {"ORCHESTRATE_HOME": str(tmp_path / "home"), "ORCHESTRATE_CONFIG": str(tmp_path / "o.toml")}
    env |= {"ORCHESTRATE_KEYS": str(tmp_path / "keys.toml"), "ANYSCALE_BASE_URL": console.url}

    def run(*words: str, given: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "orchestrate.cli", *words]
        return subprocess.run(
            command, env=env | more, cwd=tmp_path, input=given, capture_output=True, text=True, check=False
        )

    done = run("keys", "set", "anyscale", given=TOKEN, ANYSCALE_BASE_URL="https://console.anyscale.com")
    assert done.returncode == 0 and "https://console.anyscale.com" in done.stderr, done.stderr
    assert run("keys", "trust", "anyscale", console.url).returncode == 0
    told = run("doctor", "--online", "--json").stdout
    assert "accepts the key" in told and "key anyscale" in told, told
    command = [sys.executable, "-m", "orchestrate.cli", "submit", "spec.yaml", "-p", "anyscale", "--yes"]
    first = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=subprocess.DEVNULL)
    console.made = lambda id: os.kill(first.pid, signal.SIGKILL)
    assert first.wait(timeout=240) == -signal.SIGKILL and len(console.jobs) == 1
    console.made = lambda id: None
    found, deadline = provider(console, tmp_path), time.monotonic() + 400
    leases.expire(url := f"sqlite:///{tmp_path}/home/runs.sqlite3")
    with Store.open(url) as store:
        while (one := store.runs.matching()[0]).phase is not SubmitPhase.SUBMITTED:
            assert time.monotonic() < deadline, one
            Submitter(store, found).settle(one)
            time.sleep(0.5)
    assert len(console.jobs) == 1
    [job] = console.jobs.values()
    assert one.ref == job["name"] and one.ref in run("spending").stdout
    assert run("cancel", one.id).returncode == 0 and job["state"]["current_state"] == "TERMINATED"


@pytest.mark.slow
def test_trained_over_there_killed_and_brought_home(s3: S3, rows: Path, tmp_path: Path) -> None:
    """The real engine in processes that a shell starts by the job's entrypoint, with its variables alone, its
    depot S3; its machine dies on the way."""
    (tmp_path / "console").mkdir()
    with consoles.running(tmp_path / "console") as console:
        found = provider(console, tmp_path, depot=f"s3://runs/{tmp_path.name}", gpu=None, usd_per_hour=0.5)
        options = {"recovery_seconds": 0, "threads": 1}
        asked = spec(rows, epochs=4, batch_size=2, seed=1, provider_options={"anyscale": options})
        killed_and_brought_home(found, asked, console, tmp_path)
