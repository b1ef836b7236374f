"""The error tree. Every error says what failed, whether trying again can help, and what to do.

OrchestrateError
+-- UsageError                  exit 2   the command or call is wrong
|   +-- SpecError               exit 2   the spec is wrong (line, field, allowed values)
|   +-- AlreadySubmitted        exit 2   the store has the same run; `--again` submits another
|   +-- KeyTaken                exit 2   an idempotency key belongs to another run
+-- SetupError                  exit 3   something is missing on this machine
|   +-- MissingKey              exit 3   no API key
|   +-- KeyElsewhere            exit 3   an API key would be sent to a different host than before
|   +-- ProjectNotTrusted       exit 3   a project sets something that needs your trust
|   +-- OtherAccount            exit 3   a run is in a different account than the key
|   +-- MissingExtra            exit 3   an optional package is not installed
|   +-- ConfigError             exit 3   a configuration file is wrong
|   +-- StoreError              exit 3   the run store cannot be used
+-- DataError                   exit 1   the data has errors; `problems` lists all of them
+-- TranslationRefused          exit 2   a setting cannot be applied on the chosen backend
+-- Unsupported                 exit 2   the backend lacks the feature, with its reason
+-- OverBudget                  exit 6   the price is above the limit; nothing was sent
+-- OutcomeUnknown              exit 5   a create request's response was lost; run `orchestrate sync`
+-- RunFailed                   exit 1   the run ended without a model
+-- ArtifactRefused             exit 4   a downloaded artifact is unsafe or incomplete
+-- ProviderError               exit 4   the host rejected the request or is unavailable
    +-- AuthenticationFailed    401      the key is wrong or expired
    +-- PermissionRefused       403      the key or account may not do this
    |   +-- TrainingClosed               the host has stopped new fine-tuning jobs
    +-- NotFound                404
    +-- Conflict                409
    +-- InvalidRequest          400, 413, 422
    +-- RateLimited             429      `retry_after_s` if the host sent it
    |   +-- QuotaExceeded                a limit that a short wait does not lift
    +-- HostUnavailable         5xx, no connection, or a read timeout
    +-- UnexpectedAnswer                 the host's response does not match its API
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, ClassVar

from orchestrate.text import limit, money

if TYPE_CHECKING:
    from orchestrate.types import Problem, Setting


class OrchestrateError(Exception):
    """Base class of all exceptions that Orchestrate raises intentionally.

    `retryable` is true if the same call may succeed later without changes. `fix` is the next step for the
    user, as a command if there is one."""

    exit_code: ClassVar[int] = 1
    retryable: bool = False
    lost_requests: int = 0
    """Number of requests that got no response but may have been billed. Their cost is at most `lost_usd`."""
    lost_usd: Decimal | None = Decimal(0)
    """Maximum cost of the lost requests, in US dollars. `None` if no price is known."""
    _added: tuple[str, ...] = ()

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return self.message

    def add_note(self, note: str, /) -> None:
        self._added = (*self._added, note)

    @property
    def __notes__(self) -> list[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Notes that tracebacks and notebooks show below the message: each problem, and the next step."""
        return [*self._more(), *([f"What to do: {self.fix}"] if self.fix else []), *self._added]

    def _more(self) -> list[str]:
        """Return lines to show between the message and the fix."""
        return []


class UsageError(OrchestrateError):
    """The command or call is wrong. Nothing was sent. Change what the message names."""

    exit_code = 2


class SpecError(UsageError):
    """The spec is wrong. `errors` has one line per mistake, with its location and the allowed values. Fix
    these lines."""

    def __init__(self, message: str, *, errors: Sequence[str] = (), fix: str | None = None) -> None:
        super().__init__("\n".join([message, *errors]), fix=fix)
        self.errors = tuple(errors)


