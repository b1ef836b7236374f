"""Accounts of a sandbox: each key has its own account and cannot see the others.

The account's name does not include the part of the key after a `.`: `sandbox-team.1` and `sandbox-team.2` are
two keys of one account, as after a rotation. Accounts are named by a hash, so names don't reveal keys. The
sandbox's own key has the account `sandbox`.
"""

from __future__ import annotations

import hashlib
from contextvars import ContextVar

from orchestrate.settings.config import SANDBOX_KEY_PREFIX

OWN = "sandbox"
HERE: ContextVar[str | None] = ContextVar("account", default=None)
"""Account of the current request. Outside of requests it is `None`, and everything is visible."""


def here() -> str:
    return HERE.get() or OWN


def account_of(key: str, own_key: str) -> str:
    """Return the name of a key's account. `own_key` is the sandbox's own key."""
    name, own = (k.removeprefix(SANDBOX_KEY_PREFIX).partition(".")[0] for k in (key, own_key))
    return OWN if name == own else f"{hashlib.sha256(name.encode()).hexdigest()[:8]}-{OWN}"
