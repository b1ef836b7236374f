"""Reinforcement fine-tuning with GRPO (Shao et al. 2024): the model answers each prompt several times, and
each answer's reward is compared with the rewards of the other answers. Each optimizer step samples new
answers, so training is on-policy and no ratio needs clipping. Rewards are centered and scaled within each
prompt's group of answers. The loss is a mean over the step's answer tokens (Yu et al. 2025), which avoids a
bias towards long answers. With `kl_beta`, the KL divergence from the initial model is part of the loss. The
defaults are TRL's."""

# torch, transformers and numpy have incomplete type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
import torch
from torch import Tensor

from orchestrate.errors import RunFailed
from orchestrate.local.encoding import Encoded, Template
from orchestrate.local.encoding.encoded import EncodedRows, micro_batches, stacked
from orchestrate.local.job import Reinforcement
from orchestrate.local.model.loaded import Loaded
from orchestrate.local.model.sampling.sampler import Sampler
from orchestrate.local.objectives.base import Objective, Sums, TrainingBatch, add, token_losses
from orchestrate.local.objectives.graders import Grade, Grader
from orchestrate.local.plan.memory_fit import drawn_at_once

EPSILON = 1e-4
"""Term added to the standard deviation of a group's rewards, as in TRL."""
ASKED_AT_ONCE = 1024
"""Maximum number of evaluation prompts to answer at a time. Answering all of them at once could run out of
memory."""


@dataclass(frozen=True)
class Rollouts:
    """The answers sampled in one step. Each row is a prompt with one answer, and only the answer is
    trained."""

    rows: EncodedRows
    advantages: Tensor
    """Advantage of each answer. Shape: [rows]."""
    shown: dict[str, float]
    """Metrics of the step, averaged over its answers, as {metric: value}."""


