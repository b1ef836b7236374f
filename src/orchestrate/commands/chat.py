"""The commands `chat` and `download`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from importlib import import_module
from json import dumps
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from orchestrate.commands.terminal.command import HostOutput, command, for_people, shown_already
from orchestrate.commands.terminal.console import (
    RunArg,
    mark_sandbox,
    note,
    orchestrator,
    out,
    print_text,
    resumable,
    warn,
)
from orchestrate.commands.terminal.options import MaxTokensOpt, TemperatureOpt
from orchestrate.core.underway import work
from orchestrate.errors import UsageError
from orchestrate.text import count, inert
from orchestrate.types import Artifact, Message, Reply, decoding

if TYPE_CHECKING:
    from orchestrate import RunHandle


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """Options for querying the model."""

    system: Annotated[
        str | None, typer.Option(help='System message. Default: the one in the training data; "" for none.')
    ] = None
    base: Annotated[bool, typer.Option(help="Chat with the base model instead.")] = False
    max_tokens: MaxTokensOpt = 512
    temperature: TemperatureOpt = 0.0
    tools: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="JSON file with the tools that the model may call, as in a training row."
        ),
    ] = None
    at: Annotated[
        str | None, typer.Option("--at", metavar="HOST", help="Use the deployment on this host.")
    ] = None
    on: Annotated[
        str, typer.Option(help="Where to run the model: host (its endpoint), here (its adapter), or auto.")
    ] = "auto"


@command
def chat(
    context: typer.Context,
    run: RunArg,
    message: Annotated[
        list[str] | None,
        typer.Argument(help="Send these messages in turn and exit. Default: start an interactive chat."),
    ] = None,
    *,
    asked: ChatSettings,
) -> HostOutput[list[Reply]]:
    """Chat with a tuned model. Sends each message in turn. Without a message, starts an interactive chat, in
    which /new starts over and /exit quits. After a tool call, type the tool's result (one message per
    call)."""
    from orchestrate.runs.chat import Talk

    if message and not all(text.strip() for text in message):
        raise UsageError("the message is empty. Nothing was sent")
    options: dict[str, Any] = {"tools": _tools(asked.tools)} if asked.tools else {}
    options |= {"base": asked.base, "max_tokens": asked.max_tokens, "temperature": asked.temperature}
    with orchestrator(context) as ft, closing(Talk(handle := ft.run(run), asked.on, asked.at)) as talk:
        mark_sandbox(handle.record.sandbox)
        opening = _opening(handle, asked)
        conversation = list(opening)
        replies: list[Reply] = []
        called: list[dict[str, Any]] = []
        for text in message or _typed():
            if text == _NEW and not message:
                conversation, called = list(opening), []
                note("a new conversation")
                continue
            if called:
                call = called.pop(0)
                name = call["function"]["name"]
                conversation.append(Message(role="tool", content=text, tool_call_id=call["id"], name=name))
                if called:
                    continue
            else:
                conversation.append(Message(role="user", content=text))
            with ExitStack() as waiting:
                waiting.enter_context(work("waiting for the answer"))
                pieces = for_people(_AnswerWriter(waiting))
                reply = talk.ask(conversation, pieces, **options)
            said = Message(role="assistant", content=reply.content, tool_calls=reply.tool_calls)
            conversation.append(said)
            called = list(reply.tool_calls)
            replies.append(reply)
            if pieces is not None:
                _show(reply, asked.max_tokens, written=pieces.end())
    if called and conversation[-1].role == "tool":
        wanted = count(len(called), "more tool result")
        warn(f"the model was not queried, because it is still waiting for {wanted}")
    return HostOutput(replies, shown_already, sandbox=handle.record.sandbox)


def _tools(file: Path) -> list[dict[str, Any]]:
    """Read the list of tools from a JSON file."""
    fix = '[{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]'
    try:
        given = file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read --tools {file}: {error.strerror}") from error
    with suppress(msgspec.MsgspecError):
        if decoding.decode(given, type=list[_Tool]):
            return msgspec.json.decode(given, type=list[dict[str, Any]])
    raise UsageError(f"--tools {file} must contain a list of tools with function names", fix=fix)


class _Function(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(min_length=1)]


class _Tool(msgspec.Struct):
    function: _Function


def _opening(handle: RunHandle, asked: ChatSettings) -> list[Message]:
    """Return the given system message, or print and return the one that the model was trained with."""
    from orchestrate.runs.chat import system_message

    text = asked.system if asked.system is not None else system_message(handle)
    if text and asked.system is None:
        note(
            f"using the system message from the training data: {shorten(inert(text), 120, placeholder=' …')}"
        )
    return [Message(role="system", content=text)] if text else []


class _AnswerWriter:
    """Writes an answer as it arrives, in one color."""

    def __init__(self, waiting: ExitStack) -> None:
        """Close `waiting` when the first piece arrives."""
        self._any = False
        self._waiting = waiting

    def __call__(self, piece: str) -> None:
        self._any = True
        self._waiting.close()
        sys.stdout.write(inert(piece))
        sys.stdout.flush()

    def end(self) -> bool:
        """End the line of a streamed answer. Returns true if any of the answer was printed."""
        if self._any:
            sys.stdout.write("\n")
        return self._any


def _show(reply: Reply, max_tokens: int, *, written: bool) -> None:
    """Show the answer unless it was already `written`, and tool calls as JSON. Thinking goes to stderr."""
    if reply.reasoning:
        note(f"thinking: {reply.reasoning}")
    if not written and (reply.content or not reply.tool_calls):
        out.print(reply.content, soft_wrap=True)
    for call in reply.tool_calls:
        print_text(dumps(call, ensure_ascii=False))
    if not reply.content and not reply.tool_calls:
        warn("the answer is empty")
    for remark in reply.notes:
        warn(remark)
    if reply.finish_reason == "length":
        warn(f"the answer was cut off at {reply.completion_tokens or max_tokens} tokens (--max-tokens)")


_NEW = "/new"
_EXITS = ("/exit", "/quit")


def _typed() -> Iterator[str]:
    """Yield lines of standard input until it ends or the user quits. On a terminal, shows a prompt and
    supports history with the arrow keys."""
    terminal = sys.stdin.isatty()
    if terminal:
        with suppress(ImportError):  # not available on Windows
            import_module("readline")
    while True:
        try:
            line = input("you ") if terminal else sys.stdin.readline()
        except EOFError:
            return
        if (not line and not terminal) or line.strip() in _EXITS:
            return
        if line.strip():
            yield line.strip()


@command
def download(
    context: typer.Context,
    run: RunArg,
    to: Annotated[
        Path | None, typer.Option("--to", help="Output folder. Default: models/RUN in the home folder.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Download this checkpoint instead of the final model.")
    ] = None,
) -> HostOutput[Artifact]:
    """Download a tuned model's files and verify their hashes (safetensors only). If interrupted, repeat the
    command to resume."""
    with orchestrator(context) as ft:
        handle = ft.run(run)
        with resumable("the files so far are saved. To resume, run the same command again"):
            artifact = handle.download(to, checkpoint=checkpoint)
    return HostOutput(artifact, _show_files, sandbox=handle.record.sandbox)


def _show_files(artifact: Artifact) -> None:
    for file in artifact.files:
        note(f"{file.bytes:>12,}  {file.sha256[:16]}  {file.path}")
    print_text(str(artifact.folder))
