"""What each setting of a spec becomes at Together and at Fireworks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from orchestrate.costing import built_in
from orchestrate.data import TrainingData
from orchestrate.profile import profile
from orchestrate.providers import registry
from orchestrate.providers.base import Provider
from orchestrate.providers.calls.hosted import Wire
from orchestrate.providers.chat import at_chat
from orchestrate.providers.fireworks.connection import Connection
from orchestrate.providers.fireworks.translation import fill_steps, job_id_of, output_model
from orchestrate.providers.together.provider import TogetherProvider
from orchestrate.providers.together.translation import tag
from orchestrate.settings.config import HostConfig, Secret
from orchestrate.spec import DPO, RFT, SFT, Full, JobSpec, LoRA, QLoRA
from orchestrate.types import Authority, JobStatus, Outcome, Setting

TOGETHER, FIREWORKS = "together", "fireworks"
MODEL = "accounts/fireworks/models/qwen3-8b"
REF = "orc-0123456789ab"


def at(host: str) -> Provider:
    return registry.provider_class(host)(HostConfig(name=host))


def spec(host: str, **changes: Any) -> JobSpec:
    model = "llama-3.1-8b" if host == TOGETHER else "qwen3-8b"
    return JobSpec.parse({"model": model, "train": "t.jsonl", **changes})


def row(host: str, name: str, **changes: Any) -> Setting:
    return {s.name: s for s in at(host).translate(spec(host, **changes)).settings}[name]


def body(host: str, **changes: Any) -> dict[str, Any]:
    translation = at(host).translate(spec(host, **changes))
    assert translation.refused == ()
    return translation.body


MAPPED: dict[str, list[tuple[Any, ...]]] = {
    TOGETHER: [
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
    FIREWORKS: [
        ("warmup_ratio", {"warmup_ratio": 0.1}, True),
        ("checkpoints", {"checkpoints": 3}, False),
        ("adapter.type", {"adapter": QLoRA(r=8)}, False),
        ("adapter.targets", {"method": DPO(), "adapter": LoRA(targets="all-linear")}, False),
        ("suffix", {"suffix": "my-bot"}, True),
        ("suffix", {"suffix": "My.Bot"}, False),
        ("wandb.name", {"wandb": {"project": "p", "name": "n"}}, False),
        ("validation", {"method": DPO(), "validation": "v.jsonl"}, False),
    ],
}
REFUSED: dict[str, list[tuple[Any, ...]]] = {
    TOGETHER: [
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
    FIREWORKS: [
        ("method.train_on_inputs", {"method": SFT(train_on_inputs=True)}),
        ("schedule", {"schedule": "polynomial"}),
        ("min_lr_ratio", {"min_lr_ratio": 0.1}),
        ("decay_ratio", {"schedule": "warmup_stable_decay", "decay_ratio": 0.1}),
        ("method.beta", {"method": DPO(beta=0.5)}),
        ("method.simpo_gamma", {"method": DPO(simpo_gamma=1)}),
        ("method.loss", {"method": DPO(loss="kto")}),
        ("method.undesirable_weight", {"method": DPO(loss="kto", undesirable_weight=2)}),
        ("method.grader", {"method": RFT(grader={"type": "string_check"})}),
        ("method.reasoning_effort", {"method": RFT(grader={"evaluator": "e"}, reasoning_effort="low")}),
        ("adapter.type", {"adapter": Full()}),
        ("adapter.r", {"adapter": LoRA(r=12)}),
        ("adapter.r", {"adapter": LoRA(r=64)}),
        ("adapter.dora", {"adapter": LoRA(dora=True)}),
        ("learning_rate_multiplier", {"learning_rate_multiplier": 2}),
        ("batch_size", {"batch_size": "max"}),
        ("batch_tokens", {"batch_tokens": 9}),
        ("gradient_accumulation", {"gradient_accumulation": 2}),
        ("max_grad_norm", {"max_grad_norm": 1}),
        ("packing", {"packing": False}),
        ("seed", {"seed": 1}),
        ("evals", {"validation": "v", "evals": 3}),
        ("early_stopping", {"validation": "v", "early_stopping": {}}),
        ("adapter.alpha", {"adapter": LoRA(r=8, alpha=16)}),
        ("adapter.dropout", {"adapter": LoRA(dropout=0.0)}),
        ("adapter.targets", {"adapter": LoRA(targets="all-linear")}),
        ("adapter.targets", {"adapter": LoRA(targets=("q_proj",))}),
        ("checkpoints", {"method": RFT(grader={"evaluator": "e"}), "checkpoints": 2}),
        ("wandb.tags", {"wandb": {"project": "p", "tags": ["a"]}}),
        ("model", {"model": "gpt-4o"}),
        ("provider_options.dataset", {"provider_options": {"fireworks": {"dataset": "x"}}}),
        ("provider_options.epochs", {"epochs": 2, "provider_options": {"fireworks": {"epochs": 3}}}),
    ],
}


def of_each(table: dict[str, list[tuple[Any, ...]]]) -> list[tuple[Any, ...]]:
    return [(host, *case) for host, cases in table.items() for case in cases]


@pytest.mark.parametrize(("host", "name", "asked", "exact"), of_each(MAPPED))
def test_mapped_with_a_rule(host: str, name: str, asked: dict[str, Any], exact: bool) -> None:
    found = row(host, name, **asked)
    assert (found.outcome, found.exact) == (Outcome.MAPPED, exact) and found.rule


@pytest.mark.parametrize(("host", "name", "asked"), of_each(REFUSED))
def test_refused_with_a_reason(host: str, name: str, asked: dict[str, Any]) -> None:
    found = row(host, name, **asked)
    assert found.outcome is Outcome.REFUSED and found.rule


# -- Together --------------------------------------------------------------------------------------------


def test_what_nobody_asked_for_is_not_sent_to_together() -> None:
    assert body(TOGETHER) == {
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
def test_kept_at_together(asked: dict[str, Any], sent: dict[str, Any]) -> None:
    plain = body(TOGETHER)
    assert {k: v for k, v in body(TOGETHER, **asked).items() if plain.get(k) != v} == sent


def test_a_constant_rate_is_a_linear_one_that_ends_where_it_began() -> None:
    assert body(TOGETHER, schedule="constant")["lr_scheduler"] == {
        "lr_scheduler_type": "linear",
        "lr_scheduler_args": {"min_lr_ratio": 1.0},
    }


def test_the_ref_always_fits_whole_into_the_suffix() -> None:
    assert tag(None, REF) == REF
    assert tag("mine", REF) == f"mine-{REF}"
    long = tag("x" * 40, REF)
    assert len(long) == 40 and long.endswith(f"-{REF}")
    assert tag("cut-at-a-hyphen-here-----", REF) == f"cut-at-a-hyphen-here-{REF}"


def test_every_status_of_togethers_sdk_is_mapped() -> None:
    from together.lib.types.fine_tuning import COMPLETED_STATUSES, FinetuneJobStatus
    from together.types import FinetuneResponse

    words = set(get_args(FinetuneResponse.model_fields["status"].annotation))
    words |= {s.value for s in FinetuneJobStatus}
    assert words == set(profile(TOGETHER).statuses)
    ends = {s.value for s in COMPLETED_STATUSES}
    assert {w for w, s in profile(TOGETHER).statuses.items() if s.terminal} == ends
    assert profile(TOGETHER).status("hibernating") is JobStatus.UNKNOWN


def test_a_further_instance_goes_by_its_own_name(tmp_path: Path) -> None:
    other = TogetherProvider(
        HostConfig(name="together-eu", type="together", api_key=Secret("sandbox-of-another-0123"))
    )
    translation = other.translate(spec(TOGETHER, model={"together-eu": "llama-3.1-8b"}))
    assert (translation.provider, translation.refused) == ("together-eu", ())
    path = tmp_path / "t.jsonl"
    row = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
    path.write_text(row * 3)
    quote = other.quote(
        spec(TOGETHER), TrainingData.open(str(path)), other.translate(spec(TOGETHER)), built_in()
    )
    assert quote.provider == "together-eu" and quote.expected_usd > 0


def test_check_says_what_the_host_would(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"messages": [{"role": "assistant", "content": "a"}]}\n')
    asked = spec(TOGETHER, batch_tokens=5, wandb={"project": "p"})
    problems = at(TOGETHER).check(asked, TrainingData.open(str(path)), at(TOGETHER).translate(asked))
    assert {"setting-refused", "wandb-key-missing"} <= {p.code for p in problems}
    assert {p.code for p in problems} & {"starts-wrong", "too-few-rows", "no-assistant", "not-alternating"}


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://api.together.ai", "https://api-inference.together.ai/v1/chat/completions"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1/chat/completions"),
    ],
)
def test_where_chats_with_together_go(base: str, url: str) -> None:
    config = HostConfig(name="together", api_key=Secret("key-of-the-tests"), base_url=base)
    assert f"{at_chat(config).base_url}/chat/completions" == url, "what asks without the SDK asks there too"
    provider = TogetherProvider(config)
    client = provider._client().with_options(base_url=provider._inference_url)
    assert str(client._prepare_url("/v1/chat/completions")) == url
    provider.close()


# -- Fireworks -------------------------------------------------------------------------------------------


def test_what_nobody_asked_for_is_not_sent_to_fireworks() -> None:
    # No row is held back for an evaluation.
    assert body(FIREWORKS) == {"baseModel": MODEL, "evalAutoCarveout": False}
    assert body(FIREWORKS, method=DPO()) == {
        "trainingConfig": {"baseModel": MODEL},
        "lossConfig": {"method": "DPO"},
    }
    assert body(FIREWORKS, method=DPO(loss="orpo"))["lossConfig"] == {"method": "ORPO"}
    assert body(FIREWORKS, method=DPO(loss="dpo"))["lossConfig"] == {"method": "DPO"}
    grader = {"evaluator": "accounts/a/evaluators/e"}
    rft = body(FIREWORKS, method=RFT(grader=grader, kl_beta=0.1))
    assert (rft["lossConfig"], rft["evalAutoCarveout"]) == ({"klBeta": 0.1}, False)


def test_rows_are_held_back_only_where_that_is_asked_for() -> None:
    told = row(FIREWORKS, "validation")
    assert (told.outcome, told.wire, told.sent) == (Outcome.DEFAULTED, "evalAutoCarveout", False)
    carved = body(FIREWORKS, provider_options={"fireworks": {"evalAutoCarveout": True}})
    assert carved["evalAutoCarveout"] is True
    assert "evalAutoCarveout" not in body(FIREWORKS, validation="v.jsonl")


SETTINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"epochs": 3}, {"epochs": 3}),
    ({"learning_rate": 1e-4}, {"learningRate": 1e-4}),
    ({"batch_size": 16}, {"batchSizeSamples": 16}),
    ({"gradient_accumulation": 1}, {}),
    ({"warmup_ratio": 0.0}, {"learningRateWarmupSteps": 0}),
    ({"weight_decay": 0.1}, {"optimizerWeightDecay": 0.1}),
    ({"max_seq_length": 4096}, {"maxContextLength": 4096}),
    ({"checkpoints": 1}, {}),
    ({"evals": 0}, {}),
    ({"packing": True}, {}),
    ({"adapter": LoRA(r=16)}, {"loraRank": 16}),
    ({"schedule": "constant"}, {"lrScheduler": {"constant": {}}}),
    ({"schedule": "linear"}, {"lrScheduler": {"linear": {}}}),
    ({"schedule": "cosine"}, {"lrScheduler": {"cosine": {}}}),
    ({"schedule": "cosine", "min_lr_ratio": 0.1}, {"lrScheduler": {"cosine": {"minLrRatio": 0.1}}}),
    ({"warmup_steps": 5}, {"learningRateWarmupSteps": 5}),
]
OF_THE_OTHERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"adapter": LoRA(r=16, alpha=32, dropout=0.1)}, {"loraRank": 16, "loraAlpha": 32, "loraDropout": 0.1}),
    ({"adapter": LoRA(targets=("q_proj",))}, {"loraTargetModules": ["q_proj"]}),
]
"""What no published description of an SFT job has."""


@pytest.mark.parametrize(("asked", "sent"), SETTINGS)
def test_kept_in_an_sft_job(asked: dict[str, Any], sent: dict[str, Any]) -> None:
    assert body(FIREWORKS, **asked) == {"baseModel": MODEL, "evalAutoCarveout": False, **sent}


@pytest.mark.parametrize(("asked", "sent"), [*SETTINGS, *OF_THE_OTHERS])
def test_kept_under_the_training_config_of_the_others(asked: dict[str, Any], sent: dict[str, Any]) -> None:
    assert body(FIREWORKS, method=DPO(), **asked)["trainingConfig"] == {"baseModel": MODEL, **sent}


def test_from_where_a_field_is_known() -> None:
    dpo = {"method": DPO(), "adapter": LoRA(alpha=16), "schedule": "cosine"}
    assert row(FIREWORKS, "epochs", epochs=2).authority is Authority.SDK
    assert row(FIREWORKS, "schedule", schedule="cosine").authority is Authority.SPECIFICATION
    assert row(FIREWORKS, "adapter.alpha", **dpo).authority is Authority.SPECIFICATION
    assert row(FIREWORKS, "schedule", **dpo).authority is Authority.DOCUMENTATION
    assert row(FIREWORKS, "train").authority is None


def test_orpo_has_a_weight() -> None:
    sent = body(FIREWORKS, method=DPO(loss="orpo", beta=0.2))
    assert sent["lossConfig"] == {"method": "ORPO", "orpo": {"lambda": 0.2}}


def test_steps_are_counted_from_the_rows() -> None:
    filled: dict[str, Any] = {}
    fill_steps(filled, spec(FIREWORKS, epochs=3, batch_size=10, warmup_ratio=0.1, checkpoints=4), 95)
    # ten steps an epoch, thirty in all
    assert filled == {"learningRateWarmupSteps": 3, "samplerCheckpointSaveIntervalSteps": 8}
    nested: dict[str, Any] = {}
    fill_steps(nested, spec(FIREWORKS, method=DPO(), warmup_ratio=0.5), 8)
    assert nested == {"trainingConfig": {"learningRateWarmupSteps": 1}}


def test_ids_are_what_the_host_takes() -> None:
    assert job_id_of(REF) == REF
    assert job_id_of("Run_7!") == "run-7" and job_id_of("7up") == "m-7up"
    assert output_model("My.Bot", REF) == f"my-bot-{REF}"
    long = output_model("x" * 60, REF)
    assert len(long) == 63 and long.endswith(f"-{REF}")


def test_every_state_of_fireworks_jobs_is_mapped() -> None:
    from fireworks.types import DpoJob, ReinforcementFineTuningJob, SupervisedFineTuningJob

    for kind in (SupervisedFineTuningJob, DpoJob, ReinforcementFineTuningJob):
        literal = get_args(kind.model_fields["state"].annotation)[0]
        newer = {"JOB_STATE_DELETED", "JOB_STATE_ARCHIVED"}  # of the gateway, 4.259.0 and 5.10.0
        assert set(get_args(literal)) == set(profile(FIREWORKS).statuses) - newer


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://api.fireworks.ai", "https://api.fireworks.ai/inference/v1/chat/completions"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1/chat/completions"),
    ],
)
def test_where_chats_with_fireworks_go(base: str, url: str) -> None:
    config = HostConfig(name="fireworks", api_key=Secret("key-of-the-tests"), base_url=base)
    made = Connection(config, Wire("fireworks"))
    client = made.client().with_options(base_url=made.inference_url)
    assert str(client._prepare_url("/v1/chat/completions")) == url
    made.close()
