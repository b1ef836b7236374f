"""A notebook run by its own client: what its cells show, and a run drawn while it is waited for."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from tests.documented import Snippet, snippets
from tests.paths import ROOT
from tests.unit.ui.page import Parsed

from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations

pytestmark = pytest.mark.slow

CELLS = (
    """
from orchestrate import *
spec = JobSpec(model="gpt-4.1-mini-2025-04-14", train="train.jsonl", epochs=1)
ft = Orchestrator()
spec
""",
    'ft.quote(spec, "openai,together")',
    'ft.plan(spec, "openai")[0]',
    'ft.check(spec, "openai")',
    'run = ft.submit(spec, provider="openai")\nended = run.wait(poll_s=0.02)',
    "ended",
    "run.metrics().to_pandas()",
    "run.wait(poll_s=0.02, live=False).id",
)
PAGE = snippets(ROOT / "docs" / "notebooks.md")
"""Its first block needs nothing, its second a run and an evaluation."""


def lines(one: Snippet) -> list[str]:
    """Each statement as a cell."""
    return [ast.unparse(line) for line in ast.parse(one.text).body]


FIRST, SECOND = (lines(one) for one in PAGE)
EVALUATED = "ft.run('last').evaluate(test='test.jsonl')"
WRITTEN = (*CELLS, *FIRST, EVALUATED, *SECOND, "ft.close()")


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def outputs(cell: Any) -> list[dict[str, str]]:
    return [dict(one["data"]) for one in cell["outputs"] if "data" in one]


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, mark in (("train", "q"), ("test", "other ")):
        rows = [{"messages": [_turn("user", f"{mark}{n}"), _turn("assistant", f"a{n}")]} for n in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in WRITTEN])
    with running(home=tmp_path / "sandbox", train=False, speed=1000, waits=Durations(file=0.0)) as sandbox:
        env = {
            **sandbox.env,
            "ORCHESTRATE_HOME": str(tmp_path / "home"),
            "IPYTHONDIR": str(tmp_path / "ipython"),
        }
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        client = NotebookClient(
            written,
            timeout=300,
            startup_timeout=300,
            kernel_name="python3",
            resources={"metadata": {"path": str(tmp_path)}},
        )
        return client.execute()


# The client of kernels leaves its loop and sockets to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_notebook_from_spec_to_metrics(notebook: Any) -> None:
    spec, quotes, plan, problems, waited, ended, metrics, silent, *page, _ = notebook["cells"]
    html = {
        name: Parsed(outputs(cell)[-1]["text/html"]).text
        for name, cell in [("spec", spec), ("quotes", quotes), ("plan", plan), ("problems", problems)]
    }
    assert "gpt-4.1-mini-2025-04-14" in html["spec"] and "epochs" in html["spec"]
    assert "openai" in html["quotes"] and "together" in html["quotes"]
    assert "hyperparameters" not in html["plan"] and "epochs" in html["plan"]
    assert html["problems"]
    # One picture, drawn again in its place, and none where it is not wanted.
    [live] = outputs(waited)
    drawn = Parsed(live["text/html"]).text
    assert "SANDBOX" in drawn and "succeeded" in drawn and "loss" in drawn
    assert live["text/plain"].startswith("<RunHandle")
    assert "$" in Parsed(outputs(ended)[-1]["text/html"]).text
    assert "train_loss" in outputs(metrics)[-1]["text/html"]
    assert "text/html" not in outputs(silent)[-1]
    # What the page of notebooks shows, statement by statement.
    first, evaluated, second = page[: len(FIRST)], page[len(FIRST)], page[len(FIRST) + 1 :]
    prices = Parsed(outputs(first[-1])[-1]["text/html"]).texts
    assert {"together", "fireworks", "local"} <= {*prices}
    assert outputs(evaluated)
    losses, by_backend, compared, scores = (outputs(cell)[-1] for cell in second[1:])
    assert "train_loss" in losses["text/plain"] and "openai" in by_backend["text/plain"]
    assert "text/html" in compared and "contender" in scores["text/html"]
