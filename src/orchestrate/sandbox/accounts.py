"""Accounts of a sandbox. A key can only access its own account.

Keys that differ only in the part after a `.` belong to the same account. For example, `sandbox-team.1` and
`sandbox-team.2` simulate a key rotation. Account names are hashes, so they don't reveal keys. The account of
the sandbox's own key is `sandbox`.
"""

from __future__ import annotations

import hashlib
from contextvars import ContextVar

from orchestrate.settings.config import SANDBOX_KEY_PREFIX

OWN = "sandbox"
HERE: ContextVar[str | None] = ContextVar("account", default=None)
"""Account of the current request. `None` outside of requests, where all accounts are visible."""


def here() -> str:
    return HERE.get() or OWN


def account_of(key: str, own_key: str) -> str:
    """Return the account name for a key. `own_key` is the sandbox's own key."""
    name, own = (k.removeprefix(SANDBOX_KEY_PREFIX).partition(".")[0] for k in (key, own_key))
    return OWN if name == own else f"{hashlib.sha256(name.encode()).hexdigest()[:8]}-{OWN}"
