"""The losses of a session, and their gradients on its adapter, against TRL's own trainers over one batch of
prompts and answers. TRL 1.16 has no DRO: there its log-probabilities are put into the published formula."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.paths import TINY

from orchestrate.local.sessions import AdapterShape, Datum, Opening, SessionEngine, Values

# torch describes its types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # TRL, accelerate and datasets warn about one another
    pytest.mark.timeout(300),
]
ROWS = (
    ("What is the capital of France?", " Paris, as far as anybody knows."),
    ("Say hello.", " Hello there, how are you today?"),
    ("Count the towns of the list, one by one, and name the last.", " Twelve."),
    ("No?", " No, never, and not at any price that you could name."),
)
APART = ((0.4, 1.5), (-0.4, -0.7), (0.4, -1.1), (-0.4, 0.4))
"""How much likelier each answer was, and its advantage: every side of every bound is reached."""
BETA = 0.3
UNBOUNDED = 1e9


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class Answered:
    prompt: list[int]
    answer: list[int]
    logprobs: torch.Tensor
    """Of all tokens but the first, when the answer was drawn."""
    advantage: float

    @property
    def drawn(self) -> torch.Tensor:
        return self.logprobs[len(self.prompt) - 1 :]

    def datum(self, **inputs: torch.Tensor) -> Datum:
        """The row on the wire: its tokens but the last, and for each position what follows. `inputs`: numbers
        of the answer's tokens, or of all positions."""
        ids = [*self.prompt, *self.answer]
        made = {"target_tokens": Values.of(np.asarray(ids[1:], dtype="<i8"))}
        for name, given in inputs.items():
            numbers = torch.cat([torch.zeros(len(ids) - 1 - len(given)), given]).numpy()
            made[name] = Values.of(numbers.astype("<f4"))
        return Datum(tokens=tuple(ids[:-1]), inputs=made)

    def policy(self, divisor: float = 1.0, **inputs: torch.Tensor) -> Datum:
        gain = torch.full((len(self.answer),), self.advantage / divisor)
        return self.datum(logprobs=self.logprobs, advantages=gain, **inputs)


class Bench:
    """A model of a session, the same model in TRL's hands, and answers that an older one drew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = SessionEngine(Opening(base=str(TINY), threads=1, precision="fp32"))
        self.engine.create("ours", AdapterShape(rank=4, seed=1))
        noise = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in self.engine.models["ours"].parameters.values():
                parameter.add_(0.03 * torch.randn(parameter.shape, generator=noise))
        self.engine.save("ours", folder / "kept", optimizer=False)
        self.rows = [self._drawn(*text, *apart, noise) for text, apart in zip(ROWS, APART, strict=True)]
        self.tokens = sum(len(row.answer) for row in self.rows)

    def _drawn(self, asked: str, told: str, shift: float, gain: float, noise: torch.Generator) -> Answered:
        prompt, answer = (self.engine.tokenizer(text)["input_ids"] for text in (asked, told))
        plain = Answered(prompt, answer, torch.zeros(0), gain).datum()
        [now], _ = self.engine.forward("ours", [plain], "cross_entropy", {}, backward=False)
        before = torch.from_numpy(now.array().copy())
        before[len(prompt) - 1 :] += shift + 0.3 * torch.randn(len(answer), generator=noise)
        return Answered(prompt, answer, before, gain)

    def ours(self, name: str, data: list[Datum], **config: float) -> tuple[float, dict[str, torch.Tensor]]:
        parameters = self.engine.models["ours"].parameters
        for parameter in parameters.values():
            parameter.grad = None
        _, metrics = self.engine.forward("ours", data, name, config, backward=True)
        return metrics["loss:sum"], {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}

    def model(self) -> Any:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32, local_files_only=True)
        return PeftModel.from_pretrained(base, str(self.folder / "kept"), is_trainable=True)

    @property
    def common(self) -> dict[str, Any]:
        return {
            "output_dir": str(self.folder / "trl"),
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": [],
            "per_device_train_batch_size": len(ROWS),
        }

    def sft(self) -> Any:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        return SFTTrainer(
            model=self.model(),
            args=SFTConfig(**self.common),
            train_dataset=Dataset.from_list([{"input_ids": [1, 2], "labels": [1, 2]}] * len(ROWS)),
            processing_class=self.engine.tokenizer,
        )

    def grpo(self, **config: Any) -> Any:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        trainer: Any = GRPOTrainer(
            model=self.model(),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=GRPOConfig(**self.common, num_generations=len(ROWS), beta=0.0, **config),
            train_dataset=Dataset.from_list([{"prompt": "a"}] * len(ROWS)),
            processing_class=self.engine.tokenizer,
        )
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        return trainer

    def batch(self) -> dict[str, torch.Tensor]:
        """TRL's: prompts padded on the left, answers on the right."""
        found: dict[str, torch.Tensor] = {
            "advantages": torch.tensor([row.advantage for row in self.rows]),
            "old_per_token_logps": padded([row.drawn for row in self.rows]),
            "num_items_in_batch": torch.tensor(float(self.tokens)),
        }
        both = {"prompt": [r.prompt for r in self.rows], "completion": [r.answer for r in self.rows]}
        for (name, rows), side in zip(both.items(), ("left", "right"), strict=True):
            found[f"{name}_ids"] = padded([torch.tensor(ids) for ids in rows], side)
            found[f"{name}_mask"] = padded([torch.ones(len(ids), dtype=torch.long) for ids in rows], side)
        return found


