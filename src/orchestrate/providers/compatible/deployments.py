"""Deployments of tuned models on hosts that are described by a YAML file. The file also defines the requests.

A deployment is named after its job, so a second call finds it again. After each request, the host's list of
deployments is checked, because only the list shows whether the request took effect."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from msgspec import structs

from orchestrate.description import AdapterUpload, DeploymentDescription, Described, HostRequest
from orchestrate.errors import MissingKey, NotFound, ProviderError, UnexpectedAnswer, UsageError
from orchestrate.providers import adapters
from orchestrate.providers.adapters import Replicas
from orchestrate.providers.calls import payload, plain, table, text, when
from orchestrate.providers.calls.clients import CachedClient
from orchestrate.providers.calls.hosted import Wire
from orchestrate.types import Adapter, BilledResource, Endpoint, Job, JobStatus

if TYPE_CHECKING:
    import httpx

    from orchestrate.profile import Profile
    from orchestrate.settings.config import HostConfig

_BROUGHT = re.compile(r"orc-[0-9a-f]{24}")
"""Pattern of an adapter's id, which is derived from its weights."""


class DeployOptions(Replicas, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of `deploy`."""

    tier: str | None = None
    """Deployment tier. Default: the first tier in the host's description."""


class Deploying:
    def __init__(
        self, described: Described, how: DeploymentDescription, config: HostConfig, wire: Wire
    ) -> None:
        self._described, self._how, self._config, self._wire = described, how, config, wire
        self._http = CachedClient(self._connect)

    def _connect(self) -> httpx.Client:
        """Raises `MissingKey` with how the key is got."""
        import httpx

        how, config = self._how, self._config
        headers: dict[str, str] = {}
        if how.login:
            token = config.management_token
            if token is None:
                variable = f"{config.name.upper().replace('-', '_')}_MANAGEMENT_TOKEN"
                missing = MissingKey(f"{self._described.title}'s deployment API", variable)
                missing.fix = f'export {variable}="$({how.login})"'
                raise missing
            headers["authorization"] = f"Bearer {token.reveal()}"
        else:
            headers["authorization"] = f"Bearer {config.require_key().reveal()}"
        root = how.url
        if config.management_url is not None:
            root = config.management_url
        elif root is None:
            base = urlsplit(config.base_url or "")
            root = f"{base.scheme}://{base.netloc}{how.root}"
        return httpx.Client(base_url=root, headers=headers, timeout=config.timeout_s, follow_redirects=False)

    def close(self) -> None:
        self._http.close()

    # -- requests --------------------------------------------------------------------------------------------

    def price(self, options: Mapping[str, Any] | None) -> Decimal | None:
        """Return the hourly price of `deploy` with these options in US dollars."""
        return self._hourly(self._tier(self._wanted(options)))

    def deploy(self, job: Job, options: Mapping[str, Any] | None, checkpoint: Callable[[], str]) -> Endpoint:
        """Deploy the job's model. `checkpoint` is a function that returns the id of the last checkpoint.
        Raises `OutcomeUnknown` if the response to the billed request was lost."""
        wanted = self._wanted(options)
        there = self._find(job.handle.job_id)
        if there is None:
            tier = self._tier(wanted)
            wanted.require(self._config.name, self._hourly(tier))
            values = self._values(job, tier, wanted, checkpoint)
            name = values["name"]
            try:
                self._wire.send_once(name, lambda: self._send(self._how.make, values), lambda _: name)
            except ProviderError:
                # After an error, the deployment may still exist, created by this request or by another
                # process.
                there = self._find(job.handle.job_id)
                if there is None:
                    raise
            there = there or self._find(job.handle.job_id)
        return self._endpoint(job.handle.job_id, there)

    def remove(self, job_id: str) -> None:
        there = self._find(job_id)
        if there is None:
            return
        values = {**self._own_options(), "name": str(there["name"]), "job": job_id}
        try:
            self._wire.read(lambda: self._send(self._how.remove, values))
        except NotFound:
            return  # gone already

    def find(self, job_id: str) -> Endpoint | None:
        return self._endpoint(job_id, there) if (there := self._find(job_id)) is not None else None

    def bring(self, id: str, base: str, archive: bytes) -> None:
        """Upload an adapter and publish it under its name. An adapter that is uploaded but not published
        costs nothing, so uploads may be repeated."""
        how = self._how.adapters
        if how is None:
            raise AssertionError("the host's description does not support uploaded adapters")
        sent = {how.field: (f"{id}.zip", archive, "application/zip")}

        def upload() -> dict[str, Any]:
            answer = self._http().post(_filled(how.path, self._own_options()), files=sent)
            answer.raise_for_status()
            return plain(answer.json())

        file = text(_at(self._wire.read(upload), how.id))
        if file is None:
            raise UnexpectedAnswer(self._config.name, "no adapter id in the response")
        name = self.name(id)
        values = {**self._own_options(), "file": file, "base": base, "name": name, "job": id}
        make = structs.replace(self._how.make, body=how.body)
        try:
            self._wire.send_once(name, lambda: self._send(make, values), lambda _: name)
        except ProviderError:
            if self._find(id) is None:  # else it was made all the same
                raise

    def billing_items(self) -> Iterator[BilledResource]:
        """List all deployments. Deployments of base models have no hourly price, only token prices, so they
        are listed as not billed."""
        for entry in self._all():
            bills = self._how.bills.get(entry["state"]) if entry["tuned"] else False
            hourly = self._hourly(entry["tier"]) if entry["tuned"] else Decimal(0)
            yield BilledResource(
                provider=self._config.name,
                kind="deployment",
                id=entry["name"],
                name=entry["name"],
                state=entry["state"].lower(),
                bills=False if hourly == 0 else bills,
                usd_per_hour=hourly,
                job_id=entry["job"],
                created_at=when(entry["created"]),
                note=entry["model"],
                payload=payload(entry["raw"]),
            )

    # -- steps ---------------------------------------------------------------------------------------------

    def _wanted(self, options: Mapping[str, Any] | None) -> DeployOptions:
        wanted = DeployOptions.read(self._config.name, options)
        if wanted.tier is not None and wanted.tier not in self._how.tiers:
            known = ", ".join(self._how.tiers) or "none"
            raise UsageError(
                f"{self._described.title} has no deployment tier {wanted.tier!r}. Available: {known}"
            )
        return wanted

    def _tier(self, wanted: DeployOptions) -> str | None:
        return wanted.tier or next(iter(self._how.tiers), None)

    def _hourly(self, tier: str | None) -> Decimal | None:
        """Return the hourly price by the description's rates."""
        for rate in self._described.rates:
            if rate.get("method") == "hosting" and (
                tier is None or str(rate.get("tier")).lower() == tier.lower()
            ):
                return Decimal(str(rate["usd_per_hour"]))
        return None

    def _own_options(self) -> dict[str, str]:
        given = self._config.options
        if lacking := [name for name in self._how.options if not given.get(name)]:
            wanted = ", ".join(f'{name} = "{self._how.options[name]}"' for name in lacking)
            raise UsageError(
                f"{self._described.title}'s deployment API needs {', '.join(lacking)}",
                fix=f"[hosts.{self._config.name}.options] {wanted}   in orchestrate.toml",
            )
        return {name: str(given[name]) for name in self._how.options}

    def _values(
        self, job: Job, tier: str | None, wanted: DeployOptions, checkpoint: Callable[[], str]
    ) -> dict[str, str]:
        if job.status is not JobStatus.SUCCEEDED:
            raise UsageError(f"job {job.handle.job_id} has no model yet (status {job.status})")
        needed = "{checkpoint}" in str(self._how.make.body)
        return {
            **self._own_options(),
            "checkpoint": checkpoint() if needed else "",
            "name": self.name(job.handle.job_id),
            "job": job.handle.job_id,
            "model": job.tuned_model or "",
            "base": job.model or "",
            "tier": tier or "",
            "capacity": str(wanted.max_replicas),
        }

    def _send(self, request: HostRequest, values: Mapping[str, str]) -> dict[str, Any]:
        answer = self._http().request(
            request.method,
            _filled(request.path, values),
            params=request.query or None,
            json=None if request.body is None else _filled(request.body, values),
        )
        answer.raise_for_status()
        return plain(answer.json()) if answer.content else {}

    def _all(self) -> Iterator[dict[str, Any]]:
        how = self._how.list
        path = _filled(how.path, self._own_options())

        def ask() -> object:
            answer = self._http().get(path, params=how.query or None)
            answer.raise_for_status()
            return answer.json()

        for raw in self._wire.entries(ask, how.entries):
            model, name = (text(_at(raw, path)) or "" for path in (how.model, how.name))
            yield {
                "raw": raw,
                "name": name,
                "job": self._made_of(name, raw),
                "model": model,
                "state": text(_at(raw, how.state)) or "unknown",
                "tier": text(_at(raw, how.tier)) if how.tier else None,
                "created": _at(raw, how.created) if how.created else None,
                "tuned": self._how.tuned in model,
            }

    def _made_of(self, name: str, raw: Mapping[str, Any]) -> str | None:
        """Return the job's id, or an uploaded adapter's: by the entry where it has one, else by its name."""
        brought = _BROUGHT.search(name) if self._how.adapters is not None else None
        if brought is not None:
            return brought[0]
        at = self._how.list.job
        return self._job_id(name) if at is None else _before_colon(text(_at(raw, at)))

    def _find(self, job_id: str) -> dict[str, Any] | None:
        return next((entry for entry in self._all() if entry["job"] == job_id.lower()), None)

    def name(self, job_id: str) -> str:
        return self._how.name_pattern.replace("{job}", job_id).lower()

    def _job_id(self, name: str) -> str | None:
        """Return the job id of a deployment that is named by our scheme."""
        before, _, _ = self._how.name_pattern.lower().partition("{job}")
        return name.lower().removeprefix(before) if name.lower().startswith(before) else None

    def _endpoint(self, job_id: str, there: Mapping[str, Any] | None) -> Endpoint:
        name = self.name(job_id)
        entry = there or {"name": name, "state": "starting", "tier": None, "raw": {}, "model": name}
        return Endpoint(
            provider=self._config.name,
            id=str(entry["name"]),
            model=str(entry[self._how.answers_as]),
            state="ready" if entry["state"] in self._how.up else str(entry["state"]).lower(),
            base_url=self._config.base_url,
            usd_per_hour=self._hourly(entry["tier"]),
            payload=payload(entry["raw"]),
        )


def _filled(value: Any, values: Mapping[str, str]) -> Any:
    """Replace `{name}` and the like in texts. A text that is only a number then becomes a number."""
    if isinstance(value, Mapping):
        return {key: _filled(inner, values) for key, inner in table(value).items()}
    if isinstance(value, list):
        return [_filled(inner, values) for inner in value]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(value, str) or "{" not in value:
        return value
    found = value
    for name, word in values.items():
        found = found.replace(f"{{{name}}}", word)
    return int(found) if value == "{capacity}" else found


def _before_colon(value: str | None) -> str | None:
    return value.partition(":")[0].lower() if value else None


def _at(raw: Mapping[str, Any], path: str) -> Any:
    value: Any = raw
    for key in path.split("."):
        value = table(value).get(key)
    return value


# -- adapters trained elsewhere ------------------------------------------------------------------------------
# Uploads of these adapters: an archive, then a request that publishes it under a name.


class DescribedAdapters(adapters.Adapters):
    def __init__(
        self, profile: Profile, how: AdapterUpload, deploying: Deploying, bases: Collection[str]
    ) -> None:
        """Create the interface. `bases` are the host's ids of the base models for which it serves
        adapters."""
        self._profile, self._how, self._deploying, self._bases = profile, how, deploying, bases

    def price(self, adapter: Adapter, options: Mapping[str, Any] | None) -> Decimal | None:
        self._base(adapter)
        most = self._how.max_rank
        if most is not None and adapter.rank > most:
            raise UsageError(
                f"{self._profile.title} accepts adapters up to rank {most}, but this one has rank "
                f"{adapter.rank}"
            )
        return self._deploying.price(options)

    def upload(self, adapter: Adapter, progress: Callable[[int, int], None] | None = None) -> None:
        """Upload an adapter. The host serves it immediately and bills it per token."""
        if self._deploying.find(adapter.id) is not None:
            return
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for file in adapters.files(adapter):
                archive.write(file, file.name)
        size = packed.tell()
        self._deploying.bring(adapter.id, self._base(adapter), packed.getvalue())
        if progress is not None:
            progress(size, size)

    def _base(self, adapter: Adapter) -> str:
        """Return the base's name. Hosts that train any hub model serve adapters only on their own models."""
        base = adapters.base_at(self._profile, adapter)
        if base not in self._bases:
            raise UsageError(
                f"{self._profile.title} does not serve {adapter.base}, the adapter's base model. "
                f"It serves adapters for {', '.join(sorted(self._bases))}"
            )
        return base
