"""TrainingSession: your own loop trains a model step by step, on this machine or at a host."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import contextmanager, suppress
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from orchestrate.core.amounts import amount
from orchestrate.errors import (
    HostUnavailable,
    InvalidRequest,
    OrchestrateError,
    OverBudget,
    RunFailed,
    UsageError,
)
from orchestrate.local.run.checkpoints import SAVE_NAME
from orchestrate.providers.sessions import MOST_TOKENS, SessionBackend, TokenUse, then
from orchestrate.sessions import shapes
from orchestrate.sessions.record import CHECK_S, REFRESH_S, SessionRecord, SessionRequest, ended_already
from orchestrate.sessions.shapes import (
    ADAM,
    LORA,
    ForwardOutput,
    PackedRows,
    SampleOutput,
    SavedState,
    StepOutput,
)
from orchestrate.types import JobError, Run

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace

CustomLoss = Callable[[Sequence[Any], list[Any]], tuple[Any, Mapping[str, Any]]]
"""A function `loss(data, logprobs) -> (loss, metrics)`. `logprobs` has one torch tensor of token
log-probabilities per row."""
IDLE_MINUTES = Decimal(30)
"""Default number of idle minutes before a session on a rented machine pauses."""
LEAVING_S, OPENING_S = 60.0, 10.0
"""Time limits in seconds. `LEAVING_S` applies when a session pauses: the host must respond and the last
checkpoint must be saved within this time. `OPENING_S` applies when a session is paused or canceled while it
opens: the host must respond within this time."""
LAST = "last"
"""Name of the checkpoint that is saved if a session ends before the training loop does."""
NO_ANSWER = f"the host did not respond within {LEAVING_S:g} seconds"


class _StepSums:
    """Sums since the last optimizer step."""

    def __init__(self) -> None:
        self.loss = self.weight = self.apart = 0.0
        self.tokens = self.policy_tokens = 0
        self.cross_entropy = True

    def add(self, loss: str, rows: PackedRows, metrics: Mapping[str, float]) -> None:
        self.loss += metrics["loss:sum"]
        self.weight += rows.weight
        self.tokens += rows.tokens
        self.cross_entropy &= loss == "cross_entropy"
        if "sampled_logprob_difference:sum" in metrics:
            self.apart += metrics["sampled_logprob_difference:sum"]
            self.policy_tokens += rows.tokens

    def values(self) -> dict[str, float]:
        found = {"loss_sum": self.loss, "step_tokens": float(self.tokens)}
        if self.cross_entropy and self.weight > 0:
            found["train_loss"] = self.loss / self.weight
        if self.policy_tokens:
            found["sampled_logprob_difference"] = self.apart / self.policy_tokens
        return found


class TrainingSession:
    """A model that your own loop trains. Use it as a context manager.

    The session is a run: its metrics, checkpoints and cost are in the store. At the end of the block, the
    weights become the run's tuned model. After an error, at the cost limit, or after `idle_minutes` without a
    request, the weights are saved and the run is paused. Continue with `ft.session(resume=RUN)`."""

    def __init__(self, record: SessionRecord, *, idle_minutes: Decimal | None = None) -> None:
        self._record = record
        if idle_minutes is None and record.meter.price.tail_s:
            idle_minutes = IDLE_MINUTES
        self._idle_s = None if idle_minutes is None else float(idle_minutes) * 60
        self._lock = threading.RLock()
        """Held while a request is being sent, so that requests are sent in order."""
        self._counting = threading.Lock()
        self._sums = _StepSums()
        self._known: dict[int, Future[Any]] = {}
        self._waiting: set[Future[Any]] = set()
        self._ended: OrchestrateError | None = None
        self._ended_well = False
        self._under_way = 0
        self._opened: SessionBackend | None = None
        self._ready = False
        self._last_request_at = time.monotonic()
        self._step = self._trained = 0
        self._usd = Decimal(0)
        self.recipes = Counter[str]()
        """Number of times that this program has completed each recipe, by recipe name."""
        self.futures = SessionFutures(self)
        """Asynchronous versions of the session's methods. Each returns a `concurrent.futures.Future`
        immediately."""
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None = None, *_: object) -> None:
        if error is None:
            self.close()
        else:
            whose = "your loop" if self._record.run.own_loop else "the recipe"
            self._pause("loop_failed", f"{whose} raised {type(error).__name__}: {error}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self._record.run.provider} step {self._step}>"

    # -- properties ----------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Id of the run."""
        return self._record.run.id

    @property
    def record(self) -> Run:
        """The run's record, as last read from the store."""
        return self._record.run

    @property
    def step(self) -> int:
        """Number of optimizer steps so far."""
        return self._step

    @property
    def cost_usd(self) -> Decimal:
        """Cost so far, in US dollars. Requests in progress are counted at their maximum cost."""
        return self._record.meter.usd

    @property
    def saves(self) -> list[str]:
        """Names that `load` accepts."""
        return list(self._record.saves())

    @property
    def folder(self) -> Path:
        """The run's directory on this machine."""
        return self._record.dir.path

    @property
    def tokenizer_name(self) -> str:
        """The folder or Hub id of the model's tokenizer."""
        return self._backend.tokenizer

    def tokenizer(self) -> Any:
        """Load the model's tokenizer with transformers."""
        return import_module("transformers").AutoTokenizer.from_pretrained(self.tokenizer_name)

    # -- training ------------------------------------------------------------------------------------------

    def forward_backward(
        self,
        data: Iterable[Any],
        loss: str = "cross_entropy",
        config: Mapping[str, Any] | None = None,
        *,
        seq_id: int | None = None,
    ) -> ForwardOutput:
        """Compute the gradient of a loss over rows, and add it to the gradients of earlier calls. `data`
        contains mappings or Tinker's `Datum`. If a `seq_id` was already used, the request is not executed
        again."""
        return self.futures.forward_backward(data, loss, config, seq_id=seq_id).result()

    def forward(
        self, data: Iterable[Any], loss: str = "cross_entropy", config: Mapping[str, Any] | None = None
    ) -> ForwardOutput:
        """Compute the loss and the log-probabilities without gradients."""
        return self.futures.forward(data, loss, config).result()

    def forward_backward_custom(self, data: Iterable[Any], loss: CustomLoss) -> ForwardOutput:
        """Compute gradients as `forward_backward` does, but for your own loss: a torch function of the
        log-probabilities."""
        return self.futures.forward_backward_custom(data, loss).result()

    def require_loss(self, loss: str) -> None:
        """Raise `UsageError` if the backend does not support a loss function. Nothing is sent or billed."""
        self._backend.require_loss(loss)

    def optim_step(self, adam: Any = None, *, seq_id: int | None = None) -> StepOutput:
        """Update the weights with AdamW. `adam` is a mapping or Tinker's `AdamParams`."""
        return self.futures.optim_step(adam, seq_id=seq_id).result()

    def skip_step(self) -> StepOutput:
        """Count an optimizer step without updating the weights, and return its metrics."""
        with self._lock:
            self._require_going()
            return self._stepped({"learning_rate": 0.0}, {})

    # -- logging and progress ------------------------------------------------------------------------------

    def log(self, values: Mapping[str, float]) -> None:
        """Add your own values, such as evaluation scores, to the metrics of the current step."""
        if values:
            self._record.dir.add_metrics(self._step, dict(values))

    def add_event(self, message: str, *, level: str = "info", type: str = "message") -> None:
        """Add a message to the run's events."""
        self._record.dir.add_event(message, level=level, type=type, step=self._step)

    def set_total_steps(self, steps: int) -> None:
        """Set the total number of steps of your loop, so the run can show its progress."""
        self._record.write_status(total_steps=steps)

    # -- sampling ------------------------------------------------------------------------------------------

    def sample(self, prompt: Any, num_samples: int = 1, params: Any = None) -> SampleOutput:
        """Sample from the current weights. `prompt` is token ids or Tinker's `ModelInput`. `params` is a
        mapping with max_tokens, temperature, top_p, top_k, seed and stop, or Tinker's `SamplingParams`."""
        return self.futures.sample(prompt, num_samples, params).result()

    def logprobs(self, prompt: Any) -> list[float | None]:
        """Return the log-probability of each token of a prompt, with `None` for the first token."""
        return self.futures.logprobs(prompt).result()

    # -- saving --------------------------------------------------------------------------------------------

    def save(self, name: str | None = None, *, kept: bool = True) -> SavedState:
        """Save the weights and the optimizer state as a checkpoint of the run, by default named `step-N`. The
        run can be resumed from it. With `kept=False`, the checkpoint is only meant for resuming, and on this
        machine the next one replaces it."""
        name = name or f"step-{self._step}"
        if not SAVE_NAME.fullmatch(name):
            raise UsageError(
                f"a checkpoint name may contain only letters, digits and the characters . _ - (got {name!r})"
            )
        with self._lock:
            self._require_going()
            return self._save(name, kept=kept)

    def _save(self, name: str, *, kept: bool = True, until: float | None = None) -> SavedState:
        step = self._step_when_sent(until)
        where = self._record.save(
            name, step, lambda to: self._answer(self._backend.save(to, optimizer=True), until), kept=kept
        )
        self._last_request_at = time.monotonic()
        self._record.visit_store()
        return SavedState(name, step, where)

    def _step_when_sent(self, until: float | None = None) -> int:
        """Return the step number after all sent requests have been carried out."""
        for future in [one for one in self._open_steps if not one.done()]:
            self._wait_for(future, until)
        return self._step

    def _answer(self, future: Future[Any], until: float | None = None) -> Any:
        self._wait_for(future, until)
        return future.result()

    def _wait_for(self, future: Future[Any], until: float | None = None) -> None:
        """Wait for a host that may no longer respond. Raises the error that ended the session in the
        meantime. With `until` (monotonic clock), raises `HostUnavailable` at that time, or when a
        cancellation is requested."""
        while not wait([future], CHECK_S).done:
            if self._ended is not None:
                raise self._ended
            if until is not None and (time.monotonic() > until or self._record.dir.asked() == "cancel"):
                raise HostUnavailable(self._record.run.provider, NO_ANSWER)

    def load(self, saved: SavedState | str, *, optimizer: bool = True) -> None:
        """Load the weights and optimizer state from a checkpoint, given as a `SavedState`, a name, or a
        path."""
        if isinstance(saved, str):
            there = "://" in saved or Path(saved).is_dir()
            path = saved if there else self._record.saved_at(saved)
        else:
            path = saved.path
        with self._lock:
            self._require_going()
            self._answer(self._backend.load(path, optimizer=optimizer))
            self._last_request_at = time.monotonic()

    # -- ending --------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """True if the session has ended, is paused, or was canceled."""
        return self._ended is not None

    def fail(self, error: Exception) -> None:
        """End the session permanently because of an error that would recur after resuming."""
        with self._lock:
            if not self._has_ended():
                job_error = JobError(code=type(error).__name__, message=str(error) or type(error).__name__)
                self._end("failed", error=job_error)

    def close(self) -> None:
        """End the session. The current weights become the run's tuned model."""
        with self._lock:
            if not self._has_ended():
                step, result = self._step_when_sent(), None
                if step:
                    result = self._publish(step)
                self._end("succeeded", result=result)
            if self._ended is not None and not self._ended_well:
                raise self._ended

    def _publish(self, step: int) -> str:
        if not self._backend.weights_here:
            return self._answer(self._backend.save(self._record.dir.path / "result", optimizer=False))
        self._record.publish(lambda to: self._answer(self._backend.save(to, optimizer=False)), step)
        return "adapter"

    def _pause(self, code: str, why: str, error: OrchestrateError | None = None) -> None:
        """Save the current state, and end the session so that it can be resumed."""
        until = time.monotonic() + LEAVING_S
        with self._held(until) as held:
            if self._has_ended():
                return
            message = f"{why}. To continue: {self._record.way_back(raised=code == 'limit')}"
            last = "last checkpoint" if self._record.saves() else "start"
            try:
                if not held:
                    raise HostUnavailable(self._record.run.provider, NO_ANSWER)
                if self._step_when_sent(until):
                    self._save(LAST, until=until)
            except OrchestrateError as failed:
                message += f" (continues from the {last}: {failed.message})"
            except OSError as failed:
                message += f" (continues from the {last}, because saving a new one failed: {failed})"
            if self._record.dir.asked() == "cancel":
                self._cancel()
            self._end("paused", error=JobError(code=code, message=message), raised=error)

    def _cancel(self) -> None:
        with self._held(time.monotonic()):
            self._end("cancelled", error=JobError(code="cancelled", message="the session was canceled"))

    @contextmanager
    def _held(self, until: float) -> Generator[bool]:
        """Hold the lock. Continue without it after `until`, or when a cancellation is requested, because its
        holder may be waiting for a host that no longer responds."""
        while not (held := self._lock.acquire(timeout=CHECK_S)):
            if time.monotonic() > until or self._record.dir.asked() == "cancel":
                break
        try:
            yield held
        finally:
            if held:
                self._lock.release()

    def _end(
        self,
        status: str,
        *,
        error: JobError | None = None,
        result: str | None = None,
        raised: OrchestrateError | None = None,
    ) -> None:
        """End the session, unless it has already ended."""
        with self._counting:
            if self._ended is not None:
                return
            self._ended_well = status == "succeeded"
            self._ended = raised or (RunFailed(error.message) if error else ended_already(self._record.run))
        for one in list(self._waiting):  # a host that is gone answers none of them
            with suppress(InvalidStateError):
                one.set_exception(self._ended)
        with suppress(OrchestrateError):
            if self._opened is not None:
                self._opened.close()
        self._record.end(status, error=error, result=result)

    @property
    def _backend(self) -> SessionBackend:
        assert self._opened is not None  # noqa: S101  the session is ready
        return self._opened

    def _has_ended(self) -> bool:
        """Return whether the session has ended, once its end is recorded, because the program may exit
        next."""
        if self._ended is not None:
            self._record.wait_for_end(LEAVING_S)
        return self._ended is not None

    def _require_going(self) -> None:
        if self._ended is not None:
            raise self._ended

    # -- starting, and the background thread ---------------------------------------------------------------

    def _start(self) -> None:
        record = self._record
        self._open_steps: list[Future[Any]] = []
        self._usd = record.meter.usd
        try:
            record.meter.require_left()
        except OverBudget as error:
            record.end("paused", error=JobError(code="limit", message=error.message))
            raise
        threading.Thread(target=self._keep, daemon=True, name=f"session {self.id}").start()
        try:
            self._open()
        except BaseException as error:
            requested = {"cancel": "cancelled", "pause": "paused"}.get(record.dir.asked() or "")
            host_down = isinstance(error, HostUnavailable) and not record.run.own_loop
            again = host_down or not isinstance(error, Exception) or bool(record.saves())
            job_error = JobError(code=type(error).__name__, message=str(error) or type(error).__name__)
            self._end(requested or ("paused" if again else "failed"), error=job_error)
            raise
        self._ready = True
        record.visit_store()

    def _open(self) -> None:
        record = self._record
        self._opened = record.provider.open_session(record.order_now())
        if self._ended is not None:  # meanwhile
            with suppress(OrchestrateError):
                self._opened.close()
            raise self._ended
        last = record.last_save()
        if last is not None:
            checkpoint, where = last
            self._answer(self._backend.load(where, optimizer=True))
            self._step, self._trained = checkpoint.progress.step, checkpoint.progress.trained_tokens
        record.dir.repair(self._step)
        record.dir.add_event(
            f"continues from step {self._step}" if last else "ready",
            type="resumed" if last else "started",
            step=self._step,
        )
        record.write_status(status="running", stage=None, step=self._step, trained_tokens=self._trained)

    def _keep(self) -> None:
        """Check in the background whether the session must end."""
        visited = time.monotonic()
        while self._ended is None:
            time.sleep(CHECK_S)
            try:
                self._check_limits()
                if time.monotonic() - visited > REFRESH_S and self._ended is None:
                    self._write_time()
                    self._record.visit_store()
                    visited = time.monotonic()
            except (OrchestrateError, OSError):
                continue  # the disk or the store may be back at the next look

    def _write_time(self) -> None:
        """Record how long the session has been open, in case the program is killed."""
        if self._lock.acquire(blocking=False):  # a request that is being sent can wait for the next look
            try:
                if self._ended is None:
                    self._record.write_status()
            finally:
                self._lock.release()

    def _check_limits(self) -> None:
        requested, quiet = self._record.dir.asked(), time.monotonic() - self._last_request_at
        if not self._ready:
            self._check_opening(requested)
        elif requested == "cancel":
            self._cancel()
        elif self._record.meter.reached(2 * CHECK_S):
            self._pause("limit", f"the session reached its limit of ${self._record.meter.max_usd}")
        elif requested == "pause":
            self._pause("paused", "the session was paused")
        elif self._idle_s is not None and not self._under_way and quiet > self._idle_s:
            self._pause("idle", f"there were no requests for {self._idle_s / 60:g} minutes")

    def _check_opening(self, requested: str | None) -> None:
        """End the session on request if its host does not respond. The backends of rented machines check this
        themselves."""
        record = self._record
        if requested is None or record.dir.request_age_s() < OPENING_S or record.meter.price.tail_s:
            return
        if requested == "cancel":
            self._cancel()
        else:
            back = record.way_back(raised=False)
            error = f"the session was paused before its host responded. To continue: {back}"
            self._end("paused", error=JobError(code="paused", message=error))

    # -- sending -------------------------------------------------------------------------------------------

    def _send(
        self,
        use: TokenUse,
        send: Callable[[], Future[dict[str, Any]]],
        read: Callable[[dict[str, Any]], tuple[Any, TokenUse]],
        seq_id: int | None = None,
    ) -> Future[Any]:
        """Send a request. `use` is its maximum token use. `read` returns its result and actual use."""
        with self._lock:
            if seq_id is not None and seq_id in self._known:
                return self._known[seq_id]
            self._require_going()
            try:
                self._record.meter.require_left()
                number = self._record.meter.reserve(use)
            except OverBudget as error:
                self._pause("limit", error.message, error)
                raise
            self._under_way += 1
            self._last_request_at = time.monotonic()
            made: Future[Any] = Future()
            made.set_running_or_notify_cancel()
            self._waiting.add(made)
            made.add_done_callback(self._waiting.discard)
            if seq_id is not None:
                self._known[seq_id] = made
            try:
                sent = send()
            except BaseException as error:
                self._settle(number, TokenUse() if isinstance(error, UsageError) else None)
                made.set_exception(error)  # for whoever sends it again under its number
                raise

        def take(done: Future[dict[str, Any]]) -> None:
            if self._ended is not None:  # another program may drive it, and its maximum is written down
                with suppress(InvalidStateError):
                    made.set_exception(self._ended)
                return
            try:
                result, took = read(done.result())
            except BaseException as error:  # noqa: BLE001  whoever waits gets it
                refused = isinstance(error, UsageError | InvalidRequest)  # it was not carried out
                self._settle(number, TokenUse() if refused else None)
                with suppress(InvalidStateError):  # the session has ended
                    made.set_exception(error)
            else:
                self._settle(number, took)
                with suppress(InvalidStateError):
                    made.set_result(result)

        sent.add_done_callback(take)
        return made

    def _settle(self, number: int, use: TokenUse | None) -> None:
        self._record.meter.settle(number, use)
        with self._counting:
            self._under_way -= 1
            self._last_request_at = time.monotonic()

    def _forward(
        self,
        rows: PackedRows,
        loss: str,
        config: Mapping[str, Any],
        seq_id: int | None,
        *,
        backward: bool,
        own: ForwardOutput | None = None,
    ) -> Future[ForwardOutput]:
        """Send a forward request. `own` is the result of a custom loss, whose gradient the rows contain as
        weights."""
        use = TokenUse(train=rows.tokens) if backward else TokenUse(prefill=rows.tokens)

        def read(answer: dict[str, Any]) -> tuple[ForwardOutput, TokenUse]:
            found = own or shapes.forward_output(answer)
            if backward:
                with self._counting:
                    self._sums.add(loss if own is None else "custom", rows, found.metrics)
                    self._trained += rows.tokens
            return found, use

        def send() -> Future[dict[str, Any]]:
            if own is not None:
                return self._backend.gradient(rows.rows)
            return self._backend.forward(rows.rows, loss, config, backward=backward)

        return self._send(use, send, read, seq_id)

    def _optim_step(self, adam: Mapping[str, float], seq_id: int | None) -> Future[StepOutput]:
        def read(answer: dict[str, Any]) -> tuple[StepOutput, TokenUse]:
            return self._stepped(adam, dict(answer["metrics"])), TokenUse()

        with self._lock:
            self._open_steps = [one for one in self._open_steps if not one.done()]
            made = self._send(TokenUse(), lambda: self._backend.step(adam), read, seq_id)
            self._open_steps.append(made)
        return made

    def _stepped(self, adam: Mapping[str, float], metrics: dict[str, float]) -> StepOutput:
        record = self._record
        with self._counting:
            self._step += 1
            sums, self._sums = self._sums, _StepSums()
            usd = record.meter.usd
            values = {
                **sums.values(),
                "learning_rate": adam["learning_rate"],
                "tokens": float(self._trained),
                "sampled_tokens": float(record.meter.used.sample),
                "cost_usd": float(usd),
                "step_cost_usd": float(usd - self._usd),
            }
            self._usd = usd
            if "grad_norm:mean" in metrics:
                values["grad_norm"] = metrics["grad_norm:mean"]
            with suppress(OSError):  # a full disk costs the record of a step, not the training
                record.dir.add_metrics(self._step, values)
                record.write_status(step=self._step, trained_tokens=self._trained)
            return StepOutput(self._step, metrics)


