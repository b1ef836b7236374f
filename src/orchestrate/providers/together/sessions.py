"""Training sessions at Together, using its official client.

Machines are created with the client's own methods, without retries (see `machines`). Operations use its
`SessionClient`, which adds an idempotency key to each, so the host runs an operation only once even if it is
resent. One thread per session sends them in order."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrate import catalog
from orchestrate.core import days
from orchestrate.costing import HourlyRate, RateBook
from orchestrate.errors import (
    InvalidRequest,
    OrchestrateError,
    ProviderError,
    UsageError,
)
from orchestrate.local.run import RunDir
from orchestrate.paid.limits import require_price
from orchestrate.providers import files
from orchestrate.providers.base import Progress
from orchestrate.providers.calls import money, plain, rows, table, text
from orchestrate.providers.rented import Machine, MachineWatch
from orchestrate.providers.session_jobs import JobsAndSessions
from orchestrate.providers.sessions import (
    CONTINUES,
    MOST_TOKENS,
    SESSION,
    Row,
    SessionBackend,
    SessionOrder,
    SessionPrice,
    array_of,
    loss_settings,
)
from orchestrate.providers.together import PROFILE
from orchestrate.providers.together.machines import TAIL_S, Machines, wanted
from orchestrate.providers.together.provider import TogetherProvider
from orchestrate.types import (
    Artifact,
    Checkpoint,
    Confidence,
    JobHandle,
)

if TYPE_CHECKING:
    import numpy as np

    from orchestrate.settings.config import HostConfig

    Array = np.ndarray[Any, Any]

SCHEME = "together://"
"""Prefix of the locations of saved states. The host's checkpoint id follows."""
ALPHA = 32
"""LoRA alpha, as in local and Tinker sessions."""
OPERATION_S, INTERVAL_S = 1800.0, 0.25
"""Timeout of one operation, and pause between two status checks, in seconds."""
OTHERS = {
    "gspo": "Together's GRPO with sequence-level ratios uses a different formula",
    "stable_reinforce": "its formula is not published",
}
_SUPPORTED = frozenset({"target_tokens", "weights", "mask", "logprobs", "advantages"})
T = TypeVar("T")


