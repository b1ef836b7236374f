"""How many threads a worker takes: by simulated machines, and as the environment says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orchestrate.local.model.loaded import chosen, fastest, of_run
from orchestrate.local.plan.throughput import ThroughputKey, estimate, slowdown

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (lambda n: 1 / n, 8),  # idle cores: all of them
        (lambda n: 1.0 * n, 1),  # each more waits for the others
        (lambda n: 1 / n if n <= 4 else 1.0, 4),  # half of the cores are taken
        (lambda n: 1.0 - 0.01 * n, 1),  # what is gained is not worth it
    ],
)
def test_the_fewest_that_are_fast_are_taken(seconds: object, expected: int) -> None:
    assert fastest(8, seconds) == expected  # type: ignore[arg-type]


def test_what_is_asked_for_is_taken_and_kept_for_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert of_run(tmp_path, 3, CPU) == 3
    assert of_run(tmp_path, None, CPU) == 3, "one that is gone on with adds in the same order"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert chosen(None, CPU) == torch.get_num_threads()
    assert chosen(5, CPU) == 5


def test_a_busy_machine_makes_the_slow_end_slower_and_not_the_fast_one_faster(tmp_path: Path) -> None:
    kind = ThroughputKey(device="cpu", threads=2, parameters=2e6)
    idle, busy = estimate(tmp_path, kind), estimate(tmp_path, kind, load=64.0)
    assert busy.tokens_per_second * busy.factor == pytest.approx(idle.tokens_per_second * idle.factor)
    assert busy.tokens_per_second / busy.factor < idle.tokens_per_second / idle.factor
    assert "load of 64.0" in busy.source and "load" not in idle.source


def test_how_much_slower_is_the_share_of_the_cores() -> None:
    one, two = (ThroughputKey(device="cpu", threads=n, parameters=2e6) for n in (1, 2))
    assert slowdown(one, 0.0, 2) == slowdown(two, 0.0, 2) == 1.0
    assert slowdown(one, 3.0, 2) == 2.0  # four want two cores
    assert slowdown(two, 4.0, 2) == 9.0  # seen: nine times the quoted time
    assert slowdown(ThroughputKey(device="NVIDIA H100", threads=1, parameters=2e6), 9.0, 2) == 1.0
