"""Sharded training (FSDP): several processes on one machine, each with its own GPU and a shard of every
weight. All processes run the same loop over the same rows. torch's `fully_shard` gathers a layer's weights
for its computation and frees them afterwards. Gradients and optimizer state stay sharded. Only the first
process writes, and it makes all decisions that depend on time or on the user. It writes full tensors, so a
run can resume with any number of processes. All processes must take part in every pass, so a process without
examples computes a row with zero weight."""

# torch has incomplete type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPossiblyUnboundVariable=false, reportPrivateImportUsage=false

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from orchestrate.errors import UsageError
from orchestrate.local.encoding.encoded import EncodedRows, micro_batches
from orchestrate.local.job import option
from orchestrate.local.model import weights
from orchestrate.local.model.loaded import Loaded, decoder_of
from orchestrate.local.objectives.base import MOST_ROWS, Objective, Sums, add, means
from orchestrate.local.run.parallel import split

T = TypeVar("T")


class Sharded:
    """One of the processes over which the model is sharded."""

    def __init__(self, rank: int, processes: int, device: torch.device, cut: Callable[[], None]) -> None:
        """Set up the process. `cut` is called if a connection breaks."""
        self.cut = cut
        self.rank, self.processes, self.device = rank, processes, device
        self.mesh = init_device_mesh(device.type, (processes,))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def agreed(self, value: T) -> T:
        """Return the first process's value in all processes."""
        said: list[Any] = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def loaded(self, load: Callable[[], Loaded]) -> Loaded:
        """Load the model in one process after another. Each process keeps only its shard, so main memory
        never holds more than one complete copy."""
        found: list[Loaded] = []
        for turn in range(self.processes):
            if turn == self.rank:
                found.append(load())
                self._spread(found[0])
            dist.barrier()
        return found[0]

    def _spread(self, loaded: Loaded) -> None:
        """Shard the model layer by layer. Raises `UsageError` for a model without layers."""
        if any(weights.held_of(loaded.inner)) or loaded.balancing or loaded.own_logits:
            reasons = "4-bit experts, a load-balancing loss, or a custom computation of logits"
            raise UsageError(
                f"this model cannot be sharded across several GPUs: it has {reasons}",
                fix=f"set {option('sharded')}: false, or adapter: lora",
            )
        lists = [m for m in decoder_of(loaded.inner).children() if isinstance(m, torch.nn.ModuleList)]
        layers = max(lists, key=len, default=())
        if not layers:
            raise UsageError("this model cannot be sharded across several GPUs: it has no layers")
        for layer in layers:
            fully_shard(layer, mesh=self.mesh, reshard_after_forward=True)
        root = _Root(loaded.model)
        # The rest: embeddings, output layer and last norm.
        fully_shard(root, mesh=self.mesh, reshard_after_forward=True)
        loaded.root, loaded.device = root, self.device

    def gradients(
        self, objective: Objective, rows: EncodedRows, batch: Sequence[int], most: tuple[int, int], seed: int
    ) -> Sums:
        """Compute the gradient of a step on all processes. `most` is (maximum number of tokens, maximum
        number of rows) in a pass."""
        if self.rank:
            torch.manual_seed(seed + self.rank)
        # FSDP averages gradients over the processes. This division turns the mean into a sum.
        total = objective.weight_of(rows, batch) / self.processes
        return self._over_all(objective, rows, batch, most, total)

    def evaluate(self, objective: Objective, rows: EncodedRows, max_tokens: int) -> dict[str, float]:
        with objective.loaded.evaluation_mode():
            sums = self._over_all(objective, rows, range(rows.examples), (max_tokens, MOST_ROWS), None)
        return {f"valid_{k}": v for k, v in means(sums).items()}

    def _over_all(
        self,
        objective: Objective,
        rows: EncodedRows,
        examples: Sequence[int],
        most: tuple[int, int],
        total: float | None,
    ) -> Sums:
        """Run all examples on all processes. `total` divides the loss for the gradient. With `None`, no
        gradient is computed."""
        shares = split(examples, [int(rows.lengths[i]) for i in examples], self.processes)
        passes = [list(micro_batches(share, rows.lengths, *most)) if share else [] for share in shares]
        mine, sums = passes[self.rank], Sums()
        shortest = [min(examples, key=lambda i: int(rows.lengths[i]))]
        for place in range(max(len(one) for one in passes)):
            if place < len(mine):
                add(sums, objective.run(rows, mine[place], total or 1.0, backward=total is not None))
            else:
                objective.run(rows, shortest, math.inf, backward=total is not None)
        said: list[Any] = [None] * self.processes
        dist.all_gather_object(said, sums)
        whole = Sums()
        for one in said:
            add(whole, one)
        return whole

    def whole(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the full tensors, in CPU memory, on rank 0, and an empty dict on all other ranks.
        Collective: all processes must call this."""
        found: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            put_together = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self.first:
                found[name] = put_together.detach().cpu()
        return found


class _Root(torch.nn.Module):
    """Gathers the embeddings and the output layer during its `forward`."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Any]) -> Any:
        return compute()


def placed(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Convert a full tensor to the layout of `parameter`. If the parameter is sharded, the result is sharded
    too."""
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def number(tensor: torch.Tensor) -> float:
    return float((tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).item())
