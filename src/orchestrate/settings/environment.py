"""The environment of the processes that Orchestrate starts: what programs need, and no key of a host."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from orchestrate.errors import ConfigError

VARIABLES: Mapping[str, str] = {
    "ORCHESTRATE_HOME": "Folder for the store, local runs, data files and downloads, like `--home`.",
    "ORCHESTRATE_STORE": "URL of the run store, like `--store`.",
    "ORCHESTRATE_CONFIG": "Configuration file to read in place of the nearest `orchestrate.toml`.",
    "ORCHESTRATE_KEYS": "File for API keys. What you trust lies in the same folder.",
    "ORCHESTRATE_BUDGET_USD": "Spending limit in US dollars, in place of `budget_usd`.",
    "ORCHESTRATE_LOG_LEVEL": "Least severe log messages to print, in place of `log_level`.",
    "ORCHESTRATE_BY": "Who makes runs. Default: `user@machine`.",
    "ORCHESTRATE_OWN_HOSTS": "Backends on your own machines, comma-separated. Private specs may go there.",
    "ORCHESTRATE_ALLOW_GRADER_CODE": "`1` lets graders written in Python run, like `--allow-grader-code`.",
    "ORCHESTRATE_MAX_DOWNLOAD_GB": "Largest model download in gigabytes. Default: what its base should need.",
    "ORCHESTRATE_NF4": "`bitsandbytes` answers small 4-bit models with its kernels. Default: `unpacked`.",
    "ORCHESTRATE_PASS_ENV": "Further variables for worker processes, comma-separated.",
    "ORCHESTRATE_NOTIFY_URL": "Webhook to call when a run ends.",
    "ORCHESTRATE_NOTIFY_SECRET": "Secret that signs those webhooks.",
    "ORCHESTRATE_NOTIFY_COMMAND": "Command to run when a run ends.",
    "ORCHESTRATE_NOTIFY_DESKTOP": "`1` shows a desktop notification when a run ends.",
    "ORCHESTRATE_GATEWAY_WEBHOOK_SECRET": "Secret that signs the gateway's webhooks.",
    "ORCHESTRATE_TODAY": "Date to assume (`2027-01-07`) for prices, closing days and models.",
}
"""Our environment variables and what each does. Variables of hosts are in their profiles."""

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


NF4_PRODUCTS = "ORCHESTRATE_NF4"
"""`unpacked` or `bitsandbytes`: with which products a small base in NF4 answers."""


def packed_nf4(env: Mapping[str, str] | None = None) -> bool:
    """Whether small models answer by bitsandbytes' own products too. Raises `ConfigError`."""
    value = (os.environ if env is None else env).get(NF4_PRODUCTS) or "unpacked"
    if value not in ("unpacked", "bitsandbytes"):
        raise ConfigError(f"{NF4_PRODUCTS} must be unpacked or bitsandbytes, got {value!r}")
    return value == "bitsandbytes"


MORE_NAMES = "ORCHESTRATE_PASS_ENV"
"""Names, joined by commas, of further variables that children get."""
PASSED = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|TEMP|TMP|XDG_CACHE_HOME|LD_LIBRARY_PATH|PYTHON.*"
    r"|CUDA_.*|NVIDIA_.*|NCCL_.*|HF_.*|TRANSFORMERS_.*|TOKENIZERS_.*|TORCH.*|PYTORCH_.*|TRITON_.*|BNB_.*"
    r"|VLLM_.*|ORCHESTRATE_NF4|OMP_.*|MKL_.*|OPENBLAS_.*|ONEDNN_.*|LRU_CACHE_CAPACITY|CC|CXX"
    r"|(HTTPS?|ALL|NO)_PROXY|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE"
    r"|SYSTEMROOT|APPDATA|LOCALAPPDATA|USERPROFILE|PATHEXT|COMSPEC"
)
"""Variables of every child. `HF_.*` includes the token for gated models. `PYTHON.*` finds an installation for
development."""
DESKTOP = re.compile(r"DISPLAY|WAYLAND_DISPLAY|XAUTHORITY|DBUS_SESSION_BUS_ADDRESS|XDG_.*")


def of_child(more: re.Pattern[str] | None = None, **given: str) -> dict[str, str]:
    """The variables that a child gets. `more`: further names, for what the program is there to do. `given`:
    variables to set on top."""
    named = {name.strip() for name in os.environ.get(MORE_NAMES, "").split(",")}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in named
        or PASSED.fullmatch(name.upper())
        or (more is not None and more.fullmatch(name.upper()))
    }
    return {**kept, **given}
