"""Training sessions at Together, using its official client, on machines that are billed hourly.

Machines (model resources) are created with the client's own methods, without retries. A model resource has no
name, and its creation takes no idempotency key. If the response was lost, Orchestrate looks for a new machine
with the `inactive_timeout` that was derived from the run's ref. The request is written to the run directory
before it is sent, and is never sent twice. The machine is stopped when the session ends, or by the host's
timeout if the program was killed. Operations use the client's `SessionClient`, which adds an idempotency key
to each, so the host runs an operation only once even if it is resent. One thread per session sends them in
order."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.structs import replace

from orchestrate import catalog
from orchestrate.core import days
from orchestrate.costing import HourlyRate, RateBook
from orchestrate.errors import (
    InvalidRequest,
    NotFound,
    OrchestrateError,
    OutcomeUnknown,
    PermissionRefused,
    ProviderError,
    UnexpectedAnswer,
    UsageError,
)
from orchestrate.local.run import RunDir, now
from orchestrate.paid.limits import require_price
from orchestrate.providers import files
from orchestrate.providers.base import Progress
from orchestrate.providers.calls import money, plain, ref_in, rows, table, text, when
from orchestrate.providers.calls.hosted import MOST_PAGES, Wire
from orchestrate.providers.rented import POLL_S, SEARCH_S, MachineWatch, RentedMachines, RequestedMachine
from orchestrate.providers.session_jobs import JobsAndSessions
from orchestrate.providers.sessions import (
    CONTINUES,
    MOST_TOKENS,
    SESSION,
    Row,
    SessionBackend,
    SessionOrder,
    SessionPrice,
    loss_settings,
)
from orchestrate.providers.together import PROFILE
from orchestrate.providers.together.provider import TogetherProvider
from orchestrate.providers.together.responses import forward_answer, sample_of, sequence_of, tensor
from orchestrate.types import (
    Artifact,
    BilledResource,
    Checkpoint,
    Confidence,
    JobHandle,
)

if TYPE_CHECKING:
    import numpy as np

    from orchestrate.settings.config import HostConfig

    Array = np.ndarray[Any, Any]
    from together import Together

    from orchestrate.providers.sessions import SessionOrder

# -- machines --------------------------------------------------------------------------------------------


LEAST_S, MARKS = 300, 120
"""Shortest inactivity timeout that the host accepts, and the exclusive upper limit of the amount added to it,
both in seconds. The amount is derived from a run's ref, so the timeout of a machine helps to identify its
run."""
TAIL_S = float(LEAST_S + MARKS)
"""Maximum time in seconds for which a machine is billed after its program is killed."""
UP = ("PENDING", "CREATING", "READY")
OPTIONS = frozenset({"gpu_type", "generators"})


def inactive_s(ref: str) -> int:
    """Return the inactivity timeout of a run's machines, in seconds. It is derived from the run's ref, so it
    helps to find out which run a machine belongs to."""
    return LEAST_S + int(hashlib.sha256(ref.encode()).hexdigest(), 16) % MARKS


def wanted(order: SessionOrder) -> dict[str, Any]:
    """Build the body of the request that creates a machine. Raises `UsageError` for unknown options."""
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
        """Return the host's estimate of a machine's hourly price in US dollars, or `None` if the host
        returned none."""
        estimate = plain(self._wire.read(lambda: self._api.estimate_cost(**body)))
        usd = money(estimate.get("price_per_hour"))
        return usd if usd and usd > 0 and estimate.get("currency") == "USD" else None

    # -- machines of one run -------------------------------------------------------------------------------

    def create(self, run: RunDir, order: SessionOrder) -> RequestedMachine:
        """Request a machine, exactly once. Raises `OutcomeUnknown` if the response was lost and the machine
        can't be found, and `ProviderError` if none was created."""
        body, journal = wanted(order), self.journal(run)
        known = tuple(str(raw["id"]) for raw in self.up())
        machine = RequestedMachine(
            number=len(self.of(run)) + 1,
            base_model=order.model,
            inactive_s=body["inactive_timeout"],
            asked_at=now(),
            known=known,
        )
        api = self._api
        journal.append(machine)
        try:
            answer = self._wire.send_once(
                order.ref,
                lambda: api.create(**body),
                lambda made: text(plain(made).get("id")),
            )
        except OutcomeUnknown as lost:
            found = self._search(machine)
            if found is None:
                raise OutcomeUnknown(
                    self._provider,
                    order.ref,
                    "if the machine was created, Together stops it after an idle period",
                ) from lost
        except ProviderError:
            journal.append(replace(machine, ended=True))
            raise
        else:
            found = plain(answer)
        made = replace(machine, id=str(found["id"]))
        journal.append(made)
        return made

    def _search(self, machine: RequestedMachine) -> dict[str, Any] | None:
        waited = 0.0
        while (found := self._match(machine, self.up())) is None and waited < SEARCH_S:
            self._sleep(POLL_S)
            waited += POLL_S
        return found

    def _match(self, machine: RequestedMachine, up: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Raises `UnexpectedAnswer` if several machines match the request."""
        if machine.id is not None:
            return next((raw for raw in up if raw["id"] == machine.id), None)
        found = [
            raw
            for raw in up
            if raw["id"] not in machine.known
            and raw.get("base_model") == machine.base_model
            and raw.get("inactive_timeout") == machine.inactive_s
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

    def extend(self, machine: RequestedMachine) -> None:
        """Keep an idle machine up while its program is running."""
        self._wire.once(lambda: self._api.extend_expiry(str(machine.id), seconds=machine.inactive_s))

    def stop(self, id: str) -> dict[str, Any]:
        """Stop a machine and its sessions."""
        try:
            raw = plain(self._wire.read(lambda: self._api.stop(id, force=True)))
        except NotFound:
            return {}
        if state(raw) in UP:
            raw = self._raw(id)
        if state(raw) in UP:
            raise ProviderError(self._provider, f"machine {id} is still {state(raw)} after a stop request")
        return raw

    def _billed_s(self, raw: dict[str, Any]) -> float:
        return billed_s(raw)

    # -- machines of the account ---------------------------------------------------------------------------

    def up(self) -> list[dict[str, Any]]:
        """List the machines that are billed or will be billed."""
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
        """Return the refs of the runs that own the machines in `up`, as {machine id: ref}. Refs come from the
        run directories on this machine and from the names of the machines' sessions. The remaining machines
        are matched with requests whose response was lost."""
        found: dict[str, str] = {}
        pending = self.pending()
        found |= {one.id: ref for ref, one in pending if one.id is not None}
        if any(raw["id"] not in found for raw in up):
            status = [f"TRAINING_SESSION_STATUS_{one}" for one in ("CREATING", "RUNNING")]
            for raw in self._all(self._sessions.list, status=status):
                ref = ref_in(raw.get("display_name"))
                if ref is not None:
                    found.setdefault(str(raw.get("model_resources_id")), ref)
        for ref, one in pending:
            left = [raw for raw in up if raw["id"] not in found]
            with suppress(UnexpectedAnswer):  # one of several: they are listed without a run
                if one.id is None and (raw := self._match(one, left)) is not None:
                    found[str(raw["id"])] = ref
        return found

    def session(self, machine: str, name: str) -> dict[str, Any] | None:
        """Find a session on a machine by its name."""
        found = self._all(self._sessions.list, model_resources_id=machine)
        return next((raw for raw in found if raw.get("display_name") == name), None)

    def billing_items(self) -> Iterator[BilledResource]:
        """List the machines that are up. Yields nothing for a project without access to training sessions."""
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
            created_at, base_model = when(raw.get("created_at")), raw.get("base_model")
            owner = by if mine is not None and by != mine else None
            yield self._billing_item(
                str(raw["id"]), ref, state(raw), prices[key], created_at, base_model, owner
            )

    def _user(self) -> str | None:
        """Return the key's user, if the key belongs to a user."""
        with suppress(ProviderError):
            who = plain(self._wire.read(lambda: self._client().whoami()))
            return text(table(who.get("user")).get("id"))
        return None


def state(raw: Mapping[str, Any]) -> str:
    """Return a machine's status without the prefix `MODEL_RESOURCES_STATUS_`, or `UNKNOWN` if it has none."""
    return (text(raw.get("status")) or "UNKNOWN").removeprefix("MODEL_RESOURCES_STATUS_")


def billed_s(raw: Mapping[str, Any]) -> float:
    """Return the seconds from the creation of a machine to its end, or to the time when the host will stop
    it."""
    began = when(raw.get("created_at"))
    ends = [when(raw.get("updated_at"))]
    if state(raw) in UP:
        ends.append(when(raw.get("expires_at")))
    known = [at for at in ends if at is not None]
    return max((at - began).total_seconds() for at in known) if began is not None and known else 0.0


# -- sessions --------------------------------------------------------------------------------------------


SCHEME = "together://"
"""Prefix of a saved state's location, followed by the host's checkpoint id."""
ALPHA = 32
"""LoRA alpha, as in local and Tinker sessions."""
OPERATION_S, INTERVAL_S = 1800.0, 0.25
"""Timeout of an operation and interval between status checks, in seconds."""
OTHERS = {
    "gspo": "Together's GRPO with sequence-level ratios uses a different formula",
    "stable_reinforce": "Together does not publish its formula",
}
T = TypeVar("T")


class TogetherSession(SessionBackend):
    """A session with one model on its own machine."""

    def __init__(self, provider: SteppedTogether, order: SessionOrder, run: RunDir) -> None:
        self._provider, self._order, self._run = provider, order, run
        self._machines = provider.machines
        self._thread = ThreadPoolExecutor(1, f"together {order.ref}")
        self._stale = False
        """True if the generator's weights are older than the trainer's."""
        self._machine: RequestedMachine | None = None
        self._client: Any = None
        self._tokenizer: str | None = None
        ends_in = order.ends_in_s
        ends_at = None if ends_in is None else time.monotonic() + ends_in
        self._watch = MachineWatch(self._machines, run, ends_at, self._extend)
        self._watch.start()
        try:
            self._machine = self._machines.create(run, order)
            self._machines.wait(run, self._machine)
            self._client = self._attached(self._made_session())
        except BaseException:
            with suppress(OrchestrateError, OSError):
                self.close()
            raise

    @property
    def tokenizer(self) -> str:
        known = catalog.resolve(self._order.model, PROFILE)
        return self._tokenizer or known.hub or known.id

    # -- the host's sessions, which cost nothing on top of the machine -------------------------------------

    def _made_session(self, saved: str | None = None, *, optimizer: bool = True) -> str:
        """Start a session on the machine. If the response was lost, it is found by its name."""
        api, name = self._provider.post_training.sessions, f"{self._order.ref}/{secrets.token_hex(4)}"
        lora = self._order.lora
        body: dict[str, Any] = {
            "model_resources_id": str(self._machine and self._machine.id),
            "display_name": name,
            "lora_config": {
                "rank": lora["rank"],
                "alpha": ALPHA,
                "train_unembed": lora["train_unembed"],
                **({} if lora["seed"] is None else {"seed": lora["seed"]}),
            },
        }
        if saved is not None:
            body |= {"resume_from_checkpoint_id": saved, "load_optimizer": optimizer}

        sent = False

        def make() -> Any:
            nonlocal sent
            if sent and (found := self._machines.session(body["model_resources_id"], name)):
                return found
            sent = True
            return api.create(**body)

        made = plain(self._provider.wire.read(make))
        for _ in range(int(OPERATION_S / INTERVAL_S)):
            status = str(made.get("status")).removeprefix("TRAINING_SESSION_STATUS_")
            if status == "RUNNING":
                self._tokenizer = text(made.get("sandbox_tokenizer"))
                return str(made["id"])
            if status != "CREATING":
                why = text(table(made.get("error")).get("message")) or "no reason given"
                raise ProviderError(self._provider.name, f"the session is {status.lower()}: {why}")
            time.sleep(INTERVAL_S)
            id = str(made["id"])
            made = plain(self._provider.wire.read(lambda id=id: api.retrieve(id)))
        raise ProviderError(
            self._provider.name, f"the session was not ready after {OPERATION_S / 60:g} minutes"
        )

    def _attached(self, id: str) -> Any:
        from together.post_training import SessionClient

        config = self._provider.config
        return self._mapped_errors(
            lambda: SessionClient.attach(
                session_id=id,
                api_key=config.require_key().reveal(),
                base_url=config.base_url or PROFILE.url,
            )
        )

    # -- operations ----------------------------------------------------------------------------------------

    def _submit(self, operation: Callable[[], T]) -> Future[T]:
        return self._thread.submit(lambda: self._mapped_errors(operation))

    def _mapped_errors(self, operation: Callable[[], T]) -> T:
        try:
            return operation()
        except Exception as error:
            raise _error(self._provider, error) from error

    def require_loss(self, loss: str) -> None:
        loss_settings("Together", OTHERS, loss, {})

    def forward(
        self, rows: Sequence[Row], loss: str, config: Mapping[str, Any], *, backward: bool
    ) -> Future[dict[str, Any]]:
        settings = loss_settings("Together", OTHERS, loss, config)
        samples = [sample_of(number, row, loss) for number, row in enumerate(rows, 1)]
        given = [sample["loss_fn_inputs"] for sample in samples]
        known = [{name: tensor["data"] for name, tensor in inputs.items()} for inputs in given]
        if not backward and loss == "cross_entropy":
            for inputs in given:  # positions of weight 0 would come back as 0
                inputs["weights"] = tensor([1.0] * len(inputs["target_tokens"]["data"]))
        wire = {"type": loss, **({f"{loss}_params": settings} if settings else {})}

        def ask() -> dict[str, Any]:
            call = self._client.trainer.forward_backward if backward else self._client.trainer.forward
            done = call(
                samples=samples,
                loss=wire,
                return_loss_fn_outputs=True,
                timeout=OPERATION_S,
                interval=INTERVAL_S,
            )
            return forward_answer(done, known, None if backward or loss != "cross_entropy" else known)

        return self._submit(ask)

    def gradient(self, rows: Sequence[Row]) -> Future[dict[str, Any]]:
        """Send the gradient of a loss that was computed on this machine. The `weights` of each row are the
        negative gradient of the loss with respect to the row's log-probabilities."""
        samples: list[dict[str, Any]] = []
        gradients: list[dict[str, Any]] = []
        for number, row in enumerate(rows, 1):
            sample = sample_of(number, row, "cross_entropy")
            weights = sample["loss_fn_inputs"].pop("weights")["data"]
            gradients.append({"data": [-value for value in weights], "dtype": "D_TYPE_FLOAT32"})
            samples.append(sample)

        def ask() -> dict[str, Any]:
            self._client.trainer.custom_forward_backward(
                samples=samples, gradients=gradients, timeout=OPERATION_S, interval=INTERVAL_S
            )
            return {"logprobs": [], "metrics": {"loss:sum": 0.0}}

        return self._submit(ask)

    def step(self, adam: Mapping[str, float]) -> Future[dict[str, Any]]:
        def ask() -> dict[str, Any]:
            self._stale = True
            done = self._client.trainer.optim_step(
                adam_params=dict(adam), timeout=OPERATION_S, interval=INTERVAL_S
            )
            return {"metrics": {"step:max": float(done.step)}}

        return self._submit(ask)

    def sample(self, request: Mapping[str, Any]) -> Future[dict[str, Any]]:
        """Sample from the newest weights."""
        if request["stop_ids"]:
            raise UsageError("Together supports stop strings, not stop token ids", fix='stop=["..."]')
        params: dict[str, Any] = {
            "max_tokens": request["max_tokens"] or MOST_TOKENS,
            "temperature": request["temperature"],
            "top_p": request["top_p"],
            "top_k": request["top_k"] or -1,
        }
        params |= {name: request[name] for name in ("seed", "stop") if request[name]}
        prompt = {"chunks": [{"encoded_text": {"tokens": list(request["prompt"])}}]}

        def ask() -> dict[str, Any]:
            if self._stale:
                self._client.trainer.weights_sync(timeout=OPERATION_S, interval=INTERVAL_S)
                self._stale = False
            done = self._client.generator.sample(
                prompt,
                num_samples=request["n"],
                sampling_params=params,
                timeout=OPERATION_S,
                interval=INTERVAL_S,
            )
            return {"answers": [sequence_of(one) for one in done.sequences]}

        return self._submit(ask)

    def save(self, folder: Path, *, optimizer: bool) -> Future[str]:
        """Save the current weights at the host. Nothing is written to `folder`."""

        def ask() -> str:
            client = self._client
            call = client.create_training_checkpoint if optimizer else client.create_inference_checkpoint
            return f"{SCHEME}{call(timeout=OPERATION_S, interval=INTERVAL_S).id}"

        return self._submit(ask)

    def load(self, saved: str, *, optimizer: bool) -> Future[None]:
        """Start a new session from the saved state, because the host cannot load a state into a running
        session."""

        def ask() -> None:
            before = self._client
            made = self._made_session(saved.removeprefix(SCHEME), optimizer=optimizer)
            self._client, self._stale = self._attached(made), True
            with suppress(Exception):  # it costs nothing, and ends with its machine
                before.stop()

        return self._submit(ask)

    # -- ending --------------------------------------------------------------------------------------------

    def _extend(self) -> None:
        if self._machine is not None:
            self._machines.extend(self._machine)

    def close(self) -> None:
        """Stop the machine, which also ends the session. Unsaved state is lost."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        try:
            self._watch.close(PROFILE.title, TAIL_S)
        finally:
            if self._client is not None:
                with suppress(Exception):
                    self._client.detach()


def _error(provider: SteppedTogether, error: Exception) -> Exception:
    """Convert the client's error to one of ours. Never repeats a request."""
    if isinstance(error, OrchestrateError):
        return error
    if type(error).__name__ == "OperationFailedError":
        refused = "INVALID_INPUT" in str(error)
        kind = InvalidRequest if refused else ProviderError
        return kind(provider.name, str(error), fix=None if refused else CONTINUES)
    if isinstance(error, TimeoutError):
        return ProviderError(
            provider.name,
            f"no result after {OPERATION_S / 60:g} minutes. The operation may still complete",
            fix=CONTINUES,
        )
    if isinstance(error, ValueError):
        return UsageError(str(error))
    return provider.wire.error(error)


class SteppedTogether(JobsAndSessions, TogetherProvider):
    """Together's backend with training sessions. Their run directories are on this machine."""

    profile = PROFILE
    features = TogetherProvider.features

    def __init__(self, config: HostConfig, *, sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__(config, sleep=sleep)
        self.wire, self._sleep = self._wire, sleep

    @property
    def post_training(self) -> Any:
        return self._client().post_training

    @cached_property
    def machines(self) -> Machines:
        return Machines(self.name, self._client, self._wire, self._runs.home, self._sleep)

    # -- sessions ------------------------------------------------------------------------------------------

    def session_price(self, order: SessionOrder, rates: RateBook) -> SessionPrice:
        """Query the host for the hourly price of the machine. Raises `UsageError` for an adapter that
        Together can't train, and `UnknownPrice` if the host returned no price."""
        _require_adapter(order)
        usd = self.machines.usd_per_hour(wanted(order))
        limit = money(order.spec.get("max_cost_usd")) or Decimal(0)
        require_price(
            self.name, usd, limit, "Together returned no hourly price in US dollars for this machine"
        )
        assert usd is not None  # noqa: S101
        source = "Together's estimate for this machine"
        hourly = HourlyRate(
            component="rental",
            usd_per_hour=usd,
            low_usd_per_hour=usd,
            high_usd_per_hour=usd,
            label="a machine for training and sampling",
            source=source,
            as_of=days.today().isoformat(),
            confidence=Confidence.QUOTED,
        )
        return SessionPrice(hourly=hourly, source=source, tail_s=TAIL_S)

    def open_session(self, order: SessionOrder) -> SessionBackend:
        return TogetherSession(self, order, self._runs.make(order))

    def _job_checkpoints(self, job: JobHandle) -> list[Checkpoint]:
        return TogetherProvider.checkpoints(self, job)

    # -- the tuned model -----------------------------------------------------------------------------------

    def _raw_job(self, job: JobHandle) -> dict[str, Any]:
        """Describe the result of a session as a job, so that it is deployed as one."""
        if job.kind != SESSION:
            return super()._raw_job(job)
        saved = plain(self._wire.read(lambda: self.post_training.checkpoints.retrieve(self._result(job))))
        adapter = table(table(saved.get("inference_registration")).get("adapter"))
        return {
            "id": job.job_id,
            "status": "completed",
            "adapter_object_id": adapter.get("id"),
            "model": saved.get("base_model"),
        }

    def _result(self, job: JobHandle) -> str:
        """Return the checkpoint that is the session's tuned model. Raises `UsageError`."""
        saved = self._runs.dir(job).written_state().result
        if saved is None:
            raise UsageError(f"session {job.job_id} has no tuned model: it ended before it completed a step")
        return saved.removeprefix(SCHEME)

    def download(
        self, job: JobHandle, dest: Path, *, checkpoint: str | None = None, progress: Progress | None = None
    ) -> Artifact:
        if job.kind != SESSION:
            return super().download(job, dest, checkpoint=checkpoint, progress=progress)
        if checkpoint is not None:
            raise UsageError("Together only offers a session's result for download, not its checkpoints")
        files.require_empty(dest)
        id, variant = self._result(job), "CHECKPOINT_VARIANT_ADAPTER"
        base = self._runs.dir(job).job().model

        def fetch(folder: Path, most: int) -> None:
            import httpx

            answer = self._wire.read(lambda: self.post_training.checkpoints.download(id=id, variant=variant))
            with httpx.Client(timeout=self.config.timeout_s) as http:
                for one in rows(plain(answer).get("data")):
                    name = str(one.get("filename"))
                    if Path(name).name != name or not files.wanted(name):
                        continue
                    url = files.safe_url(self.name, one.get("url"))
                    opened = files.signed(http, url)
                    files.fetch(self._wire, opened, folder / name, limit_bytes=most, progress=progress)

        return self._downloaded(job, dest, job.job_id, base, fetch)


def _require_adapter(order: SessionOrder) -> None:
    """Raise `UsageError` for adapter settings that Together doesn't support."""
    for part in ("train_mlp", "train_attn"):
        if not order.lora[part]:
            raise UsageError(
                f"Together only trains attention and MLP layers jointly, so {part}=False is not possible"
            )
