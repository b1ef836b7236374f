"""How much may be downloaded at once."""

from __future__ import annotations

import os
from collections.abc import Mapping

from orchestrate.errors import ConfigError

VARIABLE = "ORCHESTRATE_MAX_DOWNLOAD_GB"


def download_limit(env: Mapping[str, str] | None = None) -> int | None:
    """Return the user's limit in bytes; `None` where none is set. Raises `ConfigError`."""
    value = (os.environ if env is None else env).get(VARIABLE)
    try:
        size = float(value) if value else None
    except ValueError:
        size = -1.0
    if size is not None and not 0 < size < float("inf"):
        raise ConfigError(f"{VARIABLE} must be a number of gigabytes, got {value!r}")
    return None if size is None else int(size * 10**9)
