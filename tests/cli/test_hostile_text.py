"""What comes from outside cannot act on a terminal: every command over a hostile host, dataset and file name,
asserting on the bytes that were written."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scripted_host import Answer, Host, scripted_host

from orchestrate.text import inert, inert_json

ACTS = {
    "clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "title": "\x1b]0;evil\x1b\\",
    "link": "\x1b]8;;https://evil.example\x1b\\here\x1b]8;;\x1b\\",
    "colour": "\x1b[38;5;201m",
    "report": "\x1b[6n",
    "screen": "\x1b[?1049h",
    "csi-8-bit": "\x9b35m",
    "osc-8-bit": "\x9d0;evil\x9c",
    "back": "\x08\x0d",
    "bidi": "\u202etxt.exe\u2066",
    "markup": "[link=https://evil.example]x[/link][red]",
}
EVIL = "".join(ACTS.values())
AS_JSON = ("recover", "show", "events", "chat", "data", "submit")
JOBS = "/v1/fine_tuning/jobs"
OURS = re.compile(rb"\x1b\[(?:[0-9;]*m|\?25[lh]|2K|1A)")
"""Styles, and what a live view does to the cursor."""
RUN_ALL = """
import json, sys
from orchestrate import cli
for words in json.load(open(sys.argv[1])):
    sys.argv = ["orchestrate", *words]
    print("<<<", ascii(words), flush=True)
    try:
        cli.main()
    except SystemExit as ended:
        print(">>>", ended.code, flush=True)
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    job: dict[str, Any] = {
        "object": "fine_tuning.job",
        "id": "ftjob-1",
        "created_at": 1790000000,
        "finished_at": 1790000100,
        "status": "failed",
        "model": f"gpt-4o-mini{EVIL}",
        "fine_tuned_model": f"ft:{EVIL}",
        "error": {"code": f"bad{EVIL}", "message": f"refused {EVIL}", "param": f"p{EVIL}"},
        "result_files": [],
        "metadata": {"orchestrate_ref": "orc-0123456789ab"},
        "hyperparameters": {"n_epochs": 1},
    }
    event: dict[str, Any] = {
        "object": "fine_tuning.job.event",
        "id": "ftevent-1",
        "created_at": 1790000001,
        "level": "info",
        "message": f"said {EVIL}",
        "type": f"message{EVIL}",
        "data": None,
    }
    with scripted_host() as running:
        done = job | {"id": "ftjob-2", "status": "succeeded", "error": {}}
        done["metadata"] = {"orchestrate_ref": "orc-0123456789ac"}
        running.on("GET", JOBS, {"object": "list", "data": [job, done], "has_more": False})
        for one in (job, done):
            path = f"{JOBS}/{one['id']}"
            running.on("GET", path, one)
            running.on("GET", f"{path}/events", {"object": "list", "data": [event], "has_more": False})
            running.on("GET", f"{path}/checkpoints", {"object": "list", "data": [], "has_more": False})
        refusal = {"error": {"message": f"no {EVIL}", "code": f"c{EVIL}", "type": EVIL}}
        running.on("GET", "/v1/models", Answer(refusal, 403, headers={"x-request-id": "r"}))
        running.on("GET", "/v1/files", Answer(refusal, 403))
        running.on("POST", "/v1/files", Answer(refusal, 400))
        reply = {"role": "assistant", "content": f"answer {EVIL}"}
        running.on("POST", "/v1/chat/completions", {"id": "c", "choices": [{"index": 0, "message": reply}]})
        yield running


@pytest.fixture
def scene(tmp_path: Path, host: Host) -> tuple[Path, dict[str, str]]:
    kept = {k: v for k, v in os.environ.items() if not k.endswith(("_API_KEY", "_BASE_URL"))}
    row = {"messages": [{"role": "user", "content": EVIL}, {"role": EVIL, "content": EVIL}], EVIL: EVIL}
    good = {"messages": [{"role": "user", "content": EVIL}, {"role": "assistant", "content": EVIL}]}
    lines = "".join(json.dumps(r) + "\n" for r in [good] * 12 + [row])
    (tmp_path / named()).write_text(lines)
    (tmp_path / f"good{named()}").write_text(lines[: -len(json.dumps(row)) - 1])
    (tmp_path / "spec.yaml").write_text(
        json.dumps({"model": "gpt-4.1-mini", "train": f"good{named()}", "tags": {"t": EVIL}, "suffix": "x"})
    )
    env = kept | {
        "ORCHESTRATE_HOME": str(tmp_path / "home"),
        "ORCHESTRATE_KEYS": str(tmp_path / "keys.toml"),
        "OPENAI_API_KEY": "sandbox-key",
        "OPENAI_BASE_URL": f"{host.url}/v1",
        "HOME": str(tmp_path),
        "COLUMNS": "160",
        "TERM": "xterm-256color",
    }
    return tmp_path, env


