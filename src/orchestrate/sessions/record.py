"""Track a training session as a run: its record in the store, its run directory, and its cost so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from orchestrate.core.files import Journal, whole_folder, write_whole
from orchestrate.costing.bills import quoted_hour
from orchestrate.errors import NotFound, OrchestrateError, RunFailed, UsageError
from orchestrate.local.run import JobState, RunDir, checkpoints, now
from orchestrate.local.run.checkpoints import CompleteCheckpoint, Progress
from orchestrate.local.space import DiskFull, disk_is_full
from orchestrate.paid.limits import reached, require_within
from orchestrate.providers.base import Cancels, Sessions, StopsWorkers, capability
from orchestrate.providers.sessions import (
    JOURNAL,
    SESSION,
    TOKEN_KINDS,
    PaidRequest,
    SessionOrder,
    SessionPrice,
    TokenUse,
)
from orchestrate.runs.submitting import accounts
from orchestrate.runs.submitting.settler import lease_name
from orchestrate.runs.syncing.sweep import refresh
from orchestrate.spec import JobSpec, LoRA
from orchestrate.store import ref_of, transitions
from orchestrate.store.runs import Intent
from orchestrate.types import (
    OWN_LOOP,
    Allowance,
    JobError,
    JobHandle,
    JobStatus,
    Quote,
    QuoteLine,
    Run,
    Translation,
    decoding,
)

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace

LEASE_S = 30.0
ENDING_S = 60.0
"""Seconds to wait until the program that drove a session has released it, after the session has ended."""
CHECK_S, REFRESH_S = 1.0, 10.0
"""Seconds between two checks of a session's limits, and between two updates of the store."""
LAST_VISIT_S = 30.0
"""Maximum number of seconds that a session waits at its end until the store has its final cost."""


@dataclass(frozen=True, kw_only=True)
class SessionRequest:
    """The arguments of `Orchestrator.session`."""

    model: str
    provider: str
    lora: Mapping[str, Any]
    max_cost_usd: Decimal | None
    options: Mapping[str, Any]
    tags: Mapping[str, str]


