"""The page of one run: what it says, in which order, and its curves."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from html import unescape
from itertools import pairwise

import pytest
from msgspec.structs import replace
from starlette.testclient import TestClient
from tests.unit.reports.conftest import make_result
from tests.unit.ui.conftest import BEGUN, ESCAPES, MARKUP, MakeRun, ended
from tests.unit.ui.page import Parsed

from orchestrate import Orchestrator
from orchestrate.runs.evaluation import comparison
from orchestrate.spec import JobSpec
from orchestrate.store.runs import Intent
from orchestrate.types import (
    Checkpoint,
    Event,
    JobError,
    JobStatus,
    Merged,
    MetricPoint,
    Outcome,
    Proof,
    ProofStage,
    Setting,
    Translation,
    Verdict,
)
from orchestrate.ui.curves import PlottedCurve, aligned, charts


def shown(web: TestClient, run_id: str) -> Parsed:
    answer = web.get(f"/runs/{run_id}")
    assert answer.status_code == 200, answer.text
    return Parsed(answer.text)


def test_a_finished_run_in_the_order_in_which_it_is_read(
    web: TestClient, ft: Orchestrator, make_run: MakeRun
) -> None:
    settings = {"epochs": 2, "adapter": {"type": "lora", "r": 16}}
    run = make_run(settings=settings, points=10, **ended())
    verdict = Verdict(contender=run.id, decision="ship", reasons=("it is better",))
    ft.store.history.add_evaluation(make_result(run, 0.8, verdicts=(verdict,)))
    stages = (ProofStage(name="tokens", state="passed", detail="the same"),)
    proof = Proof(
        run_id=run.id, at="folder", engine="us", model="m", state="proved", stages=stages, created_at=BEGUN
    )
    ft.store.history.add_record(run.id, "proof", proof)
    ft.store.history.add_events(run.id, [Event(id="1", at=BEGUN, level="info", message="step 5 done")])
    ft.store.history.set_checkpoints(run.id, [Checkpoint(id="step-5", step=5, metrics={"valid_loss": 1.25})])
    page = shown(web, run.id)
    order = [
        "Evaluation",
        "ship",
        "it is better",
        "proved",
        "Money",
        "$2.00",
        "$2.50",
        "Curves",
        "Events",
    ]
    order += ["step 5 done", "Settings", "epochs", "Checkpoints", "step-5", "Artifacts", "Lineage"]
    places = [page.text.index(word, page.text.index("Evaluation")) for word in order]
    assert places == sorted(places), list(zip(order, places, strict=True))
    assert "measured hours times the rate" in page.text and "$1.00 to $3.00" in page.text
    fetched = f"orchestrate download {run.id} --checkpoint step-5"
    assert f'orchestrate serve "$({fetched})"' in unescape(page.text)
    assert "deploy serves the final model of a run, not its checkpoints" not in page.text, (
        "nothing is deployed from this machine"
    )


def test_settings_are_those_that_were_sent_not_those_of_today(web: TestClient, ft: Orchestrator) -> None:
    """Stored with the run, as a version with other rules translated it: on its page and in a comparison."""
    spec = JobSpec.parse({"model": "qwen3-8b", "train": "rows.jsonl", "epochs": 2})
    rows = (Setting(name="learning_rate", outcome=Outcome.DEFAULTED, sent=0.000123456),)
    sent = Translation(provider="local", model="qwen3-8b", settings=rows, body={"learning_rate": 0.000123456})
    intent = Intent(spec=spec, provider="local", dataset_digest="d" * 64, host="here", translation=sent)
    run = ft.store.runs.create(intent)
    assert "0.000123456" in shown(web, run.id).text
    assert comparison.sent(ft, run) == sent


def test_times_are_utc_and_an_error_keeps_its_lines(
    web: TestClient, ft: Orchestrator, make_run: MakeRun
) -> None:
    run = make_run(status=JobStatus.FAILED, error=JobError(message="Traceback:\n  out of memory"))
    at = datetime(2026, 11, 1, 1, 30, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    ft.store.history.add_events(run.id, [Event(id="e", at=at, level="info", message="elsewhere")])
    html = web.get(f"/runs/{run.id}").text
    assert "<time>2026-10-31 20:00</time>" in html
    assert re.search(r"<pre[^>]*>Traceback:\n  out of memory</pre>", html)


def test_a_run_without_anything_says_the_next_command(web: TestClient, make_run: MakeRun) -> None:
    page = shown(web, make_run(**ended()).id)
    for command in (
        "orchestrate eval",
        "orchestrate verify",
        "orchestrate checkpoints",
        "orchestrate download",
    ):
        assert command in page.text, command


def test_a_merge_is_in_the_lineage_of_its_parts(web: TestClient, ft: Orchestrator, make_run: MakeRun) -> None:
    one, two = make_run("one", **ended()), make_run("two", **ended())
    made = Merged(
        folder=f"/both/{MARKUP}",
        files=(),
        base_model="qwen3-8b",
        method="ties_svd",
        parts=(one.id, two.id),
        weights=(1.0, 1.0),
        ranks=(8, 16),
        rank=24,
        error=0.0,
    )
    ft.store.history.add_record(one.id, "merge", made)
    page = shown(web, one.id)
    assert f"/both/{MARKUP}" in page.texts and "by ties_svd, with" in page.text
    assert f"/runs/{two.id}" in page.links
    assert "Merged into" not in shown(web, two.id).text


def test_a_failed_run_says_why_first(web: TestClient, make_run: MakeRun) -> None:
    error = JobError(message="the file has 3 rows", code="too_few_rows")
    page = shown(web, make_run(status=JobStatus.FAILED, error=error).id)
    assert page.text.index("the file has 3 rows") < page.text.index("Evaluation")


def test_parents_and_children_are_linked(web: TestClient, make_run: MakeRun) -> None:
    parent = make_run("first", **ended())
    child = make_run("second", settings={"continue_from": parent.id})
    assert f"/runs/{parent.id}" in shown(web, child.id).links
    assert "Continued by" in shown(web, parent.id).text and f"/runs/{child.id}" in shown(web, parent.id).links


def test_hostile_texts_of_a_host_are_text(web: TestClient, ft: Orchestrator, make_run: MakeRun) -> None:
    run = make_run(
        MARKUP.replace("<", "x")[:1] + "a",
        error=JobError(message=MARKUP),
        raw_status=MARKUP,
        tuned_model=MARKUP,
        **ended(),
    )
    ft.store.history.add_events(run.id, [Event(id="1", at=BEGUN, level="info", message=MARKUP + ESCAPES)])
    ft.store.history.set_checkpoints(run.id, [Checkpoint(id=MARKUP, step=1, model=MARKUP)])
    evaluation = make_result(run, 0.8, notes=(MARKUP,))
    ft.store.history.add_evaluation(evaluation)
    html = web.get(f"/runs/{run.id}").text
    assert Parsed(html).own == [] and "<img" not in html and "\x1b" not in html and "\u202e" not in html
    assert Parsed(html).text.count("<script>") >= 4, "it is shown, as text"


def test_an_unknown_run_and_the_way_out(web: TestClient) -> None:
    answer = web.get("/runs/run-nothing")
    assert answer.status_code == 404 and "unknown run" in answer.text and "orchestrate runs" in answer.text


@pytest.mark.parametrize(
    ("axis", "places"), [("steps", [1, 2, 3]), ("tokens", [512, 1024, 1536]), ("minutes", [0, 1, 2])]
)
def test_curves_over_each_axis(web: TestClient, make_run: MakeRun, axis: str, places: list[float]) -> None:
    run = make_run(points=3)
    loss, rate = web.get(f"/runs/{run.id}/curves", params={"axis": axis}).json()
    assert (loss["name"], loss["axis"], loss["places"]) == ("loss", axis, places)
    assert loss["series"] == [{"label": "train", "run": run.id, "values": [1.99, 1.98, 1.97]}]
    assert rate["name"] == "learning rate"


def test_what_is_no_number_is_left_out_of_a_curve() -> None:
    points = [
        MetricPoint(step=n, values={"train_loss": v})
        for n, v in enumerate([1.0, float("nan"), float("inf"), 2.0])
    ]
    [chart] = charts({"run": points}, "steps")
    assert (chart["places"], chart["series"][0]["values"]) == ([0, 3], [1.0, 2.0])


def test_what_the_worker_tells_of_its_gpu_is_drawn(
    web: TestClient, ft: Orchestrator, make_run: MakeRun
) -> None:
    run = make_run(points=2)
    load = {"gpu_use_percent": 93.0, "gpu_memory_bytes": 3.0 * 2**30, "gpu_temperature_c": 61.0}
    ft.store.history.add_metrics(run.id, [MetricPoint(step=2, values=load)])
    found = {c["name"]: c["series"][0]["values"] for c in web.get(f"/runs/{run.id}/curves").json()}
    assert found["GPU memory, GiB"] == [3.0] and found["GPU use, %"] == [93.0]
    assert found["GPU temperature, °C"] == [61.0]


def test_long_curves_become_means_over_equal_parts() -> None:
    numpy = pytest.importorskip("numpy")
    places = list(range(1, 10_001))
    values = [float(n % 7) for n in places]
    at, [line, sparse] = aligned(
        [PlottedCurve("a", "a", places, values), PlottedCurve("b", "b", [1, 10_000], [5.0, 6.0])], 100
    )
    hand = numpy.array(values).reshape(100, 100).mean(axis=1)
    assert len(at) == 100 and numpy.allclose([v for v in line if v is not None], hand, atol=0.07)
    assert sparse[0] == 5.0 and sparse[-1] == 6.0 and set(sparse[1:-1]) == {None}


def test_points_are_sampled_evenly_with_both_ends(ft: Orchestrator, make_run: MakeRun) -> None:
    few, many = make_run(points=5).id, make_run(points=1000).id
    found = ft.store.history.sampled([few, many], 50)
    assert [p.step for p in found[few]] == [1, 2, 3, 4, 5]
    steps = [p.step for p in found[many]]
    gaps = [b - a for a, b in pairwise(steps)]
    assert (steps[0], steps[-1]) == (1, 1000) and len(steps) <= 52 and max(gaps[1:]) - min(gaps[1:]) <= 1


@pytest.mark.slow
def test_the_page_follows_its_run(ft: Orchestrator, make_run: MakeRun) -> None:
    import json
    import threading

    import httpx

    from orchestrate.ui.server import serving

    run = make_run(step=1, total_steps=4)
    got: list[str] = []
    first, second = threading.Event(), threading.Event()
    with serving(ft) as url:

        def listen() -> None:
            with (
                httpx.Client(verify=False, timeout=240) as client,
                client.stream("GET", f"{url}runs/{run.id}/changes", timeout=240) as answer,
            ):
                for line in answer.iter_lines():
                    html = json.loads(line.removeprefix("data: ")).get("html", "") if line else ""
                    if html:
                        got.append(html)
                        (second if first.is_set() else first).set()

        reader = threading.Thread(target=listen)
        reader.start()
        assert first.wait(240)
        later = ft.store.clock.now() + timedelta(seconds=1)
        ft.store.runs.apply(run.id, lambda r: replace(r, step=3, updated_at=later))
        assert second.wait(240)
    reader.join()
    assert "step 1 of 4" in got[0] and "step 3 of 4" in got[1] and "$1.50" in got[1]