class PolicyObjective(Objective):
    """The GRPO objective: samples answers, grades them, and increases the likelihood of the better ones."""

    divisible: ClassVar[bool] = False

    def __init__(
        self,
        loaded: Loaded,
        method: Reinforcement,
        max_new_tokens: int,
        *,
        sampler: Sampler,
        template: Template,
        grader: Grader,
        warn: Callable[[str], None] = lambda _: None,
        check_requests: Callable[[], None] = lambda: None,
    ) -> None:
        """Set up the objective. `warn` is called once if an answer could not be graded. `check_requests` is
        called between the steps of sampling and grading, and may raise."""
        super().__init__(loaded, template.tokenizer.pad_token_id or 0)
        self.sampler, self.template, self.grader = sampler, template, grader
        self.samples, self.max_new_tokens = method.samples, max_new_tokens
        self.kl_beta, self.warn, self.check_requests = method.kl_beta or 0.0, warn, check_requests
        self._graded = self._warned = False
        self._start = {n: p.detach().clone() for n, p in loaded.trainable.items()} if self.kl_beta else None

    def close(self) -> None:
        self.grader.close()

    def longest(self, rows: EncodedRows, examples: Sequence[int]) -> int:
        return super().longest(rows, examples) + self.max_new_tokens

    def to_lower(self, values: dict[str, float]) -> float:
        return -values["valid_reward"]

    def gradients(self, rows: EncodedRows, batch: Sequence[int], max_tokens: int, max_rows: int) -> Sums:
        rollouts = self.roll_out(rows, batch, max_tokens)
        sums = self.learn(rollouts, max_tokens, max_rows)
        count = len(rollouts.advantages)
        sums.shown = {**(sums.shown or {}), **{k: v * count for k, v in rollouts.shown.items()}}
        return sums

    # -- answers ---------------------------------------------------------------------------------------------

    def roll_out(self, rows: EncodedRows, batch: Sequence[int], max_tokens: int) -> Rollouts:
        """Sample `samples` answers to each of these prompts and grade them."""
        prompts = [rows.row(i)[0].tolist() for i in batch for _ in range(self.samples)]
        asked = [i for i in batch for _ in range(self.samples)]
        answers = self._draw(prompts, 1.0, max_tokens)
        grades = self._grade(rows, asked, answers)
        rewards = torch.tensor([g.score for g in grades]).view(-1, self.samples)
        spread = rewards.std(dim=1, keepdim=True)
        advantages = (rewards - rewards.mean(dim=1, keepdim=True)) / (spread + EPSILON)
        encoded = [
            Encoded([*p, *a], [0.0] * len(p) + [1.0] * len(a)) for p, a in zip(prompts, answers, strict=True)
        ]
        shown = self._describe(answers, grades)
        shown["reward_std"] = float(spread.mean())
        shown["equal_rewards"] = float((spread == 0).float().mean())
        return Rollouts(stacked(encoded), advantages.view(-1), shown)

    def _draw(self, prompts: list[list[int]], temperature: float, max_tokens: int) -> list[list[int]]:
        longest = max(map(len, prompts)) + self.max_new_tokens
        with (
            self.loaded.evaluation_mode(),
            torch.no_grad(),
            self.precision(),
            padded_attention(self.loaded.inner),
        ):
            return self.sampler.draw(
                self.loaded.model,
                prompts,
                max_tokens=self.max_new_tokens,
                temperature=temperature,
                most_rows=drawn_at_once(max_tokens, longest),
                check_requests=self.check_requests,
            )

    def _grade(self, rows: EncodedRows, asked: Sequence[int], answers: list[list[int]]) -> list[Grade]:
        """Grade answers without their reasoning. `asked` are the rows of the prompts."""
        grades: list[Grade] = []
        for i, drawn in zip(asked, answers, strict=True):
            self.check_requests()
            ids, stopped = self.sampler.said(drawn)
            reported_settings = rows.prompts[i]
            said = self.template.said(
                ids, rows.row(i)[0].tolist(), tools=reported_settings.tools, cut=not stopped
            )
            item = {"messages": msgspec.to_builtins(reported_settings.messages), **reported_settings.fields}
            grades += self.grader.grade([said], [item])
        errors = [g.error for g in grades if g.error]
        if errors and len(errors) == len(grades) and not self._graded:
            raise RunFailed(
                f"the grader could not grade any answer: {errors[0]}",
                fix="fix method.grader, or the row fields that it uses",
            )
        if errors and not self._warned:
            self.warn(
                f"{len(errors)} of {len(grades)} answers could not be graded and got a reward of 0: "
                f"{errors[0]}"
            )
            self._warned = True
        self._graded = True
        return grades

    def _describe(self, answers: list[list[int]], grades: list[Grade]) -> dict[str, float]:
        count = len(grades)
        return {
            "reward": sum(g.score for g in grades) / count,
            "answer_tokens": sum(map(len, answers)) / count,
            "cut_answers": sum(not self.sampler.said(a)[1] for a in answers) / count,
            "grader_errors": sum(g.error is not None for g in grades) / count,
        }

    # -- learning --------------------------------------------------------------------------------------------

    def learn(self, rollouts: Rollouts, max_tokens: int, max_rows: int) -> Sums:
        """Compute the gradient of the policy loss in micro-batches that fit in memory."""
        rows, count = rollouts.rows, len(rollouts.advantages)
        tokens = float(sum(rows.row(i)[1][1:].sum() for i in range(count)))
        sums = Sums()
        for part in micro_batches(range(count), rows.lengths, max_tokens, max_rows):
            batch = self.collate(rows, part)
            advantages = rollouts.advantages[part].to(self.loaded.device)
            with self.precision(step=True):
                loss, divergence, correct = self.policy_loss(batch, advantages)
                (loss / tokens * self.loaded.loss_scale).backward()
            shown = {} if divergence is None else {"kl": divergence.item() / tokens * count}
            more = Sums(loss.item() / tokens * count, correct.item(), len(batch.targets), len(part))
            more.tokens, more.shown = batch.tokens, shown
            add(sums, more)
        return sums

    def policy_loss(self, batch: TrainingBatch, advantages: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return three sums over the batch's answer tokens: the loss, the estimated KL divergence from the
        initial model (`None` without `kl_beta`), and the number of tokens that the model ranks as most
        likely."""
        start = self._log_probabilities_at_start(batch)
        losses, correct = token_losses(self.trained_hidden(batch), batch.targets, self.loaded.head)
        log_p = -losses
        # The value is 1, but the gradient is that of the probability ratio between trained and sampling
        # policy.
        ratio = (log_p - log_p.detach()).exp()
        loss = -(ratio * advantages[batch.row]).sum()
        if start is None:
            return loss, None, correct
        apart = start - log_p
        # The factor `ratio` makes this the gradient of the divergence itself. Without it, the gradient is
        # biased.
        divergence = (ratio * (apart.exp() - apart - 1)).sum()
        return loss + self.kl_beta * divergence, divergence.detach(), correct

    @torch.no_grad()
    def _log_probabilities_at_start(self, batch: TrainingBatch) -> Tensor | None:
        if self._start is None:
            return None
        now = self.loaded.trainable
        kept = {n: p.detach().clone() for n, p in now.items()}
        try:
            for name, parameter in now.items():
                parameter.copy_(self._start[name])
            with self.loaded.evaluation_mode():
                return -token_losses(self.trained_hidden(batch), batch.targets, self.loaded.head)[0]
        finally:
            for name, parameter in now.items():
                parameter.copy_(kept[name])

    def evaluate(self, rows: EncodedRows, max_tokens: int) -> dict[str, float]:
        """Compute the mean reward of greedy answers, and the other metrics of `_describe`."""
        sums: Counter[str] = Counter()
        for start in range(0, rows.examples, ASKED_AT_ONCE):
            numbers = range(start, min(start + ASKED_AT_ONCE, rows.examples))
            answers = self._draw([rows.row(i)[0].tolist() for i in numbers], 0.0, max_tokens)
            shown = self._describe(answers, self._grade(rows, numbers, answers))
            sums.update({k: v * len(numbers) for k, v in shown.items()})
        return {f"valid_{k}": v / rows.examples for k, v in sums.items()}


@contextmanager
def padded_attention(model: Any) -> Generator[None]:
    """Use an attention implementation that supports left padding while the context manager is active.
    Orchestrate's own attention doesn't support it."""
    own = model.config.get_text_config()._attn_implementation
    switched = own.startswith("orchestrate")
    if switched:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if switched:
            model.set_attn_implementation(own)
