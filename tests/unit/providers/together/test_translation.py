"""What each setting of a spec becomes at Together."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from orchestrate.costing import built_in
from orchestrate.data import TrainingData
from orchestrate.providers.chat import at_chat
from orchestrate.providers.together import STATUSES
from orchestrate.providers.together.provider import TogetherProvider
from orchestrate.providers.together.translation import tag
from orchestrate.settings.config import HostConfig, Secret
from orchestrate.spec import DPO, RFT, SFT, Full, JobSpec, LoRA, QLoRA
from orchestrate.types import JobStatus, Outcome, Setting

REF = "orc-0123456789ab"


@pytest.fixture
def together() -> TogetherProvider:
    return TogetherProvider(HostConfig(name="together"))


def spec(**changes: Any) -> JobSpec:
    return JobSpec.parse({"model": "llama-3.1-8b", "train": "t.jsonl", **changes})


def row(together: TogetherProvider, name: str, **changes: Any) -> Setting:
    rows = {s.name: s for s in together.translate(spec(**changes)).settings}
    return rows[name]


def body(together: TogetherProvider, **changes: Any) -> dict[str, Any]:
    translation = together.translate(spec(**changes))
    assert translation.refused == ()
    return translation.body


def test_what_nobody_asked_for_is_not_sent(together: TogetherProvider) -> None:
    assert body(together) == {
        "model": "meta-llama/Meta-Llama-3.1-8B-Instruct-Reference",
        "training_method": {"method": "sft", "train_on_inputs": "auto"},
    }


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({"epochs": 3}, {"n_epochs": 3}),
        ({"learning_rate": 1e-4}, {"learning_rate": 1e-4}),
        ({"batch_size": "max"}, {"batch_size": "max"}),
        ({"batch_size": 16}, {"batch_size": 16}),
        ({"gradient_accumulation": 2}, {"gradient_accumulation_steps": 2}),
        ({"batch_size": 8, "gradient_accumulation": 2}, {"batch_size": 4, "gradient_accumulation_steps": 2}),
        ({"batch_size": 8, "gradient_accumulation": 1}, {"batch_size": 8, "gradient_accumulation_steps": 1}),
        ({"warmup_ratio": 0.1}, {"warmup_ratio": 0.1}),
        ({"weight_decay": 0.1}, {"weight_decay": 0.1}),
        ({"max_grad_norm": 0.5}, {"max_grad_norm": 0.5}),
        ({"max_seq_length": 4096}, {"max_seq_length": 4096}),
        ({"packing": False}, {"packing": False}),
        ({"checkpoints": 3}, {"n_checkpoints": 3}),
        ({"seed": 7}, {"random_seed": 7}),
        (
            {"method": SFT(train_on_inputs=True)},
            {"training_method": {"method": "sft", "train_on_inputs": True}},
        ),
        ({"method": DPO(beta=0.3)}, {"training_method": {"method": "dpo", "dpo_beta": 0.3}}),
        (
            {"method": DPO(simpo_gamma=1.0)},
            {
                "training_method": {
                    "method": "dpo",
                    "simpo_gamma": 1.0,
                    "dpo_reference_free": True,
                    "dpo_normalize_logratios_by_length": True,
                }
            },
        ),
        ({"adapter": Full()}, {"training_type": {"type": "Full"}}),
        ({"adapter": LoRA(r=8)}, {"training_type": {"type": "Lora", "lora_r": 8, "lora_alpha": 16}}),
        (
            {"adapter": LoRA(r=8, alpha=8, targets=("q_proj", "v_proj"))},
            {
                "training_type": {
                    "type": "Lora",
                    "lora_r": 8,
                    "lora_alpha": 8,
                    "lora_trainable_modules": "q_proj,v_proj",
                }
            },
        ),
        (
            {"schedule": "cosine"},
            {
                "lr_scheduler": {
                    "lr_scheduler_type": "cosine",
                    "lr_scheduler_args": {"min_lr_ratio": 0.0, "num_cycles": 0.5},
                }
            },
        ),
        (
            {"schedule": "linear"},
            {"lr_scheduler": {"lr_scheduler_type": "linear", "lr_scheduler_args": {"min_lr_ratio": 0.0}}},
        ),
        (
            {"schedule": "cosine", "min_lr_ratio": 0.1},
            {
                "lr_scheduler": {
                    "lr_scheduler_type": "cosine",
                    "lr_scheduler_args": {"min_lr_ratio": 0.1, "num_cycles": 0.5},
                }
            },
        ),
        (
            {"min_lr_ratio": 0.1},
            {
                "lr_scheduler": {
                    "lr_scheduler_type": "cosine",
                    "lr_scheduler_args": {"min_lr_ratio": 0.1, "num_cycles": 0.5},
                }
            },
        ),
        ({"warmup_steps": 0}, {"warmup_ratio": 0.0}),
        # Nobody asked for evaluations, and each is billed.
        ({"validation": "v.jsonl", "epochs": 4}, {"n_epochs": 4, "n_evals": 0}),
        ({"validation": "v.jsonl", "evals": 4}, {"n_evals": 4}),
        ({"validation": "v.jsonl", "evals": 0}, {"n_evals": 0}),
        (
            {"validation": "v.jsonl", "early_stopping": {"patience": 3, "min_delta": 0.1}},
            {
                "n_evals": 5,
                "early_stopping_enabled": True,
                "early_stopping_patience": 3,
                "early_stopping_min_delta": 0.1,
            },
        ),
        ({"wandb": {"project": "p", "name": "n"}}, {"wandb_project_name": "p", "wandb_name": "n"}),
        (
            {"provider_options": {"together": {"hf_output_repo_name": "me/x"}}},
            {"hf_output_repo_name": "me/x"},
        ),
        ({"provider_options": {"together": {"packing": True}}}, {"packing": True}),  # as it is anyway
    ],
)
def test_kept(together: TogetherProvider, asked: dict[str, Any], sent: dict[str, Any]) -> None:
    plain = body(together)
    assert {k: v for k, v in body(together, **asked).items() if plain.get(k) != v} == sent


@pytest.mark.parametrize(
    ("name", "asked", "exact"),
    [
        ("schedule", {"schedule": "constant"}, True),
        ("learning_rate_multiplier", {"learning_rate_multiplier": 2.0}, False),
        ("adapter.type", {"adapter": QLoRA(r=8)}, False),
        # It multiplies the rows of a step there, where the spec's batch size is all of them.
        ("gradient_accumulation", {"gradient_accumulation": 2}, False),
        ("batch_size", {"batch_size": 8, "gradient_accumulation": 2}, True),
        ("batch_size", {"batch_size": 9, "gradient_accumulation": 2}, False),
        ("batch_size", {"batch_size": 1, "gradient_accumulation": 2}, False),
        ("suffix", {"suffix": "short"}, True),
        ("suffix", {"suffix": "a-suffix-that-is-longer-than-fits"}, False),
    ],
)
def test_mapped_with_a_rule(
    together: TogetherProvider, name: str, asked: dict[str, Any], exact: bool
) -> None:
    found = row(together, name, **asked)
    assert (found.outcome, found.exact) == (Outcome.MAPPED, exact) and found.rule


def test_a_constant_rate_is_a_linear_one_that_ends_where_it_began(together: TogetherProvider) -> None:
    assert body(together, schedule="constant")["lr_scheduler"] == {
        "lr_scheduler_type": "linear",
        "lr_scheduler_args": {"min_lr_ratio": 1.0},
    }


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("method.type", {"method": RFT(grader={"type": "x"})}),
        ("method", {"method": RFT(grader={"type": "x"}, kl_beta=0.1)}),
        ("method.loss", {"method": DPO(loss="orpo")}),
        ("method.loss", {"method": DPO(loss="kto")}),
        ("method.desirable_weight", {"method": DPO(loss="kto", desirable_weight=2)}),
        ("batch_tokens", {"batch_tokens": 1000}),
        ("schedule", {"schedule": "polynomial"}),
        ("schedule", {"schedule": "warmup_stable_decay", "min_lr_ratio": 0.1}),
        ("min_lr_ratio", {"schedule": "warmup_stable_decay", "min_lr_ratio": 0.1}),
        ("schedule_power", {"schedule": "polynomial", "schedule_power": 2.0}),
        ("warmup_steps", {"warmup_steps": 10}),
        ("truncation", {"truncation": "left"}),
        ("save_total_limit", {"save_total_limit": 2}),
        ("method.train_on", {"method": SFT(train_on="last")}),
        ("method.ignore_empty_think", {"method": SFT(ignore_empty_think=True)}),
        ("adapter.r", {"adapter": LoRA(r=128)}),
        ("adapter.alpha", {"adapter": LoRA(r=8, alpha=1.5)}),
        ("adapter.dora", {"adapter": LoRA(dora=True)}),
        ("adapter.rslora", {"adapter": LoRA(rslora=True)}),
        ("evals", {"evals": 3}),
        ("max_seq_length", {"max_seq_length": 500_000}),
        ("early_stopping", {"validation": "v", "evals": 2, "early_stopping": {"patience": 2}}),
        ("wandb.tags", {"wandb": {"project": "p", "tags": ["a"]}}),
        ("method.normalize_by_length", {"method": DPO(simpo_gamma=1, normalize_by_length=False)}),
        ("adapter.type", {"model": "gpt-oss-20b", "adapter": Full()}),
        ("model", {"model": "gpt-4o"}),
        ("provider_options.training_file", {"provider_options": {"together": {"training_file": "f"}}}),
        ("provider_options.hf_api_token", {"provider_options": {"together": {"hf_api_token": "x"}}}),
        ("provider_options.n_epochs", {"epochs": 2, "provider_options": {"together": {"n_epochs": 3}}}),
        # Fields that a setting stands for, and that the quote would not see.
        ("provider_options.n_epochs", {"provider_options": {"together": {"n_epochs": 3}}}),
        ("provider_options.packing", {"provider_options": {"together": {"packing": False}}}),
        (
            "provider_options.training_type.type",
            {"provider_options": {"together": {"training_type": {"type": "Full"}}}},
        ),
    ],
)
def test_refused_with_a_reason(together: TogetherProvider, name: str, asked: dict[str, Any]) -> None:
    found = row(together, name, **asked)
    assert found.outcome is Outcome.REFUSED and found.rule


def test_the_ref_always_fits_whole_into_the_suffix() -> None:
    assert tag(None, REF) == REF
    assert tag("mine", REF) == f"mine-{REF}"
    long = tag("x" * 40, REF)
    assert len(long) == 40 and long.endswith(f"-{REF}")
    assert tag("cut-at-a-hyphen-here-----", REF) == f"cut-at-a-hyphen-here-{REF}"


def test_every_status_of_the_sdk_is_mapped() -> None:
    from together.lib.types.fine_tuning import COMPLETED_STATUSES, FinetuneJobStatus
    from together.types import FinetuneResponse

    words = set(get_args(FinetuneResponse.model_fields["status"].annotation))
    words |= {s.value for s in FinetuneJobStatus}
    assert words == set(STATUSES)
    ends = {s.value for s in COMPLETED_STATUSES}
    assert {w for w, s in STATUSES.items() if s.terminal} == ends
    assert TogetherProvider(HostConfig(name="together")).status("hibernating") is JobStatus.UNKNOWN


def test_a_further_instance_goes_by_its_own_name(tmp_path: Path) -> None:
    other = TogetherProvider(
        HostConfig(name="together-eu", type="together", api_key=Secret("sandbox-of-another-0123"))
    )
    translation = other.translate(spec(model={"together-eu": "llama-3.1-8b"}))
    assert (translation.provider, translation.refused) == ("together-eu", ())
    path = tmp_path / "t.jsonl"
    row = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
    path.write_text(row * 3)
    quote = other.quote(spec(), TrainingData.open(str(path)), other.translate(spec()), built_in())
    assert quote.provider == "together-eu" and quote.expected_usd > 0


def test_check_says_what_the_host_would(together: TogetherProvider, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"messages": [{"role": "assistant", "content": "a"}]}\n')
    asked = spec(batch_tokens=5, wandb={"project": "p"})
    problems = together.check(asked, TrainingData.open(str(path)), together.translate(asked))
    assert {"setting-refused", "wandb-key-missing"} <= {p.code for p in problems}
    assert {p.code for p in problems} & {"starts-wrong", "too-few-rows", "no-assistant", "not-alternating"}


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://api.together.ai", "https://api-inference.together.ai/v1/chat/completions"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1/chat/completions"),
    ],
)
def test_where_chats_go(base: str, url: str) -> None:
    config = HostConfig(name="together", api_key=Secret("key-of-the-tests"), base_url=base)
    assert f"{at_chat(config).base_url}/chat/completions" == url, "what asks without the SDK asks there too"
    provider = TogetherProvider(config)
    client = provider._client().with_options(base_url=provider._inference_url)
    assert str(client._prepare_url("/v1/chat/completions")) == url
    provider.close()
