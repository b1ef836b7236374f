"""Import past jobs of an account as runs: first all jobs from the host's lists, then each job's details and
files.

Changes nothing on the host. A run's id is derived from its job, so importing a job again does not create a
second run. An interrupted import continues without fetching the same data again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import structs

from orchestrate.core import days
from orchestrate.core.files import locked, private_folder
from orchestrate.errors import (
    DataError,
    InvalidRequest,
    NotFound,
    OrchestrateError,
    PermissionRefused,
    SetupError,
    Unsupported,
    UsageError,
)
from orchestrate.migration.inventory import Inventory, inventory
from orchestrate.migration.inventory import InventoryRun as InventoryRun
from orchestrate.providers.base import HandsOutFiles, Provider, RecoversJobs, capability
from orchestrate.runs.submitting import accounts
from orchestrate.runs.syncing.recovery import (
    FilledSpec,
    fill_spec,
    migrated,
    record_left_out,
    recovered_cost,
    reported_settings,
    run_of,
)
from orchestrate.runs.syncing.sweep import conclude, fetch_details
from orchestrate.store import REF_PATTERN, new_id, run_id_of
from orchestrate.types import Job, JobStatus, Record, ReportedSettings, Run, decoding

if TYPE_CHECKING:
    from orchestrate.costing import RateBook
    from orchestrate.store.store import Store
    from orchestrate.workspace import Workspace

FILES = "host-file"
DETAILS = "import"
"""Record kinds used in the store: `FILES` for host files, and `DETAILS` for import details."""
THREADS = 8
_PREFIX, REF_PREFIX = "run-", "imp-"
"""Prefixes of the ids and refs of imported runs."""


class HostFile(msgspec.Struct, frozen=True, kw_only=True):
    """A job's file on its host. The host may have deleted it."""

    id: str
    sha256: str | None = None
    bytes: int = 0
    path: str | None = None
    rows_digest: str | None = None
    """Digest of the file's rows, used to recognize identical data."""
    gone: str | None = None
    """Reason why the file is not available, or `None`."""
    refused: bool = False
    """True if the file may exist on the host, but the current API key has no access to it."""


class ImportReport(msgspec.Struct, kw_only=True):
    provider: str
    account: str = ""
    jobs: set[str] = set()
    """Ids of all jobs that the account lists."""
    imported: list[str] = []
    known: int = 0
    """Number of jobs that this store already had runs for."""
    left_out: int = 0
    """Number of jobs without a tuned model. These are only imported with `all`."""
    completed: set[str] = set()
    """Runs that were imported or recovered earlier and that now have more of the settings that the host
    reports."""
    settings: dict[str, FilledSpec] = {}
    """What the host reports of a run and its spec does not hold, by run id."""
    files: int = 0
    """Number of files fetched by this import."""
    files_gone: int = 0
    problems: dict[str, str] = {}
    """Error messages, keyed by run id or file. Run the same command again to retry."""


StepCallback = Callable[[str, int, int], object]
"""Progress callback. Called with the current step, the number of items done, and the total (0 if unknown)."""


