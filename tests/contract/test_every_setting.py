"""Whatever a spec asks for, in whatever combination, every backend answers it: nothing is dropped."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.backends import BACKENDS, HOSTED, Backend

from orchestrate.providers.base import Provider
from orchestrate.spec import JobSpec
from orchestrate.types import Outcome

FRACTIONS = st.sampled_from([0.0, 0.05, 0.5])
POSITIVE = st.sampled_from([1e-6, 0.01, 1.0])
COUNTS = st.integers(1, 64)
WORDS = st.sampled_from(["a", "mine", "v1.2"])


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A table with any of these fields."""
    return st.fixed_dictionaries({}, optional=fields)


def kind(name: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return some(**fields).map(lambda values: {"type": name, **values})


LORA = {
    "r": COUNTS,
    "alpha": POSITIVE,
    "dropout": FRACTIONS,
    "targets": st.sampled_from(["all-linear", ["q_proj"]]),
    "dora": st.booleans(),
    "rslora": st.booleans(),
}
METHODS = st.one_of(
    kind("sft", train_on_inputs=st.booleans()),
    kind(
        "dpo",
        loss=st.just("dpo"),
        beta=POSITIVE,
        normalize_by_length=st.booleans(),
        rpo_alpha=FRACTIONS,
        simpo_gamma=FRACTIONS,
    ),
    kind("dpo", beta=POSITIVE, normalize_by_length=st.just(False)).map(lambda v: {**v, "loss": "orpo"}),
    kind("dpo", beta=POSITIVE, desirable_weight=POSITIVE, undesirable_weight=POSITIVE).map(
        lambda v: {**v, "loss": "kto"}
    ),
    kind(
        "rft",
        reasoning_effort=st.sampled_from(["default", "low"]),
        compute_multiplier=POSITIVE,
        samples_per_prompt=COUNTS,
        kl_beta=FRACTIONS,
    ).map(lambda values: {**values, "grader": {"type": "python", "source": {"deep": 1}}}),
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "test": st.just("test.jsonl"),
    "method": METHODS,
    "adapter": st.one_of(kind("lora", **LORA), kind("qlora", **LORA), kind("full")),
    "epochs": st.integers(1, 100),
    "batch_size": st.one_of(st.just("max"), st.integers(1, 2048)),
    "batch_tokens": COUNTS,
    "gradient_accumulation": COUNTS,
    "warmup_ratio": FRACTIONS,
    "schedule": st.sampled_from(["constant", "linear", "cosine"]),
    "weight_decay": FRACTIONS,
    "max_grad_norm": POSITIVE,
    "max_seq_length": st.integers(8, 4096),
    "packing": st.booleans(),
    "evals": st.integers(0, 20),
    "checkpoints": COUNTS,
    "early_stopping": some(patience=st.integers(1, 5), min_delta=FRACTIONS),
    "seed": st.integers(0, 2**31 - 1),
    "suffix": WORDS,
    "continue_from": st.sampled_from(["earlier", "ft:gpt-4o-mini-2024-07-18:org::id", "ft-1", "a/b"]),
    "max_cost_usd": st.integers(0, 9),
    "tags": st.dictionaries(WORDS, WORDS, max_size=2),
    "wandb": some(name=WORDS, entity=WORDS, tags=st.just(["x"])).map(lambda v: {"project": "p", **v}),
    "provider_options": st.fixed_dictionaries(
        {}, optional={b.name: st.just({"unheard_of": {"deep": 1}}) for b in BACKENDS}
    ),
}
RATES = st.sampled_from([{}, {"learning_rate": 1e-4}, {"learning_rate_multiplier": 2.0}])
SPECS = st.tuples(some(**FIELDS), RATES).map(lambda parts: parts[0] | parts[1])


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda b: b.name)
def translator(request: pytest.FixtureRequest) -> Iterator[tuple[Backend, Provider]]:
    backend: Backend = request.param
    env = {
        f"{name}_{what}": value
        for name in (backend.name.upper() for backend in HOSTED)
        for what, value in (("API_KEY", "sandbox-tests"), ("BASE_URL", "http://127.0.0.1:9"))
    }
    with tempfile.TemporaryDirectory() as home:
        provider = backend.make(env, Path(home))
        yield backend, provider
        provider.close()


def test_the_strategy_knows_every_field() -> None:
    told = {"model", "train", "validation", "learning_rate", "learning_rate_multiplier", "overrides"}
    assert set(JobSpec.model_fields) == set(FIELDS) | told


@settings(max_examples=120, deadline=None)
@given(values=SPECS)
def test_every_setting_is_answered(translator: tuple[Backend, Provider], values: dict[str, Any]) -> None:
    backend, provider = translator
    spec = JobSpec.parse({"model": backend.model, "train": "t", "validation": "v", **values})
    translation = provider.translate(spec)
    names = {row.name for row in translation.settings}
    options = values.get("provider_options", {})
    for asked in flat({k: v for k, v in spec.asked().items() if k != "provider_options"}):
        assert any(asked == name or asked.startswith(f"{name}.") for name in names), f"{asked} has no row"
    if backend.name in options:
        assert any(name.startswith("provider_options.unheard_of") for name in names)
    for row in translation.settings:
        assert row.rule or row.outcome in (Outcome.KEPT, Outcome.DEFAULTED), row


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name != "method.grader":
            assert value or name == "tags", f"{name} is empty, so that no row could answer it"
            yield from flat(value, f"{name}.")
        elif value is not None:
            yield name


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_early_stopping_by_its_defaults_is_asked_for(
    translator: tuple[Backend, Provider], method: str
) -> None:
    backend, provider = translator
    spec = JobSpec.parse(
        {"model": backend.model, "train": "t", "validation": "v", "method": method, "early_stopping": {}}
    )
    rows = [row for row in provider.translate(spec).settings if row.name.startswith("early_stopping")]
    assert rows and rows[0].asked
    assert JobSpec.parse(spec.asked()) == spec
