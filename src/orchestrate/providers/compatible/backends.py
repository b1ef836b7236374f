"""`Provider` classes of hosts that are described by YAML files. A class is created when it is first looked
up: `backends.azure` is the class for `azure.yaml`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import date
from decimal import Decimal
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, cast

from orchestrate import description
from orchestrate.catalog import ModelOnHost
from orchestrate.core import days
from orchestrate.core.files import own_folder
from orchestrate.description import Described
from orchestrate.errors import ConfigError, MissingKey, SpecError, UsageError
from orchestrate.profile import Readable, described, profile
from orchestrate.providers import base as provider_base
from orchestrate.providers import files, offline
from orchestrate.providers.base import (
    FEATURES,
    Deploys,
    Downloads,
    KeepsCheckpoints,
    Progress,
    Provider,
    Serves,
    TakesAdapters,
    capability,
)
from orchestrate.providers.calls import integer, plain, rows, suffix_tag, table, text
from orchestrate.providers.calls.clients import connect
from orchestrate.providers.calls.hosted import Wire
from orchestrate.providers.compatible.deployments import Deploying, DescribedAdapters
from orchestrate.providers.compatible.sdk import (
    SdkCancels,
    SdkChats,
    SdkCheckpoints,
    SdkDeletes,
    SdkMeasures,
    SdkPauses,
    SdkProvider,
    SdkResumes,
)
from orchestrate.providers.compatible.translation import translate
from orchestrate.providers.files import DownloadStream
from orchestrate.providers.registry import no_address
from orchestrate.settings.config import HostConfig
from orchestrate.spec import JobSpec
from orchestrate.types import (
    ADAPTER_JOB,
    Account,
    Artifact,
    BilledResource,
    Billing,
    Endpoint,
    Feature,
    Job,
    JobHandle,
    JobStatus,
    Problem,
    RemoteDataset,
    Severity,
    Translation,
)

if TYPE_CHECKING:
    from openai import OpenAI

    from orchestrate.data import TrainingData

# Checks for everything that the host would reject, run before anything is sent.


def check_settings(
    provider: Provider,
    spec: JobSpec,
    data: TrainingData,
    translation: Translation,
    *,
    today: date | None = None,
) -> list[Problem]:
    found = offline.problems(provider, spec, data, translation)
    return found + list(_model(provider, spec, provider.resolve(spec), today or days.today()))


def _model(provider: Provider, spec: JobSpec, model: ModelOnHost, today: date) -> Iterator[Problem]:
    def problem(code: str, message: str, fix: str | None, severity: Severity = Severity.ERROR) -> Problem:
        place = "method" if code == "method-not-offered" else "model"
        return Problem(
            code=code, message=message, severity=severity, providers=(provider.name,), fix=fix, field=place
        )

    for warning in model.warnings:
        yield problem("model", warning, None, Severity.WARNING)
    if model.host is None:
        return
    others = "to compare the other backends: orchestrate quote --provider all"
    until, method = model.host.no_new_jobs_after, spec.method.type
    if until is not None and today >= until and not provider.config.sandbox:
        message = f"{provider.profile.title} has not accepted new jobs for {model.name} since {until}"
        yield problem("model-closed", message, others)
    elif model.host.tunable == "no":
        yield problem(
            "model-closed", f"{provider.profile.title} accepts no new jobs for {model.name}", others
        )
    elif model.host.methods and method not in model.host.methods:
        offered = ", ".join(model.host.methods)
        message = f"{provider.profile.title} trains {model.name} with {offered}, not {method}"
        yield problem("method-not-offered", message, "change the method or the model")


# Any host that implements OpenAI's fine-tuning API and is described by a YAML file.


class CompatibleProvider(SdkProvider, Serves):
    """Base class of the compatible hosts. `_made` combines this class with the capabilities in a host's
    description."""

    described: ClassVar[Described]

    def __init__(self, config: HostConfig, *, wire: Wire | None = None) -> None:
        if config.base_url is None:
            raise no_address(config.name, config.kind)
        if self.described.files.whole_bytes is not None:
            options = {"multipart_bytes": self.described.files.whole_bytes, **config.options}
            config = replace(config, options=options)
        super().__init__(config, wire=wire)
        how = self.described.deployment
        self._deploying = Deploying(self.described, how, self.config, self._wire) if how else None

    def connect(self) -> OpenAI:
        return connect(self.config, key_header=self.described.key_header)

    def close(self) -> None:
        super().close()
        if self._deploying is not None:
            self._deploying.close()

    # -- offline -------------------------------------------------------------------------------------------

    def resolve(self, spec: JobSpec) -> ModelOnHost:
        found = super().resolve(spec)
        if found.folder is not None:
            raise SpecError(
                f"{found.id} is a folder on this machine, but {self.profile.title} only trains models "
                "from its own list",
                fix=f"orchestrate models --provider {self.name}",
            )
        return found

    def translate(self, spec: JobSpec) -> Translation:
        version = self.config.options.get("api_version")
        return translate(self.described, self.name, spec, self.resolve(spec), version)

    def check(self, spec: JobSpec, data: TrainingData, translation: Translation) -> list[Problem]:
        return check_settings(self, spec, data, translation)

    # -- the account -----------------------------------------------------------------------------------------

    def _query_account(self) -> Account | None:
        """Return the account by the address if each customer has their own. None of these hosts reports the
        owner of a key."""
        return (
            Account(id=f"resource {self.host}", reported=True)
            if self.described.account == "address"
            else None
        )

    # -- submitting ----------------------------------------------------------------------------------------

    def tag(self, spec: JobSpec, ref: str) -> dict[str, Any]:
        if self.described.ref == "metadata":
            return super().tag(spec, ref)
        return {"suffix": suffix_tag(spec.suffix, ref, self.described.suffix.most)}

    def wanted(self, ref: str) -> dict[str, Any]:
        return super().wanted(ref) if self.described.ref == "metadata" else {}

    def sent(self, body: dict[str, Any]) -> dict[str, Any]:
        """Add the W&B key to the request. Translations never contain the key."""
        if self.described.wandb_in_request:
            for entry in rows(body.get("integrations")):
                table(entry.get("wandb"))["api_key"] = offline.wandb_key(self.config)
        return body

    def create(self, spec: JobSpec, remote: RemoteDataset, translation: Translation, ref: str) -> JobHandle:
        if spec.wandb is not None and self.described.wandb_in_request:
            offline.wandb_key(self.config)  # before anything is sent
        return super().create(spec, remote, translation, ref)

    # -- reading -------------------------------------------------------------------------------------------

    def billing(self) -> Billing:
        if self._deploying is None:
            unseen = "deployments of tuned models, which the API cannot list"
            return provider_base.of_jobs(self, unseen)
        deploying = self._deploying
        parts = {
            "jobs": lambda: provider_base.jobs(self),
            "deployments": lambda: list(deploying.billing_items()),
        }
        try:
            return provider_base.joined(self, parts)
        except (MissingKey, UsageError) as error:
            note = f"deployments of {self.profile.title}: {error.message} ({error.fix})"
            found = provider_base.of_jobs(self)
            return Billing(items=found.items, partial=True, unseen=(note,))

    # -- the tuned model -----------------------------------------------------------------------------------

    def endpoint(self, job: JobHandle) -> Endpoint | None:
        if self._deploying is not None:
            return self._deploying.find(job.job_id)
        tuned = self._answering(self.get(job))
        if tuned is None:
            return None
        return Endpoint(
            provider=self.name, id=tuned, model=tuned, state="serverless", base_url=self.config.base_url
        )

    def get(self, job: JobHandle) -> Job:
        """Return a job. An uploaded adapter is returned as a succeeded job."""
        if job.kind != ADAPTER_JOB:
            return super().get(job)
        up = self._found(job)
        return Job(handle=job, status=JobStatus.SUCCEEDED, raw_status=up.state, tuned_model=up.model)

    def _found(self, job: JobHandle) -> Endpoint:
        """Find an uploaded adapter. Raises `UsageError` if it is not published."""
        found = self._deploying.find(job.job_id) if self._deploying else None
        if found is None:
            raise UsageError(
                f"{self.profile.title} has no adapter {job.job_id}", fix="orchestrate deploy RUN --to ..."
            )
        return found

    def _answering(self, job: Job) -> str | None:
        """Return the configured deployment, else that of the job: by its name, or by its name in the
        host's list."""
        configured = super()._answering(job)
        how = self.described.deployment
        deploying = self._deploying
        if how is None or deploying is None or self.config.options.get("deployment"):
            return configured
        if how.answers_as == "name":
            return deploying.name(job.handle.job_id)
        found = deploying.find(job.handle.job_id)
        return found.model if found is not None else None

    def _base(self, job: Job) -> str | None:
        """Return the base model's name, or its deployment if every model needs one."""
        how = self.described.deployment
        if how is None or how.answers_as != "name":
            return job.model
        if deployed := self.config.options.get("base_deployment"):
            return str(deployed)
        raise UsageError(
            f"{self.profile.title} serves models only through deployments, and no deployment of the base "
            f"model {job.model} is configured",
            fix=f'[hosts.{self.name}.options] base_deployment = "..."   in orchestrate.toml',
        )


