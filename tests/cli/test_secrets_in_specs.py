"""Secrets that people put into a spec: an address with a token, a key among a backend's options."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.conftest import Cli, Result
from tests.http_server import Handler, serving

from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations

TOKEN = "tok-en0123456789abcdef"
ROWS = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(12)]


@pytest.fixture(scope="module")
def host() -> Iterator[dict[str, str]]:
    with running(train=False, speed=1000, waits=Durations(file=0.0)) as sandbox:
        yield dict(sandbox.env)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of rows that are given only to who brings the token."""

    class Guarded(Handler):
        def do_GET(self) -> None:
            known = f"token={TOKEN}" in self.path
            body = "".join(json.dumps({"messages": row}) + "\n" for row in ROWS).encode() if known else b""
            self.answer(200 if known else 403, body)

        do_HEAD = do_GET

    with serving(Guarded) as url:
        yield f"{url}/t.jsonl?token={TOKEN}"


def nothing_tells(folder: Path, *shown: Result) -> None:
    for result in shown:
        assert TOKEN not in result.out and TOKEN not in result.err
    for file in folder.rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), file


@pytest.mark.slow
def test_the_token_of_an_address_fetches_the_data_and_is_neither_kept_nor_told(
    cli: Cli, tmp_path: Path, host: dict[str, str], address: str
) -> None:
    asked = ("--model", "gpt-4.1-mini", "--train", address)
    made = cli("submit", "-p", "openai", *asked, "--yes", "--watch", "--json", **host)
    assert made.code == 0, made.err
    assert made.json[0]["spec"]["train"].endswith("/t.jsonl?token=[removed]")
    shown = [cli(*c, **host) for c in (("show", "last"), ("show", "last", "--json"), ("compare", "last"))]
    offline = [
        cli(c, "-p", "openai", *asked, *j) for c in ("plan", "check", "quote") for j in ((), ("--json",))
    ]
    looked = [cli("data", c, address, *j) for c in ("inspect", "check") for j in ((), ("--json",))]
    assert all(result.code == 0 for result in (*shown, *offline, *looked))
    refused = cli("check", "-p", "openai", *asked[:3], address.replace("t.jsonl", "t.jsonl?x=1&y=") + "zz")
    nothing_tells(tmp_path / "home", made, refused, *shown, *offline, *looked)


@pytest.mark.slow
def test_a_run_that_was_interrupted_before_its_send_says_what_is_missing(
    cli: Cli, cli_env: dict[str, str], tmp_path: Path, host: dict[str, str], address: str
) -> None:
    (tmp_path / "die.py").write_text(
        "import os, sys\n"
        "from orchestrate import JobSpec, Orchestrator\n"
        "from orchestrate.runs.submitting.submit import Submitter\n"
        "from orchestrate.store.store import Timing\n"
        "from orchestrate.runs.submitting.repeats import Submission\n"
        "with Orchestrator() as ft:\n"
        "    spec, host = JobSpec(model='gpt-4.1-mini', train=sys.argv[1]), ft.provider('openai')\n"
        "    die = lambda point: os.kill(os.getpid(), 9) if point == 'after-uploaded' else None\n"
        "    asked = Submission(spec=spec, translation=host.translate(spec), data=ft.data(spec))\n"
        "    Submitter(ft.store, host, Timing(lease_s=1.0), die).submit(asked)\n"
    )
    died = subprocess.run([sys.executable, "die.py", address], cwd=tmp_path, env=cli_env | host, check=False)
    assert died.returncode == -signal.SIGKILL
    time.sleep(1.2)  # the lease of the dead
    refused = cli("resume", "last", **host)
    assert refused.code == 2 and "the secrets in train" in refused.err and "orchestrate cancel" in refused.err
    assert cli("cancel", "last", **host).code == 0
    nothing_tells(tmp_path / "home", refused)


@pytest.mark.parametrize("backend", ["together", "openai", "local"])
def test_a_key_among_the_options_is_not_told(cli: Cli, tmp_path: Path, backend: str) -> None:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in ROWS))
    model = {"together": "qwen3.5-9b", "openai": "gpt-4.1-mini", "local": "tiny-chat"}[backend]
    option = f"provider_options.{backend}.wandb_api_key={TOKEN}"
    asked = ("-p", backend, "--model", model, "--train", "t.jsonl", "--set", option)
    shown = [cli(command, *asked, *j) for command in ("check", "plan") for j in ((), ("--json",))]
    if backend != "openai":  # which takes whatever is written there
        shown.append(refused := cli("submit", *asked, "--yes", TOGETHER_API_KEY="none-such"))
        assert refused.code == 2 and "[removed]" in refused.err
    nothing_tells(tmp_path / "home", *shown)
