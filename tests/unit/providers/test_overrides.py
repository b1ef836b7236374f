"""One word stays enough: what a refused spec has to go without is worked out, shown, and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.contract.backends import BACKENDS, Backend

from orchestrate.api.orchestrator import Orchestrator
from orchestrate.errors import SpecError
from orchestrate.providers.base import Provider
from orchestrate.runs.preparing.prepared import translated
from orchestrate.spec import JobSpec, specfile
from orchestrate.types import Translation

ORDINARY = """\
# What we train
model:
  openai: gpt-4o-mini
  together: qwen3.5-9b
  fireworks: qwen3-8b
  local: tiny-chat
train: train.jsonl      # the data
validation: valid.jsonl
method: {type: sft, train_on_inputs: false}
adapter: {type: lora, r: 64, alpha: 128, dropout: 0.05, targets: all-linear}
epochs: 3
learning_rate: 2.0e-4
batch_size: 16
gradient_accumulation: 1
warmup_ratio: 0.03
schedule: cosine
weight_decay: 0.01
max_grad_norm: 1.0
max_seq_length: 4096
packing: true
evals: 4
checkpoints: 2
early_stopping: {patience: 2}
seed: 42
suffix: mine
tags: {team: a}   # ours
max_cost_usd: 25"""


@pytest.fixture
def provider(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    backend: Backend = request.param
    keys = {f"{name}_API_KEY": "a-key-of-tests" for name in ("OPENAI", "TOGETHER", "FIREWORKS")}
    made = backend.make(keys, tmp_path)
    yield made
    made.close()


WHOLE = ("local", "together")
"""Where nothing of it is refused."""
BUILT_IN = [b for b in BACKENDS if b.name in ("openai", "together", "fireworks", "local")]
HOSTS = pytest.mark.parametrize("provider", BUILT_IN, ids=lambda b: b.name, indirect=True)


def plan(provider: Provider, spec: JobSpec, tmp_path: Path) -> Translation:
    from orchestrate.settings import config

    settings = config.load(env={"ORCHESTRATE_HOME": str(tmp_path / "home")}, cwd=tmp_path)
    with Orchestrator(settings) as ft:
        return translated(ft, provider, spec)[1]


@HOSTS
def test_an_ordinary_spec_runs_everywhere_with_the_lines_that_are_written(
    provider: Provider, tmp_path: Path
) -> None:
    path = tmp_path / "finetune.yaml"
    path.write_text(ORDINARY)
    found = plan(provider, specfile.load(path), tmp_path)
    assert bool(found.refused) == (found.overrides is not None) == (provider.name not in WHOLE)
    if found.overrides is None:
        return
    path.write_text(specfile.with_overrides(path, provider.name, found.overrides))
    # Every line that was there is there still, in its place.
    assert path.read_text().startswith(ORDINARY + "\noverrides:\n")
    again = plan(provider, specfile.load(path), tmp_path)
    assert again.refused == () and again.overrides is None
    kept = {s.name for s in again.settings if s.asked is not None} - {"model"}
    assert kept >= {
        "train",
        "epochs",
        "batch_size",
        "suffix",
        "tags",
        "adapter.type",
        "gradient_accumulation",
    }


@HOSTS
def test_the_nearest_value_is_taken_where_there_is_one(provider: Provider, tmp_path: Path) -> None:
    spec = JobSpec.parse({"model": "qwen3-8b", "train": "t", "adapter": {"type": "lora", "r": 100}})
    if provider.name == "fireworks":
        assert plan(provider, spec, tmp_path).overrides == {"adapter": {"r": 32}}


@pytest.mark.parametrize("provider", [BACKENDS[1]], ids=["together"], indirect=True)
@pytest.mark.parametrize(
    "asked",
    [
        {"method": {"type": "dpo", "loss": "orpo"}},
        {"method": {"type": "rft", "grader": {"type": "string_check"}}},
        {"model": "gpt-4o"},
        {"provider_options": {"together": {"training_file": "f"}}},
    ],
)
def test_what_would_be_another_run_is_not_offered(
    provider: Provider, tmp_path: Path, asked: dict[str, Any]
) -> None:
    found = plan(provider, JobSpec.parse({"model": "qwen3.5-9b", "train": "t", **asked}), tmp_path)
    assert found.refused and found.overrides is None


FIELDS = {"packing": None, "adapter": {"type": "lora"}}
LINES = ["packing: null", "adapter: {type: lora}"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("model: m\ntrain: t\n", "model: m\ntrain: t\noverrides:\n  openai:\n    {0}\n    {1}\n"),
        ("model: m\ntrain: t", "model: m\ntrain: t\noverrides:\n  openai:\n    {0}\n    {1}\n"),
        (
            "overrides: # by backend\n    local: {epochs: 2}\nmodel: m  # mine\ntrain: t\n",
            "overrides: # by backend\n    openai:\n      {0}\n      {1}\n    local: {{epochs: 2}}\n"
            "model: m  # mine\ntrain: t\n",
        ),
        (
            "model: m\noverrides:\n  openai: # theirs\n     epochs: 2\ntrain: t\n# end\n",
            "model: m\noverrides:\n  openai: # theirs\n     {0}\n     {1}\n     epochs: 2\ntrain: t\n# end\n",
        ),
        (
            "model: m\r\ntrain: t\r\n",
            "model: m\r\ntrain: t\r\noverrides:\r\n  openai:\r\n    {0}\r\n    {1}\r\n",
        ),
    ],
)
def test_only_the_new_lines_are_new(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "finetune.yaml"
    path.write_bytes(before.encode())
    assert specfile.with_overrides(path, "openai", FIELDS) == after.format(*LINES)


@pytest.mark.parametrize(
    "text",
    [
        "{model: m, train: t}\n",
        "model: m\ntrain: t\noverrides: {openai: {epochs: 2}}\n",
        "model: m\ntrain: t\noverrides:\n  openai: {epochs: 2}\n",
        "model: m\ntrain: t\noverrides:\n  openai:\n    packing: true\n",
        "model: m\ntrain: t\n...\n",
    ],
)
def test_a_form_that_cannot_be_added_to_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "finetune.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match="Add these lines yourself") as refused:
        specfile.with_overrides(path, "openai", FIELDS)
    assert LINES[0] in str(refused.value) and path.read_text() == text
