"""TrackedRun: a run and the actions on it, through its backend and the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from orchestrate.core.amounts import amount
from orchestrate.core.files import private_folder
from orchestrate.core.progress import cost_so_far, stage
from orchestrate.core.underway import BYTES, work
from orchestrate.errors import RunFailed, UsageError
from orchestrate.providers.base import Cancels, Chats, Deploys, Downloads, P, ShowsRows, capability, pausing
from orchestrate.runs.hosting.deployment import DeploymentHandle, deployer_of, require_open, used
from orchestrate.text import SANDBOX_MARK, money
from orchestrate.types import (
    Artifact,
    Checkpoint,
    Event,
    JobStatus,
    Listing,
    Message,
    MetricPoint,
    Proof,
    Reply,
    Run,
)

_NOTE = 2000
"""Maximum length of a note in characters."""

if TYPE_CHECKING:
    from orchestrate.data.operations.preview import RowTokens
    from orchestrate.providers.base import Progress, Provider
    from orchestrate.runs.trackers.records import Logged
    from orchestrate.workspace import Workspace


def ending_question(run: Run) -> str:
    """Return the question that a user must confirm before a run is ended."""
    so_far = cost_so_far(run)
    cost = f", {money(so_far)} so far" if so_far else ""
    now = f"{run.model} on {run.provider}, {stage(run)}{cost}"
    return f"{sandbox_notice(run)}Cancel {run.id} ({now})? A canceled run can't be resumed."


def resuming_question(run: Run, max_cost_usd: Decimal | None = None) -> str:
    """Return the confirmation prompt to show before a run is resumed."""
    most = max_cost_usd if max_cost_usd is not None else run.max_cost_usd
    high = None if run.quote is None else run.quote.high_usd
    cost = "The run's price is unknown." if high is None else f"In total, the run costs up to {money(high)}."
    if most is not None:
        cost = f"The run's cost limit caps its total cost at {money(most)}."
    return f"{sandbox_notice(run)}Resume {run.id} ({run.model} on {run.provider})? {cost}"


def sandbox_notice(run: Run) -> str:
    """Return what a question about the run says first, or an empty string for a run on the real host."""
    return "SANDBOX: nothing is billed. " if run.sandbox else ""


class TrackedRun:
    """One run and the actions on it. `record` is its last known state. `refresh` queries the backend."""

    def __init__(self, ws: Workspace, record: Run) -> None:
        """Create the handle. `ws` is the workspace of the run's backends, see `Workspace.home_of`."""
        self._ws = ws
        self.record = record

    def __repr__(self) -> str:
        r = self.record
        return f"<{type(self).__name__} {r.id} {r.provider}{SANDBOX_MARK * r.sandbox} {r.status.value}>"

    def _repr_html_(self) -> str:
        from orchestrate import notebook

        return notebook.progress(self.record, self.metrics(), self.events())

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def status(self) -> JobStatus:
        return self.record.status

    @property
    def provider(self) -> Provider:
        return self._ws.provider(self.record.provider)

    def refresh(self) -> Run:
        """Fetch status, new events, metrics and checkpoints from the backend into the store, and return
        the newest record."""
        from orchestrate.runs.syncing.sweep import refresh

        self.record = refresh(self._ws.store, self.provider, self.record, bill=self._ws.bill)
        return self.record

    def wait(
        self,
        *,
        on_event: Callable[[Event], object] | None = None,
        on_change: Callable[[Self], object] | None = None,
        poll_s: float | None = None,
        timeout_s: float | None = None,
        live: bool = True,
    ) -> Run:
        """Wait until the run ends, whether or not it succeeds. Also returns if the run pauses and needs
        `resume`, for example because it reached its limit. Call `check()` afterwards to raise an error if the
        run did not succeed.

        Interrupting the wait does not affect the run. A local worker that was killed is restarted. `poll_s`
        defaults to 1 s for this machine and the sandbox, and grows from 2 to 30 s for hosts. Retries if a
        host does not respond. In a notebook, the cell displays the run's progress while waiting, unless
        `live` is false. Raises `TimeoutError` after `timeout_s`.
        """
        from orchestrate.notebook import NotebookOutput
        from orchestrate.runs.submitting.settler import Settler
        from orchestrate.runs.watching.polling import PollingPace
        from orchestrate.store.transitions import left

        pace = PollingPace(poll_s, near=self.record.sandbox or self.provider.config.base_url is None)
        output = NotebookOutput() if live else None
        started, seen = time.monotonic(), 0
        while True:
            record = pace.attempt(self.refresh) or self.record
            if record.status is JobStatus.PAUSED:
                pace.attempt(partial(Settler(self._ws.store, self.provider).restart, record))
            events = self.events()
            for event in events[seen:]:
                if on_event:
                    on_event(event)
            seen = len(events)
            if on_change:
                on_change(self)
            if output is not None:
                output.show(self)
            if record.status.terminal or left(record) is not None:
                return record
            if timeout_s is not None and time.monotonic() - started > timeout_s:
                raise TimeoutError(
                    f"run {self.id} is still {record.status.value} after {timeout_s:g} s. The run continues"
                )
            pace.sleep()

    def check(self) -> Run:
        """Return the run's record if the run succeeded. Queries the host if the run was last seen in
        progress. Raises `RunFailed` with the host's reason if the run did not succeed."""
        if not self.record.status.terminal and self.record.job_id is not None:
            self.refresh()
        if self.record.status is not JobStatus.SUCCEEDED:
            reason = f": {self.record.error.message}" if self.record.error else ""
            raise RunFailed(
                f"run {self.id} on {self.record.provider} is {self.record.status.value}{reason}",
                fix=f"orchestrate events {self.id}",
            )
        return self.record

    def events(self) -> Listing[Event]:
        """Return the stored events, oldest first."""
        return Listing(self._ws.store.history.events(self.id))

    def metrics(self) -> Listing[MetricPoint]:
        """Return the stored metrics by step."""
        return Listing(self._ws.store.history.metrics(self.id))

    def checkpoints(self) -> Listing[Checkpoint]:
        """Return the stored checkpoints."""
        return Listing(self._ws.store.history.checkpoints(self.id))

    def rendered(self) -> list[RowTokens]:
        """Fetch the tokens of training rows as the host's trainer saw them. Raises `Unsupported` if the host
        does not show them."""
        return list(self._here(ShowsRows).rendered(self.record.handle))

    def cancel(self) -> Run:
        """Cancel the run. If the run's job is not known yet, the job is canceled as soon as it is found. If
        the run has ended, there is nothing to cancel, and its host is not contacted."""
        from orchestrate.runs.submitting.submit import cancel

        self.record = self._ws.store.runs.get(self.id)
        if self.record.status.terminal and self.record.job_id is not None and self.record.abandoned is None:
            return self.record
        capability(self.provider, Cancels)
        with work(f"waiting for {self.record.provider} to cancel the run"):
            self.record = cancel(self._ws.store, self.provider, self.record)
            return self.record if self.record.abandoned is not None else self.refresh()

    def pause(self) -> Run:
        """Pause the run. Call `resume` to continue it. Raises `Unsupported` if the host cannot pause."""
        from orchestrate.runs import resumption

        able = pausing(self.record)
        capability(self.provider, able)
        resumption.require_going(self.record, "pause")
        with work(f"waiting for {self.record.provider} to pause the run"):
            self._here(able).pause(self.record.handle)
            return self.refresh()

    def resume(
        self,
        *,
        max_cost_usd: Decimal | float | str | None = None,
        max_hours: Decimal | float | str | None = None,
    ) -> Run:
        """Resume a paused job, or a submit that was interrupted before its job was created. A job that has
        ended is not restarted, because it would be billed again beyond the agreed price.

        `max_cost_usd` and `max_hours` replace the run's own limits. They apply to the complete run, including
        its use so far, and the budget must cover them. Raises `UsageError` for a limit that is already used
        up, `OverBudget` if the budget does not cover the new limits, and `ProjectNotTrusted` for a project
        that you have not trusted.
        """
        from orchestrate.runs import resumption

        more = resumption.RaisedLimits(
            amount(max_cost_usd, "max_cost_usd"), amount(max_hours, "max_hours", "hours")
        )
        self.record = resumption.resume(self._ws, self, more)
        return self.record

    def abandon(self, reason: str) -> Run:
        """Give up the run and its deployments, and store the reason. Their hosts are no longer polled, and
        only their last known costs count against a budget.

        Does not end anything on a host: the run may continue there and be billed. If the run has ended and
        its bill is known, only its deployments are given up. Raises `UsageError` if `reason` is empty, or if
        a deployment's account can be reached. In the second case, use `undeploy`.
        """
        from orchestrate.store import transitions

        if not reason.strip():
            raise UsageError(
                "give a reason for abandoning the run", fix=f"orchestrate abandon {self.id} --reason TEXT"
            )
        at, runs = self._ws.store.clock.now(), self._ws.store.runs
        deployed = self.deployments(over=False)
        for one in deployed:
            one.abandon(reason.strip())
        if deployed and runs.is_closed(self.id):
            return self.record
        self.record = runs.apply(
            self.id, lambda run: transitions.abandoned(run, reason.strip(), at), note=f"abandoned: {reason}"
        )
        runs.close(self.id)
        return self.record

    def annotate(self, *, note: str | None = None, archived: bool | None = None) -> Run:
        """Set the run's note (an empty string removes it), or archive the run. Lists leave out archived runs
        unless you ask for them. The host is not contacted, and the run's cost counts as before. Raises
        `UsageError` for a note of more than 2,000 characters."""
        if note is not None and len(note) > _NOTE:
            raise UsageError(f"a note must have at most {_NOTE:,} characters (got {len(note):,})")

        def change(run: Run) -> Run:
            text = run.note if note is None else note.strip() or None
            return msgspec.structs.replace(
                run, note=text, archived=run.archived if archived is None else archived
            )

        self.record = self._ws.store.runs.apply(self.id, change)
        return self.record

    def _here(self, able: type[P]) -> P:
        """Return the backend as one that has this capability. Raises `Unsupported`, and `OtherAccount` if the
        key belongs to a different account than the run."""
        from orchestrate.runs.submitting import accounts

        found = capability(self.provider, able)
        accounts.require(self._ws.store, self.provider, self.record)
        return found

    def download(
        self,
        dest: str | Path | None = None,
        *,
        checkpoint: str | None = None,
        progress: Progress | None = None,
    ) -> Artifact:
        """Download the tuned model's files, by default to `models/<run id>` in the home folder. If the files
        are already there, only their hashes are verified."""
        capability(self.provider, Downloads)
        if dest is not None and Path(dest).exists() and not Path(dest).is_dir():
            raise UsageError(f"{dest} is not a folder", fix="use a new or empty folder")
        self.check()
        from orchestrate.providers import files

        name = self.id if checkpoint is None else f"{self.id}-{checkpoint}"
        folder = Path(dest) if dest else private_folder(self._ws.settings.home / "models") / name
        # Training on this machine may rewrite a checkpoint, so its copy is always compared with it.
        described = dest is None and (checkpoint is None or not self.provider.profile.near)
        if described and (before := files.read(folder)) is not None:
            return before
        with work(f"downloading from {self.record.provider}", BYTES) as advance:
            found = self._here(Downloads).download(
                self.record.handle, folder, checkpoint=checkpoint, progress=progress or advance
            )
        if described:
            files.write(folder, found)
        return found

    def downloaded(self) -> Artifact | None:
        """Return the record of the model downloaded to the home folder, or `None` if it was not
        downloaded."""
        from orchestrate.providers import files

        return files.described(self._ws.settings.home / "models" / self.id)

    def deployment(self, at: str | None = None) -> DeploymentHandle | None:
        """Return the run's newest deployment, or `None` if there is none. `at` limits the search to one
        backend. The returned state is the last known one, because the host is not queried."""
        record = self._ws.store.deployments.of_run(self.id, at)
        return None if record is None else DeploymentHandle(self._ws, record)

    def deployments(self, *, over: bool | None = None) -> list[DeploymentHandle]:
        """List the deployments of this run, newest first, each in its last known state. `over=True` lists
        only ended deployments, and `over=False` only active ones. By default, lists all."""
        found = self._ws.store.deployments.matching(over=over)
        return [DeploymentHandle(self._ws, one) for one in found if one.run_id == self.id]

    def undeploy(self, at: str | None = None, *, patience_s: float = 60.0) -> DeploymentHandle | None:
        """End the run's deployment, and wait up to `patience_s` seconds until the host confirms that it has
        ended. `at` names the backend. By default, ends the deployment wherever it is up.

        Check the returned state: a deployment in state `ending` is still billed, and each `sync` asks the
        host again to end it. Returns `None` if the account has no deployment of the run. Raises
        `OtherAccount` if the key is not known to belong to the deployment's account, and `ProviderError` if
        the host cannot be reached.
        """
        known = self.deployment(at)
        if known is None or known.record.state.over:
            if at is not None and at != self.record.provider:
                return known
            items = self._here(Deploys).deployed(self.record.handle)
            if not items:
                return known
            known = DeploymentHandle(
                self._ws, deployer_of(self._ws, self.record.provider).adopt(self.record, items)
            )
        known.undeploy(patience_s=patience_s)
        return known

    def chat(
        self,
        messages: Sequence[Message] | str,
        *,
        base: bool = False,
        max_tokens: int = 512,
        temperature: float = 0.0,
        tools: Sequence[Mapping[str, Any]] = (),
        at: str | None = None,
        tell: Callable[[str], object] | None = None,
    ) -> Reply:
        """Return one response of the tuned model or, if `base` is set, of its base model. A string is sent as
        a user message.

        `tools` lists the tools that the model may call, in the format of the Chat Completions API. Set `at`
        to chat through another host on which the run's adapter is deployed. `tell` is called with the text as
        it streams, if the host supports streaming and no tools are given.
        """
        if isinstance(messages, str):
            messages = [Message(role="user", content=messages)]
        if at is None or at == self.record.provider:
            provider, job = self._here(Chats), self.record.handle
        else:
            provider, job = (
                capability(self._ws.provider(at), Chats),
                require_open(self._ws, self.id, at).handle,
            )
        how: dict[str, Any] = {"base": base, "max_tokens": max_tokens, "temperature": temperature}
        chat = None if tell is None or tools else provider.chat(job, **how)
        if chat is not None and tell is not None:
            reply = chat.read_along(tell).ask(messages)
        else:
            how |= {"tools": tools} if tools else {}
            [reply] = provider.generate(job, [messages], **how)
        used(self._ws, self.id, at)
        return reply

    def log_to(self, tracker: str, at: str | None = None, *, project: str | None = None) -> Logged:
        """Log the run's last known settings, metrics, outcome and cost to mlflow, wandb or tensorboard. `at`
        is a URL or folder. Values that the tracker already has are not logged again. Raises `MissingExtra` if
        the tracker's package is not installed, and `ProviderError` if the tracker rejects the data or cannot
        be reached."""
        from orchestrate.runs import trackers as exporters

        with exporters.opened(tracker, at, project) as opened:
            return opened.write(exporters.story(self._ws.store, self.record))

    def proofs(self) -> list[Proof]:
        """List the run's stored proofs, oldest first. Each proof compares a served model with the trained
        one."""
        return self._ws.store.history.proofs(self.id)


def tracked(ws: Workspace, run: str | Run) -> TrackedRun:
    """Return the `TrackedRun` for a record, or for a name that `Workspace.record` accepts."""
    record = ws.record(run) if isinstance(run, str) else run
    return TrackedRun(ws.home_of(record), record)
