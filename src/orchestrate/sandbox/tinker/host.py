"""The Tinker host: training sessions with the tiny model, simulated by the server of `orchestrate sessions
serve`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from orchestrate.core import days
from orchestrate.costing import PLAY_MONEY, built_in
from orchestrate.profile import HUB_ID
from orchestrate.sandbox import stepped
from orchestrate.sandbox.host import SESSION_NOTICE, Host, HostError, route
from orchestrate.sandbox.uploads import AcceptedRows

if TYPE_CHECKING:
    from orchestrate.local.session_server import SessionsApi


class TinkerHost(Host):
    name = "tinker"
    title = "Tinker"
    place = 3
    taken = AcceptedRows(message_fields=frozenset())
    usual_rate = 1e-4
    endless: ClassVar[dict[str, Any]] = {}
    key_prefix = "tml-"
    own_faults = stepped.FAULTS

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._api: SessionsApi | None = None
        self._refusal = "training sessions are unavailable, because this sandbox was started without training"
        if self.settings.train and find_spec("google.protobuf") is None:
            self._refusal = "training sessions need protobuf: pip install 'orchestrate-ft[sessions]'"
        elif self.settings.train:
            self._api = self._served()
            self.life = self._api.life

    def _served(self) -> SessionsApi:
        from orchestrate.local.session_server import SessionsApi
        from orchestrate.local.session_server.service import SessionService

        service = stepped.session_service(self, SessionService, lambda name: HUB_ID.match(name) is not None)
        rates = {
            kind: built_in().find(PLAY_MONEY, f"session_{kind}", on=days.today())
            for kind in ("train", "prefill", "sample")
        }
        prices = {kind: rate.usd for kind, rate in rates.items() if rate is not None}
        return SessionsApi(service, notice=SESSION_NOTICE, prices=prices)

    def routes(self) -> list[BaseRoute]:
        if self._api is not None:
            return self._api.routes()
        return [
            route("/api/v1/healthz", "GET", lambda request: JSONResponse({"status": "ok"})),
            route("/api/v1/{path:path}", "POST", self._refuse),
        ]

    def _refuse(self, request: Request) -> Response:
        del request
        raise HostError(400, self._refusal)

    def error(self, error: HostError) -> Response:
        return JSONResponse(
            {"detail": error.message, "code": error.code}, error.status, headers=error.headers
        )

    def create_many(self, bodies: list[dict[str, Any]]) -> list[str]:
        raise HostError(400, "Tinker has no jobs, only training sessions")

    def env(self, key: str) -> dict[str, str]:
        return {
            "TINKER_BASE_URL": self.base_url,
            "TINKER_API_KEY": f"{self.key_prefix}{key}",
            "TINKER_TELEMETRY": "0",
        }

    def open_sessions(self) -> list[str]:
        """List the ids of open sessions of all accounts."""
        return [] if self._api is None else list(self._api.service.callers)

    async def suffer(self, kind: str, delay_s: float) -> Response | None:
        return await stepped.suffer(self._api, kind, delay_s)

    def close(self) -> None:
        if self._api is not None:
            self._api.service.close()


HOST = TinkerHost
