"""What each setting of a spec becomes at Fireworks."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from orchestrate.providers.calls.hosted import Wire
from orchestrate.providers.fireworks import STATUSES
from orchestrate.providers.fireworks.connection import Connection
from orchestrate.providers.fireworks.provider import FireworksProvider
from orchestrate.providers.fireworks.translation import fill_steps, job_id_of, output_model
from orchestrate.settings.config import HostConfig, Secret
from orchestrate.spec import DPO, RFT, SFT, Full, JobSpec, LoRA, QLoRA
from orchestrate.types import Authority, Outcome, Setting

MODEL = "accounts/fireworks/models/qwen3-8b"
REF = "orc-0123456789ab"


@pytest.fixture
def fireworks() -> FireworksProvider:
    return FireworksProvider(HostConfig(name="fireworks"))


def spec(**changes: Any) -> JobSpec:
    return JobSpec.parse({"model": "qwen3-8b", "train": "t.jsonl", **changes})


def row(fireworks: FireworksProvider, name: str, **changes: Any) -> Setting:
    return {s.name: s for s in fireworks.translate(spec(**changes)).settings}[name]


def body(fireworks: FireworksProvider, **changes: Any) -> dict[str, Any]:
    translation = fireworks.translate(spec(**changes))
    assert translation.refused == ()
    return translation.body


def test_what_nobody_asked_for_is_not_sent(fireworks: FireworksProvider) -> None:
    # No row is held back for an evaluation.
    assert body(fireworks) == {"baseModel": MODEL, "evalAutoCarveout": False}
    assert body(fireworks, method=DPO()) == {
        "trainingConfig": {"baseModel": MODEL},
        "lossConfig": {"method": "DPO"},
    }
    assert body(fireworks, method=DPO(loss="orpo"))["lossConfig"] == {"method": "ORPO"}
    assert body(fireworks, method=DPO(loss="dpo"))["lossConfig"] == {"method": "DPO"}
    grader = {"evaluator": "accounts/a/evaluators/e"}
    rft = body(fireworks, method=RFT(grader=grader, kl_beta=0.1))
    assert (rft["lossConfig"], rft["evalAutoCarveout"]) == ({"klBeta": 0.1}, False)


def test_rows_are_held_back_only_where_that_is_asked_for(fireworks: FireworksProvider) -> None:
    told = row(fireworks, "validation")
    assert (told.outcome, told.wire, told.sent) == (Outcome.DEFAULTED, "evalAutoCarveout", False)
    carved = body(fireworks, provider_options={"fireworks": {"evalAutoCarveout": True}})
    assert carved["evalAutoCarveout"] is True
    assert "evalAutoCarveout" not in body(fireworks, validation="v.jsonl")


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
def test_kept_in_an_sft_job(
    fireworks: FireworksProvider, asked: dict[str, Any], sent: dict[str, Any]
) -> None:
    assert body(fireworks, **asked) == {"baseModel": MODEL, "evalAutoCarveout": False, **sent}


@pytest.mark.parametrize(("asked", "sent"), [*SETTINGS, *OF_THE_OTHERS])
def test_kept_under_the_training_config_of_the_others(
    fireworks: FireworksProvider, asked: dict[str, Any], sent: dict[str, Any]
) -> None:
    assert body(fireworks, method=DPO(), **asked)["trainingConfig"] == {"baseModel": MODEL, **sent}


def test_from_where_a_field_is_known(fireworks: FireworksProvider) -> None:
    dpo = {"method": DPO(), "adapter": LoRA(alpha=16), "schedule": "cosine"}
    assert row(fireworks, "epochs", epochs=2).authority is Authority.SDK
    assert row(fireworks, "schedule", schedule="cosine").authority is Authority.SPECIFICATION
    assert row(fireworks, "adapter.alpha", **dpo).authority is Authority.SPECIFICATION
    assert row(fireworks, "schedule", **dpo).authority is Authority.DOCUMENTATION
    assert row(fireworks, "train").authority is None


def test_orpo_has_a_weight(fireworks: FireworksProvider) -> None:
    sent = body(fireworks, method=DPO(loss="orpo", beta=0.2))
    assert sent["lossConfig"] == {"method": "ORPO", "orpo": {"lambda": 0.2}}


@pytest.mark.parametrize(
    ("name", "asked", "exact"),
    [
        ("warmup_ratio", {"warmup_ratio": 0.1}, True),
        ("checkpoints", {"checkpoints": 3}, False),
        ("adapter.type", {"adapter": QLoRA(r=8)}, False),
        ("adapter.targets", {"method": DPO(), "adapter": LoRA(targets="all-linear")}, False),
        ("suffix", {"suffix": "my-bot"}, True),
        ("suffix", {"suffix": "My.Bot"}, False),
        ("wandb.name", {"wandb": {"project": "p", "name": "n"}}, False),
        ("validation", {"method": DPO(), "validation": "v.jsonl"}, False),
    ],
)
def test_mapped_with_a_rule(
    fireworks: FireworksProvider, name: str, asked: dict[str, Any], exact: bool
) -> None:
    found = row(fireworks, name, **asked)
    assert (found.outcome, found.exact) == (Outcome.MAPPED, exact) and found.rule


@pytest.mark.parametrize(
    ("name", "asked"),
    [
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
)
def test_refused_with_a_reason(fireworks: FireworksProvider, name: str, asked: dict[str, Any]) -> None:
    found = row(fireworks, name, **asked)
    assert found.outcome is Outcome.REFUSED and found.rule


def test_steps_are_counted_from_the_rows() -> None:
    filled: dict[str, Any] = {}
    fill_steps(filled, spec(epochs=3, batch_size=10, warmup_ratio=0.1, checkpoints=4), 95)
    # ten steps an epoch, thirty in all
    assert filled == {"learningRateWarmupSteps": 3, "samplerCheckpointSaveIntervalSteps": 8}
    nested: dict[str, Any] = {}
    fill_steps(nested, spec(method=DPO(), warmup_ratio=0.5), 8)
    assert nested == {"trainingConfig": {"learningRateWarmupSteps": 1}}


def test_ids_are_what_the_host_takes() -> None:
    assert job_id_of(REF) == REF
    assert job_id_of("Run_7!") == "run-7" and job_id_of("7up") == "m-7up"
    assert output_model("My.Bot", REF) == f"my-bot-{REF}"
    long = output_model("x" * 60, REF)
    assert len(long) == 63 and long.endswith(f"-{REF}")


def test_every_state_of_the_sdks_jobs_is_mapped() -> None:
    from fireworks.types import DpoJob, ReinforcementFineTuningJob, SupervisedFineTuningJob

    for kind in (SupervisedFineTuningJob, DpoJob, ReinforcementFineTuningJob):
        literal = get_args(kind.model_fields["state"].annotation)[0]
        newer = {"JOB_STATE_DELETED", "JOB_STATE_ARCHIVED"}  # of the gateway, 4.259.0 and 5.10.0
        assert set(get_args(literal)) == set(STATUSES) - newer


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://api.fireworks.ai", "https://api.fireworks.ai/inference/v1/chat/completions"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1/chat/completions"),
    ],
)
def test_where_chats_go(base: str, url: str) -> None:
    config = HostConfig(name="fireworks", api_key=Secret("key-of-the-tests"), base_url=base)
    at = Connection(config, Wire("fireworks"))
    client = at.client().with_options(base_url=at.inference_url)
    assert str(client._prepare_url("/v1/chat/completions")) == url
    at.close()
