"""The losses against those of TRL's own trainers: same model, same token ids, same reference."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cells import walk
from tests.unit.local.sessions import EXACT, TINY, answers, make_session, pairs, prompts

from orchestrate.local.encoding import Encoded
from orchestrate.local.encoding.encoded import EncodedRows, stacked
from orchestrate.local.objectives.dpo import PairObjective, UnpairedObjective, with_mismatched, with_reference
from orchestrate.local.objectives.grpo import PolicyObjective
from orchestrate.local.run.session import Session

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # TRL, accelerate and datasets warn about one another
    pytest.mark.timeout(300),
]


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


Pairs = Callable[..., Session]


@pytest.fixture
def session(tmp_path: Path) -> Pairs:
    """In 32 bits, without dropout, and away from its reference: fresh noise on every trained parameter."""

    def make(method: dict[str, Any], adapter: dict[str, Any]) -> Session:
        made = make_session(tmp_path, pairs(tmp_path / "pairs.jsonl", 12), method=method, adapter=adapter)
        made.loaded.model.float()
        objective = made.loop.objective
        if isinstance(objective, PairObjective) and objective.preference.needs_reference:
            made.loop.train = with_reference(objective, made.loop.train, tmp_path, 4096, lambda: None)
        noise = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in made.loaded.trainable.values():
                parameter.add_(0.03 * torch.randn(parameter.shape, generator=noise))
        return made

    return make


def concatenated(rows: EncodedRows, examples: list[int]) -> dict[str, torch.Tensor]:
    """TRL's batch: the preferred answers, then the rejected ones, padded on the right."""
    parts = [rows.row(i) for i in rows.rows_of(examples)]
    width = max(len(ids) for ids, _ in parts)
    out = {
        name: torch.zeros(len(parts), width, dtype=torch.long)
        for name in ("input_ids", "attention_mask", "completion_mask")
    }
    for r, (ids, weights) in enumerate(parts):
        out["input_ids"][r, : len(ids)] = torch.tensor(ids)
        out["attention_mask"][r, : len(ids)] = 1
        out["completion_mask"][r, : len(ids)] = torch.tensor(weights != 0).long()
    return out


def untrained(session: Session) -> Any:
    """The model that the session began with, without any of our own layers."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32, local_files_only=True)
    if session.job.adapter.full:
        return model
    config = LoraConfig(r=8, lora_alpha=16.0, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def follow(model: Any, session: Session) -> None:
    """Gives the model the session's trained parameters."""
    there = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in session.loaded.trainable.items():
            there[name].copy_(parameter)


def dpo_trainer(folder: Path, session: Session, **config: Any) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    args = DPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        per_device_train_batch_size=4,
        **config,
    )
    full = session.job.adapter.full
    reference: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32, local_files_only=True)
    # Of a LoRA model the trainer keeps a copy of the adapter as the reference, so it must see it untrained.
    trainer = DPOTrainer(
        model=untrained(session),
        ref_model=reference if full else None,
        args=args,
        train_dataset=Dataset.from_list([row] * 4),
        processing_class=copy.deepcopy(session.tokenizer),
    )
    follow(trainer.model, session)
    return trainer


LORA = {"type": "lora", "r": 8, "alpha": 16.0}
ADAPTERS: dict[str, dict[str, Any]] = {"full": {"type": "full"}, "lora": LORA}
DPO: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "beta 0.1": ({"beta": 0.1}, {"beta": 0.1}, 4),
    "beta 0.5": ({"beta": 0.5}, {"beta": 0.5}, 4),
    "by length": (
        {"beta": 2.0, "normalize_by_length": True},
        {"beta": 2.0, "loss_type": ["sigmoid_norm"]},
        4,
    ),
    # TRL's likelihood term is a mean over the batch's tokens, ours over pairs: one pair is the same.
    "rpo": (
        {"beta": 0.1, "rpo_alpha": 0.7},
        {"beta": 0.1, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]},
        1,
    ),
    "ipo": ({"loss": "ipo", "beta": 0.3}, {"beta": 0.3, "loss_type": ["ipo"]}, 4),
    # TRL smooths labels in AOT, which is DPO over sorted margins: one pair is the same.
    "smoothed labels": (
        {"beta": 0.5, "label_smoothing": 0.2},
        {"beta": 0.5, "loss_type": ["aot"], "label_smoothing": 0.2},
        1,
    ),
}
"""Our settings, TRL's, and of how many pairs."""


@pytest.mark.parametrize(("adapter", "name"), walk(ADAPTERS, DPO))
def test_dpo_is_trls(session: Pairs, tmp_path: Path, adapter: str, name: str) -> None:
    method, config, count = DPO[name]
    ours = session({"type": "dpo", **method}, ADAPTERS[adapter])
    trainer = dpo_trainer(tmp_path, ours, **config)
    examples = list(range(count))
    trainer.model.train()
    theirs = trainer._compute_loss(trainer.model, concatenated(ours.loop.train, examples), False)
    theirs.backward()
    same_loss_and_gradient(ours, examples, theirs.item(), trainer.model)


