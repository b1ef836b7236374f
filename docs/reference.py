"""Writes the pages of docs/reference from the code: what it takes, prints, raises, sends and counts with.

python docs/reference.py
"""

from __future__ import annotations

import ast
import inspect
import itertools
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import orchestrate
from orchestrate import JobSpec, Orchestrator, costing, errors, profile
from orchestrate.cli import COMMANDS, LazyCommand
from orchestrate.commands import EXAMPLES
from orchestrate.commands.setup.schema import names, of
from orchestrate.profile import OPTIONS, Profile
from orchestrate.settings import config
from orchestrate.spec import specfile

FOLDER = Path(__file__).parent / "reference"
MADE = "<!-- Made from the code by docs/reference.py: change the code, then run it. -->"


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(cell, row))} |" for row in rows)])


def cell(text: str) -> str:
    """One line; what would be markup outside of backticks is text."""
    parts = re.split(r"(`[^`]*`)", " ".join(str(text).split()))
    plain = [
        part if part.startswith("`") else part.replace("<", "&lt;").replace("*", "\\*") for part in parts
    ]
    return "".join(plain).replace("|", "\\|")


def words(value: Any) -> str:
    return f"`{value}`" if value not in (None, "", (), [], {}) else ""


def prose(docstring: str | None) -> str:
    """A docstring as Markdown: paragraphs as they are, an indented part as code."""
    return inspect.cleandoc(docstring or "").replace("<", "&lt;")


# -- commands -----------------------------------------------------------------------------------------------


def commands() -> str:
    parts = [
        "# Commands",
        "Each is shown by `--help` too. Options of all: `orchestrate --help`.",
    ]
    panels: dict[str, list[str]] = {}
    for panel, name, target, line in COMMANDS:
        command = LazyCommand(panel=panel, name=name, target=target, help=line).load()
        panels.setdefault(panel, []).extend(_command(name, command))
    for panel, sections in panels.items():
        parts += [f"## {panel}", *sections]
    return "\n\n".join(parts)


def _command(name: str, command: Any) -> Iterator[str]:
    inner = getattr(command, "commands", {})
    yield f"### {name}"
    if command.help:
        yield prose(command.help)
    if example := EXAMPLES.get(name):
        yield f"```sh\n{example}\n```"
    rows = [row for parameter in command.params if (row := _parameter(parameter)) is not None]
    if rows:
        yield table(("parameter", "what", "default"), iter(rows))
    for own, one in inner.items():
        if not one.hidden:
            yield from _command(f"{name} {own}", one)


