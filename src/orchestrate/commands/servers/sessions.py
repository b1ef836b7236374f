"""sessions: your own training loop, with Tinker's client, on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, TypedDict

import typer

from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import ended_by_signal, note, orchestrator, print_text
from orchestrate.commands.terminal.options import Group
from orchestrate.errors import UsageError

app = typer.Typer(
    cls=Group,
    add_completion=False,
    no_args_is_help=True,
    help="Train step by step from your own loop, through Tinker's client.",
)


class SessionsServed(TypedDict):
    url: str
    """What callers set as TINKER_BASE_URL."""
    models: list[str]
    """Names under which they ask for the base."""


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where it answers, and to whom."""

    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8100
    host: Annotated[str, typer.Option(help="An address of this machine; others than loopback need keys.")] = (
        "127.0.0.1"
    )
    names: Annotated[
        list[str] | None, typer.Option("--name", help="A further host name by which it may be asked.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class How:
    """What trains and answers."""

    called: Annotated[
        list[str] | None,
        typer.Option(
            "--as", metavar="NAME", help="A further name for MODEL, such as Qwen/Qwen3-8B. Repeatable."
        ),
    ] = None
    most_at_once: Annotated[int, typer.Option("--concurrency", min=1, help="Answers drawn at once.")] = 32
    threads: Annotated[int | None, typer.Option(min=1, help="Of the processor.")] = None
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: a GPU where there is one.")] = None
    four_bit: Annotated[
        bool | None, typer.Option("--four-bit/--no-four-bit", help="Of the base. Default: by its size.")
    ] = None
    precision: Annotated[
        Literal["bf16", "fp16", "fp32"] | None,
        typer.Option(help="Of products and frozen weights. Default: what suits the device."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class KeysInstead:
    """What is done instead of serving."""

    new_key: Annotated[
        str | None,
        typer.Option("--new-key", metavar="NAME", help="Make a caller's key, print it once, and leave."),
    ] = None
    revoke_key: Annotated[
        str | None, typer.Option("--revoke-key", metavar="NAME", help="Take no key of this name any more.")
    ] = None


@app.command("serve")
@command
def serve(
    context: typer.Context,
    *,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Folder or name of the base.")
    ] = None,
    where: Where,
    how: How,
    instead: KeysInstead,
) -> Iterator[Output[SessionsServed]]:
    """Serve training sessions over one base model until interrupted. Tinker's client trains against it."""
    from orchestrate import sessions

    with orchestrator(context) as ft:
        if instead.revoke_key is not None:
            sessions.revoke_key(ft, instead.revoke_key)
            note(f"Servers refuse the key {instead.revoke_key} from now on, those that run within a second.")
        if instead.new_key is not None:
            print_text(sessions.new_key(ft, instead.new_key))
            note("The key is stored as a hash and cannot be shown again. All such servers now ask for one.")
        if instead.new_key is not None or instead.revoke_key is not None:
            return
        if model is None:
            raise UsageError("name the base model", fix="orchestrate sessions serve MODEL")
        terms = sessions.SessionTerms(
            host=where.host,
            port=where.port,
            names=tuple(where.names or ()),
            called=tuple(how.called or ()),
            most_at_once=how.most_at_once,
            threads=how.threads,
            device=how.device,
            four_bit=how.four_bit,
            precision=how.precision,
        )
        with ended_by_signal() as ended, sessions.serve(ft, model, terms) as up:
            shown = SessionsServed(url=up.url, models=list(up.names))
            yield Output(shown, lambda shown: print_text("\n  ".join([shown["url"], *shown["models"]])))
            note(f"export TINKER_BASE_URL={up.url} TINKER_API_KEY=tml-local; Ctrl-C ends it")
            ended.wait()
