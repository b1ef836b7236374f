"""Serve, verify and publish tuned models that the user selects by name."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrate.catalog.models import License, license_of
from orchestrate.core.files import locked, private_folder
from orchestrate.errors import AuthenticationFailed, OrchestrateError, UsageError
from orchestrate.http.web import free_port
from orchestrate.providers.calls.hosted import Wire
from orchestrate.runs import privacy
from orchestrate.runs import tuned as models
from orchestrate.runs.tracked import TrackedRun, tracked
from orchestrate.runs.tuned import EndpointNames as EndpointNames
from orchestrate.runs.tuned import export as export
from orchestrate.runs.tuned import merge as merge
from orchestrate.runs.tuned import merges as merges
from orchestrate.runs.tuned import verify as verify
from orchestrate.serving import agreements, engines
from orchestrate.serving.export import forms
from orchestrate.serving.export.folder import require_empty as require_empty
from orchestrate.serving.export.forms import WeightOptions as WeightOptions
from orchestrate.serving.export.forms import require_form as require_form
from orchestrate.serving.server import keys, server_process
from orchestrate.serving.server.server_process import ServerSettings as ServerSettings
from orchestrate.serving.tuned import TunedModel, served_base
from orchestrate.types import Export, Proof
from orchestrate.types.serving import AdapterCost

if TYPE_CHECKING:
    from orchestrate.runs.hosting.deployment import DeploymentHandle
    from orchestrate.workspace import Workspace

_LONGEST_NAME = 200
ENGINES = ("auto", "transformers", "llama.cpp", "vllm")


def subject(ft: Workspace, name: str) -> TrackedRun | Path:
    """Find a run by its id, or a folder with weights by its path. Raises `UsageError` if `name` is
    neither."""
    folder = Path(name).expanduser()
    if folder.is_dir() and list(folder.glob("*.safetensors")):
        return folder.resolve()
    if "/" in name or folder.is_dir():
        raise UsageError(
            f"{name} is neither a run nor a folder with safetensors weights",
            fix="check the path, or list runs with: orchestrate runs",
        )
    return tracked(ft, name)


def unaccepted_licenses(ft: Workspace, names: Iterable[str], accepted: Sequence[str]) -> list[License]:
    """List the licenses of base models that the user still has to accept."""
    found: dict[str, License] = {}
    for name in names:
        what = subject(ft, name)
        base = models.of(ft, what).base if isinstance(what, Path) else what.record.model
        license = license_of(base)
        new = license is not None and license.id not in accepted
        if license is not None and new and not agreements.agreed(license, ft.settings.home):
            found[license.id] = license
    return list(found.values())


def require_upload(ft: Workspace, what: TrackedRun | Path, repo: str | None) -> None:
    """Raise `UsageError` if the repository is missing, or if a private run's weights would be uploaded to a
    hub that is not known to be the user's own."""
    if repo is None:
        raise UsageError("set the target repository: --repo OWNER/NAME")
    if isinstance(what, Path) or not privacy.is_private(what.record):
        return
    from huggingface_hub import constants

    privacy.require_near(ft.settings, what.id, "--upload", constants.ENDPOINT)


def upload(made: Export, repo: str) -> str:
    """Upload an exported folder to the hub as a private model, with your hub login, and return the model's
    URL. Existing files are not uploaded again. Errors of the hub propagate."""
    import huggingface_hub

    hub: Any = huggingface_hub
    wire = Wire("the hub")
    try:
        wire.once(lambda: hub.create_repo(repo, private=True, exist_ok=True), expect=object)
        return str(wire.once(lambda: hub.upload_folder(repo_id=repo, folder_path=made.folder), expect=object))
    except AuthenticationFailed as error:
        error.fix = "run  hf auth login  with a token that has write access"
        raise


# -- serving -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunningModels:
    """A running server and its models."""

    url: str
    engine: str
    models: tuple[str, ...]
    """Names of the served models."""
    tuned: tuple[TunedModel, ...]
    command: str | None = None
    """Command line of a third-party engine."""
    key: str | None = None
    """Key created for the user who started the server."""
    why: str | None = None
    """Reason why Orchestrate chose this engine. `None` if you chose it."""
    costs: tuple[AdapterCost, ...] = ()
    """Loading time and slowdown caused by each adapter. Empty for third-party engines."""


