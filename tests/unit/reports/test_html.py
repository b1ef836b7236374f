"""The HTML report: alone, safe, and drawn by a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from orchestrate.reports import Comparison, compare
from orchestrate.reports.svg import ticks
from orchestrate.types import Evaluation, JobStatus, MetricPoint, Run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

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
    assert len(charts) == 5
    titles = [ElementTree.fromstring(chart).findtext("title") for chart in charts]
    assert titles == [
        "Loss over tokens trained",
        "exact_match of base and tuned models",
        "exact_match against cost",
        "exact_match against latency",
        "Training cost, quoted and billed",
    ]


def test_series_differ_without_colour(comparison: Comparison) -> None:
    chart = re.findall(r"<svg.*?</svg>", comparison.render("html"), re.DOTALL)[0]
    lines = re.findall(r'<path class="line s\d"([^>]*?) d=', chart)
    assert len(lines) == len(set(lines)) == 4  # a dash of its own each
    assert {"<circle", "<rect"} <= set(re.findall(r"<circle|<rect", chart))
    for label in ("together, valid", "fireworks, valid", "local, valid"):
        assert label in chart  # named at the line, not in a legend by colour


def test_warnings_come_before_the_numbers(comparison: Comparison) -> None:
    text = comparison.render("html")
    places = [
        text.index(words)
        for words in ("<strong>SANDBOX</strong>", "These runs are not comparable", "Side by side")
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
    if CHROMIUM is None:
        pytest.skip("no Chromium here; install one, e.g. apt-get install chromium")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, comparison: Comparison, tmp_path: Path) -> Iterator[Page]:
    """The report, opened; asking for more than the file, or an error on its console, fails the test."""
    file = comparison.save(tmp_path / "report.html")
    asked: list[str] = []
    errors: list[str] = []
    opened = browser.new_page(viewport={"width": 900, "height": 900})
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


def test_everything_is_on_the_page(page: Page) -> None:
    assert page.locator("svg").count() == 5
    assert page.locator("th.tag").first.inner_text() == "openai [SANDBOX]"
    for width in (900, 400):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    boxes = page.evaluate(
        """() => [...document.querySelectorAll("svg")].flatMap(svg => {
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
        """() => [...document.querySelectorAll('svg')].map(svg =>
            [...svg.querySelectorAll('text.name')].map(node => node.getBoundingClientRect().top))"""
    )
    named = [places for places in charts if places]
    assert [len(places) for places in named] == [4, 4, 4]
    assert min(b - a for places in named for a, b in pairwise(sorted(places))) >= 10


def test_printing(page: Page) -> None:
    page.emulate_media(media="print", color_scheme="dark")
    assert colour(page, "body", "color") == "rgb(0, 0, 0)"
    assert colour(page, "body", "backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(format="A4").startswith(b"%PDF-")
