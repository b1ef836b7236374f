"""Start the hosts of a sandbox on loopback addresses, in one thread of this process."""

from __future__ import annotations

import asyncio
import secrets
import socket
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrate.core.files import locked, private_folder
from orchestrate.errors import SetupError, UsageError
from orchestrate.http.web import Patient, edge, listen, running
from orchestrate.sandbox.front import Fault, Front, control_routes
from orchestrate.sandbox.host import Host
from orchestrate.sandbox.jobs import SLOTS, Durations, SandboxSettings
from orchestrate.sandbox.starts import URLS_KEPT, AlreadyUp, Start, StartOptions, last_start
from orchestrate.sandbox.state import SandboxClock, SandboxState
from orchestrate.sandbox.training import Trainer
from orchestrate.settings.config import SANDBOX_KEY_PREFIX
from orchestrate.types import decoding

if TYPE_CHECKING:
    from orchestrate.local import RunDir


_MOST_BODY = 8 << 30
"""Maximum size of a request in bytes. Each host has its own limits for files."""


def dialect(kind: str) -> type[Host]:
    """Load the simulation of a host that a profile file describes. Raises `UsageError` if the sandbox does
    not simulate the profile's API."""
    [file] = Path(__file__).parent.glob("*/dialect.py")
    return import_module(f"orchestrate.sandbox.{file.parent.name}.dialect").dialect(kind)


def simulated_hosts() -> list[type[Host]]:
    """List the simulated hosts, one for each folder with a `host` module, in the order of their ports."""
    here = Path(__file__).parent
    found = [import_module(f"orchestrate.sandbox.{file.parent.name}.host") for file in here.glob("*/host.py")]
    return sorted((module.HOST for module in found), key=lambda host: host.place)


def _listen(port: int, *, requested: int) -> socket.socket:
    """Listen on the requested port, or on the port of the last start if it is still free."""
    try:
        return listen(port)
    except SetupError:
        if requested:
            raise
        return listen(0)


class _Protocol(Patient):
    """HTTP/1.1 protocol that gives requests access to their connection, which faults can close."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


@dataclass(frozen=True)
class Sandbox:
    """A running sandbox. Its methods do the same as the endpoints under `/_sandbox`."""

    env: dict[str, str]
    """Environment variables for clients: base URLs, keys, account ids."""
    urls: dict[str, str]
    """Root URL of each host, by name."""
    home: Path
    clock: SandboxClock
    fronts: Mapping[str, Front]

    def fault(self, host: str, kind: str, **fields: Any) -> None:
        """Inject a fault on one host. `orchestrate.sandbox.front` lists the fields."""
        self.fronts[host].faults.add([decoding.convert({"kind": kind, **fields}, Fault)])

    def clear_faults(self) -> None:
        for front in self.fronts.values():
            front.faults.clear()

    def requests(
        self, host: str | None = None, *, method: str | None = None, path: str | None = None
    ) -> list[dict[str, Any]]:
        """List the latest requests (2,000 per host), oldest first. Each has `at`, `method`, `path`, `query`
        and `body`, without secrets. `method` limits the list to one HTTP method, and `path` to paths that
        contain this text."""
        fronts = [self.fronts[host]] if host else list(self.fronts.values())
        found = [entry for front in fronts for entry in front.log.report(method, path)["recent"]]
        return sorted(found, key=lambda entry: entry["at"])

    def count(self, host: str | None = None, *, method: str | None = None, path: str | None = None) -> int:
        """Count the requests since the start or the last `clear_requests`."""
        fronts = [self.fronts[host]] if host else list(self.fronts.values())
        return sum(front.log.report(method, path)["total"] for front in fronts)

    def clear_requests(self) -> None:
        for front in self.fronts.values():
            front.log.clear()

    def create_jobs(self, host: str, bodies: Sequence[Mapping[str, Any]]) -> list[str]:
        """Create jobs from request bodies without HTTP. If the jobs are not trained, this creates thousands
        of them per second."""
        return self.fronts[host].host.create_many([dict(body) for body in bodies])

    def set_credit(self, usd: float) -> None:
        """Set the account's credit limit. Together's `allowed_to_proceed` is false for jobs with a higher
        estimated price."""
        for front in self.fronts.values():
            front.host.settings.credit_usd = usd

    def skip(self, seconds: float) -> None:
        """Move the sandbox's clock forward."""
        self.clock.skip(seconds)


