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
from orchestrate.runs.sweep import curve as curves
from orchestrate.runs.sweep import sweeps
from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations
from orchestrate.settings import config
from orchestrate.spec import JobSpec, TrainFile
from orchestrate.text import money


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
    shares = ("--shares", "0.125,0.25,0.5,1", "--more", "64")
    found = cli("data", "curve", "-p", "local", "--yes", *shares, "-o", "curve.html", "--json").json
    assert [size["rows"] for size in found["sizes"]] == [8, 16, 32, 64]
    assert found["more"]["low"] <= found["more"]["value"] <= found["more"]["high"]
    assert "<svg" in (tmp_path / "curve.html").read_text()
    again = cli("data", "curve", "-p", "local", "--yes", *shares, "--json").json
    assert again == found  # nothing is trained twice
    settings = config.load(env=cli_env, cwd=tmp_path)
    with Orchestrator(settings) as ft:
        assert len(ft.runs()) == 4
        for size in found["sizes"]:
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


@pytest.mark.slow
def test_a_curve_whose_limit_comes_midway_says_so_and_goes_on_with_more(
    cli: Cli, spec: Path, tmp_path: Path, cli_env: dict[str, str]
) -> None:
    spec.write_text(json.dumps(json.loads(spec.read_text()) | {"model": "qwen3-8b"}))
    shares = (0.25, 0.5, 0.75, 1.0)
    words = ("data", "curve", "-p", "fireworks", "--yes", "--json", "--shares", ",".join(map(str, shares)))
    with running(home=tmp_path / "hosts", train=False, speed=100, waits=Durations(file=0)) as hosts:
        env = cli_env | hosts.env
        with Orchestrator(config.load(env=env, cwd=tmp_path)) as ft:
            order = sweeps.SweepOrder(space=curves.space_of(shares, 1))
            search = sweeps.begin(ft, JobSpec.load(spec), ["fireworks"], order)
            price = sweeps.price(ft, search)
            assert price.expected_usd < price.high_usd
            done = cli(*words, "--max-cost", str(price.expected_usd), **hosts.env)
            assert done.code == 1 and "the sweep's remaining limit" in done.err, done.err
            made = {run.id: run.record for run in ft.runs(sandbox=True)}
            assert [size["share"] for size in done.json["sizes"]] == list(shares[: len(made)]) and len(
                made
            ) < 4
            taken = ft.store.searches.spent_usd(search.id)
            assert taken <= price.expected_usd and f"spent so far: {money(taken)}" in done.err
            more = cli(*words, "--max-cost", str(2 * price.high_usd), **hosts.env)
            assert more.code == 0 and [size["share"] for size in more.json["sizes"]] == list(shares), more.err
            after = {run.id: run.record for run in ft.runs(sandbox=True)}
            assert len(after) == 4 and all(after[id].job_id == run.job_id for id, run in made.items())


@pytest.mark.slow
def test_what_a_host_refuses_of_every_trial_is_said_once(cli: Cli, spec: Path, tmp_path: Path) -> None:
    """Fireworks has no seed setting: each reason is said of the first run, and at the end of all."""
    spec.write_text(json.dumps(json.loads(spec.read_text()) | {"model": "qwen3-8b"}))
    with running(home=tmp_path / "hosts", train=False, speed=100, waits=Durations(file=0)) as hosts:
        done = cli("data", "curve", "-p", "fireworks", "--yes", "--seeds", "2", **hosts.env)
    assert done.code == 1 and done.err.count("Fireworks has no seed setting") == 4, done.err
    assert done.err.count("failed as trial 0") == done.err.count("failed as trial 1") == 3
    assert done.err.count("of the rows (4 runs)") == 2


@pytest.mark.slow
def test_the_best_half_against_a_random_half(
    cli: Cli, spec: Path, tmp_path: Path, cli_env: dict[str, str]
) -> None:
    asked = (
        "data",
        "curve",
        "-p",
        "local",
        "--compare",
        "best,random,all",
        "--by",
        "length",
        "--yes",
        "--json",
    )
    unscored = cli(*asked)
    assert unscored.code == 2 and "orchestrate data score" in unscored.err
    assert cli("data", "score", "train.jsonl").code == 0
    planned = cli(*asked, "--dry-run")
    assert planned.code == 0, planned.err
    assert not list((tmp_path / "home").rglob("selections")), "a dry run keeps no rows"
    for wrong in (("--compare", "best"), ("--by", "beauty"), ("--keep", "1")):
        assert cli(*asked, *wrong).code == 2
    assert cli("runs", "--json").json == []
    done = cli(*asked)
    assert done.json["sweep"] == planned.json["search"]["id"]
    assert done.code == 0, done.err
    found = done.json
    assert [(one["which"], one["rows"]) for one in found["compared"]] == [
        ("best", 32),
        ("random", 32),
        ("all", 64),
    ]
    scores = {one["which"]: one["score"] for one in found["compared"]}
    for other in ("random", "all"):  # a lower loss is better
        assert found["over"][other]["value"] == pytest.approx(scores[other] - scores["best"])
    assert cli(*asked).json == found  # nothing is trained twice
    selected = cli("data", "select", "train.jsonl", "--by", "length")
    assert selected.code == 0
    assert (tmp_path / "train.selected.jsonl").read_bytes() == Path(found["selected"]).read_bytes()
    settings = config.load(env=cli_env, cwd=tmp_path)
    with Orchestrator(settings) as ft:
        assert len(ft.runs()) == 3
        plain = json.loads(spec.read_text()) | {
            "train": str(tmp_path / "train.selected.jsonl"),
            "validation": str(tmp_path / "validation.jsonl"),
        }
        run = ft.submit(JobSpec.parse(plain), "local", again=True)
        run.wait()
        losses = [p.values["valid_loss"] for p in run.metrics() if "valid_loss" in p.values]
        assert losses[-1] == pytest.approx(scores["best"], rel=1e-6)
    (tmp_path / "train.jsonl").write_text(
        "".join((tmp_path / "train.jsonl").read_text().splitlines(True)[1:])
    )
    changed = cli(*asked)
    assert changed.code == 1 and "changed since it was scored" in changed.err
