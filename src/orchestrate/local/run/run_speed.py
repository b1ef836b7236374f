"""Determine the speed of a run, which later quotes use."""

# torch has incomplete type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from pathlib import Path

import torch

from orchestrate.local.job import Reinforcement
from orchestrate.local.plan import memory_fit, throughput
from orchestrate.local.plan.throughput import READ_SHARE, MeasuredPace
from orchestrate.local.run import now
from orchestrate.local.run.session import Session


def of(session: Session, seconds: float) -> MeasuredPace | None:
    """Return the speed of a run that took `seconds` in total. Returns `None` if the run says little about
    others: it used several processes, sampled answers, or trained a model of unknown size."""
    method = session.job.method
    parameters = memory_fit.active_parameters(str(session.folder.path), None)
    unrepresentative = session.group is not None or isinstance(method, Reinforcement)
    if unrepresentative or parameters is None or session.loop.progress.seconds <= 0:
        return None
    kind = throughput.kind_of(
        parameters=parameters,
        adapter=session.job.adapter.type,
        method=method.word,
        precision=session.loaded.precision.name,
        threads=torch.get_num_threads(),
        device=session.device.type,
    )
    loop, p = session.loop, session.loop.progress
    read = 0.0
    if session.read_seconds is not None:
        valid = 0 if loop.valid is None else loop.valid.tokens
        read = float(loop.train.tokens + valid)
        if method.word == "kto":  # and another row's answer after each prompt, there and in the steps
            read += 2 * p.seen_tokens + valid * sum(step <= p.step for step in loop.eval_steps)
    trained = p.seconds + (session.read_seconds or 0.0)
    home = None if session.job.paces is None else Path(session.job.paces).parent
    estimate = None if home is None else throughput.estimate(home, kind)
    return MeasuredPace(
        kind=kind,
        at=now(),
        tokens=loop.work.done(p.step, p.seen_tokens) + READ_SHARE * read,
        seconds=trained,
        besides_seconds=max(0.0, seconds - trained),
        told=None if estimate is None else estimate.tokens_per_second,
        told_by="" if estimate is None else estimate.told_by,
    )
