"""Set up everything that a worker needs for training: rows, model, objective and loop."""

# torch, transformers and numpy have incomplete type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from orchestrate.core.files import write_whole
from orchestrate.errors import RunFailed, UsageError
from orchestrate.local import proof, space
from orchestrate.local.encoding import Rules, Template
from orchestrate.local.encoding.encoded import EncodedRows, encode_file, encode_prompts, open_prompts
from orchestrate.local.job import LocalJob, Preferences, Reinforcement
from orchestrate.local.model import expected_device
from orchestrate.local.model import files as models
from orchestrate.local.model import loaded as threads
from orchestrate.local.model.adapters.starts import AdapterInit, add_tokens
from orchestrate.local.model.files import ModelFolder
from orchestrate.local.model.loaded import Loaded, run_pass
from orchestrate.local.model.loader import load, load_tokenizer, pick_device
from orchestrate.local.model.sampling.sampler import Sampler
from orchestrate.local.objectives.base import Objective
from orchestrate.local.objectives.dpo import (
    JudgedObjective,
    Mismatch,
    PairObjective,
    UnpairedObjective,
    desirability_of,
    preference_of,
    with_mismatched,
    with_reference,
)
from orchestrate.local.objectives.graders import Grader, refusal
from orchestrate.local.objectives.grpo import PolicyObjective, padded_attention
from orchestrate.local.plan import memory_fit
from orchestrate.local.proof import fingerprints
from orchestrate.local.run import RunDir, export
from orchestrate.local.run.checkpointed_loop import Weights
from orchestrate.local.run.loop import DEFAULT_TOKENS, Loop, StopRequested
from orchestrate.local.run.parallel import Met, Peers, WorkerGroup
from orchestrate.local.run.schedule import warmup
from orchestrate.local.run.sharding import Sharded
from orchestrate.text import count, duration, size
from orchestrate.types import MemoryPlan

PATCHED = ("compile", "unsloth")
"""Engines whose models are recompiled for each answer length, which makes fingerprints slow to compute. For
these engines, the fingerprint is not computed after training, but only when it is first needed."""


def save_fingerprint(
    run: RunDir, job: LocalJob, loaded: Loaded, template: Template, folder: ModelFolder
) -> bool:
    """Write the model's fingerprint to `proof.json`. Returns False if this is not possible now, because the
    base model is no longer loaded or the engine is one of `PATCHED`."""
    if job.adapter.full or loaded.choice.name in PATCHED:
        return False
    files = [Path(file) for file in (job.validation, job.train) if file]
    found = fingerprints.find(
        fingerprints.BaseAndTuned(_using(loaded), template, Sampler.of(template, folder, loaded.device)),
        next((p for p in (proof.of_data(f, proof.CANDIDATES) for f in files) if p), []),
        base_model=folder.hub_id or str(folder.path),
        base_hash=folder.fingerprint(),
        precision=loaded.precision.name + (" on nf4" if job.adapter.type == "qlora" else ""),
        context=folder.config.get("max_position_embeddings"),
    )
    write_whole(run.proof, found.to_json())
    return True


def _using(loaded: Loaded) -> Any:
    @contextmanager
    def using(base: bool) -> Generator[Any]:
        with loaded.evaluation_mode(), torch.no_grad(), padded_attention(loaded.inner):
            if base:
                with loaded.model.disable_adapter():
                    yield loaded.model
            else:
                yield loaded.model

    return using


def _set_torch(run: RunDir, job: LocalJob, device: torch.device) -> None:
    """Set torch's options for the entire process."""
    torch.set_num_threads(threads.of_run(run.path, job.threads, device))
    if job.hyper.deterministic:
        torch.use_deterministic_algorithms(True)
        # A slow debugging aid. pyright doesn't find the attribute, because torch's annotations lack it.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


