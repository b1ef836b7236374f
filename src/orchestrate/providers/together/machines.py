"""Machines for training sessions at Together: model resources, which are billed hourly while they are up.

A model resource has no name, and its creation takes no idempotency key. If the response was lost, the machine
is found as a new one with the run's own `inactive_timeout`. The request is written to the run directory
before it is sent, and is never sent twice. The machine is stopped when the session ends, or by the host's
timeout if the program was killed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from orchestrate.errors import (
    NotFound,
    OutcomeUnknown,
    PermissionRefused,
    ProviderError,
    UnexpectedAnswer,
    UsageError,
)
from orchestrate.local.run import RunDir, now
from orchestrate.providers.calls import money, plain, ref_in, table, text, when
from orchestrate.providers.calls.hosted import MOST_PAGES, Wire
from orchestrate.providers.rented import LOOK_S, SEARCH_S, Machine, RentedMachines
from orchestrate.types import Standing

if TYPE_CHECKING:
    from together import Together

    from orchestrate.providers.sessions import SessionOrder

LEAST_S, MARKS = 300, 120
"""Shortest inactivity timeout that the host accepts, and the range of seconds added to it to mark a run's
machines."""
TAIL_S = float(LEAST_S + MARKS)
"""Longest time in seconds that a machine bills after its program was killed."""
UP = ("PENDING", "CREATING", "READY")
OPTIONS = frozenset({"gpu_type", "generators"})


def inactive_s(ref: str) -> int:
    """Return the inactivity timeout in seconds that marks a run's machines."""
    return LEAST_S + int(hashlib.sha256(ref.encode()).hexdigest(), 16) % MARKS


def wanted(order: SessionOrder) -> dict[str, Any]:
    """Return the request body for a machine. Raises `UsageError` for unknown options."""
    if unknown := sorted(order.options.keys() - OPTIONS):
        known = ", ".join(sorted(OPTIONS))
        raise UsageError(f"Together sessions have no option {unknown[0]!r}", fix=f"use one of {known}")
    compute: dict[str, Any] = {"num_generator_replicas": int(order.options.get("generators", 1))}
    if "gpu_type" in order.options:
        compute["gpu_type"] = order.options["gpu_type"]
    return {
        "base_model": order.model,
        "compute_config": compute,
        "inactive_timeout": inactive_s(order.ref),
        "lora_enabled": True,
        "optimizer_config": {"adam": {}},
    }


