"""Record a model's answers while it is still available. Recordings are priced first, and each question is
sent once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from orchestrate.catalog.models import license_of
from orchestrate.core import days, files
from orchestrate.data.files import require_writable
from orchestrate.errors import UsageError
from orchestrate.evaluation import Answer, Item, recordings
from orchestrate.evaluation.evaluate import ContenderPlan, answer_notes, plan
from orchestrate.evaluation.held_out import prompts
from orchestrate.evaluation.recordings import Recording as Recording
from orchestrate.evaluation.recordings import covering
from orchestrate.migration.inventory import shutdown
from orchestrate.paid.journal import RequestBudget
from orchestrate.paid.limits import require_within
from orchestrate.paid.paid_requests import Asking, Progress
from orchestrate.runs.evaluation.contenders import Contenders
from orchestrate.runs.tracked import tracked
from orchestrate.settings import masked_url
from orchestrate.store import RUN_PREFIX
from orchestrate.types import JobStatus, Record, Run, Sampling
from orchestrate.workspace import scope_of

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace

HELD_OUT = ("test", "validation")
"""Spec fields for files of held-out rows, which the model was not trained on."""


@dataclass(frozen=True, kw_only=True)
class RecordOrder:
    """Options for a recording."""

    prompts: str | Path | None = None
    """Rows, or a log of requests. Default: the run's held-out rows."""
    most: int | None = None
    """Number of prompts to record, selected to represent all prompts in the file."""
    sampling: Sampling = field(default_factory=Sampling)
    on: str = "auto"
    key_variable: str | None = None
    max_cost_usd: Decimal | None = None
    skip_failed: bool = False
    """True to skip prompts that get no answer, and continue."""


class RecordPlan(Record, frozen=True, kw_only=True):
    """The requests of a recording and their cost. Nothing has been sent yet."""

    model: str
    source: str
    prompts: int
    equal: int
    """Number of prompts skipped as exact duplicates."""
    near: int
    """Number of prompts skipped as near-duplicates of a selected prompt."""
    taken: int
    clusters: int
    left_out: dict[str, int]
    unread: tuple[str, ...]
    """Columns that no prompt includes, even though their text differs between most rows."""
    asked: ContenderPlan
    silent_on: date | None = None


class Due(Record, frozen=True, kw_only=True):
    """A tuned model with a shutdown date, and its recordings so far."""

    run_id: str
    provider: str
    tuned_model: str
    no_new_jobs_after: date | None
    """The date from which the host accepts no new training jobs."""
    silent_on: date
    days_left: int
    recorded: int
    """Number of prompts with stored answers in the model's largest recording."""
    recording: str | None
    prompts: str | None
    """Path of the spec's held-out rows. `None` if the file isn't on this machine."""
    command: str | None
    """The command that records the model. `None` if the model was shut down or is already recorded."""


class FromRecord(Record, frozen=True, kw_only=True):
    """The result of `data from-record`."""

    recording: str
    output: str
    rows: int
    left_out: dict[str, int]
    terms: tuple[str, ...]


