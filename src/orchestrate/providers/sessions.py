"""Interface of training sessions: the model that executes requests, and the price."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrate.core.files import last_line
from orchestrate.errors import HostUnavailable, InvalidRequest, NotFound, ProviderError, UsageError
from orchestrate.local.job import CLIP_HIGH, CLIP_LOW, DRO_BETA
from orchestrate.types import SESSION as SESSION
from orchestrate.types import Record

if TYPE_CHECKING:
    import numpy as np

    from orchestrate.costing import HourlyRate

LORA: Mapping[str, Any] = {
    "rank": 32,
    "seed": None,
    "train_mlp": True,
    "train_attn": True,
    "train_unembed": True,
}
"""Adapter settings of a session, with their default values."""
TOKEN_KINDS = ("train", "prefill", "sample")
"""Kinds of billed tokens. A quote has one component for each kind."""
MTOK = Decimal(1_000_000)
MOST_TOKENS = 2048
"""Default maximum number of tokens in a sample, as in the local engine."""
Row = Mapping[str, Any]
"""One row as `{"tokens": [...], "inputs": {name: {"data", "shape", "kind"}}}`, in the format of
`local.sessions.process`."""


def array_of(value: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """Convert an input of a row (`data`, `shape` and `kind`) to a NumPy array."""
    import numpy as np  # the base install has none

    return np.frombuffer(value["data"], dtype=value["kind"]).reshape(value["shape"])


class SessionOrder(Record, frozen=True, kw_only=True):
    """Request for a training session: the model, the adapter and the options."""

    ref: str
    model: str
    """The backend's id of the model."""
    model_name: str
    """The model's name as the user wrote it."""
    lora: dict[str, Any]
    """LoRA settings: rank, seed, train_mlp, train_attn, train_unembed."""
    options: dict[str, Any] = {}  # noqa: RUF012  msgspec copies an empty default
    """Options for this backend."""
    spec: dict[str, Any] = {}  # noqa: RUF012
    ends_in_s: float | None = None
    """Seconds until the session reaches its limit, on a host that bills hourly."""


class TokenUse(Record, frozen=True, kw_only=True):
    """Billed tokens of one or more requests, by kind."""

    train: int = 0
    prefill: int = 0
    """Tokens processed without a gradient: prompts, and rows of `forward`."""
    sample: int = 0

    def __add__(self, other: TokenUse) -> TokenUse:
        return TokenUse(
            train=self.train + other.train,
            prefill=self.prefill + other.prefill,
            sample=self.sample + other.sample,
        )


CONTINUES = "continue from the last checkpoint with: ft.session(resume=RUN)"
"""Suggested fix in errors that end a session."""
JOURNAL = "requests.jsonl"


class PaidRequest(Record, frozen=True, kw_only=True):
    """A line in the journal of a session that is billed per token. Each request has two lines: one with its
    maximum cost, written before the request is sent, and one with its actual cost, written after the response
    arrives. If the second line is missing, the maximum counts."""

    number: int
    settled: bool = False
    use: TokenUse = TokenUse()
    total_usd: Decimal | None = None
    """Cost of the session so far in US dollars. Requests without a response count at their maximum cost."""


def journal_usd(folder: Path) -> Decimal | None:
    """Return the session's cost from its journal, or `None` if it has no journal. If the program was killed,
    the journal is more recent than the state file."""
    line = last_line(folder / JOURNAL)
    return None if line is None else PaidRequest.from_json(line).total_usd


class SessionPrice(Record, frozen=True, kw_only=True):
    """The price of a session, which is billed hourly, per token, or not at all."""

    hourly: HourlyRate | None = None
    train_usd_per_mtok: Decimal = Decimal(0)
    prefill_usd_per_mtok: Decimal = Decimal(0)
    sample_usd_per_mtok: Decimal = Decimal(0)
    source: str = ""
    tail_s: float = 0.0
    """Maximum time in seconds that the host keeps billing after the program is killed. The session's limit
    includes this time."""

    @property
    def by_token(self) -> bool:
        return bool(self.train_usd_per_mtok or self.prefill_usd_per_mtok or self.sample_usd_per_mtok)

    def of(self, use: TokenUse, hours: Decimal = Decimal(0)) -> Decimal:
        usd = (
            use.train * self.train_usd_per_mtok
            + use.prefill * self.prefill_usd_per_mtok
            + use.sample * self.sample_usd_per_mtok
        ) / MTOK
        return usd + (hours * self.hourly.usd_per_hour if self.hourly is not None else Decimal(0))