def named() -> str:
    return f"rows{EVIL.replace('/', '')}.jsonl"


def commands() -> list[list[str]]:
    data, run = named(), "run-0123456789ab"
    asked = [
        ["recover", "--provider", "openai"],
        ["sync"],
        ["runs"],
        ["show", run],
        ["show", EVIL],
        ["events", run],
        ["metrics", run],
        ["checkpoints", run],
        ["watch", run],
        ["chat", "run-0123456789ac", "hello"],
        ["chat", run, "hello"],
        ["compare", run],
        ["compare", run, "--format", "md"],
        ["compare", run, "--format", "html"],
        ["compare", run, "--format", "csv"],
        ["compare", run, "--format", "json"],
        ["data", "inspect", data],
        ["data", "check", data],
        ["data", "convert", f"good{data}", "--to", "openai", "-o", f"new{data}"],
        ["data", "dedupe", data, "-o", f"out{EVIL.replace('/', '')}.jsonl"],
        ["check", "spec.yaml", "-p", "openai"],
        ["plan", "spec.yaml", "-p", "openai"],
        ["plan", "spec.yaml", "-p", "openai", "--all"],
        ["show", "run-0123456789ac"],
        ["events", "run-0123456789ac"],
        ["quote", "spec.yaml", "-p", "openai"],
        ["submit", "spec.yaml", "-p", "openai", "--yes", "--max-cost", "500"],
        ["-vv", "doctor"],
        ["models", "show", EVIL],
        ["prices", EVIL],
        ["prices", "show", EVIL],
        [EVIL],
        ["runs", f"--{EVIL}"],
        ["keys", "set", EVIL],
    ]
    return asked + [[*words, "--json"] for words in asked if words[0] in AS_JSON]


def assert_inert(shown: bytes) -> None:
    said = shown.decode()
    for name, sequence in ACTS.items():
        if name not in ("back", "markup"):
            assert sequence not in said, name
    left = OURS.sub(b"", shown).replace(b"\r\n", b"\n").replace(b"\r", b"")
    acting = [c for c in left.decode() if c not in "\n\t" and c != inert(c)]
    assert not acting, [hex(ord(c)) for c in set(acting)]
    assert b"\x1b]" not in shown, "a link, a title or a clipboard"


def outside_words(shown: str) -> int:
    return shown.count("52;c;ZXZpbA==")


@pytest.mark.slow
def test_no_byte_from_outside_acts_on_a_pipe(scene: tuple[Path, dict[str, str]]) -> None:
    folder, env = scene
    (folder / "commands.json").write_text(json.dumps(commands()))
    words = [sys.executable, "-c", RUN_ALL, "commands.json"]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, input=b"")
    assert done.returncode == 0, done.stderr[-2000:]
    assert_inert(done.stdout)
    assert_inert(done.stderr)
    assert b"bug:" not in done.stderr, done.stderr[-2000:]
    assert outside_words((done.stdout + done.stderr).decode()) > 60, "the texts did come through, as texts"
    assert "[link=https" in done.stdout.decode(), "markup of others is text"


@pytest.mark.slow
def test_no_byte_from_outside_acts_on_a_terminal(scene: tuple[Path, dict[str, str]]) -> None:
    folder, env = scene
    (folder / "commands.json").write_text(json.dumps(commands()[:34]))
    child, end = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execve(sys.executable, [sys.executable, "-c", RUN_ALL, "commands.json"], env)
    shown = b""
    while True:
        try:
            piece = os.read(end, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
        if shown.rstrip().endswith((b"[y/N]:", b"Key:")):
            os.write(end, b"n\n")
    os.waitpid(child, 0)
    os.close(end)
    assert_inert(shown)
    assert b"\x1b[" in shown, "it was a terminal: our own styles are there"
    assert outside_words(shown.decode()) > 30


def test_json_means_the_same_when_it_is_inert() -> None:
    whole = "".join(map(chr, range(0x3000))) + EVIL
    document = json.dumps({"a": whole}, ensure_ascii=False)
    assert json.loads(inert_json(document)) == {"a": whole}
    assert inert(inert_json(document)) == inert_json(document)
    assert json.loads(inert_json('"\ud800"')) == "\ud800"


def test_signs_stand_one_for_one() -> None:
    assert inert("a\x1b[31mb\x9bc\u202ed\x7f\x00") == "a\u241b[31mb\ufffdc\ufffdd\u2421\u2400"
    assert inert("tab\tline\r\nnext\n") == "tab\tline\nnext\n"
    assert inert("Grüße 世界 👩\u200d💻 עברית") == "Grüße 世界 👩\u200d💻 עברית"
