"""Recipes: complete training methods on top of a training session, for every backend. Rows and their
order, chat templates, loss masks, batches, learning rates and loss functions are the same as in a job on this
machine, so a recipe computes the same losses for the same rows.
"""

from __future__ import annotations

import math
import re
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from orchestrate.core.files import write_whole
from orchestrate.data import Dataset
from orchestrate.data.dialects import target
from orchestrate.data.rules import METHOD_KINDS
from orchestrate.data.tokens.chat_templates import CHATML, with_settings
from orchestrate.data.tokens.hub_tokens import of_transformers, opened
from orchestrate.errors import DataError, RunFailed, SpecError, UsageError
from orchestrate.local.encoding import Rules, Template
from orchestrate.local.encoding.encoded import EncodedRows, encode_file, encode_prompts, open_prompts
from orchestrate.local.job import DRO_BETA, Hyper, Method, Preferences, Reinforcement, Supervised
from orchestrate.local.model.files import ModelFolder
from orchestrate.local.objectives.graders import Grade, Grader, fields_read, lacks, refusal, runs_code
from orchestrate.local.run import RunDir
from orchestrate.local.run.schedule import learning_rate, spread
from orchestrate.profile import this_machine
from orchestrate.providers.sessions import OBJECTIVES
from orchestrate.spec import JobSpec
from orchestrate.types import OWN_LOOP, Severity, decoding

if TYPE_CHECKING:
    from orchestrate.data.rows import RLExample
    from orchestrate.sessions.session import TrainingSession
    from orchestrate.sessions.shapes import ForwardOutput, SampledSequence

Rows = str | Path | Dataset
HONORED = frozenset(
    {
        "epochs", "max_steps", "learning_rate", "batch_size", "warmup_ratio", "warmup_steps", "schedule",
        "min_lr_ratio", "decay_ratio", "schedule_power", "weight_decay", "betas", "eps", "max_grad_norm",
        "max_seq_length", "truncation", "evals", "eval_steps", "checkpoints", "checkpoint_steps",
        "recovery_seconds", "max_new_tokens", "run_grader_code", "grader_seconds",
    }
)  # fmt: skip
"""The job settings that a recipe accepts. They have the same defaults as in a job on this machine."""
TORCH_BETAS, TORCH_EPS = (0.9, 0.999), 1e-8
"""PyTorch's default betas and epsilon for AdamW. Jobs on this machine use them too."""
EPSILON = 1e-4
"""Value added to the standard deviation of a group's rewards. Local jobs use the same value."""
NEVER_GRADES = re.compile(r"\w+Error: .*\(grader, line \d+\)$|TypeError: grade\(\)")
"""Matches errors after which the grader can't grade any answer: its code does not compile, or its function
has the wrong parameters. Does not match a syntax error outside the grader's code, because that error is in
the graded answer."""
LARGEST_REWARD = 1e15
"""Maximum absolute reward. Above it, the variance of a group's rewards may overflow in 32 bits."""
OBJECTIVE = "importance_sampling"
"""Default loss function for sampled answers."""
READ_ROWS = 64
"""Number of rows per forward-only request, which computes losses or log-probabilities without gradients."""


