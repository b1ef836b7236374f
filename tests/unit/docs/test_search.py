"""The search of the built site finds pages for what users type, also where no section has every word. The
theme's script and ours answer in a browser."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.browsers import chromium, new_page
from tests.paths import ROOT

QUESTIONS = {
    "tool calling": "prepare-data",
    "how do I stop billing": "budget|answers|troubleshooting",
    "ModuleNotFoundError": "troubleshooting",
    "delete my data": "privacy|answers",
    "out of memory": "troubleshooting",
    "proxy certificate": "troubleshooting",
    "laptop died resume": "troubleshooting|answers",
    "csv columns": "prepare-data",
    "ORCHESTRATE_STORE": "reference/configuration",
    "share runs team postgres": "team|answers",
    "vision images": "prepare-data|answers",
    "how much does fine-tuning cost": "answers|quotes",
    "OpenAI evals shut down": "leaving-openai",
    "call the tuned model from my app": "answers",
    "delete my uploaded data": "privacy|answers",
    "can I fine-tune without internet": "offline|local",
    "slack message when my training ends": "notifications",
    "GPU xylophone": "local|scaling|places",
}


# Asks the theme's own worker, as its page does.
ANSWERS = """async (questions) => {
  const { base, search } = JSON.parse(document.querySelector("#__config").textContent);
  const site = new URL(base + "/", location.href);
  const worker = new Worker(new URL(search, location.href));
  const answer = (kind) => new Promise((resolve, reject) => {
    worker.onerror = reject;
    worker.onmessage = ({ data }) => data.type === kind && resolve(data.data);
  });
  const ready = answer(1);
  const index = await (await fetch(new URL("search.json", site))).json();
  worker.postMessage({ type: 0, data: index });
  await ready;
  const found = {};
  for (const input of questions) {
    const result = answer(3);
    const filter = { input: { type: "operator", data: { operator: "and", operands: [] } },
                     aggregation: { input: [] } };
    worker.postMessage({ type: 2, data: { input, filter } });
    found[input] = (await result).items.map((item) => index.items[item.id].location);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[str]]]:
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=folder, check=True)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, chromium() as browser:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = new_page(browser)
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        yield page.evaluate(ANSWERS, [*QUESTIONS, "xylophone quartet"])
        server.shutdown()


@pytest.mark.slow
def test_every_question_finds_its_page(found: dict[str, list[str]]) -> None:
    missed = {
        query: found[query][:5]
        for query, page in QUESTIONS.items()
        if not any(re.search(page, place) for place in found[query])
    }
    assert missed == {}


@pytest.mark.slow
def test_words_that_stand_nowhere_find_nothing(found: dict[str, list[str]]) -> None:
    assert found["xylophone quartet"] == []


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r": ([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    pages = {str(Path(page).relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages == listed
