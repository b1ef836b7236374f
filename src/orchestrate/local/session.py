"""All that one worker holds while it trains: rows, model, objective, loop."""

# torch, transformers and numpy describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from orchestrate.errors import RunFailed, UsageError
from orchestrate.local import export, models
from orchestrate.local.encoding import Template
from orchestrate.local.loading import load, load_tokenizer, pick_device
from orchestrate.local.losses import Preference
from orchestrate.local.preferences import PairObjective, with_reference
from orchestrate.local.rows import Rows, encode_file
from orchestrate.local.rundir import LocalJob, RunDir
from orchestrate.local.stepping import Objective
from orchestrate.local.training import DEFAULT_TOKENS, Loop, Stopped


class Session:
    """Encodes, loads, goes back to the newest checkpoint; `loop.run()` trains and `publish()` writes the
    result."""

    def __init__(
        self, run: RunDir, job: LocalJob, asked: Callable[[], str | None], set_stage: Callable[[str], None]
    ) -> None:
        self.run, self.job = run, job
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        self.device = pick_device(job.device)
        set_stage("fetching the model")
        self.folder = models.fetch(job.model)
        self.tokenizer = load_tokenizer(self.folder.path)
        set_stage("encoding")
        train = self._rows("train", Path(job.train))
        valid = self._rows("validation", Path(job.validation)) if job.validation else None
        set_stage("loading the model")
        self.loaded = load(job, self.folder, self.device, train.tokens * job.hyper.epochs)
        choice = self.loaded.choice
        run.add_event(f"engine {choice.engine}: {choice.reason}", type="engine", engine=choice.engine)
        objective = self._objective()
        if isinstance(objective, PairObjective) and objective.preference.needs_reference:
            set_stage("judging the rows by the model as it is")
            train = self._with_reference(objective, "train", train, asked)
            valid = valid and self._with_reference(objective, "validation", valid, asked)
        self.loop = Loop(
            run,
            job,
            self.loaded,
            objective,
            train,
            valid,
            write_weights=lambda folder: export.write_weights(self.loaded, self.tokenizer, job, folder),
            asked=asked,
        )
        trainable = sum(p.numel() for p in self.loop.parameters.values())
        total = sum(p.numel() for p in self.loaded.model.parameters())
        self.facts: dict[str, Any] = {
            "rows": train.examples,
            "tokens_per_epoch": train.tokens,
            "steps": self.loop.progress.total_steps,
            "trainable_parameters": trainable,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
        }
        self.summary = (
            f"{train.examples} rows, {train.tokens} tokens per epoch, "
            f"{self.loop.progress.total_steps} steps, "
            f"{trainable:,} trainable parameters ({trainable / max(total, 1):.1%}), "
            f"{self.device} with {torch.get_num_threads()} threads"
        )

    @property
    def limit(self) -> int | None:
        """Tokens at which a row is cut: as asked, but never above the model's context."""
        context = self.folder.config.get("max_position_embeddings")
        limits = [n for n in (self.job.hyper.max_seq_length, context) if isinstance(n, int)]
        return min(limits) if limits else None

    def _objective(self) -> Objective:
        pad, packing = self.tokenizer.pad_token_id or 0, self.job.hyper.packing
        preference = _preference(self.job)
        if preference is None:
            return Objective(self.loaded, pad, packing=packing)
        return PairObjective(self.loaded, pad, preference, packing=packing)

    def _with_reference(
        self, objective: PairObjective, name: str, rows: Rows, asked: Callable[[], str | None]
    ) -> Rows:
        def look_up() -> None:
            if word := asked():
                raise Stopped(word)

        folder = self.run.path / "rows" / name
        return with_reference(objective, rows, folder, DEFAULT_TOKENS[self.device.type], look_up)

    def _rows(self, name: str, path: Path) -> Rows:
        pairs = self.job.method["type"] == "dpo"
        folder = self.run.path / "rows" / name
        if rows := Rows.open(folder, pairs=pairs):
            return rows
        if not path.is_file():
            raise RunFailed(f"the data file {path} is gone", fix="submit the run again")
        rows, report = encode_file(
            path,
            Template.of(self.tokenizer),
            pairs=pairs,
            max_length=self.limit,
            train_on_inputs=bool(self.job.method.get("train_on_inputs")),
        )
        folder.parent.mkdir(exist_ok=True)
        rows.save(folder)
        for level, message in report.messages(name, self.limit):
            self.run.add_event(message, level=level, type="data")
        return rows

    @property
    def outcome(self) -> str:
        p = self.loop.progress
        parts = [f"{p.step} steps", f"{p.trained_tokens} trained tokens", f"{p.seconds:.1f} s of training"]
        if "valid_loss" in p.metrics:
            parts.append(f"validation loss {p.metrics['valid_loss']:.4f}")
        return ", ".join(parts)

    def publish(self) -> Path:
        p = self.loop.progress
        trained = {
            "steps": p.step,
            "trained_tokens": p.trained_tokens,
            "seen_tokens": p.seen_tokens,
            "seconds": p.seconds,
            "early_stopped": self.loop.early_stopped,
            "metrics": p.metrics,
        }
        passport = export.passport(
            self.job,
            self.folder,
            fingerprint=self.folder.fingerprint(),
            progress=trained,
            device=str(self.device),
            threads=torch.get_num_threads(),
        )

        def fill(folder: Path) -> None:
            export.write_weights(self.loaded, self.tokenizer, self.job, folder)

        return export.publish(self.run, export.result_name(self.job), fill, passport)


def _preference(job: LocalJob) -> Preference | None:
    method = job.method
    if method["type"] == "sft":
        return None
    if method["type"] != "dpo":
        raise UsageError(f"this machine trains by sft and dpo, not by {method['type']}")
    return Preference(
        beta=method.get("beta") or 0.1,
        normalize_by_length=bool(method.get("normalize_by_length")),
        rpo_alpha=method.get("rpo_alpha"),
        simpo_gamma=method.get("simpo_gamma"),
    )