def padded(rows: list[torch.Tensor], side: str = "right") -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def same(ours: tuple[float, dict[str, torch.Tensor]], loss: torch.Tensor, model: Any, times: float) -> None:
    """Judges loss and gradients. `times`: how many of TRL's losses ours is, by the denominators of both."""
    loss.backward()
    assert ours[0] == pytest.approx(times * loss.item(), rel=1e-5, abs=1e-5)
    named = ((name.replace(".default", ""), parameter) for name, parameter in model.named_parameters())
    theirs = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
    assert theirs.keys() == ours[1].keys()
    for name, mine in ours[1].items():
        wanted = theirs[name] * times
        assert wanted.norm() > 0
        assert (mine - wanted).norm() <= 1e-5 * wanted.norm(), name


def test_cross_entropy_is_trls(bench: Bench) -> None:
    """TRL's is the mean over the batch's trained tokens, ours the sum."""
    trainer = bench.sft()
    trainer.model.train()
    data = [row.datum(weights=torch.ones(len(row.answer))) for row in bench.rows]
    ids = [torch.tensor([*row.prompt, *row.answer]) for row in bench.rows]
    labels = [torch.tensor([-100] * len(row.prompt) + row.answer) for row in bench.rows]
    batch = {
        "input_ids": padded(ids),
        "attention_mask": padded([torch.ones_like(one) for one in ids]),
        "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
    }
    theirs = trainer.compute_loss(trainer.model, batch)
    same(bench.ours("cross_entropy", data), theirs, trainer.model, bench.tokens)


POLICIES: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    # Bounds that no ratio reaches: what is left of the clipped loss is ratio * advantage.
    "importance_sampling": ({"loss_type": "bnpo", "epsilon": UNBOUNDED, "epsilon_high": UNBOUNDED}, {}),
    "ppo": ({"loss_type": "bnpo"}, {}),  # 0.2 to both sides is the default of both
    "ppo, other bounds": (
        {"loss_type": "bnpo", "epsilon": 0.1, "epsilon_high": 0.28},
        {"clip_low_threshold": 0.9, "clip_high_threshold": 1.28},
    ),
    # TRL's `epsilon_high` is the largest ratio itself, and no ratio is too small for it.
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.2},
        {"clip_low_threshold": 0.0, "clip_high_threshold": 1.2},
    ),
}
"""By loss: TRL's settings and ours. Both kinds of TRL's losses divide by the batch's answer tokens."""


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_loss_is_trls(bench: Bench, name: str) -> None:
    theirs, ours = POLICIES[name]
    trainer = bench.grpo(**theirs)
    data = [row.policy() for row in bench.rows]
    loss = trainer._compute_loss(trainer.model, bench.batch())
    same(bench.ours(name.split(",")[0], data, **ours), loss, trainer.model, bench.tokens)


def test_gspo_is_trls(bench: Bench) -> None:
    """TRL's is the mean of one value for each of the N answers. Ours counts that value once for each of the
    answer's L tokens, so with advantages divided by L it is N times TRL's."""
    trainer = bench.grpo(
        loss_type="grpo", importance_sampling_level="sequence", epsilon=0.2, epsilon_high=0.2
    )
    data = [
        row.policy(len(row.answer), sequence_ratio_mask=torch.ones(len(row.answer))) for row in bench.rows
    ]
    loss = trainer._compute_loss(trainer.model, bench.batch())
    same(bench.ours("gspo", data), loss, trainer.model, len(bench.rows))


def test_log_probabilities_are_trls_and_dro_is_its_formula_over_them(bench: Bench) -> None:
    """Richemond et al. 2024, as Tinker publishes it: -sum(A log p - beta / 2 (log p - log q)^2)."""
    trainer, batch = bench.grpo(), bench.batch()
    log_p, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        batch["completion_ids"].shape[1],
    )
    gain, apart = batch["advantages"][:, None] * log_p, log_p - batch["old_per_token_logps"]
    loss = -((gain - BETA / 2 * apart**2) * batch["completion_mask"]).sum()
    data = [row.policy() for row in bench.rows]
    ours, _ = bench.engine.forward("ours", data, "dro", {}, backward=False)
    for row, mine, other in zip(bench.rows, ours, log_p.detach().numpy(), strict=True):
        np.testing.assert_allclose(
            mine.array()[len(row.prompt) - 1 :], other[: len(row.answer)], rtol=0, atol=1e-5
        )
    same(bench.ours("dro", data, beta=BETA), loss, trainer.model, 1)
