"""SkyPilot managed jobs: RunPod, Vast.ai, Lambda, the large clouds, Kubernetes, Slurm and machines over SSH.

A job's name is the run's ref. The names of later attempts end with the attempt's number. SkyPilot doesn't
require names to be unique, so Orchestrate first searches for existing jobs and for requests that have not
created their job yet.

Options in `[hosts.sky.options]`:

- `depot`: URL of the storage folder
- `python`: Python interpreter of SkyPilot's environment (default: the one that runs the command `sky`)
- `server`: address of an API server
- `infra`: where to run, in SkyPilot's notation (`runpod`, `vast/*/US`, `k8s/my-context`, `slurm/cluster`)
- `image`: container image (`docker:...`)
- `disk_gb`, `cpus`: size of the machine
- `gpu`, `gpu_memory_gib`, `usd_per_hour`: hardware and hourly price of your own machines
"""

from __future__ import annotations

import platform
import re
import shlex
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import msgspec

from orchestrate import costing
from orchestrate.core.files import private_folder, write_whole
from orchestrate.errors import (
    AuthenticationFailed,
    HostUnavailable,
    InvalidRequest,
    OrchestrateError,
    OutcomeUnknown,
    ProviderError,
    SetupError,
    UsageError,
)
from orchestrate.places.away import (
    MACHINE_OPTIONS,
    AwayPlace,
    configured_machine,
    configured_price,
    next_name,
)
from orchestrate.places.base import Hourly, Machine, Placed, Resources, Usage, newest_first
from orchestrate.places.kinds._skypilot import INSTALL, Bridge, NoAnswer, SkyRefusal, python_of
from orchestrate.places.manifest import RUN_BOOT, RunManifest, pins
from orchestrate.profile import away
from orchestrate.types import Record


class SkyMachines(Record, frozen=True, kw_only=True):
    """The machines of all clouds, as last read."""

    at: datetime
    machines: tuple[Machine, ...]


def cheapest(offers: list[dict[str, Any]], now: datetime) -> tuple[Machine, ...]:
    """Return the cheapest machine of all clouds for each GPU type and count."""
    kinds: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for one in offers:
        if one["count"] >= 1 and one["count"] == int(one["count"]):
            kinds.setdefault((str(one["gpu"]), int(one["count"])), []).append(one)
    found: list[Machine] = []
    for (gpu, count), same in sorted(kinds.items()):
        memory = next((one["memory_gib"] for one in same if one["memory_gib"]), None)
        # Of an L4 the catalog says 24 GiB, and CUDA gives 22 of them.
        size = costing.gpu_memory_bytes(gpu) or (int(memory * 2**30) if memory else None)
        found.append(
            Machine(
                name=f"{gpu}:{count}",
                gpu=gpu,
                count=count,
                memory_bytes=size,
                hourly=_least(same, "price", now),
                spot=_least(same, "spot_price", now),
            )
        )
    return tuple(found)


def _least(offers: list[dict[str, Any]], field: str, now: datetime) -> Hourly | None:
    priced = [one for one in offers if one[field]]
    if not priced:
        return None
    best = min(priced, key=lambda one: one[field])
    where = f"{best['cloud']} {best['region']}"
    source = f"SkyPilot's catalog of {best['cloud']}"
    return Hourly(usd_per_hour=Decimal(str(best[field])), machine=where, source=source, as_of=now)


def known() -> tuple[Machine, ...]:
    """List commonly rented machines, without prices. The list is used until a catalog has been read."""
    return tuple(
        Machine(name=f"{gpu}:1", gpu=gpu, count=1, memory_bytes=costing.gpu_memory_bytes(gpu))
        for gpu in ("L4", "L40S", "A100-80GB", "H100", "H200", "B200")
    )