class Importer:
    """Imports one account into one store."""

    def __init__(
        self,
        store: Store,
        provider: Provider,
        folder: Path,
        rates: RateBook,
        on_step: StepCallback | None = None,
    ) -> None:
        """Set up the import. `folder` stores the files, named by their content."""
        self._store, self._provider, self._folder, self._rates = store, provider, folder, rates
        self._on_step: StepCallback = on_step or _silent

    def run(
        self, *, since: datetime | None = None, every: bool = False, details: bool = True, files: bool = True
    ) -> ImportReport:
        """Import the host's jobs. With `every`, this includes jobs that failed or were canceled. Raises
        `ProviderError` if the list cannot be read, and `UsageError` if another command is importing from this
        host."""
        name = hashlib.sha256(self._place.encode()).hexdigest()[:16]
        with locked(private_folder(self._folder) / f"{name}.lock", keep=False) as held:
            if not held:  # two would write into one draft of a file
                raise UsageError(
                    f"another command is importing from {self._provider.config.name}",
                    fix="wait for that command to finish",
                )
            return self._taken(since, every=every, details=details, files=files)

    def _taken(self, since: datetime | None, *, every: bool, details: bool, files: bool) -> ImportReport:
        account = accounts.account_of(self._store, self._provider)
        report = ImportReport(provider=self._provider.config.name, account=account)
        for number, job in enumerate(self._listed(since), 1):
            self._on_step("jobs listed", number, 0)
            report.jobs.add(job.handle.job_id)
            if job.status in (JobStatus.FAILED, JobStatus.CANCELLED) and not every:
                report.left_out += 1
            elif (run := self._run_of(job, account, report)) is not None and self._added(run):
                report.imported.append(run.id)
            else:
                report.known += 1
        if details:
            self._complete(report, files=files)
        record_left_out(self._store, {id: filled.left_out for id, filled in report.settings.items()})
        return report

    # -- jobs ----------------------------------------------------------------------------------------------

    def _run_of(self, job: Job, account: str, report: ImportReport) -> Run | None:
        """Build the run of a job. If the store has it, complete it and return `None`."""
        ref = job.handle.ref if job.handle.ref and REF_PATTERN.fullmatch(job.handle.ref) else None
        now = self._store.clock.now()
        tagged = self._store.runs.of_refs([ref]) if ref is not None else []
        if ref is None or (tagged and tagged[0].job_id not in (None, job.handle.job_id)):
            # Also a second job with the tag of a run, which is billed on its own. A job without a date also
            # has the same id in each import.
            run_id = self._free_id(job, job.created_at or datetime.fromtimestamp(0, UTC))
            ref = REF_PREFIX + str(run_id).removeprefix(_PREFIX)
        else:
            run_id = tagged[0] if tagged else run_id_of(ref)
        if isinstance(run_id, Run):
            if is_rebuilt(run_id) and run_id.job_id == job.handle.job_id:
                self._fill(run_id, reported_settings(self._provider, job), report)
            return None
        recovered = recovered_cost(self._provider, job, self._rates)
        report.settings[run_id] = FilledSpec(recovered.spec, recovered.left_out)
        return run_of(
            job,
            self._provider,
            account,
            now,
            id=run_id,
            ref=ref,
            how="imported",
            spec=recovered.spec,
            quote=recovered.quote,
            bill=recovered.bill,
            imported=True,
        )

    def _added(self, run: Run) -> bool:
        try:
            self._store.runs.restore(run)
        except UsageError:  # by a `recover` or `submit` at the same moment
            return False
        return True

    def _listed(self, since: datetime | None) -> Iterator[Job]:
        if isinstance(self._provider, RecoversJobs):
            return self._provider.recoverable(since=since)
        return self._provider.list(since=since)

    def _fill(self, run: Run, asked: ReportedSettings, report: ImportReport, **files: HostFile) -> None:
        """Add the files and the reported settings that a run lacks, for example because an earlier version
        did not read them."""
        keep = migrated(self._store, run.id)
        filled = fill_spec(run.spec, asked, keep=keep)
        if files or filled.spec != run.spec:

            def change(current: Run) -> Run:
                if not is_rebuilt(current):  # a submit with the same key took it over
                    return current
                current = _with_files(current, files)
                return structs.replace(current, spec=fill_spec(current.spec, asked, keep=keep).spec)

            after = self._store.runs.apply(run.id, change, note="settings and files of the host")
            filled = fill_spec(after.spec, asked, keep=keep)
            if run.id not in report.imported and _settings_of(after) != _settings_of(run):
                report.completed.add(run.id)
        report.settings[run.id] = filled

    def _free_id(self, job: Job, at: datetime) -> str | Run:
        """Return an id derived from the job, so a second import gives the same one. Returns the job's run if
        the store already has it."""
        for salt in range(8):
            words = (self._provider.config.name, self._provider.host, job.handle.job_id, str(salt))
            mark = int(hashlib.sha256("\0".join(words).encode()).hexdigest(), 16)
            run_id = new_id(_PREFIX, at, mark)
            there = self._store.runs.of_ids([run_id])
            if not there:
                return run_id
            if (there[0].job_id, there[0].job_kind) == (job.handle.job_id, job.handle.kind):
                return there[0]
        raise UsageError(f"no id is available for job {job.handle.job_id}")

    # -- details and files ---------------------------------------------------------------------------------

    def _complete(self, report: ImportReport, *, files: bool) -> None:
        done = {run_id for run_id, held in self._held() if all(map(self._there, held.values()))}
        name, host = self._provider.config.name, self._provider.host
        open_runs = [
            run
            for run in self._store.runs.matching(provider=name, host=host)
            if run.id not in done
            and (run.imported or is_rebuilt(run))
            and run.job_id in report.jobs  # not another account's
        ]
        reported: dict[str, tuple[Job | None, ReportedSettings]] = {}
        if files:
            with ThreadPoolExecutor(max_workers=THREADS) as pool:
                for number, (run, (job, problem)) in enumerate(
                    zip(open_runs, pool.map(self._answer, open_runs), strict=True), 1
                ):
                    self._on_step("fetching jobs", number, len(open_runs))
                    reported[run.id] = (
                        job,
                        reported_settings(self._provider, job) if job is not None else ReportedSettings(),
                    )
                    if problem is not None:
                        report.problems[run.id] = problem
            self._fetch(sorted({id for _, one in reported.values() for id in one.files.values()}), report)
        known = {file.id: file for file in self.files()}

        def one(run: Run) -> tuple[Run, str | None]:
            try:
                self._detail(run, reported.get(run.id), known, report)
            except SetupError:
                raise
            except OrchestrateError as error:
                return run, error.message
            return run, None

        with ThreadPoolExecutor(max_workers=THREADS) as pool:
            for number, (run, problem) in enumerate(pool.map(one, open_runs), 1):
                self._on_step("runs completed", number, len(open_runs))
                if problem is not None:
                    report.problems[run.id] = problem

    def _answer(self, run: Run) -> tuple[Job | None, str | None]:
        """Return the job as its host shows it, or the reason why the host does not."""
        try:
            return self._provider.get(run.handle), None
        except SetupError:
            raise
        except OrchestrateError as error:
            return None, error.message

    def _detail(
        self,
        run: Run,
        reported: tuple[Job | None, ReportedSettings] | None,
        known: dict[str, HostFile],
        report: ImportReport,
    ) -> None:
        job, asked = reported if reported is not None else (None, ReportedSettings())
        fetch_details(self._store, self._provider, run)
        mine = {split: known[id] for split, id in asked.files.items() if id in known}
        if job is not None and is_rebuilt(run):
            self._fill(run, asked, report, **mine)
        # A recovered run, also one that `recover` took over in the meantime, waits for its bill in `sync`.
        if run.status.terminal and self._store.runs.of_ids([run.id])[0].imported:
            conclude(self._store, self._provider, run, job or self._provider.get(run.handle), None)
        record = {"files": {split: msgspec.to_builtins(file) for split, file in mine.items()}}
        if reported is not None and len(mine) == len(asked.files) and run.status.terminal:
            self._store.history.add_record(run.id, DETAILS, record)

    def _held(self) -> Iterator[tuple[str, dict[str, HostFile]]]:
        """Yield the id of each completed run, with its files by split."""
        for record in self._store.history.records(DETAILS):
            yield record.run_id, decoding.convert(record.data.get("files", {}), dict[str, HostFile])

    def missing_files(self) -> dict[str, str]:
        """Map run ids to the reason why their training file is not available."""
        held = {run_id: files["train"].gone for run_id, files in self._held() if "train" in files}
        return {run_id: gone for run_id, gone in held.items() if gone is not None}

    # -- files ---------------------------------------------------------------------------------------------

    def files(self) -> Iterator[HostFile]:
        """Yield a record for each of the host's files that was requested: downloaded files, and files that
        are not available."""
        for record in self._store.history.records(FILES, [self._place]):
            yield decoding.convert(record.data, HostFile)

    @property
    def _place(self) -> str:
        return f"{self._provider.config.name} {self._provider.host}"[:64]

    def _fetch(self, ids: Sequence[str], report: ImportReport) -> None:
        known = {file.id: file for file in self.files()}
        waiting = [id for id in ids if id not in known or not self._there(known[id])]
        for number, id in enumerate(waiting, 1):
            try:
                found = self._moved(known.get(id)) or self._fetched(id)
            except (NotFound, Unsupported) as error:
                found = HostFile(id=id, gone=error.message)
            except (PermissionRefused, InvalidRequest) as error:
                found = HostFile(id=id, gone=error.message, refused=True)
            except SetupError:  # no room on the disk, which the next file would not find either
                raise
            except OrchestrateError as error:
                report.problems[f"file {id}"] = error.message
                continue
            self._store.history.add_record(self._place, FILES, found)
            report.files += found.gone is None
            report.files_gone += found.gone is not None
            self._on_step("files fetched", number, len(waiting))

    def _there(self, file: HostFile) -> bool:
        """Return whether nothing must be fetched, because the file is on this disk or no longer exists. A
        restored or copied store may list files that are not here."""
        if file.gone is not None:
            return not file.refused
        return file.path is not None and Path(file.path).is_file()

    def _moved(self, file: HostFile | None) -> HostFile | None:
        """Return the file with its path in this folder, if the folder was moved."""
        path = self._folder / f"{file.sha256}.jsonl" if file is not None else None
        return structs.replace(file, path=str(path)) if file is not None and path and path.is_file() else None

    def _fetched(self, id: str) -> HostFile:
        folder = private_folder(self._folder)
        draft = folder / f"{hashlib.sha256(id.encode()).hexdigest()[:16]}.download"
        capability(self._provider, HandsOutFiles).fetch_file(id, draft)
        content = hashlib.sha256()
        with draft.open("rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
        size, path = draft.stat().st_size, folder / f"{content.hexdigest()}.jsonl"
        draft.replace(path)
        return HostFile(
            id=id, sha256=content.hexdigest(), bytes=size, path=str(path), rows_digest=_rows_digest(id, path)
        )


def _silent(what: str, done: int, of: int) -> None:
    del what, done, of


def _rows_digest(id: str, path: Path) -> str:
    """Return the digest of the rows. Raises `DataError` for a file that cannot contain rows, such as a
    proxy's error page. Such a file is saved under another name and requested again later."""
    from orchestrate.data import Dataset

    try:
        return Dataset.open(path).digest
    except DataError as error:
        kept = path.with_suffix(".unread")
        path.replace(kept)
        raise DataError(f"file {id} contains no rows and was saved as {kept}") from error


def is_rebuilt(run: Run) -> bool:
    """Return whether the run's spec is made of what its host reports, because the submitted one is not
    known."""
    return not run.spec_hash


def _settings_of(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.spec.items() if name not in ("train", "validation")}


def _with_files(run: Run, files: dict[str, HostFile]) -> Run:
    paths = {split: file.path for split, file in files.items() if file.path is not None}
    if not paths:
        return run
    digests = [file.rows_digest for split in ("train", "validation") if (file := files.get(split))]
    parts = [digests[0], digests[1] if len(digests) > 1 else "-"] if digests and digests[0] else []
    whole = hashlib.sha256("\n".join(str(part) for part in parts).encode()).hexdigest() if parts else ""
    # A recovered run has no digest, so that it blocks repeats: the host's file may differ from the one sent.
    return structs.replace(
        run, spec={**run.spec, **paths}, dataset_digest=whole if run.imported else run.dataset_digest
    )


# Import an account's past jobs, and take an inventory of the models that may be shut down.


class AccountImport(Record, frozen=True, kw_only=True):
    """The result of an import."""

    provider: str
    account: str
    imported: int
    known: int
    left_out: int
    files: int
    files_gone: int
    problems: dict[str, str]
    completed: list[str]
    """Runs from an earlier import or `recover` that now have more of the settings that the host reports."""
    settings_left_out: dict[str, dict[str, Any]]
    """Settings that the host reports but a spec cannot hold, as {run id: {name: value}}."""
    settings_differing: dict[str, dict[str, tuple[Any, Any]]]
    """Settings of runs whose value in the store is not the host's, as
    {run id: {name: (in the store, at the host)}}. The stored value is kept."""
    unrecovered: list[str]
    """Imported runs whose job Orchestrate created, for a colleague or for a store that was lost. They neither
    count toward the budget as our own runs do nor block repeats until `recover` takes them over."""
    inventory: Inventory
    sandbox: bool
    """True if the account is a sandbox's."""


def take(
    ft: Workspace,
    name: str,
    *,
    since: datetime | None = None,
    every: bool = False,
    details: bool = True,
    files: bool = True,
    on_step: Callable[[str, int, int], object] | None = None,
    today: date | None = None,
) -> AccountImport:
    """Import a host's past jobs as runs. Models with a shutdown date before `today` count as shut down.
    Raises `MissingKey` if the host's API key is missing, and `ProviderError` if its list cannot be read."""
    provider = ft.ready(name)
    importer = Importer(ft.store, provider, ft.settings.home / "imported", ft.rates, on_step)
    report: ImportReport = importer.run(since=since, every=every, details=details, files=files)
    there = ft.store.runs.matching(provider=name, host=provider.host)
    # Keep only this account's runs, because another key may belong to another account. If a new key has a
    # different account name, the runs are recognized by their jobs.
    runs = [run for run in there if run.account == report.account or run.job_id in report.jobs]
    found = inventory(
        runs, provider.profile, importer.missing_files(), today or days.today(), _used(ft, runs)
    )
    return AccountImport(
        provider=name,
        account=report.account,
        imported=len(report.imported),
        known=report.known,
        left_out=report.left_out,
        files=report.files,
        files_gone=report.files_gone,
        problems=report.problems,
        completed=sorted(report.completed),
        settings_left_out={id: one.left_out for id, one in report.settings.items() if one.left_out},
        settings_differing={id: one.differing for id, one in report.settings.items() if one.differing},
        unrecovered=[run.id for run in runs if run.imported and REF_PATTERN.fullmatch(run.ref)],
        inventory=found,
        sandbox=provider.config.sandbox,
    )


def _used(ft: Workspace, runs: list[Run]) -> dict[str, datetime]:
    """Map run ids to the time of the last request from this store to their deployment."""
    found: dict[str, datetime] = {}
    for deployment in ft.store.deployments.matching():
        if deployment.used_at is not None:
            found[deployment.run_id] = deployment.used_at
    return {run.id: found[run.id] for run in runs if run.id in found}
