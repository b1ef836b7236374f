"""Notifies people and programs when a run ends.

A channel is first claimed in the store, so only one of several watchers notifies it. Deliveries known to have
failed are retried. Sometimes the outcome is unknown, because a process died midway or a response was lost.
Webhooks are delivered at least once: they are sent again with the same `webhook-id`, so receivers can drop
duplicates. Commands and desktop notifications are delivered at most once: they are repeated only if the
program could not be started or its exit code reports a failure. An unknown outcome is stored as an event of
the run. The message's `id` identifies the end of a run and is the same on every channel.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from urllib.parse import urlsplit

from orchestrate import settings
from orchestrate.core.child import end_group
from orchestrate.errors import ConfigError, OrchestrateError, UsageError
from orchestrate.settings.config import Notify, Secret, is_loopback
from orchestrate.text import duration
from orchestrate.types import Event, Run

if TYPE_CHECKING:
    from orchestrate.store.store import Store

_DEAD_AFTER_S = 300.0
_TIMEOUT_S = 30.0
_SAID_BYTES = 4096


class NotDelivered(OrchestrateError):
    """Raised if the message did not arrive, or if sending it twice is harmless. The delivery is retried."""

    retryable = True


class PerhapsDelivered(OrchestrateError):
    """Raised if the message may have arrived. Delivery is not retried, to avoid notifying the
    recipient twice."""


class Channel(Protocol):
    """A destination for notifications. The store identifies a channel by its `name`."""

    name: str
    repeatable: bool
    """True if the receiver recognizes and drops repeated messages."""

    def send(self, run: Run) -> None:
        """Send the notification that a run has ended. Raises `NotDelivered` if it can safely be sent again.
        Raises `PerhapsDelivered` if it may have arrived and the channel is not `repeatable`."""
        ...


class Messenger(Channel, Protocol):
    """A channel that can also send messages unrelated to the end of a run."""

    def send_message(self, payload: Mapping[str, Any]) -> None:
        """Send a message with an `id`, a `type` and a `text` for people. Raises the same errors as `send`."""
        ...


def message_id(run: Run) -> str:
    """Return the id of the message that reports a run's end. The id is the same for every sender and every
    attempt."""
    return f"{run.id}-{run.status.value}"


def message(run: Run) -> dict[str, Any]:
    """Build the message for all channels."""
    return {
        "id": message_id(run),
        "type": f"run.{run.status.value}",
        "run": run.id,
        "provider": run.provider,
        "model": run.model,
        "status": run.status.value,
        "sandbox": run.sandbox,
        "tuned_model": run.tuned_model,
        "usd": str(run.bill.usd) if run.bill else None,
        "error": run.error.message if run.error else None,
        "finished_at": run.finished_at.isoformat() if run.finished_at else None,
    }


class CommandChannel:
    """Runs a program with the message as JSON on its standard input. Exit code 0 means delivered. Any other
    code means not delivered. A program that takes longer than `timeout_s` is killed together with its child
    processes."""

    repeatable = False
    variables: ClassVar[re.Pattern[str] | None] = None
    """Environment variables for the program, in addition to those that every child process gets."""

    def __init__(self, argv: Sequence[str], timeout_s: float = _TIMEOUT_S) -> None:
        if not argv:
            raise UsageError("a notification command must not be empty")
        self.argv, self.timeout_s = list(argv), timeout_s
        self.name = f"command:{_digest(self.argv)}"

    def send(self, run: Run) -> None:
        self.send_message(message(run))

    def send_message(self, payload: Mapping[str, Any]) -> None:
        self._execute(self.argv, json.dumps(payload).encode())

    def _execute(self, argv: Sequence[str], stdin: bytes = b"") -> None:
        # stderr goes to a file: a pipe would stay open until every child of the program has exited.
        with tempfile.TemporaryFile() as said:
            try:
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    start_new_session=True,
                    env=settings.of_child(self.variables),
                )
            except OSError as error:
                raise NotDelivered(f"{argv[0]}: {error.strerror or error}") from error
            with process:
                try:
                    process.communicate(stdin, self.timeout_s)
                except subprocess.TimeoutExpired:
                    end_group(process)
                    raise PerhapsDelivered(
                        f"{argv[0]}: still running after {duration(self.timeout_s)}"
                    ) from None
            if process.returncode < 0:
                raise PerhapsDelivered(f"{argv[0]}: ended by signal {-process.returncode}")
            if process.returncode:
                said.seek(max(0, said.seek(0, os.SEEK_END) - _SAID_BYTES))
                lines = said.read().decode(errors="replace").strip().splitlines()
                last = f": {lines[-1][:200]}" if lines else ""
                raise NotDelivered(f"{argv[0]}: exit code {process.returncode}{last}")


class Desktop(CommandChannel):
    """Shows a notification on this machine's desktop."""

    variables = settings.DESKTOP

    def __init__(self) -> None:
        # The text is passed as arguments when a notification is sent.
        super().__init__(["osascript"] if sys.platform == "darwin" else ["notify-send"])
        self.name = "desktop"

    def send(self, run: Run) -> None:
        self._show(f"orchestrate: {run.status.value}", f"{run.id} on {run.provider} ({run.model})")

    def send_message(self, payload: Mapping[str, Any]) -> None:
        self._show(f"orchestrate: {payload['type']}", str(payload["text"]))

    def _show(self, title: str, text: str) -> None:
        arguments = (
            [
                "-e",
                "on run a",
                "-e",
                "display notification (item 2 of a) with title (item 1 of a)",
                "-e",
                "end run",
            ]
            if sys.platform == "darwin"
            else ["--app-name=orchestrate"]
        )
        self._execute([*self.argv, *arguments, title, text])