OWN = {"cpus", "disk_gb", "image", "infra", "python", "server"}
PROFILE = away("sky", "SkyPilot", f"{__name__}:Sky", {*MACHINE_OPTIONS, *OWN})
STATES: Mapping[str, Literal["waiting", "running", "ended"]] = {
    "REQUEST_PENDING": "waiting",
    "REQUEST_RUNNING": "waiting",
    "REQUEST_WAITING": "waiting",
    "REQUEST_FAILED": "ended",
    "REQUEST_CANCELLED": "ended",
    "NEVER_SCHEDULED": "ended",
    "PENDING": "waiting",
    "SUBMITTED": "waiting",
    "STARTING": "waiting",
    "RECOVERING": "waiting",
    "RUNNING": "running",
    "WINDING_DOWN": "running",
    "CANCELLING": "running",
    "SUCCEEDED": "ended",
    "CANCELLED": "ended",
    "FAILED": "ended",
    "FAILED_SETUP": "ended",
    "FAILED_PRECHECKS": "ended",
    "FAILED_NO_RESOURCE": "ended",
    "FAILED_CONTROLLER": "ended",
}
"""Maps the statuses of managed jobs, and of requests that created no job, to the states of workers. A job
whose machine is being cleaned up counts as running."""
SETTLE_S = 30.0
"""Seconds that a submission waits for its job to appear. The API server may create the job later."""
LISTED_H = 24
NEVER_SENT = frozenset({"NewConnectionError", "ConnectTimeout", "ApiServerConnectionError"})
LOST = frozenset(
    {"RequestException", "ServerTemporarilyUnavailableError", "RequestInterruptedError", "HTTPException"}
)
CLOUDS = (
    "run  sky check  in SkyPilot's environment and follow its advice for each cloud. For RunPod, put a "
    "key in ~/.runpod/config.toml"
)


