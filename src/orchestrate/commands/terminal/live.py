"""The live view of runs: stage, step, loss sparkline, tokens per second, time left, cost so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from textwrap import shorten
from types import TracebackType

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from orchestrate.commands.terminal.console import SANDBOX, STATUS_STYLE, err, stage_text, table, warn
from orchestrate.core.progress import cost_so_far, seconds_left, seconds_taken, share_done, step_of
from orchestrate.core.tables import TextTable
from orchestrate.text import SANDBOX_MARK, count, duration, inert, money
from orchestrate.types import Event, MetricPoint, Run

_BARS = "▁▂▃▄▅▆▇█"
_STAGES = ("validating", "queued", "running", "finalizing", "succeeded")
_KEPT_EVENTS = 4
_PANEL_LINES = 6 + _KEPT_EVENTS
_EVENTS_OF_AT_MOST = 20
_STEPWISE = frozenset({"metrics", "progress"})
"""Event types that occur every few steps. Not shown, because they would crowd out all other events."""


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Draw the values as a row of bars, at most `width` wide. A longer series is averaged to fit."""
    finite = [v for v in values if v == v and abs(v) != float("inf")]
    if not finite:
        return ""
    size = max(1, -(-len(finite) // width))
    cells = [sum(c) / len(c) for c in (finite[i : i + size] for i in range(0, len(finite), size))]
    low, high = min(cells), max(cells)
    if high == low:
        return _BARS[len(_BARS) // 2] * len(cells)
    span = high - low
    return "".join(_BARS[round((v - low) / span * (len(_BARS) - 1))] for v in cells)


def bar(share: float, width: int = 60) -> Text:
    full = round(share * width)
    return Text.assemble(("━" * full, "green"), ("─" * (width - full), "bright_black"))


def stage_line(run: Run) -> Text:
    """Draw the stages of a run with the current one marked."""
    text = Text()
    for i, stage in enumerate(_STAGES):
        if i:
            text.append(" › ", style="dim")
        here = stage == run.status.value
        style = f"bold {STATUS_STYLE.get(stage, 'white')}" if here else "dim"
        text.append(f"[{stage}]" if here else stage, style=style)
    if run.status.value not in _STAGES:
        text.append(f"  [{run.status.value}]", style=f"bold {STATUS_STYLE.get(run.status.value, 'white')}")
    return text


def panel(
    run: Run,
    metrics: Sequence[MetricPoint],
    events: Sequence[Event],
    now: datetime,
    hint: str | None = None,
    *,
    width: int = 100,
) -> RenderableType:
    """Draw one run as a block of lines that fit into `width` columns. Lines are only broken between words.
    `hint` is a note for the user."""
    head = Text.assemble((run.provider, "bold"), "  ", run.model, "  ", (run.id, "dim"))
    if run.sandbox:
        head.append("  ")
        head.append(" SANDBOX ", style="reverse")
    losses = [p.values["train_loss"] for p in metrics if "train_loss" in p.values]
    rewards = [p.values["train_reward"] for p in metrics if "train_reward" in p.values]
    names = ("valid_reward", "valid_loss")
    valid = [p.values[n] for p in metrics for n in names if n in p.values]
    speed = next(
        (p.values["tokens_per_second"] for p in reversed(metrics) if "tokens_per_second" in p.values), None
    )
    left, taken = seconds_left(run, now, metrics), seconds_taken(run, now)
    cost = cost_so_far(run, metrics)
    facts = [
        _steps(run, metrics),
        f"reward {rewards[-1]:.3f} {sparkline(rewards)}" if rewards else "",
        f"loss {losses[-1]:.4f} {sparkline(losses)}" if losses and not rewards else "",
        f"valid {valid[-1]:.4f}" if valid else "",
        f"{speed:,.0f} tok/s" if speed else "",
        duration(taken) + (f", {duration(left)} left" if left is not None else ""),
        f"cost {money(cost)}{'' if run.bill else ' est.'}" if cost is not None else "",
    ]
    lines: list[RenderableType] = [
        head,
        stage_line(run),
        bar(share_done(run, metrics)),
        *(Text(line, no_wrap=True) for line in _flowing(facts, width)),
    ]
    shown = [e for e in events if e.type not in _STEPWISE][-_KEPT_EVENTS:]
    lines += [
        Text("  " + shorten(f"{e.at:%H:%M:%S} {inert(e.message)}", width - 2, placeholder=" …"), style="dim")
        for e in shown
    ]
    if run.error is not None:
        lines.append(Text(f"  {run.error.message}", style="red"))
    if hint is not None:
        lines.append(Text(f"  {hint}", style="yellow"))
    return Group(*lines, Text())


def _steps(run: Run, metrics: Sequence[MetricPoint]) -> str:
    """Format the progress: `step 12/91`, or `step 12 of about 91` if the total is derived from rows, epochs
    and batch size."""
    step = step_of(run, metrics)
    if run.total_steps:
        return f"step {step}/{run.total_steps}"
    return f"step {step} of about {run.expected_steps}" if run.expected_steps else f"step {step}"


def _flowing(facts: Sequence[str], width: int) -> list[str]:
    """Put as many facts on each line as fit. No fact is broken across lines."""
    lines = [""]
    for fact in filter(None, facts):
        longer = f"{lines[-1]}   {fact}" if lines[-1] else fact
        if lines[-1] and cell_len(longer) > width:
            lines.append(fact)
        else:
            lines[-1] = longer
    return lines


def row(
    run: Run, metrics: Sequence[MetricPoint], now: datetime, *, chip: bool = False
) -> tuple[str | Text, ...]:
    """Build a run's row in the table of runs. If `chip` is set, a sandbox run is marked."""
    losses = [p.values["train_loss"] for p in metrics if "train_loss" in p.values]
    left = seconds_left(run, now, metrics)
    total, step = run.total_steps or run.expected_steps, step_of(run, metrics)
    return (
        run.id,
        run.provider,
        run.model,
        stage_text(run, chip=chip),
        f"{step}/{total}" if total else str(step or ""),
        f"{losses[-1]:.4f} {sparkline(losses, 12)}" if losses else "",
        duration(left) if left is not None else "",
        money(cost_so_far(run, metrics)),
    )


_COLUMNS = ("run", "backend", "model", "status", "step", "loss", "left", "cost")
_FIRST_TO_GO = ("loss", "left", "model", "backend")
"""Columns to drop on a narrow terminal, in this order. The other columns are never cut."""


def many(rows: Sequence[tuple[str | Text, ...]], width: int) -> TextTable:
    """Draw runs as a table with as many columns as fit completely."""
    columns = list(_COLUMNS)
    cells = {name: [row[i] for row in rows] for i, name in enumerate(_COLUMNS)}
    needs = {name: max([cell_len(name), *(_wide(cell) for cell in cells[name])]) + 2 for name in columns}
    for name in _FIRST_TO_GO:
        if sum(needs[kept] for kept in columns) <= width:
            break
        columns.remove(name)
    shown = table(*columns, right=("step", "left", "cost"), fold=())
    for at in range(len(rows)):
        shown.add_row(*(cells[name][at] for name in columns))
    return shown


def _wide(cell: str | Text) -> int:
    return cell.cell_len if isinstance(cell, Text) else cell_len(cell)


Metrics = Callable[[str], Sequence[MetricPoint]]
Events = Callable[[str], Sequence[Event]]


def _picture() -> Live:
    return Live(console=err, auto_refresh=False, transient=False)  # `draw` refreshes it


class LiveView:
    """Live display of all followed runs on stderr. On a terminal, it is redrawn in place, and many runs are
    shown as a table. If stderr is not a terminal, prints one line per event or, if there are many runs, one
    line per status change. `metrics` and `events` are functions that load the data of one run. They are only
    called for runs that are drawn."""

    def __init__(self, metrics: Metrics, events: Events) -> None:
        self._metrics, self._events = metrics, events
        self._runs: dict[str, tuple[Run, str | None]] = {}
        self._live = _picture() if err.is_terminal else None
        self._width: int = err.width
        self._seen: dict[str, tuple[str, int, str | None]] = {}
        self._many = False

    def __enter__(self) -> LiveView:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Restore the terminal and its cursor."""
        if self._live:
            self._live.stop()
            self._live = None

    def warn(self, text: str) -> None:
        warn(text)

    def show(self, run: Run, hint: str | None = None) -> None:
        """Store the latest state of one run. `draw` displays it."""
        self._runs[run.id] = (run, hint)

    def draw(self) -> None:
        if self._live:
            self._resized()
            self._live.update(self._picture(datetime.now(UTC)), refresh=True)
            return
        self._many = self._many or len(self._runs) > _EVENTS_OF_AT_MOST
        for run, hint in self._runs.values():
            self._print(run, hint, () if self._many else self._events(run.id))

    def _resized(self) -> None:
        """Redraw everything after a change of width, because the terminal has rewrapped the old lines."""
        if self._live is None or err.width == self._width:
            return
        self._width = err.width
        self._live.stop()
        err.clear()
        self._live = _picture()
        self._live.start()

    def _print(self, run: Run, hint: str | None, events: Sequence[Event]) -> None:
        status, shown, hinted = self._seen.get(run.id, ("", 0, None))
        for event in (e for e in events[shown:] if e.type not in _STEPWISE):
            err.print(f"{event.at:%H:%M:%S} {run.provider}: {event.message}", soft_wrap=True)
        if run.status.value != status:
            mark = SANDBOX_MARK * run.sandbox
            err.print(f"{run.provider}: {run.status.value}{mark}", soft_wrap=True)
        if hint is not None and hinted is None:  # print a countdown once, not at every poll
            err.print(f"{run.provider}: {hint}", soft_wrap=True)
        self._seen[run.id] = (run.status.value, len(events), hint)

    def _picture(self, now: datetime) -> RenderableType:
        runs = list(self._runs.values())
        room = err.size.height - 2
        if len(runs) * _PANEL_LINES <= room:
            return Group(
                *(
                    panel(run, self._metrics(run.id), self._events(run.id), now, hint, width=err.width)
                    for run, hint in runs
                )
            )
        # Active runs first. Runs that don't fit on the screen are only counted.
        runs.sort(key=lambda shown: (shown[0].status.terminal, shown[0].created_at))
        drawn = runs[: max(room - 4, 1)]
        mixed = len({run.sandbox for run, _ in drawn}) > 1
        lines = [row(run, self._metrics(run.id), now, chip=mixed) for run, _ in drawn]
        shown = many(lines, err.width)
        counts = Counter(run.status.value for run, _ in runs)
        total = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
        hints = [Text(f"{run.id}: {hint}", style="yellow") for run, hint in runs if hint][:1]
        if not mixed and drawn[0][0].sandbox:
            hints.append(SANDBOX)
        return Group(shown, *hints, Text(f"{count(len(runs), 'run')}: {total}", style="dim"))
