"""Lists of runs. The database filters, searches, sorts, groups and pages them.

Each list scans the index `runs_listed`, which contains all filter and sort keys but no records. The scan
stops when the page is full, and only the records on that page are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from sqlalchemy import ColumnElement, Select, and_, case, func, literal, literal_column, or_, select, tuple_

from orchestrate.core.progress import STAGES
from orchestrate.errors import UsageError
from orchestrate.store import schema, unstorable
from orchestrate.types import JobStatus, Run

if TYPE_CHECKING:
    from orchestrate.store.database import Database

COLUMNS = ("created", "name", "backend", "model", "status", "cost", "updated", "loss")
"""Sort keys, in addition to spec fields (`spec.NAME`) and tags (`tag.NAME`)."""
GROUPS = ("backend", "model", "status")
"""Group keys, in addition to spec fields and tags."""
STATUSES = tuple(dict.fromkeys([*STAGES.values(), *(status.value for status in JobStatus)]))
"""Names of run statuses, as shown and used in filters."""
_NAME = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*){0,4}")
_PAGE = 500
_LONGEST = 1000


class RunQuery(Struct, frozen=True, kw_only=True):
    """Filters and order of a list of runs. `None` and empty strings match any run."""

    words: str = ""
    """Search terms. All must occur in the run's id, name, backend, model, job, person, note or tags."""
    provider: str = ""
    status: str = ""
    """A `JobStatus`, or one of `STATUSES`."""
    model: str = ""
    """Substring of the model's name."""
    tag: str = ""
    """Tag to match, as `NAME` or `NAME=VALUE`."""
    sandbox: bool | None = None
    archived: bool | None = None
    sort: str = "-created"
    """Sort key: one of `COLUMNS`, `spec.NAME` or `tag.NAME`. A leading `-` means descending order."""
    group: str = ""
    """Group key: one of `GROUPS`, `spec.NAME` or `tag.NAME`."""

    def __post_init__(self) -> None:
        if self.status not in ("", *STATUSES):
            raise UsageError(f"unknown status {self.status!r}. Known: {', '.join(STATUSES)}")
        for given in (self.words, self.provider, self.model, self.tag):
            # A database would end the text at the null character, or reject the pattern with its own error.
            if unstorable(given) or len(given) > _LONGEST:
                raise UsageError(
                    "a filter can't have null characters, halves of surrogate pairs or more than "
                    f"{_LONGEST:,} characters: {given[:40]!a}"
                )
        for what, name, known in (("sorted", self.column, COLUMNS), ("grouped", self.group, ("", *GROUPS))):
            kind, dot, inner = name.partition(".")
            if name not in known and not (dot and kind in ("spec", "tag") and _NAME.fullmatch(inner)):
                choices = ", ".join([*filter(None, known), "spec.NAME", "tag.NAME"])
                raise UsageError(f"runs cannot be {what} by {name!r}. Known: {choices}")

    @property
    def column(self) -> str:
        return self.sort.removeprefix("-")

    @property
    def descending(self) -> bool:
        return self.sort.startswith("-")


