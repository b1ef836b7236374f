"""The concurrency limits and the metrics of a server."""

from __future__ import annotations

import bisect
import math
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histogram buckets, in seconds."""


class ServerBusy(Exception):
    """Raised if the queue is full. A retry may succeed after `retry_s` seconds."""

    def __init__(self, retry_s: int) -> None:
        super().__init__(f"try again in {retry_s} s")
        self.retry_s = retry_s


@dataclass
class Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str, help: str) -> Iterator[str]:
        yield from _head(name, help, "histogram")
        below = 0
        for edge, count in zip(("0.01", *map(str, BUCKETS[1:]), "+Inf"), self.counts, strict=True):
            below += count
            yield f'{name}_bucket{{le="{edge}"}} {below}'
        yield f"{name}_sum {self.total:.6f}"
        yield f"{name}_count {below}"


class ServerLoad:
    """Limits a server to `most_at_once` concurrent requests and `most_waiting` queued ones. Use it from one
    event loop only."""

    def __init__(self, most_at_once: int, most_waiting: int) -> None:
        self.most_at_once, self.most_waiting = most_at_once, most_waiting
        self.inside = 0
        self._ends: deque[float] = deque(maxlen=32)
        self.requests: Counter[tuple[str, int]] = Counter()
        self.tokens: Counter[tuple[str, str]] = Counter()
        self.first_token, self.whole = Histogram(), Histogram()

    @property
    def running(self) -> int:
        return min(self.inside, self.most_at_once)

    @property
    def waiting(self) -> int:
        return max(0, self.inside - self.most_at_once)

    @contextmanager
    def taking(self) -> Generator[None]:
        """Count a request as active, whether running or queued, for the duration of the block. Raises
        `ServerBusy` if the queue is full."""
        if self.inside >= self.most_at_once + self.most_waiting:
            raise ServerBusy(self._retry_s())
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
            self._ends.append(time.monotonic())

    def _retry_s(self) -> int:
        """Estimate the wait from how fast recent requests ended."""
        if len(self._ends) < 2:
            return 1
        each = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return min(60, max(1, math.ceil(each * (self.waiting + 1))))

    def text(self, up: bool, restarts: int) -> str:
        """Format the metrics for Prometheus."""
        name = "orchestrate_"
        lines = [
            *_head(f"{name}up", "1 if the model is up, otherwise 0.", "gauge"),
            f"{name}up {int(up)}",
            *_head(
                f"{name}engine_restarts_total", "Model processes that crashed and were restarted.", "counter"
            ),
            f"{name}engine_restarts_total {restarts}",
            *_head(f"{name}requests_running", "Requests in progress.", "gauge"),
            f"{name}requests_running {self.running}",
            *_head(f"{name}requests_waiting", "waiting requests", "gauge"),
            f"{name}requests_waiting {self.waiting}",
            *_head(f"{name}requests_total", "Requests by model and HTTP status.", "counter"),
        ]
        for (model, status), count in sorted(self.requests.items()):
            lines.append(f'{name}requests_total{{model="{_label(model)}",status="{status}"}} {count}')
        lines += _head(f"{name}tokens_total", "Tokens by model and kind.", "counter")
        for (model, kind), count in sorted(self.tokens.items()):
            lines.append(f'{name}tokens_total{{model="{_label(model)}",kind="{kind}"}} {count}')
        lines += self.first_token.lines(f"{name}first_token_seconds", "Time to first token.")
        lines += self.whole.lines(f"{name}answer_seconds", "Time to the complete answer.")
        return "\n".join(lines) + "\n"


def _head(name: str, help: str, kind: str) -> list[str]:
    return [f"# HELP {name} {help}", f"# TYPE {name} {kind}"]


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
