"""The costs page: spending by month and backend, the remaining budget, and all resources that are still
billed, with buttons to end them."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Self

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrate.errors import UsageError
from orchestrate.runs.preparing import pricing
from orchestrate.runs.spending import Found, SpendingReport
from orchestrate.spec import JobSpec
from orchestrate.ui.site import HOST_PATIENCE_S, Copy, Site


@dataclass(frozen=True)
class Slider:
    name: str
    label: str
    low: int
    high: int
    step: int
    value: int


SLIDERS = (
    Slider("rows", "Rows", 100, 20_000, 100, 1_000),
    Slider("row_tokens", "Tokens per row", 50, 4_000, 50, 400),
    Slider("epochs", "Epochs", 1, 10, 1, 3),
    Slider("requests", "Requests per day", 0, 100_000, 500, 5_000),
    Slider("asked", "Tokens per request", 50, 8_000, 50, 900),
    Slider("answered", "Tokens per answer", 10, 2_000, 10, 150),
    Slider("months", "Months of serving", 1, 24, 1, 6),
)
_MODEL = "qwen3-8b"


@dataclass(frozen=True)
class CalculatorQuery:
    model: str
    numbers: dict[str, int]

    @classmethod
    def of(cls, request: Request) -> Self:
        """Read the sliders' values from a request. Raises `UsageError` unless all values are non-negative
        integers with at most nine digits."""
        given, numbers = request.query_params, dict[str, int]()
        for slider in SLIDERS:
            written = given.get(slider.name) or str(slider.value)
            if not written.isdecimal() or len(written) > 9:
                raise UsageError(f"{slider.label.lower()} must be an integer, got {written!r}")
            numbers[slider.name] = max(int(written), 0 if slider.low == 0 else 1)
        return cls(given.get("model", "").strip() or _MODEL, numbers)

    @property
    def traffic(self) -> str:
        n = self.numbers
        return f"{n['requests']} req/day, {n['asked']} in, {n['answered']} out"

    @property
    def spec(self) -> JobSpec:
        return JobSpec.parse({"model": self.model, "train": "unknown", "epochs": self.numbers["epochs"]})


def quote_routes(site: Site) -> list[Route]:
    def page(request: Request) -> Response:
        wanted = CalculatorQuery.of(request)
        n = wanted.numbers
        quotes = pricing.assumed(site.ft, wanted.spec, n["rows"], n["row_tokens"])
        totals: list[pricing.Ownership] = []
        if n["requests"]:
            use = pricing.use(wanted.traffic, months=n["months"])
            priced = [quote for quote in quotes if quote.price is not None]
            totals = pricing.ownership(site.ft, wanted.spec, priced, use)
        from orchestrate.reports import quotes as shown

        return site.page(
            request,
            "quote.html",
            here="quote",
            copy=_copy(wanted),
            wanted=wanted,
            sliders=SLIDERS,
            models=[model.name for model in site.ft.models()],
            quotes=quotes,
            totals=sorted(
                (way for total in totals for way in total.options),
                key=lambda total: total.rank,
            ),
            verdict=shown.ownership_verdict(totals) if totals else "",
        )

    return [Route("/quote", page, methods=["GET"])]


def _copy(wanted: CalculatorQuery) -> Copy:
    n = wanted.numbers
    serving = f' --traffic "{wanted.traffic}" --months {n["months"]}' if n["requests"] else ""
    return Copy(
        command=f"orchestrate quote --model {wanted.model} --train FILE --epochs {n['epochs']}{serving}",
        python="from orchestrate import JobSpec, Orchestrator\n"
        "from orchestrate.runs.preparing import pricing\n\n"
        f"spec = JobSpec(model={wanted.model!r}, train='unknown', epochs={n['epochs']})\n"
        "with Orchestrator() as ft:\n"
        f"    for quote in pricing.assumed(ft, spec, {n['rows']}, {n['row_tokens']}):\n"
        "        print(quote.provider, quote.expected_usd, quote.why_none)",
    )


_BY = ("month", "backend", "tag")


def routes(site: Site) -> list[Route]:
    def page(request: Request) -> Response:
        """Show costs from the store. The page loads the hosts' data later, because querying hosts is slow.
        Read-only pages don't query hosts: anyone with the link would be using the owner's keys."""
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

    def billed_page(request: Request) -> Response:
        sandbox = bool(request.query_params.get("sandbox"))
        report = site.ft.spending(_BY, sandbox=sandbox, patience_s=HOST_PATIENCE_S)
        ends = {id(found): way for found in report.standing if (way := _way_to_end(found)) is not None}
        return site.page(request, "standing.html", here="money", report=report, ends=ends, way=id)

    asking = [] if site.read_only else [Route("/money/standing", billed_page, methods=["GET"])]
    return [Route("/money", page, methods=["GET"]), *asking]


@dataclass(frozen=True)
class _Budget:
    """A budget and its owner."""

    name: str
    usd: Decimal
    taken_usd: Decimal
    """The amount spent or reserved."""

    @property
    def left_usd(self) -> Decimal:
        return self.usd - self.taken_usd


def _budgets(site: Site, report: SpendingReport) -> list[_Budget]:
    """Return the budgets of the store, of gateway keys and of deployments."""
    from orchestrate.gateway import launch as gateway

    found: list[_Budget] = []
    if report.budget_usd is not None and report.left_usd is not None:
        found.append(
            _Budget("all runs and deployments", report.budget_usd, report.budget_usd - report.left_usd)
        )
    for key, taken, _ in gateway.keys(site.ft):
        if key.budget_usd is not None:
            found.append(_Budget(f"the gateway's key {key.name}", key.budget_usd, taken))
    for one in site.ft.deployments():
        if one.record.max_cost_usd is not None and not one.record.sandbox:
            found.append(
                _Budget(f"deployment {one.id}", one.record.max_cost_usd, one.spent_usd or Decimal(0))
            )
    return found


def _way_to_end(found: Found) -> tuple[str, str] | None:
    """Return the path and label of the page that ends a resource. `None` if it has ended or was not created
    by this store."""
    if found.run is None or found.item.bills is False:
        return None
    if found.item.kind in ("job", "worker"):
        return f"/runs/{found.run}/do/cancel", "Cancel"
    return f"/runs/{found.run}/do/undeploy", "Take down"
