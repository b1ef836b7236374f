"""Telling people and programs that a run has ended, exactly once for each channel.

A claim in the store comes first, so that of many watchers one tells. What was certainly not delivered is
tried again. Where a watcher died in the middle nobody can know: a webhook is then sent again under the same
`webhook-id`, by which receivers drop repeats; a command or a desktop message is not repeated.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from orchestrate.config import Notify, Secret, is_loopback
from orchestrate.errors import OrchestrateError, UsageError
from orchestrate.types import Run

if TYPE_CHECKING:
    from orchestrate.tracking.store import Store

_DEAD_AFTER_S = 300.0
_TIMEOUT_S = 30.0


class NotDelivered(OrchestrateError):
    """The message certainly did not arrive; it is tried again."""

    retryable = True


class Channel(Protocol):
    """A place to tell. `name` identifies it in the store."""

    name: str
    repeatable: bool
    """Whether a repeat is recognised and dropped by the receiver."""

    def send(self, run: Run) -> None:
        """Raises `NotDelivered`."""
        ...


def message(run: Run) -> dict[str, Any]:
    """What every channel tells."""
    return {
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


class Command:
    """Runs a program with the message as JSON on its standard input; exit code 0 means delivered."""

    repeatable = False

    def __init__(self, argv: Sequence[str]) -> None:
        if not argv:
            raise UsageError("a notification command must not be empty")
        self.argv = list(argv)
        self.name = f"command:{_digest(self.argv)}"

    def send(self, run: Run) -> None:
        try:
            subprocess.run(
                self.argv,
                input=json.dumps(message(run)).encode(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=_TIMEOUT_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise NotDelivered(f"{self.argv[0]}: {_reason(error)}") from error


class Desktop(Command):
    """A message on the desktop of this machine."""

    def __init__(self) -> None:
        # The text goes in as arguments at the time of sending; the program is what this system has.
        super().__init__(["osascript"] if sys.platform == "darwin" else ["notify-send"])
        self.name = "desktop"

    def send(self, run: Run) -> None:
        title, text = f"orchestrate: {run.status.value}", f"{run.id} on {run.provider} ({run.model})"
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
        try:
            subprocess.run(
                [*self.argv, *arguments, title, text], timeout=_TIMEOUT_S, check=True, capture_output=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise NotDelivered(f"{self.argv[0]}: {_reason(error)}") from error


class Webhook:
    """POSTs the message as the Standard Webhooks convention has it: `webhook-id`, `webhook-timestamp`, and
    with a secret `webhook-signature`."""

    repeatable = True

    def __init__(self, url: str, secret: Secret | None = None) -> None:
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise UsageError(f"the address of the webhook is no URL: {error}") from error
        if not parts.hostname or not (
            parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
        ):
            raise UsageError("a webhook goes to an https address, or to one of this machine")
        self.url, self.secret = url, secret
        self.name = f"webhook:{_digest([url])}"

    def send(self, run: Run) -> None:
        import httpx

        from orchestrate.tracking.clock import Clock

        body = json.dumps(message(run), separators=(",", ":"))
        headers = {
            "content-type": "application/json",
            "webhook-id": f"{run.id}-{run.status.value}",
            "webhook-timestamp": str(int(Clock().now().timestamp())),
        }
        if self.secret is not None:
            signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body}".encode()
            key = _key(self.secret)
            headers["webhook-signature"] = (
                "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
            )
        try:
            answer = httpx.post(self.url, content=body, headers=headers, timeout=_TIMEOUT_S)
            answer.raise_for_status()
        except httpx.HTTPStatusError as error:  # its own words hold the whole address, with its token
            raise self._refused(f"HTTP {error.response.status_code}") from None
        except httpx.HTTPError as error:
            raise self._refused(f"no answer ({type(error).__name__})") from None

    def _refused(self, reason: str) -> NotDelivered:
        return NotDelivered(f"webhook to {urlsplit(self.url).hostname}: {reason}")


def channels(notify: Notify, secret: Secret | None = None) -> list[Channel]:
    """Those that the configuration names; `secret` signs webhooks. Raises `UsageError`."""
    found: list[Channel] = []
    if notify.command is not None:
        try:
            argv = shlex.split(notify.command)
        except ValueError as error:
            raise UsageError(f"the notification command cannot be read: {error}") from error
        found.append(Command(argv))
    if notify.url is not None:
        found.append(Webhook(notify.url.reveal(), secret))
    if notify.desktop:
        found.append(Desktop())
    return found


def tell(store: Store, channels: Sequence[Channel]) -> list[str]:
    """Tells each channel about the runs that have ended since it was first used. Returns what could not be
    delivered, one line each; that is tried again at the next call."""
    problems: list[str] = []
    for channel in channels:
        _bury(store, channel)
        for run in store.untold(channel.name, store.notified_since(channel.name)):
            if not store.claim_notification(run.id, channel.name):
                continue
            try:
                channel.send(run)
            except NotDelivered as error:
                store.finish_notification(run.id, channel.name, sent=False)
                problems.append(f"{run.id}: {error.message}")
                break  # what does not work now will not work for the next run either
            store.finish_notification(run.id, channel.name, sent=True)
    return problems


def _bury(store: Store, channel: Channel) -> None:
    """Settles what dead watchers left between claiming and finishing."""
    left = store.unfinished_notifications(channel.name, older_than_s=_DEAD_AFTER_S)
    if channel.repeatable:
        for run_id in left:
            store.finish_notification(run_id, channel.name, sent=False)
    elif left:
        store.close_notifications(left, channel.name)


def _reason(error: OSError | subprocess.SubprocessError) -> str:
    """Without the arguments, among which may be a token."""
    if isinstance(error, subprocess.CalledProcessError):
        said = bytes(error.stderr or b"").decode(errors="replace").strip().splitlines()
        return f"exit code {error.returncode}" + (f": {said[-1][:200]}" if said else "")
    if isinstance(error, subprocess.TimeoutExpired):
        return f"not done after {_TIMEOUT_S:.0f} s"
    return error.strerror or str(error) if isinstance(error, OSError) else type(error).__name__


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _key(secret: Secret) -> bytes:
    text = secret.reveal()
    return base64.b64decode(text.removeprefix("whsec_")) if text.startswith("whsec_") else text.encode()