class Meter:
    """Tracks the cost of a session, and checks that each request fits within the session's limit."""

    def __init__(
        self,
        provider: str,
        price: SessionPrice,
        max_usd: Decimal | None,
        hours: Callable[[], Decimal],
        limit: str = "the session's limit",
    ) -> None:
        self._provider, self._limit, self.price, self.max_usd, self._hours = (
            provider,
            limit,
            price,
            max_usd,
            hours,
        )
        self.used = TokenUse()
        self._open: dict[int, TokenUse] = {}
        self._journal: Journal[PaidRequest] | None = None
        self._number = 0
        self._lock = threading.Lock()

    def keep_in(self, folder: Path) -> None:
        """Open the journal in `folder`, and add the usage that earlier programs recorded there. New requests
        are appended to the same journal. Requests without a response are counted at their maximum cost."""
        if not self.price.by_token:
            return
        self._journal = Journal(folder / JOURNAL, PaidRequest)
        by_number: dict[int, TokenUse] = {}
        for entry in self._journal.entries:
            by_number[entry.number] = entry.use
            self._number = max(self._number, entry.number)
        for use in by_number.values():
            self.used += use

    def reserve(self, most: TokenUse) -> int:
        """Reserve the maximum cost of a request, and return the request's number for `settle`. Raises
        `OverBudget` if the session's limit would be exceeded."""
        with self._lock:
            require_within(
                self._provider,
                self.price.of(most),
                self.max_usd,
                taken_usd=self.price.of(sum(self._open.values(), self.used), self._hours()),
                what=f"the remainder of {self._limit}",
                figure="the maximum cost of this request",
                fix="to continue with a higher limit: ft.session(resume=RUN, max_cost_usd=...)",
            )
            self._number += 1
            if self._journal is not None:
                total = self.price.of(sum(self._open.values(), self.used + most), self._hours())
                self._journal.append(PaidRequest(number=self._number, use=most, total_usd=total))
            self._open[self._number] = most
            return self._number

    def settle(self, number: int, use: TokenUse | None) -> None:
        """Record the cost of a request. An unknown cost (`None`) is counted as the request's maximum cost."""
        with self._lock:
            most = self._open.pop(number)
            self.used += most if use is None else use
            if self._journal is not None:
                total = self.price.of(sum(self._open.values(), self.used), self._hours())
                done = PaidRequest(number=number, settled=True, use=use or most, total_usd=total)
                with suppress(OSError):  # on a full disk it stays written down with its maximum
                    self._journal.append(done)

    @property
    def usd(self) -> Decimal:
        with self._lock:
            return self.price.of(sum(self._open.values(), self.used), self._hours())

    def reached(self, margin_s: float) -> bool:
        """Return True if an hourly session will reach its cost limit within `margin_s` seconds."""
        if self.price.hourly is None:
            return False
        ahead = self.price.of(TokenUse(), Decimal(str(margin_s)) / 3600)
        return reached(self.usd + ahead + self._tail_usd, self.max_usd)

    @property
    def _tail_usd(self) -> Decimal:
        """Cost that the host bills after the program has been killed."""
        return self.price.of(TokenUse(), Decimal(str(self.price.tail_s)) / 3600)

    def left_s(self) -> float | None:
        """Return the seconds until an hourly session at a host reaches its cost limit. Returns `None` for
        other sessions, and for sessions without a limit."""
        hourly = self.price.hourly
        if hourly is None or not self.price.tail_s or self.max_usd is None:
            return None
        return float((self.max_usd - self.usd) / hourly.usd_per_hour * 3600)

    def require_left(self) -> None:
        """Raise `OverBudget` if an hourly session has used up its limit."""
        if self.reached(0):
            figure, fix = "the cost so far plus one cent", "ft.session(resume=RUN, max_cost_usd=...)"
            least = self.usd + Decimal("0.01")
            if self.price.tail_s:
                figure = "the cost so far plus what the host may still bill after the program ends"
                least += self._tail_usd
            require_within(self._provider, least, self.max_usd, what=self._limit, figure=figure, fix=fix)


def quote_of(provider: str, model: str, price: SessionPrice, max_usd: Decimal | None) -> Quote:
    """Quote a session. The length of a session is unknown, so the budget reserves the session's cost
    limit."""
    nothing = Decimal(0)
    if price.hourly is not None and price.hourly.usd_per_hour:
        hours = Decimal(1) if max_usd is None else max_usd / price.hourly.usd_per_hour
        lines, high = (price.hourly.line(hours, "0.01", low=nothing),), max_usd or price.hourly.usd_per_hour
    elif price.by_token:
        named = {kind: getattr(price, f"{kind}_usd_per_mtok") for kind in TOKEN_KINDS}
        lines, high = tuple(_token_line(n, usd, price.source) for n, usd in named.items()), max_usd
    else:
        free = ("this machine is your own and has no hourly rate, so nothing is billed",)
        return Quote(
            provider=provider, model=model, low_usd=nothing, expected_usd=nothing, high_usd=nothing,
            assumptions=free,
        )  # fmt: skip
    return Quote(
        provider=provider,
        model=model,
        lines=lines,
        low_usd=nothing,
        high_usd=high,
        undecided="a session costs the sum of its requests, up to its limit",
        open_end=None
        if max_usd is not None
        else "the cost after the first hour, because your loop decides when to stop",
    )


def _token_line(component: str, usd: Decimal, source: str) -> QuoteLine:
    none = Decimal(0)
    return QuoteLine(
        component=component, quantity=none, unit="usd_per_mtok", usd_per_unit=usd,
        usd_low=none, usd=none, usd_high=none, source=source,
    )  # fmt: skip


