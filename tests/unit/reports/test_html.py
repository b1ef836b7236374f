"""The HTML report: alone, safe, and drawn by a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page
from tests.browsers import chromium, new_page

from orchestrate.reports.charts import log_ticks, ticks
from orchestrate.reports.compare import Comparison, compare
from orchestrate.reports.html import document
from orchestrate.types import Evaluation, JobStatus, MetricPoint, Run

Make = Callable[..., Run]


@pytest.fixture
def comparison(
    run: Make, points: Callable[..., list[MetricPoint]], result: Callable[..., Evaluation]
) -> Comparison:
    a, b = run("together"), run("fireworks", minutes=35)
    c = run("local", model="<script>alert(1)</script>", dataset_digest="9" * 64)
    d = run("openai", sandbox=True, status=JobStatus.RUNNING, finished_at=None, bill=None)
    runs = [a, b, c, d]
    curves = {r.id: points(scale=1 + i / 10, tokens=i != 1) for i, r in enumerate(runs)}
    return compare(runs, curves, {r.id: [result(r, 0.9 + i / 50)] for i, r in enumerate(runs[:3])})


class Audit(HTMLParser):
    """Collects what could reach out of the page, and checks that tags are balanced."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.reaching: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "object", "embed", "base"):
            self.reaching.append(tag)
        self.reaching += [
            name for name, _ in attrs if name in ("src", "href", "xlink:href", "action", "style")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone(comparison: Comparison) -> None:
    text = comparison.render("html")
    audit = Audit()
    audit.feed(text)
    assert audit.open == [] and audit.reaching == []
    assert "http" not in re.sub(r'http-equiv="Content-Security-Policy"', "", text)
    assert "url(" not in text and "@import" not in text
    assert len(text.encode()) < 1_500_000


@pytest.mark.slow
def test_a_large_comparison_stays_small(run: Make, points: Callable[..., list[MetricPoint]]) -> None:
    runs = [run("together", id=f"run-{i}") for i in range(30)]
    text = compare(
        runs, {r.id: points(steps=20_000) for r in runs[:1]} | {r.id: points(steps=2000) for r in runs[1:]}
    )
    assert len(text.render("html").encode()) < 1_500_000


def test_what_came_from_outside_is_escaped(comparison: Comparison) -> None:
    text = comparison.render("html")
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_charts_are_well_formed_and_named(comparison: Comparison) -> None:
    charts = re.findall(r"<svg.*?</svg>", comparison.render("html"), re.DOTALL)
    titles = [ElementTree.fromstring(chart).findtext("title") for chart in charts]
    assert titles[::2] == titles[1::2]  # each drawn for a page and for a phone
    assert titles[::2] == [
        "exact_match by training cost",
        "Cost of training",
        "Validation loss over tokens trained",
        "Training loss over tokens trained",
        "exact_match of base and tuned models",
        "exact_match against cost",
        "exact_match against latency",
    ]


def test_series_differ_without_colour(comparison: Comparison) -> None:
    charts = re.findall(r"<svg.*?</svg>", comparison.render("html"), re.DOTALL)
    chart = next(c for c in charts if "Validation loss" in c)
    lines = re.findall(r'<path class="line s\d"([^>]*?) d=', chart)
    assert len(lines) == len(set(lines)) == 4  # a dash of its own each
    assert {"<circle", "<rect"} <= set(re.findall(r"<circle|<rect", chart))
    for label in ("together", "fireworks", "local"):
        assert f">{label}</text>" in chart  # named at the line, not in a legend by colour


def test_warnings_come_before_the_numbers(comparison: Comparison) -> None:
    text = comparison.render("html")
    places = [
        text.index(words)
        for words in (
            "<strong>SANDBOX</strong>",
            "<h1>",
            "These runs are not fully comparable",
            'class="card',
            "<svg",
        )
    ]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 1_500_000, [0, 500_000, 1_000_000, 1_500_000]), (3, 3, [3])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


# -- in a browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, comparison: Comparison, tmp_path: Path) -> Iterator[Page]:
    """The report, opened; asking for more than the file, or an error on its console, fails the test."""
    file = comparison.save(tmp_path / "report.html")
    asked: list[str] = []
    errors: list[str] = []
    opened = new_page(browser, viewport={"width": 900, "height": 900})
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: errors.append(message.text))
    opened.goto(file.as_uri())
    yield opened
    opened.close()
    assert asked == [file.as_uri()]
    assert errors == []


def colour(page: Page, selector: str, property: str) -> str:
    return page.eval_on_selector(selector, "(node, name) => getComputedStyle(node)[name]", property)


def luminance(rgb: str) -> float:
    """WCAG relative luminance of `rgb(r, g, b)`."""
    parts = [int(n) / 255 for n in re.findall(r"\d+", rgb)[:3]]
    r, g, b = (n / 12.92 if n <= 0.04045 else ((n + 0.055) / 1.055) ** 2.4 for n in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "background"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 22, 26)")]
)
def test_light_and_dark_are_legible(page: Page, scheme: Literal["light", "dark"], background: str) -> None:
    page.emulate_media(color_scheme=scheme)
    assert colour(page, "body", "backgroundColor") == background
    assert contrast(colour(page, "body", "color"), background) >= 7
    assert contrast(colour(page, ".when", "color"), background) >= 4.5
    assert contrast(colour(page, ".sandbox", "color"), colour(page, ".sandbox", "backgroundColor")) >= 4.5
    for style in range(4):
        assert contrast(colour(page, f"svg .line.s{style}", "stroke"), background) >= 3
    assert len(page.screenshot(full_page=True)) > 50_000


