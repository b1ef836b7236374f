"""The commands `export`, `merge` and `verify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from orchestrate.commands.terminal import completion
from orchestrate.commands.terminal.command import HostOutput, command
from orchestrate.commands.terminal.console import (
    confirm,
    err,
    note,
    orchestrator,
    out,
    print_text,
    table,
    warn,
)
from orchestrate.commands.terminal.options import KeyVariableOpt
from orchestrate.errors import UsageError

if TYPE_CHECKING:
    from orchestrate.api.orchestrator import Orchestrator
    from orchestrate.runs.tracked import TrackedRun
    from orchestrate.types import Export, Merged, Proof

ModelArg = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run's id, a unique prefix of it, 'last', or a folder with an adapter."
    ),
]
AcceptOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--accept-license",
        metavar="LICENSE",
        help="Name of the base model's license, to accept its terms.",
    ),
]
STYLES = {"passed": "green", "failed": "red", "unknown": "yellow", "proved": "green", "in part": "yellow"}


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options for writing weights."""

    dtype: Annotated[str, typer.Option(help="Data type of merged weights: bf16, fp16, fp32.")] = "bf16"
    quantise: Annotated[
        str, typer.Option("--quantize", help="GGUF quantization: Q4_K_M, Q8_0 ... or F16, BF16, F32.")
    ] = "Q4_K_M"
    llama_cpp: Annotated[
        Path | None, typer.Option(help="Folder with a llama.cpp checkout. Default: the installed llama.cpp.")
    ] = None
    repo: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="With --to hub: repository to upload to.")
    ] = None
    whole: Annotated[
        bool, typer.Option(help="With --to hub: upload the merged model instead of the adapter.")
    ] = False
    upload: Annotated[
        bool, typer.Option("--upload", help="With --to hub: also upload the model to a private repository.")
    ] = False


@command
def export(
    context: typer.Context,
    *,
    run: ModelArg,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder, new or empty.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="Target format: peft, merged, gguf, gguf-lora, ollama, vllm, hub.",
            autocompletion=completion.exports,
        ),
    ],
    how: ExportOptions,
    prove: Annotated[
        bool, typer.Option(help="Load the export and verify that it matches the trained model.")
    ] = True,
    accept_license: AcceptOpt = None,
) -> HostOutput[Export]:
    """Export a tuned model for another engine: weights, tokenizer, chat template, stop tokens, model card,
    provenance, and the commands that run it. Exit code 1 if verification fails."""
    from orchestrate.runs import serving

    options = serving.WeightOptions(
        dtype=how.dtype, quantise=how.quantise, llama_cpp=how.llama_cpp, repo=how.repo, whole=how.whole
    )
    serving.require_form(to, options)
    serving.require_empty(folder.expanduser())
    with orchestrator(context) as ft:
        subject = serving.subject(ft, run)
        if how.upload:
            serving.require_upload(ft, subject, how.repo)
        accepted = accepted_licenses(ft, [run], accept_license)
        made = serving.export(
            ft,
            subject,
            to,
            folder,
            options=options,
            accept_license=accepted,
            prove=prove,
            on_message=note,
        )
        if how.upload and how.repo:
            note(f"uploaded to {serving.upload(made, how.repo)}")
    return HostOutput(made, _show_export, _code(made.proof), sandbox=_from_sandbox(subject))


def _code(proof: Proof | None) -> int:
    return 1 if proof is not None and proof.state == "failed" else 0


def _show_export(made: Export) -> None:
    for file in made.files:
        note(f"{file.bytes:>12,}  {file.sha256[:16]}  {file.path}")
    if made.proof is not None:
        show_proof(made.proof)
    for line in made.notes:
        err.print(line, soft_wrap=True)
    for line in made.commands:
        print_text(line)


@dataclass(frozen=True, kw_only=True)
class MergeCommandOptions:
    """Options for merging adapters or models."""

    method: Annotated[
        str | None,
        typer.Option(
            help="Adapters: svd (default), cat, ties, dare_ties, linear. Full models: linear (default), "
            "slerp, ties.",
            show_default=False,
        ),
    ] = None
    weights: Annotated[
        str | None,
        typer.Option(metavar="W,W", help="One weight per run. Default: equal weights that sum to 1."),
    ] = None
    density: Annotated[
        float | None, typer.Option(help="For ties and dare_ties: fraction of values to keep (default 0.5).")
    ] = None
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="For svd: rank of the result. Default: the highest rank of the inputs."),
    ] = None

    @property
    def numbers(self) -> list[float] | None:
        """Parse `--weights`. Raises `UsageError`."""
        if self.weights is None:
            return None
        try:
            return [float(part) for part in self.weights.split(",")]
        except ValueError:
            raise UsageError(
                f"--weights must be comma-separated numbers, such as 0.7,0.3 (got {self.weights!r})"
            ) from None