def then(
    future: Future[Any],
    make: Callable[[Any], Any],
    error_of: Callable[[BaseException], BaseException] = lambda error: error,
) -> Future[Any]:
    """Return a future whose result is `make(result)`, where `result` is the result of `future`. If `future`
    or `make` fails, the returned future fails with `error_of(error)`."""
    made: Future[Any] = Future()
    made.set_running_or_notify_cancel()

    def take(done: Future[Any]) -> None:
        try:
            made.set_result(make(done.result()))
        except BaseException as error:  # noqa: BLE001  whoever waits gets it
            made.set_exception(error_of(error))

    future.add_done_callback(take)
    return made


_CLIPS: Mapping[str, float] = {"clip_low_threshold": CLIP_LOW, "clip_high_threshold": CLIP_HIGH}
LOSSES: Mapping[str, Mapping[str, float]] = {
    "cross_entropy": {},
    "importance_sampling": {},
    "ppo": _CLIPS,
    "cispo": _CLIPS,
    "dro": {"beta": DRO_BETA},
}
"""Losses that hosts compute with the same formula as the local engine, and the default values of their
settings, as {loss: {setting: default}}. Requests always contain all settings."""
OBJECTIVES = (*(name for name in LOSSES if name != "cross_entropy"), "gspo")
"""Names of the reinforcement-learning losses, which train on sampled answers. A backend may support only some
of them."""


def loss_settings(
    title: str, others: Mapping[str, str], loss: str, config: Mapping[str, Any]
) -> dict[str, float]:
    """Return all settings of a loss, as {setting: value}: the values in `config`, and defaults for the rest.
    `others` maps losses that the host doesn't support to the reasons. Raises `UsageError` for an unsupported
    loss or an unknown setting."""
    if loss not in LOSSES:
        why = others.get(loss, "unknown loss")
        raise UsageError(f"{title} has no loss {loss!r}: {why}", fix=f"use one of {', '.join(LOSSES)}")
    if strange := [name for name in config if name not in LOSSES[loss]]:
        known = ", ".join(LOSSES[loss]) or "none"
        raise UsageError(f"the loss {loss} has no setting {strange[0]!r}", fix=f"known settings: {known}")
    return {**LOSSES[loss], **{name: float(value) for name, value in config.items()}}


class SessionBackend(ABC):
    """One model of a session. Executes requests in call order."""

    weights_here: ClassVar[bool] = False
    """True if `save` writes the weights to a folder on this machine."""

    @property
    @abstractmethod
    def tokenizer(self) -> str:
        """Folder or hub id of the model's tokenizer."""

    def require_loss(self, loss: str) -> None:  # noqa: B027  most backends have all of them
        """Raise `UsageError` for a loss that the backend does not support. Sends nothing."""

    @abstractmethod
    def forward(
        self, rows: Sequence[Row], loss: str, config: Mapping[str, Any], *, backward: bool
    ) -> Future[dict[str, Any]]:
        """Run a forward pass and return `{"logprobs": [array of each row], "metrics": {...}}`."""

    def gradient(self, rows: Sequence[Row]) -> Future[dict[str, Any]]:
        """Add the gradient of a loss that was computed on this machine. The `weights` of each row are the
        negative gradient of the loss with respect to the row's log-probabilities."""
        return self.forward(rows, "cross_entropy", {}, backward=True)

    @abstractmethod
    def step(self, adam: Mapping[str, float]) -> Future[dict[str, Any]]:
        """Run an optimizer step and return `{"metrics": {...}}`."""

    @abstractmethod
    def sample(self, request: Mapping[str, Any]) -> Future[dict[str, Any]]:
        """Sample from the current weights and return `{"answers": [{"stop", "tokens", "logprobs"}]}`."""

    @abstractmethod
    def save(self, folder: Path, *, optimizer: bool) -> Future[str]:
        """Save the current weights and return their location. They are written to `folder` if `weights_here`
        is True."""

    @abstractmethod
    def load(self, saved: str, *, optimizer: bool) -> Future[None]:
        """Replace the current weights with saved weights."""

    @abstractmethod
    def close(self) -> None:
        """Release the model. Unsaved state is lost."""


