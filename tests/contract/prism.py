"""Prism between a backend and the sandbox: it judges requests and answers by a published API description.

Prism is not ours and knows nothing of Orchestrate. `npx` fetches it, in a version that is said here; nothing
of it is kept in the repository.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from tests.contract.known_fields import read
from tests.http_server import Handler, serving
from tests.ports import own_port

VERSION = "5.14.2"
START_S = 120.0
METHODS = ("get", "post", "put", "patch", "delete")
_HOP = {"host", "content-length", "connection", "transfer-encoding", "accept-encoding", "content-encoding"}


def absent() -> str | None:
    """Why Prism cannot be had; `None` when it can."""
    return None if shutil.which("npx") else "npx is not installed (Debian: apt-get install nodejs npm)"


@dataclass(frozen=True)
class Violation:
    method: str
    path: str
    place: str
    """`request.body.training_type`, dotted."""
    message: str
    value: Any
    """What stands in the place."""

    def __str__(self) -> str:
        return f"{self.method} {self.path}: {self.place}: {self.message}"


@dataclass
class Judge:
    """`url` is what a client is told; requests that the description does not have go to the sandbox alone."""

    url: str = ""
    violations: list[Violation] = field(default_factory=list)
    judged: set[tuple[str, str]] = field(default_factory=set)


@contextmanager
def judging(host: str, upstream: str, folder: Path) -> Iterator[Judge]:
    """`folder` takes what is handed to Prism."""
    told = read(f"{host}.yaml")
    copy = folder / f"{host}.json"
    copy.write_text(json.dumps(told, default=str))
    port = own_port()
    command = ["npx", "--yes", f"@stoplight/prism-cli@{VERSION}", "proxy", str(copy), upstream]
    log = folder / "prism.log"
    with log.open("w") as said:
        # npx leaves what it started, unless its whole group is ended.
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait(process, port, log)
            with _front(f"http://127.0.0.1:{port}", upstream, operations(told)) as judge:
                yield judge
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(120)


def operations(description: dict[str, Any]) -> list[tuple[str, re.Pattern[str]]]:
    """(method, path) of all that is described."""
    found: list[tuple[str, re.Pattern[str]]] = []
    for path, entry in description["paths"].items():
        pattern = "".join(
            "[^/:]+" if part.startswith("{") else re.escape(part) for part in re.split(r"({\w+})", path)
        )
        found += [(method.upper(), re.compile(pattern)) for method in entry if method in METHODS]
    return found


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Raises `AssertionError` with what Prism said when it does not begin to listen."""
    end = time.monotonic() + START_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.2)


@contextmanager
def _front(prism: str, upstream: str, described: list[tuple[str, re.Pattern[str]]]) -> Iterator[Judge]:
    judge = Judge()
    with httpx.Client(timeout=240) as client:

        class Front(Handler):
            def handle_any(self) -> None:
                content = self.body()
                headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}

                path = self.path.partition("?")[0]
                known = any(m == self.command and p.fullmatch(path) for m, p in described)
                to = (prism if known else upstream) + self.path
                answer = client.request(self.command, to, content=content, headers=headers)
                if known:
                    judge.judged.add((self.command, path))
                    judge.violations += _told(answer, self.command, path)
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    if name.lower() not in _HOP and not name.lower().startswith("sl-"):
                        self.send_header(name, value)
                self.send_header("content-length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = handle_any

        with serving(Front) as judge.url:
            yield judge


def _told(answer: httpx.Response, method: str, path: str) -> list[Violation]:
    bodies = {"request": _json(answer.request.content), "response": _json(answer.content)}
    return [
        Violation(method, path, ".".join(map(str, place)), str(item["message"]), _at(bodies, place))
        for item in _listed(answer.headers.get("sl-violations", ""))
        for place in [item["location"]]
    ]


def _listed(header: str) -> Iterator[dict[str, Any]]:
    """The objects of a list that Prism cuts off where it is long."""
    at = header.find("{")
    with suppress(ValueError):
        while at >= 0:
            item, end = json.JSONDecoder().raw_decode(header, at)
            yield item
            at = header.find("{", end)


def _json(content: bytes) -> dict[str, Any]:
    try:
        return {"body": json.loads(content)}
    except ValueError:
        return {"body": content}


def _at(value: Any, place: list[str]) -> Any:
    for key in place:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and str(key).isdigit():
            value = value[int(key)]
    return value
