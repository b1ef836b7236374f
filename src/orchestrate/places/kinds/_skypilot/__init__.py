"""Client of `bridge.py`, a process in SkyPilot's environment that runs until its place is closed."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from shutil import which
from typing import Any

from orchestrate import settings
from orchestrate.core.child import Child, Ended, TooLate
from orchestrate.errors import SetupError

INSTALL = (
    "uv tool install --python 3.11 'skypilot[runpod,vast]'   (or use pip in a separate virtual environment)"
)
ANSWER_S = 600.0
"""Timeout in seconds, which includes starting the API server and its controller."""


def credentials() -> re.Pattern[str]:
    """Match the environment variables with credentials of clouds, which SkyPilot was installed to use.
    The file `credentials.txt` next to this module has one pattern per line."""
    lines = files("orchestrate.places.kinds._skypilot").joinpath("credentials.txt").read_text("utf-8").split()
    return re.compile("|".join(lines))


class NoAnswer(Exception):
    """Raised if the bridge ended or did not respond, so the request may have been carried out."""


class SkyRefusal(Exception):
    """Raised for an error of SkyPilot's client. `kinds` are the names of the error's classes, its own
    first."""

    def __init__(self, kinds: list[str], message: str) -> None:
        super().__init__(message)
        self.kinds, self.message = kinds, message


class Bridge:
    """A connection to SkyPilot. `python` is the Python of SkyPilot's environment. `server` is the address of
    the API server, if it is not the client's default."""

    def __init__(self, python: str, server: str | None = None, answer_s: float = ANSWER_S) -> None:
        self.python = str(Path(python).absolute()) if "/" in python else python
        self.server, self.answer_s = server, answer_s
        self._child: Child | None = None
        self._lock = threading.Lock()

    def ask(self, question: str, **about: Any) -> Any:
        """Send a question to the bridge and return its answer. Raises `NoAnswer`, `SkyRefusal`,
        `SetupError`."""
        with self._lock:
            child = self._started()
            try:
                line = child.exchange({"ask": question, **about}, self.answer_s)
            except (Ended, TooLate) as error:
                self._end()
                raise NoAnswer(error.message) from error
        answer: Mapping[str, Any] = json.loads(line)
        if (error := answer.get("error")) is not None:
            raise SkyRefusal(list(error["kinds"]), str(error["message"]))
        return answer["ok"]

    def _started(self) -> Child:
        if self._child is not None and self._child.running:
            return self._child
        env = settings.of_child(credentials())
        env.pop("PYTHONPATH", None)
        if self.server:
            env["SKYPILOT_API_SERVER_ENDPOINT"] = self.server
        with as_file(files("orchestrate.places.kinds._skypilot").joinpath("bridge.py")) as script:
            try:
                self._child = Child(
                    [self.python, str(script)],
                    env=env,
                    name="SkyPilot's client",
                    cwd=script.parent,  # its client reads .sky.yaml where it runs, which may be anybody's
                    keeps_words=False,
                    ends_all=False,  # the API server that it may start is for all
                )
            except OSError as error:
                raise SetupError(
                    f"cannot run SkyPilot's Python {self.python}: {error}", fix=INSTALL
                ) from error
        return self._child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close(0)

    def close(self) -> None:
        with self._lock:
            self._end()


def python_of(command: str = "sky") -> str | None:
    """Return the Python that runs an installed command, from the command's first line, or `None` if there is
    none."""
    found = which(command)
    if found is None:
        return None
    with Path(found).open("rb") as file:
        first = file.readline(1000).decode("utf-8", "replace").strip()
    words = first.removeprefix("#!").split()
    return words[0] if first.startswith("#!") and words and Path(words[0]).name.startswith("python") else None
