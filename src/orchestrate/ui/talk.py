"""Chat with a run's model, or export it, from the run's page.

Billed answers are reserved in the ledger at their maximum price, which the user saw and confirmed.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrate.errors import OrchestrateError, OverBudget, ProviderError, UsageError
from orchestrate.paid.journal import Answer, RequestBudget
from orchestrate.paid.limits import COMMAND_LIMIT
from orchestrate.paid.paid_requests import Asking, Question, Respondent
from orchestrate.text import count
from orchestrate.types import JobStatus, Message, Sampling
from orchestrate.ui import actions
from orchestrate.ui.site import Copy, Form, Site, first

if TYPE_CHECKING:
    from orchestrate import RunHandle

_MAX_TOKENS = 512
_LONGEST = 100_000
"""Maximum length of a conversation, in characters."""
_AGAIN = "send the message again. You will see the maximum cost first"
_PLACES = ("auto", "host", "here")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Talked:
    """A conversation as stored in the page's form, and the possible cost of the next answer."""

    messages: list[Message] = field(default_factory=list[Message])
    message: str = ""
    """The message to send. Empty after it was sent."""
    on: str = "auto"
    worst_usd: Decimal | None = None
    """The maximum cost of the next answer. `None` if no confirmation is needed."""
    lost_usd: Decimal = Decimal(0)
    """Maximum amount that may have been billed for earlier attempts to send this message."""
    unpriced: bool = False
    play: bool = False
    last: Answer | None = None
    error: OrchestrateError | None = None

    @property
    def agreed_usd(self) -> Decimal | None:
        """The amount that the user confirms by sending the form: the maximum cost of the next answer, plus
        what earlier attempts without an answer may have cost. Each such attempt raises this amount, so an
        older form can't confirm another attempt."""
        return None if self.worst_usd is None else self.worst_usd + self.lost_usd

    @property
    def kept(self) -> str:
        """The conversation to store in the next form, as JSON."""
        return msgspec.json.encode([{"role": m.role, "content": m.content} for m in self.messages]).decode()


def routes(site: Site) -> list[Route]:
    if site.read_only:
        return []

    def show(request: Request, handle: RunHandle, talked: Talked) -> Response:
        return site.page(
            request,
            "chat.html",
            here="runs",
            copy=_copy(handle, talked.on),
            run=handle.record,
            talked=talked,
            places=_PLACES,
            most=_MAX_TOKENS,
        )

    def page(request: Request) -> Response:
        from orchestrate.runs.chat import system_message

        handle = _ended(site, request)
        system = system_message(handle)
        return show(request, handle, Talked([Message(role="system", content=system)] if system else []))

    def ask(request: Request, form: Form) -> Response:
        handle = _ended(site, request)
        talked = _read(form)
        if not talked.message.strip():
            return show(request, handle, talked)
        try:
            return show(request, handle, _answered(site, handle, talked, form))
        except OrchestrateError as error:
            return show(request, handle, replace(talked, error=error))

    return [
        Route("/runs/{run}/chat", page, methods=["GET"]),
        site.action("/runs/{run}/chat", ask),
        *_export(site),
    ]


def _ended(site: Site, request: Request) -> RunHandle:
    handle = site.ft.run(request.path_params["run"])
    if handle.status is not JobStatus.SUCCEEDED:
        raise UsageError(f"{handle.id} has no model to chat with: its status is {handle.status.value}")
    return handle


def _read(form: Form) -> Talked:
    """Parse the form. Raises `UsageError` for forms that this server did not create."""
    kept, on = first(form, "kept", "[]"), first(form, "on", "auto")
    if len(kept) + len(first(form, "message")) > _LONGEST:
        raise UsageError(
            f"a conversation on this page may have at most {_LONGEST:,} characters",
            fix="orchestrate chat RUN",
        )
    try:
        messages = msgspec.json.decode(kept, type=list[Message])
    except msgspec.MsgspecError as error:
        raise UsageError("the form contains no valid conversation: start again") from error
    if on not in _PLACES or any(one.role not in _ROLES for one in messages):
        raise UsageError("the form contains no valid conversation: start again")
    return Talked(messages, first(form, "message").replace("\r\n", "\n"), on)