class Machines(RentedMachines):
    def __init__(
        self,
        provider: str,
        client: Callable[[], Together],
        wire: Wire,
        home: Path,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(provider, home, sleep)
        self._client, self._wire = client, wire

    @property
    def _api(self) -> Any:
        return self._client().post_training.model_resources

    @property
    def _sessions(self) -> Any:
        return self._client().post_training.sessions

    # -- the price -----------------------------------------------------------------------------------------

    def usd_per_hour(self, body: Mapping[str, Any]) -> Decimal | None:
        """Return the host's own estimate, or `None` if it gives no price in US dollars."""
        told = plain(self._wire.read(lambda: self._api.estimate_cost(**body)))
        usd = money(told.get("price_per_hour"))
        return usd if usd and usd > 0 and told.get("currency") == "USD" else None

    # -- one run's -----------------------------------------------------------------------------------------

    def create(self, run: RunDir, order: SessionOrder) -> Machine:
        """Request a machine, exactly once. Raises `OutcomeUnknown` if the response was lost and the machine
        can't be found, and `ProviderError` if none was created."""
        body, journal = wanted(order), self.journal(run)
        known = tuple(str(raw["id"]) for raw in self.up())
        asked = Machine(
            number=len(self.of(run)) + 1,
            base_model=order.model,
            inactive_s=body["inactive_timeout"],
            asked_at=now(),
            known=known,
        )
        api = self._api
        journal.append(asked)
        try:
            answer = self._wire.send_once(
                order.ref,
                lambda: api.create(**body),
                lambda made: text(plain(made).get("id")),
            )
        except OutcomeUnknown as lost:
            found = self._search(asked)
            if found is None:
                raise OutcomeUnknown(
                    self._provider,
                    order.ref,
                    "if the machine was created, Together stops it after an idle period",
                ) from lost
        except ProviderError:
            journal.append(replace(asked, ended=True))
            raise
        else:
            found = plain(answer)
        made = replace(asked, id=str(found["id"]))
        journal.append(made)
        return made

    def _search(self, asked: Machine) -> dict[str, Any] | None:
        waited = 0.0
        while (found := self._match(asked, self.up())) is None and waited < SEARCH_S:
            self._sleep(LOOK_S)
            waited += LOOK_S
        return found

    def _match(self, asked: Machine, up: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Raises `UnexpectedAnswer` if several machines match the request."""
        if asked.id is not None:
            return next((raw for raw in up if raw["id"] == asked.id), None)
        found = [
            raw
            for raw in up
            if raw["id"] not in asked.known
            and raw.get("base_model") == asked.base_model
            and raw.get("inactive_timeout") == asked.inactive_s
        ]
        if len(found) > 1:
            ids = ", ".join(str(raw["id"]) for raw in found)
            raise UnexpectedAnswer(self._provider, f"several machines may belong to this run: {ids}")
        return found[0] if found else None

    def _ready(self, raw: dict[str, Any]) -> bool:
        if state(raw) not in UP:
            why = text(table(raw.get("error")).get("message")) or "no reason given"
            raise ProviderError(self._provider, f"the machine is {state(raw).lower()}: {why}")
        return state(raw) == "READY"

    def _raw(self, id: str) -> dict[str, Any]:
        return plain(self._wire.read(lambda: self._api.retrieve(id)))

    def extend(self, machine: Machine) -> None:
        """Extend the lifetime of an idle machine while its program is running."""
        self._wire.once(lambda: self._api.extend_expiry(str(machine.id), seconds=machine.inactive_s))

    def stop(self, id: str) -> dict[str, Any]:
        """Stop a machine with its sessions."""
        try:
            told = plain(self._wire.read(lambda: self._api.stop(id, force=True)))
        except NotFound:
            return {}
        if state(told) in UP:
            told = self._raw(id)
        if state(told) in UP:
            raise ProviderError(self._provider, f"machine {id} is still {state(told)} after a stop request")
        return told

    def _billed_s(self, raw: dict[str, Any]) -> float:
        return billed_s(raw)

    # -- the account's -------------------------------------------------------------------------------------

    def up(self) -> list[dict[str, Any]]:
        """List the machines that are billed or will be."""
        return self._all(self._api.list, status=[f"MODEL_RESOURCES_STATUS_{one}" for one in UP])

    def _all(self, call: Callable[..., Any], **query: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        page: dict[str, Any] = {}
        for _ in range(MOST_PAGES):
            answer: dict[str, Any] = {}

            def read(page: dict[str, Any] = page, answer: dict[str, Any] = answer) -> object:
                answer.clear()
                answer.update(plain(call(limit=100, **query, **page)))
                return answer

            entries = self._wire.entries(read, "data")
            if not all(text(raw.get("id")) for raw in entries):
                raise UnexpectedAnswer(self._provider, "a list entry has no id")
            found += entries
            cursor = text(table(answer.get("meta")).get("next_cursor"))
            if cursor is None or not table(answer.get("meta")).get("has_more"):
                return found
            if cursor == page.get("after"):
                break
            page = {"after": cursor}
        raise UnexpectedAnswer(self._provider, "the list never ends")

    def refs(self, up: list[dict[str, Any]]) -> dict[str, str]:
        """Map machines that are up to the refs of their runs. Searches the run directories on this machine,
        then the names of the machines' sessions, and last the local requests whose response was lost."""
        found: dict[str, str] = {}
        asked = self.asked_for()
        found |= {one.id: ref for ref, one in asked if one.id is not None}
        if any(raw["id"] not in found for raw in up):
            status = [f"TRAINING_SESSION_STATUS_{one}" for one in ("CREATING", "RUNNING")]
            for raw in self._all(self._sessions.list, status=status):
                ref = ref_in(raw.get("display_name"))
                if ref is not None:
                    found.setdefault(str(raw.get("model_resources_id")), ref)
        for ref, one in asked:
            left = [raw for raw in up if raw["id"] not in found]
            with suppress(UnexpectedAnswer):  # one of several: they are listed without a run
                if one.id is None and (raw := self._match(one, left)) is not None:
                    found[str(raw["id"])] = ref
        return found

    def session(self, machine: str, name: str) -> dict[str, Any] | None:
        """Find a session on a machine by its name."""
        found = self._all(self._sessions.list, model_resources_id=machine)
        return next((raw for raw in found if raw.get("display_name") == name), None)

    def standing(self) -> Iterator[Standing]:
        """List the machines that are up. Empty for a project without access to training sessions."""
        try:
            up = self.up()
        except (NotFound, PermissionRefused):
            return
        if not up:
            return
        refs, mine, prices = self.refs(up), self._user(), dict[str, Decimal | None]()
        for raw in up:
            body = {
                name: raw[name] for name in ("base_model", "compute_config", "lora_enabled") if name in raw
            }
            key = str(sorted(body.items()))
            if key not in prices:
                prices[key] = None
                with suppress(ProviderError):
                    prices[key] = self.usd_per_hour(body)
            ref, by = refs.get(str(raw["id"])), text(raw.get("created_by"))
            yield Standing(
                provider=self._provider,
                kind="job",
                id=str(raw["id"]),
                name=ref,
                state=state(raw).lower(),
                bills=True,
                usd_per_hour=prices[key],
                rented=True,
                job_id=ref,
                created_at=when(raw.get("created_at")),
                owner=by if mine is not None and by != mine else None,
                note=f"training session of {raw.get('base_model')}",
            )

    def _user(self) -> str | None:
        """Return the key's user, if the key belongs to a user."""
        with suppress(ProviderError):
            who = plain(self._wire.read(lambda: self._client().whoami()))
            return text(table(who.get("user")).get("id"))
        return None


def state(raw: Mapping[str, Any]) -> str:
    """Return the host's status without its prefix."""
    return (text(raw.get("status")) or "UNKNOWN").removeprefix("MODEL_RESOURCES_STATUS_")


def billed_s(raw: Mapping[str, Any]) -> float:
    """Return the seconds from a machine's creation to its end, or to the time at which the host will end
    it."""
    began = when(raw.get("created_at"))
    ends = [when(raw.get("updated_at"))]
    if state(raw) in UP:
        ends.append(when(raw.get("expires_at")))
    known = [at for at in ends if at is not None]
    return max((at - began).total_seconds() for at in known) if began is not None and known else 0.0
