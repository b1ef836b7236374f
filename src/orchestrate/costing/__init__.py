"""Quotes, bills and what a tuned model costs to run: arithmetic over rates that are data. Money is `Decimal`.

For a hosted backend (its `translate` gives the settings in effect, `catalog.resolve` the model):

    quote_tokens_job(Work(provider, profile, spec, data, translation, resolved), *, prices=None,
                     gpu_hours=None, sandbox=False) -> Quote
    bill(job, *, profile, spec, resolved, quote=None, hourly=None, prices=None, now=None) -> Bill | None

`Prices(name, book, on)` says under which name, in which book and for which day a rate is looked up. A quote
without a known price has `unavailable` set. Settings are read from the translation's rows named `epochs`,
`evals`, `packing` and `max_seq_length`; "auto" epochs mean that the host decides.

For a machine that is paid by the hour:

    local_rate(device="cpu", count=1) -> HourlyRate     electricity, or what the user set for `local`
    rental_rate("runpod", "H100 SXM", count=1, tier=None) -> HourlyRate
    quote_hours_job(Work(...), *, speed=Speed(...), hourly, startup_seconds=30, answers=None) -> Quote
    bill(..., hourly=...)                               measured hours x rate

For the service and the commands:

    bill_run(run, job, prices=None) -> Bill | None      `bill` for a tracked run, from its own quote
    tokenizer_for(resolved) -> str                      the counter that quotes use, for `Dataset.tokens`
    check_budget(quote, max_cost_usd=, budget_usd=, used_usd=)    raises `OverBudget`
    spending(run) -> Spending, which `Store.spending` sums; over_cap(run, bill) -> bool
    reconcile(run) -> Reconciliation | None; accuracy(runs) -> list[Accuracy]
    own(quote, Use(traffic, months=6, ...), *, resolved, profile, hourly=None, prices=None, portable=False)
                                                        -> Ownership; `portable`: served elsewhere too
    Traffic.parse("20k req/day, 900 in, 150 out"); base_price("gpt-4.1", traffic, saved_tokens=0) -> BasePrice
    default_base(traffic, months, on) -> BasePrice      one that lives through the period
    serving_terms(provider, model) -> str | None; cheapest(totals) -> Ownership | None; quoted_hour(quote)
    age_days(quote, today) -> int | None; worst_confidence(quote) -> Confidence

    user_book([settings.home, ...], ["local:owned=0.4"]) -> RateBook    under rates.yaml files, then --rate
    built_in() -> RateBook; load(path) -> list[Rate]; parse_flag(text, today) -> Rate
"""

from orchestrate.costing.baseline import BasePrice, base_price, default_base
from orchestrate.costing.bills import (
    Accuracy,
    Difference,
    Reconciliation,
    accuracy,
    bill,
    bill_run,
    quoted_hour,
    reconcile,
)
from orchestrate.costing.book import (
    Lookup,
    Rate,
    RateBook,
    built_in,
    load,
    parse_flag,
    require_used,
    user_book,
)
from orchestrate.costing.budget import Spending, UnknownPrice, caps, check_budget, over_cap, spending
from orchestrate.costing.elsewhere import rents
from orchestrate.costing.hours import (
    Answers,
    HourlyRate,
    Speed,
    local_rate,
    quote_hours_job,
    rental_rate,
    watts,
)
from orchestrate.costing.jobs import Priced, lookup, quote_tokens_job, training_rate
from orchestrate.costing.lines import age_days, worst_confidence
from orchestrate.costing.ownership import Ownership, Served, Use, cheapest, own, serving_terms
from orchestrate.costing.prices import Prices
from orchestrate.costing.recalled import quote_recalled, spec_of
from orchestrate.costing.size import Work, tokenizer_for
from orchestrate.costing.traffic import Traffic

__all__ = [
    "Accuracy",
    "Answers",
    "BasePrice",
    "Ownership",
    "Priced",
    "Served",
    "Prices",
    "Speed",
    "Traffic",
    "Use",
    "Work",
    "age_days",
    "base_price",
    "default_base",
    "cheapest",
    "own",
    "serving_terms",
    "worst_confidence",
    "Difference",
    "HourlyRate",
    "Lookup",
    "Rate",
    "RateBook",
    "Reconciliation",
    "Spending",
    "UnknownPrice",
    "accuracy",
    "bill",
    "bill_run",
    "built_in",
    "check_budget",
    "load",
    "lookup",
    "local_rate",
    "caps",
    "quote_recalled",
    "spec_of",
    "over_cap",
    "parse_flag",
    "quote_hours_job",
    "quoted_hour",
    "quote_tokens_job",
    "reconcile",
    "rental_rate",
    "rents",
    "require_used",
    "spending",
    "tokenizer_for",
    "training_rate",
    "user_book",
    "watts",
]