class Sky(AwayPlace):
    """Runs workers through SkyPilot. `bridge` is the connection to SkyPilot. By default, it is created from
    the options. `settle_s` is the number of seconds that a submission waits for its job."""

    by_hand = frozenset({"CANCELLED"})

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        bridge: Bridge | None = None,
        settle_s: float = SETTLE_S,
    ) -> None:
        super().__init__(name, options)
        self._made, self.settle_s = bridge, settle_s

    def account(self) -> str:
        return f"SkyPilot at {self.options.get('server', 'the API server of its client')}"

    def require(self) -> None:
        _ = self._python
        with (
            suppress(ProviderError),
            self._converted_errors(),
        ):  # of a server that does not answer nothing is known
            if not self._bridge.ask("enabled", clouds=self._clouds):
                raise self._no_cloud()
        super().require()

    def close(self) -> None:
        if self._made is not None:
            self._made.close()

    @property
    def _python(self) -> str:
        if found := self.options.get("python"):
            return str(Path(str(found)).expanduser())
        if found := python_of():
            return found
        raise SetupError(
            "SkyPilot is not installed. It needs a separate environment because it requires old versions "
            "of other packages",
            fix=f"{INSTALL}, then {CLOUDS}. If SkyPilot is not on the PATH, set "
            f"hosts.{self.name}.options.python to its Python interpreter",
        )

    # -- machines ------------------------------------------------------------------------------------------

    def machines(self) -> tuple[Machine, ...]:
        """List the user's own machines, or the clouds' offers. If SkyPilot is available, the offers are read
        once a day."""
        if self._owned:
            return (configured_machine(self.name, self.options),)
        kept = self._kept()
        if kept is not None and datetime.now(UTC) - kept.at < timedelta(hours=LISTED_H):
            return kept.machines
        with suppress(OrchestrateError):
            if found := self._read():
                return found
        return kept.machines if kept else known()

    def price(self, resources: Resources) -> Hourly | None:
        if self._owned:
            return configured_price(self.name, self.options)
        found = self._read()
        if not found:
            raise self._no_cloud()
        for machine in found:
            if machine.gpu == resources.gpu and machine.count == resources.count:
                hourly = machine.spot if resources.spot else machine.hourly
                if hourly is not None:
                    return hourly
        if resources.gpu is None:
            return None  # no catalog lists machines by what they lack
        names = ", ".join(sorted({machine.name for machine in found}))
        raise UsageError(
            f"SkyPilot does not currently offer {resources.description}",
            fix=f"set gpu to one of {names}, or auto",
        )

    def _no_cloud(self) -> SetupError:
        at = f" at {self.options['infra']}" if self.options.get("infra") else ""
        return SetupError(f"SkyPilot has no enabled cloud{at}", fix=CLOUDS)

    @property
    def _owned(self) -> bool:
        return self.options.get("usd_per_hour") is not None

    def _read(self) -> tuple[Machine, ...]:
        """Read and save the current catalogs."""
        now = datetime.now(UTC)
        with self._converted_errors():
            found = cheapest(self._bridge.ask("machines", clouds=self._clouds), now)
        if not found:  # a cloud that is set up next is seen at once
            return found
        with suppress(OSError):
            private_folder(self._list_file.parent)
            write_whole(self._list_file, SkyMachines(at=now, machines=found).to_json())
        return found

    def _kept(self) -> SkyMachines | None:
        with suppress(OSError, msgspec.MsgspecError):
            return SkyMachines.from_json(self._list_file.read_bytes())
        return None

    @property
    def _clouds(self) -> list[str]:
        cloud = str(self.options.get("infra", "*")).partition("/")[0].lower()
        return [] if cloud == "*" else [{"k8s": "kubernetes"}.get(cloud, cloud)]

    @property
    def _list_file(self) -> Path:
        return Path(str(self.options.get("home", "."))) / "places" / self.name / "machines.json"

    # -- jobs ------------------------------------------------------------------------------------------------

    def submit(self, manifest: RunManifest, resources: Resources, env: dict[str, str]) -> None:
        ref = manifest.job.ref
        name = next_name(ref, (str(one["name"]) for one in self._jobs(ref) if _ref(one)))
        with self._converted_errors(unknown=ref):
            self._bridge.ask("launch", task=self.task(name, ref, resources, env))
        until = time.monotonic() + self.settle_s
        while True:
            try:
                found = next((one for one in self._jobs(name) if one["name"] == name), None)
            except OrchestrateError as error:
                raise OutcomeUnknown(self.name, ref, f"{error}") from error
            if found is not None and STATES.get(found["status"]) == "ended":
                if found["status"] == "NEVER_SCHEDULED":
                    self._cancel([found])
                raise InvalidRequest(self.name, str(found["message"] or found["status"]))
            pending = found is None or str(found["status"]).startswith("REQUEST_")
            if not pending or time.monotonic() > until:
                return
            time.sleep(0.5)

    def task(self, name: str, ref: str, resources: Resources, env: Mapping[str, str]) -> dict[str, Any]:
        """Build the task definition for SkyPilot. Only its `secrets` contain keys."""
        limits = resources.limits
        command = ["uv", "run", "--python", ".".join(platform.python_version_tuple()[:2])]
        for pin in pins("local", more=("fsspec", *self.run_storage.packages)):
            command += ["--with", pin]
        command += ["python", "-c", RUN_BOOT]
        if (seconds := self.hard_end_s(limits)) is not None:
            command = ["timeout", "--kill-after=60", str(int(seconds)), *command]
        resources_wanted: dict[str, Any] = {
            "accelerators": {resources.gpu: resources.count} if resources.gpu else None,
            "cpus": self.options.get("cpus", None if resources.gpu else "4+"),
            "use_spot": True if resources.spot else None,
            "max_hourly_cost": None if self._owned else _dollars(limits.most_usd_per_hour),
            "infra": self.options.get("infra"),
            "image_id": self.options.get("image"),
            "disk_size": self.options.get("disk_gb"),
            "labels": {"orchestrate": "run", "orchestrate-ref": ref},
            "autostop": {"idle_minutes": 10, "down": True},
            "job_recovery": {"max_restarts_on_errors": 0},
        }
        return {
            "name": name,
            "resources": {key: value for key, value in resources_wanted.items() if value is not None},
            "envs": dict(env),
            **({"secrets": self.secrets} if self.secrets else {}),
            "setup": 'export PATH="$HOME/.local/bin:$PATH"\ncommand -v uv || python3 -m pip install uv\n',
            "run": f'export PATH="$HOME/.local/bin:$PATH"\n{shlex.join(command)}\n',
        }

    def find(self, ref: str | None = None) -> list[Placed]:
        return newest_first(_placed(one, mine) for one in self._jobs(ref or "orc-") if (mine := _ref(one)))

    def stop(self, ref: str) -> None:
        self._cancel([one for one in self._jobs(ref) if STATES.get(one["status"]) != "ended"])

    def _cancel(self, jobs: list[dict[str, Any]]) -> None:
        with self._converted_errors():
            for one in jobs:
                if str(one["id"]).startswith("request "):
                    self._bridge.ask("withdraw", request=str(one["id"]).removeprefix("request "))
            if ids := [one["id"] for one in jobs if not str(one["id"]).startswith("request ")]:
                self._bridge.ask("cancel", ids=ids)

    def paid(self, ref: str) -> Hourly | None:
        """Return the hourly price of the machine that the run uses: the price that the cloud reports or, if
        it reports none, the catalog's price for the job's region. Returns `None` if no job is running, no
        price is known, or the machines are the user's own."""
        running = [
            one
            for one in self._jobs(ref)
            if one["status"] == "RUNNING" and one.get("cloud") not in (None, "-")
        ]
        if self._owned or not running:
            return None
        job, now = running[-1], datetime.now(UTC)
        cloud, region = str(job["cloud"]), job.get("region")
        with self._converted_errors():
            reply = self._bridge.ask("paid", cloud=cloud, cluster=str(job.get("cluster") or ref))
            if reply is not None:
                price, source = Decimal(str(reply)), f"price reported by {cloud}"
                return Hourly(usd_per_hour=price, machine=cloud, source=source, as_of=now)
            offers = self._bridge.ask("machines", clouds=[cloud.lower()])
        there = [one for one in offers if region in (None, "-", one["region"])]
        gpus: Mapping[str, Any] = job.get("accelerators") or {}
        for machine in cheapest(there, now):
            if machine.gpu is not None and gpus.get(machine.gpu) == machine.count:
                return machine.spot if "[Spot]" in str(job.get("resources")) else machine.hourly
        return None

    def usage(self, ref: str) -> Usage | None:
        """Return the total running time of the run's jobs, as measured by SkyPilot, and its cost at the
        latest price."""
        jobs = [one for one in self._jobs(ref) if _ref(one) == ref]
        if not jobs:
            return super().usage(ref)
        seconds = sum(float(one["seconds"]) for one in jobs)
        hourly = self.price_of(ref)
        return Usage.at(hourly, seconds, f"SkyPilot's clock at {hourly.source if hourly else 'no price'}")

    def output(self, ref: str) -> str:
        jobs = [one for one in self._jobs(ref) if isinstance(one["id"], int)]
        if not jobs:
            return ""
        with self._converted_errors():
            return str(self._bridge.ask("logs", id=max(one["id"] for one in jobs), lines=40))

    def _jobs(self, name: str) -> list[dict[str, Any]]:
        with self._converted_errors():
            return self._bridge.ask("jobs", name=name)

    @property
    def _bridge(self) -> Bridge:
        if self._made is None:
            server = self.options.get("server")
            self._made = Bridge(self._python, str(server) if server else None)
        return self._made

    @contextmanager
    def _converted_errors(self, unknown: str | None = None) -> Generator[None]:
        """Convert errors. `unknown` is the ref of a request that creates something."""
        try:
            yield
        except NoAnswer as error:
            if unknown is not None:
                raise OutcomeUnknown(self.name, unknown, str(error)) from error
            raise HostUnavailable(
                self.name, str(error), fix="run  sky api info  in SkyPilot's environment"
            ) from error
        except SkyRefusal as error:
            kinds = set(error.kinds)
            if "ApiServerAuthenticationError" in kinds:
                raise AuthenticationFailed(self.name, error.message, fix="sky api login") from error
            if "ModuleNotFoundError" in kinds:
                raise SetupError(f"{self._python} has no SkyPilot: {error.message}", fix=INSTALL) from error
            unknown_outcome = kinds & LOST or error.kinds[:1] == ["RuntimeError"]
            if unknown is not None and unknown_outcome and not kinds & NEVER_SENT:
                raise OutcomeUnknown(self.name, unknown, f"{error.kinds[0]}: {error.message}") from error
            if unknown_outcome or kinds & NEVER_SENT:
                message = f"could not reach SkyPilot's API server: {error.message}"
                raise HostUnavailable(
                    self.name, message, fix="to check it: sky api info. To start it: sky api start"
                ) from error
            raise InvalidRequest(self.name, error.message) from error


def _ref(one: Mapping[str, Any]) -> str:
    found = re.fullmatch(r"(orc-[a-z0-9]{12})(-\d+)?", str(one["name"]))
    return found[1] if found else ""


def _placed(one: Mapping[str, Any], ref: str) -> Placed:
    return Placed(
        id=str(one["id"]),
        ref=ref,
        state=STATES.get(one["status"], "unknown"),
        raw_state=str(one["status"]),
        created_at=_time(one.get("submitted_at")),
        started_at=_time(one.get("started_at")),
        finished_at=_time(one.get("ended_at")),
        message=one.get("message"),
    )


def _time(seconds: float | None) -> datetime | None:
    return None if not seconds or seconds < 0 else datetime.fromtimestamp(seconds, UTC)


def _dollars(usd: Decimal | None) -> float | None:
    return None if usd is None else float(usd)