def test_nothing_is_outside_of_landmarks(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    assert [(v["id"], [node["html"][:160] for node in v["nodes"]][:3]) for v in found] == []


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_long_name_in_a_heading_fits_a_phone(browser: Browser, level: int) -> None:
    name = "ft:gpt-4o-mini-2024-07-18:acme-incorporated:customer-support:AAAA1111"
    page = new_page(browser, viewport={"width": 360, "height": 740})
    page.set_content(document("migration", f"<h{level}>{name}</h{level}>"))
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.get_by_role("main").get_by_role("heading").inner_text() == name
    page.close()


def test_everything_is_on_the_page(page: Page) -> None:
    assert page.locator("svg:visible").count() == 7
    assert page.locator(".chip").count() == 1
    assert page.locator("h2", has=page.locator(".chip")).inner_text().startswith("openai SANDBOX")
    for width in (900, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    boxes = page.evaluate(
        """() => [...document.querySelectorAll("svg")].filter(svg => svg.checkVisibility()).flatMap(svg => {
            const outer = svg.getBoundingClientRect();
            return [...svg.querySelectorAll("text")].map(text => {
                const box = text.getBoundingClientRect();
                return box.left >= outer.left - 1 && box.right <= outer.right + 1;
            });
        })"""
    )
    assert len(boxes) > 30 and all(boxes)  # no label is cut off at the edge of its chart


def test_labels_of_a_chart_do_not_overlap(page: Page) -> None:
    charts = page.evaluate(
        """() => [...document.querySelectorAll('svg.page')].map(svg =>
            [...svg.querySelectorAll('text.name')].map(node => node.getBoundingClientRect().top))"""
    )
    named = [places for places in charts if places]
    assert [len(places) for places in named] == [3, 4, 4, 4, 4]
    assert min(b - a for places in named for a, b in pairwise(sorted(places))) >= 10


@pytest.mark.parametrize("width", [390, 1280])
def test_letters_of_charts_keep_their_size(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    sizes = page.evaluate(
        """() => [...document.querySelectorAll("svg")].filter(svg => svg.checkVisibility()).map(svg =>
            12 * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width)"""
    )
    assert len(sizes) == 7 and min(sizes) >= 11


def test_numbers_stand_on_one_line_on_a_phone(page: Page) -> None:
    """Tables scroll, and the name of a row stays in sight."""
    page.set_viewport_size({"width": 390, "height": 900})
    lines = page.evaluate(
        """() => [...document.querySelectorAll("td, dd b")].filter(e => /\\d/.test(e.innerText)
            && e.innerText.length < 30 && e.checkVisibility()).map(e => {
                const range = document.createRange(); range.selectNodeContents(e);
                return new Set([...range.getClientRects()].map(r => Math.round(r.top))).size;
            })"""
    )
    assert len(lines) > 40 and set(lines) == {1}
    scrolled = page.locator(".scroll").last
    scrolled.evaluate("e => e.scrollLeft = 300")
    assert scrolled.locator("tbody th").first.bounding_box()["x"] >= 0  # pyright: ignore[reportOptionalSubscript]


def test_the_answer_and_the_cards_are_on_the_first_screen(page: Page) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    heading = page.locator("h1").bounding_box()
    figures = [page.locator(".card").first.locator("dd").nth(i).bounding_box() for i in range(4)]
    assert heading and heading["y"] < 200
    assert [box["y"] + box["height"] < 900 for box in figures if box] == [True] * 4  # score, gap, cost, time


def test_log_ticks_are_round() -> None:
    assert log_ticks(0.03, 4.2) == [0.05, 0.1, 0.2, 0.5, 1, 2]
    assert log_ticks(0.61, 0.93) == ticks(0.61, 0.93)
    assert log_ticks(1e-5, 1e3) == [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1, 10, 100, 1000]


def test_equal_steps_of_a_log_axis_are_equal_factors(run: Make) -> None:
    a = run("local")
    halving = [MetricPoint(step=s, values={"train_loss": 8.0 * 0.5**s}) for s in range(6)]
    chart = re.findall(r"<svg.*?</svg>", compare([a], {a.id: halving}).render("html"), re.DOTALL)
    [path] = re.findall(r'class="line[^>]* d="([^"]+)"', next(c for c in chart if "Training loss" in c))
    heights = [float(y) for _, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]
    steps = [b - a for a, b in pairwise(heights)]
    assert steps == pytest.approx([steps[0]] * 5, abs=0.11)


def test_a_notebook_shows_the_page_in_a_frame(browser: Browser, comparison: Comparison) -> None:
    notebook = new_page(browser, viewport={"width": 1000, "height": 900})
    notebook.set_content(f"<h1>cell</h1>{comparison._repr_html_()}")  # pyright: ignore[reportPrivateUsage]  # as notebooks call it
    frame = notebook.frame_locator("iframe")
    assert frame.locator(".card").count() == 4
    assert frame.locator("h1").inner_text() == comparison.answer.sentence
    assert colour(notebook, "body", "maxWidth") == "none"  # the page's style keeps to itself
    notebook.close()


def test_printing(page: Page) -> None:
    page.emulate_media(media="print", color_scheme="dark")
    assert colour(page, "body", "color") == "rgb(0, 0, 0)"
    assert colour(page, "body", "backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(format="A4").startswith(b"%PDF-")
