"""The day by which prices and closing dates hold."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

import orchestrate
from orchestrate import catalog
from orchestrate.core import days
from orchestrate.costing import Prices
from orchestrate.errors import ConfigError
from orchestrate.profile import profile


@pytest.fixture(params=["Pacific/Kiritimati", "Etc/GMT+12"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """26 hours apart: on one of them it is always another day than in UTC."""
    monkeypatch.delenv(days.VARIABLE)
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def test_prices_and_closing_dates_go_by_the_day_in_utc(zone: str) -> None:
    before = datetime.now(UTC).date()
    assert before <= days.today() <= datetime.now(UTC).date()
    assert Prices("openai").on in (before, datetime.now(UTC).date())


def test_nothing_goes_by_the_local_day() -> None:
    root = Path(orchestrate.__file__).parent
    local = [f.relative_to(root) for f in root.rglob("*.py") if "date.today()" in f.read_text()]
    # The note on a measured speed is for people.
    assert local == [Path("local/speed/bench.py")]


def test_a_closing_date_says_by_which_day_it_holds() -> None:
    openai = profile("openai")
    assert "from 2027-01-06 (UTC)" in (openai.gated(date(2026, 11, 26)) or "")
    assert openai.closed(date(2027, 1, 5)) is None
    assert "today is 2027-01-06 (UTC)" in (openai.closed(date(2027, 1, 6)) or "")


def test_a_model_is_looked_up_on_that_day() -> None:
    assert catalog.resolve("gpt-4o-mini", "openai").warnings == (
        catalog.resolve("gpt-4o-mini", "openai", days.today()).warnings
    )


def test_another_day_can_be_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    host = profile("openai")
    for day, closed in (("2027-01-05", False), ("2027-01-06", True)):
        monkeypatch.setenv(days.VARIABLE, day)
        assert days.today() == Prices("openai").on == date.fromisoformat(day)
        assert (host.closed(days.today()) is not None) == closed


def test_what_is_no_day_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(days.VARIABLE, "tomorrow")
    with pytest.raises(ConfigError, match="got 'tomorrow'"):
        days.today()