class AlreadySubmitted(UsageError):
    """A run with the same settings, data, backend and account is still in progress or has just succeeded.
    Nothing was sent. Pass `again` to submit another one. `state` describes the existing run in the error
    message (such as `is running`), and `next_step` is the suggested command."""

    def __init__(
        self, provider: str, run_id: str, state: str, next_step: str, *, recovered_model: str | None = None
    ) -> None:
        """Build the error. `recovered_model` is set if the stored run was recovered, so it may only seem
        identical."""
        described = "is identical (settings, data, account)"
        if recovered_model is not None:
            described = (
                f"was recovered from its host and may be identical (model {recovered_model}; its "
                "settings and data are not in this store)"
            )
        super().__init__(
            f"run {run_id} on {provider} {described} and {state}; nothing was sent",
            fix=f"{next_step}   (to pay for a second one, add --again; in Python again=True)",
        )
        self.provider = provider
        self.run_id = run_id


class KeyTaken(UsageError):
    """The idempotency key already belongs to a different run, or to a different job on the host. Nothing was
    sent. Use another key."""

    def __init__(self, key: str, holder: str, differences: Sequence[str]) -> None:
        """Build the error. `holder` is `run run-...`, or names a job on a host that belongs to no run in the
        store."""
        super().__init__(
            f"the idempotency key {key} was already used for {holder}, which has a different "
            f"{', '.join(differences)}; nothing was sent",
            fix="use another key, or submit the original job again"
            + (f" (orchestrate show {holder[4:]})" if holder.startswith("run ") else ""),
        )
        self.differences = tuple(differences)


class SetupError(OrchestrateError):
    """Something is missing on this machine. The message says what to install or set. Do so, then repeat the
    call."""

    exit_code = 3


class MissingKey(SetupError):
    """The backend's API key is missing. Run `orchestrate keys set NAME`, or set the variable that the message
    names."""

    def __init__(self, provider: str, variable: str) -> None:
        super().__init__(
            f"no API key for {provider}: {variable} is not set",
            fix=f"orchestrate keys set {provider}   (or export {variable}=...)",
        )
        self.provider = provider
        self.variable = variable


class KeyElsewhere(SetupError):
    """An API key would be sent to a host that it is not tied to. Nothing was sent. If you trust the host, run
    `orchestrate keys trust NAME HOST`."""

    def __init__(self, provider: str, host: str, known: Sequence[str]) -> None:
        tied = (
            f"the key may only be sent to {', '.join(known)}"
            if known
            else "the host comes from an orchestrate.toml, and the key was never used with this host"
        )
        super().__init__(
            f"the API key of {provider} would be sent to {host}, but {tied}; nothing was sent",
            fix="check the base URL (environment, orchestrate.toml). If it is correct: orchestrate "
            f"keys trust {provider} {host}",
        )
        self.provider = provider
        self.host = host
        self.known = tuple(known)


class ProjectNotTrusted(SetupError):
    """Project files contain settings that need your trust, and you have not trusted this version of the
    files. Nothing was started, read or sent. Review the files, then run `orchestrate keys trust --project`.
    `files` contains the paths of the files, and `settings` contains the dotted names of the settings in the
    first file."""

    def __init__(self, files: Sequence[str], settings: Sequence[str] = ()) -> None:
        set_by = [", ".join(settings)] if settings else []
        set_by_file = zip(files, [*set_by, *["prices"] * len(files)], strict=False)
        super().__init__(
            f"{' and '.join(f'{file} sets {what}' for file, what in set_by_file)}. Orchestrate applies these "
            f"settings only from trusted project files, and you have not trusted this version of "
            f"{' and '.join(files)}. "
            "Nothing was started or sent",
            fix="read the file. If you trust it: orchestrate keys trust --project",
        )
        self.files, self.settings = tuple(files), tuple(settings)


