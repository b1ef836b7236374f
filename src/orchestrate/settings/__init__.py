"""Read settings, keys and addresses from the environment, files and keyring, and record what you trust."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from orchestrate.core import require_recent
from orchestrate.core.files import write_whole
from orchestrate.errors import ConfigError, MissingExtra, SetupError, UsageError

# Secrets, and where they are stored: the environment, a file with mode 0600, the system keyring.


SANDBOX_KEY_PREFIX = "sandbox-"
"""Prefix of sandbox keys. Real hosts reject such keys and the sandbox rejects all others, so the two can't be
mixed up."""
SANDBOX_NOT_TRAINED = "sandbox_not_trained"
"""Marks the metrics and the adapter of a job that a sandbox simulated without training."""


def is_sandbox_key(key: str) -> bool:
    """Return whether this is a sandbox key, judging by its prefix. Before `sandbox-`, it may have a prefix
    that the host's client requires, such as `sk-`."""
    return any(one.startswith(SANDBOX_KEY_PREFIX) for one in (key, key.partition("-")[2]))


MASK = "[removed]"
_SERVICE = "orchestrate"
"""The service name under which the system's keyring stores our keys."""
_SHORTEST = 8
"""Minimum length of a secret that `hide` replaces. Shorter ones might match ordinary text."""
_known: set[str] = set()
_SECRET_NAME = re.compile(r"(key|token|secret|password|passwd)$", re.IGNORECASE)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.:\-]*://\S+")
_USER = "***"
"""Replaces the user and password in a URL. A URL that contains `MASK` would be hard to read."""


class Secret:
    """A string that can't be printed by accident. Its repr and str are masked. Only `reveal()` returns the
    value. `hide` removes the value from other strings."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value
        if len(value) >= _SHORTEST:
            _known.add(value)

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return f"Secret('{self}')"

    def __str__(self) -> str:
        return f"{self._value[:3]}...{self._value[-2:]}" if len(self._value) > 12 else "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


def hide(text: str) -> str:
    """Mask each occurrence of a secret that this process has used."""
    for value in tuple(_known):
        if value in text:
            text = text.replace(value, MASK)
    return text


def masked(value: Any, name: str = "") -> Any:
    """Mask the secret parts of a setting for storage and display: values with names such as `api_key`, and
    the user, password and query values of URLs."""
    if isinstance(value, Mapping):
        return {k: masked(v, str(k)) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        items = [masked(item, name) for item in cast("list[Any]", value)]
        return tuple(items) if isinstance(value, tuple) else items
    if not isinstance(value, str) or not value:
        return value
    return MASK if _SECRET_NAME.search(name) else masked_url(value)


def masked_url(text: str) -> str:
    """Mask the user, password and query values of a URL. Other text is returned unchanged."""
    if not _ADDRESS.fullmatch(text):
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return MASK
    user, _, host = parts.netloc.rpartition("@")
    fields = [part.partition("=") for part in parts.query.split("&") if part]
    scheme, place = text.partition("://")[0], f"{_USER}@{host}" if user else host
    query = "&".join(f"{name}={MASK}" if equals else MASK for name, equals, _ in fields)
    # `geturl` loses the slashes of a URL without a host: `sqlite:///runs.sqlite3`.
    found = f"{scheme}://{place}{parts.path}"
    return found + (f"?{query}" if query else "") + (f"#{MASK}" if parts.fragment else "")


def is_masked(value: Any) -> bool:
    """Return whether `masked` has masked any part of this value."""
    if isinstance(value, Mapping):
        return any(is_masked(item) for item in cast("Mapping[Any, Any]", value).values())
    if isinstance(value, list | tuple):
        return any(is_masked(item) for item in cast("list[Any]", value))
    return isinstance(value, str) and (MASK in value or f"://{_USER}@" in value)


def remember(url: str) -> None:
    """Register the password and the query values of a URL as secrets that `hide` removes."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return
    values = [value for _, value in parse_qsl(parts.query)]
    values += [part.partition("=")[2] for part in parts.query.split("&")]
    for value in (*values, parts.password or "", unquote(parts.password or "")):
        Secret(value)


def key_file(env: Mapping[str, str] | None = None) -> Path:
    """Return the path of the file that `orchestrate keys set` writes."""
    env = os.environ if env is None else env
    if given := env.get("ORCHESTRATE_KEYS"):
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_config_dir("orchestrate")) / "keys.toml"


def pin_file(env: Mapping[str, str] | None = None) -> Path:
    """Return the path of the file that lists the hosts to which each key may be sent. It is next to the key
    file."""
    return key_file(env).with_name("pins.json")


def read_keys(path: Path) -> dict[str, str]:
    """Read the key file. Raises `ConfigError` if other users can read the file, or if it is not a table of
    strings."""
    if not path.is_file():
        return {}
    if os.name == "posix" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path} contains keys, but other users can read it", fix=f"chmod 600 {path}")
    values = read_toml(path)
    if not all(isinstance(v, str) for v in values.values()):
        raise ConfigError(f'{path}: every value must be a string, such as  mycloud = "..."')
    return values


