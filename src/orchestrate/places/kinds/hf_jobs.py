"""Hugging Face Jobs: containers with a GPU, billed per minute. Orchestrate labels each job with its run's ref
and finds it by this label.

Options in `[hosts.hf-jobs.options]`:

- `depot`: URL of the storage folder
- `namespace`: an organization (default: the user's own namespace)
- `image`: container image, which must contain `uv`

The token comes from `hf auth login` or HF_TOKEN. To use a hub other than the public one, set HF_ENDPOINT.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from orchestrate import costing
from orchestrate.core.files import private_folder, write_whole
from orchestrate.errors import (
    HostUnavailable,
    InvalidRequest,
    MissingExtra,
    OutcomeUnknown,
    ProviderError,
    SetupError,
    UnexpectedAnswer,
    UsageError,
)
from orchestrate.places.away import REFUSALS, AwayPlace
from orchestrate.places.base import Hourly, Machine, Placed, Resources, Usage, newest_first
from orchestrate.places.manifest import RUN_BOOT, RunManifest, pins
from orchestrate.profile import away
from orchestrate.types import Record

if TYPE_CHECKING:
    from huggingface_hub import HfApi, JobInfo

PROFILE = away("hf-jobs", "Hugging Face Jobs", f"{__name__}:HfJobs", {"image", "namespace"})
LABEL = "orchestrate-ref"
OURS = {"orchestrate": "run"}
RATES = "huggingface"
"""Provider name in the rates file, which contains the prices from Hugging Face's pricing page."""
FLAVORS: Mapping[str, tuple[str, str]] = {
    "T4": ("t4-small", "T4"),
    "L4": ("l4x1", "L4"),
    "A10G-large": ("a10g-large", "A10G"),
    "L40S": ("l40sx1", "L40S"),
    "A100 80GB": ("a100-large", "A100"),
    "RTX PRO 6000": ("rtx-pro-6000", "RTX PRO 6000"),
    "H200": ("h200", "H200"),
}
"""Machine of each GPU, as `{GPU name in the rates: (flavor, GPU)}`. Used until the host's list of machines
has been read."""
STAGES: Mapping[str, Literal["waiting", "running", "ended"]] = {
    "SCHEDULING": "waiting",
    "RUNNING": "running",
    "COMPLETED": "ended",
    "CANCELED": "ended",
    "ERROR": "ended",
    "DELETED": "ended",
}
IMAGE = "ghcr.io/astral-sh/uv:python{}-bookworm"
"""Container image that `huggingface_hub.run_uv_job` uses. Orchestrate calls `run_job` instead, because
`run_uv_job` warns that it is experimental."""
NO_TOKEN, LOG_IN = "no Hugging Face token found", "hf auth login, or export HF_TOKEN=..."
TIMED_OUT = 408
NEVER_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout"})


class HfMachines(Record, frozen=True, kw_only=True):
    """The host's list of machines, as last read."""

    at: datetime
    machines: tuple[Machine, ...]


