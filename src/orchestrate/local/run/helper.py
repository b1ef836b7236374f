"""A helper process of a run: `python -m orchestrate.local.run.helper RUN_DIR RANK PROCESSES MEETING`.
Processes that are already connected call `assist` directly. Helper processes write nothing to the run
directory, and end when their parent process ends."""

# torch has incomplete type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrate.core import child
from orchestrate.errors import RunFailed
from orchestrate.local import run as process
from orchestrate.local.run import JobState, RunDir

if TYPE_CHECKING:
    from orchestrate.local.run.parallel import Met
    from orchestrate.local.run.session import Session


class Silent(RunDir):
    """A run directory that discards all reports, because only the first process writes them."""

    def add_event(self, message: str, **details: Any) -> None:
        del message, details

    def write_state(self, state: JobState) -> None:
        del state

    def repair(self, last_step: int) -> None:
        del last_step

    def add_metrics(self, step: int, values: dict[str, float], epoch: float | None = None) -> None:
        del step, values, epoch


def main(path: str, rank: int, processes: int, meeting: Path) -> None:
    with process.importing():
        from orchestrate.local.run import parallel

    parallel.join(meeting, rank, processes)
    assist(Silent(path), parallel.Met(rank, processes))


def assist(run: Silent, met: Met) -> None:
    """Compute this process's share of each training step until the first process reports that training has
    ended."""
    job = run.job()
    with process.importing():
        import torch
        import torch.distributed as dist

        from orchestrate.local.run import parallel
        from orchestrate.local.run.session import Session

        if job.adapter.type != "full":
            import_module("peft")
    if job.hyper.sharded:
        share(Session(run, job, asked=lambda: None, set_stage=lambda stage: None, met=met))
        return
    alone = msgspec.structs.replace(job, hyper=msgspec.structs.replace(job.hyper, processes=1))
    session = Session(run, alone, asked=lambda: None, set_stage=lambda stage: None)
    loop = session.loop
    loop.loaded.model.train()
    while True:
        orders: list[Any] = [None]
        dist.broadcast_object_list(orders, src=0)
        if orders[0] is None:
            return
        try:
            step = loop.objective, loop.train, loop.parameters, orders[0], met.rank
            parallel.run_pass(partial(parallel.at_once, *step))
        except torch.OutOfMemoryError:
            parallel.give_back(loop.loaded.device)
        for parameter in loop.parameters.values():
            parameter.grad = None


def share(session: Session) -> None:
    """Train this process's shard of the weights, in step with the first process, until the first process ends
    the run."""
    from orchestrate.local.run import parallel
    from orchestrate.local.run.loop import StopRequested

    assert session.sharded is not None  # noqa: S101  as the job says
    session.loop.restore()
    goes_on: bool | None = True
    while goes_on:
        try:
            session.loop.run()
            session.loop.weights()
        except StopRequested:
            pass  # until that is taken back
        except RunFailed as error:
            if error.__cause__ is not None:  # memory was short, and perhaps here alone
                raise SystemExit(parallel.SHORT) from None
        goes_on = session.sharded.agreed(None)


if __name__ == "__main__":
    child.end_with_input()
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