def secret(name: str, variable: str, env: Mapping[str, str] | None = None) -> Secret | None:
    """Return a secret other than a backend's key, or `None` if it is not set. Looks in the environment, the
    key file and the keyring, in this order."""
    env = os.environ if env is None else env
    value = env.get(variable) or read_keys(key_file(env)).get(name) or from_keyring(name)
    return Secret(value) if value else None


def write_key(path: Path, name: str, value: str | None) -> None:
    """Set one key in the key file, or remove it if `value` is `None`. The file is created with mode 0600 and
    replaced atomically."""
    keys = read_keys(path)
    if value is None:
        keys.pop(name, None)
    else:
        keys[name] = value
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Any JSON string is also a valid TOML string.
    lines = (f"{json.dumps(k)} = {json.dumps(v)}\n" for k, v in sorted(keys.items()))
    write_whole(path, "".join(lines).encode(), private=True)


def from_keyring(name: str) -> str | None:
    try:
        return _keyring().get_password(_SERVICE, name)
    except Exception:  # noqa: BLE001  a locked or absent desktop keyring is as good as an empty one
        return None


def write_keyring(name: str, value: str) -> str:
    """Set one key in the system's keyring, and return the keyring's name. Raises `MissingExtra` if the
    package is missing, `SetupError` if the keyring rejects the key, and `UsageError` for a sandbox key."""
    if is_sandbox_key(value):
        raise UsageError(
            "this is a sandbox key, but the keyring only stores keys of real hosts",
            fix="leave out --keyring",
        )
    require_recent("keyring")
    keyring = _keyring()
    try:
        keyring.set_password(_SERVICE, name, value)
    except Exception as error:  # whatever a backend raises
        raise SetupError(
            f"the keyring rejected the key ({type(error).__name__})",
            fix="unlock it, or leave out --keyring to store the key in a file that only you can read",
        ) from error
    return str(keyring.get_keyring().name)


def forget_in_keyring(name: str) -> bool:
    """Remove a key from the keyring, and return whether the keyring had it. Raises `SetupError` if the
    keyring rejects the request."""
    if from_keyring(name) is None:
        return False
    try:
        _keyring().delete_password(_SERVICE, name)
    except Exception as error:
        raise SetupError(
            f"the keyring could not remove the key ({type(error).__name__})", fix="unlock it, then try again"
        ) from error
    return True


def _keyring() -> Any:
    from importlib import import_module

    try:
        return import_module("keyring")
    except ImportError as error:
        raise MissingExtra("keyring", "the system's keyring", "keyring") from error


def read_toml(path: Path) -> dict[str, Any]:
    import tomllib  # late: most commands have no such file to read

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", fix="create a new file with comments: orchestrate init"
        ) from error


def user_and_machine() -> str:
    """Return the current user and machine, such as `ada@laptop`."""
    import getpass

    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return f"{user}@{socket.gethostname()}"


_SECRET_TEXT = re.compile(
    r"\b(?:sk|pk|rk|tgp|fw|hf|key|sandbox|ghp)[-_]"
    r"(?:(?P<secret>(?=[A-Za-z_\-]*\d)[A-Za-z0-9_\-]{12,})|[A-Za-z0-9_\-]*)"
)
"""Matches text that starts like a key. The group `secret` contains the part after the prefix if the text is
likely to be a key, and is empty otherwise. Matching both kinds avoids scanning the same text twice."""
_SIGNED = re.compile(r"(?i)(signature|x-amz-|x-goog-|[?&]sig=|[?&]token=|awsaccesskeyid)")
_URL = re.compile(r"https?://[^\s\"'<>]+")


def redact_text(text: str) -> str:
    """Redact known secrets, text that looks like a key, and the queries of signed URLs. Use it for errors and
    logs."""
    return _SECRET_TEXT.sub(
        lambda found: MASK if found["secret"] else found.group(), _URL.sub(_unsigned, hide(text))
    )


def _unsigned(match: re.Match[str]) -> str:
    try:
        parts = urlsplit(match.group())
    except ValueError:  # brackets that hold no address
        return MASK
    if not _SIGNED.search("?" + parts.query):
        return match.group()
    return urlunsplit(parts._replace(query=MASK))


# The environment of child processes: variables that programs need, but no API keys.