class Webhook:
    """POSTs the message with the headers of the Standard Webhooks specification: `webhook-id`,
    `webhook-timestamp`, and, if a secret is set, `webhook-signature`."""

    repeatable = True

    def __init__(self, url: str, secret: Secret | None = None) -> None:
        """Set up the webhook. Raises `UsageError` for an invalid address, and `ConfigError` for an invalid
        secret."""
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise UsageError(f"the webhook address is not a URL: {error}") from error
        if not parts.hostname or not (
            parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
        ):
            raise UsageError("a webhook address must use https unless it is on this machine")
        self.url, self.key = url, None if secret is None else _key(secret)
        self.name = f"webhook:{_digest([url])}"

    def send(self, run: Run) -> None:
        self.send_message(message(run))

    def send_message(self, payload: Mapping[str, Any]) -> None:
        import httpx

        from orchestrate.store import Clock

        body = json.dumps(payload, separators=(",", ":"))
        headers = {
            "content-type": "application/json",
            "webhook-id": str(payload["id"]),
            "webhook-timestamp": str(int(Clock().now().timestamp())),
        }
        if self.key is not None:
            signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body}".encode()
            headers["webhook-signature"] = (
                "v1," + base64.b64encode(hmac.new(self.key, signed, hashlib.sha256).digest()).decode()
            )
        try:
            answer = httpx.post(self.url, content=body, headers=headers, timeout=_TIMEOUT_S)
            answer.raise_for_status()
        except httpx.HTTPStatusError as error:  # its own words hold the whole address, with its token
            raise self._refused(f"HTTP {error.response.status_code}") from None
        except httpx.HTTPError as error:
            raise self._refused(f"no response ({type(error).__name__})") from None

    def _refused(self, reason: str) -> NotDelivered:
        return NotDelivered(f"webhook to {urlsplit(self.url).hostname}: {reason}")


def channels(notify: Notify, secret: Secret | None = None) -> list[Messenger]:
    """Return the configured channels. `secret` signs webhooks. Raises `UsageError` for an invalid command or
    address, and `ConfigError` for an invalid secret."""
    found: list[Messenger] = []
    if notify.command is not None:
        try:
            argv = shlex.split(notify.command)
        except ValueError as error:
            raise UsageError(f"could not parse the notification command: {error}") from error
        found.append(CommandChannel(argv))
    if notify.url is not None:
        found.append(Webhook(notify.url.reveal(), secret))
    if notify.desktop:
        found.append(Desktop())
    return found


def notify(store: Store, channels: Sequence[Channel]) -> list[str]:
    """Notify each channel about the runs that ended after the channel was first used. Returns the failed
    deliveries, one line each. The next call retries them unless the line says otherwise."""
    problems: list[str] = []
    for channel in channels:
        problems += _bury(store, channel)
        for run in store.notifications.due(channel.name, store.notifications.since(channel.name)):
            if not store.notifications.claim(run.id, channel.name):
                continue
            try:
                channel.send(run)
            except NotDelivered as error:
                store.notifications.finish(run.id, channel.name, sent=False)
                problems.append(f"{run.id}: {error.message}")
                break  # what does not work now will not work for the next run either
            except PerhapsDelivered as error:
                problems.append(_uncertain(store, run.id, channel, error.message))
                break
            except Exception as error:  # noqa: BLE001  a watcher does not die of a channel
                reason = f"{_kind(channel)} failed with {type(error).__name__}"  # its words may hold a token
                if channel.repeatable:
                    store.notifications.finish(run.id, channel.name, sent=False)
                    problems.append(f"{run.id}: {reason}")
                else:
                    problems.append(_uncertain(store, run.id, channel, reason))
                break
            store.notifications.finish(run.id, channel.name, sent=True)
    return problems


def announce(channels: Sequence[Messenger], payload: Mapping[str, Any]) -> list[str]:
    """Send a message to each channel once. Returns the deliveries that failed or may have failed, one line
    each."""
    problems: list[str] = []
    for channel in channels:
        try:
            channel.send_message(payload)
        except (NotDelivered, PerhapsDelivered) as error:
            problems.append(error.message)
    return problems


def _bury(store: Store, channel: Channel) -> list[str]:
    """Settle claims of dead watchers that were never finished."""
    problems: list[str] = []
    for run_id in store.notifications.unfinished(channel.name, older_than_s=_DEAD_AFTER_S):
        if channel.repeatable:
            store.notifications.finish(run_id, channel.name, sent=False)
        else:
            reason = "the process that sent the notification crashed"
            problems.append(_uncertain(store, run_id, channel, reason))
    return problems


def _uncertain(store: Store, run_id: str, channel: Channel, reason: str) -> str:
    """Stop retrying and report the problem, because a repeated notification would be worse than a missing
    one."""
    store.notifications.close(run_id, channel.name)
    text = f"the {_kind(channel)} may not have arrived and will not be sent again ({reason})"
    event = Event(
        id=f"orchestrate-untold-{channel.name}",
        at=store.clock.now(),
        level="warning",
        type="notification",
        message=text,
    )
    store.history.add_events(run_id, [event], from_host=False)
    return f"{run_id}: {text}"


def _kind(channel: Channel) -> str:
    return channel.name.partition(":")[0]


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _key(secret: Secret) -> bytes:
    text = secret.reveal()
    if not text.startswith("whsec_"):
        return text.encode()
    with suppress(ValueError):
        if key := base64.b64decode(text.removeprefix("whsec_"), validate=True):
            return key
    raise ConfigError(
        "the webhook signing secret starts with whsec_, but the rest is not base64",
        fix="copy the complete secret: orchestrate keys set notify-webhook   (or ORCHESTRATE_NOTIFY_SECRET)",
    )
