"""Options shared by several commands, grouped in dataclasses."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from orchestrate.commands.terminal import completion
from orchestrate.commands.terminal.console import note, of_flags
from orchestrate.errors import UsageError
from orchestrate.types import TokensFrom

if TYPE_CHECKING:
    from orchestrate.api.orchestrator import Orchestrator
    from orchestrate.costing import ServingUse
    from orchestrate.runs.preparing.prepared import Prepared
    from orchestrate.spec import JobSpec

ProviderOpt = Annotated[
    str,
    typer.Option(
        "--provider", "-p", help="Comma-separated backends, or all.", autocompletion=completion.backends
    ),
]


_SYNONYMS = (("list", "ls"), ("remove", "rm", "revoke"))
"""Groups of synonymous command names. A command can be called by any synonym of its name, but help lists only
its real name."""


def synonyms_of(word: str) -> tuple[str, ...]:
    """Return a command's name, followed by the synonyms that a command group accepts."""
    return (word, *(other for words in _SYNONYMS if word in words for other in words if other != word))


class AliasGroup(TyperGroup):
    """Command group that accepts the usual synonyms of its commands."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return next((self.commands[name] for name in synonyms_of(cmd_name) if name in self.commands), None)


OPTIONAL_COMMAND = "[COMMAND] [ARGS]..."
"""Placeholder for the commands in the usage line of a group that also runs without a command."""


def default_command(command: str, *, words: bool = False) -> type[TyperGroup]:
    """Build a command group that runs `command` if only options are given. With `words`, it also runs
    `command` if the first argument is not a command name. For example, `orchestrate models qwen` runs a
    search."""

    class ByDefault(AliasGroup):
        def __init__(self, **attributes: Any) -> None:
            attributes["subcommand_metavar"] = OPTIONAL_COMMAND
            super().__init__(**attributes)

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            first = next((a for a in args if not a.startswith("-")), None) if words else None
            asks = bool({"-h", "--help"} & {*args[:1]})
            plain = not args or args[0].startswith("-") or words
            if plain and (first is None or self.get_command(ctx, first) is None) and not asks:
                args = [command, *args]
            return super().parse_args(ctx, args)

    return ByDefault


TokensOpt = Annotated[
    TokensFrom,
    typer.Option(
        "--tokens",
        help="Rows to count tokens in: all (exact), 2,000 rows of each file over 8 MiB (sampled), or none. "
        "With sampled, the price range covers the 99% interval. With none, there is no price and no check "
        "for overlong rows.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class SpecOptions:
    """Options that define the spec: a file with optional overrides, or the model and data as flags."""

    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC.yaml]", help="Spec file. Default: ./finetune.yaml")
    ] = None
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", help="A model, or BACKEND=MODEL; repeatable.", autocompletion=completion.models
        ),
    ] = None
    train: Annotated[str | None, typer.Option("--train", metavar="FILE", help="Training data.")] = None
    validation: Annotated[
        str | None, typer.Option("--validation", metavar="FILE", help="Validation data.")
    ] = None
    method: Annotated[str | None, typer.Option("--method", help="Training method: sft, dpo or rft.")] = None
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Number of passes over the training data.")
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Override a field of the spec; repeatable.",
            autocompletion=completion.settings,
        ),
    ] = None
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="On rented machines: GPU type, auto or none.", metavar="TYPE")
    ] = None
    max_usd_per_hour: Annotated[
        float | None, typer.Option(min=0, metavar="USD", help="On rented machines: maximum hourly price.")
    ] = None
    max_hours: Annotated[
        float | None, typer.Option(min=0, help="On rented machines: pause the run after this many hours.")
    ] = None
    spot: Annotated[
        bool | None,
        typer.Option(
            "--spot/--no-spot", help="On rented machines: use a cheaper spot machine, which may be reclaimed."
        ),
    ] = None

    @property
    def file(self) -> Path:
        """Return the spec file, for commands that change it. Raises `UsageError` if the file does not exist
        or flags override it."""
        from orchestrate.spec import specfile

        path = self.spec or Path(specfile.DEFAULT_NAME)
        given = (self.model, self.train, self.validation, self.method, self.epochs, self.settings)
        given += (self.gpu, self.max_usd_per_hour, self.max_hours, self.spot)
        if any(value is not None for value in given) or not path.exists():
            raise UsageError("--fix edits the spec file, so pass only the file, without other options")
        return path

    @property
    def named(self) -> str:
        """The spec file as it is appended to printed commands, with a leading space. Empty for the default
        file."""
        return f" {shlex.quote(str(self.spec))}" if self.spec else ""

    def read(self, provider: str, *, max_cost: str | None = None) -> JobSpec:
        """Read the spec for the backends in `provider`. Raises `SpecError` if it is invalid."""
        from orchestrate.spec import specfile

        flags: dict[str, Any] = {
            "model": models_given(self.model),
            "train": self.train,
            "validation": self.validation,
            "method": self.method,
            "epochs": self.epochs,
            "max_cost_usd": max_cost,
        }
        given = {name: value for name, value in flags.items() if value is not None}
        given |= {**self._of_places(provider), **specfile.parse_settings(self.settings or [])}
        default = Path(specfile.DEFAULT_NAME)
        if self.spec is None and not default.exists() and {"model", "train"} <= given.keys():
            values: dict[str, Any] = {}
            for name, value in given.items():
                specfile.put(values, name, value)
            return specfile.build(values, place="the command line")
        return specfile.load(self.spec or default, given)

    def _of_places(self, provider: str) -> dict[str, Any]:
        """Return the machine options for each remote place among the backends. Raises `UsageError` if options
        are set without a remote place."""
        asked = {
            "gpu": self.gpu,
            "max_usd_per_hour": self.max_usd_per_hour,
            "max_hours": self.max_hours,
            "spot": self.spot,
        }
        asked = {name: value for name, value in asked.items() if value is not None}
        if not asked:
            return {}
        from orchestrate.profile import built_in, described, places

        named = [name.strip() for name in provider.split(",")]
        known = [*built_in(), *described()]
        # Any other name is a remote place, or a configured instance of one, which has a name of its own.
        found = list(places()) if provider == "all" else [name for name in named if name not in known]
        if not found:
            option = f"--{next(iter(asked)).replace('_', '-')}"
            raise UsageError(f"{option} only applies to remote machines: {', '.join(places())}")
        return {f"provider_options.{name}.{key}": value for name in found for key, value in asked.items()}


def backends_of(ft: Orchestrator, spec: JobSpec, provider: str) -> list[str]:
    """Return the names of the requested backends. For `all`, returns the backends for which the spec names a
    model, and prints the names of the others. If the spec names a model for a backend that `all` normally
    omits, that backend is included too. If the spec names no model for any backend, nothing is skipped."""
    names = ft.backends(provider)
    if provider != "all":
        return names
    from orchestrate.providers import registry

    known = [] if isinstance(spec.model, str) else registry.known(ft.settings)
    own = [name for name in known if name in spec.model and name not in names]
    if own:
        broken = registry.broken(ft.settings)
        own = [name for name in own if name not in broken]
    found = list(dict.fromkeys([*filter(spec.names_model_for, names), *own]))
    if found and (other := [name for name in names if name not in found]):
        note(f"skipping {', '.join(other)}: the spec has no model for {'it' if len(other) == 1 else 'them'}")
    return found or names


MapOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="FIELD=COLUMN", help="Read COLUMN as FIELD. Repeatable or comma-separated."
    ),
]
IgnoreOpt = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="COLUMN", help="Ignore COLUMN. Repeatable or comma-separated."),
]


def columns_read(given: Sequence[str] | None, ignored: Sequence[str] | None = None) -> dict[str, str]:
    """Parse `--map` and `--ignore` into one mapping. Each field maps to its column, and each ignored column
    maps to an empty string."""
    pairs = [pair.partition("=") for item in given or () for pair in item.split(",")]
    if any(not (wanted and column) for wanted, _, column in pairs):
        raise UsageError("--map must be FIELD=COLUMN, for example --map prompt=question,completion=answer")
    left_out = {name.strip(): "" for item in ignored or () for name in item.split(",") if name.strip()}
    return left_out | _distinct("--map", [(wanted.strip(), column.strip()) for wanted, _, column in pairs])


def _distinct(option: str, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the pairs of a repeatable option. Raises `UsageError` if a name has several values, because only
    one of them would be used."""
    found = dict(pairs)
    for name, value in pairs:
        if found[name] != value:
            raise UsageError(f"{option} sets {name} to both {value} and {found[name]}", fix="use one of them")
    return found


