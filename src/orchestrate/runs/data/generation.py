"""Generation of new rows with a chat model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrate.core.files import locked
from orchestrate.core.retries import Retry
from orchestrate.costing.rates import completion_price
from orchestrate.data.files import require_writable
from orchestrate.data.operations import generate as generating
from orchestrate.data.operations.generate import GenerateOrder as GenerateOrder
from orchestrate.data.operations.generate import GenerateReport as GenerateReport
from orchestrate.data.rows import ChatMessage
from orchestrate.data.tokens.hub_tokens import opened
from orchestrate.errors import SetupError, SpecError, UsageError
from orchestrate.local.encoding import Template
from orchestrate.local.encoding.preview import tokenizer_folder
from orchestrate.paid.journal import lock_of
from orchestrate.profile import built_in
from orchestrate.providers import registry
from orchestrate.providers.chat import addressed, chat_with, configured
from orchestrate.runs.privacy import is_near

if TYPE_CHECKING:
    from orchestrate.settings.config import HostConfig, Settings
    from orchestrate.workspace import Workspace


_MARK = "zq1thought"


@dataclass(frozen=True, kw_only=True)
class TeacherModel:
    """The model that writes the rows. `host` is a configured host, by default the first one. Alternatively,
    `base_url` is the URL of any OpenAI-compatible API. If this API needs a key, `key_variable` names the
    environment variable that contains it."""

    model: str
    host: str | None = None
    base_url: str | None = None
    key_variable: str | None = None
    temperature: float | None = None

    def place(self, settings: Settings) -> HostConfig:
        """Return the host that runs the model. A host's key is only used for that host's address. Raises
        `UsageError` for an unknown host or an invalid URL, `MissingKey` if the key's variable is not set, and
        `ConfigError` if the key would be sent unencrypted."""
        if self.base_url is None:
            if self.key_variable is not None:
                raise UsageError("--key-variable needs --base-url", fix="orchestrate keys set HOST")
            return configured(settings, self.host or next(iter(built_in())))
        if self.host is not None:
            raise UsageError("--host and --base-url both name the model's host: use only one of them")
        return addressed(self.base_url, self.key_variable)


def reasoning_of(model: str | None, *, wanted: bool) -> tuple[generating.Reasoning, str]:
    """Decide whether rows for a model should include reasoning, and return the decision with a reason.
    Reasoning is left out if the model's chat template drops it."""
    if not wanted:
        return "no", ""
    if model is None:
        return (
            "kept",
            "the rows include reasoning. To check whether a model's template keeps it: --for-model MODEL",
        )
    try:
        template = Template(opened(tokenizer_folder(model)))
    except SetupError:
        return "kept", (
            "the rows include reasoning. Whether the model keeps it is unknown, because the chat template of "
            f"{model} is not on this machine"
        )
    except SpecError:
        return "left out", f"the rows exclude reasoning, because {model} does not train on reasoning"
    said = ChatMessage(role="assistant", content="y", reasoning=_MARK)
    if _MARK in template.chats.rendered([ChatMessage(role="user", content="x"), said]).text:
        return "kept", f"the rows include reasoning, because the chat template of {model} keeps it"
    return "left out", f"the rows exclude reasoning, because the chat template of {model} drops it"


def unpriced(settings: Settings, writer: TeacherModel) -> bool:
    """Return whether requests to the model may be billed at an unknown price. Raises the same errors as
    `TeacherModel.place`."""
    place = writer.place(settings)
    return not _near(settings, place) and completion_price(writer.model, place.base_url) is None


def _near(settings: Settings, place: HostConfig) -> bool:
    return place.sandbox or is_near(settings, place.base_url or place.name, place.name)


def generate(
    ws: Workspace,
    seeds: str,
    output: Path,
    writer: TeacherModel,
    order: GenerateOrder,
    *,
    hosts: str = "all",
    progress: Callable[[int, int, Decimal], None] | None = None,
) -> GenerateReport:
    """Generate rows in the format of `seeds`. Each row is valid for every backend in `hosts`
    (comma-separated) that accepts all of the seeds. Costs are computed from the model's price, if known. If
    `output` was left by an interrupted run, generation continues from it. Raises `UsageError` while another
    process writes to the same output."""
    settings = ws.settings
    place = writer.place(settings)
    if not _near(settings, place):
        settings.require_trusted()
    require_writable(output, seeds)
    order = replace(
        order,
        price=completion_price(writer.model, place.base_url),
        account=ws.store.ledger.account("generation", settings),
        backend=place.name,
        own=_near(settings, place),
        sandbox=place.sandbox,
        hosts=registry.targets(settings, hosts),
    )
    chat = chat_with(place, writer.model, max_tokens=order.max_tokens, temperature=writer.temperature)
    with locked(lock_of(generating.log_of(output)), keep=False) as held:
        if not held:
            raise UsageError(
                f"another command is writing to {output}",
                fix="wait for that command to finish, or choose another file with -o",
            )
        return generating.generate(
            seeds, output, chat.ask_once, order, progress=progress, retry=Retry.of(place)
        )