@contextmanager
def serve(  # noqa: PLR0913  each is a setting of its own
    *,
    home: str | Path | None = None,
    speed: float = 1.0,
    model: str | None = None,
    train: bool = True,
    slots: int = SLOTS,
    threads: int = 1,
    ports: Sequence[int] = (),
    waits: Durations | None = None,
    also: Sequence[str] = (),
    start: Callable[[RunDir], None] | None = None,
) -> Generator[Sandbox]:
    """Serve the sandbox. See `orchestrate.sandbox.running`."""
    with ExitStack() as opened, _home(home) as folder, locked(folder / "lock") as held:
        if not held:
            raise AlreadyUp(folder)
        kinds = [*simulated_hosts(), *(dialect(kind) for kind in also)]
        before, base = last_start(folder), _model(model, train)
        requested = [*ports, *[0] * (len(kinds) - len(ports))]
        sockets = [
            opened.enter_context(closing(_listen(port or before.ports.get(kind.name, 0), requested=port)))
            for port, kind in zip(requested, kinds, strict=True)
        ]
        state = SandboxState(folder)
        clock = SandboxClock(state, speed)
        settings = SandboxSettings(train=train, waits=waits or Durations())
        trainer = Trainer(state, clock, settings, model=base, slots=slots, threads=threads, start=start)
        hosts = {kind.name: kind(state, clock, trainer, settings) for kind in kinds}
        fronts: dict[str, Front] = {}
        urls: dict[str, str] = {}
        key = _key(state)
        for host, sock in zip(hosts.values(), sockets, strict=True):
            host.base_url = urls[host.name] = f"http://127.0.0.1:{sock.getsockname()[1]}"
            front = fronts[host.name] = Front(host, key)
            front.app = edge(host.routes(), max_body=_MOST_BODY, format_error=host.error, lifespan=host.life)
            front.control = edge(
                control_routes(host, front, clock), max_body=_MOST_BODY, format_error=host.error
            )
        env = {name: value for host in hosts.values() for name, value in host.env(key).items()}
        options = StartOptions(
            speed=speed, train=train, slots=slots, threads=threads, model=model, also=tuple(also)
        )
        bound = {host.name: sock.getsockname()[1] for host, sock in zip(hosts.values(), sockets, strict=True)}
        were = tuple(dict.fromkeys([*before.urls, *urls.values()]))[-URLS_KEPT:]
        start_now = Start(env=env, ports=bound, urls=were, ways=options)
        state.set("start", msgspec.json.encode(start_now).decode())
        trainer.start(hosts)
        try:
            with running(
                list(zip(fronts.values(), sockets, strict=True)), protocol=_Protocol, grace_s=1, lifespan=True
            ):
                yield Sandbox(env=env, urls=urls, home=folder, clock=clock, fronts=fronts)
        finally:
            trainer.stop()
            for host in hosts.values():
                host.close()
            state.close()


def _model(given: str | None, train: bool) -> str:
    """Return the folder of the model that replaces every base model. Raises `UsageError` if the folder does
    not exist."""
    from orchestrate.catalog import find, resolve
    from orchestrate.profile import this_machine

    here = this_machine().kind
    if given is not None:
        folder = Path(given).expanduser().resolve()
        if not (folder / "config.json").is_file():
            raise UsageError(f"{given} is not a model folder, because it has no config.json")
        return str(folder)
    return resolve("tiny-chat", here).id if train else find("tiny-chat").ids[here]


def _key(state: SandboxState) -> str:
    """Return one key per home, so that a client's environment survives a restart."""
    key = state.setting("key", "") or SANDBOX_KEY_PREFIX + secrets.token_hex(12)
    state.set("key", key)
    return key


@contextmanager
def _home(home: str | Path | None) -> Generator[Path]:
    if home is not None:
        folder = Path(home).expanduser().resolve()
        private_folder(folder)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="orchestrate-sandbox-", ignore_cleanup_errors=True) as made:
        yield Path(made)
