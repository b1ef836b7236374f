"""The `sessions` commands: train from your own loop with the Tinker client."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, TypedDict

import typer

from orchestrate.commands.servers.serve import (
    CpuThreadsOpt,
    DeviceOpt,
    HostOpt,
    KeyOptions,
    NamesOpt,
    PortOpt,
    PrecisionOpt,
)
from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import ended_by_signal, note, orchestrator, print_text
from orchestrate.commands.terminal.options import AliasGroup
from orchestrate.errors import UsageError

app = typer.Typer(
    cls=AliasGroup,
    add_completion=False,
    no_args_is_help=True,
    help="Train from your own loop with the Tinker client.",
)


class SessionsServed(TypedDict):
    url: str
    """Value of TINKER_BASE_URL for clients."""
    models: list[str]
    """Names that clients can use for the base model."""


@dataclass(frozen=True, kw_only=True)
class SessionsAddress:
    """Options for the server's address and its allowed clients."""

    port: PortOpt = 8100
    host: HostOpt = "127.0.0.1"
    names: NamesOpt = None


@dataclass(frozen=True, kw_only=True)
class SessionEngineOptions:
    """Options for training and sampling."""

    called: Annotated[
        list[str] | None,
        typer.Option(
            "--as",
            metavar="NAME",
            help="Additional name that clients can use for MODEL, such as Qwen/Qwen3-8B; repeatable.",
        ),
    ] = None
    most_at_once: Annotated[
        int, typer.Option("--concurrency", min=1, help="Concurrent sampling requests.")
    ] = 32
    threads: CpuThreadsOpt = None
    device: DeviceOpt = None
    four_bit: Annotated[
        bool | None,
        typer.Option(
            "--four-bit/--no-four-bit", help="Load the base in 4-bit. Default: depends on the model's size."
        ),
    ] = None
    precision: PrecisionOpt = None


@app.command("serve")
@command
def serve(
    context: typer.Context,
    *,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Folder or name of the base model.")
    ] = None,
    where: SessionsAddress,
    how: SessionEngineOptions,
    keys: KeyOptions,
) -> Iterator[Output[SessionsServed]]:
    """Serve training sessions for one base model until interrupted. Connect with Tinker's client."""
    from orchestrate import sessions

    with orchestrator(context) as ft:
        if keys.change(ft, sessions):
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
            note(f"export TINKER_BASE_URL={up.url} TINKER_API_KEY={'KEY' if up.keyed else 'tml-local'}")
            if up.keyed:
                note("KEY is a key that --new-key printed")
            ended.wait()