PayOpt = Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation before spending money.")]
StrictOpt = Annotated[bool, typer.Option(help="Reject settings that a backend can't apply exactly.")]
KeyVariableOpt = Annotated[
    str | None,
    typer.Option(help="Environment variable with the API key for model URLs. By default, no key is sent."),
]
MetricsOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--metrics",
        "--metric",
        metavar="NAMES",
        help="Comma-separated metrics. The first one decides the verdict. See orchestrate eval --list.",
    ),
]
MaxTokensOpt = Annotated[int, typer.Option(min=1, help="Maximum tokens per answer.")]
TemperatureOpt = Annotated[
    float, typer.Option(min=0, max=2, help="Sampling temperature. 0 always takes the most likely token.")
]
SkipFailedOpt = Annotated[
    bool,
    typer.Option("--skip-failed", help="Continue if a row gets no answer, and count it as failed."),
]


def models_given(given: list[str] | None) -> str | dict[str, str] | None:
    """Parse `--model M`, or `--model openai=M --model local=N`."""
    if not given:
        return None
    pairs = [item.partition("=") for item in given]
    if len(given) == 1 and not pairs[0][1]:
        return given[0]
    return _distinct("--model", [(n, model) if equals else ("default", n) for n, equals, model in pairs])


_NEEDS_TRAFFIC = ("months", "hours_per_day", "utilisation", "saved_tokens")


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """Options for serving prices."""

    traffic: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help='Also price serving this traffic: "20k req/day, 900 in, 150 out".'),
    ] = None
    months: Annotated[int, typer.Option(min=1, help="Months of serving (with --traffic).")] = 6
    hours_per_day: Annotated[
        float, typer.Option(min=0, max=24, help="Daily uptime of a dedicated deployment (with --traffic).")
    ] = 24.0
    utilisation: Annotated[
        float | None,
        typer.Option(
            "--utilization",
            min=0.01,
            max=1,
            help="Maximum average GPU load (with --traffic). Default: 0.33, to leave room for peaks.",
        ),
    ] = None
    compare_with: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Untuned model whose cost determines the break-even point. Default: a model that stays "
            "available for the entire period.",
        ),
    ] = None
    saved_tokens: Annotated[
        int,
        typer.Option(
            min=0,
            help="Prompt tokens per request for examples that the tuned model does not need "
            "(with --traffic).",
        ),
    ] = 0

    def use(self, context: typer.Context) -> ServingUse | None:
        """Return the expected traffic of the tuned model and how it is served, or `None` if --traffic is not
        set. Raises `UsageError` if an option is invalid, or would have no effect without --traffic."""
        from orchestrate.runs.preparing import pricing

        if not self.traffic:
            for parameter in context.command.params:
                source = context.get_parameter_source(parameter.name or "")
                if parameter.name in _NEEDS_TRAFFIC and source is not None and source.name == "COMMANDLINE":
                    raise UsageError(
                        f"{parameter.opts[0]} needs --traffic", fix='--traffic "20k req/day, 900 in, 150 out"'
                    )
            return None
        return pricing.use(
            self.traffic,
            months=self.months,
            hours_per_day=self.hours_per_day,
            utilisation=self.utilisation,
            compare_with=self.compare_with,
            saved_tokens=self.saved_tokens,
        )


RateOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--rate",
        metavar="PROVIDER:METHOD[@MODEL]=USD",
        help="Your own price, such as together:sft_lora=0.50. Overrides the built-in one.",
    ),
]


def require_used(
    ft: Orchestrator, flags: list[str] | None, *prepared: Prepared, serving: bool = False
) -> None:
    """Raise `UsageError` if a `--rate` flag affects none of the quotes. If `serving` is set, accepts serving
    rates even if no quote uses them."""
    from orchestrate.runs.preparing import pricing

    jobs = [(offer.provider, offer.spec) for one in prepared for offer in one.offers]
    pricing.require_used(ft, jobs, of_flags(flags), serving=serving)


DryRunOpt = Annotated[
    bool, typer.Option("--dry-run", help="Only check and quote. Nothing is sent or stored.")
]


@dataclass(frozen=True, kw_only=True)
class AimOptions:
    """Options for the score that a search optimizes, and for the search's limits."""

    target: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Score to compare by: validation_loss, or eval:METRIC on held-out rows."
        ),
    ] = "validation_loss"
    test: Annotated[
        str | None, typer.Option(metavar="FILE", help="Held-out rows, for --target eval:METRIC.")
    ] = None
    max_parallel: Annotated[int, typer.Option(min=1, help="Concurrent runs.")] = 1
    max_cost: Annotated[
        str | None,
        typer.Option(
            metavar="USD", help="Cost limit for all runs. A trial that could exceed it does not start."
        ),
    ] = None
    rate: RateOpt = None
    dry_run: DryRunOpt = False
    yes: PayOpt = False
