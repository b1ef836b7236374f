"""AsyncTrainingSession: a training session for asyncio. It has its own module because it imports numpy."""

from __future__ import annotations

from decimal import Decimal
from typing import Self

from orchestrate.api.threads import Threaded, in_thread
from orchestrate.sessions.session import SessionFutures, TrainingSession
from orchestrate.types import Run


class AsyncTrainingSession(Threaded[TrainingSession]):
    """`TrainingSession` for asyncio, with the same members. The methods of `futures` return concurrent
    futures: wrap them with `asyncio.wrap_future` to await them."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        kind, raised, trace = error
        await self.call(lambda: self.sync_api.__exit__(kind, raised, trace))  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"<Async{repr(self.sync_api)[1:]}"

    @property
    def id(self) -> str:
        return self.sync_api.id

    @property
    def record(self) -> Run:
        return self.sync_api.record

    @property
    def step(self) -> int:
        return self.sync_api.step

    @property
    def cost_usd(self) -> Decimal:
        return self.sync_api.cost_usd

    @property
    def saves(self) -> list[str]:
        return self.sync_api.saves

    @property
    def futures(self) -> SessionFutures:
        return self.sync_api.futures

    tokenizer = in_thread(TrainingSession.tokenizer)
    forward_backward = in_thread(TrainingSession.forward_backward)
    forward = in_thread(TrainingSession.forward)
    forward_backward_custom = in_thread(TrainingSession.forward_backward_custom)
    optim_step = in_thread(TrainingSession.optim_step)
    skip_step = in_thread(TrainingSession.skip_step)
    log = in_thread(TrainingSession.log)
    add_event = in_thread(TrainingSession.add_event)
    set_total_steps = in_thread(TrainingSession.set_total_steps)
    sample = in_thread(TrainingSession.sample)
    logprobs = in_thread(TrainingSession.logprobs)
    save = in_thread(TrainingSession.save)
    load = in_thread(TrainingSession.load)
    close = in_thread(TrainingSession.close)