# -- optional features of a description ----------------------------------------------------------------------


class DescribedDownloads(CompatibleProvider, Downloads):
    def download(
        self, job: JobHandle, dest: Path, *, checkpoint: str | None = None, progress: Progress | None = None
    ) -> Artifact:
        """Download the checkpoint file by file. Complete files are not fetched again."""
        files.require_empty(dest)
        base = self.get(job).model
        name, ids = self._weights_of(job, checkpoint)

        def bring(folder: Path, most: int) -> None:
            _fetch(self.client, self._wire, ids, folder, most, progress)

        return self._downloaded(job, dest, name, base, bring)

    def _weights_of(self, job: JobHandle, checkpoint: str | None) -> tuple[str, list[str]]:
        """Return a checkpoint's id and the ids of its files, by default of the last checkpoint."""
        source = self.client.fine_tuning.jobs.checkpoints
        pages = self._wire.pages(lambda: source.list(job.job_id, limit=self.most_listed))
        found = sorted((plain(c) for page in pages for c in page.data), key=_step)
        chosen = [c for c in found if checkpoint in (None, c.get("id"))]
        if not chosen:
            raise UsageError(
                f"job {job.job_id} has no checkpoint {checkpoint or 'yet'}", fix="orchestrate checkpoints RUN"
            )
        ids = [str(id) for id in cast("list[Any]", chosen[-1].get("result_files") or [])]
        return str(chosen[-1].get("id")), ids


