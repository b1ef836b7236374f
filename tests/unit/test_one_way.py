"""Who starts a process, listens on a port, or asks a host for answers does it through the one module for it.
What is allowed beside it stands here with its reason: whatever is new, and not here, fails."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.paths import ROOT

SOURCE = ROOT / "src" / "orchestrate"

PROCESSES = {
    "core/child.py": "the one way: a child that is asked",
    "commands/servers/sandbox.py": "runs the user's own command",
    "commands/setup/demo.py": "types commands as a user does",
    "data/passes/pool.py": "functions go to it by pickle",
    "local/machine.py": "asks nvidia-smi once",
    "local/objectives/isolation.py": "tries what the system allows, and asks nothing",
    "local/run/launching.py": "a worker that outlives whoever started it",
    "local/run/parallel.py": "members of one training; they speak through torch",
    "local/run/process.py": "asks ps once",
    "local/speed/measuring.py": "a measurement in a process of its own, once",
    "places/remote.py": "runs where nothing else of ours may be loaded",
    "runs/watching/background.py": "a watcher that outlives its terminal",
    "runs/watching/channels.py": "the user's own command, told of an end",
    "serving/engines.py": "servers of others, which speak HTTP",
    "serving/export/forms.py": "llama.cpp's converter, once",
}
SERVERS = {
    "http/web/server.py": "the one way",
    "runs/watching/webhooks.py": "in the base install, which has no web framework",
}
DOORS = {
    "http/web/edge.py": "the one way, for what speaks an API",
    "data/operations/review_server.py": "pages: a token in the address, and no keys",
    "evaluation/review/server.py": "pages, likewise",
    "ui/server.py": "pages, likewise",
}
ANSWERS = {
    "ab/launch.py": "passes on what live users ask",
    "gateway/answers.py": "passes on what clients ask",
    "runs/data/generation.py": "questions of `paid`: data/operations/generate.py",
    "runs/evaluation/contenders.py": "questions of `paid`: evaluation/evaluate.py",
    "runs/serving/tuned.py": "a proof: a few questions to what was just deployed",
    "runs/tracked.py": "one question that a person types",
    "serving/proof/host.py": "a proof: a few questions to what was just deployed",
}
"""Who gets answers of a host. What asks many questions asks them by `paid`, which counts and limits them."""


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def users(*modules: str) -> set[str]:
    """Files that import one of the modules, or a part of one."""

    def takes(path: Path) -> bool:
        names = set(imported(ast.parse(path.read_text(encoding="utf-8"))))
        return any(name == module or name.startswith(f"{module}.") for name in names for module in modules)

    return {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if takes(path)}


@pytest.mark.parametrize(
    ("modules", "allowed"),
    [
        (("subprocess", "multiprocessing", "concurrent.futures.ProcessPoolExecutor"), PROCESSES),
        (("uvicorn", "http.server", "socketserver", "wsgiref", "aiohttp.web"), SERVERS),
        (("orchestrate.http.web.guard.Guard", "starlette.applications.Starlette"), DOORS),
        (("orchestrate.providers.base.Chats", "orchestrate.providers.chat"), ANSWERS),
    ],
    ids=["processes", "servers", "doors", "answers"],
)
def test_nobody_goes_around(modules: tuple[str, ...], allowed: dict[str, str]) -> None:
    assert {file for file in users(*modules) if not file.startswith("providers/")} == allowed.keys()


@pytest.mark.parametrize(
    "file", ["data/operations/generate.py", "evaluation/evaluate.py", "evaluation/judges/judge.py"]
)
def test_what_asks_many_questions_asks_them_by_the_journal(file: str) -> None:
    assert file in users("orchestrate.paid")
