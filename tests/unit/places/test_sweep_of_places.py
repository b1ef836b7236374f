"""A search of settings whose trials are paid by the hour."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import msgspec
from tests.unit.places.worlds import hugging_face

from orchestrate import JobSpec, Orchestrator
from orchestrate.commands.runs.follow import follow
from orchestrate.local.run import JobState, now
from orchestrate.places.manifest import read_manifest
from orchestrate.providers.local.away import AwayProvider
from orchestrate.runs.sweep import space, sweeps
from orchestrate.runs.sweep.sweeps import SweepOrder
from orchestrate.runs.sweep.trials import Searching
from orchestrate.settings import config
from orchestrate.types import JobError, JobStatus, TrialState


def test_the_limit_is_kept_by_trials_that_take_longer_than_was_thought(tmp_path: Path) -> None:
    """Their workers end themselves at their shares of it, and one that did is waited for by nobody. What is
    wrong with the installation is no trial's fault."""
    for name, color in [("train", "red"), ("valid", "blue")]:
        messages = [{"role": "user", "content": f"Say {color}."}, {"role": "assistant", "content": color}]
        (tmp_path / f"{name}.jsonl").write_text(f"{json.dumps({'messages': messages})}\n" * 24)
    files = {"train": str(tmp_path / "train.jsonl"), "validation": str(tmp_path / "valid.jsonl")}
    spec = JobSpec.parse({"model": "qwen3-8b", "epochs": 1, **files})
    rates = space.parse(["learning_rate=1e-4,2e-4,3e-4"], [])
    (tmp_path / "there").mkdir()
    with hugging_face(tmp_path / "there") as world:
        world.provider(tmp_path)  # writes the configuration
        chosen = tmp_path / "orchestrate.toml"
        settings = config.load(env={}, home=tmp_path / "home", config_file=chosen)
        with Orchestrator(
            msgspec.structs.replace(settings, config_named=False)
        ) as ft:  # its trust is gone since
            ft.provider("hf-jobs").place = world.place(ft.provider("hf-jobs"))  # type: ignore[attr-defined, arg-type]
            carried = Searching(ft, sweeps.begin(ft, spec, ["hf-jobs"], SweepOrder(space=rates)))
            carried.turn()
            assert "you have not trusted" in (carried.stopped or "")
            assert [trial.state for trial in carried.trials] == [TrialState.OPEN], "it goes first once it may"
        with Orchestrator(settings) as ft:
            found = ft.provider("hf-jobs")
            assert isinstance(found, AwayProvider)
            found.place = world.place(found)
            order = SweepOrder(space=rates, max_parallel=2, max_cost_usd=Decimal(10))
            carried = Searching(ft, sweeps.begin(ft, spec, ["hf-jobs"], order))
            carried.turn()
            depot = found.place.run_storage
            caps = [read_manifest(depot.run(ref)).limits.max_usd for ref, _ in world.jobs()]
            assert caps == [5, 5] and carried.spent_usd() == 10
            first, second = (trial.run_id or "" for trial in carried.trials)
            over = JobError(code="limit", message="the worker stopped itself")
            paused = JobState(status="paused", error=over, updated_at=now())
            depot.run(ft.run(first).record.ref).write("status.json", paused.to_json())
            assert ft.run(first).wait(timeout_s=240).status is JobStatus.PAUSED, "it goes on by nobody"
            follow(ft, [ft.run(first)], here=True)  # comes back, too
            carried.turn()
            assert [trial.state for trial in carried.trials] == [TrialState.FAILED, TrialState.OPEN]
            assert carried.trials[0].note == over.message
            assert "remaining limit" in (carried.waits or "") and carried.stopped is None
            ft.store.runs.apply(second, lambda run: msgspec.structs.replace(run, status=JobStatus.FAILED))
            carried._later = 0.0
            carried.turn()
            assert len(world.jobs()) == 3 and carried.spent_usd() <= 10