class DescribedDeploys(CompatibleProvider, Deploys):
    @property
    def _deployer(self) -> Deploying:
        if self._deploying is None:
            raise AssertionError("the host's description has no deployment table")
        return self._deploying

    def deployment_price(self, job: JobHandle, *, options: Mapping[str, Any] | None = None) -> Decimal | None:
        return self._deployer.price(options)

    def deploy(self, job: JobHandle, *, options: Mapping[str, Any] | None = None) -> Endpoint:
        """Deploy the tuned model. For `options`, see `deploying.DeployOptions`."""
        if job.kind == ADAPTER_JOB:
            return self._found(job)
        return self._deployer.deploy(self.get(job), options, lambda: self._last_checkpoint(job))

    def undeploy(self, job: JobHandle) -> None:
        self._deployer.remove(job.job_id)

    def deployments(self) -> Iterator[BilledResource]:
        return self._deployer.billing_items()

    def _last_checkpoint(self, job: JobHandle) -> str:
        found = capability(self, KeepsCheckpoints).checkpoints(job)
        if not found:
            raise UsageError(f"job {job.job_id} has no checkpoint to deploy")
        return found[-1].id


class DescribedTakesAdapters(DescribedDeploys, TakesAdapters):
    def adapters(self) -> DescribedAdapters:
        how = self.described.deployment
        if how is None or how.adapters is None:
            raise AssertionError("the host's description does not support uploaded adapters")
        bases = {model.id for model in self.described.models.values()}
        return DescribedAdapters(self.profile, how.adapters, self._deployer, bases)


PARTS: Mapping[Feature, type[CompatibleProvider | SdkProvider]] = {
    Feature.METRICS: SdkMeasures,
    Feature.CHECKPOINTS: SdkCheckpoints,
    Feature.CANCEL: SdkCancels,
    Feature.PAUSE: SdkPauses,
    Feature.RESUME: SdkResumes,
    Feature.DELETE: SdkDeletes,
    Feature.CHAT: SdkChats,
    Feature.DOWNLOAD: DescribedDownloads,
    Feature.DEPLOY: DescribedDeploys,
}


