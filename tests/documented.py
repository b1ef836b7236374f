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


@dataclass(frozen=True)
class Snippet:
    """A block of a page. `note` is what the comment before it says: the file that it is, the exit codes that
    it may have, or why it is not run."""

    language: str
    text: str
    note: str

    @property
    def lines(self) -> list[str]:
        """Of shell, without comments, a continued line being one."""
        lines = self.text.replace("\\\n", " ").splitlines()
        lines = [re.sub(r"(^|\s+)#.*$", "", line).strip().removeprefix("$ ") for line in lines]
        return [line for line in lines if line]

    @property
    def unrun(self) -> str:
        """Why it is parsed only."""
        return self.note.partition("parsed, not run: ")[2]


SHELL = ("", "sh", "bash", "console")


def snippets(page: Path) -> list[Snippet]:
    text = page.read_text(encoding="utf-8")
    found = re.findall(
        r"(?:^ *<!-- ([^\n]*) -->\n)?^( *)```(\w*)[^\n]*\n(.*?)^\2```", text, re.MULTILINE | re.DOTALL
    )
    return [Snippet(language, block, note) for note, _, language, block in found]


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
