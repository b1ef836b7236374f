"""Whatever a spec asks for, in whatever combination, every backend answers it: nothing is dropped."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract.backends import BACKENDS, Backend

from orchestrate.providers.base import Provider
from orchestrate.spec import JobSpec, LoRA
from orchestrate.spec.methods import OPTIMIZERS
from orchestrate.types import Feature, Outcome

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
    "init_lora_weights": st.sampled_from(["gaussian", "loftq", "eva"]),
    "rank_pattern": st.just({"q_proj": 4, "^model.layers.0": 2}),
    "alpha_pattern": st.just({"q_proj": 4.0}),
    "layers_to_transform": st.sampled_from([[0], [1, 99]]),
    "exclude_modules": st.sampled_from([["v_proj"], ".*v_proj"]),
    "target_parameters": st.just(["experts.down_proj"]),
    "modules_to_save": st.just(["lm_head"]),
    "loraplus_lr_ratio": st.sampled_from([1, 16.0]),
}
METHODS = st.one_of(
    kind("sft", train_on_inputs=st.booleans(), ignore_empty_think=st.booleans()),
    kind("sft", train_on=st.sampled_from(["all", "last", ["assistant", "tool"]])),
    kind(
        "dpo",
        loss=st.just("dpo"),
        beta=POSITIVE,
        normalize_by_length=st.booleans(),
        rpo_alpha=FRACTIONS,
        simpo_gamma=FRACTIONS,
        label_smoothing=st.sampled_from([0, 0.1]),
    ),
    kind("dpo", beta=POSITIVE, rpo_alpha=st.just(0.0)).map(lambda v: {**v, "loss": "ipo"}),
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
    "columns": st.just({"prompt": "Message body", "id": None}),
    "method": METHODS,
    "adapter": st.one_of(kind("lora", **LORA), kind("qlora", **LORA), kind("full")).filter(
        lambda a: not (a.get("dora") and a.get("init_lora_weights") == "loftq")
    ),  # the spec refuses both at once
    "added_tokens": st.just(["<|note|>"]),
    "chat_template": st.sampled_from(["{{ messages[0].content }}", "{% if", "no-such-file.jinja"]),
    "chat_template_kwargs": st.just({"enable_thinking": False}),
    "optimizer": st.one_of(
        kind("adamw", betas=st.just([0.9, 0.95]), eps=POSITIVE),
        st.sampled_from(sorted(OPTIMIZERS)).map(lambda name: {"type": name}),
        st.just({"type": "muon", "momentum": 0.9}),
    ),
    "keep_best": st.just(True),
    "epochs": st.integers(1, 100),
    "max_steps": COUNTS,
    "batch_size": st.one_of(st.just("max"), st.integers(1, 2048)),
    "batch_tokens": COUNTS,
    "gradient_accumulation": COUNTS,
    "truncation": st.sampled_from(["right", "left", "drop"]),
    "save_total_limit": COUNTS,
    "weight_decay": FRACTIONS,
    "max_grad_norm": POSITIVE,
    "max_seq_length": st.integers(8, 4096),
    "packing": st.booleans(),
    "early_stopping": some(patience=st.integers(1, 5), min_delta=FRACTIONS),
    "seed": st.integers(0, 2**31 - 1),
    "suffix": WORDS,
    "continue_from": st.sampled_from(["earlier", "ft:gpt-4o-mini-2024-07-18:org::id", "ft-1", "a/b"]),
    "max_cost_usd": st.integers(0, 9),
    "private": st.just(True),
    "tags": st.dictionaries(WORDS, WORDS, max_size=2),
    "wandb": some(name=WORDS, entity=WORDS, tags=st.just(["x"])).map(lambda v: {"project": "p", **v}),
    "provider_options": st.fixed_dictionaries(
        {}, optional={b.name: st.just({"unheard_of": {"deep": 1}}) for b in BACKENDS}
    ),
}
EVALS = st.sampled_from([{}, {"evals": 0}, {"evals": 7}, {"eval_steps": 3}])
CHECKPOINTS = st.sampled_from([{}, {"checkpoints": 1}, {"checkpoints": 5}, {"checkpoint_steps": 3}])
TRAIN = st.sampled_from([{}, {"train": ["t", {"path": "u", "weight": 0.5}]}])
RATES = st.sampled_from([{}, {"learning_rate": 1e-4}, {"learning_rate_multiplier": 2.0}])
WARMUP = st.sampled_from([{}, {"warmup_ratio": 0.0}, {"warmup_ratio": 0.05}, {"warmup_steps": 3}])
SCHEDULES = st.sampled_from(
    [
        {},
        {"min_lr_ratio": 0.1},
        {"schedule": "constant"},
        {"schedule": "linear"},
        {"schedule": "cosine", "min_lr_ratio": 0.1},
        {"schedule": "polynomial", "schedule_power": 2.0},
        {"schedule": "warmup_stable_decay", "decay_ratio": 0.2, "min_lr_ratio": 0.0},
    ]
)
SPECS = st.tuples(some(**FIELDS), RATES, EVALS, CHECKPOINTS, TRAIN, WARMUP, SCHEDULES).map(
    lambda parts: {name: value for part in parts for name, value in part.items()}
)


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda b: b.name)
def translator(request: pytest.FixtureRequest) -> Iterator[tuple[Backend, Provider]]:
    backend: Backend = request.param
    env = {
        f"{name}_{what}": value
        for name in map(str.upper, HOSTED)
        for what, value in (("API_KEY", "sandbox-tests"), ("BASE_URL", "http://127.0.0.1:9"))
    }
    with tempfile.TemporaryDirectory() as home:
        provider = backend.make(env, Path(home))
        yield backend, provider
        provider.close()


def test_the_strategy_knows_every_field() -> None:
    told = {"model", "train", "validation", "learning_rate", "learning_rate_multiplier", "overrides"}
    told |= {"evals", "eval_steps", "checkpoints", "checkpoint_steps", "warmup_ratio", "warmup_steps"}
    told |= {"schedule", "min_lr_ratio", "decay_ratio", "schedule_power"}
    assert set(JobSpec.model_fields) == set(FIELDS) | told
    assert set(LORA) == set(LoRA.model_fields) - {"type"}


@pytest.mark.slow
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


ENGINE_SETTINGS: list[dict[str, Any]] = [
    {"added_tokens": ["<|note|>"]},
    {"chat_template": "{{ messages[0].content }}"},
    {"chat_template": "{{ enable_thinking }}", "chat_template_kwargs": {"enable_thinking": False}},
    {"max_steps": 7},
    {"optimizer": {"type": "adamw", "betas": [0.9, 0.95]}},
    {"optimizer": {"type": "lion_8bit"}},
    {"eval_steps": 5},
    {"keep_best": True},
    {"method": {"type": "dpo", "loss": "ipo"}},
    {"method": {"type": "dpo", "label_smoothing": 0.1}},
    {"adapter": {"type": "qlora", "init_lora_weights": "loftq"}},
    *(
        {"adapter": {"type": "lora", **setting}}
        for setting in (
            {"init_lora_weights": "pissa_niter_4"},
            {"rank_pattern": {"q_proj": 4}},
            {"alpha_pattern": {"q_proj": 4.0}},
            {"layers_to_transform": [0]},
            {"exclude_modules": ["v_proj"]},
            {"target_parameters": ["mlp.down_proj.weight"]},
            {"modules_to_save": ["lm_head"]},
            {"loraplus_lr_ratio": 16},
        )
    ),
]


OF_A_RECIPE = {"max_steps", "optimizer.betas", "eval_steps", "method.loss", "method.label_smoothing"}
"""Settings that a recipe over a session has."""


@pytest.mark.parametrize("asked", ENGINE_SETTINGS, ids=lambda v: str(list(flat(v))[-1]))
def test_what_only_an_engine_does_is_refused_by_name_where_no_api_has_it(
    translator: tuple[Backend, Provider], asked: dict[str, Any]
) -> None:
    """Kept, and sent to the engine or the recipe, on this machine; on a host refused with what it does
    instead."""
    backend, provider = translator
    spec = JobSpec.parse({"model": backend.model, "train": "t", "validation": "v", **asked})
    name = list(flat(asked))[-1]
    found = provider.translate(spec)
    rows = [row for row in found.settings if name == row.name]
    rows = rows or [row for row in found.settings if name.startswith(f"{row.name}.")]
    assert len(rows) == 1
    if backend.name == "local" or (backend.driven and name in OF_A_RECIPE):
        assert rows[0].outcome is Outcome.KEPT and not found.refused
        assert rows[0].wire is not None and rows[0].sent is not None
    else:
        assert rows[0].outcome is Outcome.REFUSED and rows[0].rule
        assert backend.name not in HOSTED or rows[0].rule.startswith(HOSTED[backend.name])
        assert f"{backend.name} has no such setting" not in rows[0].rule or backend.name not in HOSTED


HOSTED = {
    "openai": "OpenAI ",
    "together": "Together ",
    "fireworks": "Fireworks ",
    "azure": "Azure ",
    "nebius": "Nebius ",
    "crusoe": "Crusoe ",
}


def test_what_a_host_does_anyway_is_kept(translator: tuple[Backend, Provider]) -> None:
    backend, provider = translator
    asked = {
        "keep_best": False,
        "method": {"type": "dpo", "label_smoothing": 0},
        "adapter": {"type": "lora", "loraplus_lr_ratio": 1},
    }
    if Feature.DPO not in provider.features:
        del asked["method"]
    if backend.name in HOSTED:
        found = provider.translate(JobSpec.parse({"model": backend.model, "train": "t", **asked}))
        assert not found.refused


def test_steps_are_sent_where_a_host_counts_them(translator: tuple[Backend, Provider]) -> None:
    """OpenAI evaluates RFT, and Fireworks keeps checkpoints of SFT and DPO, by steps."""
    backend, provider = translator
    rft = {"method": {"type": "rft", "grader": {"type": "x"}}, "eval_steps": 5}
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "openai": (rft, "method.reinforcement.hyperparameters.eval_interval"),
        "fireworks": ({"checkpoint_steps": 5}, "samplerCheckpointSaveIntervalSteps"),
    }
    if backend.name in cases:
        asked, wire = cases[backend.name]
        spec = JobSpec.parse({"model": backend.model, "train": "t", "validation": "v", **asked})
        (row,) = (row for row in provider.translate(spec).settings if row.name.endswith("_steps"))
        assert (row.wire, row.sent) == (wire, 5)


def test_the_files_of_a_mix_are_told(translator: tuple[Backend, Provider]) -> None:
    backend, provider = translator
    mix = ["a.jsonl", {"path": "b.jsonl", "weight": 2}, {"path": "c.jsonl", "weight": 0.5, "seed": 3}]
    found = provider.translate(JobSpec.parse({"model": backend.model, "train": mix}))
    (row,) = (row for row in found.settings if row.name == "train")
    if backend.name != "shelf":
        assert row.outcome is Outcome.KEPT and "mixed" in (row.rule or "")
        assert row.sent == "a.jsonl + b.jsonl x 2 + c.jsonl x 0.5 (seed 3)"
