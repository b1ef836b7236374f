"""Train the jobs of a sandbox."""

from __future__ import annotations

import json
import math
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import msgspec

from orchestrate.core.files import new_folder, whole, write_whole
from orchestrate.core.tensors import header_bytes, tensors
from orchestrate.errors import DataError, RunFailed
from orchestrate.local import AdapterSettings, Generator, Hyper, LocalJob, RunDir, launch, resume
from orchestrate.local.answers.worker import Worker
from orchestrate.local.job import Method, Preferences, Supervised
from orchestrate.local.run.checkpoints import Progress
from orchestrate.sandbox.jobs import (
    BROUGHT,
    DEFAULT_BETA,
    JobFailure,
    Phase,
    SandboxJob,
    SandboxSettings,
    brought_at,
)
from orchestrate.sandbox.uploads import AcceptedRows, write_canonical
from orchestrate.settings import SANDBOX_NOT_TRAINED
from orchestrate.types import Message, MetricPoint, Reply

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from orchestrate.sandbox.state import SandboxClock, SandboxState

    Array = npt.NDArray[np.float32]

# Answers of the sandbox's small model and of the adapters trained on it.


GATHERING_S = 0.01
"""Seconds to wait for more requests before a batch starts. This gives clients that just received an answer
time to send their next request and join the batch."""


@dataclass(frozen=True, eq=False)
class _PendingChat:
    adapter: Path | None
    messages: Sequence[Message]
    max_tokens: int
    temperature: float
    reply: Future[Reply] = field(default_factory=Future[Reply])

    def beside(self, other: _PendingChat) -> bool:
        """Return whether both can be answered at once. Sampled answers would depend on the other requests
        in the batch."""
        greedy = self.temperature == other.temperature == 0
        return greedy and (self.adapter, self.max_tokens) == (other.adapter, other.max_tokens)


class Generators:
    """A process that generates answers. It holds the sandbox's model and the last requested adapter.
    Concurrent requests are batched, but each gets the same answer as it would alone."""

    def __init__(self, model: str, threads: int, start: Callable[..., Generator] = Generator) -> None:
        """Set up the generators. `start` returns a generator for an adapter."""
        self.model = model
        self.threads = threads
        self._start = start
        self._answering = threading.Lock()
        self._queue = threading.Lock()
        self._waiting: list[_PendingChat] = []
        self._worker = Worker()
        self._known: dict[Path | None, Generator] = {}
        self._closed = False

    def reply(
        self, adapter: Path | None, messages: Sequence[Message], *, max_tokens: int, temperature: float
    ) -> Reply:
        """Generate a reply with the adapter, or with the sandbox's own model if `adapter` is `None`. Errors
        that the `Generator` raises propagate."""
        pending = _PendingChat(adapter, messages, max_tokens, temperature)
        with self._queue:
            self._waiting.append(pending)
        with self._answering:
            if not pending.reply.done():  # else answered with the one before
                if temperature == 0:
                    time.sleep(GATHERING_S)
                self._answer(pending)
        return pending.reply.result()

    def _answer(self, first: _PendingChat) -> None:
        with self._queue:
            together = [one for one in self._waiting if one is first or one.beside(first)]
            self._waiting = [one for one in self._waiting if one not in together]
        try:
            if self._closed:  # those who still wait start no process that nobody ends
                raise RunFailed("the sandbox has stopped")
            replies = self._generator(first.adapter).attempt(
                [one.messages for one in together],
                max_tokens=first.max_tokens,
                temperature=first.temperature,
                rounding="mended" if first.temperature == 0 else "left",
            )
        except BaseException as error:  # noqa: BLE001  each of those who asked is told
            for one in together:
                one.reply.set_exception(error)
            return
        for one, reply in zip(together, replies, strict=True):
            if isinstance(reply, DataError):
                one.reply.set_exception(reply)
            else:
                one.reply.set_result(reply)

    def _generator(self, adapter: Path | None) -> Generator:
        if adapter not in self._known:
            self._known[adapter] = self._start(
                self.model, adapter, threads=self.threads, device="cpu", worker=self._worker
            )
        return self._known[adapter]

    def close(self) -> None:
        with self._answering:
            self._closed = True
            self._worker.close()


# Merge a LoRA adapter into its base model using only numpy. Holds all tensors in memory, which is fine for
# small models.


