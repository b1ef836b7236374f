"""Fireworks' dedicated trainers, which are billed hourly while they are up.

A trainer's id is derived from the run's ref. If the response to a request was lost, the request is repeated
with the same id, which never creates a second trainer. A trainer is stopped when the session ends, or by the
host's inactivity timeout if the program was killed. The client's heartbeat keeps it up until then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from orchestrate.core import days
from orchestrate.costing import HourlyRate, built_in
from orchestrate.errors import (
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    PermissionRefused,
    ProviderError,
    UsageError,
)
from orchestrate.local.run import RunDir, now
from orchestrate.providers.calls import items, plain, ref_in, rows, table, text, when, whole
from orchestrate.providers.fireworks.reading import id_of
from orchestrate.providers.fireworks.translation import job_id_of
from orchestrate.providers.rented import LOOK_S, Machine, RentedMachines
from orchestrate.types import Confidence, Record, Standing

if TYPE_CHECKING:
    from orchestrate.costing import RateBook
    from orchestrate.providers.calls.hosted import Wire
    from orchestrate.providers.fireworks.connection import Connection
    from orchestrate.providers.sessions import SessionOrder

SHAPE = "training_shape"
"""The option that selects a dedicated trainer."""
INACTIVE_S, GRACE_S = 300, 120
"""Inactivity timeout of a trainer, and how long the host may take to notice it, in seconds."""
TAIL_S = float(INACTIVE_S + GRACE_S)
UP = ("CREATING", "PENDING", "RUNNING", "VALIDATING", "RESUMING", "CANCELLING")
TRIES, END_S = 3, 120.0
"""Number of attempts to create a trainer under its id, and longest wait for one to end, in seconds."""
RATES = ("training_api_dedicated", "rft", "deployment")
"""Rate methods for a GPU-hour of a trainer. The price page has one price for all of Fireworks' own GPUs."""


class TrainerShape(Record, frozen=True, kw_only=True):
    """Contents of a training shape."""

    name: str
    accelerator: str
    gpus: int
    lora: bool

    @property
    def gpu(self) -> str:
        return self.accelerator.removeprefix("NVIDIA_").removeprefix("AMD_").split("_", 1)[0]


