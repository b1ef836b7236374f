"""The tables of runs that wait, and of searches of settings with their trials."""

from __future__ import annotations

from sqlalchemy import Column, Index, Integer, String, Table, Text

from orchestrate.tracking.database.metadata import metadata

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
