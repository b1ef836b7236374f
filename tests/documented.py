"""Commands of a page, run as they stand there, on a machine that has nothing but the package."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests import command, forking


@dataclass(frozen=True)
class Done:
    line: str
    code: int
    out: str
    err: str


def commands(page: Path) -> list[str]:
    """Of its blocks of shell, without their comments, a continued line being one."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"\s+#.*$", "", line).strip() for line in "".join(blocks).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def environment(folder: Path) -> dict[str, str]:
    """Of a person who has set nothing, on the day of the tests."""
    kept = {k: v for k, v in os.environ.items() if not k.endswith(("_API_KEY", "_BASE_URL"))}
    kept = {k: v for k, v in kept.items() if not k.startswith("ORCHESTRATE_")}
    return kept | {
        "HOME": str(folder),
        "ORCHESTRATE_TODAY": os.environ["ORCHESTRATE_TODAY"],
        "ORCHESTRATE_HOME": str(folder / "home"),
        "ORCHESTRATE_KEYS": str(folder / "keys.toml"),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "140",
        "PATH": forking.path(),
    }


def run(line: str, cwd: Path, env: Mapping[str, str], codes: tuple[int, ...] = (0,)) -> Done:
    """One of them; without a shell, so that it runs on any machine as it runs on this one."""
    words = shlex.split(line)
    assert words[0] == "orchestrate", line
    ended = command.run(words[1:], cwd=cwd, env=env)
    done = Done(line, ended.code, ended.out.decode(), ended.err.decode())
    assert done.code in codes, f"{line}\n{done.out[-3000:]}\n{done.err[-3000:]}"
    return done
