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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests import command
from tests.reviewing import answered

from orchestrate import JobSpec
from orchestrate.commands import EXAMPLES
from orchestrate.commands.terminal import console
from orchestrate.settings import config
from orchestrate.store.runs import Intent
from orchestrate.store.store import Store
from orchestrate.text import lookalike
from orchestrate.types import Contender, Evaluation, MetricUsed

ENDLESS = {
    "ui", "mcp", "worker", "serve", "ab serve", "queue run", "demo", "sandbox run", "local bench", "watch",
    "log", "review", "data review",
}  # fmt: skip
"""These serve, follow or train until they are told to end. Their first screens are looked at by `SERVES` and
`FIRST`, but for those that take a model and minutes: `serve` prints what `ab serve` does, by the same calls,
`local bench` two sentences, `demo` and `sandbox run` the pages of other commands, `mcp` nothing for people.
What `watch` draws of runs on their way is held to these widths in `test_live_view.py`."""
SERVES = ("ui --read-only --port 0", "sandbox --no-train --port 0", "gateway --port 0")
"""Ended as soon as they have said where they are."""
FIRST = (
    "worker --provider local", "review last", "review last --single --raters ann,bo",
    "data review train.jsonl --no-browser", "ab serve support-bot.yaml --port 0",
)  # fmt: skip
"""So are these, of which the notes are looked at, too."""
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
    r"\b(?:(?:run|orc|rev|ab)-1[0-9a-z]{11}|orc-gw-[\w-]{43}|\d\d:\d\d:\d\d)(?![\w-])"
    r"|sandbox-[0-9a-f]{24}|http://127[^\s']+"
)
"""Ids, keys and times are others in each scene, and as long."""
FRAMES = re.compile(r"[╭╮╰╯│─█▁▂▃▄▅▆▇#]+")


def run_all(arguments: list[str]) -> None:
    """In a process of its own: what each command prints, and its exit code, between marks."""
    import sys

    from orchestrate.cli import main

    for words in map(shlex.split, arguments):
        for stream in (sys.stdout, sys.stderr):
            print("<<<", json.dumps(words), file=stream, flush=True)
        if shlex.join(words) in (*SERVES, *FIRST):
            stream = 2 if words[0] == "worker" else 1
            before = os.fstat(stream).st_size
            threading.Thread(target=end_when_it_has_written, args=(stream, before), daemon=True).start()
        sys.argv = ["orchestrate", *words]
        try:
            main()
        except SystemExit as ended:
            for stream in (sys.stdout, sys.stderr):
                print("\n>>>", ended.code, file=stream, flush=True)


def end_when_it_has_written(stream: int, before: int) -> None:
    """A command that serves does so after it has made itself ready to be ended."""
    while os.fstat(stream).st_size == before:
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
    asked = [text.partition(" ")[2] for name, text in EXAMPLES.items() if name not in ENDLESS]
    out, _ = told_by([*asked, *MORE], folder, environment, width, encoding)
    return out


Outputs = dict[str, tuple[str, str]]


def told_by(
    asked: list[str], folder: Path, environment: dict[str, str], width: int, encoding: str
) -> tuple[Outputs, Outputs]:
    """By command: what it gave with its exit code, and what it noted beside that."""
    env = environment | {
        "HOME": str(folder), "ORCHESTRATE_HOME": str(folder / "home"), "COLUMNS": str(width),
        "TERMINAL_WIDTH": str(width), "NO_COLOR": "1", "PYTHONIOENCODING": encoding,
        "ORCHESTRATE_KEYS": str(folder / "keys.toml"),
    }  # fmt: skip
    done = command.run(asked, cwd=folder, env=env, program=run_all)
    out, err = done.out.decode(encoding), done.err.decode(encoding)
    assert "bug:" not in err, err
    return parted(out, len({*asked})), parted(err, len({*asked}))


def parted(told: str, commands: int) -> Outputs:
    found: Outputs = {}
    for part in told.split("<<< ")[1:]:
        words, _, rest = part.partition("\n")
        text, _, code = rest.rpartition("\n>>>")
        found[" ".join(json.loads(words))] = (NEW.sub("NEW", text), code.strip())
    assert len(found) == commands
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