class TogetherSession(SessionBackend):
    """One model on its own machine."""

    def __init__(self, provider: SteppedTogether, order: SessionOrder, run: RunDir) -> None:
        self._provider, self._order, self._run = provider, order, run
        self._machines = provider.machines
        self._thread = ThreadPoolExecutor(1, f"together {order.ref}")
        self._stale = False
        """True if the generator's weights are older than the trainer's."""
        self._machine: Machine | None = None
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

    # -- sessions of the host: they cost nothing by themselves ---------------------------------------------

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
        return self._told(
            lambda: SessionClient.attach(
                session_id=id,
                api_key=config.require_key().reveal(),
                base_url=config.base_url or PROFILE.url,
            )
        )

    # -- operations ----------------------------------------------------------------------------------------

    def _asked(self, operation: Callable[[], T]) -> Future[T]:
        return self._thread.submit(lambda: self._told(operation))

    def _told(self, operation: Callable[[], T]) -> T:
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
        samples = [_sample(number, row, loss) for number, row in enumerate(rows, 1)]
        given = [sample["loss_fn_inputs"] for sample in samples]
        known = [{name: tensor["data"] for name, tensor in inputs.items()} for inputs in given]
        if not backward and loss == "cross_entropy":
            for inputs in given:  # positions of weight 0 would come back as 0
                inputs["weights"] = _tensor([1.0] * len(inputs["target_tokens"]["data"]))
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
            return _forward_answer(done, known, None if backward or loss != "cross_entropy" else known)

        return self._asked(ask)

    def gradient(self, rows: Sequence[Row]) -> Future[dict[str, Any]]:
        """Send the gradient of a loss that was computed here. The gradient is minus the rows' weights."""
        samples: list[dict[str, Any]] = []
        gradients: list[dict[str, Any]] = []
        for number, row in enumerate(rows, 1):
            sample = _sample(number, row, "cross_entropy")
            weights = sample["loss_fn_inputs"].pop("weights")["data"]
            gradients.append({"data": [-value for value in weights], "dtype": "D_TYPE_FLOAT32"})
            samples.append(sample)

        def ask() -> dict[str, Any]:
            self._client.trainer.custom_forward_backward(
                samples=samples, gradients=gradients, timeout=OPERATION_S, interval=INTERVAL_S
            )
            return {"logprobs": [], "metrics": {"loss:sum": 0.0}}

        return self._asked(ask)

    def step(self, adam: Mapping[str, float]) -> Future[dict[str, Any]]:
        def ask() -> dict[str, Any]:
            self._stale = True
            done = self._client.trainer.optim_step(
                adam_params=dict(adam), timeout=OPERATION_S, interval=INTERVAL_S
            )
            return {"metrics": {"step:max": float(done.step)}}

        return self._asked(ask)

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
            return {"answers": [_sequence(one) for one in done.sequences]}

        return self._asked(ask)

    def save(self, folder: Path, *, optimizer: bool) -> Future[str]:
        """Save at the host. Nothing is written to `folder`."""

        def ask() -> str:
            client = self._client
            call = client.create_training_checkpoint if optimizer else client.create_inference_checkpoint
            return f"{SCHEME}{call(timeout=OPERATION_S, interval=INTERVAL_S).id}"

        return self._asked(ask)

    def load(self, saved: str, *, optimizer: bool) -> Future[None]:
        """Start a new session from the saved state, because the host cannot load one into a running
        session."""

        def ask() -> None:
            before = self._client
            made = self._made_session(saved.removeprefix(SCHEME), optimizer=optimizer)
            self._client, self._stale = self._attached(made), True
            with suppress(Exception):  # it costs nothing, and ends with its machine
                before.stop()

        return self._asked(ask)

    # -- ending --------------------------------------------------------------------------------------------

    def _extend(self) -> None:
        if self._machine is not None:
            self._machines.extend(self._machine)

    def close(self) -> None:
        """Stop the machine and with it the session. Unsaved state is lost."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        try:
            self._watch.close(PROFILE.title, TAIL_S)
        finally:
            if self._client is not None:
                with suppress(Exception):
                    self._client.detach()


def _tensor(values: Sequence[float], dtype: str = "float32") -> dict[str, Any]:
    return {"data": list(values), "dtype": dtype}


def _sample(number: int, row: Row, loss: str) -> dict[str, Any]:
    """Convert a row. Raises `UsageError` if Together would train it differently."""
    import numpy as np  # the base install has none

    inputs: dict[str, Any] = {}
    for name, value in row["inputs"].items():
        if name not in _SUPPORTED:
            raise UsageError(f"row {number}: Together's losses don't accept the input {name!r}")
        array = array_of(value)
        if array.ndim != 1:
            raise UsageError(
                f"row {number}: Together expects one {name} per token (got shape {list(array.shape)})"
            )
        if loss != "cross_entropy" and name == "weights" and not np.isin(array, (0, 1)).all():
            raise UsageError(f"row {number}: with {loss}, Together accepts only the weights 0 and 1")
        inputs[name] = _tensor(array.tolist(), "int64" if name == "target_tokens" else "float32")
    if loss == "cross_entropy" and "weights" not in inputs and "target_tokens" in inputs:
        inputs["weights"] = _tensor([1.0] * len(inputs["target_tokens"]["data"]))
    chunk = {"encoded_text": {"tokens": list(row["tokens"])}}
    return {"model_input": {"chunks": [chunk]}, "loss_fn_inputs": inputs}


def _forward_answer(
    done: Any, given: Sequence[Mapping[str, Any]], weighed: Sequence[Mapping[str, Any]] | None
) -> dict[str, Any]:
    """`weighed`: compute the loss of cross-entropy here, from all log-probabilities and these weights."""
    import numpy as np

    found = [np.asarray(one.tensors["logprobs"].data, dtype="<f4") for one in done.loss_fn_outputs or ()]
    if len(found) != len(given):
        raise ProviderError(
            "together", f"received log-probabilities of {len(found)} rows instead of {len(given)}"
        )
    loss = float(done.loss)
    if weighed is not None:
        loss = float(
            sum(-(lp * np.asarray(row["weights"])).sum() for lp, row in zip(found, weighed, strict=True))
        )
    metrics = {**dict(done.metrics or {}), "loss:sum": loss}
    if all("logprobs" in row for row in given):
        apart = sum(abs(lp - row["logprobs"]).sum() for lp, row in zip(found, given, strict=True))
        metrics["sampled_logprob_difference:sum"] = float(apart)
    return {"logprobs": found, "metrics": metrics}


def _sequence(one: Any) -> dict[str, Any]:
    stop = "stop" if one.stop_reason == "STOP_REASON_STOP" else "length"
    return {"stop": stop, "tokens": [int(id) for id in one.tokens], "logprobs": list(one.logprobs or ())}


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
    """Together, with training sessions. The sessions' run directories are on this machine."""

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
        Together can't train, and `UnknownPrice`."""
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

            told = self._wire.read(lambda: self.post_training.checkpoints.download(id=id, variant=variant))
            with httpx.Client(timeout=self.config.timeout_s) as http:
                for one in rows(plain(told).get("data")):
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
                f"Together always trains attention and MLP layers together, so {part}=False is not possible"
            )
