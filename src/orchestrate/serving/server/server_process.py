"""Run a server and register it in the home folder, where other processes find it. Only the user who started
the server can add adapters."""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from orchestrate.core.files import private_folder, write_whole
from orchestrate.errors import HostUnavailable, SetupError, UsageError
from orchestrate.http.web import LOOPBACK, serving
from orchestrate.local.answers.provenance import four_bit_of
from orchestrate.local.model.adapters import changes_base
from orchestrate.local.model.files import source
from orchestrate.serving.server.app import Api
from orchestrate.serving.server.engine import EngineClient
from orchestrate.serving.server.keys import NEW_KEY, Clients
from orchestrate.serving.server.load import ServerLoad
from orchestrate.serving.tuned import TunedModel, hub_name, served_base
from orchestrate.store.store import Store
from orchestrate.types import Record


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Options of a server."""

    host: str = LOOPBACK
    port: int = 8000
    names: tuple[str, ...] = ()
    """Additional host names that the server accepts."""
    origins: tuple[str, ...] = ()
    """Origins of websites that may send requests."""
    most_at_once: int = 32
    most_waiting: int = 128
    most_tokens: int = 2048
    """The token limit for an answer if the request doesn't set one."""
    threads: int | None = None
    device: str | None = None
    four_bit: bool | None = None
    """True to load the base model in 4-bit. With `None`, the base model is loaded as it was when the adapters
    were trained. If this is unknown, the model's size decides."""
    precision: str | None = None
    """Data type for computation and for weights not quantized to 4 bits. `None` selects a type for the
    device."""
    batch_invariant: bool = False
    """True to answer requests at temperature 0 one at a time, as with `eval --batch 1`."""
    grace_s: float = 30.0
    """Seconds that a stopping server waits for answers in progress."""


class RunningServer(Record, frozen=True, kw_only=True):
    """A running server on this machine."""

    url: str
    pid: int
    base: str
    admin_key: str


@dataclass(frozen=True)
class ServingApp:
    url: str
    engine: EngineClient
    api: Api

    @property
    def models(self) -> list[str]:
        return self.api.names()


@contextmanager
def serve(
    tuned: Sequence[TunedModel], home: Path, store: Store, terms: ServerSettings, *, base: str | None = None
) -> Generator[ServingApp]:
    """Serve a base model and its adapters, each under its own name, until the block ends.

    Without tuned models, serves only the base model. Raises `UsageError` if the models cannot be served
    together, or if other machines can reach the address but no keys exist. Raises `SetupError` if the port is
    taken.
    """
    admin_key = secrets.token_urlsafe(32)
    clients = Clients(store, "serve", admin=admin_key)
    clients.require(terms.host, NEW_KEY)
    loading, base_name = loading_of(tuned, terms, base)
    engine = EngineClient(loading)
    try:
        engine.start()
        load = ServerLoad(terms.most_at_once, terms.most_waiting)
        api = Api(engine, base_name=base_name, load=load, clients=clients, admin_key=admin_key)
        app = api.app(names=terms.names, origins=terms.origins)
        with ExitStack() as ending:
            url = ending.enter_context(serving(app, host=terms.host, port=terms.port, grace_s=terms.grace_s))
            note = RunningServer(url=url, pid=os.getpid(), base=loading["base"], admin_key=admin_key)
            ending.enter_context(_noted(home, note))
            yield ServingApp(url, engine, api)
    finally:
        engine.close()


def require_own_names(tuned: Sequence[TunedModel]) -> None:
    """Raise `UsageError` if two models have the same name, because an engine could serve only one of them."""
    names = [t.name for t in tuned]
    if twice := [n for n in names if names.count(n) > 1]:
        raise UsageError(f"two models are named {twice[0]!r}", fix="pass one --as NAME per RUN")


def loading_of(
    tuned: Sequence[TunedModel], terms: ServerSettings, base: str | None
) -> tuple[dict[str, Any], str]:
    """Build the loading options for `EngineClient`, and return them with the base model's name. Raises
    `UsageError` for models that cannot be served together."""
    require_own_names(tuned)
    bases = {t.base_name for t in tuned}
    if base is not None:
        bases.add(hub_name(base))
    if len(bases) != 1:
        names = ", ".join(sorted(bases)) or "none"
        raise UsageError(
            f"a server can only serve one base model, but these models are based on {names}",
            fix="start one server per base model",
        )
    [base_name] = bases
    whole = [t for t in tuned if not t.adapter]
    if whole and len(tuned) > 1:
        raise UsageError(f"{whole[0].name} is a full fine-tune, not an adapter, so it must be served alone")
    called = whole[0].name if whole else served_base(base_name)
    if not whole and called in (t.name for t in tuned):
        raise UsageError(
            f"a tuned model and its base model have the same name: {called!r}",
            fix="pass one --as NAME per RUN",
        )
    for one in tuned:
        if one.adapter and changes_base(Path(one.folder)):
            raise UsageError(
                f"the adapter in {one.folder} modifies the base model, which all adapters share",
                fix="merge the adapter and serve it alone",
            )
    loading: dict[str, Any] = {
        "base": source(tuned[0].base if tuned else base or base_name),
        "base_name": called,
        "models": {t.name: str(t.folder) for t in tuned},
        "threads": terms.threads,
        "device": terms.device,
        "four_bit": four_bit_of(terms.four_bit, [t.folder for t in tuned]),
        "precision": terms.precision,
        "batch_invariant": terms.batch_invariant,
        "most_rows": terms.most_at_once,
        "most_tokens": terms.most_tokens,
    }
    return loading, loading["base_name"]


# -- registered servers ------------------------------------------------------------------------------------


@contextmanager
def _noted(home: Path, note: RunningServer) -> Generator[None]:
    path = private_folder(home / "servers") / f"{urlsplit(note.url).port}.json"
    write_whole(path, note.to_json(), private=True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def notes(home: Path) -> list[RunningServer]:
    """List the running servers that were started from this home folder."""
    found: list[RunningServer] = []
    for path in sorted((home / "servers").glob("*.json")):
        with suppress(OSError, msgspec.MsgspecError):
            found.append(RunningServer.from_json(path.read_bytes()))
    return found


def add(home: Path, tuned: TunedModel, url: str) -> float:
    """Add an adapter to a server that was started from this home folder, and return the loading time in
    seconds. Raises `UsageError` if no such server runs at `url` or it has a different base model,
    `HostUnavailable` if it does not answer, and `SetupError` if it rejects the adapter."""
    note = next((n for n in notes(home) if n.url == url), None)
    if note is None:
        raise UsageError(f"no server from this home folder is running at {url}")
    if note.base != source(tuned.base):
        raise UsageError(f"{url} serves {note.base}, but {tuned.name} is an adapter of {tuned.base}")
    body = _post(note, "/v1/load_lora_adapter", {"lora_name": tuned.name, "lora_path": str(tuned.folder)})
    return float(body["seconds"])


def _post(note: RunningServer, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {note.admin_key}"}
    try:
        done = httpx.post(note.url + path, json=dict(body), headers=headers, timeout=300)
    except httpx.HTTPError as error:
        raise HostUnavailable(note.url, f"no answer: {error}") from error
    answer: dict[str, Any] = done.json()
    if done.status_code != 200:
        raise SetupError(answer["error"]["message"])
    return answer