@dataclass
class SessionRecord:
    """A session's run and its run directory, which this process locks."""

    ws: Workspace
    provider: Sessions
    run: Run
    order: SessionOrder
    dir: RunDir
    meter: Meter
    _held: ExitStack = field(default_factory=ExitStack)
    _stop: threading.Event = field(default_factory=threading.Event)
    _began: float = 0.0
    _earlier_s: float = 0.0
    _state: JobState | None = None
    _status_lock: threading.Lock = field(default_factory=threading.Lock)

    # -- beginning -----------------------------------------------------------------------------------------

    @classmethod
    def begin(cls, ws: Workspace, request: SessionRequest) -> SessionRecord:
        """Record the run in the store, then create its directory. If the budget or the session's limit is too
        small, raises `OverBudget` before anything is written."""
        [name] = ws.backends(request.provider)
        provider = capability(ws.provider(name), Sessions)
        ws.ready(name)
        ws.settings.require_to_spend(provider)
        spec = JobSpec.parse(
            {
                "model": request.model,
                "train": OWN_LOOP,
                "adapter": LoRA(r=request.lora["rank"]).model_dump(exclude_unset=True) | {"type": "lora"},
                "seed": request.lora["seed"],
                "max_cost_usd": request.max_cost_usd,
                "tags": dict(request.tags),
            }
        )
        model = provider.resolve(spec).id
        order = SessionOrder(
            ref="",
            model=model,
            model_name=request.model,
            lora=dict(request.lora),
            options=dict(request.options),
            spec=spec.canonical(),
        )
        price = provider.session_price(order, ws.rates)
        limited = request.max_cost_usd is not None
        if (price.by_token or price.tail_s) and not limited:
            raise UsageError(f"the cost on {name} depends on your loop: set a limit", fix="max_cost_usd=5")
        Meter(name, price, request.max_cost_usd, Decimal).require_left()
        quote = quote_of(name, model, price, request.max_cost_usd)
        intent = Intent(
            spec=spec,
            provider=name,
            dataset_digest="",
            host=provider.host,
            account=accounts.account_of(ws.store, provider),
            sandbox=provider.config.sandbox,
            quote=quote,
            translation=Translation(provider=name, model=model, settings=(), body={}),
            max_cost_usd=request.max_cost_usd,
            made_by=ws.settings.made_by,
        )
        run = ws.store.runs.create(intent, budget_usd=ws.settings.budget_usd)
        order = replace(order, ref=ref_of(run.id))
        with ws.store.leases.hold(lease_name(run), LEASE_S) as lease:
            at = ws.store.clock.now
            ws.store.runs.apply(run.id, lambda one: transitions.uploaded(one, at()), lease=lease)
            ws.store.runs.begin(run.id, lease)
            try:
                dir = provider.session_dir(order)
            except OrchestrateError as error:
                failure = JobError(message=error.message, code=type(error).__name__)
                ws.store.runs.apply(run.id, lambda one: transitions.refused(one, failure, at()), lease=lease)
                raise
            handle = JobHandle(provider=name, job_id=dir.ref, ref=dir.ref, kind=SESSION)
            run = ws.store.runs.apply(run.id, lambda one: transitions.submitted(one, handle, at()))
        return cls._held_by_us(ws, provider, run, order, price)

    @classmethod
    def again(cls, ws: Workspace, run: Run, max_cost_usd: Decimal | None) -> SessionRecord:
        """Continue a paused session from its last checkpoint. Raises `UsageError` if the session has ended
        permanently or another program controls it."""
        if run.job_kind != SESSION:
            raise UsageError(f"run {run.id} is not a training session", fix=f"orchestrate resume {run.id}")
        ws = ws.home_of(run)
        provider = capability(ws.ready(run.provider), Sessions)
        ws.settings.require_to_spend(provider)
        run = refresh(ws.store, provider, run, bill=ws.bill)
        if run.status is not JobStatus.PAUSED:
            why = "has ended" if run.status.terminal else "is controlled by another program"
            raise UsageError(
                f"run {run.id} is {run.status.value}: it {why}", fix=f"orchestrate show {run.id}"
            )
        if isinstance(provider, StopsWorkers):
            provider.stop_workers(run.ref)  # what a killed program left up
        return cls._taken_on(ws, provider, run, max_cost_usd=max_cost_usd)

    @classmethod
    def of_job(cls, ws: Workspace, run: Run) -> SessionRecord:
        """Take over the session of a submitted job. If an earlier process started the session, continue from
        its last checkpoint. Raises `OverBudget` if the remaining budget is too small."""
        ws = ws.home_of(run)
        provider = capability(ws.ready(run.provider), Sessions)
        ws.settings.require_to_spend(provider)
        return cls._taken_on(ws, provider, run, price=_quoted_price(run))

    @classmethod
    def _taken_on(
        cls,
        ws: Workspace,
        provider: Sessions,
        run: Run,
        *,
        price: SessionPrice | None = None,
        max_cost_usd: Decimal | None = None,
    ) -> SessionRecord:
        """Continue a session. If it ran before, its limit is reserved in the budget again. `price` is the
        agreed price, by default the backend's current one."""
        job = provider.get(run.handle)
        dir = RunDir(Path(str(job.payload["folder"])))
        order = decoding.convert(dir.job().session, SessionOrder)
        price = price or provider.session_price(order, ws.rates)
        if dir.written_state().attempt:
            _require_quoted_price(run, price)
            most = run.max_cost_usd if max_cost_usd is None else max_cost_usd
            at, limits = ws.store.clock.now(), Allowance(max_usd=most, max_hours=run.max_hours)
            run = ws.store.runs.commit(
                run.id,
                run.quote.held_usd if most is None and run.quote is not None else most,
                lambda one: transitions.reopened(one, at, limits),
                ws.settings.budget_usd,
                figure="the maximum cost within the session's limit",
            )
        return cls._held_by_us(ws, provider, run, order, price, job.worked_seconds)

    @classmethod
    def _held_by_us(
        cls,
        ws: Workspace,
        provider: Sessions,
        run: Run,
        order: SessionOrder,
        price: SessionPrice,
        earlier_s: float | None = None,
    ) -> SessionRecord:
        dir, (limit_usd, limit) = provider.session_dir(order), _limit(run)
        made = cls(
            ws=ws,
            provider=provider,
            run=run,
            order=order,
            dir=dir,
            meter=Meter(run.provider, price, limit_usd, lambda: made.hours, limit),
        )
        if not made._held.enter_context(dir.lock(wait_s=ENDING_S)):
            made._held.close()
            raise UsageError(f"another program controls run {run.id}", fix=f"orchestrate watch {run.id}")
        try:
            state = dir.written_state()
            if state.terminal:
                raise UsageError(f"run {run.id} has {state.status}", fix=f"orchestrate show {run.id}")
            if run.own_loop and dir.asked() == "pause":  # a job's pause is withdrawn by what starts it
                dir.ask(None)
            made._earlier_s, made._began = max(state.seconds, earlier_s or 0.0), time.monotonic()
            made.meter.keep_in(dir.path)
            dir.claim()
            made.write_status(
                status="preparing",
                stage="loading",
                started_at=state.started_at or now(),
                attempt=state.attempt + 1,
                error=None,
            )
        except BaseException:
            made._held.close()
            raise
        beating = threading.Thread(target=dir.keep_beating, args=(made._stop,), daemon=True, name="heartbeat")
        beating.start()
        made._held.callback(beating.join)
        made._held.callback(made._stop.set)
        return made

    # -- continuing ----------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Total seconds that the session has been open, in all programs that have controlled it."""
        return self._earlier_s + time.monotonic() - self._began

    @property
    def hours(self) -> Decimal:
        return Decimal(str(self.seconds)) / 3600

    def way_back(self, *, raised: bool) -> str:
        """Return what the user has to run to continue the session: a command for a submitted job, or Python
        code for a loop. With `raised`, the command or code also sets a higher cost limit."""
        id = self.run.id
        if not self.run.own_loop:
            quoted = Decimal(0) if self.run.quote is None else self.run.quote.held_usd
            usd = (self.meter.usd + quoted).quantize(Decimal("0.01"), ROUND_CEILING)
            return f"orchestrate resume {id}{f' --max-cost {usd}' if raised else ''}"
        return f'ft.session(resume="{id}"{", max_cost_usd=..." if raised else ""})'

    def order_now(self) -> SessionOrder:
        """Return the session's options for its backend, with `ends_in_s` set to the seconds that remain
        before the session reaches its cost limit."""
        return replace(self.order, ends_in_s=self.meter.left_s())

    @property
    def _cost(self) -> Decimal | None:
        return None if self.meter.price.hourly is not None else self.meter.usd

    def write_status(self, **changes: Any) -> None:
        """Write the current status."""
        with self._status_lock:
            state = replace(
                self._state or self.dir.written_state(),
                updated_at=now(),
                seconds=self.seconds,
                cost_usd=self._cost,
                **changes,
            )
            self._state = state
            self.dir.write_state(state)

    def visit_store(self) -> None:
        """Update the run in the store. If the store can't be reached, no error is raised and the next call
        tries again."""
        with suppress(OrchestrateError):
            self.run = refresh(self.ws.store, self.provider, self.run, bill=self.ws.bill)

    def wait_for_end(self, most_s: float | None = None) -> None:
        """Wait until this program has released the session, for at most `most_s` seconds if set."""
        self._stop.wait(most_s)

    # -- saving --------------------------------------------------------------------------------------------

    def save(self, name: str, step: int, fill: Callable[[Path], str], *, kept: bool = True) -> str:
        """Store a checkpoint by name. `fill` writes the weights to a folder."""
        state = self._state or self.dir.written_state()
        progress = Progress(
            step=step, total_steps=step, trained_tokens=state.trained_tokens, seconds=self.seconds, kept=kept
        )
        places: list[str] = []

        def saved(draft: Path) -> None:
            where = fill(draft / "adapter")
            write_whole(draft / "saved.json", msgspec.json.encode({"name": name, "at": where}))
            places.append(where)

        path = checkpoints.save(self.dir.checkpoints, progress, saved)
        at = path / "adapter" if (path / "adapter").is_dir() else None
        where = str(at) if at is not None else places[0]
        checkpoints.prune(self.dir.checkpoints)
        names = {**self.saves(), name: path.name}
        write_whole(self.dir.path / "saves.json", msgspec.json.encode(names))
        self.dir.add_event(f"saved {name} at step {step}", type="checkpoint", step=step, name=name)
        return where

    def saves(self) -> dict[str, str]:
        """Return the session's checkpoints as {name: name of the folder}."""
        try:
            named = msgspec.json.decode((self.dir.path / "saves.json").read_bytes(), type=dict[str, str])
        except (OSError, msgspec.MsgspecError):
            return {}
        return {name: folder for name, folder in named.items() if (self.dir.checkpoints / folder).is_dir()}

    def saved_at(self, name: str) -> str:
        """Return the location of a checkpoint's weights. Raises `NotFound` if no checkpoint has this name."""
        folder = self.dir.checkpoints / self.saves().get(name, name)
        if (folder / "manifest.json").is_file():
            return self._place(folder)
        known = ", ".join(self.saves()) or "none"
        problem = f"run {self.run.id} has no checkpoint named {name!r} (checkpoints: {known})"
        raise NotFound(self.run.provider, problem)

    @staticmethod
    def _place(folder: Path) -> str:
        own = folder / "adapter"
        if own.is_dir():
            return str(own)
        return str(msgspec.json.decode((folder / "saved.json").read_bytes())["at"])

    def last_save(self) -> tuple[CompleteCheckpoint, str] | None:
        """Return the latest complete checkpoint and the location of its weights, or `None` if there is
        none."""
        checkpoint, damaged = checkpoints.newest_complete(self.dir.checkpoints)
        for name in damaged:
            self.dir.add_event(f"checkpoint {name} is damaged", level="warning", type="checkpoint")
        return None if checkpoint is None else (checkpoint, self._place(checkpoint.path))

    def publish(self, fill: Callable[[Path], str], step: int) -> None:
        """Store the result as the run's tuned model."""
        with whole_folder(self.dir.path / "adapter") as draft:
            fill(draft)
            order, state = self.order, self._state or self.dir.written_state()
            provenance = {
                "ref": order.ref,
                "kind": "adapter",
                "base_model": order.model,
                "base_model_name": order.model_name,
                "method": {"type": SESSION},
                "adapter": self.dir.job().adapter,
                "seed": order.lora["seed"],
                "spec": order.spec,
                "trained": {"step": step, "tokens": state.trained_tokens, "seconds": self.seconds},
                "finished_at": now(),
            }
            write_whole(draft / "passport.json", msgspec.json.format(msgspec.json.encode(provenance)))

    # -- ending --------------------------------------------------------------------------------------------

    def end(self, status: str, *, error: JobError | None = None, result: str | None = None) -> None:
        """Record how the session ended. If it is paused, another program may resume it."""
        terminal = status not in ("paused", "interrupted")
        more: dict[str, Any] = {"finished_at": now()} if terminal else {}
        try:
            self.dir.add_event(
                f"{status}: {error.message}" if error else status,
                level="info" if error is None else "warning",
                type=status,
            )
            self.write_status(status=status, stage=None, error=error, result=result, **more)
        except OSError as full:
            if not disk_is_full(full):
                raise
            raise DiskFull(
                f"the disk is full, so the session stopped at its last checkpoint ({self.run.id}): {full}",
                fix=f"free up some disk space, then  {self.way_back(raised=False)}",
            ) from full
        finally:  # a program that lives on keeps nobody from resuming it
            self._held.close()
        if status == "paused" and self.dir.asked() == "cancel":  # since the last look
            with suppress(OrchestrateError):
                capability(self.provider, Cancels).cancel(self.run.handle)
        visit = threading.Thread(target=self.visit_store, daemon=True)
        visit.start()
        visit.join(LAST_VISIT_S)  # a host that hangs is asked by the next command


