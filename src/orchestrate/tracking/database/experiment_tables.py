"""The tables of experiments: a tuned model among real users."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Index, Integer, String, Table, Text

from orchestrate.tracking.database.metadata import metadata

experiments = Table(
    "experiments",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("at", String(40), nullable=False),
    Column("record", Text, nullable=False),
)

# Only added to; of two processes that decide at once, one adds a number.
experiment_phases = Table(
    "experiment_phases",
    metadata,
    Column("experiment", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("at", String(40), nullable=False),
    Column("record", Text, nullable=False),
)

# A user, as a hash, who was given a model in a phase; `chance`: to be given the tuned one.
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
    # The caller's own, so that what is sent twice counts once; a hash.
    Column("key", String(64)),
    Index("outcomes_of", "experiment", "metric"),
    Index("outcomes_once", "experiment", "key", unique=True),
)

# What is counted beside: answers of the base in the tuned model's place, requests without a user.
experiment_counts = Table(
    "experiment_counts",
    metadata,
    Column("experiment", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("value", Integer, nullable=False),
)