def judged(folder: Path) -> None:
    """An evaluation of which answers can be rated, and an experiment's plan."""
    rows = answered(("one?", "tuned one", "base one"), ("two?", "b", "a"), names=("run", "base tiny"))
    (folder / "items.jsonl").write_bytes(b"".join(row.to_json() + b"\n" for row in rows))
    settings = config.load(env={"ORCHESTRATE_HOME": str(folder / "home")}, cwd=folder)
    with Store.open(settings.store_url) as store:
        run = store.runs.get("last")
        sides = {"run": ("tuned", run.id), "base tiny": ("base", None)}
        store.history.add_evaluation(
            Evaluation(
                id="eval-20261101-abcd", created_at=datetime(2026, 11, 1, tzinfo=UTC), dataset="test.jsonl",
                dataset_digest="d", items=len(rows), items_digest="e" * 64, measures=(),
                items_file=str(folder / "items.jsonl"),
                contenders=tuple(
                    Contender(
                        name=name, kind=kind, model="t", provider="fireworks", served_by="h", run_id=id
                    )
                    for name, (kind, id) in sides.items()
                ),
                metrics=(MetricUsed(name="token_f1", kind="graded"),),
            )
        )  # fmt: skip
    model = "http://127.0.0.1:9/v1=qwen3-8b"
    (folder / "support-bot.yaml").write_text(
        f"name: support-bot\nbase: {model}\ntuned: {model}-support\n"
        "metrics: [{name: resolved, role: primary}]\n"
        "rule: {stages: [10, 100], goal: better, min_users: 200, min_hours: 24}\n"
    )


@pytest.mark.slow
def test_first_screens_of_what_goes_on_are_whole(folder: Path, cli_env: dict[str, str]) -> None:
    seen: dict[int, tuple[Outputs, Outputs]] = {}
    for width in (1000, 80, 100, 140):
        scene(folder)
        judged(folder)
        asked = [*FIRST, "watch last", "log last --to tensorboard --at curves"]
        seen[width] = told_by(asked, folder, cli_env, width, "utf-8")
    for width in (80, 100, 140):
        for wide, narrow in zip(seen[1000], seen[width], strict=True):
            for words, (text, code) in narrow.items():
                assert code == wide[words][1], (words, width)
                assert not strangers(text, wide[words][0], loosely=False), f"{words} at {width}:\n{text}"
    out, err = seen[80]
    assert "watching 0 active runs" in err["worker --provider local"][0], "those are of other backends"
    assert all(text.strip() or err[words][0].strip() for words, (text, _) in out.items())


def test_what_is_looked_for_is_found() -> None:
    wide = "total  $1,752.01  qwen3-30b-a3b-instruct"
    assert strangers("total  $1,752.\n01", wide, loosely=False)
    assert strangers("qwen3-30b-\na3b-instruct", wide, loosely=False)
    assert strangers("total  $1,7...", wide, loosely=False)
    assert not strangers("total\n$1,752.01\n  qwen3-30b-a3b-instruct", wide, loosely=False)


@pytest.mark.parametrize(
    "command",
    [
        "orchestrate eval NEW-RUN --model record:rec-1 --against record:rec-1 -p local --test rows.jsonl",
        "orchestrate advise train.jsonl --measure qwen3-8b --test /home/ann/of-november/held-out.jsonl",
        "orchestrate data check train.jsonl --for together,fireworks,openai --near --tokens sampled",
    ],
)
def test_a_command_in_a_note_can_be_copied(command: str) -> None:
    text = f"it is kept, and is compared with what comes by {command} once it has ended\n  {command}"
    wide = console.err.width
    console.err.width = 80
    try:
        with console.err.capture() as shown:
            console.note(text)
    finally:
        console.err.width = wide
    assert shown.get().splitlines() == [
        "it is kept, and is compared with what comes by",
        command,
        "once it has ended",
        f"  {command}",
    ]
