"""Keep the data of private runs on their owner's machines, even after training. Actions that would send rows,
answers or weights elsewhere are rejected before anything is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from orchestrate.errors import UsageError
from orchestrate.settings.config import OWN_HOSTS, Settings
from orchestrate.settings.hosts import is_loopback
from orchestrate.types import Run

if TYPE_CHECKING:
    from orchestrate.providers.base import Provider


def is_private(run: Run) -> bool:
    return run.spec.get("private") is True


def is_near(settings: Settings, address: str, *names: str) -> bool:
    """Return True if the address is on this machine, or if the user has declared its host or one of `names`
    as their own."""
    host = _host(address)
    return is_loopback(host) or not settings.own_hosts.isdisjoint({host, *names})


def _host(address: str) -> str:
    return (urlsplit(address).hostname if "://" in address else address) or address


def require_near(settings: Settings, run: str, what: str, address: str, *names: str) -> None:
    """Raise `UsageError` unless the address is on this machine or declared as the user's own (see
    `is_near`)."""
    if is_near(settings, address, *names):
        return
    host = _host(address)
    raise UsageError(
        f"{run} is private, but {what} would send its data to {host}, which is not known to be yours",
        fix=f"use a loopback address. If the host is yours: export {OWN_HOSTS}={next(iter(names), host)}",
    )


def require_own(run: Run, provider: Provider) -> None:
    """Raise `UsageError` if the weights of a private run would be uploaded to someone else's host."""
    if is_private(run) and not provider.own:
        raise UsageError(
            f"{run.id} is private, and {provider.profile.title} is not known to be your own machine",
            fix=f"orchestrate serve {run.id}, or if the machine is yours: export {OWN_HOSTS}={provider.name}",
        )