class ClientSession(SessionBackend):
    """A model on a host whose client has Tinker's interface. The client numbers each request, so the host
    runs a resent request only once."""

    host: ClassVar[str]
    _types: Any
    _training: Any
    _sampling: Any = None
    """Sampler for the current weights. `None` once they have changed."""

    @property
    def tokenizer(self) -> str:
        return str(self._training.get_info().model_data.tokenizer_id)

    def forward(
        self, rows: Sequence[Row], loss: str, config: Mapping[str, Any], *, backward: bool
    ) -> Future[dict[str, Any]]:
        data = [self._datum(row) for row in rows]
        ask = self._training.forward_backward if backward else self._training.forward
        return self._submit(lambda: ask(data, loss, dict(config) or None), self._forward_answer)

    def _datum(self, row: Row) -> Any:
        given = self._types.ModelInput.from_ints(list(row["tokens"]))
        inputs = {
            name: self._types.TensorData.from_numpy(array_of(value)) for name, value in row["inputs"].items()
        }
        return self._types.Datum(model_input=given, loss_fn_inputs=inputs)

    def _forward_answer(self, result: Any) -> dict[str, Any]:
        outputs = [one["logprobs"].to_numpy() for one in result.loss_fn_outputs]
        return {"logprobs": outputs, "metrics": dict(result.metrics)}

    def step(self, adam: Mapping[str, float]) -> Future[dict[str, Any]]:
        self._sampling = None
        params = self._types.AdamParams(**adam)
        return self._submit(
            lambda: self._training.optim_step(params), lambda result: {"metrics": dict(result.metrics or {})}
        )

    def save(self, folder: Path, *, optimizer: bool) -> Future[str]:
        """Save the current weights at the host. Nothing is written to `folder`."""
        name = f"{folder.parent.name.lstrip('.').partition('.')[0]}-{secrets.token_hex(4)}"
        ask = self._training.save_state if optimizer else self._training.save_weights_for_sampler
        return self._submit(lambda: ask(name), lambda result: str(result.path))

    @abstractmethod
    def _future(self, sent: Any) -> Future[Any]:
        """Return the result of what was sent, as a future of Python's."""

    def _submit(self, ask: Callable[[], Any], read: Callable[[Any], Any]) -> Future[Any]:
        try:
            sent = self._future(ask())
        except Exception as error:
            raise client_error(self.host, error) from error
        return then(sent, read, lambda error: client_error(self.host, error))

    def _done(self, future: Any) -> Any:
        try:
            return future.result()
        except Exception as error:
            raise client_error(self.host, error) from error


def sampled(sequences: Iterable[Any]) -> dict[str, Any]:
    """Convert a session client's samples to the result of `SessionBackend.sample`."""
    answers = [
        {"stop": one.stop_reason, "tokens": list(one.tokens), "logprobs": list(one.logprobs or ())}
        for one in sequences
    ]
    return {"answers": answers}


def client_error(host: str, error: BaseException) -> BaseException:
    """Convert a session client's error to one of Orchestrate's errors."""
    name, message = type(error).__name__, str(error) or type(error).__name__
    if not isinstance(error, Exception) or isinstance(error, ProviderError | UsageError):
        return error
    status = getattr(error, "status_code", None)
    if str(getattr(error, "category", "")).lower().endswith("user") or status in (400, 422):
        return InvalidRequest(host, message)
    if status == 404:
        return NotFound(host, message)
    if name in ("APIConnectionError", "APITimeoutError", "InternalServerError"):
        return HostUnavailable(host, message)
    return ProviderError(host, message, fix=CONTINUES)
