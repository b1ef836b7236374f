"""The command `ui`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, TypedDict

import typer

from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import ended_by_signal, note, orchestrator, print_text


class UiShown(TypedDict):
    url: str
    read_only: bool


@command
def ui(
    context: typer.Context,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port. Default: any free one.")] = 0,
    read_only: Annotated[
        bool,
        typer.Option(
            "--read-only", help="Serve read-only pages, for example for a dashboard or a colleague."
        ),
    ] = False,
    open: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    host: Annotated[
        str, typer.Option(help="Address to serve on. Addresses other than loopback need --read-only.")
    ] = "127.0.0.1",
    name: Annotated[
        list[str] | None, typer.Option("--name", help="Also accept requests for this host name; repeatable.")
    ] = None,
) -> Iterator[Output[UiShown]]:
    """Show runs, spending, quotes and data in your browser, and submit runs there. Press Ctrl-C to stop.

    Anyone with the link can see your runs and, without --read-only, spend your money. The server polls the
    hosts for updates. With --read-only it does not, so also run `orchestrate worker`."""
    from orchestrate.runs import watch as watching
    from orchestrate.ui.server import serving

    with orchestrator(context) as ft, ended_by_signal() as ended:
        watcher = None if read_only else watching.watcher(ft)
        with serving(ft, watcher, host=host, port=port, names=name or (), read_only=read_only) as url:
            yield Output(UiShown(url=url, read_only=read_only), lambda shown: print_text(shown["url"]))
            note("anyone with the link can use these pages. Ctrl-C stops the server. Runs continue")
            if open:
                import webbrowser

                webbrowser.open(url)
            ended.wait()