class RunLists:
    """Reads lists of runs."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def page(
        self, query: RunQuery, *, limit: int, after: str = "", ids: Sequence[str] | None = None
    ) -> list[Run]:
        """List at most `limit` runs, starting after the run with the id `after`. `ids` restricts the list to
        these runs."""
        statement = self.statement(query, limit=limit, after=after)
        if ids is not None:
            statement = statement.where(schema.runs.c.id.in_(ids))
        with self._db.reading() as connection:
            ids = list(connection.execute(statement).scalars())
            of: dict[str, Run] = {}
            for start in range(0, len(ids), _PAGE):
                some = select(schema.runs.c.record).where(schema.runs.c.id.in_(ids[start : start + _PAGE]))
                of |= {run.id: run for run in map(Run.from_json, connection.execute(some).scalars())}
        return [of[run_id] for run_id in ids]

    def each(self, query: RunQuery) -> Iterator[Run]:
        """Yield all runs that match, reading one page at a time."""
        after = ""
        while found := self.page(query, limit=_PAGE, after=after):
            yield from found
            after = found[-1].id

    def count(self, query: RunQuery) -> int:
        with self._db.reading() as connection:
            return connection.execute(
                select(func.count()).select_from(schema.runs).where(*self._where(query))
            ).scalar_one()

    def groups(self, query: RunQuery, most: int = 200) -> list[tuple[str | None, int]]:
        """Return the first `most` groups in sorted order, as `[(name, number of runs)]`. The name is `None`
        for runs that don't have the setting or tag, and an empty string for runs that have it with an empty
        value."""
        value = self._value(query.group)
        missing = value.is_(None)
        statement = select(value, func.count()).select_from(schema.runs).where(*self._where(query))
        with self._db.reading() as connection:
            rows = connection.execute(statement.group_by(value).order_by(missing, value).limit(most)).all()
        return [(None if name is None else str(name), number) for name, number in rows]

    def tags(self, most: int = 200) -> list[tuple[str, str]]:
        """List the existing tags as (name, value) pairs."""
        table = schema.run_tags
        query = select(table.c.name, table.c.value).distinct().order_by(table.c.name, table.c.value)
        with self._db.reading() as connection:
            return [(row.name, row.value) for row in connection.execute(query.limit(most))]

    def statement(self, query: RunQuery, *, limit: int, after: str = "") -> Select[Any]:
        """Build the statement that selects the ids of a page."""
        table = schema.runs
        keys = self._keys(query)
        order = [key.desc() if down else key.asc() for key, down in keys]
        statement = select(table.c.id).where(*self._where(query)).order_by(*order).limit(limit)
        return statement.where(_behind(keys, after)) if after else statement

    def _where(self, query: RunQuery) -> list[ColumnElement[bool]]:
        table = schema.runs.c
        found: list[ColumnElement[bool]] = []
        if query.provider:
            found.append(self._value("backend") == query.provider)
        if query.status:
            found.append(or_(table.status == query.status, self._value("status") == query.status))
        if query.sandbox is not None:
            found.append(table.sandbox if query.sandbox else ~table.sandbox)
        if query.archived is not None:
            found.append(table.archived if query.archived else ~table.archived)
        if query.model:
            found.append(func.lower(table.model).contains(query.model.lower(), autoescape=True))
        found += [table.words.contains(word, autoescape=True) for word in query.words.casefold().split()]
        if query.tag:
            name, equals, value = query.tag.partition("=")
            tags = schema.run_tags.c
            tagged = select(tags.run_id).where(tags.name == name)
            if equals:
                tagged = tagged.where(tags.value == value)
            # The `+ ""` keeps the database from using the index on the id, which would read the row of each
            # run with this tag.
            found.append((table.id + "").in_(tagged))
        return found

    def _keys(self, query: RunQuery) -> list[tuple[ColumnElement[Any], bool]]:
        """Return the sort keys, and whether they descend. Runs without a value come last."""
        keys: list[tuple[ColumnElement[Any], bool]] = []
        for name, down in ((query.group, False), (query.column, query.descending)):
            if not name:
                continue
            value = self._value(name)
            if name in ("cost", "loss") or "." in name:
                keys.append((case((value.is_(None), 1), else_=0), False))
                value = func.coalesce(value, self._nothing(name))
            keys.append((value, down))
        return [*keys, (schema.runs.c.id, query.descending)]

    def _value(self, name: str) -> ColumnElement[Any]:
        table = schema.runs.c
        kind, _, inner = name.partition(".")
        if kind == "spec":
            return self._json("runs.record", ["spec", *inner.split(".")])
        if kind == "tag":
            tags = schema.run_tags.c
            own = select(tags.value).where(tags.run_id == table.id, tags.name == inner)
            return own.scalar_subquery()
        if name == "loss":
            points = schema.metrics.c
            loss = self._json("metrics.record", ["values", "train_loss"])
            last = select(loss).where(points.run_id == table.id, loss.is_not(None))
            return last.order_by(points.step.desc()).limit(1).scalar_subquery()
        if name == "status":
            names = {phase.value: word for phase, word in STAGES.items()}
            return case(
                (table.status == JobStatus.SUBMITTING.value, case(names, value=table.phase)),
                else_=table.status,
            )
        # The `+ ""` keeps the database from using another index, which would read the row of each of the
        # backend's runs.
        columns = {"created": table.created_at, "updated": table.updated_at, "name": table.title}
        columns |= {"backend": table.provider + "", "model": table.model, "cost": table.cost}
        return columns[name]

    @property
    def _postgres(self) -> bool:
        return self._db.engine.dialect.name == "postgresql"

    def _json(self, column: str, path: list[str]) -> ColumnElement[Any]:
        """Return a value inside a record, in the order of its type: numbers as numbers, text as text."""
        if self._postgres:
            return func.jsonb_extract_path(literal_column(f"{column}::jsonb"), *path)
        return func.json_extract(literal_column(column), "$" + "".join(f'."{name}"' for name in path))

    def _nothing(self, name: str) -> ColumnElement[Any]:
        if self._postgres and (name.startswith("spec.") or name == "loss"):
            return literal_column("'null'::jsonb")
        return literal(0.0) if name == "cost" else literal("")


def _behind(keys: list[tuple[ColumnElement[Any], bool]], after: str) -> ColumnElement[bool]:
    """Return the condition for runs that come after a run in the order of these keys."""
    last = [select(key).where(schema.runs.c.id == after).correlate(None).scalar_subquery() for key, _ in keys]
    if len({down for _, down in keys}) == 1:  # the form in which an index is entered at its place
        here, there = tuple_(*(key for key, _ in keys)), tuple_(*last)
        return here < there if keys[0][1] else here > there
    steps: list[ColumnElement[bool]] = []
    equal: list[ColumnElement[bool]] = []
    for (key, down), value in zip(keys, last, strict=True):
        steps.append(and_(*equal, key < value if down else key > value))
        equal.append(key == value)
    return or_(*steps)
