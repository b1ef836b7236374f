"""Operations on tuned models: export, merge, and verification against the trained weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrate import text
from orchestrate.catalog.models import lookup
from orchestrate.core.files import private_folder, whole, write_whole
from orchestrate.core.underway import work
from orchestrate.errors import SetupError, UsageError
from orchestrate.local.model.files import config_of, local_folder
from orchestrate.local.weights import ask
from orchestrate.profile import HUB_ID
from orchestrate.providers.base import Chats, Deploys, Downloads, KeepsFingerprint, capability
from orchestrate.providers.files import required_base
from orchestrate.runs.hosting.deployment import require_open, used
from orchestrate.serving import agreements, combination
from orchestrate.serving.export import forms
from orchestrate.serving.export.folder import scratch_beside
from orchestrate.serving.export.forms import WeightOptions
from orchestrate.serving.proof.folder import FolderPlace
from orchestrate.serving.proof.host import HostPlace
from orchestrate.serving.proof.url import UrlPlace
from orchestrate.serving.proof.verify import verify as judge
from orchestrate.serving.tuned import TunedModel, hub_name
from orchestrate.settings import secret, user_and_machine
from orchestrate.types import Adapter, Export, Fingerprint, Merged, Proof

if TYPE_CHECKING:
    from orchestrate.runs.tracked import TrackedRun
    from orchestrate.workspace import Workspace


Subject = "TrackedRun | Path"
"""A successful run, or a folder that contains an adapter or model and its provenance file
(`passport.json`)."""


def of(ws: Workspace, subject: TrackedRun | Path) -> TunedModel:
    """Return the tuned model on this machine, downloading a run's model if needed. Download errors propagate
    (see `RunHandle.download`). Raises `UsageError` for a folder that does not name its base model."""
    if isinstance(subject, Path):
        return _of_folder(subject)
    artifact = subject.download()
    required_base(artifact)
    return TunedModel.of(subject.record, artifact, ws.store.history.evaluations(subject.id))


def key_of(subject: TrackedRun | Path) -> str:
    """Return the id under which proofs are stored: the run's id, or a hash of the folder's weights."""
    if isinstance(subject, Path):
        return f"weights-{(forms.weights_hash(subject) or 'none')[:16]}"
    return subject.id


def _of_folder(folder: Path) -> TunedModel:
    folder = folder.expanduser().resolve()
    if not list(folder.glob("*.safetensors")):
        raise UsageError(f"{folder} contains no safetensors weights")
    bare = TunedModel(
        folder.name, folder, "", "adapter" if (folder / "adapter_config.json").is_file() else "full"
    )
    given: Any = bare.provenance.get("base_model")
    if not given and bare.adapter:
        given = bare.config.get("base_model_name_or_path")
    if not given:
        raise UsageError(
            f"{folder} does not name its base model", fix="add a passport.json file that sets base_model"
        )
    base = hub_name(str(given))
    if not (local_folder(base) or HUB_ID.match(base) or lookup(base)):
        raise UsageError(
            f"{folder} names {base} as its base model, which is neither a folder nor a Hugging Face Hub id",
            fix="add a passport.json file that sets base_model to the Hub id or folder of that model",
        )
    return replace(bare, base=base)


def fingerprint_of(ws: Workspace, subject: TrackedRun | Path, tuned: TunedModel | None = None) -> Fingerprint:
    """Return the model's fingerprint, which is stored at the end of training or computed once from the
    model's files."""
    file = private_folder(ws.settings.home / "proofs") / f"{key_of(subject)}.json"
    with suppress(OSError, msgspec.MsgspecError):
        return Fingerprint.from_json(file.read_bytes())
    found = None if isinstance(subject, Path) else _stored_fingerprint(subject)
    if found is None:
        spec = {} if isinstance(subject, Path) else subject.record.spec
        found = _found(spec, tuned or of(ws, subject))
    write_whole(file, found.to_json(), private=True)
    return found


def can_be_known(ws: Workspace, run: TrackedRun) -> bool:
    """Return True if a run's model has a fingerprint, or if this machine can compute one. May download the
    run's adapter to find out, but never a full model."""
    file = ws.settings.home / "proofs" / f"{run.id}.json"
    if file.is_file() or _stored_fingerprint(run) is not None:
        return True
    adapter: dict[str, Any] = run.record.spec.get("adapter") or {}
    if adapter.get("type") == "full" or not isinstance(run.provider, Downloads):
        return False
    return config_of(of(ws, run).base) is not None


