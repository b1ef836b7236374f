"""What is done with tuned models: exported, merged into one, and proved to be what was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrate.errors import SetupError, UsageError
from orchestrate.files import private_folder, write_whole
from orchestrate.keys import secret, user_and_machine
from orchestrate.local.weights.asking import ask
from orchestrate.serving import agreements, combining
from orchestrate.serving.export import forms
from orchestrate.serving.export.forms import Options
from orchestrate.serving.proof.folder import FolderPlace
from orchestrate.serving.proof.host import HostPlace
from orchestrate.serving.proof.url import UrlPlace
from orchestrate.serving.proof.verify import verify as judge
from orchestrate.serving.tuned import Tuned
from orchestrate.types import Export, Feature, Merged, Proof, Sheet

if TYPE_CHECKING:
    from orchestrate.handle import Home, RunHandle


Subject = "RunHandle | Path"
"""A run that succeeded, or a folder with an adapter or a model that has a passport."""


def of(home: Home, subject: RunHandle | Path) -> Tuned:
    """The tuned model on this machine, downloaded where it is a run's and not here yet. Raises what
    `RunHandle.download` does, and `UsageError` for a folder that does not say its base."""
    if isinstance(subject, Path):
        return _of_folder(subject)
    artifact = subject.download()
    return Tuned.of(subject.record, artifact, home.store.history.evaluations(subject.id))


def key_of(subject: RunHandle | Path) -> str:
    """Under which proofs are kept: the run's id, or the hash of the folder's weights."""
    if isinstance(subject, Path):
        return f"weights-{(forms.weights_hash(subject) or 'none')[:16]}"
    return subject.id


def _of_folder(folder: Path) -> Tuned:
    folder = folder.expanduser().resolve()
    if not list(folder.glob("*.safetensors")):
        raise UsageError(f"{folder} holds no safetensors weights")
    bare = Tuned(folder.name, folder, "", "adapter" if (folder / "adapter_config.json").is_file() else "full")
    given: Any = bare.passport.get("base_model")
    if not given and bare.adapter:
        given = bare.config.get("base_model_name_or_path")
    if not given:
        raise UsageError(
            f"{folder} does not say which base it belongs to", fix="a passport.json with base_model"
        )
    return replace(bare, base=str(given))


def sheet(home: Home, subject: RunHandle | Path, tuned: Tuned | None = None) -> Sheet:
    """By what the model is known: kept at the end of its training, or found once from its files."""
    file = private_folder(home.settings.home / "proofs") / f"{key_of(subject)}.json"
    with suppress(OSError, msgspec.MsgspecError):
        return Sheet.from_json(file.read_bytes())
    found = None if isinstance(subject, Path) else subject.provider.sheet(subject.record.handle)
    if found is None:
        spec = {} if isinstance(subject, Path) else subject.record.spec
        found = _found(spec, tuned or of(home, subject))
    write_whole(file, found.to_json(), private=True)
    return found


def _found(spec: Mapping[str, Any], tuned: Tuned) -> Sheet:
    adapter: dict[str, Any] = tuned.passport.get("adapter") or {}
    data = [str(Path(str(f)).expanduser()) for f in (spec.get("validation"), spec.get("train")) if f]
    four_bit = adapter.get("type") == "qlora"
    return Sheet.from_dict(
        ask("sheet", base=tuned.base, tuned=str(tuned.folder), data=data, four_bit=four_bit)
    )


def agree(home: Home, tuned: Tuned, accepted: Sequence[str]) -> None:
    """Raises `LicenceAsks` where the base's licence asks for something that nobody has agreed to."""
    agreements.require(
        tuned.licence,
        tuned.base_name,
        home.settings.home,
        accepted,
        home.settings.made_by or user_and_machine(),
    )


