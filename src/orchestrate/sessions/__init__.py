"""Training sessions: your own loop controls the training step by step. The server implements Tinker's HTTP
API."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from starlette.types import Scope

from orchestrate.core.files import private_folder
from orchestrate.errors import MissingExtra
from orchestrate.http.web import LOOPBACK, Keyed, edge, serving
from orchestrate.local.model.files import source
from orchestrate.local.run.launcher import require_packages
from orchestrate.serving.server import keys
from orchestrate.workspace import Workspace

NEW_KEY = "create one with: orchestrate sessions serve --new-key NAME"
_WHAT = "serving training sessions"


@dataclass(frozen=True, kw_only=True)
class SessionTerms:
    """Options of a session server."""

    host: str = LOOPBACK
    port: int = 8100
    names: tuple[str, ...] = ()
    """Additional host names of the server."""
    called: tuple[str, ...] = ()
    """Additional names for the base model in requests, such as its Hub id."""
    most_at_once: int = 32
    threads: int | None = None
    device: str | None = None
    four_bit: bool | None = None
    """True to load the base model in 4-bit, or `None` to decide by its size."""
    precision: str | None = None


@dataclass(frozen=True)
class SessionsUp:
    url: str
    names: tuple[str, ...]
    keyed: bool
    """True if callers need a key from `new_key`."""


@contextmanager
def serve(ft: Workspace, base: str, terms: SessionTerms) -> Generator[SessionsUp]:
    """Serve training sessions for one base model until the block ends. Raises `UsageError` if other machines
    can reach the address and there are no keys, `SetupError` if the port is taken, and `MissingExtra` if
    packages are missing. Errors from loading the base model propagate."""
    require_packages(_WHAT)
    if find_spec("google.protobuf") is None:
        raise MissingExtra("sessions", _WHAT, "protobuf")
    from orchestrate.local.session_server import MOST_BODY, OPEN, SessionsApi, error_answer
    from orchestrate.local.session_server.service import SessionService

    clients = keys.Clients(ft.store, "sessions")
    clients.require(terms.host, NEW_KEY)
    opening = {
        "base": source(base),
        "threads": terms.threads,
        "device": terms.device,
        "four_bit": terms.four_bit,
        "precision": terms.precision,
        "most_rows": terms.most_at_once,
    }
    names = tuple(dict.fromkeys((base, *terms.called)))
    service = SessionService(private_folder(ft.settings.make_home() / "sessions"), opening, names)
    service.start()

    async def admit(scope: Scope) -> None:
        key = await clients.lately(scope)
        scope["key_name"] = "" if key is None else key.name

    api = SessionsApi(service)
    app = edge(
        api.routes(),
        door=lambda inner: Keyed(inner, admit, open=OPEN),
        names=terms.names,
        max_body=MOST_BODY,
        format_error=error_answer,
        lifespan=api.life,
    )
    try:
        with serving(app, host=terms.host, port=terms.port, lifespan=True) as url:
            yield SessionsUp(url, names, clients.needed)
    finally:
        service.close()


def new_key(ft: Workspace, name: str) -> str:
    """Create a key, which is shown only once. Raises `UsageError` if the name is invalid or can't be
    reused."""
    ft.settings.make_home()
    return keys.make(ft.store, name, by=ft.settings.made_by, opens="sessions")


def revoke_key(ft: Workspace, name: str) -> None:
    """Revoke a key. Servers that are already running stop accepting it too. Raises `UsageError` if no session
    key has this name."""
    keys.revoke(ft.store, name, by=ft.settings.made_by, opens="sessions")
