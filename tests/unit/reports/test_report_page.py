"""The HTML report: alone, safe, and drawn by a real browser."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from orchestrate.reports import Comparison, compare
from orchestrate.reports.svg import ticks
from orchestrate.types import EvaluationResult, JobStatus, MetricPoint, Run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

Make = Callable[..., Run]


@pytest.fixture
def comparison(
    run: Make, points: Callable[..., list[MetricPoint]], result: Callable[..., EvaluationResult]
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
    assert len(charts) == 3
    titles = [ElementTree.fromstring(chart).findtext("title") for chart in charts]
    assert titles == [
        "Loss over tokens trained",
        "exact_match of base and tuned models",
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


def browse(arguments: list[str], profile: Path) -> str:
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        f"--user-data-dir={profile}", *arguments,
    ]  # fmt: skip
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


def pixels(png: bytes) -> tuple[int, int, set[bytes]]:
    """Width, height and the colours of an 8-bit RGB or RGBA screenshot."""
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert depth == 8
    size = {2: 3, 6: 4}[kind]
    data, place = b"", 8
    while place < len(png):
        length = int.from_bytes(png[place : place + 4])
        if png[place + 4 : place + 8] == b"IDAT":
            data += png[place + 8 : place + 8 + length]
        place += length + 12
    raw, stride, previous = zlib.decompress(data), width * size, bytearray(width * size)
    colours: set[bytes] = set()
    for y in range(height):
        line = bytearray(raw[y * (stride + 1) + 1 : (y + 1) * (stride + 1)])
        _unfilter(raw[y * (stride + 1)], line, previous, size)
        colours.update(bytes(line[i : i + 3]) for i in range(0, stride, size * 7))
        previous = line
    return width, height, colours


def _unfilter(kind: int, line: bytearray, above: bytearray, size: int) -> None:
    for i in range(len(line)):
        left = line[i - size] if i >= size else 0
        up, corner = above[i], above[i - size] if i >= size else 0
        if kind == 1:
            line[i] = (line[i] + left) & 255
        elif kind == 2:
            line[i] = (line[i] + up) & 255
        elif kind == 3:
            line[i] = (line[i] + (left + up) // 2) & 255
        elif kind == 4:
            p = left + up - corner
            near = min((abs(p - left), 0, left), (abs(p - up), 1, up), (abs(p - corner), 2, corner))[2]
            line[i] = (line[i] + near) & 255


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; install one, e.g. apt-get install chromium")
@pytest.mark.parametrize(("scheme", "background"), [("light", (255, 255, 255)), ("dark", (0x14, 0x16, 0x1A))])
def test_chromium_draws_it(
    comparison: Comparison, tmp_path: Path, scheme: str, background: tuple[int, int, int]
) -> None:
    page = comparison.save(tmp_path / "report.html")
    shot = tmp_path / f"{scheme}.png"
    prefers = f"--blink-settings=preferredColorScheme={'0' if scheme == 'dark' else '1'}"
    browse([prefers, "--window-size=600,900", f"--screenshot={shot}", page.as_uri()], tmp_path / "profile")
    width, height, colours = pixels(shot.read_bytes())
    assert (width, height) == (600, 900)
    assert bytes(background) in colours
    assert len(colours) > 20  # text, banner and rules, not an empty page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; install one, e.g. apt-get install chromium")
def test_chromium_reads_and_prints_it(comparison: Comparison, tmp_path: Path) -> None:
    page = comparison.save(tmp_path / "report.html")
    dom = browse(["--dump-dom", page.as_uri()], tmp_path / "profile")
    assert dom.count("<svg") == 3
    assert dom.count('class="differs"') == 0 or "differs" in dom
    paper = tmp_path / "report.pdf"
    browse([f"--print-to-pdf={paper}", "--no-pdf-header-footer", page.as_uri()], tmp_path / "profile")
    assert paper.read_bytes().startswith(b"%PDF-")
