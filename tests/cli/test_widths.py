"""What all commands print, at three widths and in as many encodings, against the same on a terminal that is
wide enough for everything: no word is broken, no number, id or sum is cut, and no character
ends a command."""

from __future__ import annotations

import codecs
import json
import os
import re
import shlex
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import command

from orchestrate import JobSpec, config
from orchestrate.commands.terminal.pages import examples
from orchestrate.text import lookalike
from orchestrate.tracking import Store
from orchestrate.tracking.records.runs import Intent

ENDLESS = {
    "ui", "mcp", "worker", "serve", "ab serve", "queue run", "demo", "sandbox run", "local bench", "watch",
    "log", "review", "data review",
}  # fmt: skip
"""These serve, follow or train until they are told to end; of some the first screen is looked at all the
same."""
SERVES = ("ui --read-only --port 0", "sandbox --no-train --port 0", "gateway --port 0")
"""Ended as soon as they have said where they are."""
MORE = (
    "quote --provider openai,together,fireworks --traffic '20k req/day, 900 in, 150 out' --months 6",
    "plan --all", "prices list", "prices list --model qwen3.5-9b", "models show qwen3.5-9b",
    "check --provider openai", "show fireworks", "data inspect nosuch.jsonl", "models show gpt41",
    "schema", "keys", "queue run --until-empty", "demo shown --files-only", "serve nosuch", "review nosuch",
    "watch nosuch", "ab serve nosuch.yaml", "mcp --skill", *SERVES,
)  # fmt: skip
BY_THE_HOUR = {"doctor", "advise", "plan", "quote", "local memory"}
"""They tell the load, the room and the speed of this machine, which change meanwhile."""
NEW = re.compile(
    r"\b(?:(?:run|orc)-1[0-9a-z]{11}|orc-gw-[\w-]{43}|\d\d:\d\d:\d\d)(?![\w-])"
    r"|sandbox-[0-9a-f]{24}|http://127[^\s']+"
)
"""Ids, keys and times are others in each scene, and as long."""
FRAMES = re.compile(r"[╭╮╰╯│─█▁▂▃▄▅▆▇#]+")


def run_all(arguments: list[str]) -> None:
    """In a process of its own: what each command prints, and its exit code, between marks."""
    import sys

    from orchestrate.cli import main

    for words in map(shlex.split, arguments):
        print("<<<", json.dumps(words), flush=True)
        if shlex.join(words) in SERVES:
            threading.Thread(target=end_when_it_has_written, args=(os.fstat(1).st_size,), daemon=True).start()
        sys.argv = ["orchestrate", *words]
        try:
            main()
        except SystemExit as ended:
            print("\n>>>", ended.code, flush=True)


def end_when_it_has_written(before: int) -> None:
    """A command that serves does so after it has made itself ready to be ended."""
    while os.fstat(1).st_size == before:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def folder() -> Iterator[Path]:
    """By a short name: a path that is longer than a line has to be broken."""
    with tempfile.TemporaryDirectory(prefix="o-", dir="/tmp") as made:
        yield Path(made)


def scene(folder: Path) -> None:
    """Two runs, data and a spec; always the same, as some commands write."""
    for old in folder.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    row = '{"messages": [{"role": "user", "content": "q%d →"}, {"role": "assistant", "content": "naïve"}]}\n'
    (folder / "train.jsonl").write_text("".join(row % i for i in range(12)), encoding="utf-8")
    shutil.copy(folder / "train.jsonl", folder / "tickets.jsonl")
    (folder / "finetune.yaml").write_text(
        "model: {openai: gpt-4.1-mini, default: qwen3-8b}\ntrain: train.jsonl\nepochs: 3\n"
        "learning_rate: 0.00012345\noverrides: {openai: {learning_rate: null}}\n"
    )
    settings = config.load(env={"ORCHESTRATE_HOME": str(folder / "home")}, cwd=folder)
    with Store.open(settings.store_url) as store:
        spec = JobSpec(model="accounts/fireworks/models/qwen3-8b", train="train.jsonl")
        for name in ("fireworks", "openai"):
            store.runs.create(Intent(spec=spec, provider=name, dataset_digest="d" * 64, host="h"))


def said(folder: Path, environment: dict[str, str], width: int, encoding: str) -> dict[str, tuple[str, str]]:
    """The output and the exit code of each command."""
    scene(folder)
    asked = [text.partition(" ")[2] for name, text in examples().items() if name not in ENDLESS]
    env = environment | {
        "HOME": str(folder), "ORCHESTRATE_HOME": str(folder / "home"), "COLUMNS": str(width),
        "TERMINAL_WIDTH": str(width), "NO_COLOR": "1", "PYTHONIOENCODING": encoding,
        "ORCHESTRATE_KEYS": str(folder / "keys.toml"),
    }  # fmt: skip
    done = command.run([*asked, *MORE], cwd=folder, env=env, program=run_all)
    told = done.out.decode(encoding)
    assert "defect:" not in done.err.decode(encoding), done.err.decode(encoding)
    found: dict[str, tuple[str, str]] = {}
    for part in told.split("<<< ")[1:]:
        words, _, rest = part.partition("\n")
        text, _, code = rest.rpartition("\n>>>")
        found[" ".join(json.loads(words))] = (NEW.sub("NEW", text), code.strip())
    assert len(found) == len({*asked, *MORE})
    return found


def strangers(text: str, wide: str, *, loosely: bool) -> list[str]:
    """Words that the wide terminal has not. A text may end in dots, a number may not."""

    def shape(word: str) -> str:
        return re.sub(r"\d+", "0", word) if loosely else word

    known = {shape(word) for word in FRAMES.sub(" ", wide).split()}
    known |= {word.rstrip(";:") for word in known}
    words = {word.rstrip(";:") for word in FRAMES.sub(" ", text).split()}  # they stand after names and facts
    cut = re.compile(r"[^\d$]*(\.\.\.|…)\)?")
    return [word for word in words if shape(word) not in known and not cut.fullmatch(word)]


@pytest.mark.slow
def test_no_word_of_any_command_is_broken(folder: Path, cli_env: dict[str, str]) -> None:
    codecs.register_error("lookalike", lookalike)
    wide = said(folder, cli_env, 1000, "utf-8")
    wrong: dict[str, Any] = {}
    for width, encoding in ((80, "ascii"), (100, "cp1252"), (140, "latin-1")):
        for words, (text, code) in said(folder, cli_env, width, encoding).items():
            whole, same = wide[words]
            assert code == same, (words, width, code, same)
            whole = whole.encode(encoding, "lookalike").decode(encoding)
            if found := strangers(text, whole, loosely=words.split()[0] in BY_THE_HOUR):
                wrong[f"{words} at {width}"] = found
    assert not wrong, json.dumps(wrong, indent=1)


def test_what_is_looked_for_is_found() -> None:
    wide = "total  $1,752.01  qwen3-30b-a3b-instruct"
    assert strangers("total  $1,752.\n01", wide, loosely=False)
    assert strangers("qwen3-30b-\na3b-instruct", wide, loosely=False)
    assert strangers("total  $1,7...", wide, loosely=False)
    assert not strangers("total\n$1,752.01\n  qwen3-30b-a3b-instruct", wide, loosely=False)
