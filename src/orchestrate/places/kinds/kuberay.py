"""Kubernetes with the KubeRay operator: one RayJob per attempt, on a single-machine cluster that is deleted
with the job. The job's name is the run's ref, which a namespace accepts only once. The names of later
attempts end with the attempt's number.

Options in `[hosts.kuberay.options]`:

- `depot`: URL of the storage folder
- `context`: context in the kubeconfig (default: the current one)
- `namespace`: Kubernetes namespace (default: `default`)
- `image`: container image
- `ray_version`: version of Ray in the image
- `gpu`, `gpu_memory_gib`, `usd_per_hour`: same as for `ray`
- `cpus`, `memory`: size of the machine
- `node_selector`: labels of the nodes to use
- `secret`: a Secret in the namespace. Its keys become environment variables of the worker, for access to the
  storage and the Hub.
- `packages`: `pinned` (default) or `image`, same as for `ray`
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib.util import find_spec
from typing import Any, Literal

from orchestrate.errors import (
    AuthenticationFailed,
    ConfigError,
    HostUnavailable,
    InvalidRequest,
    MissingExtra,
    NotFound,
    OrchestrateError,
    OutcomeUnknown,
    PermissionRefused,
    ProviderError,
)
from orchestrate.places.away import (
    MACHINE_OPTIONS,
    AwayPlace,
    configured_machine,
    configured_price,
    next_name,
)
from orchestrate.places.base import (
    Hourly,
    Machine,
    Placed,
    Resources,
    Usage,
    WorkerLimits,
    newest_first,
    ran_s,
)
from orchestrate.places.manifest import RUN_BOOT, RunManifest, pins, unexpanded
from orchestrate.profile import away

OWN = {
    "context",
    "cpus",
    "image",
    "memory",
    "namespace",
    "node_selector",
    "packages",
    "ray_version",
    "secret",
}
PROFILE = away("kuberay", "KubeRay", f"{__name__}:KubeRay", {*MACHINE_OPTIONS, *OWN})
GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
OURS, LABEL = "orchestrate=run", "orchestrate-ref"
STATES: Mapping[str, Literal["waiting", "running", "ended"]] = {
    "": "waiting",
    "Initializing": "waiting",
    "Waiting": "waiting",
    "Retrying": "waiting",
    "Running": "running",
    "Complete": "ended",
    "Failed": "ended",
    "ValidationFailed": "ended",
    "Suspending": "ended",
    "Suspended": "ended",
}
"""Maps the operator's `status.jobDeploymentStatus` to a worker's state. To stop a job, Orchestrate suspends
it and never resumes it."""
START_S = 3600
"""Seconds for starting a machine and installing packages."""
KEPT_S = 600
LATER_S = 900
"""Seconds added to the run's time limit, because the operator starts counting before the machine has
started."""
_REFUSALS: Mapping[int, type[ProviderError]] = {
    401: AuthenticationFailed,
    403: PermissionRefused,
    404: NotFound,
}


class KubeRay(AwayPlace):
    """Runs workers on KubeRay. `api` is a function that returns the `kubernetes.client.CustomObjectsApi` to
    use. By default, the client is created from the kubeconfig."""

    def __init__(self, name: str, options: Mapping[str, Any], api: Callable[[], Any] | None = None) -> None:
        super().__init__(name, options)
        self._make, self._made = api, None
        self.namespace = str(options.get("namespace", "default"))

    def account(self) -> str:
        return f"namespace {self.namespace} of {self.options.get('context', 'the current context')}"

    def require(self) -> None:
        if find_spec("kubernetes") is None:
            raise MissingExtra("kuberay", "a cluster with KubeRay", "kubernetes")
        if not self.options.get("image"):
            raise ConfigError(
                f"{self.name} needs a container image that contains Ray",
                fix=f'[hosts.{self.name}.options] image = "rayproject/ray:2.52.0-py311-gpu"',
            )
        super().require()

    def machines(self) -> tuple[Machine, ...]:
        return (configured_machine(self.name, self.options),)

    def price(self, resources: Resources) -> Hourly | None:
        return configured_price(self.name, self.options)

    def hard_end_s(self, limits: WorkerLimits) -> float | None:
        return None if limits.seconds is None else limits.seconds + LATER_S

    # -- jobs ------------------------------------------------------------------------------------------------

    def submit(self, manifest: RunManifest, resources: Resources, env: dict[str, str]) -> None:
        ref = manifest.job.ref
        name = next_name(ref, (one.id for one in self.find(ref)))
        body = self.manifest(name, manifest, resources, env)
        with self._converted_errors(unknown=ref):
            self._api.create_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, body)

    def manifest(
        self, name: str, manifest: RunManifest, resources: Resources, env: Mapping[str, str]
    ) -> dict[str, Any]:
        """Build the RayJob manifest. It contains no secrets."""
        import yaml

        write: Any = yaml.safe_dump  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        runtime: dict[str, Any] = {"env_vars": unexpanded(env)}
        if self.options.get("packages", "pinned") != "image":
            runtime["uv"] = pins("local", more=("fsspec", *self.run_storage.packages))
        seconds = self.hard_end_s(resources.limits)
        deadline = {} if seconds is None else {"activeDeadlineSeconds": int(seconds)}
        return {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "RayJob",
            "metadata": {
                "name": name,
                "labels": {"orchestrate": "run", LABEL: manifest.job.ref},
            },
            "spec": {
                "entrypoint": f"python -c {shlex.quote(RUN_BOOT)}",
                "jobId": name,
                "runtimeEnvYAML": write(runtime),
                "submissionMode": "K8sJobMode",
                "backoffLimit": 0,
                "preRunningDeadlineSeconds": START_S,
                "shutdownAfterJobFinishes": True,
                "ttlSecondsAfterFinished": KEPT_S,
                "suspend": False,
                **deadline,
                "rayClusterSpec": self._cluster(resources),
            },
        }

    def _cluster(self, resources: Resources) -> dict[str, Any]:
        limits = {
            "cpu": str(self.options.get("cpus", 4)),
            "memory": str(self.options.get("memory", "32Gi")),
            **({"nvidia.com/gpu": str(resources.count)} if resources.gpu else {}),
        }
        container: dict[str, Any] = {
            "name": "ray-head",
            "image": str(self.options["image"]),
            "resources": {"limits": limits, "requests": limits},
        }
        if secret := self.options.get("secret"):
            container["envFrom"] = [{"secretRef": {"name": str(secret)}}]
        pod: dict[str, Any] = {"containers": [container]}
        if selector := self.options.get("node_selector"):
            pod["nodeSelector"] = dict(selector)
        found: dict[str, Any] = {"headGroupSpec": {"rayStartParams": {}, "template": {"spec": pod}}}
        version = self.options.get("ray_version")
        return {**found, **({"rayVersion": str(version)} if version else {})}

    def find(self, ref: str | None = None) -> list[Placed]:
        selector = OURS if ref is None else f"{OURS},{LABEL}={ref}"
        with self._converted_errors():
            found: Any = self._api.list_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, label_selector=selector
            )
            return newest_first(_placed(one) for one in found["items"])

    def stop(self, ref: str) -> None:
        """Suspend the job. The operator then deletes the job's cluster."""
        for one in self.find(ref):
            if one.state != "ended":
                body = {"spec": {"suspend": True}}
                with self._converted_errors():
                    self._api.patch_namespaced_custom_object(
                        GROUP, VERSION, self.namespace, PLURAL, one.id, body
                    )

    def usage(self, ref: str) -> Usage | None:
        if not (found := self.find(ref)):
            return super().usage(ref)
        hourly = configured_price(self.name, self.options)
        return Usage.at(hourly, ran_s(found), "run times reported by KubeRay, at the configured price")

    @property
    def _api(self) -> Any:
        if self._made is None:
            self._made = self._make() if self._make is not None else self._from_kubeconfig()
        return self._made

    def _from_kubeconfig(self) -> Any:
        import kubernetes  # pyright: ignore[reportMissingTypeStubs]

        library: Any = kubernetes
        try:
            client = library.config.new_client_from_config(context=self.options.get("context"))
        except library.config.ConfigException as error:
            raise ConfigError(
                f"no cluster is configured: {error}", fix="kubectl config get-contexts"
            ) from error
        client.rest_client.pool_manager.connection_pool_kw["retries"] = False
        return library.client.CustomObjectsApi(client)

    @contextmanager
    def _converted_errors(self, unknown: str | None = None) -> Generator[None]:
        """Convert errors. `unknown` is the ref of a request that creates something."""
        from kubernetes.client.exceptions import ApiException  # pyright: ignore[reportMissingTypeStubs]

        try:
            yield
        except OrchestrateError:
            raise
        except ApiException as error:
            answer: Any = error
            status = int(answer.status or 0)
            if unknown is not None and status == 409:
                return  # this very attempt is there already
            if unknown is not None and status >= 500:
                raise OutcomeUnknown(self.name, unknown, f"the cluster returned {status}") from error
            kind = _REFUSALS.get(status, HostUnavailable if status >= 500 else InvalidRequest)
            raise kind(self.name, f"{answer.reason}: {answer.body or ''}".strip(), status=status) from error
        except Exception as error:
            if unknown is not None:
                raise OutcomeUnknown(self.name, unknown, f"{type(error).__name__}: {error}") from error
            raise HostUnavailable(self.name, f"could not reach the cluster: {error}") from error


def _placed(one: Mapping[str, Any]) -> Placed:
    status: Mapping[str, Any] = one.get("status") or {}
    raw = str(status.get("jobDeploymentStatus", ""))
    messages = [str(status[name]) for name in ("reason", "message") if status.get(name)]
    return Placed(
        id=str(one["metadata"]["name"]),
        ref=str(one["metadata"]["labels"][LABEL]),
        state=STATES.get(raw, "unknown"),
        raw_state=raw or "New",
        created_at=_time(one["metadata"].get("creationTimestamp")),
        started_at=_time(status.get("startTime")),
        finished_at=_time(status.get("endTime")),
        message=": ".join(messages) or None,
    )


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
