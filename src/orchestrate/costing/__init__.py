"""Quotes, bills, and the cost of serving a tuned model, computed from rates in data files. Money is
`Decimal`.

A `PlannedJob` is billed by tokens (`quote_tokens_job`) or by hours (`quote_hours_job`). `Prices(name, book,
on)` looks up rates by host, rate book and day. A quote without a known price has `unavailable` set. Quotes
use the settings `epochs`, `evals`, `packing` and `max_seq_length` as translated for the backend. If epochs
are "auto", the host chooses them.
"""

from orchestrate.costing.bills import (
    Accuracy,
    BillDifference,
    Reconciliation,
    accuracy,
    bill,
    bill_run,
    host_bill,
    quoted_hour,
    reconcile,
)
from orchestrate.costing.expenses import Spending, cap_of, caps, check_budget, of_trial, spending
from orchestrate.costing.hardware import gpu_memory_bytes
from orchestrate.costing.lines import age_days, worst_confidence
from orchestrate.costing.ownership import (
    BasePrice,
    Ownership,
    Paid,
    ServingTotal,
    ServingUse,
    base_price,
    cheapest,
    default_base,
    own,
    rents,
    served_as,
    serving_terms,
)
from orchestrate.costing.rate import PLAY_MONEY, Lookup, Rate, require_used
from orchestrate.costing.rates import (
    Prices,
    RateBook,
    built_in,
    load,
    parse_flag,
    user_book,
)
from orchestrate.costing.size import PlannedJob, tokenizer_for
from orchestrate.costing.training import (
    HourlyRate,
    PricedJob,
    SampledAnswers,
    Speed,
    local_rate,
    lookup,
    quote_assumed,
    quote_hours_job,
    quote_recovered,
    quote_tokens_job,
    rental_rate,
    spec_of,
    training_rate,
    watts,
)
from orchestrate.costing.ways import Traffic
from orchestrate.paid.limits import UnknownPrice

__all__ = [
    "Accuracy",
    "SampledAnswers",
    "BasePrice",
    "Ownership",
    "Paid",
    "PricedJob",
    "ServingTotal",
    "Prices",
    "Speed",
    "Traffic",
    "ServingUse",
    "PlannedJob",
    "age_days",
    "base_price",
    "default_base",
    "gpu_memory_bytes",
    "cheapest",
    "own",
    "served_as",
    "serving_terms",
    "worst_confidence",
    "BillDifference",
    "HourlyRate",
    "Lookup",
    "PLAY_MONEY",
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
    "host_bill",
    "load",
    "lookup",
    "local_rate",
    "cap_of",
    "caps",
    "quote_assumed",
    "quote_recovered",
    "spec_of",
    "of_trial",
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
