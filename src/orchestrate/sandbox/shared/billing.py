"""What a job costs on its host, by the same rates and rules as quotes; and which models a host has."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from orchestrate import costing
from orchestrate.catalog import HostModel, lookup, resolve
from orchestrate.costing import lines
from orchestrate.errors import OrchestrateError
from orchestrate.profile import profile
from orchestrate.sandbox.jobs import Job
from orchestrate.spec import DPO, RFT, SFT, Full, JobSpec, LoRA

MTOK = Decimal(1_000_000)


def base_model(name: str, host: str, *, undated: bool = False) -> HostModel | None:
    """A host's own id of a base model, from the catalog; `None` for names that the host does not know.
    `undated`: it takes names without a date, too, and resolves them."""
    model = lookup(name)
    if model is None or (found := model.hosts.get(host)) is None:
        return None
    known = (model.name, *model.aliases) if undated else model.aliases
    return found if name in (found.id, *known) else None


def context_of(name: str, host: str, kind: str) -> int | None:
    """Most tokens of a training row."""
    return resolve(name, host).context(kind)


def tokenizer_of(base: str, host: str) -> str:
    """The counter that quotes use for this model."""
    return costing.tokenizer_for(resolve(base, host))


def training_usd(host: str, job: Job, *, full: bool = False, tokens: int | None = None) -> Decimal | None:
    """The price of the whole job, its minimum included; `None` where no price is published. `tokens` are
    those billed, where they are not simply the file's in each epoch."""
    today = datetime.fromtimestamp(job.created_at, UTC).date()
    try:
        resolved = resolve(job.base, host, today)
    except OrchestrateError:
        return None
    method = {"sft": SFT(), "dpo": DPO(), "rft": RFT(grader={"type": "any"})}[job.kind]
    spec = JobSpec(model=job.base, train="-", method=method, adapter=Full() if full else LoRA())
    prices = costing.Prices(host, on=today)
    rate = costing.training_rate(resolved, spec, profile(host), prices)
    if rate is None or rate.usd_per_mtok is None:
        return None
    usd = rate.usd_per_mtok * (job.tokens * job.epochs if tokens is None else tokens) / MTOK
    minimum = prices.of("minimum", resolved)
    if minimum is not None:
        usd += lines.minimum_top_up(usd, minimum.usd)
    return usd


def nano_usd(usd: Decimal | None) -> int:
    """Together's unit of prices: 1e-9 dollars."""
    return int((usd or Decimal(0)) * 1_000_000_000)


def money(usd: Decimal) -> dict[str, object]:
    """Fireworks' form: whole units as a string, and nanos."""
    whole = int(usd)
    return {"currencyCode": "USD", "units": str(whole), "nanos": int((usd - whole) * 1_000_000_000)}