class RecipeJob(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe's training job: a method and files of canonical rows."""

    name: str
    """Name of the recipe's folder in the run directory. An interrupted recipe continues from this folder."""
    method: Method
    train: str
    validation: str | None = None
    hyper: Hyper = Hyper()
    seed: int = 0
    loss: str = OBJECTIVE
    """Loss function for sampled answers."""


def sft(
    session: TrainingSession, rows: Rows, *, validation: Rows | None = None, seed: int = 0, **settings: Any
) -> dict[str, float]:
    """Train on conversations or texts. `settings` accepts a job's settings (such as epochs, batch_size or
    learning_rate), and also train_on, train_on_inputs and earlier_thinking. Returns the last step's metrics.
    """
    return train(session, _job(session, Supervised, rows, validation, seed, settings))


def dpo(
    session: TrainingSession, rows: Rows, *, validation: Rows | None = None, seed: int = 0, **settings: Any
) -> dict[str, float]:
    """Train on preference pairs. `settings` accepts a job's settings, and also beta, loss (dpo, ipo or orpo),
    label_smoothing, normalize_by_length, rpo_alpha and simpo_gamma. Returns the last step's metrics."""
    return train(session, _job(session, Preferences, rows, validation, seed, settings))


def rl(
    session: TrainingSession,
    rows: Rows,
    *,
    grader: Mapping[str, Any],
    objective: str = OBJECTIVE,
    validation: Rows | None = None,
    seed: int = 0,
    **settings: Any,
) -> dict[str, float]:
    """Sample answers to prompts, grade them, and make the better ones more likely (GRPO). `settings` accepts
    a job's settings, and also samples_per_prompt. `objective` is the session's loss function, such as ppo.
    Returns the last step's metrics."""
    given = {"grader": dict(grader), **settings}
    return train(session, _job(session, Reinforcement, rows, validation, seed, given, objective))


def distill(
    session: TrainingSession,
    rows: Rows,
    *,
    teacher: TrainingSession,
    objective: str = OBJECTIVE,
    validation: Rows | None = None,
    seed: int = 0,
    **settings: Any,
) -> dict[str, float]:
    """Sample answers to prompts, and train the model to answer like a teacher by minimizing the reverse KL
    divergence per token. `teacher` is a session of a model with the same tokenizer. The teacher is not
    trained. Returns the last step's metrics."""
    job = _job(session, Reinforcement, rows, validation, seed, settings, objective)
    job = msgspec.structs.replace(job, name=f"{job.name}-{teacher.id}")
    return _drive(session, _Distillation(session, job, teacher))


def train(session: TrainingSession, job: RecipeJob) -> dict[str, float]:
    """Run the recipe of the job's method. Raises `UsageError` for KTO, which requires a job."""
    match job.method:
        case Reinforcement() as method:
            with _grader(method, job.hyper) as grader:
                return _drive(session, _Policy(session, job, grader))
        case Preferences(unpaired=True):
            here = this_machine().kind
            raise UsageError("KTO has no recipe", fix=f"orchestrate submit --provider {here}")
        case Preferences() as method:
            return _drive(session, _Pairs(session, job, method))
        case _:
            return _drive(session, _Supervised(session, job))


def _job(
    session: TrainingSession,
    kind: type[Method],
    rows: Rows,
    validation: Rows | None,
    seed: int,
    settings: Mapping[str, Any],
    objective: str = OBJECTIVE,
) -> RecipeJob:
    """Build the job. Raises `UsageError` for a setting that recipes don't support, and `DataError` for rows
    with errors."""
    own = {name: value for name, value in settings.items() if name in kind.__struct_fields__}
    hyper = {name: value for name, value in settings.items() if name not in own}
    if unknown := sorted(hyper.keys() - HONORED):
        raise UsageError(
            f"recipes do not support the setting {unknown[0]!r}",
            fix=f"one of {', '.join(sorted({*HONORED, *kind.__struct_fields__}))}",
        )
    if kind is Reinforcement and own.get("kl_beta"):
        raise UsageError(
            "kl_beta requires the initial model, but a session only has the trained one",
            fix=f"omit kl_beta, or use  orchestrate submit --provider {this_machine().kind}",
        )
    _require_in_range(kind, own, hyper)
    if objective not in OBJECTIVES:  # before any answer is sampled and billed
        raise UsageError(f"unknown objective {objective!r}", fix=f"one of {', '.join(OBJECTIVES)}")
    folder = session.folder / "recipes"
    kinds = None if own.get("loss") == "kto" else METHOD_KINDS[str(kind.__struct_config__.tag)]
    files = [str(_written(one, folder, kinds)) if one is not None else None for one in (rows, validation)]
    named = msgspec.json.encode([files, seed, own, hyper, objective], order="sorted")
    try:
        method, taken = decoding.convert(own, kind), decoding.convert(hyper, Hyper)
    except msgspec.ValidationError as error:
        raise UsageError(f"invalid recipe setting: {error}") from error
    if taken.max_steps is not None and "epochs" not in hyper:
        taken = msgspec.structs.replace(taken, epochs=None)  # as many as max_steps needs, as in a spec
    return RecipeJob(
        name=f"{kind.__struct_config__.tag}-{sha256(named).hexdigest()[:12]}",
        method=method,
        train=files[0] or "",
        validation=files[1],
        hyper=taken,
        seed=seed,
        loss=objective,
    )


def _require_in_range(kind: type[Method], own: Mapping[str, Any], hyper: Mapping[str, Any]) -> None:
    """Raise `UsageError` for a value that a spec would reject too."""
    given = {name: value for name, value in hyper.items() if value is not None}
    if not given.keys() & {"epochs", "max_steps"} and "epochs" in hyper:
        raise UsageError("the recipe would never end", fix="set epochs or max_steps")
    adamw = {name: given[name] for name in ("betas", "eps") if name in given}
    fields = {name: value for name, value in given.items() if name in JobSpec.model_fields}
    sampled = kind is Reinforcement  # its method has no range but the number of samples
    method = {"type": "sft"} if sampled else {"type": kind.__struct_config__.tag, **own}
    optimizer = {"optimizer": {"type": "adamw", **adamw}} if adamw else {}
    try:
        JobSpec.parse({"model": "model", "train": OWN_LOOP, "method": method, **fields, **optimizer})
    except SpecError as error:
        message = error.message.partition(":")[2]
        raise UsageError(f"invalid recipe setting:{message}") from error
    counts = {name: given.get(name) for name in ("max_new_tokens", "grader_seconds", "recovery_seconds")}
    for name, value in {**counts, "samples_per_prompt": own.get("samples_per_prompt")}.items():
        if isinstance(value, int | float) and not 0 < value < math.inf:
            raise UsageError(f"{name} must be above 0, got {value!r}")


def _written(rows: Rows, folder: Path, kinds: Sequence[str] | None) -> Path:
    """Write the canonical rows. `kinds` are those that the method trains on, or `None` for a method that is
    rejected later."""
    data = rows if isinstance(rows, Dataset) else Dataset.open(rows)
    if kinds is not None and data.kind not in kinds:
        named = {"sft": "sft", "dpo": "dpo", "rft": "rl"}
        other = next((named[one] for one in named if data.kind in METHOD_KINDS[one]), "a job")
        raise DataError(
            f"{data.path}: the recipe trains on {' or '.join(kinds)} rows, but the file has {data.kind} rows",
            fix=f"train on them with {other}, or convert them: orchestrate data convert --help",
        )
    if errors := [one for one in data.problems if one.severity is Severity.ERROR]:
        raise DataError(f"{data.path}: {errors[0]}", fix=f"orchestrate data check {data.path}")
    machine = this_machine()
    return data.write(target(machine.kind, machine), folder)


# -- code shared by all recipes ----------------------------------------------------------------------------


class _Work(ABC):
    """The rows of a recipe, and the training step on a batch of rows."""

    def __init__(self, session: TrainingSession, job: RecipeJob) -> None:
        self.session, self.job, self.hyper = session, job, job.hyper
        ended = session.recipes[job.name]  # the same call again trains on
        self.folder = session.folder / "recipes" / (f"{job.name}-{ended + 1}" if ended else job.name)
        _discard_stale(self.folder, session)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.template, self.context = _template(session)
        limits = [n for n in (job.hyper.max_seq_length, self.context) if n is not None]
        self.limit = min(limits) if limits else None
        self.rows = self._rows("train", Path(job.train))
        self.valid = self._rows("validation", Path(job.validation)) if job.validation else None

    def _rows(self, name: str, path: Path) -> EncodedRows:
        pairs, folder = isinstance(self.job.method, Preferences), self.folder / name
        if rows := EncodedRows.open(folder, pairs=pairs):
            return rows
        rules = Rules.of(msgspec.structs.asdict(self.job.method), self.limit, self.hyper.truncation)
        rows, report = encode_file(path, self.template, folder, pairs=pairs, rules=rules)
        for level, message in report.messages(name, self.limit):
            self.session.add_event(message, level=level, type="data")
        return rows

    @abstractmethod
    def learn(self, batch: Sequence[int]) -> tuple[Future[ForwardOutput] | None, dict[str, float]]:
        """Send the batch. Returns its answer, `None` where there is nothing to learn, and metrics."""

    def seen(self, output: ForwardOutput) -> dict[str, float]:
        """Return the metrics that only the answer to a batch has."""
        del output
        return {}

    @abstractmethod
    def evaluate(self, rows: EncodedRows) -> dict[str, float]: ...


def _template(session: TrainingSession) -> tuple[Template, int | None]:
    """Return the model's chat template, and its context length if known."""
    folder = Path(session.tokenizer_name)
    hub = opened(folder) if folder.is_dir() else of_transformers(session.tokenizer())
    template = Template(replace(hub, template=with_settings(hub.template or CHATML, None)))
    return template, ModelFolder(folder).context if (folder / "config.json").is_file() else None


class _Began(msgspec.Struct):
    step: int


def _drive(session: TrainingSession, work: _Work) -> dict[str, float]:
    """Train to the end of the recipe, from where an earlier program stopped. Returns the metrics of the
    recipe's last step, even if an earlier program trained it."""
    hyper, rows = work.hyper, work.rows
    per_epoch = math.ceil(rows.examples / hyper.batch_size)
    total = hyper.steps(per_epoch)
    evals = spread(hyper.evals, total, hyper.eval_steps or per_epoch) if work.valid else set[int]()
    saves = spread(hyper.checkpoints, total, hyper.checkpoint_steps or per_epoch)
    began = _began(work.folder, session.step)
    session.set_total_steps(began + total)
    values: dict[str, float] = {}
    saved_at = time.monotonic()
    while (step := session.step - began) < total:
        epoch, place = divmod(step, per_epoch)
        batch = rows.batches(hyper.batch_size, work.job.seed, epoch, window=1)[place]
        sent, values = work.learn(batch)
        if sent is None:
            session.skip_step()
        else:
            answer = sent.result()  # first: some clients answer a step before its gradient
            values = {**work.seen(answer), **values}
            session.optim_step(_adam(step, total, hyper))
        step += 1
        if work.valid is not None and step in evals:
            values |= work.evaluate(work.valid)
        session.log(values)
        if step in saves:
            session.save()
        elif time.monotonic() - saved_at > hyper.recovery_seconds:
            session.save(kept=False)
        else:
            continue
        saved_at = time.monotonic()
    session.recipes[work.job.name] += 1
    if values:
        return values
    return {**[p.values for p in RunDir(session.folder).metrics() if p.step == began + total][-1]}


def _discard_stale(folder: Path, session: TrainingSession) -> None:
    """Discard a recipe that started after the checkpoint from which the session continues. Its stored
    log-probabilities, such as a reference, come from weights that no longer exist."""
    if (folder / "began.json").exists() and _began(folder, session.step) > session.step:
        shutil.rmtree(folder)
        session.add_event(
            f"the last checkpoint, at step {session.step}, is older than the recipe's start, so the recipe "
            "starts over",
            level="warning",
            type="recipe",
        )


def _began(folder: Path, step: int) -> int:
    """Return the session's step at which the recipe started."""
    file = folder / "began.json"
    if not file.exists():
        write_whole(file, msgspec.json.encode(_Began(step)))
    return msgspec.json.decode(file.read_bytes(), type=_Began).step


def _adam(step: int, total: int, hyper: Hyper) -> dict[str, float]:
    beta1, beta2 = hyper.betas or TORCH_BETAS
    return {
        "learning_rate": learning_rate(step, total, hyper),
        "beta1": beta1,
        "beta2": beta2,
        "eps": TORCH_EPS if hyper.eps is None else hyper.eps,
        "weight_decay": hyper.weight_decay,
        "grad_clip_norm": hyper.max_grad_norm,
    }


def _datum(ids: np.ndarray[Any, Any], weights: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Build a row, truncated after its last trained token."""
    end = int(np.flatnonzero(weights)[-1]) + 1
    inputs = {"target_tokens": ids[1:end].astype(np.int64), "weights": weights[1:end]}
    return {"model_input": ids[: end - 1].tolist(), "loss_fn_inputs": inputs}


# -- supervised --------------------------------------------------------------------------------------------


class _Supervised(_Work):
    def learn(self, batch: Sequence[int]) -> tuple[Future[ForwardOutput], dict[str, float]]:
        pairs = [self.rows.row(i) for i in batch]
        weight = np.float32(sum(float(weights[1:].sum()) for _, weights in pairs))
        return self.session.futures.forward_backward([_datum(ids, w / weight) for ids, w in pairs]), {}

    def seen(self, output: ForwardOutput) -> dict[str, float]:
        return {"train_loss": output.loss}  # the weights of a batch add up to 1

    def evaluate(self, rows: EncodedRows) -> dict[str, float]:
        loss = weight = 0.0
        for start in range(0, rows.examples, READ_ROWS):
            part = [rows.row(i) for i in range(start, min(start + READ_ROWS, rows.examples))]
            loss += self.session.forward([_datum(*row) for row in part]).loss
            weight += sum(float(weights[1:].sum()) for _, weights in part)
        return {"valid_loss": loss / weight}


# -- preferences -------------------------------------------------------------------------------------------


class _Pairs(_Work):
    def __init__(self, session: TrainingSession, job: RecipeJob, method: Preferences) -> None:
        super().__init__(session, job)
        self.torch: Any = import_module("torch")  # here, since other recipes need none
        self.preference: Any = import_module("orchestrate.local.objectives.dpo").preference_of(method)
        self.reference: dict[int, np.ndarray[Any, Any]] = {}
        if self.preference.needs_reference:
            for name, rows in (("train", self.rows), ("validation", self.valid)):
                if rows is not None:
                    self.reference[id(rows)] = self._read(rows, self.folder / name / "reference.npy")

    def _read(self, rows: EncodedRows, file: Path) -> np.ndarray[Any, Any]:
        """Read the log-probabilities that the model gives the answers before the first step."""
        if file.exists():
            return np.load(file)
        found = np.zeros(len(rows.offsets) - 1, dtype=np.float32)
        for start in range(0, len(found), READ_ROWS):
            numbers = range(start, min(start + READ_ROWS, len(found)))
            data = [_datum(*rows.row(i)) for i in numbers]
            there = self.session.forward(data).loss_fn_outputs
            for i, datum, output in zip(numbers, data, there, strict=True):
                found[i] = (output["logprobs"] * datum["loss_fn_inputs"]["weights"]).sum()
        draft = file.with_suffix(".draft.npy")
        np.save(draft, found)
        draft.replace(file)
        return found

    def learn(self, batch: Sequence[int]) -> tuple[Future[ForwardOutput], dict[str, float]]:
        shown: dict[str, float] = {}

        def loss(data: Sequence[Any], logprobs: list[Any]) -> tuple[Any, Mapping[str, Any]]:
            total, found = self._loss(self.rows, batch, data, logprobs)
            shown.update(found)
            return total, {}

        sent = self.session.futures.forward_backward_custom(self._data(self.rows, batch), loss)
        return sent, {f"train_{name}": value for name, value in shown.items()}

    def _data(self, rows: EncodedRows, batch: Sequence[int]) -> list[dict[str, Any]]:
        return [_datum(*rows.row(i)) for i in rows.rows_of(batch)]

    def _loss(
        self, rows: EncodedRows, batch: Sequence[int], data: Sequence[Any], logprobs: Sequence[Any]
    ) -> tuple[Any, dict[str, float]]:
        """Compute the mean loss of the pairs of a batch, and metrics."""
        torch = self.torch
        weights = [torch.tensor(one["loss_fn_inputs"]["weights"]) for one in data]
        policy = torch.stack([(p * w).sum() for p, w in zip(logprobs, weights, strict=True)])
        reference = self.reference.get(id(rows))
        start = None if reference is None else torch.from_numpy(reference[rows.rows_of(batch)])
        losses, shown = self.preference.loss(policy, start, torch.stack([w.sum() for w in weights]))
        found = {name: float(value.mean()) for name, value in shown.items()}
        return losses.mean(), {"loss": float(losses.detach().mean()), **found}

    def evaluate(self, rows: EncodedRows) -> dict[str, float]:
        sums: dict[str, float] = {}
        for start in range(0, rows.examples, READ_ROWS):
            batch = range(start, min(start + READ_ROWS, rows.examples))
            data = self._data(rows, batch)
            there = [self.torch.tensor(one["logprobs"]) for one in self.session.forward(data).loss_fn_outputs]
            for name, value in self._loss(rows, batch, data, there)[1].items():
                sums[name] = sums.get(name, 0.0) + value * len(batch) / rows.examples
        return {f"valid_{name}": value for name, value in sums.items()}


# -- sampled answers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answer:
    row: int
    prompt: list[int]
    drawn: SampledSequence


class _Sampled(_Work):
    """A recipe that trains on answers sampled from the model."""

    method: Reinforcement

    def __init__(self, session: TrainingSession, job: RecipeJob) -> None:
        assert isinstance(job.method, Reinforcement)  # noqa: S101  by its callers
        self.method, self._sent = job.method, list[_Answer]()
        session.require_loss(job.loss)
        super().__init__(session, job)

    def _rows(self, name: str, path: Path) -> EncodedRows:
        folder = self.folder / name
        if rows := open_prompts(path, folder):
            return rows
        room = None if self.limit is None else self.limit - self.hyper.max_new_tokens
        rows, left_out = encode_prompts(path, self.template, folder, room)
        if left_out:
            message = f"{name}: dropped {left_out} prompts with more than {room} tokens"
            self.session.add_event(message, level="warning", type="data")
        return rows

    def draw(self, rows: EncodedRows, batch: Sequence[int], count: int, temperature: float) -> list[_Answer]:
        """Sample `count` answers to each prompt."""
        params = {"max_tokens": self.hyper.max_new_tokens, "temperature": temperature}
        prompts = [rows.row(i)[0].tolist() for i in batch]
        sent = [
            self.session.futures.sample(prompt, count, {**params, "seed": self._seed(i)})
            for i, prompt in zip(batch, prompts, strict=True)
        ]
        return [
            _Answer(row, prompt, drawn)
            for row, prompt, future in zip(batch, prompts, sent, strict=True)
            for drawn in future.result().sequences
        ]

    def _seed(self, row: int) -> int:
        """Return the seed. A step that is repeated after an interruption samples the same answers."""
        named = f"{self.job.seed}/{self.session.step}/{row}".encode()
        return int.from_bytes(sha256(named).digest()[:4], "big") >> 1

    def send(
        self, answers: Sequence[_Answer], advantages: Sequence[np.ndarray[Any, Any]]
    ) -> Future[ForwardOutput] | None:
        """Send the answers, each token with its advantage, divided by the number of tokens."""
        self._sent = list(answers)
        if not any(one.any() for one in advantages):  # momentum alone would carry the weights away
            return None
        loss, tokens = self.job.loss, sum(len(one.drawn.tokens) for one in answers)
        prompt = self._prompts(answers) if loss == "dro" else {}
        data: list[dict[str, Any]] = []
        for one, advantage in zip(answers, advantages, strict=True):
            before, ids = [0.0] * (len(one.prompt) - 1), [*one.prompt, *one.drawn.tokens]
            inputs = {
                "target_tokens": ids[1:],
                "logprobs": [*prompt.get(one.row, before), *one.drawn.logprobs],
                "advantages": [*before, *(advantage / tokens)],
            }
            if loss == "gspo":  # the ratio is that of the answer alone
                inputs["sequence_ratio_mask"] = [*before, *[1.0] * len(one.drawn.tokens)]
            data.append({"model_input": ids[:-1], "loss_fn_inputs": inputs})
        config = {"beta": DRO_BETA / tokens} if loss == "dro" else None
        return self.session.futures.forward_backward(data, loss, config)

    def _prompts(self, answers: Sequence[_Answer]) -> dict[int, list[float | None]]:
        """Return the log-probabilities of the prompts, for a loss that pulls all tokens towards those that
        are sent with it."""
        prompts = {one.row: one.prompt for one in answers if len(one.prompt) > 1}
        sent = {row: self.session.futures.logprobs(prompt) for row, prompt in prompts.items()}
        return {row: future.result()[1:] for row, future in sent.items()}

    def seen(self, output: ForwardOutput) -> dict[str, float]:
        """Compare sampling and training on the answers alone: the prompts were not sampled."""
        apart = [
            np.abs(found["logprobs"][len(one.prompt) - 1 :] - np.array(one.drawn.logprobs))
            for one, found in zip(self._sent, output.loss_fn_outputs, strict=True)
        ]
        return {"sampled_logprob_difference": float(np.concatenate(apart).mean())}

    def shown(self, answers: Sequence[_Answer]) -> dict[str, float]:
        cut = sum(one.drawn.stop_reason != "stop" for one in answers)
        tokens = sum(len(one.drawn.tokens) for one in answers)
        return {"answer_tokens": tokens / len(answers), "cut_answers": cut / len(answers)}


class _Policy(_Sampled):
    def __init__(self, session: TrainingSession, job: RecipeJob, grader: Grader) -> None:
        super().__init__(session, job)
        self.grader, self._graded = grader, False
        if self.method.samples < 2:
            raise UsageError(
                "samples_per_prompt must be at least 2, because answers to the same prompt are compared"
            )
        for rows in (self.rows, self.valid):
            if rows is not None:
                _require_fields(grader, self.method.grader, rows.prompts)

    def learn(self, batch: Sequence[int]) -> tuple[Future[ForwardOutput] | None, dict[str, float]]:
        answers = self.draw(self.rows, batch, self.method.samples, 1.0)
        grades = self._grade(self.rows, answers)
        rewards = np.array([one.score for one in grades], dtype=np.float32).reshape(len(batch), -1)
        std = rewards.std(axis=1, keepdims=True, ddof=1)
        advantages = ((rewards - rewards.mean(axis=1, keepdims=True)) / (std + EPSILON)).reshape(-1)
        each = [np.full(len(a.drawn.tokens), g) for a, g in zip(answers, advantages, strict=True)]
        shown = {
            **self._described(answers, grades),
            "reward_std": float(std.mean()),
            "equal_rewards": float((std == 0).mean()),
        }
        return self.send(answers, each), {f"train_{name}": value for name, value in shown.items()}

    def _described(self, answers: Sequence[_Answer], grades: Sequence[Grade]) -> dict[str, float]:
        return {
            "reward": sum(one.score for one in grades) / len(grades),
            "grader_errors": sum(one.error is not None for one in grades) / len(grades),
            **self.shown(answers),
        }

    def _grade(self, rows: EncodedRows, answers: Sequence[_Answer]) -> list[Grade]:
        """Grade each answer without its thinking. Raises `RunFailed` if none can be graded."""
        grades: list[Grade] = []
        for one in answers:
            prompt, ids = rows.prompts[one.row], one.drawn.tokens
            ended = one.drawn.stop_reason == "stop"
            ids_read = ids[:-1] if ended and ids and ids[-1] in self.template.special else ids
            read = self.template.said(ids_read, one.prompt, tools=prompt.tools, cut=not ended)
            item = {"messages": msgspec.to_builtins(prompt.messages), **prompt.fields}
            grades += self.grader.grade([read], [item])
            if abs(grades[-1].score) > LARGEST_REWARD:
                raise RunFailed(
                    f"an answer to row {one.row + 1} got a reward of {grades[-1].score:g} from the grader. "
                    f"Rewards above {LARGEST_REWARD:g} overflow when answers are compared, so the recipe "
                    "stopped before this step",
                    fix="return rewards between 0 and 1 from the grader",
                )
        errors = [one.error for one in grades if one.error]
        if len(errors) == len(grades) and not self._graded:
            raise RunFailed(
                f"the grader failed on every answer: {errors[0]}",
                fix="fix the grader, or the row fields that it reads",
            )
        self._graded = True
        return grades

    def evaluate(self, rows: EncodedRows) -> dict[str, float]:
        answers = self.draw(rows, range(rows.examples), 1, 0.0)
        shown = self._described(answers, self._grade(rows, answers))
        return {f"valid_{name}": value for name, value in shown.items()}


def _grader(method: Reinforcement, hyper: Hyper) -> Grader:
    if runs_code(method.grader) and not hyper.run_grader_code:
        raise UsageError(
            "the grader's code would run on this machine",
            fix="if you trust the code, pass run_grader_code=True to the recipe",
        )
    if reason := refusal(method.grader, allow_code=True):
        raise UsageError(f"grader: {reason}")
    return Grader(method.grader, seconds=hyper.grader_seconds)


def _require_fields(grader: Grader, source: Mapping[str, Any], prompts: Sequence[RLExample]) -> None:
    """Raise `DataError` if rows lack a field that the grader reads, before sampling costs money. Code is
    tried on an empty answer to one row of each set of fields."""
    read, tried = fields_read(source), set[frozenset[str]]()
    for number, row in enumerate(prompts, 1):
        item = {"messages": msgspec.to_builtins(row.messages), **row.fields}
        missing = next((field for field in read if lacks(item, field)), None)
        if (names := frozenset(item)) not in tried and runs_code(source):
            tried.add(names)
            [grade] = grader.grade([""], [item])
            if NEVER_GRADES.match(grade.error or ""):
                raise UsageError(
                    f"the grader failed on every answer: {grade.error}. Nothing was sampled",
                    fix="fix the grader's source code",
                )
            unknown = re.search(r"KeyError: '(\w+)'", grade.error or "")
            if unknown and unknown[1] not in names and _reads(source, unknown[1]):
                missing = unknown[1]
        if missing is not None:
            raise DataError(
                f"the grader reads item.{missing}, but row {number} of {len(prompts):,} has no such field. "
                "Nothing was sampled",
                fix="add the field to the rows, or fix the grader",
            )


def _reads(grader: Mapping[str, Any], field: str) -> bool:
    """Return whether the grader's code has `item["field"]`."""
    code = "".join(msgspec.json.encode(grader).decode().split())
    return any(f"item[{quote}{field}{quote}]" in code for quote in ("'", '\\"'))


class _Distillation(_Sampled):
    def __init__(self, session: TrainingSession, job: RecipeJob, teacher: TrainingSession) -> None:
        super().__init__(session, job)
        self.teacher = teacher

    def learn(self, batch: Sequence[int]) -> tuple[Future[ForwardOutput] | None, dict[str, float]]:
        answers = self.draw(self.rows, batch, self.method.samples_per_prompt or 1, 1.0)
        apart = self._apart(answers)
        shown = self._described(answers, apart)
        return self.send(answers, apart), {f"train_{name}": value for name, value in shown.items()}

    def _apart(self, answers: Sequence[_Answer]) -> list[np.ndarray[Any, Any]]:
        """Return the log-ratio of the teacher's and the model's probability for each token of the answers."""
        prompt = [self.teacher.futures.logprobs([*one.prompt, *one.drawn.tokens]) for one in answers]
        return [
            np.array(future.result()[len(one.prompt) :], dtype=np.float64) - np.array(one.drawn.logprobs)
            for one, future in zip(answers, prompt, strict=True)
        ]

    def _described(
        self, answers: Sequence[_Answer], apart: Sequence[np.ndarray[Any, Any]]
    ) -> dict[str, float]:
        return {"reverse_kl": -float(np.concatenate(apart).mean()), **self.shown(answers)}

    def evaluate(self, rows: EncodedRows) -> dict[str, float]:
        answers = self.draw(rows, range(rows.examples), 1, 1.0)
        shown = self._described(answers, self._apart(answers))
        return {f"valid_{name}": value for name, value in shown.items()}
