"""The `local` commands: measure training speed, and estimate the memory that training needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import note, orchestrator, out
from orchestrate.commands.training.translations import show_memory
from orchestrate.errors import UsageError
from orchestrate.text import size

if TYPE_CHECKING:
    from orchestrate.local.plan.throughput import Bench
    from orchestrate.types import MemoryPlan

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="Measure training speed and estimate memory."
)

ThreadsOpt = Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all cores.")]
DeviceOpt = Annotated[str | None, typer.Option(help="cpu or cuda. Default: a GPU if there is one.")]


@app.command()
@command
def bench(
    context: typer.Context,
    model: Annotated[
        Path | None,
        typer.Option(help="Model folder. Default: a randomly initialized model with a fixed architecture."),
    ] = None,
    threads: ThreadsOpt = None,
    device: DeviceOpt = None,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds to train.")] = 20.0,
) -> Output[Bench]:
    """Measure training speed with a short training run. Later quotes for `local` use the result."""
    from orchestrate.setup import first_spec

    with orchestrator(context) as ft:
        home = ft.settings.home / "local"
    note(f"training for about {seconds:.0f} s ...")
    found = first_spec.measure(home, model=model, threads=threads, device=device, seconds=seconds)
    return Output(found, partial(_show, file=first_spec.bench_file(home)))


def _show(found: Bench, file: Path) -> None:
    out.print(
        f"{found.tokens_per_second:,.0f} tokens per second with {found.model} on {found.device}", end=""
    )
    out.print(f", {found.threads} threads" if found.device == "cpu" else "", end="")
    out.print()
    if found.peak_bytes is not None:
        planned = f" (planned: {size(found.planned_bytes)})" if found.planned_bytes else ""
        resident = f"; the entire process {size(found.resident_bytes)}" if found.resident_bytes else ""
        out.print(f"peak tensor memory: {size(found.peak_bytes)}{planned}{resident}")
    note(f"saved to {file}")


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """Options that describe the training run."""

    adapter: Annotated[str, typer.Option(help="qlora, lora or full.")] = "qlora"
    rank: Annotated[int, typer.Option("--rank", "-r", min=1, help="Rank of the adapter.")] = 16
    length: Annotated[int, typer.Option(min=8, help="Tokens in the longest row.")] = 2048
    rows: Annotated[int, typer.Option(min=1, help="Rows per forward pass.")] = 1
    pairs: Annotated[bool, typer.Option(help="Plan for preference pairs. Each answer counts as one row.")] = (
        False
    )
    eight_bit: Annotated[bool, typer.Option("--8-bit-adamw", help="Use an 8-bit optimizer.")] = False
    gradient_checkpointing: Annotated[bool, typer.Option(help="Use gradient checkpointing.")] = False
    precision: Annotated[str, typer.Option(help="bf16, fp32, or auto (chosen for the device).")] = "auto"


@app.command()
@command
def memory(
    model: Annotated[str, typer.Argument(help="Catalog name, model folder, or a size such as 8B.")],
    *,
    how: TrainingSetup,
    device: DeviceOpt = None,
    available: Annotated[
        float | None, typer.Option(help="Available memory in GiB. Default: this machine's.")
    ] = None,
) -> Output[MemoryPlan]:
    """Estimate the memory for training a model, and whether it fits. Shows each component. Works offline."""
    from orchestrate.setup import first_spec

    if how.adapter not in ("qlora", "lora", "full"):
        raise UsageError(f"--adapter must be qlora, lora or full, got {how.adapter!r}")
    plan = first_spec.memory_plan(
        model,
        first_spec.Setup(
            adapter=how.adapter,
            precision=how.precision,
            rank=how.rank,
            rows=how.rows,
            longest=how.length,
            pairs=how.pairs,
            gradient_checkpointing=how.gradient_checkpointing,
            optimizer="paged_adamw_8bit" if how.eight_bit else "adamw",
        ),
        device=device,
        available_bytes=int(available * 2**30) if available else None,
    )
    return Output(plan, lambda plan: show_memory(plan))