def _stored_fingerprint(run: TrackedRun) -> Fingerprint | None:
    provider = run.provider
    return provider.fingerprint(run.record.handle) if isinstance(provider, KeepsFingerprint) else None


def _found(spec: Mapping[str, Any], tuned: TunedModel) -> Fingerprint:
    data = [str(Path(str(f)).expanduser()) for f in (spec.get("validation"), spec.get("train")) if f]
    more: dict[str, Any] = {"data": data, "four_bit": tuned.four_bit}
    return Fingerprint.from_dict(ask("fingerprint", base=tuned.base, tuned=str(tuned.folder), **more))


def adapter_of(ws: Workspace, run: TrackedRun) -> Adapter:
    """Return a run's adapter on this machine in the format that hosts accept: PEFT's two files, which refer
    to the base model by its public name. Raises `UsageError` for a fully fine-tuned model and for adapters
    that are not plain LoRA."""
    tuned = TunedModel.of(run.record, run.download(), ())
    config = tuned.config
    more = [name for name in ("modules_to_save", "use_dora", "trainable_token_indices") if config.get(name)]
    if more:
        raise UsageError(
            f"{run.id} is not a plain LoRA adapter: its config sets {', '.join(more)}, which hosts "
            "ignore or reject",
            fix=f"serve it on your own machine with: orchestrate export {run.id} DIR --to merged",
        )
    tuned.require_readable()
    known = lookup(tuned.base) or lookup(run.record.model)
    base = known.name if known is not None else tuned.base_name
    weights = forms.weights_hash(tuned.folder) or ""
    id = f"orc-{weights[:24]}"
    folder = private_folder(ws.settings.home / "uploads" / id)
    target = folder / forms.CONFIGS[1]
    if not target.exists():
        with whole(target) as draft:
            shutil.copyfile(tuned.folder / forms.CONFIGS[1], draft)
    named = {
        **config,
        "base_model_name_or_path": known.hub or known.name if known else base,
        "inference_mode": True,
    }
    write_whole(folder / forms.CONFIGS[0], msgspec.json.format(msgspec.json.encode(named), indent=2))
    targets = config.get("target_modules") or ()
    return Adapter(
        id=id,
        folder=str(folder),
        base=base,
        rank=tuned.rank,
        targets=() if isinstance(targets, str) else tuple(sorted(targets)),
    )


def agree(ws: Workspace, tuned: TunedModel, accepted: Sequence[str]) -> None:
    """Raise `LicenseNotAccepted` if the base model's license requires acceptance and has not been accepted.
    `accepted` lists the licenses that the user accepts now."""
    agreements.require(
        tuned.license,
        tuned.base_name,
        ws.settings.home,
        accepted,
        ws.settings.made_by or user_and_machine(),
    )


def export(
    ws: Workspace,
    subject: TrackedRun | Path,
    form: str,
    folder: Path,
    *,
    options: WeightOptions | None = None,
    accept_license: Sequence[str] = (),
    prove: bool = True,
    on_message: Callable[[str], None] = lambda _: None,
) -> Export:
    """Write the tuned model to `folder` in one of the formats in `forms.FORMS`. With `prove`, then verify
    that the result matches the trained model, if this machine can load it. Raises `LicenseNotAccepted` if the
    base model's license must be accepted first, `UsageError` for a format that the model cannot be converted
    to, and `SetupError` if a tool is missing."""
    tuned = of(ws, subject)
    agree(ws, tuned, accept_license)
    with work(f"writing it as {form}"):
        made = forms.export(tuned, form, folder, options)
    on_message(f"written to {made.folder}")
    if not prove:
        return made
    try:
        with _laid_on(tuned, made, options or WeightOptions()) as base:
            proof = verify(ws, subject, made.folder, EndpointNames(base_gguf=base), tuned=tuned)
        return msgspec.structs.replace(made, proof=proof)
    except SetupError as error:
        return msgspec.structs.replace(made, notes=(*made.notes, f"not verified here: {error} ({error.fix})"))


@contextmanager
def _laid_on(tuned: TunedModel, made: Export, options: WeightOptions) -> Generator[Path | None]:
    """Provide the base model as a GGUF file while an adapter in GGUF is verified on it."""
    if made.form != "gguf-lora":
        yield None
        return
    with scratch_beside(Path(made.folder)) as folder:
        yield forms.base_gguf(tuned, folder / "base.gguf", options)