def _answered(site: Site, handle: RunHandle, talked: Talked, form: Form) -> Talked:
    """Return the conversation with the answer, or with a price to confirm first."""
    from orchestrate.runs.evaluation.contenders import Contenders
    from orchestrate.runs.hosting.deployment import used

    messages = [*talked.messages, Message(role="user", content=talked.message)]
    question = Question(messages=tuple(messages))
    agreed = actions.number(form, "agreed_usd")
    with closing(Contenders(site.ft, Sampling(max_tokens=_MAX_TOKENS), talked.on)) as asked:
        respondent = asked.of_run(handle, None, base=False)[0].respondent
        account = site.ft.store.ledger.account("chat", site.ft.settings)
        asking = Asking(site.ft.settings.home / "chat" / handle.id, RequestBudget(account=account))
        if not asking.kept(respondent, [question]):  # what was answered before is not sent
            worst, lost = respondent.worst_usd([question]), asking.lost_before(respondent, question)
            billed, play = respondent.price is not None and lost + worst > 0, respondent.sandbox
            unpriced = respondent.unpriced and first(form, "unknown") != "1"
            if unpriced or (billed and (agreed is None or lost + worst > agreed)):
                price = worst if billed else None
                return Talked(talked.messages, talked.message, talked.on, price, lost, unpriced, play)
            asking.budget.limit_usd = lost + worst if billed else None
        answer = _asked(asking, respondent, question)
    used(site.ft, handle.id)
    if answer.error is not None:
        raise UsageError(f"no answer: {answer.error}")
    said = Message(role="assistant", content=answer.text)
    return Talked([*messages, said], "", talked.on, play=respondent.sandbox, last=answer)


def _asked(asking: Asking, respondent: Respondent, question: Question) -> Answer:
    """Return one answer. If an earlier request got no answer, sending it again requires another
    confirmation."""
    try:
        [answer] = asking.ask(respondent, [question])
    except OverBudget as error:
        lost = asking.lost(respondent, [question])
        if error.what != COMMAND_LIMIT or not lost:
            raise
        raise UsageError(f"no answer: {lost}", fix=_AGAIN) from error
    except ProviderError as error:
        if not error.did_nothing:
            error.fix = _AGAIN
        raise
    return answer


def _copy(handle: RunHandle, on: str) -> Copy:
    where = "" if on == "auto" else f" --on {on}"
    return Copy(
        command=f"orchestrate chat {handle.id}{where}",
        python="from orchestrate import Orchestrator\n\nwith Orchestrator() as ft:\n"
        f"    print(ft.run({handle.id!r}).chat('Where is my order?').content)",
    )


# -- export --------------------------------------------------------------------------------------------------


def _export(site: Site) -> list[Route]:
    from orchestrate.serving.export.forms import FORMS

    def page(request: Request) -> Response:
        handle = _ended(site, request)
        folder = f"exports/{handle.id}"
        return site.page(
            request,
            "export.html",
            here="runs",
            copy=Copy(
                command=f"orchestrate export {handle.id} {folder} --to merged",
                python="from orchestrate import Orchestrator\n\nwith Orchestrator() as ft:\n"
                f"    print(ft.run({handle.id!r}).export('merged', {folder!r}).commands)",
            ),
            run=handle.record,
            forms=FORMS,
            folder=folder,
        )

    def act(request: Request, form: Form) -> str:
        handle = _ended(site, request)
        kind, folder = first(form, "form"), first(form, "folder").strip()
        if not folder:
            raise UsageError("choose the output folder")
        accepted = [first(form, "license").strip()] if first(form, "license").strip() else []
        site.work.begin(handle.id, "export", lambda: _exported(handle, kind, Path(folder), accepted))
        return f"/runs/{handle.id}"

    return [
        Route("/runs/{run}/export", page, methods=["GET"]),
        site.action("/runs/{run}/export", act),
    ]


def _exported(handle: RunHandle, kind: str, folder: Path, accepted: list[str]) -> str:
    made = handle.export(kind, folder, accept_license=accepted)
    proof = "" if made.proof is None else f", {made.proof.badge}"
    return f"{count(len(made.files), 'file')} in {made.folder}{proof}"