def _parameter(parameter: Any) -> tuple[str, str, str] | None:
    if parameter.name == "help" or getattr(parameter, "hidden", False):
        return None
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`", parameter.help or "", ""
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    value = "" if parameter.is_flag or parameter.count or not parameter.metavar else f" {parameter.metavar}"
    default = parameter.default if isinstance(parameter.default, str | int | float) else None
    shown = "" if default is None or isinstance(default, bool) else words(default)
    return f"`{names}{value}`", parameter.help or "", "required" if parameter.required else shown


# -- the spec and what --json prints ------------------------------------------------------------------------


def spec() -> str:
    schema = specfile.json_schema()
    parts = [
        "# The spec",
        "What stands in `finetune.yaml`, or is given to `JobSpec(...)`; what is not given is left to "
        "the backend. "
        "`orchestrate init` writes a commented one, and the JSON schema for editors.",
        _fields(schema),
    ]
    for name, part in sorted(schema["$defs"].items()):
        made = next((one for one in part.get("anyOf", [part]) if "properties" in one), None)
        if made is not None:
            parts += [f"## {name}", prose(made.get("description")), _fields(made)]
    return "\n\n".join(part for part in parts if part)


def _fields(schema: Mapping[str, Any]) -> str:
    needed = schema.get("required", ())
    rows = (
        (
            f"`{name}`",
            kind(one),
            "required" if name in needed else words(one.get("default")),
            one.get("description", ""),
        )
        for name, one in schema["properties"].items()
    )
    return table(("field", "type", "default", "what"), rows)


def kind(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower().replace('.', '')})"
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(dict.fromkeys(kind(one) for one in schema[union] if one.get("type") != "null"))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items') or {})}"
    if isinstance(schema.get("additionalProperties"), Mapping):
        return f"mapping to {kind(schema['additionalProperties'])}"
    return {"object": "mapping", "string": "text"}.get(schema.get("type", "any"), schema.get("type", "any"))


def json_output() -> str:
    parts = [
        "# Fields of `--json`",
        "By command; `orchestrate schema COMMAND` prints the JSON schema itself, and [its "
        "page](../json.md) says "
        "what holds for all. The records are those of the Python API.",
    ]
    rows: list[tuple[str, str]] = []
    records: dict[str, Any] = {}
    for name in names():
        made = of(name)
        rows.append((f"`{name}`", kind(made)))
        records |= made["$defs"]
    parts.append(table(("command", "prints"), iter(rows)))
    for name, record in sorted(records.items()):
        if "properties" in record:
            parts += [f"## {name}", prose(record.get("description")), _fields(record)]
        elif "enum" in record:
            parts += [f"## {name}", prose(record.get("description")), kind(record)]
    return "\n\n".join(part for part in parts if part)


# -- Python and its errors ----------------------------------------------------------------------------------


def python() -> str:
    parts = [
        "# Python",
        "What `orchestrate` itself has; errors are in [their page](errors.md), the fields of "
        "`JobSpec` and its parts "
        "in [the spec's](spec.md). `AsyncOrchestrator` has the members of `Orchestrator`, to be awaited.",
    ]
    failures = set(_tree(errors.OrchestrateError))
    for name in sorted(orchestrate.__all__):
        one = getattr(orchestrate, name)
        if not inspect.isclass(one) or one in failures:
            continue
        parts += [f"## {name}", prose(one.__doc__)]
        if one in (orchestrate.Orchestrator, orchestrate.RunHandle, orchestrate.DeploymentHandle):
            parts += [part for member in _members(one) for part in _member(*member)]
    return "\n\n".join(part for part in parts if part)


def _members(one: type) -> Iterator[tuple[str, Any]]:
    """Public ones in the order of the source, a class before those that it stands on."""
    for base in one.__mro__[:-1]:
        for name, member in vars(base).items():
            if not name.startswith("_"):
                yield name, member


def _member(name: str, member: Any) -> Iterator[str]:
    docstring = getattr(member, "__doc__", None)
    if inspect.isfunction(member):
        signature = _signature(member)
        yield f"#### `{name}`"
        yield f"```python\n{name}{signature}\n```"
        yield prose(docstring)
    elif (
        docstring
        and isinstance(inspect.getattr_static(member, "__class__"), type)
        and not isinstance(member, str)
    ):
        yield f"#### `{name}`"
        yield prose(docstring)


def _signature(function: Any) -> str:
    """As it stands in the source, whatever the version of Python makes of its annotations."""
    found, told, keywords = inspect.signature(function), [], False
    for parameter in found.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keywords:
            told.append("*")
            keywords = True
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        told.append(f"{stars}{parameter.name}: {parameter.annotation}{default}")
    returns = "" if found.return_annotation is found.empty else f" -> {found.return_annotation}"
    return f"({', '.join(told)}){returns}"


def _tree(root: type) -> Iterator[type]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _tree(child)


def errors_page() -> str:
    parts = [
        "# Errors",
        "Everything that is raised on purpose is an `OrchestrateError`: `message`, `fix` (the next "
        "step for a "
        "person), `retryable` (whether the same call can succeed later without a change), "
        "`exit_code` (of the "
        "command). All are to be had from `orchestrate`; [what `--json` prints](../json.md) names the class.",
    ]
    known = list(_tree(errors.OrchestrateError))
    rows = (
        (
            f"`{one.__name__}`",
            "" if one.__bases__[0] is Exception else f"`{one.__bases__[0].__name__}`",
            str(one.exit_code),
            "yes" if one.retryable else "",
            inspect.cleandoc(one.__doc__ or ""),
        )
        for one in known
    )
    parts.append(table(("error", "is a", "exit code", "again?", "cause and way out"), rows))
    return "\n\n".join(parts)


# -- what becomes of each setting, and prices ---------------------------------------------------------------

MODELS = {
    "openai": "gpt-4.1-mini-2025-04-14",
    "together": "qwen3-8b",
    "fireworks": "qwen3-8b",
    "local": "qwen3-8b",
}
EVERY: dict[str, Any] = {
    "epochs": 2,
    "max_steps": 100,
    "learning_rate": 1e-4,
    "optimizer": "adamw",
    "batch_size": 8,
    "batch_tokens": 4096,
    "gradient_accumulation": 2,
    "warmup_ratio": 0.1,
    "schedule": "cosine",
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "max_seq_length": 512,
    "packing": False,
    "evals": 2,
    "keep_best": True,
    "checkpoints": 2,
    "early_stopping": {"patience": 3},
    "seed": 7,
    "suffix": "mine",
    "max_cost_usd": 5,
    "tags": {"team": "a"},
    "wandb": {"project": "p", "name": "n", "entity": "e", "tags": ["t"]},
    "continue_from": "earlier",
    "adapter": {"type": "lora", "r": 8, "alpha": 16, "dropout": 0.1, "dora": True, "rslora": True},
}
METHODS: dict[str, dict[str, Any]] = {
    "sft": {"type": "sft", "train_on_inputs": False},
    "dpo": {"type": "dpo", "beta": 0.2, "normalize_by_length": True, "rpo_alpha": 0.1, "simpo_gamma": 0.5},
    "kto": {"type": "dpo", "loss": "kto", "beta": 0.2},
    "rft": {
        "type": "rft",
        "grader": {
            "type": "string_check",
            "operation": "eq",
            "input": "{{sample.output_text}}",
            "reference": "x",
        },
        "reasoning_effort": "low",
        "compute_multiplier": 2,
        "samples_per_prompt": 4,
        "kl_beta": 0.01,
    },
}


def translations() -> str:
    parts = [
        "# What becomes of each setting",
        "A spec that asks for everything at once, as each built-in backend translates it: kept, "
        "mapped by the rule, "
        "defaulted or refused. `orchestrate plan --all` shows it for your spec, and "
        "[Decisions](../decisions.md) say why "
        "nothing is dropped in silence. Of the other methods those settings are shown that SFT has "
        "not; what a machine chooses for itself is not shown.",
    ]
    with tempfile.TemporaryDirectory() as home:
        env = {"ORCHESTRATE_KEYS": f"{home}/keys.toml", "OPENAI_API_KEY": "sandbox-reference"}
        env |= {
            "OPENAI_BASE_URL": "http://127.0.0.1:9"
        }  # a stand-in's: the host takes no new jobs from a day on
        with Orchestrator(config.load(env=env, cwd=Path(home), home=Path(home))) as ft:
            for backend, model in MODELS.items():
                parts += [f"## {backend}", f"Model: `{model}`."]
                shown: set[str] = set()
                for method, settings in METHODS.items():
                    asked = {
                        "model": model,
                        "train": "t.jsonl",
                        "validation": "v.jsonl",
                        **EVERY,
                        "method": settings,
                    }
                    [found] = ft.plan(JobSpec.parse(asked), backend)
                    new = [row for row in found.settings if row.name not in shown and not _of_machine(row)]
                    shown |= {row.name for row in new}
                    parts += [f"### {backend}: {method}", table(_SETTING, (_setting(row) for row in new))]
    return "\n\n".join(parts)


_SETTING = ("setting", "asked", "becomes", "sent as", "rule")


def _of_machine(row: Any) -> bool:
    """Chosen by the machine on which this runs."""
    return row.name.startswith("provider_options.")


def _setting(row: Any) -> tuple[str, ...]:
    sent = words(row.wire) + (f" = {words(row.sent)}" if row.wire and row.sent is not None else "")
    return f"`{row.name}`", words(row.asked), row.outcome.value, sent, row.rule or ""


def prices() -> str:
    parts = [
        "# Prices",
        "Every rate that quotes and bills are built of, as they stand in "
        "`src/orchestrate/costing/rates`. Each was "
        "read at its source on the day under *checked*; `orchestrate prices list` has yours over them, and "
        "`orchestrate prices check` those that are too old. To pay another price: `--rate`, or `rates.yaml`.",
    ]
    by_provider: dict[str, list[Any]] = {}
    for rate in costing.built_in():
        by_provider.setdefault(rate.provider, []).append(rate)
    for provider, rates in sorted(by_provider.items()):
        parts += [f"## {provider}", table(_RATE, (_rate(rate) for rate in rates))]
    return "\n\n".join(parts)


_RATE = ("what", "for", "US dollars", "unit", "from", "checked", "known", "source")


def _rate(rate: Any) -> tuple[str, ...]:
    band = f"over {rate.over_b} B" if rate.over_b else ""
    band += f" up to {rate.upto_b} B" if rate.upto_b else ""
    usd = getattr(rate, rate.unit)
    whom = ", ".join(filter(None, (_listed(rate.model), _listed(rate.gpu), band.strip(), rate.tier)))
    until = f" to {rate.end}" if rate.end else ""
    return (
        _listed(rate.method),
        whom,
        f"{usd.normalize():f}",
        rate.unit.removeprefix("usd_per_").replace("_", " "),
        f"{rate.start}{until}",
        str(rate.last_checked),
        rate.confidence.value,
        rate.source,
    )


def _listed(names: str | Sequence[str] | None) -> str:
    return names if isinstance(names, str) else ", ".join(names or ())


# -- configuration ------------------------------------------------------------------------------------------

OPTION_TEXTS: Mapping[str, str] = {
    "home": "Folder for this backend's data files and runs. Default: the home folder.",
    "prices": "Backend whose prices apply here.",
    "retry_budget_s": "Seconds to keep retrying reads.",
    "api_version": "Azure API version. Without it: Azure's v1 API.",
    "deployment": "Deployment to ask in place of the tuned model, as on Azure.",
    "headers": "Table of headers to send with each request.",
    "multipart_bytes": "Upload files above this size in parts.",
    "part_bytes": "Size of a part.",
    "device": "`cpu` or `cuda`. Default: the GPU, where there is one.",
    "gpu_memory_gib": "Memory of a GPU in GiB, in place of the measured or listed one.",
    "threads": "CPU threads. Default: as many as measure fastest.",
    "gpu": "GPU type and count (`H100:2`), `auto` or `none`.",
    "spot": "`true` rents interruptible machines.",
    "max_hours": "Most hours of a run, all attempts together. Default: 24.",
    "max_usd_per_hour": "Highest hourly price of a machine.",
    "silence_minutes": "Restart a worker that has not reported for so long. Default: 10.",
    "min_processes": "Fewest processes to continue with (`ray`).",
    "depot": "Storage folder that both machines can reach: `s3://`, `gs://`, `hf://` or `file://`.",
    "pass_env": "Environment variables to pass on to workers.",
    "image": "Container image.",
    "namespace": "Namespace or organization to run in.",
    "cloud": "Anyscale cloud.",
    "project": "Anyscale project.",
    "instance": "Machine type, as the cloud calls it.",
    "usd_per_hour": "Hourly price of a machine, when no list tells it.",
    "context": "Kubernetes context.",
    "cpus": "CPU cores.",
    "memory": "Memory, as Kubernetes writes it.",
    "node_selector": "Kubernetes labels of the nodes to use.",
    "packages": "`pinned` (default) installs the versions of this machine; `image` uses its own.",
    "ray_version": "Ray version of the cluster.",
    "secret": "Kubernetes Secret whose keys become the worker's environment.",
    "address": "Address of the Ray cluster.",
    "disk_gb": "Disk size in GB.",
    "infra": "Cloud, region or cluster, as SkyPilot writes it.",
    "python": "Python of SkyPilot's environment.",
    "server": "SkyPilot API server.",
    "resource": "Azure resource that deploys.",
    "resource_group": "Its resource group.",
    "subscription": "Its subscription.",
    "base_deployment": "Deployment of the base model, for comparisons with it.",
}
"""Option of any backend -> what it does."""


