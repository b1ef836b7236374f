"""Tools that spend money, end runs or take down deployments. Each shows the user the amount and asks for
approval first."""

# No `from __future__ import annotations`: building a tool evaluates its annotations to resolve its
# parameters.
import threading
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.resolve import Elicit, Resolve
from pydantic import BaseModel, Field

from orchestrate.api.orchestrator import Orchestrator
from orchestrate.errors import UsageError
from orchestrate.mcp.read_tools import SpecGiven, run_line, safe_tool
from orchestrate.paid.consent import require_hourly_price
from orchestrate.paid.limits import require_price, require_within
from orchestrate.runs.evaluation.held_out import EvaluationOrder, EvaluationPlan, PreparedEvaluation
from orchestrate.runs.hosting.deployment import question
from orchestrate.runs.tracked import ending_question, sandbox_notice
from orchestrate.text import count, inert, joined, money, quoted
from orchestrate.types import DeploymentOffer

MOST_HOURS = 24 * 31
"""Maximum deployment time that an agent may request."""


class Agreement(BaseModel):
    """The user's answer to a request for approval."""

    answer: Literal["yes", "no"] = Field(description="Approve?")


class AgentBudget:
    """The spending limit of this server. Each approved action counts toward the limit at the high end of its
    price range."""

    def __init__(self, limit_usd: Decimal | None) -> None:
        self.limit_usd = limit_usd
        self.taken_usd = Decimal(0)
        self._lock = threading.Lock()

    def require(self, provider: str, high_usd: Decimal) -> None:
        """Raise `OverBudget` if the amount would exceed the limit."""
        what = "this server's remaining --max-cost"
        require_within(provider, high_usd, self.limit_usd, taken_usd=self.taken_usd, what=what)

    def take(self, provider: str, high_usd: Decimal) -> None:
        with self._lock:
            self.require(provider, high_usd)
            self.taken_usd += high_usd


Tool = Callable[..., Any]


def tools(ft: Orchestrator, budget: AgentBudget) -> list[Tool]:
    """Build the tools that need approval. Each tool has a resolver that asks the user. The resolver runs
    before the tool and again after the user has answered. If the price has changed in the meantime, the
    resolver asks again."""
    makers = (_submitting, _evaluating, _deploying, _ending, _taking_down)
    return [make(ft, budget) for make in makers]


def _submitting(ft: Orchestrator, budget: AgentBudget) -> Tool:
    def ask_submit(spec: SpecGiven, provider: str, ctx: Context) -> Elicit[Agreement]:
        [name] = ft.backends(provider)
        asked = spec.read()
        ft.require(asked, name)
        prepared = ft.prepare(asked, name)
        ft.preflight(prepared, name)
        quote = prepared.offer(name).quote
        require_price(name, quote.high_usd, budget.limit_usd, quote.why_none)
        budget.require(name, quote.held_usd)
        price = quoted(quote)
        sandbox = "SANDBOX: nothing is billed. " if ft.provider(name).config.sandbox else ""
        question = f"{sandbox}Train {quote.model} on {ft.provider(name).profile.title}? {price}"
        return put(ctx, question, f"orchestrate submit -p {name}")

    def submit(
        spec: SpecGiven, provider: str, agreed: Annotated[Agreement, Resolve(safe_tool(ask_submit))]
    ) -> dict[str, Any]:
        """Start exactly one training run on one backend. SPENDS MONEY: the user sees the price and must
        approve it first. Repeating the call does not start a second run."""
        require(agreed)
        prepared = ft.prepare(spec.read(), provider)
        high_usd = prepared.offer(provider).quote.held_usd
        budget.take(provider, high_usd)
        return run_line(ft.submit(prepared, provider, max_cost_usd=prepared_limit(high_usd)).record)

    return submit


def _evaluating(ft: Orchestrator, budget: AgentBudget) -> Tool:
    def ask_evaluate(runs: list[str], test: str | None, metric: str, ctx: Context) -> Elicit[Agreement]:
        order = EvaluationOrder(test=test, metrics=[metric])
        with PreparedEvaluation(ft, runs, order) as prepared:
            planned = prepared.plan()
        expected, high = planned.expected_usd, _answers_usd(budget, planned)
        price = "the price per token is unknown"
        if expected is not None and high is not None:
            price = f"about {money(expected)}, at most {money(high)}"
        budget.require("evaluate", high or Decimal(0))
        sent = count(sum(a.questions for a in planned.asked), "request")
        notice = sandbox_notice(ft.run(runs[0].partition("@")[0]).record)
        names, rows = joined([one.contender for one in planned.asked]), test or "held-out rows"
        question = f"{notice}Send {sent} to evaluate {names} on {rows} ({price})?"
        return put(ctx, question, f"orchestrate eval {' '.join(runs)}")

    def evaluate(
        runs: list[str],
        agreed: Annotated[Agreement, Resolve(safe_tool(ask_evaluate))],
        test: str | None = None,
        metric: str = "auto",
    ) -> dict[str, Any]:
        """Evaluate tuned models and their bases on held-out rows, with confidence intervals. SPENDS MONEY:
        the user sees the price and must approve it first."""
        require(agreed)
        order = EvaluationOrder(test=test, metrics=[metric])
        with PreparedEvaluation(ft, runs, order) as prepared:
            high = _answers_usd(budget, prepared.plan())
        budget.take("evaluate", high or Decimal(0))
        with PreparedEvaluation(ft, runs, replace(order, max_cost_usd=high)) as agreed_to:
            found = agreed_to.run()
        return {
            "id": found.id,
            "items": found.items,
            "measures": [measure.to_dict() for measure in found.measures],
            "differences": [difference.to_dict() for difference in found.differences],
            "verdicts": [verdict.to_dict() for verdict in found.verdicts],
        }

    return evaluate


