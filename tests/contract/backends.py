"""The backends under the contract suite: the hosted ones over the sandbox, by nothing but the environment it
exports, this machine, and a plug-in."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.sending import create, upload

from orchestrate.data import TrainingData
from orchestrate.profile import described
from orchestrate.providers import registry
from orchestrate.providers.base import Provider
from orchestrate.settings import config
from orchestrate.spec import DPO, RFT, SFT, EarlyStopping, JobSpec, LoRA, WandB
from orchestrate.types import Feature, Job, JobHandle

METHODS = ("sft", "dpo", "rft")
PLUGIN = Path(__file__).parent / "plugin" / "src"


@dataclass(frozen=True)
class Backend:
    name: str
    model: str
    other_models: Mapping[str, str] = field(default_factory=dict)
    """Models by method, where one model does not take all."""
    create_path: Mapping[str, str] = field(default_factory=dict)
    """Where the create request of each method goes; hosted backends only."""
    grader: Mapping[str, Any] = field(default_factory=lambda: {"type": "any"})
    configured: str = ""
    """Lines of an `orchestrate.toml`."""
    driven: bool = False
    """The host has no jobs: a process on this machine drives a session there, for a run of the store."""

    @property
    def hosted(self) -> bool:
        return bool(self.create_path)

    def make(self, env: Mapping[str, str], home: Path) -> Provider:
        own = {"ORCHESTRATE_HOME": str(home), "ORCHESTRATE_KEYS": str(home / "keys.toml")}
        (home / config.CONFIG_NAME).write_text(self.configured)
        settings = config.load(env={**env, **own}, config_file=home / config.CONFIG_NAME)
        if self.name == "shelf":
            if str(PLUGIN) not in sys.path:
                sys.path.insert(0, str(PLUGIN))
            from orchestrate_shelf.provider import ShelfProvider

            return ShelfProvider(replace(settings.host("shelf"), api_key=config.Secret("a-key-of-the-shelf")))
        return registry.make(self.name, settings)

    def spec(self, files: Mapping[str, str], method: str = "sft", **more: Any) -> JobSpec:
        kinds: dict[str, Any] = {
            "sft": {},
            "dpo": {"method": DPO()},
            "rft": {"method": RFT(grader=dict(self.grader))},
        }
        values = {
            "train": files[method],
            "validation": files[f"{method}-validation"],
            **kinds[method],
            **more,
        }
        return JobSpec(model=self.other_models.get(method, self.model), **values)


SAME = {
    "type": "string_check",
    "name": "same",
    "input": "{{sample.output_text}}",
    "operation": "eq",
    "reference": "{{item.answer}}",
}
BACKENDS = (
    Backend(
        name="openai",
        model="gpt-4o-mini",
        other_models={"rft": "o4-mini"},
        create_path={m: "/v1/fine_tuning/jobs" for m in ("sft", "dpo", "rft")},
        grader=SAME,
    ),
    Backend(
        name="together",
        model="qwen3.5-9b",
        create_path={m: "/v1/fine-tunes" for m in ("sft", "dpo")},
    ),
    Backend(
        name="fireworks",
        model="qwen3-8b",
        create_path={
            "sft": "/v1/accounts/sandbox/supervisedFineTuningJobs",
            "dpo": "/v1/accounts/sandbox/dpoJobs",
            "rft": "/v1/accounts/sandbox/reinforcementFineTuningJobs",
        },
        grader={"evaluator": "accounts/sandbox/evaluators/same"},
    ),
    Backend(
        name="azure",
        model="gpt-4.1-mini",
        other_models={"rft": "o4-mini"},
        create_path={m: "/openai/v1/fine_tuning/jobs" for m in ("sft", "dpo", "rft")},
        grader=SAME,
        configured="""
            [hosts.azure]
            type = "openai-compatible"
            options = {subscription = "s", resource_group = "g", resource = "r"}
        """,
    ),
    Backend(name="nebius", model="llama-3.1-8b", create_path={"sft": "/v1/fine_tuning/jobs"}),
    Backend(name="crusoe", model="qwen3.5-9b", create_path={"sft": "/v1/fine_tuning/jobs"}),
    Backend(name="local", model="tiny-chat", grader=SAME),
    Backend(name="tinker", model="Qwen/Qwen3-8B", grader=SAME, driven=True),
    Backend(name="shelf", model="any"),
)
HOSTED = tuple(b for b in BACKENDS if b.hosted)
DESCRIBED = tuple(described())
"""Hosts that a YAML file describes; the sandbox stands in for each in its own dialect."""


def data_files(folder: Path) -> dict[str, str]:
    """One file for each kind of row, and its validation file."""
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}
    tool = {
        "type": "function",
        "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
    }

    def sft(n: int) -> dict[str, Any]:
        return {
            "messages": [
                {"role": "system", "content": "Answer shortly."},
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": "Wait.", "weight": 0},
                {"role": "user", "content": "And now?"},
                {"role": "assistant", "content": f"It is {n}.", "weight": 1},
            ]
        }

    def tools(n: int) -> dict[str, Any]:
        turns = [
            {"role": "user", "content": f"Look at {n}"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "seen"},
            {"role": "assistant", "content": f"Seen {n}."},
        ]
        return {"messages": turns, "tools": [tool]}

    def dpo(n: int) -> dict[str, Any]:
        return {
            "input": {"messages": [{"role": "user", "content": f"What is {n}?"}]},
            "preferred_output": [{"role": "assistant", "content": f"It is {n}."}],
            "non_preferred_output": [{"role": "assistant", "content": "No idea."}],
        }

    def rft(n: int) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": f"What is {n}?"}], "answer": str(n)}

    makers: dict[str, Callable[[int], dict[str, Any]]] = {"sft": sft, "tools": tools, "dpo": dpo, "rft": rft}
    files: dict[str, str] = {}
    for name, make in makers.items():
        for suffix, numbers in (("", range(16)), ("-validation", range(100, 104))):
            path = folder / f"{name}{suffix}.jsonl"
            path.write_text("".join(json.dumps(make(n)) + "\n" for n in numbers))
            files[name + suffix] = str(path)
    return files


def submit(provider: Provider, spec: JobSpec, ref: str) -> JobHandle:
    data = TrainingData.open(spec.train, spec.validation)
    return create(provider, spec, upload(provider, spec, data), ref)


def wait_for(provider: Provider, job: JobHandle, done: Callable[[Job], bool], seconds: float = 240.0) -> Job:
    """Asks until `done`; fails the test after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        found = provider.get(job)
        if done(found):
            return found
        assert time.monotonic() < end, f"still {found.raw_status}"
        time.sleep(0.05)