def export(
    home: Home,
    subject: RunHandle | Path,
    form: str,
    folder: Path,
    *,
    options: Options | None = None,
    accept_licence: Sequence[str] = (),
    prove: bool = True,
    tell: Callable[[str], None] = lambda _: None,
) -> Export:
    """Writes the tuned model to `folder` in one of `forms.FORMS`, and then loads it from there and proves
    that it is what was trained, where this machine can.

    Raises `LicenceAsks`, `UsageError` for a form that the model cannot take, `SetupError` where a tool is
    missing.
    """
    tuned = of(home, subject)
    agree(home, tuned, accept_licence)
    made = forms.export(tuned, form, folder, options)
    tell(f"written to {made.folder}")
    if not prove:
        return made
    if form == "gguf-lora":
        note = "not proved here: lay it on its base as GGUF and  orchestrate verify --base-gguf FILE"
        return msgspec.structs.replace(made, notes=(*made.notes, note))
    try:
        return msgspec.structs.replace(made, proof=verify(home, subject, made.folder, tuned=tuned))
    except SetupError as error:
        return msgspec.structs.replace(made, notes=(*made.notes, f"not proved here: {error} ({error.fix})"))


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a place is asked. `model`, `base`: the names under which they answer at a URL."""

    model: str | None = None
    base: str | None = None
    key_variable: str | None = None
    """With the key for a URL."""
    key: str | None = None
    base_gguf: Path | None = None
    """On which an adapter in GGUF is laid."""


def verify(
    home: Home,
    subject: RunHandle | Path,
    at: str | None = None,
    asking: Asking | None = None,
    *,
    tuned: Tuned | None = None,
) -> Proof:
    """Whether what answers at a URL, in a folder, or (`None`, or the backend's name) at the run's backend is
    what was trained. Kept in the store, whatever it says. Raises a `ProviderError` where nothing can be
    asked."""
    asking = asking or Asking()
    name = subject.name if isinstance(subject, Path) else _name(subject)
    if at is not None and at.startswith(("http://", "https://")):
        known = sheet(home, subject, tuned)
        place = UrlPlace(at, model=asking.model or name, base=asking.base, key=_key(asking))
        try:
            return _kept(home, judge(known, place, run_id=key_of(subject)))
        finally:
            place.close()
    if not isinstance(subject, Path) and (at is None or at == subject.record.provider):
        _require_answering(subject)
        place = HostPlace(subject.provider, subject.record)
        return _kept(home, judge(sheet(home, subject, tuned), place, run_id=subject.id))
    if at is None:
        raise UsageError("say where it is served", fix="--at URL , or a folder")
    folder = Path(at).expanduser().resolve()
    if not folder.exists():
        raise UsageError(f"{at} is no URL, no folder and not the run's backend")
    tuned = tuned or of(home, subject)
    known = sheet(home, subject, tuned)
    place = FolderPlace(folder, known, tuned.base, model=tuned.name, base_gguf=asking.base_gguf)
    weights = forms.weights_hash(tuned.folder)
    return _kept(home, judge(known, place, run_id=key_of(subject), weights=weights))


def _key(asking: Asking) -> str | None:
    found = secret(asking.key_variable, asking.key_variable) if asking.key_variable else None
    return found.reveal() if found else asking.key


def _name(run: RunHandle) -> str:
    return str(run.record.spec.get("suffix") or run.id)


def _require_answering(run: RunHandle) -> None:
    run.provider.require(Feature.CHAT)
    if Feature.DEPLOY in run.provider.features and run.provider.endpoint(run.record.handle) is None:
        raise UsageError(
            f"{run.provider.name} has no endpoint up for this model",
            fix=f"orchestrate deploy {run.id}   (bills), or name a URL or a folder: --at",
        )


def _kept(home: Home, proof: Proof) -> Proof:
    home.store.history.add_record(proof.run_id, "proof", proof)
    return proof


def proofs(home: Home, *run_ids: str) -> list[Proof]:
    """Oldest first; of all runs when none are named."""
    return [Proof.from_dict(r.data) for r in home.store.history.records("proof", run_ids or None)]


def merge(
    home: Home,
    parts: Sequence[RunHandle | Path],
    folder: Path,
    *,
    method: str = "svd",
    weights: Sequence[float] | None = None,
    density: float | None = None,
    rank: int | None = None,
    accept_licence: Sequence[str] = (),
) -> Merged:
    """One adapter of several of one base, by PEFT's methods, in a folder with a passport of its own; it is
    then loaded from there and proved. Each weighs the same unless `weights` says otherwise.

    Raises `UsageError` for other bases, whole models, or what PEFT cannot merge.
    """
    tuned = [of(home, part) for part in parts]
    for one in tuned:
        agree(home, one, accept_licence)
    made = combining.combine(
        tuned, [key_of(p) for p in parts], folder, method=method, weights=weights, density=density, rank=rank
    )
    subject = Path(made.folder)
    return msgspec.structs.replace(made, proof=verify(home, subject, made.folder))
