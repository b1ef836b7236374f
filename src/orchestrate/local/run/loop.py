"""The training loop and all of its state."""

# torch, transformers and numpy have incomplete type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import torch

from orchestrate.errors import RunFailed
from orchestrate.local import machine
from orchestrate.local.encoding.encoded import Batches, EncodedRows
from orchestrate.local.job import Hyper, LocalJob, option
from orchestrate.local.model.loaded import Loaded, give_back, out_of_memory, run_pass
from orchestrate.local.objectives.base import Objective, Sums, means
from orchestrate.local.plan.memory_fit import DEFAULT_TOKENS
from orchestrate.local.plan.throughput import READ_SHARE
from orchestrate.local.run import RunDir, checkpoints, now
from orchestrate.local.run.checkpointed_loop import CheckpointedLoop, Weights
from orchestrate.local.run.checkpoints import Progress
from orchestrate.local.run.optimizers import (
    FIRST_SCALE,
    evaluation_parameters,
    group_metrics,
    make_optimizer,
    random_state,
    rescaled,
    set_random_state,
    set_rate,
)
from orchestrate.local.run.parallel import LESS, Peers, Step
from orchestrate.local.run.schedule import learning_rate, spread
from orchestrate.local.run.sharding import Sharded, number

MOST_TOKENS = 2048
"""Maximum number of tokens in the pass that measures speed before the first step. The pass has at least one
row, even if that row is longer."""
SLOW = 5.0
"""A second pass is measured only if the first one, which has one row, takes less than this many seconds.
After a slower first pass, a second one would delay the run too much."""
SOON = 20.0
"""A second pass is measured only if the first step is expected to take at least this many seconds. A shorter
first step soon yields a better measurement than a second pass would."""


