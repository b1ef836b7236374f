"""Every page in a real browser: phone and desktop, light and dark, by keyboard, without serious findings of
axe, and with nothing loaded from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from msgspec.structs import replace
from playwright.sync_api import Browser, Page, expect
from tests.browsers import chromium, new_page
from tests.paths import BUNDLED
from tests.unit.reports.conftest import make_result
from tests.unit.ui.conftest import ESCAPES, MARKUP

from orchestrate import JobSpec, Orchestrator
from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations
from orchestrate.settings import config
from orchestrate.store.runs import Intent
from orchestrate.types import Event, MetricPoint, Verdict
from orchestrate.ui.server import serving

pytestmark = pytest.mark.slow
SIZES = {"phone": {"width": 390, "height": 844}, "desktop": {"width": 1280, "height": 900}}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def rows(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    turn = [
        {"role": "user", "content": MARKUP + ESCAPES},
        {"role": "assistant", "content": "It ships today."},
    ]
    path.write_text("".join(json.dumps({"messages": turn, "n": n}) + "\n" for n in range(40)) + "{broken\n")
    return path


@pytest.fixture(scope="module")
def ft(folder: Path, rows: Path) -> Iterator[Orchestrator]:
    """Runs of two hosts of a sandbox, one of them deployed and judged, with hostile texts in them."""
    good = folder / "good.jsonl"
    good.write_text("".join(rows.read_text().splitlines(keepends=True)[:40]))
    with running(home=folder / "sandbox", train=False, speed=1000, waits=Durations(file=0.0)) as sandbox:
        env = {**sandbox.env, "ORCHESTRATE_KEYS": str(folder / "keys.toml")}
        with Orchestrator(config.load(env=env, cwd=folder, home=folder / "home")) as opened:
            for backend in ("together", "fireworks"):
                tags = {"note": MARKUP, "team": "support", f"{backend}-{'x' * 90}": "long"}
                spec = JobSpec(model="qwen3-8b", train=str(good), epochs=1, suffix=f"t-{backend}", tags=tags)
                run = opened.submit(spec, backend)
                run.wait(poll_s=0.02)
                event = Event(
                    id="hostile", at=run.record.created_at, level="warning", message=MARKUP + ESCAPES
                )
                opened.store.history.add_events(run.id, [event])
                verdict = Verdict(contender=run.id, decision="ship", reasons=(MARKUP,))
                opened.store.history.add_evaluation(make_result(run.record, 0.8, verdicts=(verdict,)))
            opened.run("t-fireworks").deploy(max_hours=2)
            yield opened


@pytest.fixture(scope="module")
def url(ft: Orchestrator) -> Iterator[str]:
    with serving(ft) as found:
        yield found


class Tab:
    """One window. What it asks for elsewhere, what its policy blocks and its scripts break on is an error."""

    def __init__(self, browser: Browser, url: str, size: str, scheme: str) -> None:
        looks: Any = {"viewport": SIZES[size], "color_scheme": scheme}
        self.page: Page = new_page(browser, **looks)
        self.url = url
        self.wrong: list[str] = []
        self.page.on("request", lambda r: r.url.startswith((url, "data:")) or self.wrong.append(r.url))
        self.page.on("console", lambda m: m.type == "error" and self.wrong.append(m.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))

    def open(self, path: str) -> Page:
        self.page.goto(self.url + path)
        return self.page

    def sound(self) -> None:
        """Nothing wrong so far, nothing beside the window, nothing that axe finds serious."""
        assert self.wrong == []
        assert "owned" not in self.page.title()
        wide = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{self.page.url} is {wide} pixels too wide"
        found = Axe().run(self.page).response["violations"]
        serious = [v for v in found if v["impact"] in ("serious", "critical")]
        bad = [(v["id"], [node["html"][:160] for node in v["nodes"]][:3]) for v in serious]
        assert bad == [], self.page.url


def paths(ft: Orchestrator, rows: Path) -> list[str]:
    one, two = (run.id for run in ft.runs())
    good = quote(str(rows.with_name("good.jsonl")))
    form = f"provider=together&model=qwen3-8b&train={good}&epochs=2"
    return [
        "", "?q=nothing", f"runs/{one}", f"runs/{one}/do/deploy", f"compare?run={one}&run={two}",
        "compare", "money", "quote", "data", f"data?path={quote(str(rows))}",
        f"runs/{one}/chat", f"runs/{one}/export",
        "queue", "sweeps", "deployments", f"deployments/{ft.deployments()[0].id}/end", f"archive?run={one}",
        "?col=status&col=spec.epochs&col=tag.team&col=note&group=backend&sort=-cost",
        "new", f"new?{form}", f"new/confirm?{form}", f"runs/{one}/evaluate?test={good}", f"runs/{one}/tokens",
        f"data/tokens?path={good}&model={quote(str(BUNDLED / 'tiny-chat'))}",
    ]  # fmt: skip


@pytest.mark.parametrize(("size", "scheme"), [("phone", "light"), ("desktop", "dark")])
def test_every_page_is_sound(
    browser: Browser, url: str, ft: Orchestrator, rows: Path, size: str, scheme: str
) -> None:
    tab = Tab(browser, url, size, scheme)
    for path in paths(ft, rows):
        page = tab.open(path)
        if re.fullmatch(r"runs/[\w-]+", path) or "compare?" in path:
            expect(page.locator("canvas").first).to_be_visible()
        if path == "money":
            expect(page.locator("#standing .sum")).to_be_visible()
        tab.sound()
        expect(page.locator(".sandbox")).to_be_visible()
    tab.open("runs/run-none")
    expect(tab.page.get_by_role("alert")).to_contain_text("unknown run")
    tab.page.close()


def test_by_keyboard_from_the_runs_to_a_comparison(browser: Browser, url: str) -> None:
    tab = Tab(browser, url, "desktop", "light")
    page = tab.open("")
    for key in ("j", "x", "j", "x", "c"):
        page.keyboard.press(key)
    page.wait_for_url(re.compile("compare"))
    expect(page.locator(".tall tbody tr")).to_have_count(2)
    page.keyboard.press("1")
    page.wait_for_url(url)
    page.keyboard.press("/")
    page.keyboard.type("together")
    expect(page.locator("tr[id]")).to_have_count(1)
    page.keyboard.press("Escape")
    page.locator("h1").click()
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    tab.sound()


def test_curves_are_smoothed_zoomed_and_put_on_other_axes(
    browser: Browser, url: str, ft: Orchestrator
) -> None:
    tab = Tab(browser, url, "desktop", "light")
    page = tab.open(f"runs/{ft.run('t-together').id}")
    plot = page.get_by_role("img", name=re.compile("^loss over steps"))
    expect(plot.locator("canvas")).to_be_visible()

    def drawn() -> str:
        return plot.locator("canvas").evaluate("canvas => canvas.toDataURL()")

    plain = drawn()
    for name, act, undo in (
        ("smooth", lambda at: at.fill("90"), lambda at: at.fill("0")),
        ("log", lambda at: at.check(), lambda at: at.uncheck()),
    ):
        control = page.locator(f'[data-chart="{name}"]')
        act(control)
        control.dispatch_event("change")
        assert drawn() != plain, name
        undo(control)
        control.dispatch_event("change")
        assert drawn() == plain, name
    box = plot.locator(".u-over").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 20, steps=4)
    page.mouse.up()
    page.mouse.move(1, 1)
    assert drawn() != plain, "dragged over a part, it shows that part"
    page.get_by_role("button", name="Reset zoom").click()
    assert drawn() == plain
    page.locator('[data-chart="axis"]').select_option("minutes")
    expect(page.get_by_role("img", name=re.compile("^loss over minutes"))).to_be_visible()
    assert tab.wrong == []
    tab.page.close()


def test_many_curves_are_colored_and_the_one_under_the_pointer_is_named(
    browser: Browser, url: str, ft: Orchestrator, rows: Path
) -> None:
    spec = JobSpec(model="qwen3-8b", train=str(rows.with_name("good.jsonl")))
    ids: list[str] = []
    for n in range(14):
        own = spec.model_copy(update={"suffix": f"many-{n}", "seed": n % 3})
        intent = Intent(spec=own, provider="together", dataset_digest="d" * 64, host="here", sandbox=True)
        ids.append(ft.store.runs.create(intent).id)
        points = [MetricPoint(step=s, values={"train_loss": n + 1.0}) for s in range(1, 2 if n == 13 else 20)]
        ft.store.history.add_metrics(ids[-1], points)
    tab = Tab(browser, url, "desktop", "light")
    page = tab.open("compare?" + "&".join(f"run={one}" for one in ids))
    plot = page.get_by_role("img", name=re.compile("^loss over steps"))
    canvas = plot.locator("canvas:not(.above)")
    expect(canvas).to_be_visible()
    plain = canvas.evaluate("canvas => canvas.toDataURL()")
    page.locator('[data-chart="color"]').select_option("seed")
    expect(page.locator("#colors span")).to_have_text(["0", "1", "2"])
    assert canvas.evaluate("canvas => canvas.toDataURL()") != plain
    before = canvas.evaluate("canvas => canvas.toDataURL()")
    box = plot.locator(".u-over").bounding_box()
    assert box is not None
    for share, name in ((0.02, "many-13"), (0.5, "many-12")):  # the highest ones: of one point, and of all
        for down in range(0, 60, 6):
            page.mouse.move(box["x"] + box["width"] * share, box["y"] + down)
            if page.locator("figure small").first.inner_text() == name:
                break
        expect(page.locator("figure small").first).to_have_text(name)
    assert canvas.evaluate("canvas => canvas.toDataURL()") == before, "a pointer redraws none of them"
    tab.sound()
    for one in ids:
        ft.run(one).annotate(archived=True)
    tab.page.close()


def test_rows_are_reviewed_by_keys_and_the_way_leads_back(browser: Browser, url: str, rows: Path) -> None:
    tab = Tab(browser, url, "phone", "dark")
    page = tab.open(f"data?path={quote(str(rows))}")
    page.get_by_role("button", name="Review the rows").click()
    expect(page.locator("#counts")).to_contain_text("41 to decide")
    page.keyboard.press("r")
    expect(page.locator("#counts")).to_contain_text("1 rejected")
    tab.sound()
    page.get_by_role("link", name="Back").click()
    expect(page.locator("h1")).to_have_text("Data")
    tab.page.close()


def test_an_old_link_says_how_to_get_another(browser: Browser, ft: Orchestrator) -> None:
    with serving(ft) as old:
        page = new_page(browser)
        page.goto(old)
        expect(page.locator("#live")).to_have_text("live")
    expect(page.locator("#live")).to_contain_text("not connected")
    token = old.rstrip("/").rpartition("/")[2]
    with serving(ft) as new:
        page.goto(f"{new.rstrip('/').rpartition('/')[0]}/{token}/")
        expect(page.locator("pre")).to_have_text("orchestrate ui")
        assert token not in page.content()
    page.close()


def test_a_page_is_live_and_its_curves_come_into_view(browser: Browser, url: str, ft: Orchestrator) -> None:
    tab = Tab(browser, url, "desktop", "light")
    page = tab.open("")
    expect(page.locator("#live")).to_have_text("live")
    expect(page.locator("td.loss:has(polyline)").first).to_have_text(re.compile(r"^ \d\.\d{4}$"))
    run = ft.run("t-together").id
    at = ft.store.clock.now()
    ft.store.runs.apply(run, lambda now: replace(now, tags={"team": "changed-since"}, updated_at=at))
    expect(page.locator(f"#{run}")).to_contain_text("changed-since")
    link = page.locator(f"#{run} th a")
    link.focus()
    ft.store.runs.apply(
        run, lambda now: replace(now, tags={"team": "support"}, updated_at=ft.store.clock.now())
    )
    expect(page.locator(f"#{run}")).not_to_contain_text("changed-since")
    expect(link).to_be_focused()
    total = page.locator("#total")
    expect(total).to_have_text("2 runs")
    for archived, left in ((True, "1 run"), (False, "2 runs")):
        at = ft.store.clock.now()
        ft.store.runs.apply(run, lambda now, to=archived, at=at: replace(now, archived=to, updated_at=at))
        expect(total).to_have_text(left)
        expect(page.locator(f"#{run}")).to_have_count(0 if archived else 1)
    assert tab.wrong == []


def test_what_is_read_stays_in_place_when_its_page_changes(
    browser: Browser, url: str, ft: Orchestrator
) -> None:
    run, now = ft.run("t-together"), ft.store.clock.now()
    lines = [Event(id=f"line-{n}", at=now, level="info", message=f"line {n} ") for n in range(80)]
    ft.store.history.add_events(run.id, lines)
    tab = Tab(browser, url, "desktop", "light")
    page = tab.open(f"runs/{run.id}")
    expect(page.locator("#live")).to_have_text("live")
    page.wait_for_timeout(1500)  # the first look of the stream
    log = page.locator("#events .events")
    log.evaluate("log => { log.scrollTop = 300; }")
    link = page.get_by_role("link", name="Export")
    link.focus()
    late = Event(id="late", at=ft.store.clock.now(), level="info", message="newest of all")
    ft.store.history.add_events(run.id, [late])
    run.annotate(note="changed")
    expect(log).to_contain_text("newest of all")
    assert log.evaluate("log => log.scrollTop") == 300
    expect(link).to_be_focused()
    assert tab.wrong == []


def test_sliders_recompute_and_a_form_ends_in_a_run(
    browser: Browser, url: str, ft: Orchestrator, rows: Path
) -> None:
    tab = Tab(browser, url, "phone", "dark")
    page = tab.open("quote")
    expect(page.get_by_role("slider", name="Epochs")).to_have_value("3")
    before = page.locator("#answer").inner_text()
    page.locator('input[name="rows"]').fill("20000")
    expect(page.locator("#answer")).not_to_have_text(before)
    page = tab.open("new")
    page.locator('select[name="provider"]').select_option("together")
    page.locator('input[name="model"]').fill("qwen3-8b")
    page.locator('input[name="train"]').fill(str(rows.with_name("good.jsonl")))
    page.locator('input[name="seed"]').fill("7")
    page.locator('input[name="seed"]').blur()
    expect(page.locator("#beside .good")).to_have_text("Ready.")
    page.get_by_role("button", name="Continue to the price").click()
    expect(page.locator(".sum")).to_contain_text("expected")
    page.get_by_role("button", name=re.compile("^Submit")).click()
    expect(page.locator("#status .state")).to_be_visible()
    assert ft.runs()[0].record.spec["seed"] == 7 and tab.wrong == []
