"""`orchestrate spending`: its first line, its exit codes for cron, its JSON and its webhook."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fireworks import Fireworks
from tests.cli.conftest import Cli
from tests.scripted_host import scripted_host

from orchestrate.commands.runs.spending import headline
from orchestrate.commands.setup.schema import of
from orchestrate.runs.spending import AccountStatus, Found, SpendingReport, Sum
from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations
from orchestrate.sandbox.server import Sandbox
from orchestrate.settings import config
from orchestrate.store.store import Store
from orchestrate.types import Bill, BilledResource, JobStatus, Run, SubmitPhase

BILLS = {"together": ["1.004", "2.004"], "openai": ["0.004"]}


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with running(home=tmp_path_factory.mktemp("sandbox"), train=False, waits=Durations(file=0.0)) as found:
        made(found, "forgotten")
        yield found


def made(sandbox: Sandbox, name: str) -> None:
    account = {
        "base_url": sandbox.env["FIREWORKS_BASE_URL"],
        "api_key": sandbox.env["FIREWORKS_API_KEY"],
        "account_id": sandbox.env["FIREWORKS_ACCOUNT_ID"],
    }
    with Fireworks(**account, max_retries=0) as client:
        client.deployments.create(
            account_id=account["account_id"],
            base_model="accounts/fireworks/models/qwen3-8b",
            deployment_id=name,
            deployment_shape="default",
        )


@pytest.fixture
def spent(tmp_path: Path) -> None:
    store_bills(tmp_path)


def store_bills(tmp_path: Path) -> None:
    at = datetime(2026, 10, 9, tzinfo=UTC)
    settings = config.load(env={}, home=tmp_path / "home")
    settings.make_home()
    with Store.open(settings.store_url) as store:
        for backend, bills in BILLS.items():
            for i, usd in enumerate(bills):
                run = Run(
                    id=f"run-{backend}-{i}", ref=f"orc-{backend}-{i}", provider=backend, model="m", spec={},
                    spec_hash="0" * 64, dataset_digest="0" * 64, host=backend, phase=SubmitPhase.SUBMITTED,
                    status=JobStatus.SUCCEEDED, job_id=f"job-{backend}-{i}", created_at=at, updated_at=at,
                    finished_at=at, bill=Bill(usd=Decimal(usd), origin="the host", final=True), made_by="ana",
                )  # fmt: skip
                store.runs.restore(run)


@pytest.mark.usefixtures("spent")
def test_the_first_line_says_how_much_how_much_is_left_and_the_lines_add_up(cli: Cli) -> None:
    done = cli("spending", "--offline", "--by", "backend,person", ORCHESTRATE_BUDGET_USD="10")
    assert done.code == 0
    lines = [line.split() for line in done.out.splitlines()]
    assert done.out.startswith("$3.02 spent, $0.00 committed, $6.98 left of $10.00; ongoing billing was not")
    assert ["together", "$3.01", "$0.00", "2", "0", "-"] in lines
    assert ["openai", "$0.01", "$0.00", "1", "0", "-"] in lines
    assert ["total", "$3.02", "$0.00", "3", "0", "-"] in lines and any(line[:1] == ["ana"] for line in lines)


def test_less_than_a_cent_is_told_as_it_is(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BILLS, "together", ["0.00018"])
    monkeypatch.setitem(BILLS, "openai", ["0.000075"])
    store_bills(tmp_path)
    done = cli("spending", "--offline", ORCHESTRATE_BUDGET_USD="10")
    assert done.out.startswith("$0.00026 spent, $0.00 committed, $9.99 left of $10.00")
    lines = [line.split() for line in done.out.splitlines()]
    assert ["together", "$0.00018", "$0.00", "1", "0", "-"] in lines
    assert ["total", "$0.00026", "$0.00", "2", "0", "-"] in lines


@pytest.mark.usefixtures("spent")
def test_over_the_budget_is_6(cli: Cli) -> None:
    over = cli("spending", "--offline", "--fail-if-over", ORCHESTRATE_BUDGET_USD="3")
    assert over.code == 6 and "$0.02 over the budget of $3.00" in over.out
    assert cli("spending", "--offline", "--fail-if-over", ORCHESTRATE_BUDGET_USD="3.012").code == 0
    for refused in (("--fail-if-over",), ("--fail-if-idle",), ("--month", "2026-13"), ("--by", "colour")):
        assert cli("spending", "--offline", *refused).code == 2
    one = cli("spending", "--offline", "--month", "2026-09")
    assert one.out.startswith("2026-09: $0.00 spent")


@pytest.mark.slow
@pytest.mark.usefixtures("spent")
def test_a_cost_that_nobody_knows_is_no_budget_that_holds(cli: Cli, tmp_path: Path) -> None:
    at = datetime(2026, 10, 9, tzinfo=UTC)
    bill = Bill(usd=Decimal("0.5"), origin="the host", final=False)
    with Store.open(config.load(env={}, home=tmp_path / "home").store_url) as store:
        for name, more in {"unpriced": {}, "given-up": {"abandoned": "deleted there", "bill": bill}}.items():
            run = Run(
                id=f"run-{name}", ref=f"orc-{name}", provider="openai", model="m", spec={}, host="openai",
                spec_hash="0" * 64, dataset_digest="0" * 64, phase=SubmitPhase.SUBMITTED, created_at=at,
                status=JobStatus.CANCELLED, job_id=f"job-{name}", updated_at=at, finished_at=at, **more,
            )  # fmt: skip
            store.runs.restore(run)
    ask = ("spending", "--offline", "--fail-if-over")
    unknown = cli(*ask, ORCHESTRATE_BUDGET_USD="10")
    assert unknown.code == 4 and "the cost of run-unpriced is unknown" in unknown.err
    assert "abandoned: run-given-up" in unknown.err and unknown.out.startswith("$3.52 spent")
    assert cli(*ask, ORCHESTRATE_BUDGET_USD="3").code == 6, "what is known is above it already"
    assert cli(*ask, "--ignore", "run-unpriced", ORCHESTRATE_BUDGET_USD="10").code == 0
    told = cli("spending", "--offline", "--json").json
    assert (told["uncounted"], told["total"]["abandoned"]) == (["run-unpriced"], ["run-given-up"])
    assert cli("abandon", "run-unpriced", "--reason", "nothing came of it").code == 0
    assert cli(*ask, ORCHESTRATE_BUDGET_USD="10").code == 0


@pytest.mark.slow
def test_what_is_idle_is_1_and_what_could_not_be_asked_is_4(
    cli: Cli, sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "orchestrate.toml").write_text("[hosts.openai.options]\nretry_budget_s = 0.5\n")
    idle = cli("spending", "--sandbox", "--fail-if-idle", **sandbox.env)
    assert idle.code == 1, idle.err
    first = idle.out.splitlines()[0]
    assert (
        "SANDBOX" in first
        and "$8.00 per hour is still being billed (1 resource, 1 not created by this store)" in first
    )
    assert "forgotten" in idle.out and "not created by this store" in idle.out
    ignored = ("spending", "--sandbox", "--fail-if-idle", "--ignore", "forgotten")
    assert cli(*ignored, **sandbox.env).code == 0
    sandbox.fault("openai", "no_list", count=0)
    blind = cli(*ignored, **sandbox.env)
    sandbox.clear_faults()
    assert blind.code == 4 and "openai could not be checked: could not parse the response" in blind.err
    assert "at least" in blind.out and "1 account could not be fully checked" in blind.out


def test_jobs_under_way_are_told_beside_what_stands_there() -> None:
    """They are no deployment, and it does not sound as if nothing were running."""
    job = BilledResource(provider="sky", kind="job", id="7", state="running", bills=True)
    ended = BilledResource(provider="sky", kind="job", id="6", state="ended", bills=False)
    report = SpendingReport(
        at=datetime(2026, 11, 26, tzinfo=UTC),
        total=Sum(key="total"),
        accounts=(AccountStatus(backend="sky", title="SkyPilot", asked=True),),
        standing=tuple(Found(item=one, foreign=False, idle=False) for one in (job, ended)),
        usd_per_hour=Decimal(0),
    )
    told = "no hourly billing in 1 account; 1 job running, included in the committed amount"
    assert headline(report).endswith(told)


@pytest.mark.slow
def test_orphans_are_listed_then_ended_by_who_agrees(cli: Cli, sandbox: Sandbox) -> None:
    """Never one that does not have our name; without anyone to ask none at all."""
    ask = ("spending", "--sandbox", "--end-orphans")
    nothing = cli(*ask, **sandbox.env)
    assert (
        nothing.code == 0
        and "no orphaned resources found in the accounts that could be checked" in nothing.err
    )
    made(sandbox, "orc-0123456789ab")
    refused = cli(*ask, **sandbox.env)
    assert refused.code == 2 and "did not confirm" in refused.err and "--yes" in refused.err
    assert "orc-0123456789ab" in refused.out and "forgotten" not in refused.out
    told = cli(*ask, "--yes", "--json", **sandbox.env)
    assert told.code == 0
    jsonschema.validate(told.json, of("spending"))
    assert [one["outcome"] for one in told.json["orphans"]] == ["asked to end"]
    again = cli(*ask, "--yes", **sandbox.env)
    assert (
        again.code == 0 and "no orphaned resources found in the accounts that could be checked" in again.err
    )
    assert "forgotten" in cli("spending", "--sandbox", **sandbox.env).out
    assert cli(*ask, "--offline").code == 2


def test_the_json_has_the_schema_and_the_webhook_the_signature(cli: Cli, sandbox: Sandbox) -> None:
    secret = "whsec_" + base64.b64encode(b"0123456789abcdef").decode()
    with scripted_host() as host:
        host.on("POST", "/hook", {})
        url = f"{host.url}/hook"
        env = {**sandbox.env, "ORCHESTRATE_NOTIFY_SECRET": secret}
        done = cli("spending", "--sandbox", "--by", "all", "--notify-url", url, "--json", **env)
        [request] = host.calls("POST", "/hook")
    assert done.code == 0, done.err
    jsonschema.validate(done.json, of("spending"))
    told: dict[str, Any] = json.loads(request.raw)
    headers = {name.lower(): value for name, value in request.headers.items()}
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + request.raw
    mark = base64.b64encode(hmac.new(b"0123456789abcdef", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{mark}"
    assert told["type"] == "spending.report" and told["id"] == headers["webhook-id"] and told["sandbox"]
    assert [(one["kind"], one["foreign"], one["usd_per_hour"]) for one in told["idle"]] == [
        ("deployment", True, "8")
    ]
    assert cli("spending", "--offline", "--notify").code == 2
    gone = cli("spending", "--offline", "--notify-url", url)
    assert gone.code == 4 and "notification failed" in gone.err
