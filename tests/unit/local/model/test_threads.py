"""How many threads a worker takes: by simulated machines, as the environment says. Which one runs a pass."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from orchestrate.local.model.loaded import chosen, fastest, halving, of_run, run_pass
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


def test_passes_leave_a_thread_that_cannot_compile_kernels_and_run_as_in_it() -> None:
    stuck, threads = threading.local(), torch.get_num_threads()

    def compute(rows: int) -> tuple[int, bool, bool, int]:
        if rows > 2 or getattr(stuck, "here", False):
            stuck.here = True
            raise RuntimeError("could not create a primitive descriptor for the matmul primitive")
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        return threading.get_ident(), *modes, torch.get_num_threads()

    def passes() -> None:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            (there, *state), rows = halving(8, CPU, compute)
        assert rows == 2 and there != threading.get_ident() and state == [False, True, threads]
        assert run_pass(lambda: compute(1)) == (there, True, False, threads)  # it stays there
        with pytest.raises(RuntimeError, match="could not create"):
            compute(1)
        with torch.no_grad(), pytest.raises(RuntimeError, match="could not create"):
            halving(3, CPU, lambda _: compute(3))
        with torch.no_grad():
            assert run_pass(lambda: compute(1))[1:] == (False, False, threads), "the next one is whole"

    with ThreadPoolExecutor(1) as alone:
        alone.submit(passes).result()
