"""OpenAI's official SDK client, configured for any host that implements OpenAI's API.

    [hosts.mine]
    type = "openai-compatible"
    profile = "azure"                       # or another name of `orchestrate providers`
    base_url = "https://NAME.openai.azure.com"
    [hosts.mine.options]
    api_version = "2025-04-01-preview"      # without it: Azure's v1 API, with base_url .../openai/v1
    deployment = "my-tuned-model"           # for `chat`, because Azure serves only deployments

Additional options for any host of this type: `headers` (table, sent with each request), `prices` (the backend
whose rates apply), `multipart_bytes` and `part_bytes` (size above which files are uploaded in parts, and size
of a part), `retry_budget_s`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from orchestrate.core import require_recent
from orchestrate.providers.calls.hosted import Retry, Wire

if TYPE_CHECKING:
    from openai import OpenAI

    from orchestrate.settings.config import HostConfig

CONNECT_S = 10.0
SANDBOX_ANSWER_S = 600.0


class Closeable(Protocol):
    def close(self) -> object: ...


_C = TypeVar("_C", bound=Closeable)


class CachedClient(Generic[_C]):
    """Client that is created on first use and shared by all threads. At most one client exists at a time, so
    `close` leaves none open."""

    def __init__(self, make: Callable[[], _C]) -> None:
        self._make, self._made, self._lock = make, list[_C](), threading.Lock()

    def __call__(self) -> _C:
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]

    def close(self) -> None:
        """Close the client. The next call creates a new one."""
        with self._lock:
            while self._made:
                self._made.pop().close()


def connect(config: HostConfig, *, key_header: str | None = None) -> OpenAI:
    """Create a client without sending anything. `key_header` is an additional header for the key, if a host
    requires one. Raises `MissingKey` if the key is not set.

    Retries are disabled, because `orchestrate.providers.calls.hosted.Wire` retries. Redirects are not
    followed, because a redirected POST might be sent twice or become a GET."""
    import openai

    require_recent(openai.__name__)

    timeout = openai.Timeout(config.timeout_s, connect=CONNECT_S)
    shared: dict[str, Any] = {
        "api_key": config.require_key().reveal(),
        "max_retries": 0,
        "timeout": timeout,
        "http_client": openai.DefaultHttpxClient(timeout=timeout, follow_redirects=False),
        "default_headers": {str(k): str(v) for k, v in config.options.get("headers", {}).items()},
    }
    if key_header is not None:
        shared["default_headers"][key_header] = shared["api_key"]
    version = config.options.get("api_version")
    if version is None:
        client = openai.OpenAI(base_url=config.base_url, **shared)
    else:
        client = openai.AzureOpenAI(azure_endpoint=config.base_url or "", api_version=str(version), **shared)
    # The SDK reads these from the environment, but only the configuration may select the account.
    client.organization = config.organization
    client.project = config.project
    return client


def completions(client: Any, config: HostConfig) -> Callable[..., Any]:
    """Return the SDK's method for chat completions. Requests to a sandbox get a long timeout, because the
    first request loads the model, which may take minutes. All other requests use the client's usual
    timeout."""
    patient = client.with_options(timeout=SANDBOX_ANSWER_S) if config.sandbox else client
    return patient.chat.completions.create


def wire_of(config: HostConfig) -> Wire:
    return Wire(config.name, retry=Retry.of(config))
