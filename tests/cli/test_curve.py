"""data curve: shares of the rows against one another."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from tests.cli.conftest import Cli
from tests.paths import BUNDLED

from orchestrate import Orchestrator
from orchestrate.data.operations.mix import open_mix
from orchestrate.settings import config
from orchestrate.spec import JobSpec, TrainFile


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    for name, n in (("train", 64), ("validation", 24)):
        lines = (BUNDLED / "orders" / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[:n]))
    said = {"model": "tiny-chat", "train": "train.jsonl", "validation": "validation.jsonl", "epochs": 1}
    path = tmp_path / "finetune.yaml"
    path.write_text(json.dumps(said))
    return path


def test_a_smaller_share_lies_within_a_larger_one(spec: Path, tmp_path: Path) -> None:
    """Also where Python would draw the two in different ways."""
    rows: list[set[int]] = []
    for share in (0.02, 0.05, 0.125, 0.25, 0.5, 0.75):
        file = TrainFile(path=str(BUNDLED / "orders" / "train.jsonl"), weight=share, seed=3)
        mix = open_mix([file], tmp_path / "mixes").mixed
        assert mix is not None
        [path] = [
            p
            for p in (tmp_path / "mixes").glob("*.json")
            if json.loads(p.read_text())["files"][0]["weight"] == share
        ]
        rows.append(set(json.loads(path.read_text())["files"][0]["sample"]))
    for smaller, larger in itertools.pairwise(rows):
        assert smaller < larger


def test_what_is_no_curve_is_refused_before_anything_is_made(cli: Cli, spec: Path) -> None:
    for shares in ("0.5,1", "0.1,0.2,0.3", "a,b", "0,0.5,1"):
        assert cli("data", "curve", "-p", "local", "--shares", shares).code == 2
    assert cli("data", "curve", "-p", "local", "-o", "curve.txt").code == 2
    assert cli("sweep", "-p", "local", "--grid", "share=0,2").code != 0
    assert cli("runs", "--json").json == []


@pytest.mark.slow
def test_a_curve_agrees_with_plain_runs(
    cli: Cli, spec: Path, tmp_path: Path, cli_env: dict[str, str]
) -> None:
    shares = ("--shares", "0.25,0.5,1", "--more", "64")
    found = cli("data", "curve", "-p", "local", "--yes", *shares, "-o", "curve.html", "--json").json
    assert [size["rows"] for size in found["sizes"]] == [16, 32, 64]
    assert found["more"]["low"] <= found["more"]["value"] <= found["more"]["high"]
    assert "<svg" in (tmp_path / "curve.html").read_text()
    again = cli("data", "curve", "-p", "local", "--yes", *shares, "--json").json
    assert again == found  # nothing is trained twice
    settings = config.load(env=cli_env, cwd=tmp_path)
    with Orchestrator(settings) as ft:
        assert len(ft.runs()) == 3
        for size in found["sizes"][::2]:
            train = [{"path": str(tmp_path / "train.jsonl"), "weight": size["share"], "seed": 0}]
            plain = JobSpec.parse(
                json.loads(spec.read_text())
                | {
                    "train": train if size["share"] < 1 else str(tmp_path / "train.jsonl"),
                    "validation": str(tmp_path / "validation.jsonl"),
                }
            )
            run = ft.submit(plain, "local", again=True)
            run.wait()
            losses = [p.values["valid_loss"] for p in run.metrics() if "valid_loss" in p.values]
            assert losses[-1] == pytest.approx(size["score"], rel=1e-6)
