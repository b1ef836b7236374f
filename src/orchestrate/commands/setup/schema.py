"""schema: the JSON schema of what each command prints with `--json`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

import msgspec
import typer

from orchestrate.commands.evaluation.ab import ABListed, ABServing, Sized
from orchestrate.commands.servers.gateway import GatewayShown, KeyMade, KeyShown
from orchestrate.commands.servers.serve import Added, Serving
from orchestrate.commands.servers.ui import UiShown
from orchestrate.commands.terminal.console import ErrorLine, note, print_json, print_text
from orchestrate.errors import UsageError
from orchestrate.service.records import (
    Accuracy,
    Advice,
    Bench,
    Carried,
    Check,
    CheckReport,
    Comparison,
    ConvertReport,
    DedupeReport,
    Due,
    Exported,
    ExportReport,
    FixReport,
    FromRecord,
    FromReview,
    GenerateReport,
    Imported,
    InspectReport,
    JudgeReport,
    LivePrice,
    Logged,
    Migration,
    Model,
    ModelChanges,
    OrphanReport,
    OutcomesTaken,
    Ownership,
    Planned,
    PlannedMove,
    Plugin,
    PreviewReport,
    Proposal,
    Rate,
    Reconciliation,
    Recording,
    Recovery,
    Regression,
    ReviewCounts,
    ReviewResult,
    SpendingReport,
    SplitReport,
    SyncReport,
    Taken,
)
from orchestrate.text import meant
from orchestrate.types import (
    Artifact,
    AuditEntry,
    Checkpoint,
    Deployment,
    Evaluation,
    Event,
    ExperimentReport,
    Export,
    MemoryPlan,
    Merged,
    MetricPoint,
    Problem,
    Proof,
    QueueEntry,
    Quote,
    Reply,
    Run,
    Search,
    Translation,
    Trial,
)


class Checked(TypedDict):
    backends: list[str]
    problems: list[Problem]


class Quoted(TypedDict):
    quotes: list[Quote]
    ownership: list[Ownership]
    live: list[LivePrice]


class RunShown(Run, frozen=True, kw_only=True):
    evaluations: tuple[Evaluation, ...] = ()
    deployment: Deployment | None = None
    proofs: tuple[Proof, ...] = ()


class DeploymentMade(Deployment, frozen=True, kw_only=True):
    proof: Proof | None = None


class Stopped(TypedDict):
    stopped: int


class Recovered(TypedDict):
    recovery: Recovery
    sync: SyncReport


class Written(TypedDict):
    output: str


class TakenDown(TypedDict):
    run: str
    state: Literal["down", "ending"]
    deployment: Deployment | None


class DataChecked(TypedDict):
    report: CheckReport
    fix: FixReport | None


class AnswersReviewing(TypedDict):
    review: str
    links: dict[str, str]
    tasks: int
    done: dict[str, int]


class Reviewing(TypedDict):
    url: str
    counts: ReviewCounts


ModelShown: Any = msgspec.defstruct(
    "ModelShown",
    [("ids", dict[str, str])],
    bases=(Model,),
    frozen=True,
    kw_only=True,
    omit_defaults=True,
)


class Key(TypedDict):
    backend: str
    key: str | None
    source: str | None
    variable: str
    hosts: list[str]


class Backend(TypedDict):
    name: str
    title: str
    host: str
    sandbox: bool
    features: list[str]
    missing: dict[str, str]
    ended: dict[str, str]


class SandboxUp(TypedDict):
    sandbox: bool
    env: dict[str, str]
    urls: dict[str, str]
    home: str


OUTPUTS: dict[str, tuple[Any, ...]] = {
    # More than one: with other options.
    "check": (Checked,),
    "plan": (list[Translation],),
    "quote": (list[Quote], Quoted),
    "submit": (list[Run],),
    "rerun": (list[Run],),
    "sweep": (list[Trial], list[Search]),
    "queue add": (list[QueueEntry],),
    "queue ls": (list[QueueEntry],),
    "queue rm": (list[QueueEntry],),
    "queue pause": (list[QueueEntry],),
    "queue resume": (list[QueueEntry],),
    "queue run": (list[QueueEntry],),
    "runs": (list[Run],),
    "show": (RunShown,),
    "watch": (list[Run], Stopped),
    "events": (list[Event],),
    "metrics": (list[MetricPoint],),
    "log": (list[Logged],),
    "checkpoints": (list[Checkpoint],),
    "cancel": (Run,),
    "abandon": (Run,),
    "pause": (Run,),
    "resume": (Run,),
    "spending": (SpendingReport, OrphanReport),
    "sync": (SyncReport,),
    "worker": (SyncReport,),
    "import": (list[Taken],),
    "migrate": (Migration, Proposal, list[Run], list[PlannedMove], list[Carried]),
    "record": (Recording, list[Recording], list[Due]),
    "recover": (Recovered,),
    "eval": (Evaluation,),
    "regress": (Regression,),
    "compare": (Comparison, Written),
    "review": (AnswersReviewing, ReviewResult, Exported, Imported, list[Planned]),
    "chat": (list[Reply],),
    "download": (Artifact,),
    "export": (Export,),
    "merge": (Merged,),
    "verify": (Proof,),
    "serve": (Serving, list[Added]),
    "ab serve": (ABServing,),
    "ab status": (ExperimentReport, list[ABListed]),
    "ab record": (OutcomesTaken,),
    "ab stop": (ExperimentReport,),
    "ab size": (Sized,),
    "gateway": (GatewayShown,),
    "ui": (UiShown,),
    "gateway keys add": (KeyMade,),
    "gateway keys ls": (list[KeyShown],),
    "gateway log": (list[AuditEntry],),
    "deploy": (DeploymentMade,),
    "undeploy": (TakenDown,),
    "deployments": (list[Deployment],),
    "data inspect": (InspectReport,),
    "data check": (DataChecked,),
    "data convert": (ConvertReport,),
    "data split": (SplitReport,),
    "data dedupe": (DedupeReport,),
    "data preview": (PreviewReport,),
    "data generate": (GenerateReport,),
    "data review": (Reviewing, ExportReport),
    "data from-record": (FromRecord,),
    "data from-review": (FromReview,),
    "data judge": (JudgeReport,),
    "advise": (Advice,),
    "models search": (list[ModelShown],),
    "models list": (list[ModelShown],),
    "models show": (ModelShown,),
    "models refresh": (ModelChanges,),
    "prices list": (list[Rate],),
    "prices show": (list[Rate],),
    "prices check": (list[Rate],),
    "prices accuracy": (list[Accuracy], list[Reconciliation]),
    "init": (list[str],),
    "keys list": (list[Key],),
    "doctor": (list[Check],),
    "providers list": (list[Backend],),
    "plugins": (list[Plugin],),
    "sandbox": (SandboxUp,),
    "local bench": (Bench,),
    "local memory": (MemoryPlan,),
    "error": (ErrorLine,),
}


def of(command: str) -> dict[str, Any]:
    """Raises `UsageError` for a command that has no `--json`."""
    # What a group does by itself.
    named = next((n for n in (command, f"{command} list", f"{command} ls") if n in OUTPUTS), None)
    if named is None:
        raise UsageError(
            f"no schema is called {command!r}{meant(command, OUTPUTS)}", fix="orchestrate schema  lists them"
        )
    command = named
    found, parts = msgspec.json.schema_components(OUTPUTS[command], ref_template="#/$defs/{name}")
    schema = found[0] if len(found) == 1 else {"anyOf": list(found)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"orchestrate {command} --json",
        **schema,
        "$defs": parts,
    }


def schema(
    command: Annotated[
        list[str] | None,
        typer.Argument(help="As in: show, or data check; or error. Without: which there are."),
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="The schemas of all commands, by their names.")] = False,
) -> None:
    """The JSON schema of what a command prints with --json."""
    if command or all:
        print_json(of(" ".join(command)) if command else {name: of(name) for name in OUTPUTS})
        return
    print_text("\n".join(OUTPUTS))
    note("orchestrate schema COMMAND prints one; --all all of them")
