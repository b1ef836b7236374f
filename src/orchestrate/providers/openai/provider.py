"""OpenAI, through the official SDK; and hosts configured as `type = "openai"`, as was done before there were
descriptions of them.

`translation` and `checking` work offline, `sunset` tells about the end of fine-tuning there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, ClassVar

from orchestrate import catalog
from orchestrate.catalog import HostModel, ModelOnHost
from orchestrate.errors import PermissionRefused, TrainingClosed, UsageError
from orchestrate.profile import Profile
from orchestrate.providers import accounts, standing
from orchestrate.providers.base import ListsModels, Serves
from orchestrate.providers.calls.hosted import headers_of
from orchestrate.providers.compatible import reading
from orchestrate.providers.compatible.sdk import (
    SdkChats,
    SdkCheckpoints,
    SdkDeletes,
    SdkMeasures,
    SdkPauses,
    SdkResumes,
)
from orchestrate.providers.openai import checking
from orchestrate.providers.openai.checking import training_closed
from orchestrate.providers.openai.profile import PROFILE
from orchestrate.providers.openai.translation import translate
from orchestrate.providers.settings import UNPAIRED
from orchestrate.types import (
    Account,
    Billing,
    Endpoint,
    Feature,
    JobHandle,
    Problem,
    RemoteDataset,
    Translation,
)

if TYPE_CHECKING:
    from orchestrate.data import TrainingData
    from orchestrate.settings.config import HostConfig
    from orchestrate.spec import JobSpec

_HOST_CHOOSES = "OpenAI chooses how it adapts the weights, and does not say how"


class OpenAIProvider(
    SdkMeasures, SdkCheckpoints, SdkPauses, SdkResumes, SdkDeletes, SdkChats, ListsModels, Serves
):
    """See `orchestrate.providers.base` for the contract, `orchestrate.providers.calls.clients` for a host's
    options."""

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
        Feature.KTO: f"OpenAI has no KTO; {UNPAIRED}",
        Feature.LORA: _HOST_CHOOSES,
        Feature.QLORA: _HOST_CHOOSES,
        Feature.FULL: _HOST_CHOOSES,
        Feature.REASONING: "OpenAI takes no reasoning in training rows",
        Feature.DOWNLOAD: "OpenAI does not hand out weights; train an open model elsewhere to own them",
        Feature.DEPLOY: "a tuned model answers without a deployment; `orchestrate chat` asks it",
        Feature.LIVE_PRICE: "OpenAI has no estimate endpoint; `orchestrate quote` computes the price",
    }
    sends_wandb_key: ClassVar[bool] = False

    # -- offline -------------------------------------------------------------------------------------------

    def resolve(self, spec: JobSpec) -> ModelOnHost:
        """A host other than OpenAI is sent the name as it is written; Azure, for a model of OpenAI's,
        OpenAI's id of it."""
        if self.name == self.kind:
            return super().resolve(spec)
        asked = spec.model_for(self.name)
        try:
            model = catalog.find(asked)
        except UsageError:
            return ModelOnHost(provider=self.name, id=asked)
        id = model.ids.get(self.kind, asked) if _is_azure(self.config) else asked
        return ModelOnHost(provider=self.name, id=id, model=model)

    def translate(self, spec: JobSpec) -> Translation:
        return translate(self.name, spec, self.resolve(spec), (self.kind,))

    def check(self, spec: JobSpec, data: TrainingData, translation: Translation) -> list[Problem]:
        return checking.check(self, spec, data, translation)

    @property
    def prices(self) -> str:
        """A compatible host is another company, with prices of its own."""
        return str(self.config.options.get("prices", self.name))

    # -- whose jobs ----------------------------------------------------------------------------------------

    def _ask_account(self) -> Account | None:
        """The organization and project, which OpenAI names in the headers of its answers; it has no call that
        tells them, and a project's jobs are that project's alone. An Azure resource is its address."""
        if _is_azure(self.config):
            return Account(id=f"resource {self.host}", told=True)
        jobs = self.client.fine_tuning.jobs.with_raw_response
        try:
            headers = self._wire.read(lambda: jobs.list(limit=1)).headers
        except PermissionRefused as error:
            headers = headers_of(error.__cause__ or error)
        organization = headers.get("openai-organization")
        project = headers.get("openai-project") or self.config.project
        return accounts.told(organization=organization, project=project) if organization and project else None

    # -- submitting and reading: see the base class ----------------------------------------------------------

    def create(self, spec: JobSpec, remote: RemoteDataset, translation: Translation, ref: str) -> JobHandle:
        """Raises `TrainingClosed` with the dates and the way out when OpenAI takes no new jobs."""
        try:
            return super().create(spec, remote, translation, ref)
        except TrainingClosed as error:
            raise training_closed(error, self.resolve(spec), spec.method.type) from error

    def billing(self) -> Billing:
        """Jobs. OpenAI asks nothing for tuned models and files that lie still; what is deployed on Azure only
        its portal lists."""
        unseen = "deployments of models on Azure, which bill hourly: its data API has no list of them"
        return standing.of_jobs(self, *([unseen] if _is_azure(self.config) else []))

    def base_models(self) -> Sequence[HostModel]:
        """The end dates are OpenAI's word. Whether it tunes a model it does not tell: that is the catalog's
        word, and for a model that the catalog does not have `unconfirmed`."""
        known = {
            model.ids.get(self.name): model.on(self.name) for model in catalog.search(provider=self.name)
        }
        pages = self._wire.pages(lambda: self.client.models.list())
        found = [reading.model_of(m, known) for page in pages for m in page.data]
        return [model for model in found if not model.id.startswith("ft:")]

    # -- the tuned model -----------------------------------------------------------------------------------

    def endpoint(self, job: JobHandle) -> Endpoint | None:
        """A tuned model answers at once, without a deployment and without an hourly price; on Azure only the
        configured deployment does."""
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
        """Compatible servers know max_tokens."""
        return self.profile.chat_limit if self.name == self.kind else "max_tokens"


def _is_azure(config: HostConfig) -> bool:
    return "api_version" in config.options or ".azure.com" in (config.base_url or "")