@command
def merge(
    context: typer.Context,
    *,
    run: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN...",
            help="Runs or folders: adapters of the same base, or full models of the same architecture.",
        ),
    ],
    folder: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Output folder, which must not exist yet.")
    ],
    merging: MergeCommandOptions,
    accept_license: AcceptOpt = None,
) -> HostOutput[Merged]:
    """Merge several adapters of the same base model into one, or several full models of the same
    architecture, and verify the result. Prints how much a merged adapter differs from the exact sum. Exit
    code 1 if verification fails. Afterwards, evaluate the merged model and each input with `eval`."""
    from orchestrate.runs import serving

    weights = merging.numbers
    serving.require_empty(folder.expanduser())
    with orchestrator(context) as ft:
        accepted = accepted_licenses(ft, run, accept_license)
        subjects = [serving.subject(ft, name) for name in run]
        made = serving.merge(
            ft,
            subjects,
            folder,
            method=merging.method,
            weights=weights,
            density=merging.density,
            rank=merging.rank,
            accept_license=accepted,
        )
    return HostOutput(made, _show_merged, _code(made.proof), sandbox=any(map(_from_sandbox, subjects)))


def _show_merged(made: Merged) -> None:
    if made.error is None:
        note(f"{made.method} of {len(made.parts)} full models")
    else:
        ranks = ", ".join(map(str, made.ranks))
        note(
            f"{made.method}, rank {made.rank} (inputs: {ranks}); differs by {made.error:.1%} from the "
            "exact sum"
        )
    if made.proof is not None:
        show_proof(made.proof)
    for line in made.notes:
        err.print(line, soft_wrap=True)
    print_text(made.folder)


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """Options for finding the served model."""

    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="URL|DIR|BACKEND",
            help="Where the model is served. Default: the run's own backend.",
        ),
    ] = None
    model: Annotated[
        str | None, typer.Option(help="Name of the tuned model at the URL. Default: the run's suffix or id.")
    ] = None
    base: Annotated[
        str | None,
        typer.Option(help="Name of the base model at the URL. Default: the one that the server lists."),
    ] = None
    key_variable: KeyVariableOpt = None
    base_gguf: Annotated[Path | None, typer.Option(help="For a GGUF adapter: its base as a GGUF file.")] = (
        None
    )


@command
def verify(context: typer.Context, *, run: ModelArg, at: EndpointOptions) -> HostOutput[Proof]:
    """Prove that the served model is the one you trained. Compares token ids, canary answers,
    log-probabilities and stop tokens, and stores the result with the run. Exit code 1 if the models
    differ."""
    from orchestrate.runs import serving

    with orchestrator(context) as ft:
        names_at = {name: value for name, value in vars(at).items() if name != "at"}
        subject = serving.subject(ft, run)
        proof = serving.verify(ft, subject, at.at, serving.EndpointNames(**names_at))
    return HostOutput(proof, show_proof, _code(proof), sandbox=_from_sandbox(subject))


def _from_sandbox(subject: TrackedRun | Path) -> bool:
    return not isinstance(subject, Path) and subject.record.sandbox


def show_proof(proof: Proof) -> None:
    shown = table("stage", "", "finding", fold=("finding",))
    for stage in proof.stages:
        shown.add_row(stage.name, Text(stage.state, style=STYLES[stage.state]), stage.detail)
    out.print(shown)
    meanings = {
        "proved": "the served model is the one that was trained",
        "in part": "nothing failed, but not everything could be checked",
    }
    meaning = meanings.get(proof.state, "the served model is not the one that was trained")
    out.print(
        Text.assemble(
            (proof.state, STYLES.get(proof.state, "red")), f": {meaning} ({proof.engine} at {proof.at})"
        )
    )
    for stage in proof.stages:
        if stage.fix:
            warn(f"{stage.name}: {stage.fix}")


def accepted_licenses(ft: Orchestrator, names: list[str], given: list[str] | None) -> list[str]:
    """Return the accepted licenses: those passed by flag, and those that the user accepts on a terminal."""
    from orchestrate.runs import serving

    accepted = list(given or [])
    for license in serving.unaccepted_licenses(ft, names, accepted):
        err.print(
            f"The base model has the license {license.title}. Conditions for distributing or serving it:"
        )
        for condition in license.asks:
            err.print(f"  - {condition}", soft_wrap=True)
        if license.url:
            err.print(f"  {license.url}", soft_wrap=True)
        if confirm("Do you agree?", yes=False):
            accepted.append(license.id)
    return accepted