class PreparedRecording:
    """A recording that is ready to run. Nothing has been sent yet. Use it as a context manager: on exit, it
    stops the processes it started on this machine."""

    def __init__(self, ft: Workspace, name: str, order: RecordOrder) -> None:
        """Prepare the recording. `name` is a run, or a model as in `eval --model`. Raises `UsageError` and
        `DataError`."""
        self._ft, self._order = ft, order
        named = ft.store.runs.exists(name) or name.startswith(RUN_PREFIX)
        run = ft.record(name) if named else None
        path = str(order.prompts) if order.prompts is not None else _own_prompts(run, name)
        found = prompts(path)
        self._covering = covering(found.items, order.most)
        self._source, self._found = masked_url(path), found
        self._silent_on = _silent_on(ft, run)
        budget = RequestBudget(order.max_cost_usd, account=ft.store.ledger.account("recording", ft.settings))
        self._asking = Asking(
            ft.settings.home / "evaluations" / "answers", budget, skip_failed=order.skip_failed
        )
        self._contenders = Contenders(
            ft, order.sampling, order.on, order.key_variable, logprobs=True, limit_usd=order.max_cost_usd
        )
        try:
            if run is not None:
                handle = tracked(ft, run)
                handle.check()
                [self._candidate] = self._contenders.of_run(handle, None, base=False)
            else:
                self._candidate = self._contenders.of_model(name)
        except BaseException:
            self._contenders.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._contenders.close()

    @property
    def _items(self) -> Sequence[Item]:
        return self._covering.items

    def plan(self) -> RecordPlan:
        made = plan(self._items, [self._candidate], self._order.sampling.samples, self._asking)
        [asked] = made.asked
        return RecordPlan(
            model=self._candidate.contender.name,
            source=self._source,
            prompts=len(self._found.items),
            equal=self._covering.equal,
            near=self._covering.near,
            taken=len(self._items),
            clusters=self._covering.clusters,
            left_out=dict(self._found.left_out),
            unread=self._found.unread,
            asked=asked,
            silent_on=self._silent_on,
        )

    def run(self, progress: Progress | None = None) -> Recording:
        """Send the requests that have no stored answer yet. Answers are stored as they arrive, so you can
        interrupt and repeat this. Raises `OverBudget` before anything is sent if the expected price is above
        the limit. Request errors propagate."""
        [asked] = [self.plan().asked]
        if asked.expected_usd is not None:
            require_within(
                "this recording",
                asked.expected_usd,
                self._order.max_cost_usd,
                figure="the expected price",
                fix="raise --max-cost, or record fewer prompts with --n",
            )
        self._asking.progress = progress
        respondent, samples = self._candidate.respondent, self._order.sampling.samples
        questions = self._candidate.questions(self._items, samples)
        refused: dict[str, Answer] = {}
        try:
            answers = self._asking.ask(respondent, questions)
            refused = {q.digest: a for q, a in zip(questions, answers, strict=True) if a.error is not None}
        finally:
            found = self._keep(refused)
        return found

    def _keep(self, refused: dict[str, Answer]) -> Recording:
        candidate, samples = self._candidate, self._order.sampling.samples
        questions = candidate.questions(self._items, samples)
        known = self._asking.kept(candidate.respondent, questions)
        id = recordings.id_of(candidate.respondent, self._items)
        folder = files.private_folder(self._ft.settings.home / "recordings") / id
        earlier = recordings.written(folder)
        pairs: list[tuple[Item, tuple[Answer, ...]]] = []
        refusals = 0
        for place, item in enumerate(self._items):
            own = questions[place * samples : (place + 1) * samples]
            if all(q.digest in known for q in own):
                pairs.append((item, tuple(known[q.digest] for q in own)))
            elif len(before := earlier.get(item.id, ())) >= samples:
                pairs.append((item, before))  # the evaluations' own store of answers was cleared since
            else:
                refusals += any(q.digest in refused for q in own)
        recordings.write(folder, candidate.contender.name, pairs)
        given = [a for _, answers in pairs for a in answers]
        lost = self._asking.lost(candidate.respondent, questions)
        costs = [a.usd for a in given if a.usd is not None]
        contender = msgspec.structs.replace(
            candidate.contender,
            answers=len(given),
            failed=refusals,
            lost_requests=lost.requests,
            lost_usd=lost.usd,
        )
        found = Recording(
            id=id,
            at=self._ft.store.clock.now(),
            contender=contender,
            notes=tuple(answer_notes(contender, given)),
            sampling=self._order.sampling,
            prompts=len(self._items),
            answered=len(pairs),
            refused=refusals,
            expected=sum(bool(item.expected or item.expected_calls) for item, _ in pairs),
            with_logprobs=sum(a.logprobs is not None for a in given),
            usd=sum(costs, Decimal(0)) if len(costs) == len(given) else None,
            silent_on=self._silent_on,
            source=self._source,
            folder=str(folder),
            sandbox=candidate.respondent.sandbox,
        )
        recordings.keep(self._ft.store, found)
        return found


