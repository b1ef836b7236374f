"""Human reviews, their ratings, and the calibrations of judges against them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import select

from orchestrate.errors import UsageError
from orchestrate.store import new_id, schema, stamp
from orchestrate.store.database import Database
from orchestrate.types import Rating, Review

PREFIX = "rev-"


class Reviews:
    """Reviews in the store. Safe to use from several threads, because a review page sends concurrent
    requests."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def new_id(self) -> str:
        return new_id(PREFIX, self._db.clock.now())

    def add(self, review: Review) -> None:
        values = {"id": review.id, "at": stamp(review.created_at), "record": review.to_json().decode()}
        with self._db.writing() as connection:
            connection.execute(schema.reviews.insert().values(values))

    def matching(self, *, evaluation: str | None = None, run_ids: Sequence[str] = ()) -> list[Review]:
        """List reviews, newest first. `evaluation` selects the reviews of one evaluation, and `run_ids`
        selects reviews that contain all of these runs."""
        table = schema.reviews
        with self._db.reading() as connection:
            rows = connection.execute(select(table.c.record).order_by(table.c.at.desc())).scalars().all()
        found = [Review.from_json(row) for row in rows]
        return [
            review
            for review in found
            if evaluation in (None, review.evaluation) and set(run_ids) <= set(review.run_ids)
        ]

    def get(self, name: str) -> Review:
        """Get a review by its id or a prefix of it. Raises `UsageError` if none or several match."""
        found = [review for review in self.matching() if review.id.startswith(name)]
        if len(found) != 1:
            what = f"{name} matches several reviews" if found else f"no review matches {name}"
            raise UsageError(what, fix="to create one and see its id: orchestrate review RUN")
        return found[0]

    def rate(self, *ratings: Rating) -> None:
        """Add all ratings in one transaction."""
        if not ratings:
            return
        rows = [{"review_id": r.review, "at": stamp(r.at), "record": r.to_json().decode()} for r in ratings]
        with self._db.writing() as connection:
            connection.execute(schema.ratings.insert(), rows)

    def ratings(self, review_id: str) -> list[Rating]:
        """List all ratings of a review, oldest first, including superseded ones."""
        table = schema.ratings
        query = select(table.c.record).where(table.c.review_id == review_id).order_by(table.c.seq)
        with self._db.reading() as connection:
            return [Rating.from_json(row) for row in connection.execute(query).scalars()]

    def calibrate(self, judge: str, record: msgspec.Struct) -> None:
        """Store how well a judge agrees with human ratings. `judge` is a digest of everything that defines
        the judge."""
        insert = self._db.insert(schema.calibrations).values(
            judge=judge, at=stamp(self._db.clock.now()), record=msgspec.json.encode(record).decode()
        )
        with self._db.writing() as connection:
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["judge"],
                    set_={"record": insert.excluded.record, "at": insert.excluded.at},
                )
            )

    def calibration(self, judge: str) -> dict[str, Any] | None:
        query = select(schema.calibrations.c.record).where(schema.calibrations.c.judge == judge)
        with self._db.reading() as connection:
            row = connection.execute(query).scalar()
        return None if row is None else msgspec.json.decode(row)
