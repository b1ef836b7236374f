"""How long a call is tried, with a clock that the call itself turns."""

from __future__ import annotations

import time

import pytest

from orchestrate.core.retries import Retry
from orchestrate.errors import HostUnavailable, RateLimited


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    turned = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: turned[0])
    return turned


@pytest.mark.parametrize(("takes_s", "tries"), [(0.1, 4), (70.0, 2), (25.0, 3)])
def test_a_long_call_is_tried_again_too(now: list[float], takes_s: float, tries: int) -> None:
    made: list[float] = []

    def call() -> None:
        made.append(now[0])
        now[0] += takes_s
        raise HostUnavailable("host", "it broke off")

    def sleep(seconds: float) -> None:
        now[0] += seconds

    with pytest.raises(HostUnavailable):
        Retry(attempts=4, first_s=0.1, longest_s=0.1).calling(call, sleep=sleep)
    assert len(made) == tries


def test_who_asks_for_more_time_than_there_is_is_not_asked_again(now: list[float]) -> None:
    made: list[int] = []

    def call() -> None:
        made.append(1)
        raise RateLimited("host", "later", retry_after_s=61)

    with pytest.raises(RateLimited):
        Retry().calling(call, sleep=lambda _: None)
    assert len(made) == 1
