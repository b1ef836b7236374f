"""The command `mcp`."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrate.commands.terminal.console import orchestrator, print_text
from orchestrate.core.amounts import amount
from orchestrate.errors import MissingExtra


def mcp(
    context: typer.Context,
    max_cost: Annotated[
        str | None, typer.Option(metavar="USD", help="Cost limit for all spending through this server.")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Offer only read-only tools.")] = False,
    skill: Annotated[bool, typer.Option("--skill", help="Print a skill file for agents and exit.")] = False,
) -> None:
    """Serve tools for agents over the Model Context Protocol on stdin and stdout. An MCP client starts this
    command.

    Read-only tools need no approval. Tools that spend money, end a run or take down a deployment show the
    cost to the client's user and ask for approval. Clients that can't ask their user can't use these tools.

    Example, in a client's settings:

    {"command": "orchestrate", "args": ["mcp", "--max-cost", "20"]}"""
    try:
        from orchestrate.mcp import server
    except ImportError as error:
        raise MissingExtra("mcp", "the MCP server", "mcp") from error
    if skill:
        print_text(server.skill())
        return
    limit_usd = amount(max_cost, "--max-cost")
    with orchestrator(context) as ft:
        server.server(ft, max_cost_usd=limit_usd, read_only=read_only).run("stdio")
