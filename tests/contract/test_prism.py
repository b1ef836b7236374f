"""What is sent to the hosts and what the sandbox answers, judged by Prism over the hosts' descriptions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import loopback
from tests.contract.backends import DESCRIBED, HOSTED, SAME, Backend, create, new_ref, upload
from tests.contract.prism import Judge, Violation, absent, judging
from tests.contract.sent import full_spec

from orchestrate.data import TrainingData
from orchestrate.providers.base import (
    Cancels,
    Provider,
    capability,
)
from orchestrate.sandbox.server import Sandbox
from orchestrate.spec import RFT, JobSpec
from orchestrate.types import Feature, Message

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(absent() is not None, reason=f"Prism judged nothing: {absent()}"),
]
LAST = {"openai": "/v1", "together": "", "fireworks": ""}
"""Of the sandbox's address, below which the description's paths begin."""
LATER_S = 500

KNOWN: dict[str, tuple[tuple[str, str], ...]] = {
    "openai": (
        (r"response\.body\.(.*\.)?error: ", "real jobs without an error have {} (openai-php/client #499)"),
        (r"files/.*/content: response: .*media type", "files are sent as they are; it says JSON"),
        (r"request\.body\..*grader", "a multi grader has a map of graders, by the guide"),
        (r"response\.body\..*grader", "the same in the job"),
    ),
    "together": (
        (r"lr_scheduler_args: .*exactly one schema", "linear and cosine overlap, so that both fit"),
        (r"train_on_inputs: .*must be boolean", "it may be auto, by the same description and the SDK"),
        (r"training_method(\.method)?: ", "follows from train_on_inputs"),
        (r"response\.body\.(.*\.)?id: .*uuid", "real ids are ft-UUID"),
        (r"response\.body\.batch_size: ", "of a job that asked for max it is max, by the SDK's type"),
    ),
    "fireworks": ((r"response: Unable to match the returned status", "no error is described, only 200"),),
}
"""By host: what Prism says wrongly, and why."""

MULTI = {"type": "multi", "name": "all", "graders": {"a": SAME, "b": SAME}, "calculate_output": "(a + b) / 2"}


def alarm(host: str, told: Violation) -> bool:
    """A null is what the real hosts send for what they do not have, whatever their descriptions say."""
    if told.place.startswith("response") and told.value is None and ": response: " not in str(told):
        return False
    return not any(re.search(pattern, str(told)) for pattern, _ in KNOWN[host])


@pytest.fixture(params=[b for b in HOSTED if b.name not in DESCRIBED], ids=lambda b: b.name)
def judged(
    request: pytest.FixtureRequest, sandbox: Sandbox, tmp_path: Path
) -> Iterator[tuple[Backend, Provider, Judge]]:
    backend: Backend = request.param
    variable = f"{backend.name.upper()}_BASE_URL"
    with judging(backend.name, sandbox.env[variable], tmp_path) as judge:
        provider = backend.make({**sandbox.env, variable: judge.url}, tmp_path)
        yield backend, provider, judge
        provider.close()


def run(provider: Provider, spec: JobSpec, sandbox: Sandbox) -> Any:
    """One job from the upload to its end, and all that can be read of it on the way."""
    ref = new_ref()
    handle = create(
        provider, spec, upload(provider, spec, TrainingData.open(spec.train, spec.validation)), ref
    )
    for _ in range(2):
        provider.get(handle)
        list(provider.events(handle))
        provider.metrics(handle)
        provider.find(ref)
        if Feature.CHECKPOINTS in provider.features:
            provider.checkpoints(handle)
        sandbox.skip(LATER_S)
    return handle


def test_both_ways(judged: tuple[Backend, Provider, Judge], files: dict[str, str], sandbox: Sandbox) -> None:
    backend, provider, judge = judged
    done: list[Any] = []
    for method in backend.create_path:
        for spec in (backend.spec(files, method), full_spec(backend, provider, files, method)):
            done.append(run(provider, spec, sandbox))
    list(provider.list())
    provider.base_models()
    if Feature.DEPLOY in provider.features:
        provider.deploy(done[0])
        sandbox.skip(LATER_S)
        assert provider.deployments()
    provider.generate(done[0], [[Message(role="user", content="hello")]], max_tokens=4)
    if backend.name == "openai":
        graded = backend.spec(files, "rft").model_copy(update={"method": RFT(grader=MULTI)})
        run(provider, graded, sandbox)
    last = backend.spec(files)
    data = TrainingData.open(last.train, last.validation)
    capability(provider, Cancels).cancel(create(provider, last, upload(provider, last, data), new_ref()))
    assert len(judge.judged) > 15
    assert [str(v) for v in judge.violations if alarm(backend.name, v)] == []
    said = "\n".join(map(str, judge.violations))
    assert [why for pattern, why in KNOWN[backend.name] if not re.search(pattern, said)] == []
    _sees_a_wrong_body(backend, judge)


def _sees_a_wrong_body(backend: Backend, judge: Judge) -> None:
    """Prism really looks: a number that is too large is told, though the sandbox refuses it too."""
    path = next(iter(backend.create_path.values())).removeprefix(LAST[backend.name])
    wrong = {"training_file": 7, "dataset": 7, "model": "m"}
    loopback.post(judge.url + path, json=wrong, headers={"Authorization": "Bearer sandbox-tests"})
    assert any(v.place.startswith("request.body") for v in judge.violations if alarm(backend.name, v))
