"""`Orchestrator.compare` shows what the backends were sent, and runs of backends that are no more."""

from __future__ import annotations

from pathlib import Path

from orchestrate.api.orchestrator import Orchestrator
from orchestrate.settings import config
from orchestrate.spec import JobSpec
from orchestrate.store.runs import Intent


def test_settings_as_sent(tmp_path: Path) -> None:
    spec = JobSpec.parse({"model": "qwen3.5-9b", "train": "t.jsonl", "batch_size": 16, "epochs": 2})
    settings = config.load(env={"ORCHESTRATE_HOME": str(tmp_path / "home")}, cwd=tmp_path)
    with Orchestrator(settings) as ft:
        runs = [
            ft.store.runs.create(
                Intent(spec=spec.on(name), provider=name, dataset_digest="d" * 64, host=name)
            )
            for name in ("together", "local", "a-plugin-that-was-removed")
        ]
        sent = ft.provider("local").translate(spec.on("local"))
        compared = ft.compare(runs)
    hosted, local, gone = compared.runs
    assert {"epochs", "batch_size", "learning_rate"} <= set(hosted.settings)
    assert {row.name for row in sent.settings} & set(local.settings) > {"epochs", "batch_size"}
    assert "(defaulted)" in local.settings["learning_rate"], "not asked for, so what the backend takes"
    assert "learning_rate" not in gone.settings, "only what was asked for is known"
    assert gone.settings["epochs"] == "2"
