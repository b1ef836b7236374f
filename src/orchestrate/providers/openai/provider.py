"""Backend for OpenAI and for hosts that the user configured with the older `type = "openai"`, using the
official SDK. Checks and translation work offline. Errors explain when OpenAI ends fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, cast

from orchestrate import catalog
from orchestrate.catalog import HostModel, Model, ModelOnHost
from orchestrate.core import days
from orchestrate.errors import PermissionRefused, TrainingClosed, UsageError
from orchestrate.profile import Profile, this_machine
from orchestrate.providers import base, offline
from orchestrate.providers.base import ListsModels, Provider, Serves
from orchestrate.providers.calls.hosted import headers_of
from orchestrate.providers.compatible import responses
from orchestrate.providers.compatible.sdk import (
    SdkCancels,
    SdkChats,
    SdkCheckpoints,
    SdkDeletes,
    SdkMeasures,
    SdkPauses,
    SdkResumes,
)
from orchestrate.providers.hosted import named_account
from orchestrate.providers.openai import PROFILE
from orchestrate.providers.openai.translation import translate
from orchestrate.providers.settings import UNPAIRED
from orchestrate.spec import RFT, JobSpec
from orchestrate.types import (
    Account,
    Billing,
    Endpoint,
    Feature,
    JobHandle,
    Problem,
    RemoteDataset,
    Severity,
    Translation,
)

if TYPE_CHECKING:
    from orchestrate.data import TrainingData
    from orchestrate.settings.config import HostConfig

# Finds what OpenAI would reject, before anything is sent.


RFT_ROWS = 50_000
RFT_VALIDATION_ROWS = 1_000


def problems_of(
    provider: Provider,
    spec: JobSpec,
    data: TrainingData,
    translation: Translation,
    *,
    today: date | None = None,
) -> list[Problem]:
    """List the problems of a job. For a model without a catalog entry (on a compatible host), only the API's
    rules are checked."""
    name, model = provider.name, provider.resolve(spec)
    found = offline.problems(provider, spec, data, translation)
    found = [p for p in found if p.code != "vision-model-only"]  # decided where the model is known
    found += _model(provider, spec, model, today or days.today())
    if isinstance(spec.method, RFT):
        found += _rft(name, spec.method, data)
    return found


def _problem(
    provider: str, code: str, message: str, fix: str | None, severity: Severity = Severity.ERROR, **place: Any
) -> Problem:
    return Problem(code=code, message=message, severity=severity, providers=(provider,), fix=fix, **place)


def _model(provider: Provider, spec: JobSpec, model: ModelOnHost, today: date) -> Iterator[Problem]:
    for warning in model.warnings:
        yield _problem(provider.name, "model", warning, None, Severity.WARNING, field="model")
    if model.host is None:
        return
    method = spec.method.type
    closed = None if provider.config.sandbox else provider.profile.closed(today)
    if closed:
        yield _problem(provider.name, "training-closed", closed, way_out(model.model, method), field="model")
    elif model.host.tunable == "no":
        message = f"OpenAI accepts no new jobs for {model.name}"
        yield _problem(provider.name, "model-closed", message, way_out(model.model, method), field="model")
    elif method not in model.host.methods:
        message = f"OpenAI trains {model.name} with {', '.join(model.host.methods)}, not {method}"
        yield _problem(
            provider.name, "method-not-offered", message, "change the method or the model", field="method"
        )


def _rft(provider: str, method: RFT, data: TrainingData) -> Iterator[Problem]:
    if data.validation is None:
        yield _problem(
            provider,
            "rft-needs-validation",
            "reinforcement fine-tuning needs a validation file",
            "add  validation: FILE  (to create one: orchestrate data split)",
            field="validation",
        )
    elif data.validation.rows > RFT_VALIDATION_ROWS:
        message = (
            f"there are {data.validation.rows:,} validation rows, but OpenAI accepts "
            f"at most {RFT_VALIDATION_ROWS:,} for RFT"
        )
        yield _problem(provider, "too-many-rows", message, "use fewer", source=data.validation.path)
    if data.train.rows > RFT_ROWS:
        message = f"there are {data.train.rows:,} rows, but OpenAI accepts at most {RFT_ROWS:,} for RFT"
        yield _problem(provider, "too-many-rows", message, "train on fewer rows", source=data.train.path)
    for place, message in grader_errors(method.grader):
        yield _problem(provider, "grader", message, "see OpenAI's graders guide", field=place)


def grader_errors(grader: Mapping[str, Any], place: str = "method.grader") -> Iterator[tuple[str, str]]:
    """Check a grader against the SDK's types, and yield the field and the message of each error.

    The SDK's types allow a single grader inside a `multi` grader. OpenAI's guide shows a map of named
    graders, whose names the formula uses. Both are accepted."""
    from openai.types.graders import (
        LabelModelGraderParam,
        MultiGraderParam,
        PythonGraderParam,
        ScoreModelGraderParam,
        StringCheckGraderParam,
        TextSimilarityGraderParam,
    )
    from pydantic import TypeAdapter, ValidationError

    kinds: dict[str, Any] = {
        "string_check": StringCheckGraderParam,
        "text_similarity": TextSimilarityGraderParam,
        "python": PythonGraderParam,
        "score_model": ScoreModelGraderParam,
        "multi": MultiGraderParam,
    }
    if place != "method.grader":
        kinds = {**kinds, "label_model": LabelModelGraderParam}
        del kinds["multi"]
    kind = kinds.get(str(grader.get("type")))
    if kind is None:
        yield f"{place}.type", f"OpenAI's grader types are {', '.join(kinds)}"
        return
    asked = dict(grader)
    if grader.get("type") == "multi" and isinstance(inner := grader.get("graders"), Mapping):
        named = cast("Mapping[str, Any]", inner)
        named = {"": named} if isinstance(named.get("type"), str) else named
        if not named:
            yield f"{place}.graders", "must contain a grader"
        for name, part in named.items():
            where = f"{place}.graders.{name}".rstrip(".")
            if isinstance(part, Mapping):
                yield from grader_errors(cast("Mapping[str, Any]", part), where)
            else:
                yield where, "a grader must be a mapping"
        asked["graders"] = _ANY_GRADER
    try:
        TypeAdapter(kind).validate_python(asked)
    except ValidationError as error:
        for item in error.errors():
            yield ".".join([place, *map(str, item["loc"])]), item["msg"]


_ANY_GRADER = {"type": "string_check", "name": "any", "input": "", "reference": "", "operation": "eq"}


# -- the end of fine-tuning --------------------------------------------------------------------------------
# Tells the user that OpenAI is ending fine-tuning, and suggests an alternative. The last day for new jobs is
# in the profile. Each base model's shutdown date is in the catalog.


def training_closed(error: TrainingClosed, model: ModelOnHost, method: str) -> TrainingClosed:
    """Build the error for OpenAI's 403 `training_not_available`, with the reason, the dates and the most
    similar open model."""
    text = (
        "OpenAI is winding down fine-tuning and accepts no new jobs from this organization. "
        f"Nothing was created. From {PROFILE.no_new_jobs_after}, OpenAI accepts no new jobs from "
        "any organization"
    )
    if model.host is not None and model.host.shutdown is not None:
        text += f". {model.name} and every model tuned from it will be shut down on {model.host.shutdown}"
    return TrainingClosed(
        error.provider,
        text,
        status=error.status,
        code=error.code,
        request_id=error.request_id,
        fix=way_out(model.model, method),
    )


def way_out(model: Model | None, method: str) -> str:
    """Return the command that trains the most similar open model on another backend, with the same data,
    method and spec."""
    others = catalog.alternatives(model) if model is not None else []
    if not others:
        return "to compare the other backends: orchestrate quote --provider all"
    nearest, here = others[0], this_machine().kind
    places = [name for name in catalog.trained_on(nearest, [method]) if name != PROFILE.kind]
    place = places[0] if places else here
    rest = ", ".join([*places[1:], here] if places else [])
    also = f"   ({nearest.name} is also on: {rest})" if rest else ""
    return f"orchestrate submit --provider {place} --model {nearest.name}{also}"


_HOST_CHOOSES = "OpenAI chooses the adapter settings and does not publish them"


class OpenAIProvider(
    SdkCancels, SdkMeasures, SdkCheckpoints, SdkPauses, SdkResumes, SdkDeletes, SdkChats, ListsModels, Serves
):
    """OpenAI's backend. See `orchestrate.providers.base` for the interface,
    `orchestrate.providers.calls.clients` for a host's options."""

    profile: ClassVar[Profile] = PROFILE
    features: ClassVar[frozenset[Feature]] = frozenset(
        {
            Feature.SFT,
            Feature.DPO,
            Feature.RFT,
            Feature.TOOLS,
            Feature.MESSAGE_WEIGHTS,
            Feature.VISION,
            Feature.CONTINUE_FROM,
            Feature.WANDB,
            Feature.CANCEL,
            Feature.PAUSE,
            Feature.RESUME,
            Feature.DELETE,
            Feature.EVENTS,
            Feature.METRICS,
            Feature.CHECKPOINTS,
            Feature.CHAT,
        }
    )
    missing: ClassVar[Mapping[Feature, str]] = {
        Feature.KTO: f"OpenAI does not support KTO. {UNPAIRED}",
        Feature.LORA: _HOST_CHOOSES,
        Feature.QLORA: _HOST_CHOOSES,
        Feature.FULL: _HOST_CHOOSES,
        Feature.REASONING: "OpenAI does not accept reasoning in training rows",
        Feature.DOWNLOAD: "OpenAI does not release weights. To own the weights, train an open-weight model "
        "on another backend",
        Feature.DEPLOY: "a tuned model needs no deployment. Use `orchestrate chat`",
        Feature.LIVE_PRICE: "OpenAI has no estimate endpoint. `orchestrate quote` computes the price",
    }

    # -- offline -------------------------------------------------------------------------------------------

    def resolve(self, spec: JobSpec) -> ModelOnHost:
        """Resolve the spec's model to the host's id. For a host that the user configured, the id is the name
        as given. For Azure, it is the catalog's id if the catalog contains the model."""
        if self.name == self.profile.kind:
            return super().resolve(spec)
        asked = spec.model_for(self.name)
        try:
            model = catalog.find(asked)
        except UsageError:
            return ModelOnHost(provider=self.name, id=asked)
        id = model.ids.get(self.profile.kind, asked) if _is_azure(self.config) else asked
        return ModelOnHost(provider=self.name, id=id, model=model)

    def translate(self, spec: JobSpec) -> Translation:
        return translate(self.name, spec, self.resolve(spec), (self.profile.kind,))

    def check(self, spec: JobSpec, data: TrainingData, translation: Translation) -> list[Problem]:
        return problems_of(self, spec, data, translation)

    # -- account -------------------------------------------------------------------------------------------

    def _query_account(self) -> Account | None:
        """Return the organization and project, which OpenAI names in the headers of its answers: it has
        no call that returns them, and a project's jobs belong to that project alone. An Azure resource is
        identified by its address."""
        if _is_azure(self.config):
            return Account(id=f"resource {self.host}", reported=True)
        jobs = self.client.fine_tuning.jobs.with_raw_response
        try:
            headers = self._wire.read(lambda: jobs.list(limit=1)).headers
        except PermissionRefused as error:
            headers = headers_of(error.__cause__ or error)
        organization = headers.get("openai-organization")
        project = headers.get("openai-project") or self.config.project
        return named_account(organization=organization, project=project) if organization and project else None

    # -- submitting and reading: see the base class ----------------------------------------------------------

    def create(self, spec: JobSpec, remote: RemoteDataset, translation: Translation, ref: str) -> JobHandle:
        """Create the job. Raises `TrainingClosed` with the shutdown dates and an alternative if OpenAI
        accepts no new jobs."""
        try:
            return super().create(spec, remote, translation, ref)
        except TrainingClosed as error:
            raise training_closed(error, self.resolve(spec), spec.method.type) from error

    def billing(self) -> Billing:
        """Report the training jobs. Tuned models and files are omitted, because OpenAI stores them for free.
        Deployments on Azure are omitted too, because only its portal lists them."""
        unseen = "deployments on Azure: they are billed hourly, but Azure's data API does not list them"
        return base.of_jobs(self, *([unseen] if _is_azure(self.config) else []))

    def base_models(self) -> Sequence[HostModel]:
        """List the base models with OpenAI's shutdown dates. OpenAI does not report which models it
        fine-tunes, so the catalog provides that information. Models that are not in the catalog are
        `unconfirmed`."""
        known = {
            model.ids.get(self.name): model.on(self.name) for model in catalog.search(provider=self.name)
        }
        pages = self._wire.pages(lambda: self.client.models.list())
        found = [responses.model_of(m, known) for page in pages for m in page.data]
        return [model for model in found if not model.id.startswith("ft:")]

    # -- the tuned model -----------------------------------------------------------------------------------

    def endpoint(self, job: JobHandle) -> Endpoint | None:
        """Return the endpoint of a tuned model, which OpenAI serves without a deployment or an hourly price.
        On Azure, only the configured deployment serves it."""
        tuned = self._answering(self.get(job))
        if tuned is None:
            return None
        return Endpoint(
            provider=self.name,
            id=tuned,
            model=tuned,
            state="serverless",
            base_url=self.config.base_url,
            usd_per_hour=None if _is_azure(self.config) else Decimal(0),
        )

    @property
    def chat_limit(self) -> str:
        """Name of the request parameter that limits the number of tokens in a response. Compatible servers
        use `max_tokens`."""
        return self.profile.chat_limit if self.name == self.profile.kind else "max_tokens"


def _is_azure(config: HostConfig) -> bool:
    return "api_version" in config.options or ".azure.com" in (config.base_url or "")
