"""The host's own estimate, asked for between the upload and the create."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.faults.paper_host import Paper, PaperHost
from tests.faults.submitting import submit

from orchestrate.errors import HostUnavailable, OrchestrateError, OverBudget, QuotaExceeded
from orchestrate.providers.base import EstimatesPrice
from orchestrate.spec import JobSpec
from orchestrate.store.store import Store
from orchestrate.types import Event, Feature, JobStatus, Quote, RemoteDataset, SubmitPhase, Translation

SPEC = JobSpec(model="m", train="rows.jsonl")
DATA: Any = Paper()
CHEAP = Quote(provider="paper", model="m", high_usd=Decimal(1))


class EstimatingHost(PaperHost, EstimatesPrice):
    """Says `told`: a price, a reason why there is none, or an error."""

    features: ClassVar = PaperHost.features | {Feature.LIVE_PRICE}
    told: Decimal | str | OrchestrateError = Decimal(0)

    def live_price(self, spec: JobSpec, remote: RemoteDataset, translation: Translation) -> Quote:
        self.requests.append("estimate")
        if isinstance(self.told, OrchestrateError):
            raise self.told
        if isinstance(self.told, str):
            return Quote(provider=self.name, model="m", unavailable=self.told)
        return Quote(provider=self.name, model="m", expected_usd=self.told)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/runs.sqlite3") as opened:
        yield opened


@pytest.fixture
def host(tmp_path: Path) -> EstimatingHost:
    return EstimatingHost(tmp_path / "host", timeout_s=0.1)


def price_events(store: Store) -> list[Event]:
    return [event for event in store.history.events(store.runs.get("last").id) if event.type == "live_price"]


def test_the_estimate_comes_before_each_create_and_is_kept(store: Store, host: EstimatingHost) -> None:
    host.told = Decimal("1.25")
    submit(store, host, SPEC, DATA, quote=CHEAP, max_cost_usd=Decimal("1.25"))
    submit(store, host, SPEC, DATA)
    assert host.requests == ["upload", "estimate", "create", "estimate", "create"]
    [event] = price_events(store)
    assert (event.data, event.level) == ({"usd": "1.25"}, "info")


@pytest.mark.parametrize(
    ("told", "raised"),
    [(Decimal("1.26"), OverBudget), (QuotaExceeded("paper", "above your credit"), QuotaExceeded)],
)
def test_an_estimate_above_a_limit_sends_nothing(
    store: Store, host: EstimatingHost, told: Any, raised: type[OrchestrateError]
) -> None:
    host.told = told
    with pytest.raises(raised) as caught:
        submit(store, host, SPEC, DATA, quote=CHEAP, max_cost_usd=Decimal("1.25"))
    assert (host.posts(), host.requests) == (0, ["upload", "estimate"])
    run = store.runs.get("last")
    assert (run.phase, run.status) == (SubmitPhase.REFUSED, JobStatus.FAILED)
    assert run.error is not None and run.error.message == caught.value.message
    host.told = Decimal(0)
    submit(store, host, SPEC, DATA)
    assert host.requests.count("upload") == 1, "the data stayed"


@pytest.mark.parametrize(
    ("told", "level"),
    [("images have no price", "info"), (HostUnavailable("paper", "no answer", status=503), "warning")],
)
def test_a_host_without_an_estimate_stops_nothing(
    store: Store, host: EstimatingHost, told: Any, level: str
) -> None:
    host.told = told
    run = submit(store, host, SPEC, DATA, quote=CHEAP, max_cost_usd=Decimal("1.25"))
    assert (run.phase, host.posts()) == (SubmitPhase.SUBMITTED, 1)
    [event] = price_events(store)
    assert (event.level, event.data) == (level, {})
