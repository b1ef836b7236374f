"""The table of runs: filters, columns and order, and export as CSV and JSON."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, cast
from urllib.parse import urlencode

from starlette.requests import Request

from orchestrate.core.progress import cost_so_far, stage
from orchestrate.errors import UsageError
from orchestrate.settings import hide
from orchestrate.store.run_lists import GROUPS, RunQuery
from orchestrate.text import inert
from orchestrate.types import Run
from orchestrate.ui.site import Copy, Site, compact, name_of, value_of
from orchestrate.workspace import scope_of

MOST = 1000
"""Default number of runs on the page."""
_ODD = 60
"""Maximum number of setting columns to offer. The number of tag columns has the same limit."""
_MOST_COLUMNS = 24


@dataclass(frozen=True)
class TableColumn:
    """A column of the table. `sort` is its sort key in the database."""

    name: str
    label: str
    sort: str = ""
    number: bool = False
    wide: bool = True
    """True if the column is hidden on narrow screens."""


BUILT_IN = {
    column.name: column
    for column in (
        TableColumn("status", "Status", "status", wide=False),
        TableColumn("step", "Step", number=True),
        TableColumn("left", "Left", number=True),
        TableColumn("cost", "Cost", "cost", number=True, wide=False),
        TableColumn("loss", "Loss", "loss"),
        TableColumn("created", "Created, UTC", "created", number=True),
        TableColumn("backend", "Backend", "backend"),
        TableColumn("model", "Model", "model"),
        TableColumn("note", "Note"),
        TableColumn("quote", "Quote", number=True),
        TableColumn("took", "Took", number=True),
        TableColumn("updated", "Updated, UTC", "updated", number=True),
        TableColumn("finished", "Finished, UTC", number=True),
        TableColumn("person", "Made by"),
        TableColumn("job", "Job"),
    )
}
DEFAULT = ("status", "step", "left", "cost", "loss", "created")
"""The default columns."""


def column(name: str) -> TableColumn:
    """Return the column with this name: a built-in one, `spec.NAME` or `tag.NAME`. Raises `UsageError` for
    any other name."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    RunQuery(sort=name)
    return TableColumn(name, name.partition(".")[2] or name, name)


@dataclass(frozen=True)
class RunTableQuery:
    """Filters, order and columns of the table, as given in the page's URL."""

    words: str = ""
    status: str = ""
    provider: str = ""
    tag: str = ""
    sandbox: bool = False
    archived: bool = False
    limit: int = MOST
    sort: str = "-created"
    group: str = ""
    columns: tuple[str, ...] = DEFAULT
    after: str = ""

    @classmethod
    def of(cls, request: Request) -> Self:
        """Read filters, order and columns from a request. Raises `UsageError` for invalid filters or sort
        keys."""
        given = request.query_params
        limit = given.get("limit") or str(MOST)
        if not (limit.isascii() and limit.isdecimal() and int(limit[:9]) > 0):
            raise UsageError(f"the number of runs must be an integer above 0, got {limit!r}")
        chosen = tuple(dict.fromkeys(name for name in given.getlist("col") if name))[:_MOST_COLUMNS]
        found = cls(
            words=given.get("q", "").strip(),
            status=given.get("status", ""),
            provider=given.get("provider", ""),
            tag=given.get("tag", ""),
            sandbox=bool(given.get("sandbox")),
            archived=bool(given.get("archived")),
            limit=int(limit[:9]),
            sort=given.get("sort") or "-created",
            group=given.get("group", ""),
            columns=chosen or DEFAULT,
            after=given.get("after", ""),
        )
        found.shown()
        found.asked(scope=None)
        return found

    def asked(self, scope: bool | None) -> RunQuery:
        return RunQuery(
            words=self.words,
            provider=self.provider,
            status=self.status,
            tag=self.tag,
            sandbox=True if self.sandbox else scope,
            archived=self.archived,
            sort=self.sort,
            group=self.group,
        )

    def of_site(self, site: Site) -> RunQuery:
        return self.asked(scope_of(site.ft.settings))

    def shown(self) -> list[TableColumn]:
        return [column(name) for name in self.columns]

    @property
    def newest_first(self) -> bool:
        """True if a new run belongs at the top of the page."""
        return self.sort == "-created" and not self.group and not self.after

    @property
    def query(self) -> str:
        asked = {"q": self.words, "status": self.status, "provider": self.provider, "tag": self.tag}
        asked |= {"group": self.group, "after": self.after}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value}
        given |= {name: "1" for name in ("sandbox", "archived") if getattr(self, name)}
        if self.limit != MOST:
            given["limit"] = str(self.limit)
        if self.sort != "-created":
            given["sort"] = self.sort
        if self.columns != DEFAULT:
            given["col"] = list(self.columns)
        return urlencode(given, doseq=True)

    @property
    def narrowed(self) -> bool:
        return bool(replace(self, sort="-created", group="", columns=DEFAULT, limit=MOST).query)

    def sorted_by(self, name: str) -> str:
        """Return the query for the same table sorted by this column. Times and money start with the largest
        value. If the table is already sorted this way, the order is reversed."""
        falling = f"-{name}" if name in ("created", "updated", "cost") else name
        other = name if falling != name else f"-{name}"
        return replace(self, sort=other if self.sort == falling else falling, after="").query

    def order_of(self, name: str) -> str:
        """Return the value of `aria-sort` for a column. Empty if the table is not sorted by this column."""
        if not name or self.sort.removeprefix("-") != name:
            return ""
        return "descending" if self.sort.startswith("-") else "ascending"

    @property
    def from_first(self) -> str:
        return replace(self, after="").query

    def behind(self, run_id: str) -> str:
        """Return the URL query for the rows after this run."""
        return replace(self, after=run_id).query

    @property
    def copy(self) -> Copy:
        flags = {"provider": self.provider, "status": self.status, "tag": self.tag, "search": self.words}
        flags = {name: value for name, value in flags.items() if value}
        if self.sort != "-created":
            flags["sort"] = self.sort
        words = ["orchestrate", "runs"]
        for name, value in flags.items():
            words += [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]
        words += [f"--{name}" for name in ("sandbox", "archived") if getattr(self, name)]
        arguments = [f"{name}={value!r}" for name, value in flags.items()]
        arguments += ["sandbox=True"] * self.sandbox + [f"archived={self.archived}", f"limit={self.limit}"]
        return Copy(
            command=f"{shlex.join(words)} --limit {self.limit}",
            python="from orchestrate import Orchestrator\n\nwith Orchestrator() as ft:\n"
            f"    for run in ft.runs({', '.join(arguments)}):\n        print(run)",
        )


