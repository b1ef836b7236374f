"""Planning of a job before it starts: settings, rows, memory, time and price."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrate import costing
from orchestrate.core.files import new_folder, remember_sha256, sha256, sha256_once, whole
from orchestrate.errors import ArtifactRefused, NotFound
from orchestrate.local import machine
from orchestrate.local.job import Method
from orchestrate.local.plan import memory_fit, throughput
from orchestrate.local.plan.throughput import ThroughputKey
from orchestrate.local.run import RunDir, checkpoints
from orchestrate.providers import offline
from orchestrate.providers.base import PlansTraining, Progress, prices_of
from orchestrate.providers.local import checks
from orchestrate.providers.local.translation import translate
from orchestrate.types import ArtifactFile, MemoryPlan, Problem, Quote, Translation, decoding

if TYPE_CHECKING:
    from orchestrate.costing import RateBook
    from orchestrate.data import TrainingData
    from orchestrate.spec import JobSpec

# Weights on this machine: finding a run's weights, counting parameters and copying files.


def of(run: RunDir, checkpoint: str | None, provider: str) -> Path:
    """Return the folder that contains the tuned model's weights. If `checkpoint` (a name or step) is given,
    return that checkpoint's folder instead. Raises `NotFound` if the model or checkpoint does not exist."""
    if checkpoint is not None:
        for kept in checkpoints.listed(run.checkpoints):
            if checkpoint in (kept.path.name, str(kept.progress.step)):
                return kept.weights
        raise NotFound(
            provider,
            f"{run.ref} has no checkpoint {checkpoint}",
            fix=f"orchestrate checkpoints {run.ref}",
        )
    state = run.state()
    if state.result is None:
        raise NotFound(
            provider,
            f"{run.ref} has no tuned model: its status is {state.status}",
            fix=f"orchestrate checkpoints {run.ref}",
        )
    return run.path / state.result


def copied(source: Path, dest: Path, progress: Progress | None) -> tuple[ArtifactFile, ...]:
    """Copy the model's files from `source` to `dest`, except those that are already complete. Raises
    `ArtifactRefused` if `source` has no weights or changes during the copy."""
    files = checkpoints.manifest(source)
    if not any(f.path.endswith(".safetensors") for f in files):
        raise ArtifactRefused(f"{source} contains no safetensors weights")
    total, done = sum(f.bytes for f in files), 0
    for file in files:
        _copy(source / file.path, dest / file.path, file)
        done += file.bytes
        if progress is not None:
            progress(done, total)
    return tuple(files)


def parameters(model: str) -> float | None:
    """Estimate the number of parameters from the size of the weights in a model folder, assuming 16 bits per
    weight. Returns `None` if there are no weights."""
    size = sum(p.stat().st_size for p in Path(model).glob("*.safetensors")) if Path(model).is_dir() else 0
    return size / 2 or None


def _copy(source: Path, target: Path, file: ArtifactFile) -> None:
    """Copy one file unless it is already there completely, and check what arrived."""
    if target.is_file() and target.stat().st_size == file.bytes and sha256_once(target) == file.sha256:
        return
    new_folder(target.parent)
    with whole(target) as draft:
        shutil.copyfile(source, draft)
        if sha256(draft) != file.sha256:
            raise ArtifactRefused(f"{source} changed while it was being copied", fix="try again")
    remember_sha256(target, file.sha256)


NO_PRICE = "the hourly price of this machine is unknown"


