"""Where ends are told, from flags and the environment: what `watch`, `worker` and the background watcher
share."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrate import watching
from orchestrate.commands.terminal.console import warn
from orchestrate.settings.config import Notify, Secret

if TYPE_CHECKING:
    from orchestrate.service import Orchestrator
    from orchestrate.settings.config import Settings

CommandOpt = Annotated[
    str | None,
    typer.Option(
        "--notify-command",
        help="Run this when a run ends; it reads JSON from its stdin, and is run again if it "
        "fails, but not if it takes longer than 30 s. Also ORCHESTRATE_NOTIFY_COMMAND.",
    ),
]
UrlOpt = Annotated[
    str | None,
    typer.Option(
        "--notify-url",
        help="POST a signed webhook to this address when a run ends, at least once; a repeat has the same "
        "webhook-id. Also ORCHESTRATE_NOTIFY_URL.",
    ),
]
DesktopOpt = Annotated[
    bool,
    typer.Option(
        "--notify-desktop",
        help="Show a message on this desktop when a run ends. Also ORCHESTRATE_NOTIFY_DESKTOP=1.",
    ),
]


def notify_of(settings: Settings, command: str | None, url: str | None, desktop: bool) -> Notify:
    """The flags over the environment. Raises `UsageError` for an address that is not taken, `ConfigError` for
    a secret that cannot sign."""
    given = settings.notify
    found = Notify(
        command=command or given.command,
        url=Secret(url) if url else given.url,
        desktop=desktop or given.desktop,
    )
    watching.channels_of(replace(settings, notify=found))
    return found


@contextmanager
def telling(ft: Orchestrator) -> Generator[None]:
    """As `watching.telling`, with a warning for each channel that could not be told."""
    with watching.telling(ft) as problems:
        yield
    for problem in problems:
        warn(f"notification failed: {problem}")
