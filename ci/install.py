"""Installs this checkout with an extra into this Python's environment: `python install.py dev`.

uv does in a minute what takes pip several. It is given pip's own configuration. Where that holds something
that uv has no setting for, or uv can't be had or fails, pip installs.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
PLACE = Path(sys.prefix) / ".uv"
"""Beside the environment's packages, not among them."""
SETTINGS = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "no-index": ("UV_NO_INDEX", " "),
    "constraint": ("UV_CONSTRAINT", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
    "proxy": ("ALL_PROXY", " "),
}
"""pip's setting -> uv's variable, and what parts several values there."""
WITHOUT_EFFECT = re.compile(
    r"(no-)?(cache-dir|color|input|warn-script-location)|config-file|disable-pip-version-check|progress-bar"
    r"|quiet|verbose|require-virtualenv|retries|root-user-action"
)
"""On what is installed."""


def main(extra: str) -> int:
    return install("-e", f"{ROOT}[{extra}]")


def install(*what: str, into: Path = Path(sys.prefix)) -> int:
    """Into an environment, by default this Python's. Returns an exit code."""
    given = configured()
    python = str(into / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    if given is None:
        note("pip is configured in ways that uv is not")
    elif run(*PIP, "install", "-q", "--upgrade", "--target", str(PLACE), "uv"):
        note("uv can't be had")
    elif run(*uv(), "install", *what, **given, VIRTUAL_ENV=str(into)):
        note("uv failed")
    else:
        return 0
    return run(python, *PIP[1:], "install", *what)


def note(why: str) -> None:
    sys.stderr.write(f"{why}: pip installs\n")


def run(*command: str, **env: str) -> int:
    try:
        return subprocess.run(command, env={**os.environ, **env}, check=False).returncode
    except OSError:
        return 127


def uv() -> list[str]:
    name = "uv.exe" if os.name == "nt" else "uv"
    places = [PLACE / "bin" / name, PLACE / "Scripts" / name]
    program = next((str(place) for place in places if place.is_file()), name)
    return [program, "pip"]


def configured() -> dict[str, str] | None:
    """pip's configuration as uv's variables; `None` where uv has no setting for a part of it."""
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=False)
    if listed.returncode:
        return None
    # As pip has it: the best version of all indexes, not that of the first that knows the package.
    found = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for section in ("global", "install", ":env:"):  # each stands above those before it
        for line in listed.stdout.splitlines():
            place, _, value = line.partition("=")
            if not place.startswith(f"{section}."):
                continue
            name = place.removeprefix(f"{section}.")
            if name in SETTINGS:
                variable, between = SETTINGS[name]
                found[variable] = between.join(str(ast.literal_eval(value)).split())
            elif not WITHOUT_EFFECT.fullmatch(name):
                return None
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