class PlannedProvider(PlansTraining):
    """Base class of backends that train with Orchestrate's engine. It plans jobs but does not start them."""

    @property
    def home(self) -> Path:
        """Folder for all files of this backend."""
        given = self.config.options.get("home")
        if given is None:
            import platformdirs

            given = platformdirs.user_data_dir("orchestrate")
        return Path(str(given)).expanduser().resolve() / "local"

    def translate(self, spec: JobSpec) -> Translation:
        translation = translate(self._as_local(spec), self.config.options)
        return msgspec.structs.replace(translation, provider=self.name)

    def _as_local(self, spec: JobSpec) -> JobSpec:
        """Rename what the spec says under this instance's name to `local`."""
        kind = self.profile.kind
        if self.name == kind:
            return spec
        options = spec.provider_options
        own = {**options.get(kind, {}), **options.get(self.name, {})}
        return spec.model_copy(
            update={"model": spec.model_for(self.name), "provider_options": {kind: own} if own else {}}
        )

    def memory(self, spec: JobSpec, data: TrainingData, translation: Translation) -> MemoryPlan | None:
        return checks.memory_of_rows(spec, data, translation, self.config.options)

    def check(self, spec: JobSpec, data: TrainingData, translation: Translation) -> list[Problem]:
        spec = self._as_local(spec)
        found = offline.problems(self, spec, data, translation, renders=True)
        if spec.method.type == "rft":
            found = [p for p in found if p.code != "too-long"]  # prompts are left out, not cut
            found += checks.reinforcement_problems(self.name, spec, data)
        if self.profile.near:
            found += checks.to_download(self.name, translation)
        return checks.joined(
            found, checks.problems(self.name, spec, data, translation, self._plan_options(translation))
        )

    def _plan_options(self, translation: Translation) -> Mapping[str, Any]:
        """Return the options of the machine for which memory is planned."""
        del translation
        return self.config.options

    def quote(
        self,
        spec: JobSpec,
        data: TrainingData,
        translation: Translation,
        rates: RateBook,
        *,
        gpu_hours: Decimal | None = None,
    ) -> Quote:
        del gpu_hours  # the time is modelled
        for setting in translation.refused:
            if setting.name in offline.NO_QUOTE:
                return Quote(provider=self.name, model=translation.model, unavailable=setting.rule)
        speed = self.speed(spec, translation)
        spec = self._as_local(spec)
        resolved = self.resolve(spec)
        hourly = self._hourly(translation.body, rates)
        if hourly is None:
            reason = next((row.rule for row in translation.refused if row.rule), NO_PRICE)
            return Quote(provider=self.name, model=translation.model, unavailable=reason)
        return costing.quote_hours_job(
            costing.PlannedJob(self.name, self.profile, spec, data, translation, resolved),
            speed=costing.Speed(
                tokens_per_second=speed.tokens_per_second, source=speed.source, factor=speed.factor
            ),
            hourly=hourly,
            startup_seconds=(speed.besides.low, speed.besides.value, speed.besides.high),
            answers=checks.answers(spec),
        )

    def speed(self, spec: JobSpec, translation: Translation) -> throughput.Throughput:
        """Estimate the training speed, in tokens per second, on the machine that would run the job."""
        kind, body = self._work_kind(spec, translation), translation.body
        return throughput.of_several(self._speed(kind, body), body.get("hyper", {}).get("processes", 1))

    def _work_kind(self, spec: JobSpec, translation: Translation) -> ThroughputKey:
        body, resolved = translation.body, self.resolve(self._as_local(spec))
        return throughput.kind_of(
            parameters=memory_fit.active_parameters(translation.model, resolved.params_b)
            or parameters(translation.model),
            adapter=body["adapter"]["type"],
            method=decoding.convert(body["method"], Method).word,
            precision=body["precision"],
            threads=body.get("threads"),
            device=body.get("device"),
        )

    def _speed(self, kind: ThroughputKey, body: Mapping[str, Any]) -> throughput.Throughput:
        del body
        return throughput.estimate(self.home, kind, load=machine.load())

    def _hourly(self, body: Mapping[str, Any], rates: RateBook) -> costing.HourlyRate | None:
        gpus = machine.gpus() if body.get("device") != "cpu" else ()
        count = body.get("hyper", {}).get("processes", 1) if gpus else 1
        return costing.local_rate(prices_of(self), gpus[0].name if gpus else "cpu", count, book=rates)

    def device(self) -> str:
        found = machine.gpus() if self.config.options.get("device") != "cpu" else ()
        return found[0].name if found else "cpu"
