"""The command `serve`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, TypedDict

import typer

from orchestrate.commands.exports import AcceptOpt, accepted_licenses, show_proof
from orchestrate.commands.terminal.command import Output, command, for_people
from orchestrate.commands.terminal.console import ended_by_signal, note, orchestrator, print_text, warn
from orchestrate.errors import UsageError
from orchestrate.types import Proof
from orchestrate.types.serving import AdapterCost

if TYPE_CHECKING:
    from orchestrate.api.orchestrator import Orchestrator
    from orchestrate.runs import serving


class ServeReport(TypedDict):
    url: str
    engine: str
    why: str | None
    models: list[str]
    command: str | None
    proofs: list[Proof]
    costs: list[AdapterCost]
    """Measured load time and time per token of each adapter, in seconds."""


class Added(TypedDict):
    model: str
    url: str
    seconds: float


PortOpt = Annotated[int, typer.Option(min=0, max=65535, help="Port. 0 picks a free one.")]
HostOpt = Annotated[str, typer.Option(help="Address to serve on. Addresses other than loopback need keys.")]
NamesOpt = Annotated[
    list[str] | None, typer.Option("--name", help="Also accept requests for this host name; repeatable.")
]
CpuThreadsOpt = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]
DeviceOpt = Annotated[str | None, typer.Option(help="cpu or cuda. Default: a GPU if there is one.")]
PrecisionOpt = Annotated[
    Literal["bf16", "fp16", "fp32"] | None,
    typer.Option(help="Precision for compute and unquantized weights. Default: chosen for the device."),
]


@dataclass(frozen=True, kw_only=True)
class ServeAddress:
    """Options for the server's address and its allowed clients."""

    port: PortOpt = 8000
    host: HostOpt = "127.0.0.1"
    names: NamesOpt = None
    origins: Annotated[
        list[str] | None,
        typer.Option("--origin", help="Allowed CORS origin, such as https://app.example."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ServeEngineOptions:
    """Options for the inference engine."""

    called: Annotated[
        list[str] | None,
        typer.Option(
            "--as",
            metavar="NAME",
            help="Model name that clients use for the run, such as the one already in your code. For several "
            "runs, repeat the option in the same order. Default: the suffix in the spec.",
        ),
    ] = None
    engine: Annotated[str, typer.Option(help="Inference engine: auto, transformers, llama.cpp, vllm.")] = (
        "auto"
    )
    base: Annotated[str | None, typer.Option(help="Serve this base model without a run.")] = None
    most_at_once: Annotated[int, typer.Option("--concurrency", min=1, help="Concurrent requests.")] = 32
    most_waiting: Annotated[
        int,
        typer.Option(
            "--queue", min=0, help="Maximum number of waiting requests. Further requests get status 429."
        ),
    ] = 128
    most_tokens: Annotated[
        int,
        typer.Option("--max-tokens", min=1, help="Maximum tokens per answer if the request sets no limit."),
    ] = 2048
    threads: CpuThreadsOpt = None
    device: DeviceOpt = None
    four_bit: Annotated[
        bool | None,
        typer.Option(
            "--four-bit/--no-four-bit",
            help="Load the base in 4-bit. Default: as in training. If unknown, depends on the model's size.",
        ),
    ] = None
    precision: PrecisionOpt = None
    batch_invariant: Annotated[
        bool,
        typer.Option(
            "--batch-invariant",
            help="Process temperature-0 requests one by one: slower, but answers are bitwise reproducible.",
        ),
    ] = False
    quantise: Annotated[str, typer.Option("--quantize", help="GGUF quantization for llama.cpp.")] = "Q4_K_M"
    engine_args: Annotated[
        list[str] | None,
        typer.Option(
            "--engine-arg",
            metavar="FLAG",
            help="Flag to pass unchanged to llama.cpp's server or vLLM; repeatable.",
        ),
    ] = None
    python: Annotated[
        Path | None, typer.Option("--vllm-python", help="Python interpreter of the environment with vLLM.")
    ] = None
    llama_python: Annotated[
        Path | None,
        typer.Option(
            help="Python interpreter of the environment with xllamacpp or llama-cpp-python[server]."
        ),
    ] = None


class KeyManager(Protocol):
    """Functions that manage the client keys of one kind of server."""

    def new_key(self, ft: Orchestrator, name: str, /) -> str: ...

    def revoke_key(self, ft: Orchestrator, name: str, /) -> None: ...


@dataclass(frozen=True, kw_only=True)
class KeyOptions:
    """Options that create or revoke a key instead of serving."""

    new_key: Annotated[
        str | None,
        typer.Option("--new-key", metavar="NAME", help="Create a client key, print it once, and exit."),
    ] = None
    revoke_key: Annotated[
        str | None, typer.Option("--revoke-key", metavar="NAME", help="Revoke the key with this name.")
    ] = None

    def change(self, ft: Orchestrator, keys: KeyManager) -> bool:
        """Create or revoke a key if the options request it. Returns True if a key was created or revoked."""
        if self.revoke_key is not None:
            keys.revoke_key(ft, self.revoke_key)
            note(f"The key {self.revoke_key} was revoked. Running servers reject it within a second.")
        if self.new_key is not None:
            print_text(keys.new_key(ft, self.new_key))
            note("The key is stored as a hash and cannot be shown again.")
            note("All servers now require a key.")
        return self.new_key is not None or self.revoke_key is not None


@command
def serve(
    context: typer.Context,
    *,
    run: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Runs or adapter folders that share one base model."),
    ] = None,
    where: ServeAddress,
    how: ServeEngineOptions,
    into: Annotated[
        str | None,
        typer.Option("--into", metavar="URL", help="Add the adapters to this running server."),
    ] = None,
    keys: KeyOptions,
    prove: Annotated[bool, typer.Option(help="Verify each model before serving it.")] = True,
    accept_license: AcceptOpt = None,
) -> Iterator[Output[ServeReport] | Output[list[Added]]]:
    """Serve tuned models and their base through the chat completions API until interrupted. Verifies each
    model first. If verification fails, nothing is served (exit code 1)."""
    from orchestrate.runs import serving

    names = run or []
    with orchestrator(context) as ft:
        if keys.change(ft, serving):
            return
        if not names and how.base is None:
            raise UsageError("nothing to serve: name a run, or set --base MODEL")
        accepted = accepted_licenses(ft, names, accept_license)
        if into is not None:
            added = serving.add(ft, names, into, accepted, how.called or ())
            yield Output([Added(model=m, url=f"{url}/v1", seconds=s) for m, url, s in added], _show_added)
            return
        terms, choice = _terms(where, how), _choice(how)
        with (
            ended_by_signal() as ended,
            serving.serve(ft, names, terms, choice, called=how.called or (), accept_license=accepted) as up,
        ):
            if up.why is not None:
                note(f"engine: {up.engine}, as {up.why}")
            proofs = serving.prove(ft, up, names) if prove else []
            failed = [p for p in proofs if p.state == "failed"]
            for proof in for_people(proofs) or failed:
                show_proof(proof)
            if failed:
                warn("nothing is served because verification failed. To serve without verifying: --no-prove")
                raise typer.Exit(1)
            shown = ServeReport(
                url=f"{up.url}/v1",
                engine=up.engine,
                why=up.why,
                models=list(up.models),
                command=up.command,
                proofs=proofs,
                costs=list(up.costs),
            )
            yield Output(shown, lambda shown: print_text("\n  ".join([shown["url"], *shown["models"]])))
            for cost in up.costs:
                note(str(cost))
            note("Ctrl-C finishes open requests, then stops")
            ended.wait()


def _terms(where: ServeAddress, how: ServeEngineOptions) -> serving.ServerSettings:
    from orchestrate.runs import serving

    return serving.ServerSettings(
        host=where.host,
        port=where.port,
        names=tuple(where.names or ()),
        origins=tuple(where.origins or ()),
        most_at_once=how.most_at_once,
        most_waiting=how.most_waiting,
        most_tokens=how.most_tokens,
        threads=how.threads,
        device=how.device,
        four_bit=how.four_bit,
        precision=how.precision,
        batch_invariant=how.batch_invariant,
    )


def _choice(how: ServeEngineOptions) -> serving.EngineOptions:
    from orchestrate.runs import serving

    return serving.EngineOptions(
        engine=how.engine,
        base=how.base,
        python=how.python,
        llama_python=how.llama_python,
        quantise=how.quantise,
        more=tuple(how.engine_args or ()),
    )


def _show_added(added: list[Added]) -> None:
    for one in added:
        print_text(f"{one['model']}  {one['url']}")
        note(f"{one['model']} was loaded in {1000 * one['seconds']:.0f} ms without interrupting other models")
