"""Notification options from flags and the environment, shared by `watch`, `worker` and the background
watcher."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import replace

from orchestrate.commands.terminal.console import warn
from orchestrate.runs import watch as watching
from orchestrate.settings.config import Notify, Secret, Settings

if TYPE_CHECKING:
    from orchestrate.api.orchestrator import Orchestrator


@dataclass(frozen=True, kw_only=True)
class NotifyOptions:
    """Options for notification channels, which override the environment."""

    notify_command: Annotated[
        str | None,
        typer.Option(
            help="Command to run when a run ends, with JSON on stdin. It is retried if it fails, but "
            "not if it runs longer than 30 s. Or set ORCHESTRATE_NOTIFY_COMMAND.",
        ),
    ] = None
    notify_url: Annotated[
        str | None,
        typer.Option(
            help="POST a signed webhook to this URL when a run ends. It may be delivered more than once, "
            "with the same webhook-id. Or set ORCHESTRATE_NOTIFY_URL.",
        ),
    ] = None
    notify_desktop: Annotated[
        bool,
        typer.Option(
            "--notify-desktop",
            help="Show a desktop notification when a run ends. Or set ORCHESTRATE_NOTIFY_DESKTOP=1.",
        ),
    ] = False

    def over(self, settings: Settings) -> Settings:
        """Return a copy of the settings in which the flags override the notification channels. Raises
        `UsageError` for an invalid URL, and `ConfigError` for an invalid secret."""
        given = settings.notify
        found = Notify(
            command=self.notify_command or given.command,
            url=Secret(self.notify_url) if self.notify_url else given.url,
            desktop=self.notify_desktop or given.desktop,
        )
        changed = replace(settings, notify=found)
        watching.channels_of(changed)
        return changed


@contextmanager
def notifying(ft: Orchestrator) -> Generator[None]:
    """Send notifications about runs that end during the `with` block. Afterwards, warn about each
    notification that failed."""
    with watching.notifying(ft) as problems:
        yield
    for problem in problems:
        warn(f"notification failed: {problem}")