@dataclass(frozen=True, kw_only=True)
class EndpointNames:
    """Options for querying a served model. `model` and `base` are the names of the tuned and the base model
    at a URL."""

    model: str | None = None
    base: str | None = None
    key_variable: str | None = None
    """Environment variable that contains the key for the URL."""
    key: str | None = None
    base_gguf: Path | None = None
    """GGUF file of the base model. Needed to verify an adapter in GGUF format."""


def verify(
    ws: Workspace,
    subject: TrackedRun | Path,
    at: str | None = None,
    asking: EndpointNames | None = None,
    *,
    tuned: TunedModel | None = None,
) -> Proof:
    """Verify that the model served at `at` is the trained one. `at` is a URL, a folder, or a backend that
    serves the model (by default the run's own). Stores every result. Raises a `ProviderError` if the model
    cannot be queried."""
    asking = asking or EndpointNames()
    name = subject.name if isinstance(subject, Path) else str(subject.record.spec.get("suffix") or subject.id)
    if at is not None and at.startswith(("http://", "https://")):
        known = fingerprint_of(ws, subject, tuned)
        place = UrlPlace(at, model=asking.model or name, base=asking.base, key=_key(asking))
        try:
            return _kept(ws, judge(known, place, run_id=key_of(subject)))
        finally:
            place.close()
    if not isinstance(subject, Path) and (at is None or at == subject.record.provider):
        subject.check()
        _require_answering(subject)
        place = HostPlace(
            capability(subject.provider, Chats),
            subject.record.handle,
            subject.record.tuned_model or subject.id,
        )
        used(ws, subject.id)
        return _kept(ws, judge(fingerprint_of(ws, subject, tuned), place, run_id=subject.id))
    if not isinstance(subject, Path) and at in {one.record.provider for one in subject.deployments()}:
        deployment = require_open(ws, subject.id, at)
        place = HostPlace(
            capability(ws.provider(at), Chats), deployment.handle, deployment.model or subject.id
        )
        used(ws, subject.id, at)
        return _kept(ws, judge(fingerprint_of(ws, subject, tuned), place, run_id=subject.id))
    if at is None:
        raise UsageError("choose where the model is served", fix="pass --at with a URL or a folder")
    folder = Path(at).expanduser().resolve()
    if not folder.exists():
        raise UsageError(f"{at} must be a URL, a folder or the run's backend")
    tuned = tuned or of(ws, subject)
    known = fingerprint_of(ws, subject, tuned)
    place = FolderPlace(folder, known, tuned.base, model=tuned.name, base_gguf=asking.base_gguf)
    weights = forms.weights_hash(tuned.folder)
    return _kept(ws, judge(known, place, run_id=key_of(subject), weights=weights))


def _key(asking: EndpointNames) -> str | None:
    found = secret(asking.key_variable, asking.key_variable) if asking.key_variable else None
    return found.reveal() if found else asking.key


def _require_answering(run: TrackedRun) -> None:
    provider = capability(run.provider, Chats)
    if isinstance(provider, Deploys) and provider.endpoint(run.record.handle) is None:
        raise UsageError(
            f"{provider.name} has no running endpoint for this model",
            fix=f"orchestrate deploy {run.id}   (billed hourly), or pass a URL or folder with --at",
        )


def _kept(ws: Workspace, proof: Proof) -> Proof:
    ws.store.history.add_record(proof.run_id, "proof", proof)
    return proof


def merge(
    ws: Workspace,
    parts: Sequence[TrackedRun | Path],
    folder: Path,
    *,
    method: str | None = None,
    weights: Sequence[float] | None = None,
    density: float | None = None,
    rank: int | None = None,
    accept_license: Sequence[str] = (),
) -> Merged:
    """Merge several adapters of one base model into a folder, with PEFT's methods and a provenance file. Then
    load and verify the result. All adapters have equal weight unless `weights` is set."""
    tuned = [of(ws, part) for part in parts]
    for one in tuned:
        agree(ws, one, accept_license)
    names = [key_of(p) for p in parts]
    with work(f"merging {text.count(len(tuned), 'adapter' if tuned[0].adapter else 'model')}"):
        made = combination.combine(
            tuned, names, folder, method=method, weights=weights, density=density, rank=rank
        )
    made = msgspec.structs.replace(made, proof=verify(ws, Path(made.folder), made.folder))
    for run_id in {part.id for part in parts if not isinstance(part, Path)}:
        ws.store.history.add_record(run_id, "merge", made)
    return made


def merges(ws: Workspace, run_id: str) -> list[Merged]:
    """Return the merges that include a run, oldest first."""
    return [Merged.from_dict(r.data) for r in ws.store.history.records("merge", [run_id])]