class OtherAccount(SetupError):
    """The run and the API key belong to different accounts on the host. Nothing was requested or changed.
    `account` is the run's account, or `None` if it is unknown."""

    def __init__(
        self,
        provider: str,
        run_id: str,
        account: str | None,
        here: str,
        *,
        unsent: bool = False,
        sure: bool = True,
    ) -> None:
        """Build the error. If the host does not report both accounts, `sure` is False, because the key may
        only lack the permission to see the run."""
        where = f"run {run_id} is in an unknown {provider} account"
        if account is not None:
            right = "" if sure else ", or this key is not permitted to see it"
            where = f"run {run_id} is in another {provider} account: {account}{right}"
        super().__init__(
            f"{where}. The current key belongs to {here}",
            fix=f"orchestrate cancel {run_id}, then submit again"
            if unsent
            else "use the key, organization, project or account id that submitted the run",
        )
        self.provider = provider
        self.run_id = run_id
        self.account = account
        self.here = here


class MissingExtra(SetupError):
    """An optional package is missing. `fix` is the command that installs it."""

    def __init__(self, extra: str, what: str, package: str) -> None:
        super().__init__(
            f"{what} needs the package {package!r}, which is not installed",
            fix=f"pip install 'orchestrate-ft[{extra}]'",
        )
        self.extra = extra


class ConfigError(SetupError):
    """A configuration file or an environment variable is wrong. Fix the line that the message names."""


class StoreError(SetupError):
    """The run store cannot be used: it belongs to another version, is not a store, or is locked. Nothing was
    changed. `orchestrate doctor` shows details, and `orchestrate recover` rebuilds a lost store."""


_SHOWN = 10
"""Maximum number of problems that a traceback shows."""


class DataError(OrchestrateError):
    """The data has errors that a host would reject or that would harm training. `problems` lists each error
    with its row and its fix. `orchestrate data check FILE --fix` repairs what it can."""

    exit_code = 1

    def __init__(self, message: str, *, problems: Sequence[Problem] = (), fix: str | None = None) -> None:
        super().__init__(message, fix=fix)
        self.problems = tuple(problems)

    def _more(self) -> list[str]:
        shown = [
            f"  {problem}"
            + (f" ({problem.source})" if problem.source else "")
            + (f": {problem.fix}" if problem.fix else "")
            for problem in self.problems[:_SHOWN]
        ]
        left = len(self.problems) - len(shown)
        return [*shown, f"  ... and {left} more in `problems`"] if left else shown


class TranslationRefused(OrchestrateError):
    """The backend can't apply some settings of the spec. Nothing was sent. Use another backend, or run
    `orchestrate plan --fix` to write overrides that this backend accepts."""

    exit_code = 2

    def __init__(self, provider: str, settings: Sequence[Setting], *, overrides: str | None = None) -> None:
        """Build the error. `overrides` are lines for the spec that make this backend accept every setting."""
        lines = [f"  {s.name} = {s.asked!r}: {s.rule or 'not supported'}" for s in settings]
        fix = f"change or drop them, or choose another backend (orchestrate plan --provider {provider})"
        if overrides is not None:
            fix = f"to drop these settings for {provider}, add this"
            fix += f" (orchestrate plan --provider {provider} --fix  writes it):\n"
            fix += overrides
        super().__init__(
            "\n".join([f"{provider} does not support these settings of the spec:", *lines]), fix=fix
        )
        self.provider = provider
        self.settings = tuple(settings)


class Unsupported(OrchestrateError):
    """The backend lacks a feature, and `reason` says why. See `orchestrate providers`."""

    exit_code = 2

    def __init__(self, provider: str, feature: str, reason: str) -> None:
        super().__init__(f"{provider} has no {feature}: {reason}")
        self.provider = provider
        self.feature = feature
        self.reason = reason