class Trainers(RentedMachines):
    def __init__(
        self,
        provider: str,
        prices: str,
        at: Connection,
        wire: Wire,
        home: Path,
        sleep: Callable[[float], None],
    ) -> None:
        super().__init__(provider, home, sleep)
        self._prices, self._at, self._wire = prices, at, wire

    def _read(self, path: str, **query: str) -> dict[str, Any]:
        client = self._at.client()
        options: Any = {"params": query}
        return table(self._wire.read(lambda: client.get(path, cast_to=object, options=options), expect=dict))

    # -- the price -----------------------------------------------------------------------------------------

    def shape(self, name: str) -> TrainerShape:
        """Query the latest validated version of a training shape. Raises `UsageError` if the shape does not
        train adapters."""
        found = self._read(f"/v1/{name}/versions", filter="latest_validated=true", pageSize="1")
        version = next(iter(rows(found.get("trainingShapeVersions"))), None)
        if version is None:
            raise UsageError(f"the training shape {name} has no validated version")
        snapshot = table(version.get("snapshot"))
        count, nodes = whole(snapshot.get("acceleratorCount")), whole(snapshot.get("nodeCount")) or 1
        made = TrainerShape(
            name=name,
            accelerator=text(snapshot.get("acceleratorType")) or "",
            gpus=(count or 0) * nodes,
            lora=snapshot.get("trainerMode") == "LORA_TRAINER",
        )
        if not made.lora:
            raise UsageError(f"the training shape {name} does not train LoRA adapters")
        return made

    def hourly(self, shape: TrainerShape, rates: RateBook) -> HourlyRate | None:
        """Return the hourly cost of a trainer, or `None` if its GPUs have no price."""
        rate = rates.find(self._prices, RATES, gpu=shape.gpu, on=days.today()) if shape.gpus else None
        if rate is None:
            return None
        usd = rate.usd * shape.gpus
        return HourlyRate(
            component="rental",
            usd_per_hour=usd,
            low_usd_per_hour=usd,
            high_usd_per_hour=usd,
            label=f"a trainer with {shape.gpus} {shape.gpu}",
            source=rate.source,
            as_of=str(rate.start),
            confidence=Confidence.QUOTED,
        )

    # -- one run's -----------------------------------------------------------------------------------------

    def create(self, run: RunDir, order: SessionOrder, create: Callable[[Any], Any]) -> Machine:
        """Request a trainer with `create`, the client's own method. Raises `InvalidRequest` and
        `OutcomeUnknown`."""
        from fireworks.training.sdk import TrainerJobConfig

        journal, number = self.journal(run), len(self.of(run)) + 1
        id = f"{job_id_of(order.ref)}-{number}"
        asked = Machine(
            number=number, base_model=order.model, inactive_s=INACTIVE_S, asked_at=now(), known=(id,)
        )
        config = TrainerJobConfig(
            base_model=order.model,
            lora_rank=order.lora["rank"],
            training_shape_ref=order.options[SHAPE],
            display_name=order.ref,
            inactivity_timeout=f"{INACTIVE_S}s",
            requested_job_id=id,
        )
        journal.append(asked)
        try:
            self._sent(lambda: create(config), asked)
        except InvalidRequest:
            journal.append(replace(asked, ended=True))
            raise
        made = replace(asked, id=id)
        journal.append(made)
        return made

    def _sent(self, create: Callable[[], Any], asked: Machine) -> None:
        """Create a trainer. Raises `InvalidRequest` if none was created, and `OutcomeUnknown`."""
        for tried in range(1, TRIES + 1):
            try:
                create()
            except Exception as error:
                status = getattr(error, "status_code", None)
                if isinstance(status, int) and 400 <= status < 500:
                    raise InvalidRequest(self._provider, str(error)) from error
                if self._match(asked, []) is not None:
                    return
                if tried == TRIES:
                    why = f"if the trainer exists, Fireworks stops it after {INACTIVE_S // 60} idle minutes"
                    raise OutcomeUnknown(self._provider, str(asked.known[0]), why) from error
            else:
                return

    def _match(self, asked: Machine, up: list[dict[str, Any]]) -> dict[str, Any] | None:
        del up
        with suppress(NotFound):
            return self._raw(asked.id or asked.known[0])
        return None

    def _unseen_s(self, asked: Machine) -> float:
        """Return 0: a trainer has the id that was requested, so one that isn't found never existed."""
        del asked
        return 0.0

    def _ready(self, raw: dict[str, Any]) -> bool:
        if state(raw) not in UP or state(raw) == "CANCELLING":
            status = table(raw.get("status"))
            why = text(status.get("message")) or "no reason given"
            raise ProviderError(self._provider, f"the trainer is {state(raw).lower()}: {why}")
        if state(raw) != "RUNNING":
            return False
        try:
            self._read(f"{self.gateway(str(raw['id']))}/api/v1/healthz")
        except ProviderError:
            return False
        return True

    def gateway(self, id: str) -> str:
        """Return the path below which a trainer's API is reached."""
        return f"/training/v1/rlorTrainerJobs/{self._at.account()}/{id}"

    def _path(self, id: str) -> str:
        return f"/v1/accounts/{self._at.account()}/rlorTrainerJobs/{id}"

    def _raw(self, id: str) -> dict[str, Any]:
        return _with_id(self._read(self._path(id)))

    def stop(self, id: str) -> dict[str, Any]:
        """Cancel a trainer. Its checkpoints remain."""
        client, path, waited, asked = self._at.client(), f"{self._path(id)}:cancel", 0.0, False
        told: dict[str, Any] = {}
        with suppress(NotFound):
            while state(told := self._raw(id)) in UP:
                if not asked and state(told) != "CANCELLING":
                    self._wire.read(lambda: client.post(path, body={}, cast_to=object), expect=object)
                    asked = True
                    continue
                if waited >= END_S:
                    why = f"trainer {id} is still {state(told).lower()} after a cancel request"
                    raise ProviderError(self._provider, why)
                self._sleep(LOOK_S)
                waited += LOOK_S
        return told

    def _billed_s(self, raw: dict[str, Any]) -> float:
        """Return the seconds since the creation, including the wait for GPUs."""
        began, ended = when(raw.get("createTime")), when(raw.get("completedTime"))
        if began is None:
            return 0.0
        return max(0.0, ((ended or now()) - began).total_seconds())

    # -- the account's -------------------------------------------------------------------------------------

    def up(self) -> list[dict[str, Any]]:
        """List the trainers that are up. Empty for a key without access to training."""
        with suppress(NotFound, PermissionRefused):
            return self._up()
        return []

    def _up(self) -> list[dict[str, Any]]:
        api, account = self._at.client().reinforcement_fine_tuning_steps, self._at.account()
        pages = self._wire.pages(lambda: api.list(account_id=account, page_size=200), omits_empty=True)
        every = [_with_id(plain(raw)) for page in pages for raw in items(page)]
        return [raw for raw in every if raw.get("serviceMode") is True and state(raw) in UP]

    def refs(self, up: list[dict[str, Any]]) -> dict[str, str]:
        found = {str(raw["id"]): ref_in(raw.get("displayName"), raw["id"]) for raw in up}
        return {id: ref for id, ref in found.items() if ref is not None}

    def standing(self) -> Iterator[Standing]:
        up = self.up()
        refs = self.refs(up)
        for raw in up:
            training, ref = table(raw.get("trainingConfig")), refs.get(str(raw["id"]))
            shape = TrainerShape(
                name="",
                accelerator=text(training.get("acceleratorType")) or "",
                gpus=(whole(training.get("acceleratorCount")) or 0) * (whole(raw.get("nodeCount")) or 1),
                lora=True,
            )
            hourly = self.hourly(shape, built_in())
            yield Standing(
                provider=self._provider,
                kind="job",
                id=str(raw["id"]),
                name=ref,
                state=state(raw).lower(),
                bills=True,
                usd_per_hour=None if hourly is None else hourly.usd_per_hour,
                rented=True,
                job_id=ref,
                created_at=when(raw.get("createTime")),
                note=f"training session of {training.get('baseModel')}",
            )


def state(raw: Mapping[str, Any]) -> str:
    """Return the host's state without its prefix."""
    return (text(raw.get("state")) or "UNKNOWN").removeprefix("JOB_STATE_")


def _with_id(raw: dict[str, Any]) -> dict[str, Any]:
    return {**raw, "id": id_of(text(raw.get("name")) or "")}
