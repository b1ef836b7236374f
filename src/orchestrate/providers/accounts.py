"""Whose account a backend's key works for: what the host tells of it, else a fingerprint of the key.

A fingerprint is an HMAC under the key itself, which cannot be turned back. The same account seen through
another key has another fingerprint; `orchestrate.runs.submitting.accounts` joins the two once a known job
or file proves that they are one.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from orchestrate.errors import InvalidRequest, NotFound, PermissionRefused
from orchestrate.settings.config import HostConfig
from orchestrate.types import Account


def told(**parts: str | None) -> Account | None:
    """`told(organization="o", project="p")` is `organization o, project p`; `None` when all are unknown."""
    words = [f"{name} {value}" for name, value in parts.items() if value]
    return Account(id=", ".join(words), told=True) if words else None


def of_key(config: HostConfig, host: str) -> Account:
    """Of the key and of what is configured beside it; a backend without a key is its host. Raises
    `MissingKey`, `KeyElsewhere`."""
    if config.api_key is None and config.key_variable is None:
        return Account(id=host, told=True)
    beside = "\0".join(
        ["orchestrate account", *map(str, (config.organization, config.project, config.account_id))]
    )
    mark = hmac.new(config.require_key().reveal().encode(), beside.encode(), hashlib.sha256).hexdigest()
    return Account(id=f"key {mark[:16]}", told=False)


def asked(ask: Callable[[], Account | None], config: HostConfig, host: str) -> Account:
    """What `ask` learns from the host; the key's fingerprint where the host does not tell it, or not to this
    key. Other errors are raised: an account that cannot be asked for now is not known."""
    try:
        found = ask()
    except (NotFound, InvalidRequest, PermissionRefused):
        found = None
    return found or of_key(config, host)