class SessionFutures:
    """Asynchronous versions of a session's methods. Each returns a future. Requests are executed in the order
    of the calls."""

    def __init__(self, session: TrainingSession) -> None:
        self._session = session

    def forward_backward(
        self,
        data: Iterable[Any],
        loss: str = "cross_entropy",
        config: Mapping[str, Any] | None = None,
        *,
        seq_id: int | None = None,
    ) -> Future[ForwardOutput]:
        return self._session._forward(shapes.packed(data), loss, config or {}, seq_id, backward=True)  # pyright: ignore[reportPrivateUsage]

    def forward(
        self, data: Iterable[Any], loss: str = "cross_entropy", config: Mapping[str, Any] | None = None
    ) -> Future[ForwardOutput]:
        return self._session._forward(shapes.packed(data), loss, config or {}, None, backward=False)  # pyright: ignore[reportPrivateUsage]

    def forward_backward_custom(self, data: Iterable[Any], loss: CustomLoss) -> Future[ForwardOutput]:
        """Wait for the log-probabilities, apply `loss`, and start the backward pass."""
        rows = list(data)
        there = self.forward(rows).result()
        weighted, metrics = shapes.custom_weights(rows, there, loss)
        packed, own = shapes.packed(weighted), ForwardOutput(there.loss_fn_outputs, metrics)
        return self._session._forward(packed, "cross_entropy", {}, None, backward=True, own=own)  # pyright: ignore[reportPrivateUsage]

    def optim_step(self, adam: Any = None, *, seq_id: int | None = None) -> Future[StepOutput]:
        given = shapes.options_of(adam, ADAM, "an optimizer step")
        return self._session._optim_step({name: float(value) for name, value in given.items()}, seq_id)  # pyright: ignore[reportPrivateUsage]

    def sample(self, prompt: Any, num_samples: int = 1, params: Any = None) -> Future[SampleOutput]:
        request = shapes.sample_request(prompt, num_samples, params)
        most = num_samples * int(request["max_tokens"] or MOST_TOKENS)

        def read(answer: dict[str, Any]) -> tuple[SampleOutput, TokenUse]:
            found = shapes.sample_output(answer)
            drawn = sum(len(one.tokens) for one in found.sequences)
            return found, TokenUse(prefill=len(request["prompt"]), sample=drawn)

        session = self._session
        use = TokenUse(prefill=len(request["prompt"]), sample=most)
        return session._send(use, lambda: session._backend.sample(request), read)  # pyright: ignore[reportPrivateUsage]

    def logprobs(self, prompt: Any) -> Future[list[float | None]]:
        ids = shapes.tokens_of(prompt)
        if len(ids) < 2:
            raise UsageError("log-probabilities need a prompt of at least two tokens")
        row = {"model_input": ids[:-1], "loss_fn_inputs": {"target_tokens": ids[1:]}}
        return then(self.forward([row]), lambda done: [None, *done.loss_fn_outputs[0]["logprobs"].tolist()])


def open_session(  # noqa: PLR0913  as the public one
    ws: Workspace,
    model: str | None,
    *,
    provider: str = "local",
    lora: Mapping[str, Any] | int | None = None,
    max_cost_usd: Decimal | float | str | None = None,
    idle_minutes: Decimal | float | str | None = None,
    resume: str | None = None,
    tags: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> TrainingSession:
    """Open a session. See `Orchestrator.session`."""
    limit = amount(max_cost_usd, "max_cost_usd")
    idle = amount(idle_minutes, "idle_minutes", "minutes", above_zero=True)
    if (model is None) == (resume is None):
        raise UsageError("pass either a model, or a run to resume")
    if model is None:
        record = SessionRecord.again(ws, ws.record(str(resume)), limit)
        return TrainingSession(record, idle_minutes=idle)
    given = {"rank": lora} if isinstance(lora, int) else lora
    request = SessionRequest(
        model=model,
        provider=provider,
        lora=shapes.options_of(given, LORA, "lora"),
        max_cost_usd=limit,
        options=options or {},
        tags=tags or {},
    )
    return TrainingSession(SessionRecord.begin(ws, request), idle_minutes=idle)
