"""How fast the pages are in a real Chromium: 1,000 runs with a million metric points.

    python benchmarks/ui.py [--runs 1000] [--points 1000] [--json FILE]

Measured in the browser, from the click to the second frame after the page's load, so that it is painted; each
figure is the median of several. The store is a real SQLite file, and nothing is kept between two openings but
what the server keeps for everybody.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from measured_on import Meter, about, write
from playwright.sync_api import Page, sync_playwright

from orchestrate import Orchestrator
from orchestrate.settings import config
from orchestrate.spec import JobSpec, LoRA
from orchestrate.store import schema
from orchestrate.store.runs import Intent
from orchestrate.store.store import Store
from orchestrate.types import Bill, JobStatus, MetricPoint, Quote, SubmitPhase
from orchestrate.ui.server import serving

FRAME = "new Promise((done) => requestAnimationFrame(done))"
PAINTED = f"async () => {{ await {FRAME}; await {FRAME}; return performance.now(); }}"
"""Milliseconds from the beginning of the navigation to the frame after the next one."""


def filled(store: Store, runs: int, points: int) -> list[str]:
    """Runs with settings, prices and curves like real ones; the newest twentieth is on its way."""
    import msgspec

    chance, made, begun = random.Random(0), list[str](), datetime.now(UTC) - timedelta(days=30)
    for n in range(runs):
        rate, rank = chance.choice([1e-5, 5e-5, 1e-4, 2e-4]), chance.choice([8, 16, 32, 64])
        spec = JobSpec(
            model="qwen3-8b",
            train="tickets.jsonl",
            epochs=chance.choice([1, 2, 3]),
            learning_rate=rate,
            adapter=LoRA(r=rank),
            seed=n,
            suffix=f"tickets-{n}",
            tags={"team": chance.choice(["support", "search"])},
        )
        usd = Decimal(chance.randint(100, 900)) / 100
        quote = Quote(provider="local", model="qwen3-8b", low_usd=usd, expected_usd=usd, high_usd=usd * 2)
        run = store.runs.create(
            Intent(spec=spec, provider="local", dataset_digest="d" * 64, host="here", quote=quote)
        )
        live = n >= runs - runs // 20
        at = begun + timedelta(minutes=40 * n)
        changes: dict[str, Any] = {
            "phase": SubmitPhase.SUBMITTED,
            "status": JobStatus.RUNNING
            if live
            else chance.choice([*[JobStatus.SUCCEEDED] * 9, JobStatus.FAILED]),
            "job_id": f"job-{n}",
            "created_at": at,
            "started_at": at,
            "finished_at": None if live else at + timedelta(minutes=30),
            "step": points // 2 if live else points,
            "total_steps": points,
            "bill": None if live else Bill(usd=usd, origin="measured hours x rate"),
        }
        store.runs.apply(run.id, lambda r, c=changes: msgspec.structs.replace(r, **c))
        with store.database.writing() as connection:
            connection.execute(schema.metrics.insert(), list(_curve(run.id, points, rate, chance)))
        made.append(run.id)
    return made


def _curve(run_id: str, points: int, rate: float, chance: random.Random) -> Any:
    for step in range(1, points + 1):
        loss = 0.8 + 1.8 * math.exp(-step * rate * 60) + chance.gauss(0, 0.03)
        values = {
            "train_loss": loss,
            "learning_rate": rate * (1 - step / points),
            "grad_norm": 1 + chance.random(),
        }
        values |= {"tokens": step * 4096.0, "tokens_per_second": 9000 + chance.gauss(0, 200)}
        if step % 100 == 0:
            values["valid_loss"] = loss + 0.05
        point = MetricPoint(step=step, values=values, at=datetime.now(UTC), epoch=step / points)
        yield {"run_id": run_id, "step": step, "record": point.to_json().decode()}


def opened(page: Page, url: str, times: int = 7) -> float:
    """Milliseconds until the page at the address is painted, once its scripts and styles were loaded."""
    page.goto(url)
    took: list[float] = []
    for _ in range(times):
        page.goto("about:blank")
        page.goto(url)
        took.append(page.evaluate(PAINTED))
    return statistics.median(took)


def worked(page: Page, url: str, times: int = 7) -> tuple[float, float]:
    """Milliseconds of processor time for the same: of the page's main thread, and of the server. They are the
    same however busy the machine is."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    browser: list[float] = []
    server: list[float] = []
    for _ in range(times):
        page.goto("about:blank")
        begun = time.process_time()
        page.goto(url)
        page.evaluate(PAINTED)
        server.append((time.process_time() - begun) * 1000)
        told = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
        browser.append(told["TaskDuration"] * 1000)
    session.detach()
    return statistics.median(browser), statistics.median(server)


