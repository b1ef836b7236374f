"""The engine of training sessions: one base model, an adapter and an optimizer for each model in training,
and sampling from live or saved weights. Imports torch."""

# torch, transformers and peft have incomplete type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchestrate.core.files import whole_folder
from orchestrate.errors import UsageError
from orchestrate.local import machine
from orchestrate.local.answers.model_loader import AdaptedModel, Opening
from orchestrate.local.encoding.encoded import micro_batches
from orchestrate.local.model.adapters.starts import names_of
from orchestrate.local.model.loaded import Loaded, OutputHead, halving
from orchestrate.local.model.loader import in_32_bits, load_tokenizer
from orchestrate.local.model.sampling import DrawnToken, SamplingSettings, seeded
from orchestrate.local.model.sampling.batching import BASE, Batching, DecodingRow
from orchestrate.local.plan.memory_fit import DEFAULT_TOKENS
from orchestrate.local.run.export import sort_targets
from orchestrate.local.run.optimizers import restore_state, state_tensors
from orchestrate.local.sessions.losses import Config, Loss, log_probabilities, loss_of
from orchestrate.types import decoding

ALPHA = 32
"""LoRA's alpha, the same for all ranks, so that one learning rate suits all ranks (Thinking Machines, "LoRA
Without Regret", 2025)."""
HELD_SNAPSHOTS = 8
"""Maximum number of saved adapters that stay loaded for sampling. If there are more, the least recently used
one is unloaded."""
MOST_TOKENS = 2048
"""Default maximum number of tokens of an answer."""
BYTES_A_WEIGHT = 16
"""Bytes of memory per trained weight: the weight in fp32, its gradient, and Adam's two moments."""
ATTENTION = ("attn", "attention")
ADAPTER, OPTIMIZER, STATE = "adapter_model.safetensors", "optimizer.safetensors", "session.json"
NOTE = "saved.json"


class AdapterShape(msgspec.Struct, frozen=True, kw_only=True):
    """The rank and targets of a new model's adapter."""

    rank: int
    seed: int | None = None
    train_mlp: bool = True
    train_attn: bool = True
    train_unembed: bool = True


class Adam(msgspec.Struct, frozen=True, kw_only=True):
    """Settings for one AdamW step. The defaults are those of Tinker's API."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


class Values(msgspec.Struct, frozen=True, kw_only=True):
    """A serialized tensor: little-endian numbers in row-major order."""

    data: bytes
    shape: tuple[int, ...]
    kind: str

    def array(self) -> np.ndarray[Any, Any]:
        """Convert the tensor to an array. Raises `UsageError` if its values are not finite or do not match
        its shape."""
        found = np.frombuffer(self.data, dtype=self.kind)
        if min(self.shape, default=1) < 0 or found.size != math.prod(self.shape):
            raise UsageError(
                f"a tensor has {found.size} values, which does not match its shape {list(self.shape)}"
            )
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise UsageError("a tensor has non-finite numbers (NaN or infinity)")
        return found.reshape(self.shape)

    @classmethod
    def of(cls, array: np.ndarray[Any, Any]) -> Values:
        kept = np.ascontiguousarray(array)
        return cls(data=kept.tobytes(), shape=tuple(kept.shape), kind=kept.dtype.str)


class Datum(msgspec.Struct, frozen=True, kw_only=True):
    """A training row. `inputs["target_tokens"]` holds the target for each position in `tokens`: the next
    token, or K alternatives for it."""

    tokens: tuple[int, ...]
    inputs: dict[str, Values]


class SampleRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request to sample answers to a prompt. Uses the live weights of `model` or the saved weights in
    `folder`. If both are empty, uses the base model."""

    id: str
    model: str = ""
    folder: str = ""
    prompt: tuple[int, ...]
    n: int = 1
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] | None = None
    """Tokens that end an answer. `None` uses the base model's stop tokens."""
    tops: int = 0
    prompt_logprobs: bool = False
    prompt_tops: int = 0
    prompt_last: int | None = None
    """Number of prompt tokens to score, counted from the end of the prompt. `None` scores all of them."""


@dataclass
class TrainedModel:
    """A model in training."""

    adapter: str
    shape: AdapterShape
    parameters: dict[str, torch.nn.Parameter]
    """Trained parameters, keyed by their names without the adapter's name."""
    optimizer: Any
    steps: int = 0


