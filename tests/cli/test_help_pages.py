"""Every page of help at three widths, its example, and what the shell offers while a command is typed."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from tests.cells import first
from tests.cli.conftest import Cli

from orchestrate import cli as program
from orchestrate.commands import EXAMPLES


def walked(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, command
    for own, inner in getattr(command, "commands", {}).items():
        yield from walked(inner, f"{name} {own}")


def pages() -> dict[str, Any]:
    return dict(
        page
        for panel, name, target, line in program.COMMANDS
        for page in walked(program.LazyCommand(panel=panel, name=name, target=target, help=line).load(), name)
    )


def test_each_command_has_an_example_that_it_takes() -> None:
    ends = {name: command for name, command in pages().items() if not getattr(command, "commands", None)}
    assert EXAMPLES.keys() == ends.keys()
    for name, command in ends.items():
        words = shlex.split(EXAMPLES[name])
        own = name.split()
        assert words[: len(own) + 1] == ["orchestrate", *own], name
        command.make_context(name, words[len(own) + 1 :])  # raises for what it does not take


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        ("watch", "[OPTIONS] [RUN]..."), ("compare", "[OPTIONS] RUN..."), ("eval", "[OPTIONS] [RUN...]"),
        ("export", "[OPTIONS] RUN DIR"), ("quote", "[OPTIONS] [SPEC.yaml]"), ("data check", "[OPTIONS] FILE"),
        ("sandbox run", "[OPTIONS] -- CMD ..."),
    ],
)  # fmt: skip
def test_the_first_line_is_written_as_manuals_write_it(cli: Cli, words: str, usage: str) -> None:
    assert f"orchestrate {words} {usage}\n" in re.sub(r" +\n", "\n", cli(*words.split(), "--help").out)


def test_the_first_page_has_no_words_of_python(cli: Cli) -> None:
    page = cli("--help").out
    assert "--install-completion" in page and not re.search(r"<\w+>", page)


@pytest.mark.parametrize("width", first([80, 100, 140]))
def test_pages_are_whole_at_each_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERMINAL_WIDTH", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    for name, command in pages().items():
        out = io.StringIO()
        with redirect_stdout(out):
            plain = command.get_help(command.context_class(command, info_name=name, terminal_width=width - 2))
        page = out.getvalue() or plain
        assert max(map(len, page.splitlines())) <= width, name
        assert not re.search(r"\w-$", page, re.MULTILINE), f"{name} breaks a hyphenated word"
        assert not re.search(r"<(str|int|float|bool|path|list)|\bNone\b", page), name
        flowing = " ".join(re.sub(r"[│╭╮╰╯─]", " ", page).split())
        for parameter in (p for p in command.params if not getattr(p, "hidden", False)):
            for option in (o for o in parameter.opts if o.startswith("--")):
                assert option in flowing, f"{name} {option} is cut at {width} columns"
        if name in EXAMPLES:
            assert " ".join(EXAMPLES[name].split()) in flowing, name


@pytest.mark.parametrize("width", [80, 140])
def test_a_group_by_itself_shows_its_page(cli: Cli, width: int) -> None:
    groups = {name for name, page in pages().items() if getattr(page, "commands", None)}
    for name in groups & {"data", "local", "ab", "gateway keys"}:  # the others list, or serve
        done = cli(*name.split(), COLUMNS=str(width), TERMINAL_WIDTH=str(width))
        assert done.code == 2 and f"orchestrate {name} [OPTIONS] COMMAND" in done.out, (name, done)


@pytest.mark.slow
def test_what_the_shell_offers(cli: Cli, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(12)))

    def offered(line: str) -> list[str]:
        words = line.split(" ")
        shell = {
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
            "_ORCHESTRATE_COMPLETE": "complete_bash",
        }
        done = cli(**shell)
        assert done.code == 0, done.err
        return done.out.split()

    assert offered("orchestrate show l") == ["last"]
    assert not (tmp_path / "home").exists(), "a key that is pressed makes nothing"
    made = cli("submit", "-p", "local", "--model", "tiny-chat", "--train", "train.jsonl", "--yes")
    run = made.out.strip()
    assert cli("cancel", run).code == 0
    assert offered("orchestrate show run-") == offered("orchestrate compare run-") == [run]
    assert offered("orchestrate submit --provider to") == ["together"]
    assert offered("orchestrate quote --provider together,fire") == ["together,fireworks"]
    assert "openai=gpt-4.1-mini" in offered("orchestrate submit --model openai=gpt-4.1")
    assert offered("orchestrate data convert train.jsonl --to share") == ["sharegpt"]
    assert offered("orchestrate data sp") == ["split"]
    assert offered("orchestrate runs --status fa") == ["failed"]
    assert offered("orchestrate export last DIR --to gg") == ["gguf", "gguf-lora"]
    assert offered("orchestrate quote --set method=") == ["method=dpo", "method=rft", "method=sft"]
    assert offered("orchestrate rerun last --set ep") == ["epochs="]


def test_a_backend_that_is_misspelt_is_guessed(cli: Cli) -> None:
    done = cli("models", "list", "--provider", "togehter")
    other = cli("quote", "--provider", "togehter", "--model", "qwen3-8b", "--train", "nosuch.jsonl")
    assert other.code == 2 and "did you mean together?" in other.err
    assert done.code == 2
