"""Where ends are told, from flags and the environment: what `watch`, `worker` and the background watcher
share."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrate import config
from orchestrate.commands.console import warn
from orchestrate.config import Notify, Secret

if TYPE_CHECKING:
    from orchestrate.config import Settings
    from orchestrate.service import Orchestrator
    from orchestrate.tracking.channels import Channel

CommandOpt = Annotated[
    str | None,
    typer.Option(
        "--notify-command",
        help="Run this when a run ends; it reads JSON from its stdin, and is run again when it ends with an "
        "error, not when it is not done after 30 s. Also ORCHESTRATE_NOTIFY_COMMAND.",
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
    channels_of(replace(settings, notify=found))
    return found


def channels_of(settings: Settings) -> list[Channel]:
    if settings.notify == Notify():
        return []
    from orchestrate.tracking.channels import channels

    signs = settings.notify.url is not None
    secret = config.secret("notify-webhook", "ORCHESTRATE_NOTIFY_SECRET") if signs else None
    return channels(settings.notify, secret)


@contextmanager
def telling(ft: Orchestrator) -> Generator[None]:
    """Tells about the runs that were found ended in the block, when nobody else has."""
    found = channels_of(ft.settings)
    for channel in found:
        ft.store.notifications.since(channel.name)
    yield
    if found:
        from orchestrate.tracking.channels import tell

        for problem in tell(ft.store, found):
            warn(f"not told: {problem}")