@dataclass
class _PassSums:
    """Sums of the passes of one request. Nothing is added anywhere else until all passes have succeeded."""

    compute: Loss
    config: Config
    parameters: list[torch.nn.Parameter]
    """Parameters to compute a gradient for. Empty if the request is for a forward pass only."""
    loss: float = 0.0
    gradients: list[Tensor | None] = field(default_factory=list["Tensor | None"])

    def add(self, loss: float, gradients: Sequence[Tensor | None]) -> None:
        self.loss += loss
        before = self.gradients or [None] * len(gradients)
        self.gradients = [
            b if g is None else g if b is None else b + g for b, g in zip(before, gradients, strict=True)
        ]


@dataclass
class PendingSample:
    """A sampling request in progress."""

    question: SampleRequest
    rows: list[DecodingRow]
    drawn: list[list[DrawnToken]]
    prompt: dict[str, Any]


class SessionEngine(AdaptedModel):
    def __init__(self, opening: Opening) -> None:
        super().__init__(opening)
        self.inner.requires_grad_(False)
        if self.device.type != "cpu":
            self.inner.gradient_checkpointing_enable({"use_reentrant": False})
        self.tokenizer = load_tokenizer(self.folder.path)
        self.models: dict[str, TrainedModel] = {}
        self._snapshots: OrderedDict[str, str] = OrderedDict()
        """Maps a saved adapter, identified by its folder and file version, to its name in PEFT."""
        self._asked: dict[int, PendingSample] = {}

    @property
    def tied(self) -> bool:
        """True if input and output embeddings share one table. The output layer then gets no adapter, because
        few engines can serve such an adapter and none can merge it."""
        return bool(getattr(self.inner.config.get_text_config(), "tie_word_embeddings", False))

    # -- models --------------------------------------------------------------------------------------------

    def create(self, id: str, shape: AdapterShape) -> int:
        """Create a model and return its number of trained weights. Raises `UsageError` if the adapter has
        nothing to train or does not fit in this machine's memory."""
        from peft import LoraConfig, get_peft_model

        targets = self._targets(shape)
        self._require_memory(targets, shape.rank)
        config = LoraConfig(r=shape.rank, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM")
        if shape.seed is not None:
            torch.manual_seed(shape.seed)
        name = self.new_name()
        with self.changing():
            if self.model is self.inner:
                self.model = get_peft_model(self.inner, config, adapter_name=name)
            else:
                self.model.add_adapter(name, config)
        return self._trained(id, name, shape)

    def _trained(self, id: str, name: str, shape: AdapterShape) -> int:
        with self.active(name):
            in_32_bits(self.model)
            named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        parameters = {n.replace(f".{name}.", "."): p for n, p in named.items()}
        optimizer = torch.optim.AdamW(parameters.values(), lr=1e-4)
        self.models[id] = TrainedModel(name, shape, parameters, optimizer)
        return sum(p.numel() for p in parameters.values())

    def _targets(self, shape: AdapterShape) -> list[str]:
        names = names_of(self.inner if self.model is self.inner else self.model.get_base_model())
        linear = [n.removesuffix(".base_layer") for n in names.linear if ".lora_" not in n]
        found = [
            n for n in linear if (shape.train_attn if any(a in n for a in ATTENTION) else shape.train_mlp)
        ]
        if shape.train_unembed and names.head and not self.tied:
            found.append(names.head.removesuffix(".base_layer"))
        if not found or shape.rank < 1:
            raise UsageError(
                "the adapter has nothing to train: set train_attn, train_mlp or train_unembed, "
                "and a rank above 0"
            )
        return found

    def _require_memory(self, targets: Sequence[str], rank: int) -> None:
        modules = dict(self.inner.named_modules())
        shapes = [getattr(modules[name], "base_layer", modules[name]) for name in targets]
        needs = sum(rank * (m.in_features + m.out_features) for m in shapes) * BYTES_A_WEIGHT
        has = machine.memory_bytes() if self.device.type == "cpu" else _free_bytes(self.device)
        if needs > has:
            raise UsageError(
                f"an adapter of rank {rank} needs {needs >> 20:,} MiB with its optimizer, but "
                f"{'this machine' if self.device.type == 'cpu' else 'the GPU'} has {has >> 20:,} MiB for it",
                fix="use a lower rank, or end another session",
            )

    def unload(self, id: str) -> None:
        found = self.models.pop(id, None)
        if found is not None:
            self.drop(found.adapter)

    def _of(self, id: str) -> TrainedModel:
        found = self.models.get(id)
        if found is None:
            raise UsageError(
                f"model {id} is no longer loaded",
                fix="recreate it from its last saved state: create_training_client_from_state_with_optimizer",
            )
        return found

    # -- training ------------------------------------------------------------------------------------------

    def forward(
        self, id: str, data: Sequence[Datum], loss: str, config: Config, *, backward: bool
    ) -> tuple[list[Values], dict[str, float]]:
        """Compute the log-probabilities of each row's targets, and metrics summed over all rows. With
        `backward`, also add the gradient to the gradients accumulated by earlier calls. Raises `UsageError`,
        without adding a gradient, for rows that do not match the loss."""
        trained, compute = self._of(id), loss_of(loss, config)[0]
        rows = [self._row(datum, loss) for datum in data]
        parameters = list(trained.parameters.values())
        sums = _PassSums(compute, config, parameters if backward else [])
        lengths, most = np.array([len(tokens) for tokens, _ in rows]), DEFAULT_TOKENS[self.device.type]
        found: dict[int, Tensor] = {}
        with self.active(trained.adapter):
            self.model.train(self.device.type != "cpu" and backward)  # where activations are not kept
            try:
                for part in micro_batches(range(len(rows)), lengths, most, len(rows)):
                    found.update(zip(part, self._pass([rows[i] for i in part], sums), strict=True))
            finally:
                self.model.eval()
        total = sums.loss
        if not math.isfinite(total):
            raise UsageError(f"the loss is not finite ({total}), so no gradient was added")
        for parameter, gradient in zip(parameters, sums.gradients, strict=False):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        metrics = {"loss:sum": total, "tokens:sum": float(lengths.sum())}
        if apart := [
            abs(found[i] - inputs["logprobs"].cpu()).sum().item()
            for i, (_, inputs) in enumerate(rows)
            if "logprobs" in inputs
        ]:
            metrics["sampled_logprob_difference:sum"] = sum(apart)
        return [Values.of(found[i].numpy()) for i in range(len(rows))], metrics

    def _row(self, datum: Datum, loss: str) -> tuple[Tensor, dict[str, Tensor]]:
        size = len(self.tokenizer)
        ids = torch.tensor(datum.tokens, dtype=torch.long)
        if not len(ids) or int(ids.min()) < 0 or int(ids.max()) >= size:
            raise UsageError(
                f"a row is empty, or contains ids outside the model's vocabulary of {size} tokens"
            )
        if self.folder.context is not None and len(ids) > self.folder.context:
            raise UsageError(
                f"a row has {len(ids)} tokens, but the model accepts at most {self.folder.context}"
            )
        inputs = {name: torch.from_numpy(values.array().copy()) for name, values in datum.inputs.items()}
        if "target_tokens" not in inputs:
            raise UsageError("a row has no target_tokens in its loss_fn_inputs")
        targets = inputs["target_tokens"]
        if targets.ndim not in (1, 2) or len(targets) != len(ids):
            raise UsageError(
                f"target_tokens has the shape {list(targets.shape)}, but the row has {len(ids)} tokens"
            )
        if int(targets.min()) < 0 or int(targets.max()) >= size:
            raise UsageError(f"target_tokens contains ids outside the model's vocabulary of {size} tokens")
        for name in (*loss_of(loss)[1], *(n for n in inputs if n != "target_tokens")):
            if name not in inputs:
                raise UsageError(f"the loss {loss} needs {name} in each row's loss_fn_inputs")
            if inputs[name].shape != targets.shape:
                message = (
                    f"{name} has the shape {list(inputs[name].shape)}, but target_tokens has the "
                    f"shape {list(targets.shape)}"
                )
                raise UsageError(message)
        return ids, {
            n: v.to(self.device, torch.long if n == "target_tokens" else torch.float32)
            for n, v in inputs.items()
        }

    def _pass(self, rows: Sequence[tuple[Tensor, dict[str, Tensor]]], sums: _PassSums) -> list[Tensor]:
        """Run a pass. If memory runs out, repeat it with half as many rows at once."""
        done, found, at_once = 0, list[Tensor](), len(rows)
        while done < len(rows):
            (total, log_p, gradients), at_once = halving(
                at_once,
                self.device,
                lambda most, at=done: self._computed(rows[at : at + most], sums),
            )
            sums.add(total, gradients)
            found += log_p
            done += len(log_p)
        return found

    def _computed(
        self, rows: Sequence[tuple[Tensor, dict[str, Tensor]]], sums: _PassSums
    ) -> tuple[float, list[Tensor], Sequence[Tensor | None]]:
        """Compute loss, log-probabilities and gradients without changing the model, so that a pass that ran
        out of memory can be repeated."""
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        for n, (tokens, _) in enumerate(rows):
            ids[n, : len(tokens)] = tokens
        real = torch.cat([torch.arange(len(t)) + n * longest for n, (t, _) in enumerate(rows)]).to(
            self.device
        )
        targets = torch.cat([_wide(inputs["target_tokens"]) for _, inputs in rows])
        inner = self.model.get_base_model()
        head = OutputHead.of(inner)  # another layer since the first adapter that trains it
        loaded = Loaded(self.model, inner, head, self.device)
        with torch.set_grad_enabled(bool(sums.parameters)):
            # Attention is causal, so no token attends to the padding after its row.
            hidden = loaded.hidden(ids.to(self.device)).reshape(len(rows) * longest, -1)[real]
            log_p = log_probabilities(hidden, targets, head)
            places, total, found = 0, torch.zeros((), device=self.device), list[Tensor]()
            for tokens, inputs in rows:
                own = log_p[places : places + len(tokens)].reshape(inputs["target_tokens"].shape)
                places += len(tokens)
                total = total + sums.compute(own, inputs, sums.config)
                found.append(own.detach().float().cpu())
            gradients: Sequence[Tensor | None] = ()
            if sums.parameters:
                gradients = torch.autograd.grad(total, sums.parameters, allow_unused=True)
        return total.item(), found, gradients

    def step(self, id: str, adam: Adam) -> dict[str, float]:
        """Run one AdamW step with the accumulated gradients, and clear the gradients. If there are none, or
        if they are not finite, raises `UsageError` and leaves the model unchanged."""
        trained = self._of(id)
        gradients = [p.grad for p in trained.parameters.values() if p.grad is not None]
        if not gradients:
            raise UsageError("there is no gradient: call forward_backward before optim_step")
        norm = torch.nn.utils.get_total_norm(gradients)
        if not bool(norm.isfinite()):
            trained.optimizer.zero_grad()
            raise UsageError("the gradients are not finite. They were discarded, and the model is unchanged")
        if adam.grad_clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(trained.parameters.values(), adam.grad_clip_norm, norm)
        for group in trained.optimizer.param_groups:
            group.update(lr=adam.learning_rate, betas=(adam.beta1, adam.beta2), eps=adam.eps)
            group["weight_decay"] = adam.weight_decay
        trained.optimizer.step()
        trained.optimizer.zero_grad()
        trained.steps += 1
        return {"grad_norm:mean": norm.item(), "step:max": float(trained.steps)}

    # -- saving --------------------------------------------------------------------------------------------

    def save(
        self, id: str, folder: Path, *, optimizer: bool, note: str | None = None, overwrite: bool = False
    ) -> None:
        """Save the model's weights atomically, as an adapter that `serve`, `eval` and `chat` can load. With
        `optimizer`, also save the state needed to resume training. `note` is the server's record to store
        next to the weights. Raises `UsageError` if the folder exists, unless `overwrite` is set."""
        from peft import get_peft_model_state_dict

        trained = self._of(id)
        if folder.exists() and not overwrite:
            raise UsageError(
                f"weights named {folder.name!r} already exist", fix="use another name, or set overwrite"
            )
        state = get_peft_model_state_dict(
            self.model, adapter_name=trained.adapter, save_embedding_layers=False
        )
        with whole_folder(folder) as draft:
            save_file({n: t.detach().cpu().contiguous() for n, t in state.items()}, draft / ADAPTER)
            config = self.model.peft_config[trained.adapter]
            config.base_model_name_or_path = self.folder.hub_id or str(self.folder.path)
            config.inference_mode = True
            config.save_pretrained(str(draft))
            config.inference_mode = False
            sort_targets(draft)
            self.tokenizer.save_pretrained(draft)
            if optimizer:
                moments = state_tensors(trained.optimizer, trained.parameters)
                save_file({n: t.detach().cpu().contiguous() for n, t in moments.items()}, draft / OPTIMIZER)
            saved = {"shape": trained.shape, "steps": trained.steps}
            (draft / STATE).write_bytes(msgspec.json.encode(saved))
            if note is not None:
                (draft / NOTE).write_text(note, encoding="utf-8")

    def load(self, id: str, folder: Path, *, optimizer: bool) -> int:
        """Load a saved model under this id, in place of any current one, and return its number of trained
        weights. Raises `UsageError` if the folder was not saved by a session, or lacks the optimizer state
        that `optimizer` requests."""
        try:
            saved = msgspec.json.decode((folder / STATE).read_bytes(), type=dict[str, Any])
            shape, steps = decoding.convert(saved["shape"], AdapterShape), int(saved["steps"])
            moments = load_file(folder / OPTIMIZER) if optimizer else {}
        except FileNotFoundError as error:
            raise UsageError(
                f"{folder.name} contains no {Path(str(error.filename)).name}, because it was "
                f"saved for sampling only"
            ) from error
        before = self.models.get(id)
        name = self.put(folder, trainable=True)
        count = self._trained(id, name, shape)
        trained = self.models[id]
        if optimizer:
            restore_state(trained.optimizer, trained.parameters, moments)
            trained.steps = steps
        if before is not None:
            self.drop(before.adapter)
        return count

    # -- answers -------------------------------------------------------------------------------------------

    def ask(self, question: SampleRequest) -> None:
        """Queue a prompt. `step_answers` then generates the answers token by token. Raises `UsageError` for
        an invalid prompt."""
        size, context = len(self.tokenizer), self.folder.context
        if not question.prompt or not all(0 <= id < size for id in question.prompt):
            raise UsageError(
                f"the prompt is empty, or contains ids outside the model's vocabulary of {size} tokens"
            )
        room = question.max_tokens or MOST_TOKENS
        if context is not None:
            if len(question.prompt) >= context:
                raise UsageError(
                    f"the prompt has {len(question.prompt)} tokens, but the model accepts at most {context}"
                )
            room = min(room, context - len(question.prompt))
        name = self._of(question.model).adapter if question.model else self._snapshot(question.folder)
        prompt = self._read(name, question) if question.prompt_logprobs or question.prompt_tops else {}
        stops = frozenset(self._ends if question.stop_ids is None else question.stop_ids)
        rows = [
            DecodingRow(question.id, name, list(question.prompt), _settings_of(question, n), room, stops)
            for n in range(question.n)
        ]
        asked = PendingSample(question, rows, [[] for _ in rows], prompt)
        self._asked.update({id(row): asked for row in rows})
        rows[0].copies = rows[1:]
        self.batching.waiting.append(rows[0])

    @property
    def _ends(self) -> tuple[int, ...]:
        end_ids = self.inner.generation_config.eos_token_id
        found = end_ids if isinstance(end_ids, list) else [end_ids]
        return tuple(id for id in (*found, self.tokenizer.eos_token_id) if id is not None)

    def _snapshot(self, folder: str) -> str:
        """Load the adapter of saved weights onto the base, and keep it loaded while there is room."""
        if not folder:
            return BASE
        try:
            stat = (Path(folder) / ADAPTER).stat()
        except OSError as error:
            raise UsageError(
                "the requested weights were deleted: a session keeps unnamed weights only for "
                "its newest samplers",
                fix="save weights under a name to keep them: save_weights_for_sampler(NAME)",
            ) from error
        seen = f"{folder} {stat.st_ino} {stat.st_mtime_ns}"  # others may lie there since
        if seen not in self._snapshots:
            idle = [f for f, name in self._snapshots.items() if not self.batching.uses(name)]
            if len(self._snapshots) >= HELD_SNAPSHOTS and idle:
                self.drop(self._snapshots.pop(idle[0]))
            self._snapshots[seen] = self.put(Path(folder), trainable=False)
        self._snapshots.move_to_end(seen)
        return self._snapshots[seen]

    @torch.no_grad()
    def _read(self, name: str, question: SampleRequest) -> dict[str, Any]:
        """Compute log-probabilities of the prompt's own tokens from the second one, and the most likely
        tokens at each position."""
        ids = torch.tensor([question.prompt], device=self.device)
        with self.active(name) as model:
            inner = model.get_base_model() if model is not self.inner else model
            head = OutputHead.of(inner)
            hidden = Loaded(model, inner, head, self.device).hidden(ids)[0, :-1]
            log_p = log_probabilities(hidden, ids[0, 1:, None], head)[:, 0].cpu().numpy()
            unscored = 0 if question.prompt_last is None else max(0, len(log_p) - question.prompt_last)
            log_p[:unscored] = np.nan
            found = {"logprobs": Values.of(log_p)}
            if question.prompt_tops:
                most = min(question.prompt_tops, head.layer.weight.shape[0])
                top_ids = np.zeros((len(log_p), most), dtype="<i4")
                top_log_p = np.full((len(log_p), most), -99999.0, dtype="<f4")
                for start in range(unscored, len(log_p), head.block):
                    part = slice(start, start + head.block)
                    tops = head.logits(hidden[part]).log_softmax(dim=-1).topk(most)
                    top_ids[part], top_log_p[part] = tops.indices.cpu().numpy(), tops.values.cpu().numpy()
                found["top_ids"], found["top_logprobs"] = Values.of(top_ids), Values.of(top_log_p)
        return found

    @property
    def idle(self) -> bool:
        return self.batching.idle

    def samples_from(self, id: str) -> bool:
        """Return whether answers are being sampled from a model's live weights."""
        found = self.models.get(id)
        return found is not None and self.batching.uses(found.adapter)

    @torch.inference_mode()
    def step_answers(self, send: Callable[[dict[str, Any]], None]) -> None:
        """Generate the next token of each answer in progress, and send the answers that are complete."""
        for row, drawn in self.batching.step():
            asked = self._asked.get(id(row))
            if asked is None:  # another answer to the same prompt has failed
                row.ended = True
                continue
            if drawn.failed:
                self._failed(asked, f"no answer: {drawn.failed.replace('_', ' ')}", send)
                continue
            place = next(n for n, one in enumerate(asked.rows) if one is row)
            asked.drawn[place].append(drawn)
            row.ended = row.ended or self._says(asked.question, row.ids)
            if all(one.ended for one in asked.rows):
                self._over(asked)
                answers = [self._sample_result(asked, n) for n in range(len(asked.rows))]
                send({"id": row.key, "answers": answers, **asked.prompt})

    def give_up(self, error: str, send: Callable[[dict[str, Any]], None]) -> None:
        """Fail all answers in progress with this error. Models stay loaded."""
        for asked in {id(one): one for one in self._asked.values()}.values():
            self._failed(asked, error, send)
        self.batching.changing()
        self.batching = Batching(self.model, most_rows=self.batching.most_rows)
        self.batching.use(self.model)

    def _failed(self, asked: PendingSample, error: str, send: Callable[[dict[str, Any]], None]) -> None:
        for one in asked.rows:
            one.ended = True
        self._over(asked)
        send({"id": asked.question.id, "error": error, "kind": "RunFailed"})

    def _over(self, asked: PendingSample) -> None:
        for row in asked.rows:
            self._asked.pop(id(row), None)

    def _says(self, question: SampleRequest, ids: Sequence[int]) -> bool:
        """Return whether the answer ends with a stop sequence."""
        if not question.stop:
            return False
        last = self.tokenizer.decode(ids[-(8 + 4 * max(map(len, question.stop))) :])
        return any(text in last for text in question.stop)

    def _sample_result(self, asked: PendingSample, place: int) -> dict[str, Any]:
        row, drawn, question = asked.rows[place], asked.drawn[place], asked.question
        ended = row.ids[-1] in row.stops or self._says(question, row.ids)
        found: dict[str, Any] = {
            "stop": "stop" if ended else "length",
            "tokens": row.ids,
            "logprobs": Values.of(np.array([one.logprob for one in drawn], dtype="<f4")),
        }
        if question.tops:
            ids = [[id for id, _ in one.tops] for one in drawn]
            found["top_ids"] = Values.of(np.array(ids, dtype="<i4"))
            found["top_logprobs"] = Values.of(
                np.array([[p for _, p in one.tops] for one in drawn], dtype="<f4")
            )
        return found


def _free_bytes(gpu: torch.device) -> int:
    """Return the free memory of a GPU, including what torch's allocator holds without using it."""
    unused = torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)
    return torch.cuda.mem_get_info(gpu)[0] + unused


def _wide(targets: Tensor) -> Tensor:
    return targets if targets.ndim == 2 else targets[:, None]


def _settings_of(question: SampleRequest, n: int) -> SamplingSettings:
    return SamplingSettings(
        temperature=question.temperature,
        top_p=question.top_p,
        top_k=question.top_k,
        tops=question.tops,
        generator=seeded(question.seed, n),
    )
