"""What a job costs on its host, by the same rates and rules as quotes; and which models a host has."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from orchestrate import costing
from orchestrate.catalog import HostModel, resolve, search
from orchestrate.costing import rules
from orchestrate.errors import OrchestrateError
from orchestrate.sandbox.jobs import Job
from orchestrate.spec import DPO, RFT, SFT, Full, JobSpec, LoRA

MTOK = Decimal(1_000_000)


def base_model(name: str, host: str) -> HostModel | None:
    """A host's own id of a base model, from the catalog; `None` for names that the host does not know."""
    for model in search(provider=host):
        # OpenAI takes the names without a date, too, and resolves them.
        known = (model.name, *model.aliases) if host == "openai" else model.aliases
        if (found := model.hosts.get(host)) is not None and name in (found.id, *known):
            return found
    return None


def context_of(name: str, host: str, kind: str) -> int | None:
    """Most tokens of a training row."""
    return resolve(name, host).context(kind)


def tokenizer_of(base: str, host: str) -> str:
    """The counter that quotes use for this model."""
    return costing.tokenizer_for(resolve(base, host))


def billed_tokens(job: Job, *, packed: bool = True, context: int | None = None) -> tuple[int, int]:
    """Tokens of training and of evaluation that the host bills."""
    if job.host != "together":
        return job.tokens * job.epochs, 0
    per_epoch = job.tokens
    if not packed and context is not None:
        per_epoch = rules.together_unpacked_tokens(job.examples, context)
    return rules.together_tokens(per_epoch, job.epochs, job.validation_tokens, job.evals)


def training_usd(host: str, job: Job, *, full: bool = False, packed: bool = True) -> Decimal | None:
    """The price of the whole job, its minimum included; `None` where no price is published."""
    today = datetime.fromtimestamp(job.created_at, UTC).date()
    try:
        resolved = resolve(job.base, host, today)
    except OrchestrateError:
        return None
    method = {"sft": SFT(), "dpo": DPO(), "rft": RFT(grader={"type": "any"})}[job.kind]
    spec = JobSpec(model=job.base, train="-", method=method, adapter=Full() if full else LoRA())
    book = costing.built_in()
    rate = costing.training_rate(resolved, spec, prices=host, book=book, on=today)
    if rate is None or rate.usd_per_mtok is None:
        return None
    train, evaluation = billed_tokens(job, packed=packed, context=resolved.context(job.kind))
    usd = rate.usd_per_mtok * (train + evaluation) / MTOK
    minimum = book.find(host, "minimum", params_b=resolved.params_b, on=today)
    if minimum is not None:
        usd += rules.minimum_top_up(usd, minimum.usd)
    return usd


def nano_usd(usd: Decimal | None) -> int:
    """Together's unit of prices: 1e-9 dollars."""
    return int((usd or Decimal(0)) * 1_000_000_000)


def money(usd: Decimal) -> dict[str, object]:
    """Fireworks' form: whole units as a string, and nanos."""
    whole = int(usd)
    return {"currencyCode": "USD", "units": str(whole), "nanos": int((usd - whole) * 1_000_000_000)}
