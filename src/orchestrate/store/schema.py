"""The tables, which are the same on SQLite and Postgres.

Times are fixed-width ISO strings in UTC, amounts are `Decimal` strings, and records are JSON, so both
databases contain the same values. A run's row is derived from its transitions. Its `record` contains the
entire `Run`, and the other columns are for searching.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    DDL,
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    event,
    false,
    text,
)

from orchestrate.core.progress import cost_so_far
from orchestrate.types import Run

metadata = MetaData()
_CELL, _WORDS = 100, 360
"""Maximum lengths in characters. `_CELL` is for an indexed value, because Postgres limits an index entry to
2,704 bytes. `_WORDS` is for the searchable text."""

VERSION = 11
APPLICATION_ID = 0x4F524348
"""`ORCH` in ASCII. Orchestrate writes it to the header of each SQLite file that it creates."""

meta = Table(
    "orchestrate_meta",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

LISTED = (
    "provider", "status", "phase", "sandbox", "archived", "title", "model", "cost", "updated_at", "words",
)  # fmt: skip

runs = Table(
    "runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("ref", String(64), nullable=False, unique=True),
    Column("name", String(64)),
    Column("provider", String(64), nullable=False),
    Column("host", Text, nullable=False),
    Column("sandbox", Boolean, nullable=False),
    Column("phase", String(32), nullable=False),
    Column("status", String(32), nullable=False),
    Column("job_id", Text),
    Column("spec_hash", String(64), nullable=False),
    Column("dataset_digest", String(64), nullable=False),
    Column("created_at", String(40), nullable=False),
    Column("updated_at", String(40), nullable=False),
    Column("attempt", Integer, nullable=False, default=0),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    # True once the run has ended and its last events, metrics and bill are stored. The host is not queried
    # about it again.
    Column("closed", Boolean, nullable=False, default=False),
    Column("due_at", String(40), nullable=False),
    Column("bill_usd", Text),
    Column("committed_usd", Text),
    Column("record", Text, nullable=False),
    Column("account", Text),
    Column("idempotency_key", String(255)),
    Column("made_by", Text),
    # Columns that lists show, filter and sort by. `listed` computes their values.
    Column("title", Text, nullable=False, server_default=""),
    Column("model", Text, nullable=False, server_default=""),
    Column("cost", Float),
    Column("archived", Boolean, nullable=False, server_default=false()),
    Column("words", Text, nullable=False, server_default=""),
    # Key of the row of `expense_groups` whose sums include this run. NULL if reports read the run itself.
    Column("group_key", String(32)),
    # Contains all columns that lists filter and sort by, so only the records themselves are read from the
    # table.
    Index("runs_listed", "created_at", "id", *LISTED),
    Index("runs_by_change", "updated_at"),
    Index("runs_open", "closed", "provider"),
    Index("runs_by_job", "provider", "job_id"),
    Index("runs_by_any_job", text("lower(job_id)")),
    Index("runs_by_group", "group_key", "sandbox"),
    Index("runs_by_key", "idempotency_key", unique=True),
)

run_tags = Table(
    "run_tags",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("name", String(100), primary_key=True),
    Column("value", String(100), nullable=False),
    Index("run_tags_by_name", "name", "value", "run_id"),
)

transitions = Table(
    "transitions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("run_id", String(64), nullable=False, index=True),
    Column("at", String(40), nullable=False),
    Column("phase", String(32), nullable=False),
    Column("status", String(32), nullable=False),
    Column("raw_status", Text),
    Column("attempt", Integer, nullable=False),
    Column("actor", Text, nullable=False),
    Column("note", Text),
)

events = Table(
    "events",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("run_id", String(64), nullable=False),
    Column("id", Text, nullable=False),
    Column("from_host", Boolean, nullable=False),
    Column("at", String(40), nullable=False),
    Column("record", Text, nullable=False),
    Index("events_once", "run_id", "id", unique=True),
)

metrics = Table(
    "metrics",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("record", Text, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("id", String(255), primary_key=True),
    Column("record", Text, nullable=False),
)

uploads = Table(
    "uploads",
    metadata,
    Column("provider", String(64), primary_key=True),
    Column("host", String(255), primary_key=True),
    Column("account", String(255), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("at", String(40), nullable=False),
    Column("record", Text, nullable=False),
)

records = Table(
    "records",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("run_id", String(64), nullable=False, index=True),
    Column("kind", String(32), nullable=False),
    Column("at", String(40), nullable=False),
    Column("record", Text, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("owner", Text),
    Column("fence", Integer, nullable=False),
    Column("expires_at", String(40), nullable=False),
    Column("boot", Text, nullable=False),
    Column("expires_uptime", Float, nullable=False),
)

stamps = Table(
    "stamps",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("boot", String(255), primary_key=True),
    Column("uptime", Float, nullable=False),
)

# Uptimes of a machine when it first and last saw a run with the same mark. The mark changes whenever the run
# shows activity.
silences = Table(
    "silences",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("boot", String(255), primary_key=True),
    Column("mark", String(64), nullable=False),
    Column("since", Float, nullable=False),
    Column("seen", Float, nullable=False),
    Column("told", Float),
)

notifications = Table(
    "notifications",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("channel", String(255), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("owner", Text, nullable=False),
    Column("at", String(40), nullable=False),
)


deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(255), primary_key=True),
    Column("at", String(40), nullable=False),
)

pauses = Table(
    "pauses",
    metadata,
    Column("account", String(255), primary_key=True),
    Column("since", String(40), nullable=False),
    Column("until", String(40), nullable=False),
)

# Groups ids that belong to one account, because an account with several keys, or on a host that only recently
# began to report account ids, has several. An id without a row belongs to no group.
accounts = Table(
    "accounts",
    metadata,
    Column("provider", String(64), primary_key=True),
    Column("host", String(255), primary_key=True),
    Column("id", String(255), primary_key=True),
    Column("first_id", String(255), nullable=False),
)

# A row is derived from the deployment's transitions. At most one deployment of a job is not over.
deployments = Table(
    "deployments",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("run_id", String(64), nullable=False, index=True),
    Column("provider", String(64), nullable=False),
    Column("host", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("sandbox", Boolean, nullable=False),
    Column("state", String(32), nullable=False),
    Column("over", Boolean, nullable=False),
    Column("created_at", String(40), nullable=False),
    Column("updated_at", String(40), nullable=False),
    Column("attempt", Integer, nullable=False, default=0),
    Column("record", Text, nullable=False),
)
# Plain SQL, because an Index with a condition for Postgres would import that dialect in every command.
event.listen(
    deployments,
    "after_create",
    DDL('CREATE UNIQUE INDEX deployments_once ON deployments (provider, job_id) WHERE NOT "over"'),
)

deployment_transitions = Table(
    "deployment_transitions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("deployment_id", String(64), nullable=False, index=True),
    Column("at", String(40), nullable=False),
    Column("state", String(32), nullable=False),
    Column("raw_state", Text),
    Column("attempt", Integer, nullable=False),
    Column("actor", Text, nullable=False),
    Column("note", Text),
)

reviews = Table(
    "reviews",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("at", String(40), nullable=False),
    Column("record", Text, nullable=False),
)

# Append-only. A rater's last rating of a task counts.
ratings = Table(
    "ratings",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("review_id", String(64), nullable=False, index=True),
    Column("at", String(40), nullable=False),
    Column("record", Text, nullable=False),
)

# How well each judge agrees with human raters. A new calibration replaces the judge's earlier one.
calibrations = Table(
    "calibrations",
    metadata,
    Column("judge", String(64), primary_key=True),
    Column("at", String(40), nullable=False),
    Column("record", Text, nullable=False),
)

gateway_keys = Table(
    "gateway_keys",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("record", Text, nullable=False),
)

# Files, uploads, parts of uploads, and permissions.
gateway_objects = Table(
    "gateway_objects",
    metadata,
    Column("kind", String(32), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("project", String(64), nullable=False),
    Column("parent", String(255)),
    Column("at", String(40), nullable=False),
    Column("record", Text, nullable=False),
    Index("gateway_objects_by_age", "kind", "project", "at"),
    Index("gateway_objects_of", "kind", "parent"),
)

gateway_jobs = Table(
    "gateway_jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("key", String(64), nullable=False),
    Column("project", String(64), nullable=False),
    Column("at", String(40), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("fewest_retries", Integer, nullable=False),
    Column("idempotency_key", String(255)),
    Column("run_id", String(64)),
    Column("open", Boolean, nullable=False),
    Column("tuned", String(255), nullable=False),
    Column("record", Text, nullable=False),
    Index("gateway_jobs_by_age", "project", "at"),
    Index("gateway_jobs_by_request", "key", "digest"),
    Index("gateway_jobs_by_key", "key", "idempotency_key", unique=True),
    Index("gateway_jobs_by_model", "tuned"),
    Index("gateway_jobs_open", "open"),
)

gateway_audit = Table(
    "gateway_audit",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("at", String(40), nullable=False),
    Column("key", String(64), nullable=False),
    Column("record", Text, nullable=False),
)


experiments = Table(
    "experiments",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("at", String(40), nullable=False),
    Column("record", Text, nullable=False),
)

# Append-only. If two processes decide at the same time, only one of them can add the next number.
experiment_phases = Table(
    "experiment_phases",
    metadata,
    Column("experiment", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("at", String(40), nullable=False),
    Column("record", Text, nullable=False),
)

# A user (as a hash) who was assigned a model in a phase. `chance` is the probability of the tuned model.
exposures = Table(
    "exposures",
    metadata,
    Column("experiment", String(64), primary_key=True),
    Column("person", String(64), primary_key=True),
    Column("phase", Integer, primary_key=True),
    Column("tuned", Boolean, nullable=False),
    Column("chance", Float, nullable=False),
    Column("at", String(40), nullable=False),
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("experiment", String(64), nullable=False),
    Column("person", String(64), nullable=False),
    Column("phase", Integer, nullable=False),
    Column("metric", String(64), nullable=False),
    Column("value", Float, nullable=False),
    Column("at", String(40), nullable=False),
    # Hash of the caller's own key, so an outcome that is sent twice counts once.
    Column("key", String(64)),
    Index("outcomes_of", "experiment", "metric"),
    Index("outcomes_once", "experiment", "key", unique=True),
)

# Additional counts: answers of the base model in place of the tuned one, and requests without a user.
experiment_counts = Table(
    "experiment_counts",
    metadata,
    Column("experiment", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("value", Integer, nullable=False),
)

queue = Table(
    "queue",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("position", Integer, nullable=False),
    Column("record", Text, nullable=False),
    Index("queue_in_order", "state", "position"),
)

searches = Table(
    "searches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("at", String(40), nullable=False),
    Column("record", Text, nullable=False),
)

trials = Table(
    "trials",
    metadata,
    Column("search_id", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("record", Text, nullable=False),
)


# A request in progress, at its maximum price. `log` is the journal that records the request's outcome.
answer_holds = Table(
    "answer_holds",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("at", String(40), nullable=False),
    Column("log", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("backend", String(255), nullable=False),
    Column("made_by", String(255), nullable=False),
    Column("usd", Text, nullable=False),
    # Size of the journal when the price was reserved. Journals only grow, so if the journal is at least this
    # large and doesn't contain the request, nothing was sent. NULL in rows of earlier versions.
    Column("log_bytes", Integer),
)

# Actual cost of answers.
answer_sums = Table(
    "answer_sums",
    metadata,
    Column("purpose", String(32), primary_key=True),
    Column("backend", String(255), primary_key=True),
    Column("month", String(7), primary_key=True),
    Column("made_by", String(255), primary_key=True),
    Column("usd", Text, nullable=False),
    Column("requests", Integer, nullable=False),
)


# Reservations that were settled or released. A journal may report the outcome of a request repeatedly.
answers_ended = Table(
    "answers_ended",
    metadata,
    Column("hold", String(64), primary_key=True),
)

# The total of all runs and ended deployments, in one row that is updated whenever one of them changes. The
# first change creates the row.
kept_sums = Table(
    "kept_sums",
    metadata,
    Column("name", String(16), primary_key=True),
    Column("spent_usd", Text, nullable=False),
    Column("committed_usd", Text, nullable=False),
)

# Sums of the costs of ended runs that reports can't tell apart, updated with `kept_sums`. `record` is the
# group as an `Expense` without amounts. Rows are never deleted, so another transaction can wait for a row.
expense_groups = Table(
    "expense_groups",
    metadata,
    Column("key", String(32), primary_key=True),
    Column("sandbox", Boolean, nullable=False),
    Column("runs", Integer, nullable=False),
    Column("spent_usd", Text, nullable=False),
    Column("committed_usd", Text, nullable=False),
    Column("record", Text, nullable=False),
)


def _kept(text: str) -> str:
    """Replace null characters, which Postgres does not store as text."""
    return text.replace("\0", "\ufffd")


def listed(run: Run) -> dict[str, Any]:
    """Return the values of the columns that are only used to list runs."""
    cost = cost_so_far(run)
    named = (run.id, run.provider, run.model, run.spec.get("suffix"), run.job_id, run.made_by)
    tags = [f"{name}={value}" for name, value in run.tags.items()]
    return {
        "title": _kept(str(run.spec.get("suffix") or run.id))[:_CELL],
        "model": _kept(run.model)[:_CELL],
        "cost": None if cost is None else float(cost),
        "archived": run.archived,
        "words": _kept(" ".join(str(part) for part in (*named, *tags, run.note) if part).casefold())[:_WORDS],
    }


def charged(run: Run) -> dict[str, Any]:
    """Return the values of the columns that contain a run's cost. Sandbox runs have simulated costs."""
    from orchestrate.costing.expenses import charges, group_of  # late: lists must not pay for its import

    money, group = charges(run), group_of(run)
    return {
        "bill_usd": str(money.spent_usd) if money.spent_usd else None,
        "committed_usd": str(money.committed_usd) if money.committed_usd else None,
        "group_key": None if group is None else hashlib.sha256(group.to_json()).hexdigest()[:32],
    }


def write_tags(connection: Connection, of: Sequence[Run]) -> None:
    """Replace the stored tags of these runs with their current ones."""
    connection.execute(run_tags.delete().where(run_tags.c.run_id.in_([run.id for run in of])))
    rows = {
        (run.id, name): {"run_id": run.id, "name": name, "value": value}
        for run in of
        for name, value in ((_kept(n)[:_CELL], _kept(v)[:_CELL]) for n, v in run.tags.items())
    }
    if rows:
        connection.execute(run_tags.insert(), list(rows.values()))