class OverBudget(OrchestrateError):
    """The next cost would exceed a limit, so its request was not sent. Earlier requests of the same command
    may already be billed. Raise the limit, train on fewer tokens, or choose a cheaper backend (`orchestrate
    quote`)."""

    exit_code = 6

    def __init__(
        self,
        provider: str,
        high_usd: Decimal,
        limit_usd: Decimal,
        *,
        what: str = "--max-cost",
        figure: str = "the quote's high end",
        then: str = "Nothing was sent",
        note: str = "",
        fix: str = "raise the limit, train on fewer tokens (epochs or rows), or choose a cheaper backend "
        "(orchestrate quote)",
    ) -> None:
        super().__init__(
            f"{provider}: {figure} ({money(high_usd)}) exceeds {what} ({limit(limit_usd)}{note}). {then}",
            fix=fix,
        )
        self.provider = provider
        self.high_usd = high_usd
        self.limit_usd = limit_usd
        self.what = what


class OutcomeUnknown(OrchestrateError):
    """A create request was sent and its response was lost, so the job may exist and be billed. Never send it
    again: `orchestrate sync` looks up the job by its ref."""

    exit_code = 5
    retryable = False

    def __init__(self, provider: str, ref: str, detail: str) -> None:
        super().__init__(
            f"{provider}: the response to the create request was lost ({detail}); the job may "
            f"exist with ref {ref}",
            fix="orchestrate sync   (looks up the job by its ref and submits nothing twice)",
        )
        self.provider = provider
        self.ref = ref


class RunFailed(OrchestrateError):
    """The run ended without a model. `orchestrate events RUN` shows what its host reported."""

    exit_code = 1


class ArtifactRefused(OrchestrateError):
    """A downloaded artifact was unsafe or incomplete, and was discarded. Download it again. If the download
    fails again, contact the host."""

    exit_code = 4


class ProviderError(OrchestrateError):
    """A host rejected a request or is unavailable. `status` is the HTTP status, and `code` is the host's
    error code. Each is `None` if the host sent none."""

    exit_code = 4
    unsent: bool = False
    """True if the request is known not to have left this machine."""
    certain: bool = False
    """True if the host's error code is known to mean that the request was not carried out."""
    param: str | None = None
    """The request field that the host rejected, if the host named one."""

    def __init__(
        self,
        provider: str,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        fix: str | None = None,
    ) -> None:
        place = " ".join(str(p) for p in (status, code) if p is not None)
        super().__init__(f"{provider}{f' ({place})' if place else ''}: {message}", fix=fix)
        self.provider = provider
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    @property
    def did_nothing(self) -> bool:
        """True if the host is known to have done nothing, so nothing is billed."""
        return self.unsent or refuses(self.status)


def refuses(status: int | None) -> bool:
    """Return True if an HTTP status shows that the host did not carry out the request. This holds for every
    4xx status except 408 and 499, which a proxy sends when it stops waiting for the host."""
    return status is not None and 400 <= status < 500 and status not in (408, 499)


class AuthenticationFailed(ProviderError):
    """The key is wrong or has expired. Set another one: `orchestrate keys set NAME`."""


class PermissionRefused(ProviderError):
    """The key or its account lacks a permission. Use another key, or ask the account's owner for access."""


class TrainingClosed(PermissionRefused):
    """The host accepts no new fine-tuning jobs from this account or for this model. To find another backend,
    run `orchestrate quote`."""


class NotFound(ProviderError):
    """The host has no object with this id in this account. Check the id and the key's account."""


class Conflict(ProviderError):
    """The request conflicts with the current state on the host. Run `orchestrate sync`, then check again."""


class InvalidRequest(ProviderError):
    """The host rejected the request. Change the setting or file that the host's message names."""


class RateLimited(ProviderError):
    """The host received too many requests. Wait for `retry_after_s`, if the host sent it, and call again."""

    retryable = True


class QuotaExceeded(RateLimited):
    """The account has reached a limit that waiting does not lift, such as its credit or its number of
    concurrent jobs. Ask the host to raise the limit."""

    retryable = False


class HostUnavailable(ProviderError):
    """The host is unreachable, did not answer in time, or failed. Repeat the same call later."""

    retryable = True


class UnexpectedAnswer(ProviderError):
    """The host's response does not match its API and was ignored. Please report it, with the output of
    `-vv`."""