def same_loss_and_gradient(ours: Session, examples: list[int], loss: float, theirs: Any) -> None:
    ours.loaded.model.train()
    sums = ours.loop.objective.gradients(ours.loop.train, examples, 4096, 2)
    assert sums.loss / sums.weight == pytest.approx(loss, rel=1e-4)
    same_gradient(ours, theirs)


def same_gradient(ours: Session, theirs: Any) -> None:
    gradients = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    assert set(gradients) == set(ours.loaded.trainable)
    for name, parameter in ours.loaded.trainable.items():
        wanted = gradients[name]
        assert wanted is not None and parameter.grad is not None and wanted.norm() > 0
        assert (parameter.grad - wanted).norm() < 2e-3 * wanted.norm(), name


@pytest.mark.parametrize(("adapter", "beta"), walk(ADAPTERS, [0.1, 1.5]))
def test_orpo_is_trls(session: Pairs, tmp_path: Path, adapter: str, beta: float) -> None:
    """TRL's likelihood term is a mean over the preferred rows' tokens, prompts included, ours over the
    answers: prompts of one token and answers of one length are the same."""
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    ours = session({"type": "dpo", "loss": "orpo", "beta": beta}, ADAPTERS[adapter])
    ids = ours.tokenizer("What is the number of all the towns in this list?")["input_ids"]
    answers = [ids[i : i + n] for i, rejected in enumerate((2, 5, 3, 4)) for n in (4, rejected)]
    rows = stacked([Encoded([ids[0], *a], [0.0] + [1.0] * len(a)) for a in answers], pairs=True)
    ours.loop.train = rows
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    trainer = ORPOTrainer(
        model=untrained(ours),
        args=ORPOConfig(
            output_dir=str(tmp_path / "trl"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            per_device_train_batch_size=4,
            beta=beta,
        ),
        train_dataset=Dataset.from_list([row] * 4),
        processing_class=copy.deepcopy(ours.tokenizer),
    )
    follow(trainer.model, ours)
    trainer.model.train()
    both = concatenated(rows, [0, 1, 2, 3])
    labels = both["input_ids"].masked_fill(both["completion_mask"] == 0, -100)
    batch: dict[str, torch.Tensor] = {}
    for n, side in ((0, "chosen"), (4, "rejected")):
        batch[f"{side}_input_ids"] = both["input_ids"][n : n + 4]
        batch[f"{side}_attention_mask"] = both["attention_mask"][n : n + 4]
        batch[f"{side}_labels"] = labels[n : n + 4]
    theirs, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)
    theirs.backward()
    same_loss_and_gradient(ours, [0, 1, 2, 3], theirs.item(), trainer.model)
    sums = ours.loop.objective.run(rows, [0, 1, 2, 3], 1.0, backward=False)
    assert sums.shown is not None
    assert sums.shown["reward_margin"] / 4 == pytest.approx(metrics["rewards/margins"], rel=1e-4)


def drift(session: Session, divergence: Callable[[], float]) -> None:
    """Away from the reference, to where the estimate of the divergence is not cut off at 0."""
    before = {n: p.detach().clone() for n, p in session.loaded.trainable.items()}
    for seed in range(20):
        noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in session.loaded.trainable.items():
                parameter.copy_(before[name] + 0.03 * torch.randn(parameter.shape, generator=noise))
        if divergence() > 0.1:
            return
    pytest.fail("no drift with a divergence")


def kto_batch(session: Session, examples: list[int]) -> dict[str, torch.Tensor]:
    """TRL's own collator makes the batch of prompts and completions in the order of ours, each with the
    completion before it, as the trainer does when it prepares its data."""
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    rows = session.loop.train
    assert rows.labels is not None
    parts = [
        (ids[: int((weights > 0).argmax())].tolist(), ids[weights > 0].tolist())
        for ids, weights in map(rows.row, examples)
    ]
    return DataCollatorForUnpairedPreference(pad_token_id=session.tokenizer.pad_token_id or 0)(
        [
            {
                "prompt_ids": prompt,
                "completion_ids": completion,
                "KL_completion_ids": parts[i - 1][1],
                "label": bool(rows.labels[example]),
            }
            for i, (example, (prompt, completion)) in enumerate(zip(examples, parts, strict=True))
        ]
    )


KTO: dict[str, dict[str, float]] = {
    "defaults": {},
    "weighted": {"beta": 0.4, "desirable_weight": 1.5, "undesirable_weight": 0.7},
}


