"""Simulate hosts whose APIs are variants of OpenAI's. A description file defines each host.

The description lists the variant's paths, fields, names and ranges. This module implements the host's
behavior on top of the sandbox's OpenAI host, and checks rows by OpenAI's rules.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, cast

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from orchestrate import description
from orchestrate.description import DeploymentDescription, Described, SettingRule
from orchestrate.errors import UsageError
from orchestrate.profile import described
from orchestrate.sandbox import shared
from orchestrate.sandbox.host import Host, HostError, json_answer, json_body, route
from orchestrate.sandbox.jobs import Phase, SandboxJob
from orchestrate.sandbox.openai.host import OpenAIHost
from orchestrate.sandbox.shared import StoredFile, weights
from orchestrate.sandbox.state import token

_ALWAYS = ("model", "training_file", "validation_file", "suffix", "seed")
_USUAL_RATE = 1e-4


def dialect(kind: str) -> type[Host]:
    """Build the simulation of a host that a file describes. Raises `UsageError` if no file describes `kind`,
    and `ConfigError` for an invalid description."""
    entry = described().get(kind)
    if entry is None:
        known = ", ".join(described())
        raise UsageError(f"unknown host {kind!r}. Known hosts: {known}")
    api = description.read(*entry)
    absolute = "learning_rate" in api.settings and api.settings["learning_rate"].field is not None
    own = {
        "name": kind,
        "title": api.title,
        "place": 10 + list(described()).index(kind),
        "described": api,
        "usual_rate": _USUAL_RATE if absolute else OpenAIHost.usual_rate,
    }
    return type("DialectHost", (DialectHost,), own)


class DialectHost(OpenAIHost):
    described: Described

    def env(self, key: str) -> dict[str, str]:
        prefix = self.name.upper().replace("-", "_")
        found = {f"{prefix}_BASE_URL": f"{self.base_url}{self.described.paths[0]}", f"{prefix}_API_KEY": key}
        if self.described.deployment is not None and self.described.deployment.login:
            found |= {f"{prefix}_MANAGEMENT_URL": self.base_url, f"{prefix}_MANAGEMENT_TOKEN": key}
        return found

    def headers(self) -> dict[str, str]:
        return {}

    def routes(self) -> list[BaseRoute]:
        """Build OpenAI's routes under the host's path prefixes, and the routes for its deployments."""
        plain = cast("list[Route]", super().routes())
        own: list[BaseRoute] = [
            Route(path + one.path.removeprefix("/v1"), one.endpoint, methods=sorted(one.methods or ()))
            for path in self.described.paths
            for one in plain
        ]
        return [*self._deployments(), *own]

    # -- creating ------------------------------------------------------------------------------------------

    def _new(self, body: dict[str, Any]) -> SandboxJob:
        """Check the request against the description, then create the job that OpenAI's simulation would
        create."""
        parsed = _flat(body)
        self._known(parsed)
        kind = self._kind_of(parsed)
        hyper: dict[str, Any] = {}
        for setting, rule in self.described.settings.items():
            field = self.described.field(rule, kind) if rule.field else None
            if field is None or field not in parsed or setting == "wandb":
                continue
            value = parsed[field]
            _judge(field, value, rule)
            if (name := _HYPER.get(setting)) is not None:
                hyper[name] = value
        own = {name: body[name] for name in _ALWAYS if name in body}
        if len(str(own.get("suffix", ""))) > self.described.suffix.most:
            raise HostError(400, f"suffix is longer than {self.described.suffix.most}", param="suffix")
        method = {"sft": "supervised", "dpo": "dpo", "rft": "reinforcement"}[kind]
        inner: dict[str, Any] = {"hyperparameters": hyper}
        if kind == "rft":
            inner["grader"] = body["method"][self.described.methods["rft"]]["grader"]
        if self.described.ref == "metadata" and "metadata" in body:
            own["metadata"] = body["metadata"]
        rule = self.described.settings.get("learning_rate")
        field = self.described.field(rule, kind) if rule is not None and rule.field else None
        rate = parsed.get(field or "")
        job = super()._new({**own, "method": {"type": method, method: inner}})
        if isinstance(rate, int | float):
            job.learning_rate = float(rate)
        job.body |= {"sandbox_asked": body}
        return job

    def _known(self, body: Mapping[str, Any]) -> None:
        known = [
            name
            for name in self.described.known_fields
            if self.described.ref == "metadata" or name != "metadata"
        ]
        for name in body:
            if not any(name == one or name.startswith(f"{one}.") for one in known):
                raise HostError(400, f"Unrecognized request argument supplied: {name}", param=name)

    def _kind_of(self, body: Mapping[str, Any]) -> str:
        field = self.described.method_type
        method = body.get(field) if field else next(iter(self.described.methods.values()))
        found = next((kind for kind, known in self.described.methods.items() if known == method), None)
        if found is None:
            raise HostError(400, f"Invalid value for {field}: {method!r}", param=field)
        return found

    def _base(self, model: str, kind: str) -> str:
        """Return the base model. A host that lists its models only accepts these. Other hosts accept any Hub
        id."""
        del kind
        known = {one.id for one in self.described.models.values()}
        if model in known or (self.described.hub and "/" in model):
            return model
        raise HostError(404, f"The model `{model}` does not exist", code="model_not_found", param="model")

    def output_name(self, base: str, suffix: str, id: str) -> str:
        return f"{base}.ft-{id}{f'-{suffix}' if suffix else ''}"

    def is_tuned(self, name: str) -> bool:
        return ".ft-" in name

    def requested_model(self, name: str) -> tuple[SandboxJob | None, int | None]:
        """Return the (job, step) that a requested model name refers to, or `(None, None)` for a base model.
        The name of a tuned model's deployment also works, and is required if the host only serves
        deployments."""
        put_up = self.state.get(self.name, "deployment", name)
        if put_up is not None:
            return self._deployable(put_up), None
        if self.described.deployment is None and self.is_tuned(name):
            return self.tuned(name)
        self._base(name, "sft")
        return None, None

    # -- answering -----------------------------------------------------------------------------------------

    def render(self, job: SandboxJob) -> dict[str, Any]:
        found = super().render(job)
        body = job.body["sandbox_asked"]
        for name in ("method", "hyperparameters", "user_provided_suffix", "metadata"):
            found.pop(name, None)
        found |= {name: body[name] for name in ("method", "hyperparameters", "suffix") if name in body}
        if self.described.ref == "metadata":
            found["metadata"] = body.get("metadata")
        names = {ours: word for word, ours in self.described.statuses.items()}
        found["status"] = names.get(found["status"], found["status"])
        return found

    def _checkpoints(self, job: SandboxJob) -> Any:
        for entry in super()._checkpoints(job):
            if self.described.weights:
                step = entry["step_number"]
                entry["result_files"] = [
                    f"weights-{job.id}-{step}-{n}" for n, _ in enumerate(weights(self, job))
                ]
            yield entry

    def result_file(self, id: str) -> tuple[str, bytes] | None:
        if id.startswith("weights-"):
            job_id, _, place = id.removeprefix("weights-").rsplit("-", 2)
            found = self.job(job_id)
            if found is not None:
                file = weights(self, found)[int(place)]
                return file.name, file.read_bytes()
        return super().result_file(id)

    def file_status(self, file: StoredFile) -> str:
        return self.described.files.ready[0] if self.files.ready(file) else self.described.files.waiting[0]

    # -- deployments ---------------------------------------------------------------------------------------

    def _deployments(self) -> list[BaseRoute]:
        how = self.described.deployment
        if how is None:
            return []
        paths = {how.make.path, how.list.path, how.remove.path}
        own: list[BaseRoute] = []
        if how.adapters is not None:
            own.append(route(f"{how.root}{how.adapters.path}", "POST", self._bring))
        own += [
            route(how.root + path.replace("{name}", "{name:path}"), method, self._deployment)
            for path in sorted(paths, key=len, reverse=True)
            for method in ("GET", "PUT", "POST", "DELETE")
        ]
        return own

    async def _bring(self, request: Request) -> Response:
        """Upload the archive of an adapter."""
        how = self.described.deployment
        if how is None or how.adapters is None:
            raise HostError(404, "uploads are not supported here")
        async with request.form() as form:
            given = form.get(how.adapters.field)
            if not isinstance(given, UploadFile):
                raise HostError(400, f"Missing file: {how.adapters.field}", param=how.adapters.field)
            sent, name = await given.read(), given.filename
        id = f"file-{token(16)}"
        folder = shared.folder_of(self, id)
        with zipfile.ZipFile(io.BytesIO(sent)) as archive:
            for file in shared.FILES & set(archive.namelist()):
                (folder / file).write_bytes(archive.read(file))
        job = shared.made(self, id, name or id, "brought")
        shared.keep(self, job)
        return json_answer({how.adapters.id: id, "object": "file", "filename": name})

    async def _deployment(self, request: Request) -> Response:
        how = self.described.deployment
        if how is None:
            raise HostError(404, "deployments are not supported here")
        name = request.path_params.get("name")
        if request.method == "GET":
            kept = [one for one in self.state.all(self.name, "deployment")]
            return json_answer({how.list.entries: [one["raw"] for one in kept]})
        if request.method == "DELETE":
            if not self.state.delete(self.name, "deployment", str(name)):
                raise HostError(404, f"no deployment {name}", code="not_found")
            return json_answer({})
        return self._put_up(how, name, await json_body(request))

    def _put_up(self, how: DeploymentDescription, name: str | None, body: dict[str, Any]) -> Response:
        parsed = _flat(body)
        wanted = _flat(how.make.body or {})
        if how.adapters is not None and shared.found(self, str(parsed.get("source"))) is not None:
            wanted = _flat(how.adapters.body)
        if unknown := sorted(set(parsed) ^ set(wanted)):
            raise HostError(400, f"Unrecognized or missing argument: {unknown[0]}", param=unknown[0])
        values: dict[str, str] = {}
        for key, outer in wanted.items():
            values |= _read(str(outer), str(parsed[key]))
        name = name or values["name"]
        job = self._deployable(values)
        if self.state.get(self.name, "deployment", name) is not None and how.make.method == "POST":
            raise HostError(409, f"a model {name} already exists", code="conflict")
        raw: dict[str, Any] = {}
        shown = name if how.answers_as == "name" else f"{values.get('base', 'base')}-LoRa:{name}-udpd"
        _set(raw, how.list.model, values.get("model", shown))
        _set(raw, how.list.name, shown)
        _set(raw, how.list.state, how.up[0])
        for path, value in (
            (how.list.tier, values.get("tier")),
            (how.list.job, parsed.get(how.list.job or "")),
        ):
            if path and value:
                _set(raw, path, value)
        self.state.put(self.name, "deployment", shown, {"raw": raw, "job": job.id})
        return json_answer(raw)

    def _deployable(self, values: Mapping[str, Any]) -> SandboxJob:
        if (own := shared.found(self, str(values.get("file") or values.get("job")))) is not None:
            return own
        now = self.clock.now()
        for job in self.jobs():
            if job.phase(now) is Phase.SUCCEEDED and (
                job.output == values.get("model") or job.id == values.get("job")
            ):
                return job
        raise HostError(404, "no such tuned model", code="model_not_found")


_HYPER = {
    "epochs": "n_epochs",
    "batch_size": "batch_size",
    "learning_rate_multiplier": "learning_rate_multiplier",
    "method.beta": "beta",
    "method.reasoning_effort": "reasoning_effort",
    "method.compute_multiplier": "compute_multiplier",
}
"""Maps a hyperparameter's canonical name to its name on the sandbox's OpenAI host."""


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value and key not in ("grader", "metadata"):
            found |= _flat(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _judge(field: str, value: Any, rule: SettingRule) -> None:
    """Raise `HostError` 400 for a value that the description does not allow."""
    if value in rule.words.values() or value == rule.default or isinstance(value, bool):
        return
    if not isinstance(value, int | float):
        if rule.least is not None or rule.most is not None:
            raise HostError(400, f"Invalid value for '{field}': {value!r}", param=field)
        return
    number = Decimal(str(value))
    low, high = rule.least is not None and number < rule.least, rule.most is not None and number > rule.most
    if low or high or (rule.one_of and value not in rule.one_of):
        raise HostError(400, f"Invalid value for '{field}': {value} is out of range", param=field)


def _read(template: str, value: str) -> dict[str, str]:
    """Parse a text by a template: `{job}:{checkpoint}` and `a:b` give job a and checkpoint b."""
    pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(template))
    found = re.fullmatch(pattern, value)
    if found is None:
        raise HostError(400, f"{value!r} does not match {template}")
    return found.groupdict()


def _set(raw: dict[str, Any], path: str, value: Any) -> None:
    *before, last = path.split(".")
    for key in before:
        raw = raw.setdefault(key, {})
    raw[last] = value