@dataclass(frozen=True)
class EngineOptions:
    """Options for choosing the engine."""

    engine: str = "auto"
    base: str | None = None
    """Base model to serve alone, without a tuned model."""
    python: Path | None = None
    """Path of the Python interpreter with vLLM."""
    llama_python: Path | None = None
    """Path of the Python interpreter with llama-cpp-python."""
    quantise: str = "Q4_K_M"
    """Quantization for llama.cpp."""
    more: tuple[str, ...] = ()
    """Additional flags for a third-party engine."""


@contextmanager
def serve(
    ft: Workspace,
    names: Sequence[str],
    terms: ServerSettings,
    choice: EngineOptions | None = None,
    *,
    called: Sequence[str] = (),
    accept_license: Sequence[str] = (),
) -> Generator[RunningModels]:
    """Serve these runs and adapter folders until the `with` block ends. `called` sets the models' names, in
    order. Models without an entry keep their own names. Raises `LicenseNotAccepted` if a base model's license
    must be accepted first, `UsageError` for models that cannot be served together, and `SetupError` for an
    engine that is not installed."""
    choice = choice or EngineOptions()
    tuned, engine, why = _chosen(ft, names, choice, called)
    for one in tuned:
        models.agree(ft, one, accept_license)
    if engine == "transformers":
        keys.bring_in(ft.settings.home, ft.store, by=ft.settings.made_by)
        with server_process.serve(tuned, ft.settings.home, ft.store, terms, base=choice.base) as up:
            yield RunningModels(
                up.url,
                engine,
                tuple(up.models),
                tuple(tuned),
                key=up.api.admin_key,
                why=why,
                costs=tuple(up.engine.costs),
            )
        return
    if terms.precision is not None or terms.batch_invariant:
        raise UsageError(
            f"--precision and --batch-invariant require --engine transformers. {engine} has its own flags",
            fix="use --engine transformers, or pass flags with --engine-arg FLAG",
        )
    if not tuned:
        raise UsageError(f"Orchestrate cannot start {engine} without a tuned model: choose a run")
    make = _vllm if engine == "vllm" else _llama_cpp
    command = make(ft, tuned, terms, choice)
    with engines.started(command) as url:
        served = (*(t.name for t in tuned), *([served_base(tuned[0].base)] if engine == "vllm" else []))
        yield RunningModels(url, engine, served, tuple(tuned), command.line, why=why)


def require_servable(ft: Workspace, names: Sequence[str]) -> None:
    """Raise the errors that `serve` would raise for these models before it loads them, except that a license
    must be accepted."""
    tuned, engine, _ = _chosen(ft, names, EngineOptions(), ())
    if engine == "transformers":
        server_process.loading_of(tuned, ServerSettings(), None)


def _chosen(
    ft: Workspace, names: Sequence[str], choice: EngineOptions, called: Sequence[str]
) -> tuple[list[TunedModel], str, str | None]:
    """Return the models, the engine that serves them, and why it was chosen."""
    if choice.engine not in ENGINES:
        raise UsageError(f"--engine must be one of {', '.join(ENGINES)} (got {choice.engine!r})")
    tuned = _named([models.of(ft, subject(ft, name)) for name in names], called)
    if choice.engine != "auto":
        return tuned, choice.engine, None
    seen = engines.LocalCapabilities.seen(choice.python, choice.llama_python)
    return tuned, *engines.choose(tuned, seen)


def _named(tuned: Sequence[TunedModel], called: Sequence[str]) -> list[TunedModel]:
    """Give the models their names. Raises `UsageError` for a name that is invalid or used twice, and for more
    names than models."""
    if len(called) > len(tuned):
        raise UsageError(f"{len(called)} names for {len(tuned)} models", fix="pass one --as NAME per RUN")
    for name in called:
        if not name.isprintable() or not name or len(name) > _LONGEST_NAME or set(name) & set(" =,"):
            raise UsageError(
                f"{name!r} is not a valid model name: use 1 to {_LONGEST_NAME} characters, "
                "without spaces, commas or equals signs"
            )
    named = [replace(one, name=name) for one, name in zip(tuned, called, strict=False)]
    named += tuned[len(called) :]
    server_process.require_own_names(named)
    return named


def _vllm(
    ft: Workspace, tuned: Sequence[TunedModel], terms: ServerSettings, choice: EngineOptions
) -> engines.EngineCommand:
    if len(tuned) > 1 and not all(t.adapter for t in tuned):
        raise UsageError("a fully fine-tuned model can only be served alone")
    folders = {t.name: _exported(ft, t, "vllm", WeightOptions()) for t in tuned if t.adapter}
    base = served_base(tuned[0].base)
    return engines.vllm(
        tuned, folders, base, host=terms.host, port=_port(terms), python=choice.python
    ).with_more(choice.more)


