"""Verify a model on a backend, with the same requests as `orchestrate chat`.

Backends return text and token counts, but no token ids.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrate.providers.base import Chats
from orchestrate.serving.proof.observations import MORE_TOKENS, ObservedAnswer, PromptView
from orchestrate.types import Canary, JobHandle, Message, Probe


class HostPlace:
    """A tuned model served by a host. Only handles plain-text conversations."""

    def __init__(self, provider: Chats, job: JobHandle, model: str) -> None:
        """Open the endpoint. `job` is the run's job, or the job of its adapter if the adapter was uploaded to
        this host."""
        self.at, self.engine, self.model = provider.host, provider.profile.title, model
        self.notes: list[str] = []
        self._provider, self._job = provider, job

    def prompts(self, probes: Sequence[Probe]) -> list[PromptView]:
        plain = [_messages(probe.messages) for probe in probes if not probe.tools]
        replies = iter(self._provider.generate(self._job, plain, max_tokens=1) if plain else ())
        return [PromptView() if p.tools else PromptView(count=next(replies).prompt_tokens) for p in probes]

    def answers(self, canaries: Sequence[Canary], *, base: bool) -> list[ObservedAnswer] | None:
        prompts = [
            [Message(role="user", content=c.text)] if c.text is not None else _messages(c.messages)
            for c in canaries
        ]
        most = max(len(c.tuned.ids) for c in canaries) + MORE_TOKENS
        replies = self._provider.generate(self._job, prompts, base=base, max_tokens=most, temperature=0.0)
        return [
            ObservedAnswer(
                text=r.content, ended=None if r.finish_reason is None else r.finish_reason == "stop"
            )
            for r in replies
        ]

    def scores(self, canaries: Sequence[Canary], *, base: bool) -> list[Sequence[float | None]] | None:
        del canaries, base
        return None


def _messages(given: Sequence[dict[str, object]]) -> list[Message]:
    return [Message(role=str(m["role"]), content=str(m.get("content") or "")) for m in given]
