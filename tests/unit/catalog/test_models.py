"""The catalog: names, ids, lifecycle and what passes through."""

from __future__ import annotations

from datetime import date

import pytest

from orchestrate import catalog
from orchestrate.catalog import HostModel
from orchestrate.data.tokens import counters
from orchestrate.errors import SpecError, UsageError
from orchestrate.profile import profile
from orchestrate.providers.registry import provider_class
from orchestrate.types import Feature

TODAY = date(2026, 11, 25)


def test_one_name_for_all_ids() -> None:
    model = catalog.find("qwen3.5-9b")
    assert model.ids == {
        "together": "Qwen/Qwen3.5-9B",
        "fireworks": "accounts/fireworks/models/qwen3p5-9b",
        "local": "Qwen/Qwen3.5-9B",
    }
    for name in (*model.ids.values(), "QWEN3.5-9B", " qwen3.5-9b "):
        assert catalog.find(name) is model


def test_unknown_names_get_suggestions() -> None:
    with pytest.raises(UsageError, match=r"unknown model 'gtp-4.1-mini'; did you mean gpt-4.1-mini"):
        catalog.find("gtp-4.1-mini")


@pytest.mark.parametrize(
    ("name", "provider", "id"),
    [
        ("gpt-4.1-mini", "openai", "gpt-4.1-mini-2025-04-14"),
        ("ft:gpt-4o-mini-2024-07-18:acme::abc", "openai", "ft:gpt-4o-mini-2024-07-18:acme::abc"),
        ("llama-3.3-70b", "together", "meta-llama/Llama-3.3-70B-Instruct-Reference"),
        ("Qwen/Qwen3-8B", "fireworks", "accounts/fireworks/models/qwen3-8b"),
        ("qwen3-8b", "local", "Qwen/Qwen3-8B"),
        ("acme/own-7B", "local", "acme/own-7B"),
        ("acme/own-7B", "together", "acme/own-7B"),
        ("accounts/acme/models/mine", "fireworks", "accounts/acme/models/mine"),
        ("./somewhere/model", "local", "./somewhere/model"),
    ],
)
def test_resolve(name: str, provider: str, id: str) -> None:
    assert catalog.resolve(name, provider, TODAY).id == id


def test_a_tune_of_openai_keeps_its_base() -> None:
    found = catalog.resolve("ft:gpt-4o-mini-2024-07-18:acme::abc", "openai", TODAY)
    assert found.name == "gpt-4o-mini"
    assert found.host is not None and found.host.id == "gpt-4o-mini-2024-07-18"


