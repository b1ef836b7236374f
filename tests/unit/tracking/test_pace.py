"""How often is asked."""

from __future__ import annotations

import pytest

from orchestrate.errors import AuthenticationFailed, HostUnavailable, RateLimited
from orchestrate.tracking import Pace
from orchestrate.tracking.budget import TokenBucket
from orchestrate.tracking.clock import Clock, Uptime


class Still(Clock):
    def __init__(self) -> None:
        self.seconds = 0.0
        self.slept: list[float] = []

    def uptime(self) -> Uptime:
        return Uptime("start", self.seconds)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


def raising(error: Exception) -> object:
    raise error


def test_polls_of_a_host_become_rarer_and_sooner_again_after_a_change() -> None:
    pace = Pace(2.0, most_s=30.0)
    waits = [pace.wait_s() for _ in range(40)]
    assert 1.6 <= waits[0] <= 2.4
    assert all(24 <= wait <= 36 for wait in waits[-5:])
    assert len({round(wait, 6) for wait in waits[-5:]}) > 1, "watchers must not ask in step"
    pace.changed()
    assert pace.wait_s() <= 2.4


def test_what_passes_is_waited_out_and_what_does_not_is_raised() -> None:
    pace = Pace(1.0)
    assert pace.attempt(lambda: 5) == 5
    assert pace.attempt(lambda: raising(HostUnavailable("paper", "down"))) is None
    with pytest.raises(AuthenticationFailed):
        pace.attempt(lambda: raising(AuthenticationFailed("paper", "no")))


def test_a_host_is_left_alone_as_long_as_it_asks() -> None:
    slept: list[float] = []
    pace = Pace(1.0, sleep=slept.append)
    pace.attempt(lambda: raising(RateLimited("paper", "busy", retry_after_s=86_400.0)))
    pace.sleep()
    pace.attempt(lambda: 1)
    pace.sleep()
    assert slept[0] == 86_400
    assert slept[1] <= 1.2


def test_a_bucket_lets_its_rate_through_and_no_more() -> None:
    clock = Still()
    bucket = TokenBucket(60, 5, clock=clock)
    for _ in range(65):
        bucket.take()
    assert clock.seconds == pytest.approx(60)
    assert clock.slept[:5] == pytest.approx([1.0] * 5)
    clock.seconds += 3600
    assert [bucket.take() for _ in range(5)] == [0.0] * 5
    assert bucket.take() == pytest.approx(1.0), "an idle hour earns one burst, not an hour's requests"