def _own_prompts(run: Run | None, name: str) -> str:
    for split in HELD_OUT:
        path = run.spec.get(split) if run is not None else None
        if isinstance(path, str) and Path(path).is_file():
            return path
    why = f"{name} has no held-out rows on this machine" if run else f"{name} is not a run"
    raise UsageError(
        f"choose the prompts to record: {why}",
        fix=f"orchestrate record {name} --prompts FILE   (held-out rows, or a log of requests)",
    )


def _silent_on(ft: Workspace, run: Run | None) -> date | None:
    return shutdown(run.model, ft.provider(run.provider).profile) if run is not None else None


def all_recordings(ft: Workspace) -> list[Recording]:
    """List all recordings, oldest first."""
    return recordings.all_of(ft.store)


def named(ft: Workspace, name: str) -> Recording:
    """Return a recording by its id or the start of its id. Raises `UsageError` if none or several match."""
    return recordings.find(ft.store, name)


def calendar(ft: Workspace, today: date | None = None) -> list[Due]:
    """List every tuned model in the store with an announced shutdown date, earliest first. Includes models of
    sandbox runs only if the current API keys belong to a sandbox."""
    now = today or days.today()
    found: list[Due] = []
    for run in ft.store.runs.matching(status=JobStatus.SUCCEEDED, sandbox=scope_of(ft.settings)):
        day = _silent_on(ft, run)
        if run.tuned_model is None or day is None:
            continue
        kept = recordings.of_run(ft.store, run.id)
        prompts = next(
            (p for s in HELD_OUT if isinstance(p := run.spec.get(s), str) and Path(p).is_file()), None
        )
        open_now = day >= now and (kept is None or not kept.complete)
        wanted = f"orchestrate record {run.id}" + ("" if prompts else " --prompts FILE")
        found.append(
            Due(
                run_id=run.id,
                provider=run.provider,
                tuned_model=run.tuned_model,
                no_new_jobs_after=ft.provider(run.provider).profile.no_new_jobs_after,
                silent_on=day,
                days_left=(day - now).days,
                recorded=kept.answered if kept is not None else 0,
                recording=kept.id if kept is not None else None,
                prompts=prompts,
                command=wanted if open_now else None,
            )
        )
    return sorted(found, key=lambda due: (due.silent_on, due.run_id))


def terms(ft: Workspace, recording: Recording) -> tuple[str, ...]:
    """Return the known rules for training on the model's answers, from the host's terms and the model's
    license."""
    found: list[str] = []
    who = recording.contender
    if who.run_id is not None and ft.store.runs.exists(who.run_id):
        profile = ft.provider(ft.store.runs.get(who.run_id).provider).profile
        unknown = f"{profile.title}: its terms are not known to Orchestrate. Read them before you train"
        found.append(profile.output_terms or unknown)
    else:
        found.append(f"{who.served_by}: read the host's terms")
    if (license := license_of(who.model)) is not None:
        found += [f"the base model's license, {license.title}: {asks}" for asks in license.asks]
    return tuple(found)


def from_record(ft: Workspace, name: str, output: Path) -> FromRecord:
    """Convert recorded answers to chat rows for training. Leaves out empty answers and answers truncated at
    the token limit, because a model would learn to stop there."""
    recording = recordings.find(ft.store, name)
    require_writable(output)
    rows: list[bytes] = []
    left_out: dict[str, int] = {}
    for item, answers in recordings.read(recording):
        answer = answers[0]
        why = None
        if answer.finish_reason == "length":
            why = "truncated at the token limit"
        elif not answer.text and not answer.tool_calls:
            why = "empty"
        if why is None:
            rows.append(msgspec.json.encode(recordings.row_of(item, answer, own=True)) + b"\n")
        else:
            left_out[why] = left_out.get(why, 0) + 1
    if not rows:
        raise UsageError(f"{recording.id} has no answers to train on", fix=f"orchestrate record {name}")
    files.write_whole(output, b"".join(rows))
    return FromRecord(
        recording=recording.id,
        output=str(output),
        rows=len(rows),
        left_out=left_out,
        terms=terms(ft, recording),
    )