def at(body: Any, path: str) -> Any:
    for key in path.split("."):
        body = body[key]
    return body


_refs = itertools.count(1)


def new_ref() -> str:
    """Shaped as Orchestrate's own: 16 characters."""
    return f"orc-{next(_refs):012d}"


TRAINED = [(backend, method) for backend in HOSTED for method in backend.create_path]
PUBLISHED = [(backend, method) for backend, method in TRAINED if backend.name not in DESCRIBED]
"""Those of hosts with an SDK and an API description of their own."""
ABSENT = [(backend, method) for backend in HOSTED for method in METHODS if method not in backend.create_path]
"""Hosted backends and the methods that each trains, and does not."""


def named(pairs: list[tuple[Backend, str]]) -> dict[str, Any]:
    """Parameters `hosted` and `method` of a test."""
    ids = [f"{backend.name}-{method}" for backend, method in pairs]
    return {"argnames": "hosted, method", "argvalues": pairs, "ids": ids}


def methods(provider: Provider) -> list[str]:
    return [m for m in METHODS if Feature(m) in provider.features]


def every_setting(method: str) -> dict[str, Any]:
    return {
        "sft": {"method": SFT(train_on_inputs=False)},
        "dpo": {
            "method": DPO(loss="dpo", beta=0.2, normalize_by_length=True, rpo_alpha=0.1, simpo_gamma=0.5)
        },
        "rft": {
            "method": RFT(
                grader={"x": 1},
                reasoning_effort="low",
                compute_multiplier=2,
                samples_per_prompt=4,
                kl_beta=0.01,
            )
        },
    }[method] | {
        "adapter": LoRA(r=8, alpha=16, dropout=0.1, targets="all-linear", dora=True, rslora=True),
        "epochs": 2,
        "learning_rate": 1e-4,
        "batch_size": 8,
        "batch_tokens": 4096,
        "gradient_accumulation": 2,
        "warmup_ratio": 0.1,
        "schedule": "cosine",
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "max_seq_length": 512,
        "packing": False,
        "evals": 2,
        "checkpoints": 2,
        "early_stopping": EarlyStopping(patience=3),
        "seed": 7,
        "suffix": "mine",
        "max_cost_usd": Decimal(5),
        "tags": {"team": "a"},
        "test": "test.jsonl",
        "wandb": WandB(project="p", name="n", entity="e", tags=("t",)),
        "continue_from": "earlier",
    }
