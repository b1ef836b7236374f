"""local: this machine as a backend. How fast it trains, and what fits into its memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrate.commands.console import Json, note, orchestrator, out, print_json
from orchestrate.errors import UsageError

if TYPE_CHECKING:
    from orchestrate.local.memory import Plan, Shape

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=__doc__)

ThreadsOpt = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")]
DeviceOpt = Annotated[str | None, typer.Option(help="cpu or cuda; default: a GPU when there is one.")]


@app.command()
def bench(
    context: typer.Context,
    model: Annotated[
        Path | None, typer.Option(help="A model folder; default: a random model of a fixed shape.")
    ] = None,
    threads: ThreadsOpt = None,
    device: DeviceOpt = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long to train.")] = 20.0,
    json: Json = False,
) -> None:
    """Measures this machine's training speed by training; quotes for `local` use it from then on."""
    from orchestrate.local import throughput

    with orchestrator(context) as ft:
        home = ft.settings.home / "local"
    note(f"training for about {seconds:.0f} s ...")
    found = throughput.measure(home, model=model, threads=threads, device=device, seconds=seconds)
    if json:
        print_json(found)
        return
    out.print(
        f"{found.tokens_per_second:,.0f} tokens per second with {found.model} on {found.device}", end=""
    )
    out.print(f", {found.threads} threads" if found.device == "cpu" else "", end="")
    out.print(f", peak {(found.peak_bytes or 0) / 2**30:.2f} GiB")
    note(f"kept in {throughput.bench_file(home)}")


@app.command()
def memory(
    model: Annotated[str, typer.Argument(help="Catalog name, model folder, or a size such as 8B.")],
    adapter: Annotated[str, typer.Option(help="qlora, lora or full.")] = "qlora",
    rank: Annotated[int, typer.Option("--rank", "-r", min=1, help="Of the adapter.")] = 16,
    length: Annotated[int, typer.Option(min=8, help="Tokens of the longest row.")] = 2048,
    rows: Annotated[int, typer.Option(min=1, help="Rows in one forward pass.")] = 1,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Keep less for the backward pass.")] = False,
    device: DeviceOpt = None,
    available: Annotated[float | None, typer.Option(help="GiB; default: what this machine has.")] = None,
    json: Json = False,
) -> None:
    """The memory that training a model needs, by part, and whether it fits. Offline."""
    from orchestrate.local import memory as planning

    if adapter not in ("qlora", "lora", "full"):
        raise UsageError(f"--adapter takes qlora, lora or full; got {adapter!r}")
    shape, exact = _shape(model)
    plan = planning.plan(
        shape,
        {"type": adapter, "r": rank},
        tokens=rows * length,
        longest=length,
        gradient_checkpointing=gradient_checkpointing,
        device=device,
        available_bytes=int(available * 2**30) if available else None,
    )
    if json:
        print_json(plan)
    else:
        _show(plan, shape, exact)


def _shape(model: str) -> tuple[Shape, bool]:
    """The model's shape, and whether it is its own or a usual one of its size."""
    import re

    from orchestrate import catalog
    from orchestrate.local import models
    from orchestrate.local.memory import Shape

    if size := re.fullmatch(r"(\d+(?:\.\d+)?)[bB]", model):
        return Shape.like(float(size.group(1)) * 1e9), False
    resolved = catalog.resolve(model, "local")
    if shape := models.shape_of(resolved.id):
        return Shape.of(shape), True
    if resolved.params_b is None:
        raise UsageError(f"the size of {model} is not known", fix="give a model folder, or a size such as 8B")
    return Shape.like(resolved.params_b * 1e9), False


def _show(plan: Plan, shape: Shape, exact: bool) -> None:
    for name, size in plan.parts.items():
        out.print(f"{name:<12} {size / 2**30:8.2f} GiB")
    out.print(f"{'total':<12} {plan.total_bytes / 2**30:8.2f} GiB", style="bold")
    if plan.available_bytes is not None:
        verdict = "fits into" if plan.fits else "does not fit into"
        style = "green" if plan.fits else "red"
        out.print(f"{verdict} the {plan.available_bytes / 2**30:.1f} GiB of {plan.device}", style=style)
    if not exact:
        note(
            "its configuration is not on this machine: "
            f"a usual shape of {shape.parameters / 1e9:.1f}B was taken"
        )
    for line in plan.advice:
        note(f"try: {line}")