VARIABLES: Mapping[str, str] = {
    "ORCHESTRATE_HOME": "Folder for the store, local runs, data files and downloads, like `--home`.",
    "ORCHESTRATE_STORE": "URL of the run store, like `--store`.",
    "ORCHESTRATE_CONFIG": "Configuration file to read instead of the nearest `orchestrate.toml`.",
    "ORCHESTRATE_KEYS": "File for API keys. Your trust decisions are stored in the same folder.",
    "ORCHESTRATE_BUDGET_USD": "Spending limit in US dollars, instead of `budget_usd`.",
    "ORCHESTRATE_LOG_LEVEL": "Log level, instead of `log_level`.",
    "ORCHESTRATE_BY": "Name recorded as the creator of runs. Default: `user@machine`.",
    "ORCHESTRATE_OWN_HOSTS": "Backends on your own machines, comma-separated. They may train private specs.",
    "ORCHESTRATE_ALLOW_GRADER_CODE": "`1` allows graders written in Python, like `--allow-grader-code`.",
    "ORCHESTRATE_MAX_DOWNLOAD_GB": "Maximum size of a model download in gigabytes. Default: the size of its "
    "base model.",
    "ORCHESTRATE_NF4": "Kernels for small 4-bit models: `unpacked` (the default) or `bitsandbytes`.",
    "ORCHESTRATE_PASS_ENV": "Additional variables passed to worker processes, comma-separated.",
    "ORCHESTRATE_NOTIFY_URL": "Webhook to call when a run ends.",
    "ORCHESTRATE_NOTIFY_SECRET": "Secret for signing these webhooks.",
    "ORCHESTRATE_NOTIFY_COMMAND": "Command to run when a run ends.",
    "ORCHESTRATE_NOTIFY_DESKTOP": "`1` shows a desktop notification when a run ends.",
    "ORCHESTRATE_STALLED_MINUTES": "Minutes without progress after which a run counts as stalled.",
    "ORCHESTRATE_GATEWAY_WEBHOOK_SECRET": "Secret for signing the gateway's webhooks.",
    "ORCHESTRATE_TODAY": "Treat this date as today (`2027-01-07`) for prices, shutdown dates and models.",
}
"""Orchestrate's environment variables, with descriptions. Variables of hosts are in their profiles."""

VARIABLE = "ORCHESTRATE_MAX_DOWNLOAD_GB"


def download_limit(env: Mapping[str, str] | None = None) -> int | None:
    """Return the download limit set by the user, in bytes, or `None` if none is set. Raises `ConfigError` if
    the limit is invalid."""
    value = (os.environ if env is None else env).get(VARIABLE)
    try:
        size = float(value) if value else None
    except ValueError:
        size = -1.0
    if size is not None and not 0 < size < float("inf"):
        raise ConfigError(f"{VARIABLE} must be a number of gigabytes, got {value!r}")
    return None if size is None else int(size * 10**9)


NF4_PRODUCTS = "ORCHESTRATE_NF4"
"""Environment variable that selects the kernels for small NF4 base models: `unpacked` or `bitsandbytes`."""


def packed_nf4(env: Mapping[str, str] | None = None) -> bool:
    """Return True if `ORCHESTRATE_NF4` selects bitsandbytes' own kernels for small models. Raises
    `ConfigError` if its value is invalid."""
    value = (os.environ if env is None else env).get(NF4_PRODUCTS) or "unpacked"
    if value not in ("unpacked", "bitsandbytes"):
        raise ConfigError(f"{NF4_PRODUCTS} must be unpacked or bitsandbytes, got {value!r}")
    return value == "bitsandbytes"


MORE_NAMES = "ORCHESTRATE_PASS_ENV"
"""Environment variable that lists additional variables to pass to child processes, separated by commas."""
PASSED = (
    r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|TEMP|TMP|XDG_CACHE_HOME|LD_LIBRARY_PATH|PYTHON.*"
    r"|CUDA_.*|NVIDIA_.*|NCCL_.*|HF_.*|TRANSFORMERS_.*|TOKENIZERS_.*|TORCH.*|PYTORCH_.*|TRITON_.*|BNB_.*"
    r"|VLLM_.*|ORCHESTRATE_NF4|OMP_.*|MKL_.*|OPENBLAS_.*|ONEDNN_.*|LRU_CACHE_CAPACITY|CC|CXX"
    r"|(HTTPS?|ALL|NO)_PROXY|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE"
    r"|SYSTEMROOT|APPDATA|LOCALAPPDATA|USERPROFILE|PATHEXT|COMSPEC"
)
"""Pattern of the variables that every child process gets. `HF_.*` includes the token for gated models.
`PYTHON.*` is needed if Orchestrate is installed in development mode."""
DESKTOP = re.compile("DISPLAY|WAYLAND_DISPLAY|XAUTHORITY|DBUS_SESSION_BUS_ADDRESS|XDG_.*")


def of_child(more: re.Pattern[str] | None = None, **given: str) -> dict[str, str]:
    """Return the environment for a child process. It contains:

    - the variables whose names match `PASSED` or `more`
    - the variables that the user lists in `ORCHESTRATE_PASS_ENV`
    - the variables in `given`, which take precedence
    """
    named = {name.strip() for name in os.environ.get(MORE_NAMES, "").split(",")}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in named
        or re.fullmatch(PASSED, name.upper())
        or (more is not None and more.fullmatch(name.upper()))
    }
    return {**kept, **given}
