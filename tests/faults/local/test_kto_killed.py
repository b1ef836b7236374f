"""KTO killed in the middle: the reference of mismatched answers and the steps go on to the bit."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
from tests.faults.local.test_workers import curve, finish, kill, wait
from tests.unit.local.sessions import TINY, answers
from tests.workers import Nursery

from orchestrate.local import Hyper, LocalJob, launch, resume
from orchestrate.local.job import AdapterSettings, Preferences
from orchestrate.local.run import now

pytestmark = pytest.mark.slow


def test_killed_in_the_reference_and_in_a_step_it_ends_as_if_it_had_not_been(
    tmp_path: Path, nursery: Nursery
) -> None:
    job = LocalJob(
        ref="orc-a",
        model=str(TINY),
        model_name="tiny-chat",
        train=str(answers(tmp_path / "rows.jsonl", 40)),
        validation=str(answers(tmp_path / "valid.jsonl", 10)),
        method=Preferences(loss="kto", desirable_weight=1.5),
        adapter=AdapterSettings(type="qlora", r=8, alpha=16.0, dropout=0.1),
        hyper=Hyper(epochs=4, batch_size=8, learning_rate=2e-3, evals=7, recovery_seconds=0.0),
        seed=3,
        threads=1,
        created_at=now(),
    )
    home = tmp_path / "runs"
    whole = launch(job, home, nursery.start)
    assert finish(whole) == "succeeded", whole.log.read_text()
    killed = launch(msgspec.structs.replace(job, ref="orc-b"), home, nursery.start)
    try:
        seed = random.randrange(1 << 30)
        at = random.Random(seed).randint(2, 14)
        wait(lambda: (killed.path / "rows" / "train" / "mismatched.npy").exists() or bool(killed.metrics()))
        kill(killed)
        for go_on in (nursery.mortal(at, again=True), nursery.start):
            assert finish(killed) == "interrupted", f"seed {seed}"
            assert resume(killed, go_on)
        assert finish(killed) == "succeeded", killed.log.read_text()
        assert curve(killed) == curve(whole), f"seed {seed}"
        kl = [[p.values["train_kl"] for p in run.metrics()] for run in (killed, whole)]
        assert kl[0] == kl[1] and any(kl[0])
        weights = [
            (run.path / "adapter" / "adapter_model.safetensors").read_bytes() for run in (killed, whole)
        ]
        assert weights[0] == weights[1], f"seed {seed}"
    finally:
        kill(killed)