def options_of(known: Profile) -> list[str]:
    """Every option that `[hosts.NAME.options]` takes for this backend."""
    return sorted({*OPTIONS, *(known.options or ())})


def configuration() -> str:
    from orchestrate import settings as environment
    from orchestrate.gateway.terms import DeployLimits, MappedModel, _Table
    from orchestrate.settings import hosts

    kinds = [*profile.built_in(), *profile.places(), *profile.described()]
    known = [profile.profile(kind) for kind in kinds]
    variables = [
        (one.kind, kind, f"`{name}`")
        for one in known
        if not one.near
        for kind, name in (
            ("key", "" if one.keyless else one.key_variable or f"{_word(one.kind)}_API_KEY"),
            ("address", f"{_word(one.kind)}_BASE_URL" if not one.place else ""),
            ("account", one.account_variable),
            ("organization", one.organization_variable),
            ("project", one.project_variable),
            ("webhook secret", one.webhook_variable),
            ("deployment token", f"{_word(one.kind)}_MANAGEMENT_TOKEN" if one.management_login else ""),
            ("deployment address", f"{_word(one.kind)}_MANAGEMENT_URL" if one.management_login else ""),
        )
        if name
    ]
    parts = [
        "# Configuration keys and variables",
        "Every key of `orchestrate.toml` and every environment variable. "
        "[Configure](../how-to/configuration.md) shows what to do with them.",
        "## orchestrate.toml",
        table(("key", "what it does"), ((f"`{k}`", v) for k, v in config.TOP_LEVEL.items())),
        "## [hosts.NAME]",
        table(("key", "what it does"), ((f"`{k}`", v) for k, v in hosts.HOST_FIELDS.items())),
        "## [hosts.NAME.options]",
        table(
            ("option", "what it does", "backends"),
            (
                (f"`{name}`", told, "all" if len(of) == len(known) else ", ".join(of))
                for name, told in OPTION_TEXTS.items()
                if (of := [one.kind for one in known if name in options_of(one)])
            ),
        ),
        "## [gateway]",
        _keys(_Table),
        "Each `[gateway.models.NAME]` takes:",
        _keys(MappedModel),
        "Its `deploy` takes:",
        _keys(DeployLimits),
        "## Environment variables",
        table(("variable", "what it does"), ((f"`{k}`", v) for k, v in environment.VARIABLES.items())),
        "## Variables of hosts",
        "A host of your own, `[hosts.NAME]`, reads `NAME_API_KEY` and `NAME_BASE_URL`.",
        table(("backend", "what", "variable"), iter(variables)),
        "`WANDB_API_KEY` and `WANDB_BASE_URL` go to backends that log to Weights & Biases; `HF_TOKEN` and "
        "`HF_HUB_OFFLINE` are read by the Hugging Face libraries; `HTTPS_PROXY`, `NO_PROXY`, `SSL_CERT_FILE` "
        "and `SSL_CERT_DIR` by every HTTP client.",
    ]
    return "\n\n".join(parts)