def _answers_usd(budget: AgentBudget, planned: EvaluationPlan) -> Decimal | None:
    """Return the maximum cost of the answers. Raises `UsageError` if it is unknown and there is a limit."""
    unknown, fix = (
        "the price per token of these answers is unknown",
        "run this in a terminal: orchestrate eval RUN",
    )
    require_price("evaluate", planned.high_usd, budget.limit_usd, unknown, fix)
    return planned.high_usd


def _deploying(ft: Orchestrator, budget: AgentBudget) -> Tool:
    def offered(run: str, max_hours: float) -> tuple[DeploymentOffer, Decimal]:
        """Return the offer to approve, and its maximum cost."""
        if not 0 < max_hours <= MOST_HOURS:
            raise UsageError(
                f"max_hours must be above 0 and at most {MOST_HOURS} hours (one month), got {max_hours:g}"
            )
        offer = ft.run(run).deployment_offer(max_hours=max_hours)
        fix = f"run this in a terminal: orchestrate deploy {offer.run_id}"
        require_hourly_price(offer.provider, offer.most_usd, accepted=False, fix=fix)
        return offer, offer.most_usd or Decimal(0)

    def ask_deploy(run: str, max_hours: float, ctx: Context) -> Elicit[Agreement]:
        offer, most_usd = offered(run, max_hours)
        budget.require(offer.provider, most_usd)
        return put(ctx, question(offer), f"orchestrate deploy {offer.run_id}")

    def deploy(
        run: str, max_hours: float, agreed: Annotated[Agreement, Resolve(safe_tool(ask_deploy))]
    ) -> dict[str, Any]:
        """Deploy a tuned model on its host's GPUs for at most `max_hours`. BILLS HOURLY until then or until
        `undeploy`: the user sees the price and must approve it first."""
        require(agreed)
        offer, most_usd = offered(run, max_hours)
        budget.take(offer.provider, most_usd)
        up = ft.run(run).deploy(max_hours=max_hours, max_usd_per_hour=offer.usd_per_hour)
        return up.record.to_dict()

    return deploy


def _ending(ft: Orchestrator, _budget: AgentBudget) -> Tool:
    def ask_cancel(run: str, ctx: Context) -> Elicit[Agreement]:
        handle = ft.run(run)
        return put(ctx, ending_question(handle.record), f"orchestrate cancel {handle.id}")

    def cancel(run: str, agreed: Annotated[Agreement, Resolve(safe_tool(ask_cancel))]) -> dict[str, Any]:
        """Cancel a run permanently. Requires the user's approval."""
        require(agreed)
        return run_line(ft.run(run).cancel())

    return cancel


def _taking_down(ft: Orchestrator, _budget: AgentBudget) -> Tool:
    def ask_undeploy(run: str, ctx: Context) -> Elicit[Agreement]:
        handle = ft.run(run)
        notice = sandbox_notice(handle.record)
        question = f"{notice}Take down {handle.id}? Its clients will get no more answers."
        return put(ctx, question, f"orchestrate undeploy {handle.id}")

    def undeploy(run: str, agreed: Annotated[Agreement, Resolve(safe_tool(ask_undeploy))]) -> dict[str, Any]:
        """Take down a deployed model, which stops its billing. Requires the user's approval."""
        require(agreed)
        found = ft.run(run).undeploy()
        return {"run": run, "deployment": None if found is None else found.record.to_dict()}

    return undeploy


def put(ctx: Context, question: str, command: str) -> Elicit[Agreement]:
    """Ask the user a question. Line breaks are replaced by spaces, so a line break inside a name can't fake
    extra text. Raises `UsageError` if the client does not support elicitation."""
    question = " ".join(inert(question).split())
    capabilities = ctx.client_capabilities
    if capabilities is None or capabilities.elicitation is None:
        raise UsageError(
            "this needs your approval, but the MCP client does not support elicitation. Nothing was done. "
            f"The question was: {question}",
            fix=f"{command}   in a terminal",
        )
    return Elicit(question, Agreement)


def require(agreed: Agreement) -> None:
    """Raise `UsageError` unless the user approved."""
    if agreed.answer != "yes":
        raise UsageError("nothing was done because the user declined")


def prepared_limit(high_usd: Decimal) -> Decimal | None:
    """Return the approved amount as the limit, or `None` for a run without a price."""
    return high_usd or None
