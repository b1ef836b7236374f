"""What all tables of a store belong to."""

from __future__ import annotations

from sqlalchemy import MetaData

metadata = MetaData()
