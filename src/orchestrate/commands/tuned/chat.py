"""chat, download: the tuned model of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from orchestrate.commands.terminal.console import (
    Json,
    RunArg,
    err,
    note,
    orchestrator,
    out,
    print_json,
    print_text,
    warn,
)
from orchestrate.commands.terminal.options import grouped
from orchestrate.errors import UsageError
from orchestrate.text import count
from orchestrate.types import Message, Reply


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How the model is asked."""

    system: Annotated[str | None, typer.Option(help="System message.")] = None
    base: Annotated[bool, typer.Option(help="Ask the model it was tuned from instead.")] = False
    max_tokens: Annotated[int, typer.Option(min=1)] = 512
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.0
    tools: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON list of tools that it may call, as in a row of the data."),
    ] = None
    at: Annotated[
        str | None, typer.Option("--at", metavar="HOST", help="Another host that it was deployed to.")
    ] = None


@grouped
def chat(
    context: typer.Context,
    run: RunArg,
    message: Annotated[
        list[str] | None, typer.Argument(help="Ask this and leave; or type at the prompt.")
    ] = None,
    *,
    asked: Asked,
    json: Json = False,
) -> None:
    """Talk to a tuned model. Each message is asked in turn; without any, standard input is read line by
    line. After an answer that calls tools, the next message is what the first of them gave, and so on."""
    if message and not all(text.strip() for text in message):
        raise UsageError("the message is empty; nothing was asked")
    conversation = [Message(role="system", content=asked.system)] if asked.system else []
    options: dict[str, Any] = {"tools": _tools(asked.tools)} if asked.tools else {}
    options |= {"base": asked.base, "max_tokens": asked.max_tokens, "temperature": asked.temperature}
    options |= {"at": asked.at} if asked.at is not None else {}
    with orchestrator(context) as ft:
        handle = ft.run(run)
        handle.check()
        replies: list[Reply] = []
        called: list[dict[str, Any]] = []
        for text in message or _typed():
            if called:
                call = called.pop(0)
                name = call["function"]["name"]
                conversation.append(Message(role="tool", content=text, tool_call_id=call["id"], name=name))
                if called:
                    continue
            else:
                conversation.append(Message(role="user", content=text))
            reply = handle.chat(conversation, **options)
            said = Message(role="assistant", content=reply.content, tool_calls=reply.tool_calls)
            conversation.append(said)
            called = list(reply.tool_calls)
            replies.append(reply)
            if not json:
                _show(reply, asked.max_tokens)
    if called and conversation[-1].role == "tool":
        wanted = count(len(called), "further result")
        warn(f"the model was not asked again: of the tools that it called it waits for {wanted}")
    if json:
        print_json(replies)


def _tools(file: Path) -> list[dict[str, Any]]:
    """Of a file that holds them in a list."""
    fix = '[{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]'
    try:
        given = file.read_bytes()
    except OSError as error:
        raise UsageError(f"--tools: {file} cannot be read: {error.strerror}") from error
    with suppress(msgspec.MsgspecError):
        if msgspec.json.decode(given, type=list[_Tool]):
            return msgspec.json.decode(given, type=list[dict[str, Any]])
    raise UsageError(f"--tools: {file} holds no list of tools, each with the name of a function", fix=fix)


class _Function(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(min_length=1)]


class _Tool(msgspec.Struct):
    function: _Function


def _show(reply: Reply, max_tokens: int) -> None:
    """The answer, and the calls of tools as JSON; the thinking before it is no part of either."""
    if reply.reasoning:
        note(f"thinking: {reply.reasoning}")
    if reply.content or not reply.tool_calls:
        out.print(reply.content, soft_wrap=True)
    for call in reply.tool_calls:
        print_text(dumps(call, ensure_ascii=False))
    for told in reply.notes:
        warn(told)
    if reply.finish_reason == "length":
        warn(f"the answer was cut at {reply.completion_tokens or max_tokens} tokens  (--max-tokens)")


def _typed() -> Iterator[str]:
    """Lines of standard input, with a prompt on a terminal, until it ends."""
    terminal = sys.stdin.isatty()
    while True:
        if terminal:
            err.print("you ", style="bold", end="")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def download(
    context: typer.Context,
    run: RunArg,
    to: Annotated[Path | None, typer.Option("--to", help="Folder; default: models/RUN in the home.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="A checkpoint instead of the final model.")] = None,
    json: Json = False,
) -> None:
    """Fetch a tuned model's files: hashed, safely unpacked, safetensors only. Can be repeated to go on."""
    with orchestrator(context) as ft:
        artifact = ft.run(run).download(to, checkpoint=checkpoint)
    if json:
        print_json(artifact)
        return
    for file in artifact.files:
        note(f"{file.bytes:>12,}  {file.sha256[:16]}  {file.path}")
    print_text(str(artifact.folder))