def choices(
    runs: Sequence[Run], tags: Sequence[tuple[str, str]], wanted: RunTableQuery
) -> list[tuple[str, list[TableColumn]]]:
    """List the columns to choose from, in groups: run, settings, tags."""
    settings = sorted({name for run in runs for name in settings_of(run)})[:_ODD]
    named = sorted({name for name, _ in tags})[:_ODD]
    chosen = [name for name in wanted.columns if name not in BUILT_IN]
    found = [
        ("Run", list(BUILT_IN.values())),
        ("Settings", _known([f"spec.{n}" for n in settings], chosen, "spec.")),
        ("Tags", _known([f"tag.{n}" for n in named], chosen, "tag.")),
    ]
    return [(title, some) for title, some in found if some]


def _known(names: Sequence[str], chosen: Sequence[str], kind: str) -> list[TableColumn]:
    found: list[TableColumn] = []
    for name in dict.fromkeys([*names, *(one for one in chosen if one.startswith(kind))]):
        try:
            found.append(column(name))
        except UsageError:  # a name that no column can have
            continue
    return found


def groups_of(columns: Sequence[tuple[str, list[TableColumn]]]) -> list[str]:
    return [*GROUPS, *(one.name for title, some in columns if title != "Run" for one in some)]


def flat(values: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(cast("dict[str, Any]", value), f"{under}{name}.")
        elif value is not None:
            found[under + name] = value
    return found


_NOT_SETTINGS = {"suffix", "tags", "model"}
"""Parts of a spec that other columns show."""


def settings_of(run: Run) -> dict[str, Any]:
    return flat({name: value for name, value in run.spec.items() if name not in _NOT_SETTINGS})


@dataclass(frozen=True)
class RowGroup:
    """A heading between rows, with the number of runs in the group if known."""

    title: str
    number: int | None


def headings(
    runs: Sequence[Run], group: str, numbers: Sequence[tuple[str | None, int]], before: Run | None = None
) -> dict[str, RowGroup]:
    """Return the group headings, keyed by the id of the first run below each heading."""
    if not group:
        return {}
    counted, found = dict(numbers), dict[str, RowGroup]()
    last: Any = object() if before is None else value_of(before, group)
    for run in runs:
        value = value_of(run, group)
        if value != last:
            known = None if value is None else str(value)
            number = counted.get(known, counted.get(str(int(value))) if isinstance(value, bool) else None)
            title = "none" if value is None else compact(value)
            found[run.id] = RowGroup(
                ": ".join(filter(None, (group.partition(".")[2] or group, title))), number
            )
        last = value
    return found


# -- the table as files --------------------------------------------------------------------------------------


def as_json(runs: Iterator[Run]) -> Iterator[bytes]:
    """Yield the records in the format of `orchestrate runs --json`."""
    mark = b"["
    for run in runs:
        yield mark + run.to_json()
        mark = b",\n"
    yield b"[]\n" if mark == b"[" else b"]\n"


def as_csv(site: Site, query: RunQuery) -> Iterator[str]:
    """Yield a header and one line for each run. The columns include every setting and tag that any of the
    runs has. Money is in US dollars."""
    from orchestrate.reports.documents import safe_cell

    names: dict[str, None] = {}
    for run in site.ft.store.listing.each(query):
        names |= dict.fromkeys([*(f"tag.{n}" for n in run.tags), *(f"spec.{n}" for n in settings_of(run))])
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    odd = sorted(names)
    writer.writerow([*_FACTS, *odd])
    for run in site.ft.store.listing.each(query):
        own = {f"spec.{name}": value for name, value in settings_of(run).items()}
        own |= {f"tag.{name}": value for name, value in run.tags.items()}
        cells = [*_facts(run), *("" if own.get(name) is None else compact(own[name]) for name in odd)]
        writer.writerow([safe_cell(hide(inert(one)) if isinstance(one, str) else one) for one in cells])
        if out.tell() > 1 << 16:
            yield out.getvalue()
            out.seek(0)
            out.truncate()
    yield out.getvalue()


_FACTS = (
    *("run", "name", "backend", "model", "status", "sandbox", "archived", "created", "finished"),
    *("step", "total_steps", "cost_usd", "billed_usd", "quoted_usd", "made_by", "job", "note"),
)
"""CSV columns that precede the setting and tag columns."""


def _facts(run: Run) -> list[Any]:
    quote = run.quote
    return [
        *(run.id, name_of(run), run.provider, run.model, stage(run)),
        *(str(run.sandbox).lower(), str(run.archived).lower()),
        *(run.created_at.isoformat(), run.finished_at.isoformat() if run.finished_at else ""),
        *(run.step, run.total_steps),
        *(cost_so_far(run), run.bill.usd if run.bill else ""),
        quote.expected_usd if quote and quote.price else "",
        *(run.made_by or "", run.job_id or "", run.note or ""),
    ]