def acted(page: Page, act: Callable[[], str], times: int = 5) -> float:
    """Milliseconds from an act until what it brings is there: `act` gives its selector."""
    took: list[float] = []
    for _ in range(times):
        begun = time.perf_counter()
        page.wait_for_selector(act(), state="attached")
        took.append((time.perf_counter() - begun) * 1000)
    return statistics.median(took)


def measure(url: str, ids: list[str]) -> dict[str, float]:
    with sync_playwright() as driver:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        found = {"runs opened, ms": opened(page, url)}
        page_ms, server_ms = worked(page, url)
        found |= {"  processor time of the page, ms": page_ms, "  and of the server, ms": server_ms}
        found["runs opened with their first curves, ms"] = acted(page, lambda: _reloaded(page))
        page.fill("input[type=search]", "tickets-5")
        matching = sum(str(n).startswith("5") for n in range(len(ids)))
        page.wait_for_selector(f".below:has-text('{matching:,} runs')")
        words = iter(["tickets-77", "tickets-13", "tickets-42", "tickets-88", "tickets-31"])
        found["searched, of them 200 ms waited for more letters, ms"] = acted(
            page, lambda: _searched(page, next(words))
        )
        found["a run opened, ms"] = opened(page, f"{url}runs/{ids[0]}")
        memory: Any = page.evaluate("performance.memory.usedJSHeapSize")
        found["memory of a run's page, MB"] = memory / 1e6
        for count in (2, 100, len(ids)):
            some = "&".join(f"run={run_id}" for run_id in ids[:count])
            page.goto("about:blank")
            begun = time.perf_counter()
            page.goto(f"{url}compare?{some}")
            page.wait_for_selector("canvas")
            found[f"{count} runs compared, ms"] = (time.perf_counter() - begun) * 1000
        found["pointer moved over them, ms a frame"] = _swept(page)
        memory = page.evaluate("performance.memory.usedJSHeapSize")
        found["memory of that page, MB"] = memory / 1e6
        browser.close()
    return {name: round(value, 1) for name, value in found.items()}


def _reloaded(page: Page) -> str:
    page.reload()
    return "td.loss polyline[points]"


def _searched(page: Page, words: str) -> str:
    page.fill("input[type=search]", words)
    return f"tr[id] a:text-is('{words}')"


def _swept(page: Page) -> float:
    """Moves the pointer over the first chart; milliseconds for a move and the frame after it."""
    box: Any = page.locator("canvas").first.bounding_box()
    took: list[float] = []
    for n in range(20):
        begun = time.perf_counter()
        page.mouse.move(box["x"] + box["width"] * (0.1 + 0.04 * n), box["y"] + box["height"] / 2)
        page.evaluate(f"() => {FRAME}")
        took.append((time.perf_counter() - begun) * 1000)
    return statistics.median(took)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=1000)
    arguments.add_argument("--points", type=int, default=1000)
    arguments.add_argument("--home", type=Path, help="Keep the filled store here, and use it again.")
    arguments.add_argument("--json", type=Path)
    given = arguments.parse_args()
    figures, begun = about("playwright"), Meter.now()
    with tempfile.TemporaryDirectory() as folder:
        settings = config.load(env={}, cwd=Path(folder), home=given.home or Path(folder, "home"))
        with Orchestrator(settings) as ft:
            ids = [run.id for run in ft.runs(limit=given.runs)] or filled(ft.store, given.runs, given.points)
            with serving(ft) as url:
                found = measure(url, ids)
    figures |= {"runs": len(ids), "points": given.points, "others": begun.others(), "pages": found}
    print("{runs:,} runs of {points:,} points; {machine}, load {load}".format(**figures))
    for name, value in found.items():
        print(f"  {name:<50} {value:>9,.1f}")
    if given.json:
        write(given.json, figures)


if __name__ == "__main__":
    main()
