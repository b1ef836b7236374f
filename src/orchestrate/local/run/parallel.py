"""Data-parallel training: one process per GPU, each with the full model. On one machine, the first process
starts the others. On several machines, the processes are already connected. The first process owns the run:
steps, optimizer, evaluations, checkpoints, result. In each step, the others receive the parameters and
compute the gradients of their share of the examples. They store nothing, so a run can resume with any number
of processes. In each step, every trained parameter and every gradient is sent once. This transfers as much
data as an all-reduce. If one process dies, all processes end, and a new worker resumes the run from its
newest checkpoint."""

# torch has incomplete type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from orchestrate.errors import UsageError
from orchestrate.local import machine
from orchestrate.local.encoding.encoded import EncodedRows
from orchestrate.local.job import option
from orchestrate.local.model.loaded import give_back as give_back
from orchestrate.local.model.loaded import out_of_memory
from orchestrate.local.model.loaded import run_pass as run_pass
from orchestrate.local.objectives.base import Objective, Sums, add
from orchestrate.local.run import RunDir, launcher, now
from orchestrate.types import JobError

LOOK_S = 0.2
SHORT = 77
"""Exit code of a process that ran out of memory with a sharded model. All other processes are then blocked in
the middle of a pass."""
LESS = f"set {option('micro_batch')}: 1 or {option('gradient_checkpointing')}: true, or lower max_seq_length"
CUT_S = 10.0
ENDED_S = 120.0
"""Maximum seconds until the parent process notices that a process has ended."""
NEVER = timedelta(days=365)
"""Timeout for connections. It must never expire, because processes wait while the first one evaluates and
saves. Lost processes are detected by other means."""


@dataclass(frozen=True)
class Step:
    """A step that all processes compute together. `total` is the total weight of all examples, by which each
    loss is divided."""

    shares: tuple[tuple[int, ...], ...]
    total: float
    max_tokens: int
    max_rows: int
    seed: int
    loss_scale: float


@dataclass
class Met:
    """One of several processes that torch.distributed has already connected."""

    rank: int
    processes: int
    released: bool = False
    """True once the first process has notified the others that training has ended."""

    def cut(self) -> None:
        """Wait for the parent process to kill this process. Call this after an error that may be a
        consequence of another process's exit."""
        time.sleep(ENDED_S)


class Peers:
    """The first process's view of the other processes."""

    def __init__(self, met: Met) -> None:
        self.met, self.processes = met, met.processes

    def gradients(
        self,
        objective: Objective,
        rows: EncodedRows,
        batch: Sequence[int],
        parameters: Mapping[str, torch.nn.Parameter],
        step: Step,
    ) -> Sums:
        """Compute the gradient of a step on all processes. Splits `batch` into one share for each process,
        and sets `shares` in the step that is sent to them."""
        shares = split(batch, [int(rows.lengths[i]) for i in batch], self.processes)
        order = replace(step, shares=shares)
        try:
            dist.broadcast_object_list([order], src=0)
            return at_once(objective, rows, parameters, order, 0)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            self.cut()
            raise

    def cut(self) -> None:
        """Handle a connection error."""

    def close(self, *, failed: bool = False) -> None:
        """Tell the other processes, which hold no unsaved state, that training has ended. If `failed` is set,
        they may be stuck in the middle of a pass, so this leaves it to their parent process to kill them."""
        if not failed:
            dist.broadcast_object_list([None], src=0)
            self.met.released = True


