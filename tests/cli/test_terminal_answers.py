"""Questions on a real terminal: what is asked and what each answer leads to; before a yes nothing is sent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.terminals import Terminal

from orchestrate.sandbox import running

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with running(home=tmp_path_factory.mktemp("sandbox"), train=False, speed=20) as hosts:
        yield hosts


@pytest.fixture
def env(cli_env: dict[str, str], sandbox: Any, tmp_path: Path) -> dict[str, str]:
    rows = [
        [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(12)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    (tmp_path / "finetune.yaml").write_text("model: gpt-4.1-mini\ntrain: train.jsonl\n")
    return cli_env | dict(sandbox.env) | {"TERM": "xterm", "COLUMNS": "200"}


def answered(
    env: dict[str, str], folder: Path, words: list[str], *answers: tuple[str, str]
) -> tuple[int, str]:
    """The exit code and all that was shown, after each question got its answer."""
    terminal = Terminal(env, folder, *words)
    for question, answer in answers:
        terminal.until(question.encode())
        terminal.shown = terminal.shown.replace(question.encode(), b"(asked)", 1)
        terminal.type(answer + "\r")
    code = terminal.finish()
    return code, terminal.shown.decode()


def creates(sandbox: Any) -> int:
    sent = sandbox.requests("openai", method="POST")
    return sum(entry["path"].endswith("fine_tuning/jobs") for entry in sent)


def test_a_no_sends_nothing_and_a_second_run_is_asked_for_twice(
    env: dict[str, str], sandbox: Any, tmp_path: Path
) -> None:
    submit, before = ["submit", "-p", "openai"], creates(sandbox)
    for no in ("n", ""):
        code, shown = answered(env, tmp_path, submit, ("Submit? [y/N]", no))
        assert code == 2 and "the price was not confirmed" in shown and "expected" in shown
    assert creates(sandbox) == before
    code, shown = answered(env, tmp_path, submit, ("Submit? [y/N]", "y"))
    assert code == 0 and "run-" in shown and creates(sandbox) == before + 1
    code, shown = answered(env, tmp_path, submit, ("Submit a second one? [y/N]", "n"))
    assert code == 2 and creates(sandbox) == before + 1
    code, _ = answered(env, tmp_path, [*submit, "--yes"], ("Submit a second one? [y/N]", "y"))
    assert code == 0 and creates(sandbox) == before + 2


def test_ctrl_c_at_a_question_interrupts_and_ctrl_d_is_no_answer(env: dict[str, str], tmp_path: Path) -> None:
    submit = ["submit", "-p", "local", "--model", "tiny-chat", "--set", "max_cost_usd=1"]
    set_key = ["keys", "set", "openai"]
    for words, question in ((submit, "Submit? [y/N]"), (set_key, "Key:")):
        for key, code in (("\x03", 130), ("\x04", 2)):
            terminal = Terminal(env, tmp_path, *words, *(["--json"] if words is submit else []))
            terminal.until(question.encode())
            terminal.type(key)
            assert terminal.finish() == code, (words, key, terminal.shown)
            assert (b'"exit_code":2' in terminal.shown) is (words is submit and code == 2), terminal.shown


def test_a_run_is_ended_on_a_terminal_by_a_yes(env: dict[str, str], tmp_path: Path) -> None:
    here = ["submit", "-p", "local", "--model", "tiny-chat", "--set", "epochs=100", "--yes"]
    code, shown = answered(env, tmp_path, here)
    assert "run-" in shown, shown
    run = re.findall(r"run-[0-9a-z]{12}", shown)[0]
    code, shown = answered(env, tmp_path, ["cancel", run], ("[y/N]", "n"))
    assert code == 2 and "tiny-chat on local" in shown and "nothing was done" in shown
    code, shown = answered(env, tmp_path, ["cancel", run, "--yes"])
    assert code == 0 and "cancel" in shown and "[y/N]" not in shown


def test_a_watched_run_is_drawn_in_place(env: dict[str, str], tmp_path: Path) -> None:
    submit = ["submit", "-p", "openai", "--yes", "--again", "--watch"]
    code, shown = answered(env, tmp_path, submit)
    assert code == 0 and "[succeeded]" in re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "\x1b[2K" in shown, "lines of the old picture are wiped"
    assert "\u241b" not in shown and "\u240d" not in shown, "the cursor's movements are not shown as signs"


def test_recover_lists_what_it_found_and_takes_it_on_a_yes(
    env: dict[str, str], sandbox: Any, tmp_path: Path
) -> None:
    submit = ["submit", "-p", "openai", "--yes", "--again"]
    code, shown = answered(env, tmp_path, submit)
    assert code == 0
    assert "run-" in shown, shown
    run = re.findall(r"run-[0-9a-z]{12}", shown)[0]
    for file in (tmp_path / "home").glob("runs.sqlite3*"):
        file.unlink()
    recover, question = ["recover", "-p", "openai"], "Some may belong to colleagues [y/N]"
    code, shown = answered(env, tmp_path, [*recover, "run-0123456789ab"])
    assert code == 1 and "no job of run-0123456789ab was found" in shown
    code, shown = answered(env, tmp_path, recover, (question, "n"))
    assert code == 1 and run in shown and "orchestrate recover -p openai --all" in shown
    code, shown = answered(env, tmp_path, ["runs"])
    assert run not in shown
    code, shown = answered(env, tmp_path, recover, (question, "y"))
    assert code == 0 and f"recovered {run}" in shown
    code, shown = answered(env, tmp_path, ["runs"])
    assert run in shown
