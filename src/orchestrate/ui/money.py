"""The page of money: what was spent by month and backend, what is left, and what still bills, with the way to
end it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrate.spending import Found
from orchestrate.ui.site import Copy, Site

_BY = ("month", "backend", "tag")


def routes(site: Site) -> list[Route]:
    def page(request: Request) -> Response:
        """What the store knows. What the hosts say takes a while: the page asks for it by itself."""
        sandbox = bool(request.query_params.get("sandbox")) or site.ft.settings.hosts.sandboxed
        asked = "sandbox=True, " if sandbox else ""
        return site.page(
            request,
            "money.html",
            here="money",
            copy=Copy(
                command="orchestrate spending --by month,backend,tag" + (" --sandbox" if sandbox else ""),
                python="from orchestrate import Orchestrator\n\nwith Orchestrator() as ft:\n"
                f"    report = ft.spending({list(_BY)!r}, {asked}offline=True)\n"
                "    print(report.total.spent_usd, report.left_usd)",
            ),
            report=site.ft.spending(_BY, offline=True, sandbox=sandbox),
            sandbox=sandbox,
        )

    def standing(request: Request) -> Response:
        sandbox = bool(request.query_params.get("sandbox"))
        report = site.ft.spending(_BY, sandbox=sandbox)
        ends = {id(found): way for found in report.standing if (way := _way_to_end(found)) is not None}
        return site.page(request, "standing.html", here="money", report=report, ends=ends, way=id)

    return [Route("/money", page, methods=["GET"]), Route("/money/standing", standing, methods=["GET"])]


def _way_to_end(found: Found) -> tuple[str, str] | None:
    """The path and the label of the page that ends it; `None` for what is over, or not made from here."""
    if found.run is None or found.item.bills is False:
        return None
    if found.item.kind in ("job", "worker"):
        return f"/runs/{found.run}/do/cancel", "Cancel"
    return f"/runs/{found.run}/do/undeploy", "Take down"
