"""The page of money: what was spent by month and backend, what is left, and what still bills, with the way to
end it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrate.spending.accounts import Found, SpendingReport
from orchestrate.ui.site import Copy, Site

_BY = ("month", "backend", "tag")


def routes(site: Site) -> list[Route]:
    def page(request: Request) -> Response:
        """What the store knows. What the hosts say takes a while, so the page loads it afterwards; read-only
        pages ask no host, since whoever has their address would use the owner's keys."""
        sandbox = bool(request.query_params.get("sandbox")) or site.ft.settings.hosts.sandboxed
        asked = "sandbox=True, " if sandbox else ""
        report = site.ft.spending(_BY, offline=True, sandbox=sandbox)
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
            report=report,
            budgets=[] if sandbox else _budgets(site, report),
            sandbox=sandbox,
        )

    def standing(request: Request) -> Response:
        sandbox = bool(request.query_params.get("sandbox"))
        report = site.ft.spending(_BY, sandbox=sandbox)
        ends = {id(found): way for found in report.standing if (way := _way_to_end(found)) is not None}
        return site.page(request, "standing.html", here="money", report=report, ends=ends, way=id)

    asking = [] if site.read_only else [Route("/money/standing", standing, methods=["GET"])]
    return [Route("/money", page, methods=["GET"]), *asking]


@dataclass(frozen=True)
class _Budget:
    """What may be spent, and by whom."""

    name: str
    usd: Decimal
    taken_usd: Decimal
    """Spent and committed."""

    @property
    def left_usd(self) -> Decimal:
        return self.usd - self.taken_usd


def _budgets(site: Site, report: SpendingReport) -> list[_Budget]:
    """That of the store, those of keys of the gateway, and those of what is deployed."""
    from orchestrate.service.serving import gateway

    found: list[_Budget] = []
    if report.budget_usd is not None and report.left_usd is not None:
        found.append(
            _Budget("all runs and deployments", report.budget_usd, report.budget_usd - report.left_usd)
        )
    for key, taken, _ in gateway.keys(site.ft):
        if key.budget_usd is not None:
            found.append(_Budget(f"the gateway's key {key.name}", key.budget_usd, taken))
    for one in site.ft.deployments():
        if one.record.max_cost_usd is not None:
            found.append(
                _Budget(f"deployment {one.id}", one.record.max_cost_usd, one.spent_usd or Decimal(0))
            )
    return found


def _way_to_end(found: Found) -> tuple[str, str] | None:
    """The path and the label of the page that ends it; `None` for what is over, or not made from here."""
    if found.run is None or found.item.bills is False:
        return None
    if found.item.kind in ("job", "worker"):
        return f"/runs/{found.run}/do/cancel", "Cancel"
    return f"/runs/{found.run}/do/undeploy", "Take down"
