"""Watch runs until they end. Connects the store, the backends and the notification channels. Run as a module,
this is the background watcher's process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from orchestrate.errors import MissingKey, OrchestrateError
from orchestrate.settings import config
from orchestrate.store.transitions import left as left

if TYPE_CHECKING:
    from orchestrate.runs.syncing.recovery import Choose, Recovery
    from orchestrate.runs.syncing.sweep import SyncReport
    from orchestrate.runs.tracked import TrackedRun
    from orchestrate.runs.watching.background import Background
    from orchestrate.runs.watching.channels import Messenger
    from orchestrate.runs.watching.watcher import Watcher
    from orchestrate.settings.config import Settings
    from orchestrate.types import Run
    from orchestrate.workspace import Workspace


def watcher(ft: Workspace, *, only: Sequence[str] | None = None) -> Watcher:
    """Build a watcher that updates the store's runs, submits waiting queue entries, and notifies the channels
    when a run ends. `only` limits it to some backends."""
    from orchestrate.runs.queue import QueueServer
    from orchestrate.runs.watching.watcher import Watcher

    channels, feed = channels_of(ft.settings), QueueServer(ft, only)
    after_s = ft.settings.stalled_after_s
    return Watcher(
        ft.store, ft.ready, bill=ft.bill, channels=channels, only=only, feed=feed, stalled_after_s=after_s
    )


def channels_of(settings: Settings) -> list[Messenger]:
    """Return the channels to notify when a run ends. Raises `UsageError` for an invalid address, and
    `ConfigError` for a secret that can't be used for signing."""
    if settings.notify == config.Notify():
        return []
    from orchestrate.runs.watching.channels import channels

    signs = settings.notify.url is not None
    secret = config.secret("notify-webhook", "ORCHESTRATE_NOTIFY_SECRET") if signs else None
    return channels(settings.notify, secret)


@contextmanager
def notifying(ft: Workspace) -> Generator[list[str]]:
    """Notify the channels of each run whose end is detected inside the `with` block, unless another process
    has already sent that notification. When the block exits, the yielded list holds the notifications that
    failed."""
    found, problems = channels_of(ft.settings), list[str]()
    for channel in found:
        ft.store.notifications.since(channel.name)
    yield problems
    if found:
        from orchestrate.runs.watching.channels import notify

        problems += notify(ft.store, found)


def announce(settings: Settings, payload: Mapping[str, Any]) -> list[str]:
    """Send a message with an `id`, a `type` and a `text` to the channels, once. Returns the failed
    deliveries, one line each."""
    from orchestrate.runs.watching.channels import announce

    return announce(channels_of(settings), payload)


def recover(ft: Workspace, provider: str = "all", choose: Choose | None = None) -> Recovery:
    """Rebuild a lost store from the hosts' job lists. Uses all jobs that have an Orchestrate ref, or only the
    jobs that `choose` selects."""
    from orchestrate.runs.syncing.recovery import recover

    return recover(ft.store, [ft.provider(name) for name in ft.backends(provider)], choose, ft.rates)


def webhooks(ft: Workspace, port: int, woken: Callable[[str], None]) -> AbstractContextManager[list[str]]:
    """Receive the hosts' webhooks on a port of this machine (`0` picks a free one), and yield the URLs.
    Raises `MissingKey` if a signing secret is missing."""
    from orchestrate.profile import built_in
    from orchestrate.runs.watching.webhooks import Sender, listening

    names = {f"{one.kind}-webhook": one for one in built_in().values() if one.webhook_variable}
    secrets = {name: config.secret(name, one.webhook_variable or "") for name, one in names.items()}
    senders = [Sender(names[name], secret) for name, secret in secrets.items() if secret is not None]
    if not senders:
        name, one = next(iter(names.items()))
        raise MissingKey(name, one.webhook_variable or "")
    return listening(ft.store, senders, port, woken)


def background(settings: Settings) -> Background:
    """Return the background watcher, which keeps running after its terminal is closed."""
    from orchestrate.runs.watching.background import Background

    return Background(settings)


def stop_background(settings: Settings) -> int:
    """Stop the background watchers of the home folder and return how many there were. Runs continue."""
    from orchestrate.runs.watching.background import stop

    return stop(settings)


def ask(run: TrackedRun) -> None:
    """Update a run from its host. Ignores temporary failures. Raises `ProviderError` for errors that retrying
    cannot fix."""
    from orchestrate.runs.watching.polling import PollingPace

    PollingPace().attempt(run.refresh)


def notify_stalls(settings: Settings, report: SyncReport) -> list[str]:
    """Notify the channels about new stalls that a sync found. Returns the failed deliveries, one line
    each."""
    from orchestrate.runs.syncing.stalls import message

    found = [stall for stall in report.stalled if stall.new]
    return [problem for stall in found for problem in announce(settings, message(stall))]


def end_stalled(ft: Workspace, run: Run) -> str | None:
    """Cancel a run if an earlier check found it stalled and it still is. Returns a message about the stall,
    or `None` if the run was not canceled. Raises `ProviderError` if the host cannot be reached."""
    from orchestrate.runs.syncing.stalls import Stalls
    from orchestrate.runs.syncing.sweep import fetch_details

    store, provider = ft.store, ft.home_of(run).provider(run.provider)
    stalls = Stalls(
        store, provider, lambda run: fetch_details(store, provider, run), ft.settings.stalled_after_s
    )
    for stall in stalls.found([store.runs.get(run.id)]):
        if stalls.end(stall).cancelled:
            return stall.message
    return None


def settle_left_s(ft: Workspace, run: Run) -> float | None:
    """Return the seconds until a run's lost create request can be resolved, or `None` if no response was
    lost."""
    from orchestrate.store.store import settle_left_s

    return settle_left_s(ft.store, ft.provider(run.provider), run)


def main() -> int:
    """Run the background watcher in this process and return its exit code."""
    from orchestrate.runs.watching.background import run, say
    from orchestrate.workspace import Workspace

    @contextmanager
    def watching() -> Generator[Watcher]:
        with Workspace(settings) as ft:
            yield watcher(ft)

    try:
        settings = config.load()
        run(settings, watching)
    except OrchestrateError as error:
        say(error.message)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