def _word(kind: str) -> str:
    return kind.upper().replace("-", "_")


def _keys(model: Any) -> str:
    """The fields of a pydantic model, with the docstring below each."""
    [found] = ast.parse(inspect.getsource(model)).body
    assert isinstance(found, ast.ClassDef)
    told: dict[str, str] = {}
    for field, text in itertools.pairwise(found.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            told[ast.unparse(field.target)] = " ".join(inspect.cleandoc(ast.literal_eval(text.value)).split())
    rows = ((f"`{name}`", _type(one), told.get(name, "")) for name, one in model.model_fields.items())
    return table(("key", "type", "what it does"), rows)


def _type(one: Any) -> str:
    if get_origin(one.annotation) is Literal:
        return " or ".join(f'`"{value}"`' for value in get_args(one.annotation))
    told = re.sub(r"\b\w+\.(?=\w)", "", str(one.annotation)) if get_args(one.annotation) else ""
    return told.replace("orchestrate.gateway.terms.", "") or one.annotation.__name__


PAGES: dict[str, Callable[[], str]] = {
    "configuration": configuration,
    "commands": commands,
    "spec": spec,
    "json": json_output,
    "python": python,
    "errors": errors_page,
    "translations": translations,
    "prices": prices,
}


def page(name: str) -> str:
    return f"{MADE}\n\n{PAGES[name]()}\n"


if __name__ == "__main__":
    os.environ["COLUMNS"] = "120"
    for name in PAGES:
        (FOLDER / f"{name}.md").write_text(page(name), encoding="utf-8")