class WorkerGroup(Peers):
    """The helper processes that the first process starts on its machine. Raises `UsageError` if there are too
    few GPUs."""

    def __init__(self, run: RunDir, processes: int, threads: int | None, device: torch.device) -> None:
        super().__init__(Met(0, processes))
        if device.type == "cuda" and (there := torch.cuda.device_count()) < processes:
            raise UsageError(
                f"{processes} processes need one GPU each, but only {there} are available",
                fix=f"{option('processes')}: {there}",
            )
        self.run = run
        self._ended, self._reporting = threading.Event(), threading.Lock()
        self._meeting = run.path / f"meeting-{os.getpid()}"
        self._meeting.unlink(missing_ok=True)
        self.others = [self._started(rank, threads) for rank in range(1, processes)]
        threading.Thread(target=self._watch, daemon=True).start()
        join(self._meeting, 0, processes)

    def _started(self, rank: int, threads: int | None) -> subprocess.Popen[bytes]:
        env = launcher.worker_environment(threads)
        names = machine.visible() or []
        env["CUDA_VISIBLE_DEVICES"] = names[rank] if rank < len(names) else str(rank)
        command = [sys.executable, "-P", "-m", "orchestrate.local.run.helper"]
        command += [str(self.run.path), str(rank), str(self.processes), str(self._meeting)]
        # This process holds the other end of the helpers' standard input, so they notice when it exits.
        return subprocess.Popen(command, stdin=subprocess.PIPE, env=env)

    def _watch(self) -> None:
        """Watch the other processes: waiting for a dead one might never end."""
        while not self._ended.wait(LOOK_S):
            self._look()

    def _look(self) -> None:
        """End this process, as a kill would, if another has ended."""
        for rank, other in enumerate(self.others, 1):
            code = other.poll()
            if code is None or self._ended.is_set():
                continue
            with self._reporting:
                if code == SHORT:
                    message = f"helper process {rank} of {self.processes - 1} ran out of memory"
                    self._fail(f"{message} ({LESS})")
                message = (
                    f"helper process {rank} of {self.processes - 1} exited with code {code}. "
                    f"Stopping all processes"
                )
                with suppress(OSError):
                    self.run.add_event(message, level="error", type="interrupted")
                os._exit(1)

    def _fail(self, message: str) -> None:
        with suppress(OSError):
            self.run.add_event(message, level="error", type="failed")
            error, state = JobError(message=message, code="RunFailed"), self.run.written_state()
            ended = msgspec.structs.replace(
                state, status="failed", stage=None, finished_at=now(), updated_at=now(), error=error
            )
            self.run.write_state(ended)
        os._exit(1)

    def cut(self) -> None:
        """Handle a connection error: wait until the process that caused it has exited, and then end this
        process. Returns if no process has exited within `CUT_S` seconds."""
        for _ in range(int(CUT_S / LOOK_S)):
            self._look()
            time.sleep(LOOK_S)

    def close(self, *, failed: bool = False) -> None:
        del failed
        self._ended.set()
        for other in self.others:
            other.kill()
            other.communicate()
        dist.destroy_process_group()
        self._meeting.unlink(missing_ok=True)


def join(meeting: Path, rank: int, processes: int) -> None:
    """Connect the processes through a file. Uses NCCL for tensors on GPUs and Gloo for tensors in CPU
    memory."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend, init_method=f"file://{meeting}", rank=rank, world_size=processes, timeout=NEVER
    )


def split(batch: Sequence[int], lengths: Sequence[int], processes: int) -> tuple[tuple[int, ...], ...]:
    """Split the examples into shares with about the same number of tokens. Assigns each example, longest
    first, to the share with the fewest tokens."""
    shares, loads = [list[int]() for _ in range(processes)], [0] * processes
    for place in sorted(range(len(batch)), key=lambda i: -lengths[i]):
        least = loads.index(min(loads))
        shares[least].append(batch[place])
        loads[least] += lengths[place]
    return tuple(tuple(share) for share in shares)


def at_once(
    objective: Objective,
    rows: EncodedRows,
    parameters: Mapping[str, torch.nn.Parameter],
    order: Step,
    rank: int,
) -> Sums:
    """Compute one process's share of a step, and sum the gradients on the first process. If one process runs
    out of memory, all processes raise that error and discard their gradients."""
    with torch.no_grad():
        _wait(dist.broadcast(parameter.data, 0, async_op=True) for parameter in parameters.values())
    if rank:
        torch.manual_seed(order.seed + rank)
    objective.loaded.loss_scale = order.loss_scale
    mine, said = Sums(), ""
    try:
        if share := order.shares[rank]:
            mine = objective.part(rows, share, order.total, order.max_tokens, order.max_rows)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        said = str(error)
    with_gradient = [name for name, parameter in parameters.items() if parameter.grad is not None]
    answers: list[Any] = [None] * len(order.shares)
    dist.all_gather_object(answers, (mine, said, with_gradient))
    if message := next((one[1] for one in answers if one[1]), ""):
        for parameter in parameters.values():
            parameter.grad = None
        raise torch.OutOfMemoryError(message)
    touched = {name for one in answers for name in one[2]}
    trained = [parameter for name, parameter in parameters.items() if name in touched]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    _wait(dist.reduce(gradient, 0, async_op=True) for gradient in gradients)
    whole = Sums()
    for sums, _, _ in answers:
        add(whole, sums)
    return whole


def _wait(works: Any) -> None:
    for work in list(works):
        if work is not None:
            work.wait()