def _llama_cpp(
    ft: Workspace, tuned: Sequence[TunedModel], terms: ServerSettings, choice: EngineOptions
) -> engines.EngineCommand:
    if len(tuned) > 1:
        raise UsageError(
            "llama.cpp's server serves one model at a time: choose one run",
            fix="several adapters of one base model need --engine transformers or vllm",
        )
    folder = _exported(ft, tuned[0], "gguf", WeightOptions(quantise=choice.quantise))
    [file] = folder.glob("*.gguf")
    return engines.llama_server(
        tuned[0],
        file,
        host=terms.host,
        port=_port(terms),
        parallel=min(8, terms.most_at_once),
        python=choice.llama_python,
    ).with_more(choice.more)


def _port(terms: ServerSettings) -> int:
    """Return the server's port. Called after the exports, which may take minutes, because a free port may be
    taken by then."""
    return terms.port or free_port(terms.host)


def _exported(ft: Workspace, tuned: TunedModel, form: str, options: WeightOptions) -> Path:
    """Export a model for an engine, once for each set of weights."""
    weights = (forms.weights_hash(tuned.folder) or "none")[:16]
    kind = f"-{options.quantise}" if form == "gguf" else ""
    exports = private_folder(ft.settings.home / "exports")
    folder = exports / f"{tuned.slug}-{weights}-{form}{kind}"
    with locked(exports / f"{weights}.lock", wait_s=None):  # two servers of one model may start at once
        if not folder.is_dir():
            forms.export(tuned, form, folder, options)
    return folder


def prove(ft: Workspace, up: RunningModels, names: Sequence[str]) -> list[Proof]:
    """Prove that each model is served under its own name and with the weights that were trained."""
    pairs = zip(names, up.tuned, strict=True)
    return [
        verify(ft, subject(ft, name), up.url, EndpointNames(model=one.name, key=up.key))
        for name, one in pairs
    ]


def prove_deployed(
    ft: Workspace, run: TrackedRun, deployment: DeploymentHandle, patience_s: float
) -> tuple[Proof | None, str | None]:
    """Prove that a deployment serves the trained model, or return the reason why this is not possible. Waits
    until the deployment accepts requests. The proof's prompts are billed like any others. Does not download
    base models: if the base isn't on this machine, the model's fingerprint must already exist."""
    at, fix = deployment.record.provider, f"orchestrate verify {run.id}"
    fix += "" if at == run.record.provider else f" --at {at}"
    try:
        if not models.can_be_known(ft, run):
            return None, f"the base model is not on this machine. On a machine that has it: {fix}"
        if not deployment.answers(patience_s):
            return None, f"the deployment is not ready yet. Try again later: {fix}"
        return verify(ft, run, at), None
    except OrchestrateError as error:
        return None, f"{error.message}. Later: {fix}"


def add(
    ft: Workspace,
    names: Sequence[str],
    url: str,
    accept_license: Sequence[str],
    called: Sequence[str] = (),
) -> list[tuple[str, str, float]]:
    """Add adapters to a running server: a server that was started from this home folder, or a vLLM server.
    Returns (name, URL, loading time in seconds) for each adapter. Raises `UsageError` for an adapter that
    doesn't fit the server, `SetupError` if the server rejects it, and `HostUnavailable` if the server does
    not respond."""
    root = url.rstrip("/").removesuffix("/v1")
    own = any(note.url == root for note in server_process.notes(ft.settings.home))
    found: list[tuple[str, str, float]] = []
    for tuned in _named([models.of(ft, subject(ft, name)) for name in names], called):
        models.agree(ft, tuned, accept_license)
        if own:
            seconds = server_process.add(ft.settings.home, tuned, root)
        else:
            seconds = engines.load_into(root, tuned.name, _exported(ft, tuned, "vllm", WeightOptions()))
        found.append((tuned.name, root, seconds))
    return found


def new_key(ft: Workspace, name: str) -> str:
    """Create a client key, which is shown only once."""
    keys.bring_in(ft.settings.make_home(), ft.store, by=ft.settings.made_by)
    return keys.make(ft.store, name, by=ft.settings.made_by)


def revoke_key(ft: Workspace, name: str) -> None:
    """Revoke a key. Running servers also reject it from now on."""
    keys.bring_in(ft.settings.home, ft.store, by=ft.settings.made_by)
    keys.revoke(ft.store, name, by=ft.settings.made_by)