def parts_of(described: Described, features: frozenset[Feature], name: str) -> tuple[type[Provider], ...]:
    """Return the base classes for a host with these features. Raises `ConfigError` for a feature that hosts
    described by YAML files cannot have."""
    for feature in sorted(features & FEATURES.keys() - PARTS.keys()):
        raise ConfigError(
            f"{name}: features: YAML descriptions do not support {feature.value}. List it in `missing`"
        )
    found: list[type[Provider]] = [part for feature, part in PARTS.items() if feature in features]
    if described.deployment is not None and described.deployment.adapters is not None:
        found.insert(0, DescribedTakesAdapters)
    return (*found, CompatibleProvider)


def _step(checkpoint: Mapping[str, Any]) -> int:
    return integer(checkpoint.get("step_number")) or 0


def features_of(described: Described, name: str) -> tuple[frozenset[Feature], dict[Feature, str]]:
    """Return the supported features, and the reasons for the missing ones. Raises `ConfigError` if a feature
    is not listed exactly once, or if the features contradict the rest of the description."""
    known = {feature.value: feature for feature in Feature}
    for field, words in (("features", described.features), ("missing", tuple(described.missing))):
        if unknown := sorted(set(words) - set(known)):
            raise ConfigError(f"{name}: {field}: unknown feature {unknown[0]}. Known: {', '.join(known)}")
    have, reasons = set(described.features), set(described.missing)
    if wrong := sorted(have & reasons):
        raise ConfigError(f"{name}: {wrong[0]} is listed both in `features` and in `missing`")
    if lacking := sorted(set(known) - have - reasons):
        raise ConfigError(f"{name}: list {lacking[0]} in `features`, or in `missing` with a reason")
    if (Feature.DEPLOY.value in have) != (described.deployment is not None):
        raise ConfigError(f"{name}: the feature `deploy` requires a `deployment` table, and vice versa")
    methods = {word for word in ("sft", "dpo", "rft") if word in have}
    if methods != set(described.methods):
        raise ConfigError(
            f"{name}: methods are {', '.join(described.methods)}, features {', '.join(sorted(methods))}"
        )
    return frozenset(known[word] for word in have), {known[w]: r for w, r in described.missing.items()}


# -- files -------------------------------------------------------------------------------------------------
# Downloads of tuned models from hosts whose checkpoints list the model's files.


def _fetch(
    client: OpenAI, wire: Wire, ids: Sequence[str], folder: Path, most: int, progress: Progress | None
) -> None:
    """Fetch the model's files among these into `folder`, at most `most` bytes in total. Complete files are
    not fetched again."""
    own_folder(folder)
    for id in ids:
        found = plain(wire.read(partial(client.files.retrieve, id)))
        name = PurePosixPath(text(found.get("filename")) or id).name
        if not files.wanted(name):
            continue
        file = folder / name
        if not file.exists():
            files.fetch(wire, partial(_opened, client, id), file, limit_bytes=most, progress=progress)
        most -= file.stat().st_size


def _opened(client: OpenAI, id: str, headers: dict[str, str]) -> AbstractContextManager[DownloadStream]:
    content: Any = client.files.with_streaming_response.content(id, extra_headers=headers)
    return cast("AbstractContextManager[DownloadStream]", content)


def __getattr__(kind: str) -> type[CompatibleProvider]:
    entry = described().get(kind)
    if entry is None:
        raise AttributeError(kind)
    return _made(kind, *entry)


@cache
def _made(kind: str, file: Readable, name: str) -> type[CompatibleProvider]:
    """Build the host from its description. Raises `ConfigError` that names file and field."""
    described = description.read(file, name)
    features, missing = features_of(described, name)
    own = {
        "__doc__": f"{described.title}, as {name} describes it.",
        "profile": profile(kind),
        "described": described,
        "features": features,
        "missing": missing,
        "ready_files": frozenset(described.files.ready),
        "refused_files": frozenset(described.files.refused),
        "most_listed": described.page,
    }
    made = type(CompatibleProvider.__name__, parts_of(described, features, name), own)
    return cast("type[CompatibleProvider]", made)
