"""The `models` commands: base models, their names on each backend, limits and shutdown dates."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Annotated

import typer
from msgspec import structs
from rich.text import Text

from orchestrate.commands.terminal import completion
from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import note, orchestrator, out, settings_of, table
from orchestrate.commands.terminal.options import default_command
from orchestrate.core import days
from orchestrate.errors import UsageError
from orchestrate.profile import this_machine
from orchestrate.setup import backends
from orchestrate.setup.backends import HostModel, Model, ModelChanges

app = typer.Typer(
    cls=default_command("search", words=True), help="List base models and their names on each backend."
)

ProviderFilter = Annotated[
    str | None,
    typer.Option(
        "--provider",
        "-p",
        help="Show only models this backend can fine-tune.",
        autocompletion=completion.backend,
    ),
]


class ModelShown(Model, frozen=True, kw_only=True, omit_defaults=True):
    ids: dict[str, str]  # pyright: ignore[reportIncompatibleMethodOverride,reportIncompatibleVariableOverride]


def _shown(model: Model) -> ModelShown:
    return ModelShown(**structs.asdict(model), ids=model.ids)


@app.command("list", hidden=True)
@app.command()
@command
def search(
    context: typer.Context,
    query: Annotated[list[str] | None, typer.Argument(help="Search terms: parts of the name or id.")] = None,
    provider: ProviderFilter = None,
) -> Output[list[ModelShown]]:
    """Search models by name. Without search terms, list all models."""
    if provider is not None:
        backends.chosen(settings_of(context), provider)
    terms = " ".join(query or [])
    found = [_shown(model) for model in backends.search(terms, provider)]

    def view(found: Sequence[ModelShown]) -> None:
        if not found:
            where = f" on {provider}" if provider else ""
            raise UsageError(
                f"no model matches {terms!r}{where}", fix="to list all models: orchestrate models"
            )
        _show_list(found)

    return Output(found, view)


def _show_list(found: Sequence[ModelShown]) -> None:
    today = days.today()
    shown = table("model", "size", "context", "tuned on", "ends", right=("size", "context"))
    for m in found:
        shown.add_row(m.name, _size(m), f"{m.context:,}" if m.context else "-", _places(m), _ends(m, today))
    out.print(shown)
    note(
        "? means that tuning support is unconfirmed. For ids, limits and sources: orchestrate models show "
        "NAME"
    )


@app.command()
@command
def show(
    name: Annotated[str, typer.Argument(help="Canonical name, Hub id, or a host's id.")],
) -> Output[ModelShown]:
    """Show a model's ids, methods, limits, shutdown dates and sources."""
    return Output(_shown(backends.find(name)), _show)


def _show(model: ModelShown) -> None:
    hub = f"  hub: {model.hub}" if model.hub else ""
    out.print(Text.assemble((model.name, "bold"), f"  {_size(model)}{hub}"))
    if described := _open_model_facts(model):
        out.print(described)
    today = days.today()
    shown = table("backend", "id", "methods", "adapters", "row limit", "rank", "tunable", "source")
    for provider in [*model.hosts, *([this_machine().kind] if model.open else [])]:
        host = model.on(provider)
        if host is not None:
            shown.add_row(
                provider, host.id, *_limits(host), "; ".join([host.note] if host.note else host.sources)
            )
    out.print(shown)
    for provider, host in model.hosts.items():
        if warning := backends.shutdown_warning(model, provider, today):
            out.print(warning, style="yellow")
        if host.successor:
            out.print(f"{provider} recommends {host.successor} as the replacement")


@app.command()
@command
def refresh(
    context: typer.Context,
    provider: Annotated[
        str,
        typer.Option(
            "--provider", "-p", help="Comma-separated backends, or all.", autocompletion=completion.backends
        ),
    ] = "all",
) -> Output[ModelChanges]:
    """Compare the model catalog with what each host reports now. Covers models, limits and shutdown dates.
    Changes nothing."""
    with orchestrator(context) as ft:
        found = ft.model_changes(provider)
    return Output(found, _show_changes, 4 if found.skipped and not found.changes else 0)


def _show_changes(found: ModelChanges) -> None:
    shown = table("backend", "model", "field", "catalog", "host")
    for change in found.changes:
        shown.add_row(change.provider, change.model, change.field, change.ours or "-", change.theirs or "-")
    if found.changes:
        out.print(shown)
    else:
        note("the catalog matches every host that responded")
    for name, reason in found.skipped.items():
        note(f"{name} was not contacted: {reason}")


def _size(model: Model) -> str:
    if model.params_b is None:
        return "-"
    active = f" ({model.active_params_b:g}B active)" if model.active_params_b else ""
    return f"{model.params_b:g}B{active}"


def _open_model_facts(model: Model) -> str:
    """Return the known facts about an open model."""
    if not model.open:
        return ""
    facts = {
        "license": model.license,
        "context": f"{model.context:,}" if model.context else None,
        "tokenizer": model.tokenizer,
        "chat template": model.template,
        "weights": model.precision,
    }
    lines = ["  ".join(f"{name}: {value or 'unknown'}" for name, value in facts.items())]
    if model.note:
        lines.append(model.note)
    if model.sources:
        lines.append(f"from {'; '.join(model.sources)}")
    return "\n".join(lines)


def _places(model: Model) -> str:
    marks = {"yes": "", "unconfirmed": "?", "no": " (closed)"}
    places = [f"{name}{marks[host.tunable]}" for name, host in model.hosts.items()]
    return ", ".join([*places, *([this_machine().kind] if model.open else [])])


def _ends(model: Model, today: date) -> Text:
    dates = [host.shutdown for host in model.hosts.values() if host.shutdown]
    if not dates:
        return Text()
    end = min(dates)
    return Text(f"ended {end}", "red") if end < today else Text(str(end), "yellow")


def _limits(host: HostModel) -> tuple[str, ...]:
    context = "/".join(f"{n:,}" for n in dict.fromkeys(host.context)) if host.context else "-"
    rank = str(host.max_rank) if host.max_rank else "-"
    return (
        ", ".join(host.methods),
        ", ".join(host.adapters) or "the host decides",
        context,
        rank,
        host.tunable,
    )