def _limit(run: Run) -> tuple[Decimal | None, str]:
    """Return the cost at which a session ends, over all programs that control it, and the limit's name. This
    is the session's own limit or, for a submitted job without one, the high end of its quote."""
    if run.own_loop or run.max_cost_usd is not None or run.quote is None:
        return run.max_cost_usd, "the session's limit"
    return run.quote.high_usd, "the high end of the run's quote (no --max-cost was set)"


def _quoted_price(run: Run) -> SessionPrice:
    """Return the token prices of the run's quote, which a command-line option may have set."""
    lines = () if run.quote is None else run.quote.lines
    usd = {line.component: line.usd_per_unit for line in lines}
    train, prefill, sample = (usd.get(kind, Decimal(0)) for kind in TOKEN_KINDS)
    return SessionPrice(
        train_usd_per_mtok=train,
        prefill_usd_per_mtok=prefill,
        sample_usd_per_mtok=sample,
        source=next((line.source or "" for line in lines), ""),
    )


def _require_quoted_price(run: Run, price: SessionPrice) -> None:
    """Raise `UsageError` if the host has changed its hourly price, by which the cost so far is counted."""
    quoted, hour = quoted_hour(run.quote), price.of(TokenUse(), Decimal(1))
    if price.tail_s and quoted is not None and hour != quoted.usd_per_hour:
        raise UsageError(
            f"one hour now costs ${hour}, but run {run.id} was quoted ${quoted.usd_per_hour} per hour",
            fix="start a new session and load the last checkpoint of this one",
        )


def ended_already(run: Run) -> RunFailed:
    return RunFailed(f"the session {run.id} has ended", fix=f'ft.session(resume="{run.id}")')
