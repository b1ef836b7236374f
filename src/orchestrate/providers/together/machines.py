"""The machines of training sessions at Together: model resources, which bill hourly while they are up.

A model resource has no name and its creation no idempotency key. What finds one again whose answer was lost
is that it was not there before, and its `inactive_timeout`, which each run has its own of. The request is
written into the run directory before it is sent, and is never sent a second time. The machine ends when the
session does, and by the host's own timeout when the program was killed."""

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
"""The shortest timeout of the host, and how many more seconds mark a run's own."""
TAIL_S = float(LEAST_S + MARKS)
"""The longest for which a machine bills after its program was killed."""
UP = ("PENDING", "CREATING", "READY")
OPTIONS = frozenset({"gpu_type", "generators"})


def inactive_s(ref: str) -> int:
    """Return the timeout that marks a run's machines."""
    return LEAST_S + int(hashlib.sha256(ref.encode()).hexdigest(), 16) % MARKS


def wanted(order: SessionOrder) -> dict[str, Any]:
    """Return the body of a request for a machine. Raises `UsageError` for unknown options."""
    if unknown := sorted(order.options.keys() - OPTIONS):
        known = ", ".join(sorted(OPTIONS))
        raise UsageError(f"a session at Together has no option {unknown[0]!r}", fix=f"one of {known}")
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
        """Return the host's own estimate, or `None` where it gives no price in US dollars."""
        told = plain(self._wire.read(lambda: self._api.estimate_cost(**body)))
        usd = money(told.get("price_per_hour"))
        return usd if usd and usd > 0 and told.get("currency") == "USD" else None

    # -- one run's -----------------------------------------------------------------------------------------

    def create(self, run: RunDir, order: SessionOrder) -> Machine:
        """Ask for a machine, once. Raises `OutcomeUnknown` when the answer was lost and the machine can't be
        found, and `ProviderError` if it is known that there is none."""
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
                    "if it was created, Together stops it after it has been idle for a while",
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
        """Raises `UnexpectedAnswer` where two machines may be the one that was asked for."""
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
            raise UnexpectedAnswer(self._provider, f"several machines may be this run's: {ids}")
        return found[0] if found else None

    def _ready(self, raw: dict[str, Any]) -> bool:
        if state(raw) not in UP:
            why = text(table(raw.get("error")).get("message")) or "no reason given"
            raise ProviderError(self._provider, f"the machine is {state(raw).lower()}: {why}")
        return state(raw) == "READY"

    def _raw(self, id: str) -> dict[str, Any]:
        return plain(self._wire.read(lambda: self._api.retrieve(id)))

    def extend(self, machine: Machine) -> None:
        """Keep an idle machine while its program lives."""
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
            raise ProviderError(self._provider, f"the machine {id} was asked to stop and is {state(told)}")
        return told

    def _billed_s(self, raw: dict[str, Any]) -> float:
        return billed_s(raw)

    # -- the account's -------------------------------------------------------------------------------------

    def up(self) -> list[dict[str, Any]]:
        """List the machines that bill or will."""
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
                raise UnexpectedAnswer(self._provider, "an entry without an id in a list")
            found += entries
            cursor = text(table(answer.get("meta")).get("next_cursor"))
            if cursor is None or not table(answer.get("meta")).get("has_more"):
                return found
            if cursor == page.get("after"):
                break
            page = {"after": cursor}
        raise UnexpectedAnswer(self._provider, "a list that never ends")

    def refs(self, up: list[dict[str, Any]]) -> dict[str, str]:
        """Map machines that are up to the refs of their runs: by the run directories here, then by the names
        of their sessions, and last by requests here whose answer was lost."""
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
        """List the machines that are up. A project without access to training sessions has none."""
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
        """Return the user of the key, where it is a user's."""
        with suppress(ProviderError):
            who = plain(self._wire.read(lambda: self._client().whoami()))
            return text(table(who.get("user")).get("id"))
        return None


def state(raw: Mapping[str, Any]) -> str:
    """Return the host's word without its prefix."""
    return (text(raw.get("status")) or "UNKNOWN").removeprefix("MODEL_RESOURCES_STATUS_")


def billed_s(raw: Mapping[str, Any]) -> float:
    """Return the seconds from the creation of a machine to its end, or to the time at which the host ends
    it."""
    began = when(raw.get("created_at"))
    ends = [when(raw.get("updated_at"))]
    if state(raw) in UP:
        ends.append(when(raw.get("expires_at")))
    known = [at for at in ends if at is not None]
    return max((at - began).total_seconds() for at in known) if began is not None and known else 0.0
