"""An opened store: its engine, its clock and its transactions."""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, Table

from orchestrate.tracking.clock import Clock
from orchestrate.tracking.database import engines


class Database:
    """Safe to use from several threads."""

    def __init__(self, engine: Engine, clock: Clock | None = None) -> None:
        self.engine = engine
        self.clock = clock or Clock()
        self.place = engines.place_of(engine)
        self.file = engines.identity(self.place) if engine.dialect.name == "sqlite" else None
        self.actor = f"{platform.node() or 'host'}:{os.getpid()}:{secrets.token_hex(3)}"
        self._writer = engine.execution_options(writes=True)

    @contextmanager
    def reading(self) -> Generator[Connection]:
        with engines.translated(self.place), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Generator[Connection]:
        """Commits at the end of the block, or leaves everything as it was."""
        with engines.translated(self.place), self._writer.begin() as connection:
            yield connection

    def insert(self, table: Table) -> Any:
        """An insert that understands `on_conflict_do_nothing` and `on_conflict_do_update`."""
        if self.engine.dialect.name == "postgresql":
            from sqlalchemy.dialects import (
                postgresql as dialect,
            )  # a tenth of the start-up time; rarely needed
        else:
            from sqlalchemy.dialects import sqlite as dialect
        return dialect.insert(table)

    def verify(self) -> list[str]:
        """What is wrong with the stored pages; empty when nothing is."""
        with engines.translated(self.place):
            return engines.verify(self.engine)

    def close(self) -> None:
        self.engine.dispose()