@pytest.mark.parametrize(("adapter", "name"), walk(ADAPTERS, KTO))
def test_kto_is_trls(tmp_path: Path, adapter: str, name: str) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import KTOConfig, KTOTrainer

    weights = KTO[name]
    method = {"type": "dpo", "loss": "kto", **weights}
    rows = answers(tmp_path / "answers.jsonl", 12)
    ours = make_session(tmp_path, rows, method=method, adapter=ADAPTERS[adapter], hyper={"batch_size": 6})
    ours.loaded.model.float()
    objective = ours.loop.objective
    assert isinstance(objective, UnpairedObjective)
    # Anew: the session's own reference was made before the model was in 32 bits.
    (tmp_path / "exact").mkdir()
    made = with_reference(objective, ours.loop.train, tmp_path / "exact", 4096, lambda: None)
    ours.loop.train = with_mismatched(objective, made, tmp_path / "exact", 1, 4096, lambda: None)
    examples = objective.mismatch.batches(ours.loop.train, 0)[0]
    drift(ours, lambda: objective.estimate(ours.loop.train, examples, 4096, 6))
    reference: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32, local_files_only=True)
    trainer = KTOTrainer(
        model=untrained(ours),
        ref_model=reference if adapter == "full" else None,
        args=KTOConfig(
            output_dir=str(tmp_path / "trl"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            per_device_train_batch_size=6,
            **weights,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a", "completion": "b", "label": True}] * 4),
        processing_class=copy.deepcopy(ours.tokenizer),
    )
    follow(trainer.model, ours)
    trainer.model.train()
    theirs = trainer._compute_loss(trainer.model, kto_batch(ours, examples), False)
    theirs.backward()
    ours.loaded.model.train()
    sums = objective.gradients(ours.loop.train, examples, 4096, 2)
    assert sums.loss / sums.weight == pytest.approx(theirs.item(), rel=1e-4)
    same_gradient(ours, trainer.model)
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    shown = {name: value / sums.weight for name, value in (sums.shown or {}).items()}
    assert logged["kl"] > 0
    assert shown == pytest.approx(
        {
            "kl": logged["kl"],
            "preferred_reward": logged["rewards/chosen"],
            "rejected_reward": logged["rewards/rejected"],
            "reward_margin": logged["rewards/margins"],
        },
        rel=1e-3,
    )


@pytest.mark.parametrize("kl_beta", [0.0, 0.3], ids=["no kl", "kl"])
def test_grpo_is_trls(tmp_path: Path, kl_beta: float) -> None:
    """TRL is given our answers and rewards; advantages, divergence, loss and gradient are its own."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    method = {"type": "rft", "grader": EXACT, "samples_per_prompt": 4, "kl_beta": kl_beta}
    rows = prompts(tmp_path / "prompts.jsonl", range(10, 26))
    ours = make_session(tmp_path, rows, method=method, adapter=LORA, hyper={"max_new_tokens": 6})
    ours.loaded.model.float()
    objective = ours.loop.objective
    assert isinstance(objective, PolicyObjective)
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in ours.loaded.trainable.values():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=noise))
    torch.manual_seed(1)
    rollouts = objective.roll_out(ours.loop.train, range(8), 4096)
    count = len(rollouts.advantages)
    answers = [rollouts.rows.row(i) for i in range(count)]
    answer_ids = [ids[weights > 0].tolist() for ids, weights in answers]
    rewards = [
        float(ours.tokenizer.decode(ids, skip_special_tokens=True).strip() == "even") for ids in answer_ids
    ]
    assert 0 < sum(rewards) < count

    def rollout(_prompts: list[str], _trainer: Any) -> dict[str, Any]:
        prompt_ids = [ids[weights == 0].tolist() for ids, weights in answers]
        return {"prompt_ids": prompt_ids, "completion_ids": answer_ids, "logprobs": None}

    trainer = GRPOTrainer(
        model=untrained(ours),
        reward_funcs=lambda completions, **_: rewards,
        args=GRPOConfig(
            output_dir=str(tmp_path / "trl"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            per_device_train_batch_size=count,
            num_generations=4,
            max_completion_length=6,
            beta=kl_beta,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a"}] * count),
        processing_class=copy.deepcopy(ours.tokenizer),
        rollout_func=rollout,
    )
    follow(trainer.model, ours)
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions([{"prompt": "a"}] * count)
    assert torch.allclose(inputs["advantages"], rollouts.advantages, atol=1e-5)
    trainer.model.train()
    theirs = trainer._compute_loss(trainer.model, inputs)
    theirs.backward()
    ours.loaded.model.train()
    sums = objective.learn(rollouts, 4096, 3)
    assert sums.loss / sums.weight == pytest.approx(theirs.item(), abs=1e-5)
    same_gradient(ours, trainer.model)
    ours.close()