_PREFIX = "base_model.model."


def merge(base: Path, adapter: Path, target: Path) -> Path:
    """Write the merged model to `target` in 32-bit floats, with the base's configuration and tokenizer.

    Adds `alpha / r * B @ A` to each adapted weight `W`. Raises `KeyError` if the adapter does not fit the
    base."""
    weights = read_tensors(base / "model.safetensors")
    delta = read_tensors(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    for name, a in delta.items():
        if ".lora_A." not in name:
            continue
        key = name.removeprefix(_PREFIX).partition(".lora_A.")[0] + ".weight"
        b = delta[name.replace(".lora_A.", ".lora_B.")]
        scale = config["lora_alpha"] / (a.shape[0] ** 0.5 if config.get("use_rslora") else a.shape[0])
        weights[key] = weights[key] + scale * (b @ a)
    new_folder(target)
    for file in base.iterdir():
        if file.suffix in (".json", ".jinja"):
            write_whole(target / file.name, file.read_bytes())
    shape = json.loads((base / "config.json").read_text(encoding="utf-8"))
    shape.pop("torch_dtype", None)
    write_whole(target / "config.json", json.dumps({**shape, "dtype": "float32"}, indent=1).encode())
    write_tensors(target / "model.safetensors", weights, {"format": "pt"})
    return target


def read_tensors(path: Path) -> dict[str, Array]:
    """Read all tensors of a safetensors file and convert them from F32, F16 or BF16 to 32-bit floats."""
    import numpy as np

    data = memoryview(path.read_bytes())[8 + len(header_bytes(path)) :]
    found: dict[str, Array] = {}
    for name, tensor in tensors(path).items():
        raw = data[slice(*tensor.data_offsets)]
        if tensor.dtype == "BF16":  # the upper half of a 32-bit float
            values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(raw, {"F32": np.float32, "F16": np.float16}[tensor.dtype])
        found[name] = values.astype(np.float32).reshape(tensor.shape)
    return found


def write_tensors(path: Path, weights: dict[str, Array], metadata: dict[str, str]) -> None:
    """Write a safetensors file of 32-bit floats atomically."""
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, values in weights.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with whole(path) as draft, draft.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for values in weights.values():
            out.write(values.tobytes())


# Output of jobs that are not trained: metrics from a formula, and an adapter that changes nothing.


ANSWER = "[sandbox] This model was not trained and cannot answer. Start the sandbox with training enabled."
_MOST_POINTS = 200
_HIDDEN = 8


def made_up_metrics(job: SandboxJob, now: float) -> list[MetricPoint]:
    """Generate a falling loss curve up to the current step, with at most 200 points. The same job always gets
    the same curve."""
    total, done = job.total_steps, job.step(now)
    start = job.started_at or now
    span = (job.trained_at or now) - start
    every = max(1, total // _MOST_POINTS)
    points: list[MetricPoint] = []
    for step in range(every, done + 1, every):
        share = step / total
        loss = 0.4 + 2.1 * math.exp(-4 * share) + 0.05 * math.sin(step * 1.7 + job.seed % 7)
        values = {
            "train_loss": round(loss, 5),
            "train_accuracy": round(min(1.0, 1.1 - loss / 3), 5),
            "learning_rate": job.learning_rate * (1 - share),
            "grad_norm": round(0.5 + share, 5),
            "tokens": float(int(job.tokens * job.epochs * share)),
            SANDBOX_NOT_TRAINED: 1.0,
        }
        if job.validation_file and (step == done or step % max(1, total // 4) < every):
            values |= {
                "valid_loss": round(loss + 0.1, 5),
                "valid_accuracy": round(min(1.0, 1.05 - loss / 3), 5),
            }
        at = datetime.fromtimestamp(start + span * share, UTC)
        points.append(MetricPoint(step=step, values=values, at=at, epoch=job.epochs * share))
    return points


def placeholder_adapter(folder: Path, job: SandboxJob) -> Path:
    """Write a LoRA adapter in PEFT's layout, with all weights zero, unless the file already exists."""
    if (folder / "adapter_config.json").exists():
        return folder
    new_folder(folder)
    rank = job.lora_rank
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    shapes = {name.format("A"): [rank, _HIDDEN], name.format("B"): [_HIDDEN, rank]}
    header: dict[str, object] = {"__metadata__": {"format": "pt", SANDBOX_NOT_TRAINED: "true", "job": job.id}}
    at = 0
    for tensor, shape in shapes.items():
        size = 4 * shape[0] * shape[1]
        header[tensor] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    write_whole(folder / "adapter_model.safetensors", struct.pack("<Q", len(text)) + text + bytes(at))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": job.base,
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "target_modules": ["q_proj"],
        SANDBOX_NOT_TRAINED: True,
    }
    write_whole(folder / "adapter_config.json", json.dumps(config, indent=1).encode())
    return folder


# Jobs wait for a free slot. Then the local engine trains each of them in its own process.


POLL_S = 0.25
TINY_RATE, TINY_DPO_RATE = 2e-3, 5e-4
"""Learning rates that suit the tiny substitute model: `TINY_DPO_RATE` for DPO, and `TINY_RATE` for all other
methods. They are multiplied by the ratio of the job's learning rate to its host's usual rate."""


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint's step and adapter folder. `folder` is `None` if the job is not trained."""

    step: int
    at: float
    folder: Path | None


class JobStore(Protocol):
    """The operations on a host's jobs that the trainer needs."""

    name: ClassVar[str]
    taken: ClassVar[AcceptedRows]
    usual_rate: ClassVar[float]

    def job(self, id: str) -> SandboxJob | None: ...
    def wait(self, name: str) -> float: ...
    def change(self, id: str, act: Callable[[SandboxJob, float], bool]) -> tuple[SandboxJob, bool]: ...


class Trainer:
    """Supervisor of the local engine's workers for all hosts of a sandbox. It starts, monitors, pauses and
    cancels them."""

    def __init__(
        self,
        state: SandboxState,
        clock: SandboxClock,
        settings: SandboxSettings,
        *,
        model: str,
        slots: int,
        threads: int,
        start: Callable[[RunDir], None] | None = None,
    ) -> None:
        self.state = state
        self.clock = clock
        self.settings = settings
        self.model = model
        self.slots = slots
        self.threads = threads
        self._start_worker = start
        self._hosts: Mapping[str, JobStore] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._active: dict[tuple[str, str], None] = {}
        self._lock = threading.Lock()
        self._generators = Generators(model, threads)
        self._thread: threading.Thread | None = None

    # -- life ----------------------------------------------------------------------------------------------

    def start(self, hosts: Mapping[str, JobStore]) -> None:
        """Resume the jobs of an earlier sandbox on this home folder, and start monitoring."""
        self._hosts = hosts
        now = self.clock.now()
        for host in hosts.values():
            for values in self.state.all(host.name, "job", where=("$.trained", "1"), newest_first=False):
                job = SandboxJob.from_dict(values)
                if not job.phase(now).ended:
                    self._active[host.name, job.id] = None
        self._thread = threading.Thread(target=self._watch, daemon=True, name="sandbox-trainer")
        self._thread.start()

    def stop(self) -> None:
        """Pause running jobs. The next sandbox on this home folder resumes them."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        running = [run for run in map(self._run_of, self._active) if run.exists() and run.alive()]
        for run in running:
            run.ask("pause")
        deadline = threading.Event()
        for _ in range(100):
            if not any(run.alive() for run in running):
                break
            deadline.wait(0.1)
        self._generators.close()

    def take(self, job: SandboxJob) -> None:
        """Queue a new job for training."""
        with self._lock:
            self._active[job.host, job.id] = None
        self._wake.set()

    def wake(self) -> None:
        """Make the monitoring thread check immediately."""
        self._wake.set()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(POLL_S)
            self._wake.clear()
            with self._lock:
                active = list(self._active)
            for host, id in active:
                if self._stop.is_set():
                    return
                if self._advance(self._hosts[host], id):
                    with self._lock:
                        self._active.pop((host, id), None)

    # -- one job -------------------------------------------------------------------------------------------

    def _advance(self, host: JobStore, id: str) -> bool:
        """Advance one job. Returns True when there is nothing left to do for it."""
        job = host.job(id)
        if job is None:
            return True
        now = self.clock.now()
        run = self._run_of((host.name, id))
        match job.phase(now):
            case Phase.CANCELLING | Phase.CANCELLED:
                if run.exists():
                    run.ask("cancel")
                return True
            case Phase.PAUSED:
                if run.exists() and run.alive() and run.asked() is None:
                    run.ask("pause")
            case Phase.QUEUED:
                waited = now >= job.validated_at + host.wait("queued")
                if waited and self._running() < self.slots:
                    self._begin(host, job, run)
            case Phase.RUNNING:
                self._follow(host, job, run)
            case Phase.VALIDATING:
                pass
            case _:
                return True
        return False

    def _running(self) -> int:
        now = self.clock.now()
        jobs = (self._hosts[host].job(id) for host, id in list(self._active))
        return sum(1 for job in jobs if job is not None and job.phase(now) is Phase.RUNNING)

    def _begin(self, host: JobStore, job: SandboxJob, run: RunDir) -> None:
        try:
            local = self._local_job(job, run.ref)
            launch(local, self.state.runs, self._start_worker)
        except Exception as error:  # noqa: BLE001  whatever prevents the start fails the job, not the sandbox
            self._fail(host, job, f"the sandbox could not start the training: {error}")
            return
        _set(host, job.id, started_at=self.clock.now())

    def _follow(self, host: JobStore, job: SandboxJob, run: RunDir) -> None:
        state = run.state()
        now = self.clock.now()
        if state.status in ("paused", "interrupted"):
            resume(run, self._start_worker)
        elif state.status == "succeeded":
            _set(
                host,
                job.id,
                trained_at=now,
                finished_at=now + host.wait("finalizing"),
                engine_step=state.step,
                engine_steps=state.total_steps,
                engine_epoch=state.epoch,
                early_stopped=state.early_stopped,
            )
        elif state.terminal:
            message = state.error.message if state.error else f"training ended with status {state.status}"
            self._fail(host, job, message)
        elif (state.step, state.total_steps) != (job.engine_step, job.engine_steps):
            _set(
                host,
                job.id,
                engine_step=state.step,
                engine_steps=state.total_steps,
                engine_epoch=state.epoch,
            )

    def _fail(self, host: JobStore, job: SandboxJob, message: str) -> None:
        _set(
            host,
            job.id,
            failed_at=self.clock.now(),
            trouble=JobFailure(message=message, code="training_failed"),
        )

    def _run_of(self, key: tuple[str, str]) -> RunDir:
        return RunDir(self.state.runs / f"{key[0]}-{key[1]}")

    def _local_job(self, job: SandboxJob, ref: str) -> LocalJob:
        """Build the engine's job, and write its rows beside the uploads."""
        train = self._rows(job, job.training_file)
        return LocalJob(
            ref=ref,
            model=self.model,
            model_name=job.model,
            train=str(train),
            validation=str(self._rows(job, job.validation_file)) if job.validation_file else None,
            method=_method(job),
            adapter=AdapterSettings(type="lora", r=job.lora_rank, alpha=2.0 * job.lora_rank, dropout=0.0),
            hyper=Hyper(
                epochs=job.epochs,
                learning_rate=self._tiny_rate(job),
                batch_size=min(job.batch_size, max(1, job.examples)),
                evals=job.evals or None,
                checkpoints=job.checkpoints,
            ),
            seed=job.seed,
            threads=self.threads,
            device="cpu",
            continue_from=str(folder) if (folder := self._continued(job)) else None,
            created_at=datetime.fromtimestamp(job.created_at, UTC),
        )

    def _tiny_rate(self, job: SandboxJob) -> float:
        """Return the tiny model's learning rate: the requested one relative to the host's usual one,
        within bounds."""
        usual = TINY_DPO_RATE if job.kind == "dpo" else TINY_RATE
        return min(5e-3, max(5e-5, usual * job.learning_rate / self._hosts[job.host].usual_rate))

    def _rows(self, job: SandboxJob, file: str) -> Path:
        target = self.state.files / f"{file}.canonical.jsonl"
        if not target.exists():
            with whole(target) as draft:
                write_canonical(
                    self.state.files / file, self._hosts[job.host].taken, draft, rl=job.kind == "rft"
                )
        return target

    def _continued(self, job: SandboxJob) -> Path | None:
        if job.continues is None:
            return None
        earlier = self._hosts[job.host].job(job.continues)
        return self.adapter(earlier, job.continues_step) if earlier is not None else None

    # -- results -------------------------------------------------------------------------------------------

    def describe(self, job: SandboxJob) -> str:
        """Describe how the sandbox actually runs the job, for the job's events and the job object."""
        if job.trained:
            return (
                f"In this sandbox, {Path(self.model).name} replaces {job.model} and is trained on this "
                f"machine with learning rate {self._tiny_rate(job):g}"
            )
        if job.kind == "rft":
            return "The sandbox only simulates reinforcement fine-tuning. Metrics and weights are not real"
        return "This job is not trained: its states, metrics and weights are simulated"

    def metrics(self, job: SandboxJob, now: float) -> list[MetricPoint]:
        """Return the engine's own metrics, or simulated ones for a job that is not trained."""
        if job.trained:
            return self._run_of((job.host, job.id)).metrics()
        return made_up_metrics(job, now)

    def checkpoints(self, job: SandboxJob, now: float) -> list[CheckpointFiles]:
        """List the checkpoints, oldest first. If the job succeeded, its last checkpoint is the result."""
        if not job.trained:
            total, wanted = job.total_steps, max(1, job.checkpoints)
            steps = sorted({max(1, round(total * n / wanted)) for n in range(1, wanted + 1)})
            done = job.step(now)
            start = job.started_at or now
            span = (job.trained_at or now) - start
            return [CheckpointFiles(s, start + span * s / total, None) for s in steps if s <= done]
        return list(_engine_checkpoints(self._run_of((job.host, job.id))))

    def adapter(self, job: SandboxJob, step: int | None = None) -> Path:
        """Return the folder with adapter_model.safetensors and adapter_config.json. Raises
        `FileNotFoundError` if it is missing."""
        if job.kind == BROUGHT:
            return brought_at(self.state.runs, job.host, job.id)
        if not job.trained:
            return placeholder_adapter(self.state.runs / f"{job.host}-{job.id}" / "adapter", job)
        run = self._run_of((job.host, job.id))
        if step is not None:
            for checkpoint in _engine_checkpoints(run):
                if checkpoint.step == step and checkpoint.folder is not None:
                    return checkpoint.folder
        folder = run.path / (run.written_state().result or "adapter")
        if not folder.is_dir():
            raise FileNotFoundError(folder)
        return folder

    def merged(self, job: SandboxJob, step: int | None) -> list[Path]:
        """List the files of the merged model. For a job that is not trained, list the files of its
        placeholder adapter. Raises `FileNotFoundError` if the adapter is missing."""
        adapter = self.adapter(job, step)
        folder = adapter
        if job.trained:
            folder = self.state.runs / f"{job.host}-{job.id}" / f"merged-{step or 'final'}"
            if not (folder / "model.safetensors").exists():
                merge(Path(self.model), adapter, folder)
        return sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json", ".jinja"))

    def reply(
        self,
        job: SandboxJob | None,
        step: int | None,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float,
    ) -> Reply:
        """Generate a reply with a job's tuned model. Without a job, use the sandbox's own model. Raises
        `FileNotFoundError` if the model's adapter is missing."""
        if not self.settings.train or (job is not None and not job.trained):
            return Reply(
                content=ANSWER, model="none", prompt_tokens=0, completion_tokens=0, finish_reason="stop"
            )
        adapter = self.adapter(job, step) if job is not None else None
        return self._generators.reply(adapter, messages, max_tokens=max_tokens, temperature=temperature)


def _method(job: SandboxJob) -> Method:
    if job.kind == "dpo":
        options: dict[str, Any] = {"beta": DEFAULT_BETA, **job.preference}
        return Preferences(**options)
    return Supervised(train_on_inputs=job.train_on_inputs)


def _engine_checkpoints(run: RunDir) -> Iterable[CheckpointFiles]:
    """List the requested checkpoints, oldest first, without those that exist only for resuming."""
    for folder in sorted(run.checkpoints.glob("step-*")):
        try:
            progress = Progress.from_json((folder / "progress.json").read_bytes())
        except (OSError, msgspec.MsgspecError):
            continue
        if progress.kept:
            yield CheckpointFiles(progress.step, folder.stat().st_mtime, folder / "adapter")


def _set(host: JobStore, id: str, **values: Any) -> None:
    def act(job: SandboxJob, now: float) -> bool:
        for name, value in values.items():
            setattr(job, name, value)
        return True

    host.change(id, act)