@dataclass
class TrainingWork:
    """The amount of work in a run, in trained tokens. A token without loss counts as a fraction of a trained
    token."""

    rows: EncodedRows
    valid: EncodedRows | None
    eval_steps: set[int]
    per_epoch: int
    total_steps: int
    measured: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """Tokens and seconds of each pass that was measured before the first step."""

    @property
    def total(self) -> float:
        return self.rows.tokens * self.total_steps / self.per_epoch + self._read(self.total_steps)

    def done(self, step: int, seen_tokens: int) -> float:
        return seen_tokens + self._read(step)

    def _read(self, step: int) -> float:
        read = 0 if self.valid is None else self.valid.tokens
        return READ_SHARE * read * sum(at <= step for at in self.eval_steps)

    def remaining(self, step: int, seen_tokens: int, seconds: float) -> float | None:
        """Estimate the remaining seconds of training. Returns `None` if no speed has been measured yet."""
        if self.rows.prompts:  # answers are drawn, of lengths that nobody knows
            return seconds / step * (self.total_steps - step) if step else None
        done = self.done(step, seen_tokens)
        tokens = done + sum(n for n, _ in self.measured)
        spent = seconds + sum(s for _, s in self.measured)
        return max(0.0, self.total - done) * spent / tokens if tokens and spent else None

    def measure(self, objective: Objective, batch: Sequence[int]) -> float | None:
        """Measure the speed of a forward and backward pass over some rows of the batch. Returns tokens per
        second, or `None` if the objective cannot process a batch in parts or memory runs out. Adds to the
        gradients, which the caller must clear."""
        if not objective.divisible:
            return None
        device = objective.loaded.device
        random = random_state(device)
        try:
            found = self._timed(objective, sorted(batch, key=lambda i: int(self.rows.lengths[i])))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return None  # the step will find out how much fits
        finally:
            set_random_state(random)
            give_back(device)
        self.measured = [found]
        return found[0] / found[1]

    def _timed(self, objective: Objective, order: Sequence[int]) -> tuple[float, float]:
        first = self._time(objective, order[:1])
        step = first[1] * sum(int(self.rows.lengths[i]) for i in order) / first[0]
        if first[1] >= SLOW or step < SOON:
            return first
        # The first pass also created kernels and buffers, so measure another one. Passes group rows of
        # similar length, so rows of medium length are typical.
        part = order[len(order) // 2 :]
        longest = int(self.rows.lengths[part[-1]])
        return self._time(objective, part[: max(1, MOST_TOKENS // longest)])

    def _time(self, objective: Objective, examples: Sequence[int]) -> tuple[float, float]:
        begun = time.perf_counter()
        sums = run_pass(partial(objective.run, self.rows, examples, 1.0, backward=True))
        return float(sums.tokens), time.perf_counter() - begun


MOST_SKIPPED = 10
"""Maximum number of consecutive skipped steps before the run is stopped."""


class LossGuard:
    def __init__(self, run: RunDir, hyper: Hyper) -> None:
        self.run, self.hyper, self.skipped = run, hyper, 0

    def acceptable(self, loss: float, norm: float, progress: Progress) -> bool:
        """Return whether to apply the step. Raises `RunFailed` if the loss or gradient is not finite and the
        policy is `stop`, or if too many steps in a row were skipped."""
        mean, factor = progress.loss_mean, self.hyper.spike_factor
        if math.isfinite(loss) and math.isfinite(norm):
            if not (factor and mean is not None and progress.step > 20 and loss > factor * mean):
                self.skipped = 0
                return True
            what = f"the loss jumped to {loss:.3g} (running mean {mean:.3g})"
        else:
            what = f"loss {loss:.3g} or gradient norm {norm:.3g} is not finite"
            if self.hyper.nan_policy == "stop":
                raise RunFailed(
                    f"step {progress.step + 1}: {what}",
                    fix="lower the learning rate, check the rows (orchestrate data check), or set "
                    f"{option('nan_policy')}: skip",
                )
        self.skipped += 1
        if self.skipped >= MOST_SKIPPED:
            raise RunFailed(f"skipped {self.skipped} steps in a row. The last reason: {what}")
        self.run.add_event(
            f"step {progress.step + 1} was skipped: {what}",
            level="warning",
            type="skipped",
            step=progress.step + 1,
        )
        return False


STATUS_SECONDS = 0.5


class StopRequested(Exception):
    """Raised if the run was asked to pause or cancel."""

    def __init__(self, request: str) -> None:
        super().__init__(request)
        self.request = request


class Loop(CheckpointedLoop):
    """Trains the model `loaded` on the rows `train`. `run()` returns when training is complete. Raises
    `StopRequested`, or `RunFailed` if training fails."""

    def __init__(
        self,
        run: RunDir,
        job: LocalJob,
        loaded: Loaded,
        objective: Objective,
        train: EncodedRows,
        valid: EncodedRows | None,
        *,
        write_weights: Callable[[Path, Weights | None], None],
        asked: Callable[[], str | None],
    ) -> None:
        self.dir, self.job, self.hyper = run, job, job.hyper
        self.loaded, self.objective, self.train, self.valid = loaded, objective, train, valid
        self.write_weights, self.asked = write_weights, asked
        self.per_epoch = math.ceil(train.examples / self.hyper.batch_size)
        total, window = self.hyper.steps(self.per_epoch), train.window(loaded.line_limit)
        scale = FIRST_SCALE if loaded.precision.name == "fp16" else None
        self.progress = Progress(step=0, total_steps=total, window=window, loss_scale=scale)
        self.max_tokens = DEFAULT_TOKENS[loaded.device.type]
        self.max_rows = self.hyper.micro_batch or 1 << 20
        self.parameters = loaded.trainable
        self.optimizer = make_optimizer(self.parameters, self.hyper, job.adapter.loraplus_lr_ratio)
        self.best: dict[str, torch.Tensor] | None = None
        self.early_stopped = False
        self.guard = LossGuard(run, self.hyper)
        self.sharded: Sharded | None = None
        """The sharding, if the weights are sharded over several processes. Otherwise `None`."""
        self.group: Peers | None = None
        """The helper processes, if the run uses data parallelism. Otherwise `None`."""
        self._saved_at = time.monotonic()
        self._wrote_state = 0.0
        self.gpu: machine.GpuMonitor | None = None
        if loaded.device.type == "cuda":
            self.gpu = machine.GpuMonitor(partial(machine.gpu_load, torch.cuda.current_device()))
        self.eval_steps = set[int]()
        if valid is not None:
            self.eval_steps = spread(self.hyper.evals, total, self.hyper.eval_steps or self.per_epoch)
        every = self.hyper.checkpoint_steps or self.per_epoch
        self.checkpoint_steps = spread(self.hyper.checkpoints, total, every)
        self.work = TrainingWork(train, valid, self.eval_steps, self.per_epoch, total)

    # -- running ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            self._run()
        except RuntimeError as error:
            if self.sharded is not None and not out_of_memory(error):
                self.sharded.cut()
            raise
        finally:
            with suppress(OSError):  # the error that ends the run says more
                self.report(force=True)

    def _run(self) -> None:
        self.loaded.model.train()
        self._measure()
        while self.progress.step < self.progress.total_steps and not self.early_stopped:
            epoch, first = divmod(self.progress.step, self.per_epoch)
            for batch in self._batches(epoch)[first:]:
                self._one(batch)
                if self.early_stopped or self.progress.step == self.progress.total_steps:
                    break
        if hasattr(self.optimizer, "eval"):
            self.optimizer.eval()  # from here on the parameters are those that are given out
        if self.best is not None:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(self.best[name])

    def _measure(self) -> None:
        """Measure the speed before the first step."""
        if self.sharded is not None or self.work.measured or self.progress.step >= self.progress.total_steps:
            return
        epoch, first = divmod(self.progress.step, self.per_epoch)
        batch = self._batches(epoch)[first]
        speed = self.work.measure(self.objective, batch)
        self.optimizer.zero_grad()
        self.report(speed, force=True)

    def _batches(self, epoch: int) -> Batches:
        return self.train.batches(self.hyper.batch_size, self.job.seed, epoch, self.progress.window)

    @property
    def result(self) -> tuple[int, dict[str, float]]:
        """The step whose weights are the result, and the evaluation at this step."""
        p = self.progress
        if self.best is not None and p.best_step is not None:
            return p.best_step, p.best_metrics
        return p.step, p.metrics

    def _one(self, batch: list[int]) -> None:
        begun = time.perf_counter()
        step = self.progress.step
        values = self._step(batch)
        step += 1
        if step in self.eval_steps:
            values.update(self._evaluate(step))
        spent = self.progress.seconds + time.perf_counter() - begun
        self.progress = msgspec.structs.replace(self.progress, step=step, seconds=spent)
        values["tokens"] = float(self.progress.seen_tokens)
        if self.gpu is not None:
            values.update(self.gpu.poll())
        last = step == self.progress.total_steps or self.early_stopped
        if last and self.best is not None:
            result_step, metrics = self.result
            values.update(
                {"result_step": float(result_step), **{f"result_{k}": v for k, v in metrics.items()}}
            )
        self.dir.add_metrics(step, values, epoch=step / self.per_epoch)
        word, due = self.asked(), time.monotonic() - self._saved_at > self.hyper.recovery_seconds
        if self.sharded is not None:
            word, due = self.sharded.agreed((word, due))
        if step in self.checkpoint_steps or last:
            self.save(kept=True)
        elif word == "pause" or due:
            self.save(kept=False)
        self.report(values.get("tokens_per_second"))
        if word and not (last and word == "pause"):
            raise StopRequested(word)

    def _step(self, batch: list[int]) -> dict[str, float]:
        begun = time.perf_counter()
        random = random_state(self.loaded.device)
        while True:
            try:
                sums = run_pass(partial(self._gradients, batch))
                break
            except StopRequested as stopped:
                set_random_state(random)
                self.optimizer.zero_grad()
                there = self.dir.checkpoints / checkpoints.name(self.progress.step)
                if stopped.request == "pause" and not there.exists():
                    self.save(kept=False)
                raise
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if self.sharded is not None:  # the others are in the midst of a pass
                    raise RunFailed(f"out of memory: {error}", fix=LESS) from error
                said = str(error)
            self._halve(batch, said)
            set_random_state(random)
        rate = learning_rate(self.progress.step, self.progress.total_steps, self.hyper)
        parameters = list(self.parameters.values())
        scale = self._unscale(parameters)
        groups = group_metrics(self.optimizer, rate)
        norm = number(torch.nn.utils.clip_grad_norm_(parameters, self.hyper.max_grad_norm))
        values = means(sums)
        # If the gradient is 0 (for example, because all rewards are equal), skip the step: momentum alone
        # would still change the weights.
        if scale and not self._rescale(norm):
            pass  # too large for fp16: the next step is tried at half the scale
        elif self.guard.acceptable(values["loss"], norm, self.progress) and norm > 0:
            set_rate(self.optimizer, rate)
            run_pass(self.optimizer.step)
            mean = self.progress.loss_mean
            mean = values["loss"] if mean is None else 0.95 * mean + 0.05 * values["loss"]
            self.progress = msgspec.structs.replace(self.progress, loss_mean=mean)
        self.optimizer.zero_grad()
        self.progress = msgspec.structs.replace(
            self.progress,
            trained_tokens=self.progress.trained_tokens + sums.trained,
            seen_tokens=self.progress.seen_tokens + sums.tokens,
        )
        speed = sums.tokens / (time.perf_counter() - begun)
        named = {f"train_{k}": v for k, v in values.items()}
        scaled = {"loss_scale": scale} if scale else {}
        found = {**named, "learning_rate": rate, "grad_norm": norm, **groups, **scaled}
        return {**found, "tokens_per_second": speed}

    def _unscale(self, parameters: Sequence[torch.nn.Parameter]) -> float | None:
        """Divide the gradients by the loss scale (fp16 only)."""
        if (scale := self.progress.loss_scale) is not None:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(scale)
        return scale

    def _rescale(self, norm: float) -> bool:
        """Return whether the gradients were within fp16, and set the scale of the next step accordingly, like
        torch.amp.GradScaler. Raises `RunFailed` if no scale works."""
        p, whole = self.progress, math.isfinite(norm)
        scale, steps = rescaled(p.loss_scale or 1.0, p.whole_steps, whole=whole)
        if scale < 1:
            raise RunFailed(
                f"step {p.step + 1}: values overflow in fp16",
                fix=f"set {option('precision')}: fp32, "
                "or use a GPU with bf16 (compute capability 8.0 or higher)",
            )
        self.progress = msgspec.structs.replace(p, loss_scale=scale, whole_steps=steps)
        return whole

    def _gradients(self, batch: list[int]) -> Sums:
        seed = (self.job.seed << 20) + self.progress.step * self.hyper.processes
        self.loaded.loss_scale = self.progress.loss_scale or 1.0
        if self.sharded is not None:
            most = self.max_tokens, self.max_rows
            return self.sharded.gradients(self.objective, self.train, batch, most, seed)
        if self.group is None:
            return self.objective.gradients(self.train, batch, self.max_tokens, self.max_rows)
        weight = self.objective.weight_of(self.train, batch)
        asked = Step((), weight, self.max_tokens, self.max_rows, seed, self.loaded.loss_scale)
        return self.group.gradients(self.objective, self.train, batch, self.parameters, asked)

    def _halve(self, batch: list[int], said: str) -> None:
        """Halve the number of tokens or rows processed at once. The optimizer step keeps its examples."""
        self.optimizer.zero_grad()
        give_back(self.loaded.device)
        longest = self.objective.longest(self.train, batch)
        if self.max_tokens <= longest:
            raise RunFailed(
                f"a row of {longest} tokens does not fit in memory: {said}",
                fix=f"lower max_seq_length, set {option('gradient_checkpointing')}: true, or use qlora",
            )
        self.max_tokens = max(longest, self.max_tokens // 2)
        self.dir.add_event(
            f"out of memory. Continuing with at most {self.max_tokens} tokens per forward pass "
            f"and the same batch size",
            level="warning",
            type="memory",
            step=self.progress.step,
        )

    def _evaluate(self, step: int) -> dict[str, float]:
        assert self.valid is not None  # noqa: S101  there are evaluation steps only then
        with evaluation_parameters(self.optimizer, self.parameters):
            values = self._judge(self.valid)
            self._compare(step, values)
        return values

    def _compare(self, step: int, values: dict[str, float]) -> None:
        """Compare with the best evaluation so far."""
        loss, best, patience = (
            self.objective.to_lower(values),
            self.progress.best_loss,
            self.hyper.early_stopping_patience,
        )
        better = best is None or loss < best - self.hyper.early_stopping_min_delta
        self.progress = msgspec.structs.replace(
            self.progress,
            metrics=values,
            best_loss=loss if better else best,
            worse=0 if better else self.progress.worse + 1,
        )
        if better and self.hyper.holds_best:
            self.progress = msgspec.structs.replace(self.progress, best_step=step, best_metrics=values)
            self.best = {n: p.detach().clone() for n, p in self.parameters.items()}
        if patience is not None and self.progress.worse >= patience:
            self.early_stopped = True
            what, value = ("loss", best) if "valid_loss" in values else ("reward", -(best or 0.0))
            self.dir.add_event(
                f"stopped early: validation {what} did not improve on {value:.4f} in {patience} "
                "evaluations. Keeping the best weights",
                type="early_stop",
                step=step,
            )

    def _judge(self, rows: EncodedRows) -> dict[str, float]:
        tokens = self.max_tokens
        while True:
            try:
                if self.sharded is not None:
                    return self.sharded.evaluate(self.objective, rows, tokens)
                return run_pass(partial(self.objective.evaluate, rows, tokens))
            except (RuntimeError, MemoryError) as error:
                if self.sharded is not None or not out_of_memory(error) or tokens <= int(rows.lengths.max()):
                    raise
            give_back(self.loaded.device)
            tokens //= 2

    def report(self, tokens_per_second: float | None = None, *, force: bool = False) -> None:
        at = time.monotonic()
        if not force and at - self._wrote_state < STATUS_SECONDS:
            return
        self._wrote_state = at
        p = self.progress
        old = self.dir.written_state()
        self.dir.write_state(
            msgspec.structs.replace(
                old,
                status="running",
                stage="training",
                updated_at=now(),
                step=p.step,
                total_steps=p.total_steps,
                epoch=p.step / self.per_epoch,
                trained_tokens=p.trained_tokens,
                seconds=p.seconds,
                tokens_per_second=tokens_per_second or old.tokens_per_second,
                remaining_seconds=self.work.remaining(p.step, p.seen_tokens, p.seconds),
                early_stopped=self.early_stopped,
            )
        )
