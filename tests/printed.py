"""Commands within what the program prints, judged by its own parser: is there such a command, and does it
have these options?"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import typer
from typer.main import get_command

from orchestrate.cli import app

_NAMED = re.compile(r"(?<![\w./'-])(?<!from )(?<!import )orchestrate (?=([a-z-][^\n`;<→]*))")
_END = re.compile(r"  | \(|, |: |\)| or | and | then | \.\.\.|\.?$")
"""Where a command ends and the sentence goes on."""


@cache
def _program() -> Any:
    return get_command(app)


@cache
def _loaded(command: Any) -> Any:
    """The command behind one that is imported when it is run."""
    return command.load() if hasattr(command, "load") else command


def parsed(words: Sequence[str]) -> None:
    """As the command line reads it, without doing it. Raises what it would tell."""
    at: Any = _program()
    context: Any = at.make_context("orchestrate", list(words))
    while hasattr(at, "resolve_command"):
        rest = [*getattr(context, "_protected_args", ()), *context.args]
        if not rest:
            return
        name, at, rest = at.resolve_command(context, rest)
        at = _loaded(at)
        if not rest and words[-1] == name:  # a command by its name alone
            return
        context = at.make_context(name, rest, parent=context)


def visible() -> dict[tuple[str, ...], Any]:
    """All commands and groups that `--help` shows, by their words."""
    found: dict[tuple[str, ...], Any] = {}
    waiting: list[tuple[tuple[str, ...], Any]] = [((), _program())]
    while waiting:
        words, command = waiting.pop()
        found[words] = command = _loaded(command)
        waiting += [((*words, n), c) for n, c in getattr(command, "commands", {}).items() if not c.hidden]
    return found


def options() -> set[str]:
    """Those of all commands."""
    shown = [one for command in visible().values() for one in command.params]
    return {name for one in shown for name in (*one.opts, *one.secondary_opts)}


def words_of(line: str) -> list[str]:
    """Up to where a shell takes over."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|>&;")
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    for word in lexer:
        if not word.strip("|>&;"):
            break
        words.append(word)
    return words


def commands(text: str) -> Iterator[str]:
    """Those that are named in a text, without their first word, up to where its sentence goes on."""
    for found in _NAMED.finditer(text):
        yield from (part for part in [_END.split(found[1], maxsplit=1)[0].strip()] if part)


def unknown(command: str) -> str | None:
    """What of a command there is not: its name, or an option. Values are not judged, as `RUN` and `X` stand
    in their places, and neither is a sentence that goes on after its name."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    try:
        parsed(words)
    except typer.Exit:  # as --help and --version do
        return None
    except Exception as error:
        told = str(getattr(error, "message", error))
        return told if told.startswith(("No such command", "No such option")) else None
    return None


def unknown_in(text: str) -> list[str]:
    """Those that are named in a text and do not exist, with what is wrong."""
    return [f"orchestrate {one}: {wrong}" for one in commands(text) if (wrong := unknown(one))]
