"""How often is asked."""

from __future__ import annotations

import pytest

from orchestrate.errors import AuthenticationFailed, HostUnavailable, RateLimited
from orchestrate.runs.watching.polling import PollingPace


def raising(error: Exception) -> object:
    raise error


def test_polls_of_a_host_become_rarer_and_sooner_again_after_a_change() -> None:
    pace = PollingPace(2.0, most_s=30.0)
    waits = [pace.wait_s() for _ in range(40)]
    assert 1.6 <= waits[0] <= 2.4
    assert all(24 <= wait <= 36 for wait in waits[-5:])
    assert len({round(wait, 6) for wait in waits[-5:]}) > 1, "watchers must not ask in step"
    pace.changed()
    assert pace.wait_s() <= 2.4


def test_what_passes_is_waited_out_and_what_does_not_is_raised() -> None:
    pace = PollingPace(1.0)
    assert pace.attempt(lambda: 5) == 5
    assert pace.attempt(lambda: raising(HostUnavailable("paper", "down"))) is None
    with pytest.raises(AuthenticationFailed):
        pace.attempt(lambda: raising(AuthenticationFailed("paper", "no")))


def test_a_host_is_left_alone_as_long_as_it_asks() -> None:
    slept: list[float] = []
    pace = PollingPace(1.0, sleep=slept.append)
    pace.attempt(lambda: raising(RateLimited("paper", "busy", retry_after_s=86_400.0)))
    pace.sleep()
    pace.attempt(lambda: 1)
    pace.sleep()
    assert slept[0] == 86_400
    assert slept[1] <= 1.2