@pytest.mark.parametrize(
    ("name", "provider", "said"),
    [
        (
            "gpt-4.1",
            "together",
            "together cannot fine-tune gpt-4.1. Most similar models that it can fine-tune: llama-3.3-70b",
        ),
        ("qwen3-14b", "together", "together cannot fine-tune qwen3-14b. It fine-tunes:"),
        ("llama-4", "openai", "unknown model 'llama-4'"),
        ("./own", "together", "unknown model './own'"),
        ("quants/own.gguf", "together", "unknown model 'quants/own.gguf'"),
        ("qwen3-8", "fireworks", "did you mean qwen3-8b"),
        ("gpt4", "local", "unknown model 'gpt4'"),
    ],
)
def test_what_a_backend_does_not_have(name: str, provider: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        catalog.resolve(name, provider, TODAY)
    assert said in caught.value.message
    assert caught.value.fix


def test_passing_through_warns() -> None:
    assert "not in the catalog" in catalog.resolve("acme/own-7B", "together", TODAY).warnings[0]
    assert "may not support fine-tuning" in catalog.resolve("gpt-oss-20b", "fireworks", TODAY).warnings[0]
    assert catalog.resolve("qwen3.5-9b", "together", TODAY).warnings == ()


@pytest.mark.parametrize(
    ("name", "params_b"),
    [
        ("acme/own-7B", 7.0),
        ("acme/own-1.5B-chat", 1.5),
        ("acme/own", None),
        ("accounts/a/models/x-3p5b", 3.5),
    ],
)
def test_size_from_a_raw_id(name: str, params_b: float | None) -> None:
    provider = "fireworks" if name.startswith("accounts/") else "together"
    assert catalog.resolve(name, provider, TODAY).params_b == params_b


def test_shutdown_is_told_within_ninety_days() -> None:
    model = catalog.find("gpt-4.1")
    assert catalog.shutdown_warning(model, "openai", date(2026, 10, 15)) is None  # 91 days
    near = catalog.shutdown_warning(model, "openai", date(2026, 10, 16))  # 90 days
    assert near is not None and "2027-01-14 (90 days from now)" in near
    assert "nearest open model: llama-3.3-70b (together, fireworks, local)" in near
    gone = catalog.shutdown_warning(model, "openai", date(2027, 1, 15))
    assert gone is not None and "were shut down on openai on 2027-01-14" in gone
    assert catalog.shutdown_warning(catalog.find("qwen3-8b"), "fireworks", TODAY) is None


def test_openai_closes_on_its_day() -> None:
    assert profile("openai").closed(date(2027, 1, 5)) is None
    assert "2027-01-06" in (profile("openai").closed(date(2027, 1, 6)) or "")
    assert profile("together").closed(date(2027, 6, 1)) is None


def test_every_closing_model_has_somewhere_to_go() -> None:
    for model in catalog.all_models():
        if any(host.shutdown for host in model.hosts.values()):
            others = catalog.alternatives(model)
            assert others and all(other.open for other in others), model.name


def test_every_model_says_from_where_it_is_known() -> None:
    for model in catalog.all_models():
        for provider, host in model.hosts.items():
            assert host.sources, (model.name, provider)
            assert host.methods, (model.name, provider)


def test_adapters_are_listed_where_the_backend_lets_one_choose() -> None:
    """As `providers` and `plan` tell it: a host that decides by itself lists none."""
    chooses = {kind: Feature.LORA in provider_class(kind).features for kind in catalog.known_hosts()}
    assert set(chooses.values()) == {True, False}
    for model in catalog.all_models():
        for provider, host in model.hosts.items():
            assert bool(host.adapters) == chooses[provider], (model.name, provider)


def test_every_tokenizer_can_count() -> None:
    from orchestrate.data.rows import TextExample

    for model in catalog.all_models():
        name = counters.for_model(tokenizer=model.tokenizer)
        assert counters.counter(name).count([TextExample(text="one two three")]).tokens[0] >= 3


def test_search() -> None:
    assert [m.name for m in catalog.search("gpt oss")] == ["gpt-oss-20b", "gpt-oss-120b"]
    assert {m.name for m in catalog.search("qwen3.5 9b", "together")} == {"qwen3.5-9b"}
    assert catalog.search("qwen3-14b", "together") == []
    assert all(m.open for m in catalog.search("", "local"))


def test_differences_with_a_host() -> None:
    ours = {
        m.hosts["together"].id: m.hosts["together"] for m in catalog.all_models() if "together" in m.hosts
    }
    assert catalog.differences("together", ours.values()) == []
    seen = [
        host if id != "Qwen/Qwen3.5-9B" else HostModel(id=id, context=(1024, 512), shutdown=date(2027, 3, 1))
        for id, host in ours.items()
        if id != "zai-org/GLM-5.3"
    ]
    seen.append(HostModel(id="new/Model-1B"))
    changes = {(c.model, c.field): (c.ours, c.theirs) for c in catalog.differences("together", seen)}
    assert changes == {
        ("Qwen/Qwen3.5-9B", "context"): ("65536/49152", "1024/512"),
        ("Qwen/Qwen3.5-9B", "shutdown"): (None, "2027-03-01"),
        ("zai-org/GLM-5.3", "model"): ("tunable", None),
        ("new/Model-1B", "model"): (None, "tunable"),
    }


def test_the_bundled_model_is_local_only() -> None:
    model = catalog.find("tiny-chat")
    assert set(model.ids) == {"local"}
    with pytest.raises(SpecError, match="together cannot fine-tune"):
        catalog.resolve("tiny-chat", "together", TODAY)


@pytest.mark.parametrize(
    ("provider", "method", "today", "ended"),
    [
        ("openai", "rft", TODAY, "its last model for this method, o4-mini, was shut down on 2026-10-23"),
        ("openai", "sft", TODAY, None),
        (
            "openai",
            "sft",
            date(2027, 1, 15),
            "its last model for this method, gpt-4.1, was shut down on 2027-01-14",
        ),
        ("fireworks", "rft", TODAY, None),
        ("local", "rft", TODAY, None),
    ],
)
def test_a_method_ends_with_its_last_model(
    provider: str, method: str, today: date, ended: str | None
) -> None:
    """The dates are those of OpenAI's page of deprecations."""
    assert catalog.ended_method(provider, method, today) == ended


FAMILIES = {
    "mistral-small-3.2": ("apache-2.0", "tekken", "mistral_small"),
    "ministral-3-8b": ("apache-2.0", "tekken", "ministral3"),
    "llama-3.2-3b": ("llama3.2", "llama-3", "llama3"),
    "phi-4": ("mit", "phi-4", "phi4"),
    "gemma-3-1b": ("gemma", "gemma", "gemma2"),
    "gemma-3-12b": ("gemma", "gemma", "gemma3"),
    "qwen3-0.6b": ("apache-2.0", "qwen3", "qwen3"),
    "qwen3-1.7b": ("apache-2.0", "qwen3", "qwen3"),
    "qwen2.5-3b": ("qwen-research", "qwen3", "qwen"),
    "qwen2.5-14b": ("apache-2.0", "qwen3", "qwen"),
    "deepseek-r1-distill-qwen-14b": ("mit", "qwen3", "deepseekr1"),
    "deepseek-r1-distill-llama-8b": ("mit", "llama-3", "deepseekr1"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_models_that_teams_start_from(name: str) -> None:
    model = catalog.find(name)
    assert (model.license, model.tokenizer, model.template) == FAMILIES[name]
    assert model.params_b and model.context and model.sources
    assert catalog.find(str(model.hub)) is model
    assert catalog.resolve(name, "local", TODAY).id == model.hub


def test_every_open_model_has_a_license() -> None:
    unlicensed = {m.name for m in catalog.all_models() if m.hub and not m.license}
    assert unlicensed == set()


def test_what_only_memory_tells_is_labelled() -> None:
    for model in catalog.all_models():
        if model.open and not model.hosts and model.folder is None:
            assert model.sources, model.name
    assert "not verified" in (catalog.find("llama-3.2-1b").note or "")


@pytest.mark.parametrize("name", ["qwen3.6-27b", "qwen3.6-35b-a3b", "qwen3.8-27b"])
def test_the_newer_qwens_have_the_tokenizer_of_3_5(name: str) -> None:
    # Qwen3.6: 248,320 tokens on its card, as Qwen3.5; Qwen3 has 151,936. Qwen3.8 has 3.5's architecture.
    assert catalog.find(name).tokenizer == catalog.find("qwen3.5-27b").tokenizer == "qwen3.5"


def test_weights_that_are_published_in_few_bits() -> None:
    few = {m.name: m.precision for m in catalog.all_models() if m.precision != "bf16"}
    assert few["gpt-oss-20b"] == few["gpt-oss-120b"] == "mxfp4"
    assert few["deepseek-v3.1"] == few["ministral-3-14b"] == "fp8"


def test_a_model_that_ends_names_its_replacement() -> None:
    for model in catalog.all_models():
        host = model.hosts.get("openai")
        if host and host.shutdown and model.name not in ("davinci-002", "babbage-002"):
            assert host.successor, model.name
    assert catalog.find("gpt-4.1").hosts["openai"].successor == "gpt-6-luna"
    assert catalog.comparison().name == "gpt-4.1"