class HfJobs(AwayPlace):
    """Runs workers on Hugging Face Jobs. `api` is a function that creates the client, in place of the default
    client."""

    by_hand = frozenset({"CANCELED"})

    def __init__(self, name: str, options: Mapping[str, Any], api: Callable[[], HfApi] | None = None) -> None:
        super().__init__(name, options)
        self._make = api
        self._namespace: str | None = None

    def require(self) -> None:
        if find_spec("huggingface_hub") is None:
            raise MissingExtra("hf-jobs", "Hugging Face Jobs", "huggingface_hub")
        from huggingface_hub import get_token

        if self._make is None and not get_token():
            raise SetupError(NO_TOKEN, fix=LOG_IN)
        super().require()

    @property
    def api(self) -> HfApi:
        if self._make is not None:
            return self._make()
        from huggingface_hub import HfApi

        return HfApi()

    @property
    def namespace(self) -> str:
        if self._namespace is None:
            with self._converted_errors():
                api: Any = self.api
                self._namespace = str(self.options.get("namespace") or api.whoami()["name"])
        return self._namespace

    def account(self) -> str:
        return f"namespace {self.namespace}"

    # -- machines ------------------------------------------------------------------------------------------

    def machines(self) -> tuple[Machine, ...]:
        with suppress(OSError, msgspec.MsgspecError):
            return HfMachines.from_json(self._list_file.read_bytes()).machines
        return _published()

    def price(self, resources: Resources) -> Hourly:
        found = self._read()
        for machine in found:
            if machine.name == resources.machine and machine.hourly is not None:
                return machine.hourly
        names = ", ".join(machine.name for machine in found)
        raise UsageError(
            f"Hugging Face Jobs does not currently offer {resources.machine}",
            fix=f"set gpu to one of {names}, or auto",
        )

    def _read(self) -> tuple[Machine, ...]:
        """Read and save the current list."""
        with self._converted_errors():
            found = tuple(_machine(one, datetime.now(UTC)) for one in self.api.list_jobs_hardware())
        with suppress(OSError):
            private_folder(self._list_file.parent)
            write_whole(self._list_file, HfMachines(at=datetime.now(UTC), machines=found).to_json())
        return found

    @property
    def _list_file(self) -> Path:
        return Path(str(self.options.get("home", "."))) / "places" / self.name / "machines.json"

    # -- jobs ----------------------------------------------------------------------------------------------

    def submit(self, manifest: RunManifest, resources: Resources, env: dict[str, str]) -> None:
        namespace, seconds = self.namespace, self.hard_end_s(resources.limits)
        token = self._token()
        python = ".".join(platform.python_version_tuple()[:2])
        packages = [
            argument
            for pin in pins("local", more=("fsspec", *self.run_storage.packages))
            for argument in ("--with", pin)
        ]
        with self._converted_errors(unknown=manifest.job.ref):
            self.api.run_job(
                image=str(self.options.get("image") or IMAGE.format(python)),
                command=["uv", "run", *packages, "--python", python, "python", "-c", RUN_BOOT],
                env=env,
                secrets={**self.secrets, **({"HF_TOKEN": token} if token else {})},
                flavor=resources.machine or "cpu-basic",
                timeout=None if seconds is None else int(seconds),
                name=manifest.job.ref,
                labels={LABEL: manifest.job.ref, **OURS},
                namespace=namespace,
            )

    def find(self, ref: str | None = None) -> list[Placed]:
        return newest_first(_placed(job) for job in self._jobs(ref))

    def stop(self, ref: str) -> None:
        for job in self._jobs(ref):
            if _word(job) != "ended":
                with self._converted_errors():
                    self.api.cancel_job(job_id=job.id, namespace=self.namespace)

    def usage(self, ref: str) -> Usage | None:
        """Return the usage that the host measured. Each job costs its running time, rounded up to full
        minutes, times the price of its machine."""
        if not (jobs := self._jobs(ref)):
            return super().usage(ref)
        prices = {machine.name: machine.hourly for machine in self.machines()}
        seconds, usd = 0.0, Decimal(0)
        priced = True
        for job in jobs:
            ran = (job.durations.running_secs if job.durations else None) or 0
            hourly = prices.get(_flavor(job))
            seconds += ran
            priced = priced and hourly is not None
            usd += -(-ran // 60) * (hourly.usd_per_hour if hourly else Decimal(0)) / 60
        source = "run times reported by Hugging Face, at its list price per minute"
        return Usage(seconds=seconds, usd=usd if priced else None, source=source)

    def paid(self, ref: str) -> Hourly | None:
        """Return the price of the machine that the newest job actually got."""
        jobs = sorted(self._jobs(ref), key=lambda job: job.created_at or datetime.min.replace(tzinfo=UTC))
        if not jobs:
            return None
        return self.price(Resources(machine=_flavor(jobs[-1])))

    def hourly(self, found: Iterable[Placed]) -> dict[str, Hourly]:
        """Return the hourly price of each worker, keyed by its id. Reads the current list of machines only
        once."""
        jobs = list(found)
        prices = {machine.name: machine.hourly for machine in self._read()} if jobs else {}
        by_id = {one.id: prices.get(one.machine or "") for one in jobs}
        return {id: price for id, price in by_id.items() if price is not None}

    def output(self, ref: str) -> str:
        jobs = sorted(self._jobs(ref), key=lambda job: job.created_at or datetime.min.replace(tzinfo=UTC))
        if not jobs:
            return ""
        with self._converted_errors():
            lines = self.api.fetch_job_logs(job_id=jobs[-1].id, namespace=self.namespace, tail=40)
            return "\n".join(line.rstrip("\n") for line in lines)

    def _jobs(self, ref: str | None) -> list[JobInfo]:
        labels = dict(OURS) if ref is None else {LABEL: ref}
        with self._converted_errors():
            found = list(self.api.list_jobs(labels=labels, namespace=self.namespace))
        # Check again here. If the server ever ignored the filter, another run's job would be mistaken for
        # this one.
        return [job for job in found if labels.items() <= (job.labels or {}).items()]

    def _token(self) -> str | None:
        from huggingface_hub import get_token

        return self.api.token if isinstance(self.api.token, str) else get_token()

    @contextmanager
    def _converted_errors(self, unknown: str | None = None) -> Generator[None]:
        """Convert errors. `unknown` is the ref of a request that creates something. Anything but a known
        rejection of it raises `OutcomeUnknown`."""
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

        try:
            yield
        except LocalTokenNotFoundError as error:
            raise SetupError(NO_TOKEN, fix=LOG_IN) from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            if (status >= 500 or status == TIMED_OUT) and unknown is not None:
                raise OutcomeUnknown(self.name, unknown, f"the host returned {status}") from error
            kind = REFUSALS.get(status, HostUnavailable if status >= 500 else InvalidRequest)
            raise kind(self.name, f"{error.server_message or error}", status=status) from error
        except ProviderError:
            raise
        except Exception as error:
            kinds = {kind.__name__ for kind in type(error).__mro__}
            if unknown is not None and not kinds & NEVER_SENT:
                raise OutcomeUnknown(self.name, unknown, f"{type(error).__name__}: {error}") from error
            if "TransportError" in kinds or isinstance(error, OSError):
                raise HostUnavailable(self.name, f"could not reach Hugging Face: {error}") from error
            if isinstance(error, (KeyError, TypeError, ValueError)):
                raise UnexpectedAnswer(self.name, f"unexpected response: {error!r}") from error
            raise


def _placed(job: JobInfo) -> Placed:
    return Placed(
        id=job.id,
        ref=(job.labels or {}).get(LABEL, ""),
        state=_word(job),
        raw_state=_stage(job),
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        message=job.status.message,
        machine=_flavor(job),
    )


def _flavor(job: JobInfo) -> str:
    return str(getattr(job.flavor, "value", job.flavor))


def _stage(job: JobInfo) -> str:
    return str(getattr(job.status.stage, "value", job.status.stage))


def _word(job: JobInfo) -> Literal["waiting", "running", "ended", "unknown"]:
    return STAGES.get(_stage(job), "unknown")


def _machine(one: Any, at: datetime) -> Machine:
    """Parse an entry of the host's list. Raises `UnexpectedAnswer` if its price is not per minute or hour."""
    per_hour = {"minute": 60, "hour": 1}.get(one.unit_label)
    if per_hour is None:
        raise UnexpectedAnswer(PROFILE.kind, f"{one.name} is priced per {one.unit_label}")
    gpu = one.accelerator
    count = int(gpu.quantity) if gpu else 0
    memory = _memory(gpu.model, float(gpu.vram.split()[0]) / count) if gpu else None
    hourly = Hourly(
        usd_per_hour=Decimal(one.unit_cost_micro_usd) * per_hour / 1_000_000,
        machine=one.name,
        source="Hugging Face's list of machines",
        as_of=at,
    )
    return Machine(
        name=one.name, gpu=gpu.model if gpu else None, count=count, memory_bytes=memory, hourly=hourly
    )


def _memory(gpu: str, gigabytes: float) -> int:
    """Return the bytes of a GPU, whose sizes the host tells apart by rounded figures."""
    return costing.gpu_memory_bytes(f"{gpu} {gigabytes:g}GB") or int(gigabytes * 1e9)


def _published() -> tuple[Machine, ...]:
    """Return the machines with the prices of the host's page, for use until its list was read."""
    found: list[Machine] = []
    for rate in costing.built_in():
        flavor, gpu = FLAVORS.get(rate.gpu or "", ("", ""))
        if rate.provider != RATES or rate.tier != "1x" or not flavor or rate.usd_per_gpu_hour is None:
            continue
        since = datetime(rate.start.year, rate.start.month, rate.start.day, tzinfo=UTC)
        hourly = Hourly(usd_per_hour=rate.usd_per_gpu_hour, machine=flavor, source=rate.source, as_of=since)
        memory = costing.gpu_memory_bytes(rate.gpu or "")
        found.append(Machine(name=flavor, gpu=gpu, count=1, memory_bytes=memory, hourly=hourly))
    return tuple(found)