class Session:
    """A training run in a worker: the encoded rows, the loaded model and the training loop. `loop.restore()`
    resumes from the newest checkpoint, `loop.run()` trains, and `publish()` writes the result."""

    def __init__(
        self,
        run: RunDir,
        job: LocalJob,
        asked: Callable[[], str | None],
        set_stage: Callable[[str], None],
        *,
        met: Met | None = None,
    ) -> None:
        """Prepare the session. `met` is given if this process has already been connected to others."""
        self.run, self.job, self.asked = run, job, asked
        self.memory_plan: MemoryPlan | None = None
        self.read_seconds: float | None = None
        """Seconds spent on computing reference log-probabilities. `None` if the method needs none."""
        self.device = pick_device(job.device)
        _set_torch(run, job, self.device)
        set_stage("downloading the model")
        self.folder = models.fetch(job.model)
        self.tokenizer = load_tokenizer(self._tokenizer_folder(), job.chat_template, job.chat_template_kwargs)
        added = add_tokens(self.tokenizer, job.added_tokens) if job.added_tokens else []
        self.template = Template(self.tokenizer)
        set_stage("encoding")
        train = self._rows("train", Path(job.train))
        valid = self._rows("validation", Path(job.validation)) if job.validation else None
        self.group: Peers | None = None
        self.sharded = self._meet(met, set_stage)
        set_stage("loading the model")
        first = partial(
            load,
            job,
            self.folder,
            self.device,
            train.tokens * self._passes(train),
            init=AdapterInit(self.folder, run.path / "start", train, job.seed),
            vocabulary=(len(self.tokenizer), added),
        )
        self.loaded = first() if self.sharded is None else self.sharded.loaded(first)
        self._report_setup()
        objective = self._objective()
        needs = isinstance(objective, PairObjective) and objective.preference.needs_reference
        if isinstance(objective, JudgedObjective) and (needs or isinstance(objective, UnpairedObjective)):
            set_stage("computing reference log-probabilities")
            train, valid = self._judged(objective, train, valid)
        self.loop = Loop(
            run,
            job,
            self.loaded,
            objective,
            train,
            valid,
            write_weights=self._write_weights,
            asked=asked,
        )
        self.loop.sharded = self.sharded
        self._plan_memory(train)
        self._check_disk()
        self._check_warmup()
        self.facts = self._facts(train)
        if job.hyper.processes > 1 and self.sharded is None:
            self.loop.group = self.group = self._others(met, set_stage, "the full model (DDP)")

    def _meet(self, met: Met | None, set_stage: Callable[[str], None]) -> Sharded | None:
        """Connect the processes if the weights are sharded over several."""
        if not self.job.hyper.sharded:
            return None
        if met is None or met.rank == 0:
            self.group = self._others(met, set_stage, "a shard of every weight (FSDP)")
        cut = nothing if self.group is None else self.group.cut
        return Sharded(met.rank if met else 0, self.job.hyper.processes, self.device, cut)

    def _others(self, met: Met | None, set_stage: Callable[[str], None], holding: str) -> Peers:
        set_stage("starting the other processes")
        processes = self.job.hyper.processes
        message = f"{processes} processes, each with {holding}"
        self.run.add_event(message, type="processes", processes=processes)
        return Peers(met) if met else WorkerGroup(self.run, processes, self.job.threads, self.device)

    def go_on(self) -> None:
        """Let the other processes continue after a pause request is withdrawn."""
        if self.sharded is not None:
            self.sharded.agreed(True)

    def _facts(self, train: EncodedRows) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "rows": train.examples,
            "tokens_per_epoch": train.tokens,
            "steps": self.loop.progress.total_steps,
            "trainable_parameters": sum(p.numel() for p in self.loop.parameters.values()),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "tokens_at_once": self.loop.max_tokens,
        }
        if self.memory_plan is not None:
            facts["planned_memory_bytes"] = self.memory_plan.total_bytes
        return facts

    @property
    def summary(self) -> str:
        facts = self.facts
        share = facts["trainable_parameters"] / max(self.loaded.parameters, 1)
        return (
            f"{facts['rows']} rows, {facts['tokens_per_epoch']} tokens per epoch, {facts['steps']} steps, "
            f"{facts['trainable_parameters']:,} trainable parameters ({share:.1%}), "
            f"{facts['device']} with {count(facts['threads'], 'thread')}"
        )

    def _tokenizer_folder(self) -> Path:
        """Return the tokenizer's folder: that of the adapter that the run continues from, if it has a
        tokenizer, otherwise the base's."""
        earlier = Path(self.job.continue_from) if self.job.continue_from else None
        has_own = earlier is not None and (earlier / "tokenizer.json").is_file()
        return earlier if has_own and earlier else self.folder.path

    def _report_setup(self) -> None:
        """Report the engine, the precision, optimizations that were left out, and a device other than the
        planned one."""
        if self.job.device is None and self.device.type != expected_device(None):
            self.run.add_event(self._other_device(), level="warning", type="device")
        choice, precision = self.loaded.choice, self.loaded.precision
        on = self.loaded.turned_on
        message = f"engine {choice.name}: {choice.reason}" + (f"; in use: {'; '.join(on)}" if on else "")
        self.run.add_event(message, type="engine", engine=choice.name, in_use=on)
        self.run.add_event(
            f"precision {precision.name}: {precision.reason}", type="precision", precision=precision.name
        )
        for message in self.loaded.without_adapter:
            self.run.add_event(f"no adapter on {message}", type="adapter")
        limit = self.loaded.line_limit
        for what, reason in self.loaded.left_out.items():
            level, message = "info", f"without {what}: {reason}"
            if what == "packing":
                level, message = (
                    "warning",
                    f"packing is off, so rows of similar length are padded instead: {reason}",
                )
                if limit:
                    message = f"packing only rows of up to {limit} tokens and padding longer ones: {reason}"
            self.run.add_event(message, level=level, type="left_out", shortcut=what)

    def _other_device(self) -> str:
        """Say that the worker, which asks torch, trains on another device than the one planned for, which the
        driver's tool told."""
        if self.device.type == "cpu":
            return (
                f"training on the CPU, although nvidia-smi lists a GPU, because torch {torch.__version__} "
                "cannot use it. The plan and the estimated time are for the GPU. To train on it, install a "
                "CUDA build of torch"
            )
        return (
            "training on a GPU that nvidia-smi does not list. The plan, the precision and the estimated time "
            "are for the CPU. To plan for the GPU, set device: cuda"
        )

    def _plan_memory(self, rows: EncodedRows) -> None:
        """Set how many tokens go into one forward pass, by the device's total memory. The free memory may
        differ when the run resumes, but its steps must not."""
        found = memory_fit.shape_of(str(self.folder.path), None)
        if found is None:
            return
        hyper = self.job.hyper
        setup = memory_fit.setup_of(
            self.job.method,
            self.job.adapter,
            hyper,
            precision=self.loaded.precision.name,
            added_tokens=len(self.job.added_tokens),
            threads=self.job.threads,
        )
        counts = np.unique(rows.lengths, return_counts=True)
        counted = dict(zip(*(c.tolist() for c in counts), strict=True))
        lengths, most = memory_fit.rows_of(self.job.method, hyper, counted)
        tokens, plan = memory_fit.fit(found[0], setup, lengths, most_rows=most, device=self.device.type)
        self.memory_plan, self.loop.max_tokens = plan, tokens
        if plan.fits is False:
            self.run.add_event(
                f"training needs about {size(plan.total_bytes)} of memory, but this machine has "
                f"{size(plan.available_bytes or 0)}. To reduce memory use: " + "; then ".join(plan.advice),
                level="warning",
                type="memory",
            )

    def _check_disk(self) -> None:
        trained = sum(p.nbytes for p in self.loop.parameters.values())
        best, limit = self.job.hyper.holds_best, self.job.hyper.save_total_limit
        most = len(self.loop.checkpoint_steps) if limit is None else limit + 1  # one more while it is written
        warning = space.require(
            shutil.disk_usage(self.run.path).free,
            result=trained,
            checkpoint=(5 if best else 4) * trained,  # the weights twice, two moments, the best ones
            kept=min(len(self.loop.checkpoint_steps), most),
        )
        if warning:
            self.run.add_event(warning, level="warning", type="disk")

    def _check_warmup(self) -> None:
        total = self.loop.progress.total_steps
        if (warm := warmup(total, self.job.hyper)) >= total:
            message = f"the warm-up has {count(warm, 'step')}, but the run has only {count(total, 'step')}"
            self.run.add_event(message, level="warning", type="schedule")

    @property
    def limit(self) -> int | None:
        """Maximum number of tokens in a row: `max_seq_length`, but at most the model's context. `None` if
        there is no limit."""
        limits = [n for n in (self.job.hyper.max_seq_length, self.folder.context) if n is not None]
        return min(limits) if limits else None

    def _objective(self) -> Objective:
        pad = self.tokenizer.pad_token_id or 0
        packing = self.job.hyper.packing and self.device.type != "cpu"
        match self.job.method:
            case Preferences(unpaired=True) as method:
                mismatch = Mismatch(self.job.hyper.batch_size, self.job.seed, self.limit)
                return UnpairedObjective(self.loaded, pad, desirability_of(method), mismatch, packing=packing)
            case Preferences() as method:
                return PairObjective(self.loaded, pad, preference_of(method), packing=packing)
            case Reinforcement() as method:
                return self._policy(method)
            case _:
                return Objective(self.loaded, pad, packing=packing)

    def _policy(self, method: Reinforcement) -> PolicyObjective:
        hyper = self.job.hyper
        if reason := refusal(method.grader, allow_code=hyper.run_grader_code):
            raise UsageError(f"grader: {reason}")
        grader = Grader(method.grader, seconds=hyper.grader_seconds)
        if grader.isolation is not None:
            level = "warning" if grader.isolation.way == "limits only" else "info"
            message = f"the grader's code is {grader.isolation.description}"
            self.run.add_event(message, level=level, type="grader")
        return PolicyObjective(
            self.loaded,
            method,
            hyper.max_new_tokens,
            sampler=Sampler.of(self.template, self.folder, self.device),
            template=self.template,
            grader=grader,
            warn=lambda message: self.run.add_event(message, level="warning", type="grader"),
            check_requests=self._check_requests,
        )

    def _judged(
        self, objective: JudgedObjective, train: EncodedRows, valid: EncodedRows | None
    ) -> tuple[EncodedRows, EncodedRows | None]:
        begun = time.monotonic()
        train = self._with_reference(objective, "train", train)
        valid = valid and self._with_reference(objective, "validation", valid)
        self.read_seconds = time.monotonic() - begun
        return train, valid

    def _with_reference(self, objective: JudgedObjective, name: str, rows: EncodedRows) -> EncodedRows:
        folder, tokens = self.run.path / "rows" / name, DEFAULT_TOKENS[self.device.type]
        if self.sharded is not None:
            agreed, keeps = self.sharded.agreed, self.sharded.first
            return with_reference(objective, rows, folder, tokens, self._check_requests, agreed, keeps)
        rows = with_reference(objective, rows, folder, tokens, self._check_requests)
        if not isinstance(objective, UnpairedObjective):
            return rows
        epochs = self._passes(rows) if name == "train" else 1
        return with_mismatched(objective, rows, folder, epochs, tokens, self._check_requests)

    def _passes(self, rows: EncodedRows) -> int:
        hyper = self.job.hyper
        return hyper.passes(math.ceil(rows.examples / hyper.batch_size))

    def _check_requests(self) -> None:
        if word := self.asked():
            raise StopRequested(word)

    def _rows(self, name: str, path: Path) -> EncodedRows:
        method = self.job.method
        if isinstance(method, Reinforcement):
            return self._prompts(name, path)
        labelled = isinstance(method, Preferences) and method.unpaired
        pairs = isinstance(method, Preferences) and not labelled
        folder = self.run.path / "rows" / name
        if rows := EncodedRows.open(folder, pairs=pairs, labelled=labelled):
            return rows
        _require(path)
        folder.parent.mkdir(exist_ok=True)
        rows, report = encode_file(
            path,
            self.template,
            folder,
            pairs=pairs,
            labelled=labelled,
            rules=Rules.of(msgspec.structs.asdict(method), self.limit, self.job.hyper.truncation),
        )
        for level, message in report.messages(name, self.limit):
            self.run.add_event(message, level=level, type="data")
        return rows

    def _prompts(self, name: str, path: Path) -> EncodedRows:
        _require(path)  # what the grader reads stays there
        folder = self.run.path / "rows" / name
        if rows := open_prompts(path, folder):
            return rows
        folder.parent.mkdir(exist_ok=True)
        room = None if self.limit is None else self.limit - self.job.hyper.max_new_tokens
        rows, left_out = encode_prompts(path, self.template, folder, room)
        if left_out:
            message = f"{name}: dropped {left_out} prompts of more than {room} tokens"
            self.run.add_event(message, level="warning", type="data")
        return rows

    def close(self, *, failed: bool = False) -> None:
        if self.group is not None:
            self.group.close(failed=failed)
        self.loop.objective.close()

    @property
    def outcome(self) -> str:
        p = self.loop.progress
        parts = [
            count(p.step, "step"),
            count(p.trained_tokens, "trained token"),
            f"{duration(p.seconds)} of training",
        ]
        step, metrics = self.loop.result
        at = f" at step {step} (best weights)" if step != p.step else ""
        if "valid_reward" in metrics:
            parts.append(f"validation reward {metrics['valid_reward']:.4f}{at}")
        elif "valid_loss" in metrics:
            parts.append(f"validation loss {metrics['valid_loss']:.4f}{at}")
        return ", ".join(parts)

    def publish(self) -> Path:
        p, (step, metrics) = self.loop.progress, self.loop.result
        trained = {
            "steps": p.step,
            "trained_tokens": p.trained_tokens,
            "seen_tokens": p.seen_tokens,
            "seconds": p.seconds,
            "early_stopped": self.loop.early_stopped,
            "weights_of_step": step,
            "metrics": metrics,
        }
        provenance = export.provenance(
            self.job,
            self.folder,
            fingerprint=self.folder.fingerprint(),
            progress=trained,
            device=str(self.device),
            precision=self.loaded.precision.name,
            threads=torch.get_num_threads(),
        )

        fill = partial(self._write_weights, weights=self.loop.weights())
        return export.publish(self.run, export.result_name(self.job), fill, provenance)

    def _write_weights(self, folder: Path, weights: Weights | None = None) -> None:
        export.write_weights(self.loaded, self.tokenizer, self.job, folder, self.folder, weights)

    def save_fingerprint(self) -> None:
        """Save the fingerprint that identifies the served model. If this fails, the run still succeeds,
        because its model is already saved."""
        if self.sharded is not None:
            return  # it is made when it is needed, by one process
        try:
            found = self.run, self.job, self.loaded, self.template, self.folder
            run_pass(partial(save_fingerprint, *found))
        except Exception as error:  # noqa: BLE001  message, and made anew when it is needed
            self.run.add_event(
                f"could not save the model's fingerprint: {error}", level="warning", type="proof"
            )


def nothing() -> None:
    pass


def _require(path: Path) -> None:
    if not path.is_file():
        raise RunFailed(f"the data file {path} no longer exists", fix="submit the run again")
